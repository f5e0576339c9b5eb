"""A receiver that stops reading, or reads slowly: who notices."""

from __future__ import annotations

import re
from collections.abc import Mapping

import trio

from tailnet.derp.frames import FrameType, RawFrame, encode_ping
from tailnet.keys import KEY_LEN
from tests.interop.probe.answers import Json, about
from tests.interop.probe.cast import Cast, Peer, Way, open_cast
from tests.interop.probe.http import Reply, head, read_reply
from tests.interop.probe.items.packets import PATTERN, disco
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.wire import Target, open_wire

# More than the kernel buffers between two sockets of one machine (net.ipv4.
# tcp_wmem allows 4 MiB by default) and any relay's queue for one client.
_FLOOD = 240
_SIZE = 60_000
_RECEIVE_BUFFER = 4096

# Whoever waits for the frozen receiver waits for 2 s: its write deadline.
_HELD_UP = 1.5


async def frozen(target: Target) -> dict[str, Json]:
    async with open_cast(target) as cast:
        return await _stop_reading(cast)


async def _stop_reading(cast: Cast) -> dict[str, Json]:
    observer = await cast.join("observer")
    receiver = await cast.join("receiver", receive_buffer=_RECEIVE_BUFFER)
    sender = await cast.join("sender")
    # So that the observer is told when the relay drops the receiver, who
    # cannot see that itself: it does not read.
    await receiver.send_packet(observer, b"hello")
    await observer.next_event()
    before = await drop_counters(cast.target)
    start = trio.current_time()
    flooded = start
    worst_of_sender = worst_of_others = 0.0
    events: list[str] = []

    async def flood() -> None:
        nonlocal flooded, worst_of_sender
        for number in range(_FLOOD):
            await sender.send_packet(receiver, numbered(number))
            if number % 20 == 19:
                asked = trio.current_time()
                await sender.send(encode_ping(b"how long"))
                await sender.next_event()
                waited = trio.current_time() - asked
                worst_of_sender = max(worst_of_sender, waited)
        flooded = trio.current_time()

    async def watch(scope: trio.CancelScope) -> None:
        events.append(await observer.next_event(30))
        scope.cancel()

    left, right = await cast.join("left"), await cast.join("right")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        with trio.CancelScope() as bystanding:
            nursery.start_soon(watch, bystanding)
            while True:
                asked = trio.current_time()
                await left.send_packet(right, b"how are you")
                await right.next_event()
                waited = trio.current_time() - asked
                worst_of_others = max(worst_of_others, waited)
                await trio.sleep(0.02)
    gone = trio.current_time()
    counted = await drop_counters(cast.target)
    await sender.send_packet(receiver, disco())
    later = await sender.flush()
    reason_head = 'derp_packets_dropped{kind="other",reason="queue_head"}'
    reason_gone = 'derp_packets_dropped{kind="other",reason="gone_disconnected"}'
    timeouts = "derp_sclient_write_timeouts"
    return {
        "the sender is not held up": worst_of_sender < _HELD_UP,
        "no bystander is held up": worst_of_others < _HELD_UP,
        "the observer gets": events,
        "closed": _closing_time(gone - start, gone - flooded),
        "counted as queue_head": _grew(before, counted, reason_head),
        "counted as gone_disconnected": _grew(before, counted, reason_gone),
        "counted as a write timeout": _grew(before, counted, timeouts),
        "a packet to it later": later,
        "what it had got": await _read_rest(receiver),
    }


def _closing_time(from_start: float, from_end: float) -> str:
    """When it was closed, counted from when its socket was full.

    That is between the start and the end of the flood, which may be some
    seconds apart on a busy machine.
    """
    if from_start < 1.8:
        return "at once"
    return "after about 2 s" if from_end < 4.0 else about(from_end)


async def slow(target: Target) -> dict[str, Json]:
    async def reads_slowly(way: Way) -> Json:
        """Far slower than it is sent to, but steadily."""
        async with open_cast(target) as cast:
            sender = await cast.join("sender")
            receiver = await cast.join("receiver", way=way, receive_buffer=65_536)

            async def flood() -> None:
                for number in range(_FLOOD):
                    await sender.send_packet(receiver, numbered(number))
                    await trio.sleep(0.005)

            check = _Checker()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                with trio.move_on_after(5):
                    while True:
                        # Never give up half a frame: only the sleep is cut.
                        with trio.CancelScope(shield=True):
                            check.add(await receiver.next_frame())
                        await trio.sleep(0.1)
            # Whether it is still connected is not asked: derper closes once
            # the kernel makes no room for 2 s, which depends on its buffers.
            await receiver.send(encode_ping(b"draining"))
            while not check.is_done:
                check.add(await receiver.next_frame())
            return check.result

    return await run_cases(
        {
            "plain stream": lambda: reads_slowly("upgrade"),
            "websocket": lambda: reads_slowly("websocket"),
        }
    )


class _Checker:
    """Watches that only whole packets of the flood come, in order."""

    def __init__(self) -> None:
        self.result = ""
        self._last = -1

    @property
    def is_done(self) -> bool:
        return bool(self.result)

    def add(self, frame: RawFrame | None) -> None:
        """Take what comes next; anything but a packet ends the check."""
        if frame is None:
            self.result = "packets in order" if self._last >= 0 else "nothing"
        elif frame.type == FrameType.PONG:
            self.result = "packets in order"
        elif frame.type != FrameType.RECV_PACKET:
            self.result = f"frame {frame.type:#04x}"
        else:
            packet = bytes(frame.body[KEY_LEN:])
            number = int.from_bytes(packet[:4], "big")
            if packet != numbered(number):
                self.result = "a packet that was never sent"
            elif number <= self._last:
                self.result = "packets out of order"
            self._last = number


def numbered(number: int) -> bytes:
    """A packet that shows whether it came whole, and as which one."""
    return number.to_bytes(4, "big") + PATTERN[number : number + _SIZE - 4]


async def _read_rest(receiver: Peer) -> Json:
    check = _Checker()
    while not check.is_done:
        check.add(await receiver.next_frame())
    return check.result


_METRIC = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


async def drop_counters(target: Target) -> dict[str, float]:
    """The metrics of the relay, labels sorted."""
    async with open_wire(target) as wire:
        await wire.send(head(target, path="/debug/varz"))
        reply = await read_reply(wire)
        assert isinstance(reply, Reply), reply
    found: dict[str, float] = {}
    for name, labels, value in _METRIC.findall(reply.body.decode()):
        label_text = ",".join(sorted(re.findall(r'\w+="[^"]*"', labels)))
        found[f"{name}{{{label_text}}}" if labels else name] = float(value)
    return found


def _grew(before: Mapping[str, float], after: Mapping[str, float], name: str) -> Json:
    if name not in before or name not in after:
        return "no such counter"
    return after[name] > before[name]


FROZEN = Scenario("frozen receiver", frozen, slow=True)
SLOW = Scenario("slow receiver", slow, slow=True)
