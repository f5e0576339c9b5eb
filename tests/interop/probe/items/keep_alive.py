"""KeepAlive: within 60 to 65 s, whatever else goes on."""

from __future__ import annotations

from collections import Counter

import trio

from tailnet.derp.frames import encode_ping, encode_send_packet
from tests.interop.probe.answers import Json, about
from tests.interop.probe.cast import CLOSED, SILENCE, Peer, Way, open_cast
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.wire import Target

# Longer than the latest first KeepAlive (65 s), shorter than any second one.
_TIME = 68.0


async def keep_alive(target: Target) -> dict[str, Json]:
    async def idle(way: Way = "upgrade") -> Json:
        async with open_cast(target) as cast:
            return await watched(await cast.join(way=way))

    async def watched(peer: Peer) -> Json:
        """All KeepAlives of 68 s, and how many kinds of other events."""
        start = trio.current_time()
        found: list[Json] = []
        others: Counter[str] = Counter()
        while (left := start + _TIME - trio.current_time()) > 0:
            event = await peer.next_event(left)
            if event == "KeepAlive":
                found.append(f"KeepAlive {about(trio.current_time() - start)}")
            elif event == CLOSED:
                return [*found, CLOSED]
            elif event != SILENCE:
                others[event] += 1
        return [*found, *sorted(others)]

    async def receiving() -> Json:
        """One that gets packets all the time."""
        async with open_cast(target) as cast:
            sender = await cast.join("sender")
            receiver = await cast.join("receiver")
            return await _while_sending(
                sender, encode_send_packet(receiver.public, bytes(1000)) * 10, receiver
            )

    async def sending() -> Json:
        """One that sends packets all the time, to nobody."""
        async with open_cast(target) as cast:
            sender = await cast.join("sender")
            nobody = cast.key("nobody").public()
            return await _while_sending(
                sender, encode_send_packet(nobody, bytes(1000)) * 10, sender
            )

    async def pinging() -> Json:
        async with open_cast(target) as cast:
            peer = await cast.join()
            return await _while_sending(peer, encode_ping(b"pingping"), peer)

    async def _while_sending(sender: Peer, data: bytes, receiver: Peer) -> Json:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                while True:
                    await sender.send(data)
                    await trio.sleep(0.1)

            nursery.start_soon(send)
            answer = await watched(receiver)
            nursery.cancel_scope.cancel()
        return answer

    async def duplicates() -> Json:
        async with open_cast(target) as cast:
            answers: dict[str, Json] = {}

            async def watch(name: str, peer: Peer) -> None:
                answers[name] = await watched(peer)

            async with trio.open_nursery() as nursery:
                for name in ("oldest", "newest"):
                    nursery.start_soon(watch, name, await cast.join())
            return answers

    cases = {
        "idle": idle,
        "idle, fast start": lambda: idle("fast start"),
        "idle, websocket": lambda: idle("websocket"),
        "receiving": receiving,
        "sending": sending,
        "pinging": pinging,
        "duplicates": duplicates,
    }
    return await run_cases(cases, at_once=len(cases))


KEEP_ALIVE = Scenario("KeepAlive", keep_alive, slow=True)
