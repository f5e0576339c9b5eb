"""Several connections of one key: which of them gets the packets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from tailnet.derp.frames import FrameType, encode_frame, encode_send_packet
from tailnet.keys import NodePrivate
from tests.interop.probe.answers import Json
from tests.interop.probe.cast import PATIENCE, SILENCE, Cast, Peer, open_cast
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.wire import Target

# Time for a relay to read a frame, or to see that a connection is closed, when
# no answer tells that it has: an answer would take a Ping, which counts.
_SETTLE = 0.4


class _Stage:
    """A sender, and the connections of the key A, by number from 1."""

    def __init__(self, cast: Cast, sender: Peer) -> None:
        self.cast = cast
        self.sender = sender
        self.connections: dict[int, Peer] = {}
        self._packets = 0

    async def join(self) -> None:
        self.connections[len(self.connections) + 1] = await self.cast.join("A")

    async def close(self, number: int) -> None:
        await self.cast.leave(self.connections[number])
        del self.connections[number]
        # A closed place stays empty, so that numbers keep their meaning.
        await trio.sleep(_SETTLE)

    async def speak(self, number: int, data: bytes) -> None:
        await self.connections[number].send(data)
        await trio.sleep(_SETTLE)

    async def receiver(self) -> str:
        """Who gets a packet for A now: a number, or "nobody"."""
        self._packets += 1
        text = b"packet %d" % self._packets
        key = self.cast.key("A").public()
        await self.sender.send_packet(key, text)
        expected = f"RecvPacket(sender, {text.decode()!r})"
        found: list[str] = []

        async def listen(number: int, peer: Peer, scope: trio.CancelScope) -> None:
            while True:
                event = await peer.next_event(PATIENCE)
                if event == SILENCE:
                    return
                if event == expected:
                    found.append(str(number))
                    # Another one might get it too.
                    scope.deadline = trio.current_time() + 0.15
                elif not event.startswith("Pong"):
                    found.append(f"{number}: {event}")
                    return

        # "Nobody" takes this long to find out.
        with trio.move_on_after(PATIENCE if self.connections else 0) as scope:
            async with trio.open_nursery() as nursery:
                for number, peer in self.connections.items():
                    nursery.start_soon(listen, number, peer, scope)
        return ", ".join(sorted(found)) or "nobody"


_Step = tuple[str, int, bytes] | tuple[str, int] | tuple[str]

PING = encode_frame(FrameType.PING, b"activate")
JOIN: _Step = ("join",)


def close(number: int) -> _Step:
    return ("close", number)


def speak(number: int, data: bytes = PING) -> _Step:
    return ("speak", number, data)


async def play(target: Target, steps: tuple[_Step, ...]) -> Json:
    """Do ``steps``; who gets packets after each."""
    async with open_cast(target) as cast:
        stage = _Stage(cast, await cast.join("sender"))
        answer: list[Json] = []
        for step in steps:
            match step:
                case ("join",):
                    await stage.join()
                case ("close", int(number)):
                    await stage.close(number)
                case ("speak", int(number), bytes(data)):
                    await stage.speak(number, data)
            text = " ".join(str(part) for part in step[:2])
            answer.append(f"{text}: {await stage.receiver()}")
        return answer


async def who_receives(target: Target) -> dict[str, Json]:
    tables: dict[str, tuple[_Step, ...]] = {
        "two": (JOIN, JOIN),
        "three": (JOIN, JOIN, JOIN),
        "the older speaks": (JOIN, JOIN, speak(1), speak(2), speak(1)),
        "the oldest of three speaks": (JOIN, JOIN, JOIN, speak(1), speak(2)),
        "a new one after the older spoke": (JOIN, JOIN, speak(1), JOIN),
        "the active one leaves": (JOIN, JOIN, close(2)),
        "the other one leaves": (JOIN, JOIN, close(1)),
        "the active and last of three leaves": (JOIN, JOIN, JOIN, close(3)),
        "the last of three leaves, then speaking": (
            JOIN,
            JOIN,
            JOIN,
            close(3),
            speak(1),
            speak(2),
        ),
        "the active one leaves, not the last": (
            JOIN,
            JOIN,
            JOIN,
            speak(1),
            close(1),
        ),
        "the active one leaves, the others spoke": (
            JOIN,
            JOIN,
            JOIN,
            speak(2),
            speak(1),
            close(1),
        ),
        "the last leaves while another is active": (
            JOIN,
            JOIN,
            JOIN,
            speak(1),
            close(3),
        ),
        "the last leaves, then the active one": (
            JOIN,
            JOIN,
            JOIN,
            JOIN,
            speak(2),
            close(4),
            close(2),
        ),
        "all leave but the first": (JOIN, JOIN, JOIN, close(2), close(3)),
        "all leave but the last": (JOIN, JOIN, JOIN, close(1), close(2)),
        "one left, then a second": (JOIN, JOIN, close(1)),
    }
    key = NodePrivate.generate().public()
    frames: dict[str, bytes] = {
        "Ping": PING,
        "NotePreferred": encode_frame(FrameType.NOTE_PREFERRED, b"\1"),
        "SendPacket": encode_send_packet(key, b"x"),
        "KeepAlive": encode_frame(FrameType.KEEP_ALIVE, b""),
        "Pong": encode_frame(FrameType.PONG, b"12345678"),
        "an unknown frame": encode_frame(0x99, b"x"),
        "half a frame header": b"\x99\x00\x00",
        "a frame header": b"\x99\x00\x00\x00\x05",
        "half a SendPacket": encode_send_packet(key, b"x" * 100)[:90],
    }
    cases = {name: partial(play, target, steps) for name, steps in tables.items()}
    cases |= {
        f"activated by {name}": partial(play, target, (JOIN, JOIN, speak(1, data)))
        for name, data in frames.items()
    }
    return await run_cases(cases, at_once=14)


async def life(target: Target) -> dict[str, Json]:
    """What duplicates get besides packets."""

    async def both_alive() -> Json:
        async with open_cast(target) as cast:
            old, new = await cast.join("A"), await cast.join("A")
            return [await peer.events() for peer in (old, new)] + [
                await peer.is_alive() for peer in (old, new, old)
            ]

    async def to_oneself(*, first: bool) -> Json:
        """Sending makes the sender active, so it gets its own packet."""
        async with open_cast(target) as cast:
            old, new = await cast.join("A"), await cast.join("A")
            speaker, other = (old, new) if first else (new, old)
            await speaker.send_packet(speaker, b"hello")
            return {
                "speaker": await speaker.next_event(),
                "other": await other.events(),
            }

    async def not_here_to_the_speaker() -> Json:
        async with open_cast(target) as cast:
            old, new = await cast.join("A"), await cast.join("A")
            packet = b"TS\xf0\x9f\x92\xac" + bytes(80)
            await old.send_packet(cast.key("nobody").public(), packet)
            return {
                "speaker": await old.next_event(),
                "other": await new.events(),
            }

    async def over(way_of: Callable[[int], str]) -> Json:
        """Duplicates that came in different ways."""
        async with open_cast(target) as cast:
            sender = await cast.join("sender")
            one = await cast.join("A", way="websocket")
            two = await cast.join("A", way="fast start")
            await sender.send_packet(two, b"1")
            answer: list[Json] = [way_of(2), await two.next_event()]
            await one.is_alive()
            await sender.send_packet(two, b"2")
            return [*answer, way_of(1), await one.next_event()]

    return await run_cases(
        {
            "both stay alive": both_alive,
            "the older sends to itself": lambda: to_oneself(first=True),
            "the newer sends to itself": lambda: to_oneself(first=False),
            "NotHere goes to the speaker": not_here_to_the_speaker,
            "websocket and fast start": partial(over, lambda number: f"to {number}"),
        }
    )


DUPLICATES = Scenario("duplicates", who_receives)
DUPLICATES_LIFE = Scenario("life of duplicates", life)
