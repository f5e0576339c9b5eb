"""PeerGone: who is told that a peer left, when, and how often."""

from __future__ import annotations

import trio

from tests.interop.probe.answers import Json
from tests.interop.probe.cast import Peer, open_cast
from tests.interop.probe.items.packets import disco
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.wire import Target

# A relay learns of a closed connection at once; the time is for a busy one.
_SETTLE = 0.6


async def talk(source: Peer, to: Peer, text: bytes = b"hello") -> str:
    """Send a packet, and wait for what ``to`` gets next."""
    await source.send_packet(to, text)
    return await to.next_event()


async def peer_gone(target: Target) -> dict[str, Json]:
    async def after_a_packet() -> Json:
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            await talk(a, b)
            await cast.leave(a)
            return [await b.next_event(), *await b.events()]

    async def after_many_packets() -> Json:
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            for _ in range(3):
                await talk(a, b)
                await talk(b, a)
            await cast.leave(a)
            return [await b.next_event(), *await b.events()]

    async def without_a_packet() -> Json:
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            await cast.leave(a)
            await trio.sleep(_SETTLE)
            return await b.flush()

    async def after_a_packet_to_it() -> Json:
        """Only B has sent: A was never a source for B."""
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            await talk(b, a)
            await cast.leave(a)
            await trio.sleep(_SETTLE)
            return await b.flush()

    async def after_not_here() -> Json:
        async with open_cast(target) as cast:
            b = await cast.join("B")
            await b.send_packet(cast.key("A").public(), disco())
            answer: list[Json] = [await b.next_event()]
            a = await cast.join("A")
            await cast.leave(a)
            await trio.sleep(_SETTLE)
            return answer + await b.flush()

    async def several_are_told() -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A")
            others = [await cast.join(name) for name in ("B", "C", "D")]
            for other in others[:2]:
                await talk(a, other)
            await cast.leave(a)
            await trio.sleep(_SETTLE)
            return {other.name: await other.flush() for other in others}

    async def second_time(*, sends_again: bool) -> Json:
        """A leaves, comes back, and leaves again, while B stays."""
        async with open_cast(target) as cast:
            b = await cast.join("B")
            answer: list[Json] = []
            for turn in range(2):
                a = await cast.join("A")
                if turn == 0 or sends_again:
                    answer.append(await talk(a, b))
                await cast.leave(a)
                await trio.sleep(_SETTLE)
                answer += await b.flush()
            return answer

    async def second_connection_of_b() -> Json:
        """B comes back too: a new connection has a new memory."""
        async with open_cast(target) as cast:
            answer: list[Json] = []
            for _ in range(2):
                a, b = await cast.join("A"), await cast.join("B")
                answer.append(await talk(a, b))
                await cast.leave(a)
                answer.append(await b.next_event())
                await cast.leave(b)
                await trio.sleep(_SETTLE)
            return answer

    async def duplicate_stays(*, first_leaves: bool) -> Json:
        async with open_cast(target) as cast:
            b = await cast.join("B")
            old = await cast.join("A")
            await talk(old, b)
            new = await cast.join("A")
            one, two = (old, new) if first_leaves else (new, old)
            await cast.leave(one)
            await trio.sleep(_SETTLE)
            answer: list[Json] = ["one left", *await b.flush(), "both left"]
            await cast.leave(two)
            return [*answer, await b.next_event(), *await b.events()]

    async def quick_reconnect() -> Json:
        """A comes back before it leaves, as clients do after a network change."""
        async with open_cast(target) as cast:
            b = await cast.join("B")
            old = await cast.join("A")
            await talk(old, b)
            new = await cast.join("A")
            await cast.leave(old)
            await trio.sleep(_SETTLE)
            answer: list[Json] = [*await b.flush(), await talk(b, new)]
            await cast.leave(new)
            return [*answer, await b.next_event(), *await b.events()]

    async def receiver_has_duplicates() -> Json:
        """Only the connection that got the packet is told."""
        async with open_cast(target) as cast:
            a = await cast.join("A")
            old, new = await cast.join("B"), await cast.join("B")
            await talk(a, new)
            await cast.leave(a)
            await trio.sleep(_SETTLE)
            return {
                "newest": await new.flush(),
                "oldest": await old.flush(),
            }

    async def to_oneself() -> Json:
        """The other connection of a key that sends to itself."""
        async with open_cast(target) as cast:
            old, new = await cast.join("A"), await cast.join("A")
            await old.send_packet(old, b"hello")
            answer: list[Json] = [await old.next_event()]
            await cast.leave(new)
            await trio.sleep(_SETTLE)
            return answer + await old.flush()

    async def closed_by_relay() -> Json:
        """A is closed for an error instead of leaving."""
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            await talk(a, b)
            await a.send_frame(0x07, b"no such size")
            return [await a.next_event(), await b.next_event(), *await b.events()]

    async def over_websocket() -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A", way="websocket")
            b = await cast.join("B", way="websocket")
            await talk(a, b)
            await cast.leave(a)
            return [await b.next_event(), *await b.events()]

    async def packets_after_it() -> Json:
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            await talk(a, b)
            await cast.leave(a)
            answer: list[Json] = [await b.next_event()]
            await b.send_packet(a, b"data")
            answer += await b.flush()
            await b.send_packet(a, disco())
            return answer + await b.flush()

    return await run_cases(
        {
            "after a packet": after_a_packet,
            "after many packets": after_many_packets,
            "without a packet": without_a_packet,
            "after a packet to it": after_a_packet_to_it,
            "after NotHere": after_not_here,
            "several are told": several_are_told,
            "a second time, with a packet": lambda: second_time(sends_again=True),
            "a second time, without": lambda: second_time(sends_again=False),
            "both come back": second_connection_of_b,
            "the older duplicate leaves": lambda: duplicate_stays(first_leaves=True),
            "the newer duplicate leaves": lambda: duplicate_stays(first_leaves=False),
            "a quick reconnect": quick_reconnect,
            "the receiver has duplicates": receiver_has_duplicates,
            "a packet to oneself": to_oneself,
            "closed by the relay": closed_by_relay,
            "over websocket": over_websocket,
            "packets after it": packets_after_it,
        }
    )


PEER_GONE = Scenario("PeerGone", peer_gone)
