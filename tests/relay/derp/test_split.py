"""The splitter against a plain reading of the same frames."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, strategies as st

from relay.derp.split import skip_packets, split_frames
from tailnet.derp.frame_buffer import decode_frame
from tailnet.derp.frames import (
    FRAME_HEADER,
    MAX_PACKET_SIZE,
    FrameType,
    SendPacket,
    decode_client_frame,
    encode_frame,
    encode_ping,
    encode_recv_packet,
    encode_send_packet,
    looks_like_disco,
)
from tailnet.errors import RemoteProtocolError
from tailnet.keys import NodePublic
from tests.relay.derp.switch_rig import disco, key

SOURCE = key("source")
KNOWN = {
    FrameType.NOTE_PREFERRED,
    FrameType.PING,
    FrameType.WATCH_CONNS,
    FrameType.CLOSE_PEER,
    FrameType.FORWARD_PACKET,
}


@dataclass
class Sink:
    """Packets one by one, with their kind, among the other frames."""

    found: list[tuple[object, ...]] = field(default_factory=list)
    runs: int = 0

    def packets(self, dst: bytes, frames: bytes, count: int, *, disco: bool) -> None:
        self.runs += 1
        view = memoryview(frames)
        packets = []
        while (decoded := decode_frame(view)) is not None:
            frame, used = decoded
            assert frame.type == FrameType.RECV_PACKET
            packets.append((dst, bytes(view[:used]), disco))
            view = view[used:]
        assert len(packets) == count
        assert not view
        self.found += packets

    def frame(self, frame_type: int, body: bytes) -> None:
        self.found.append((frame_type, body))


def split_all(chunks: list[bytes]) -> Sink:
    """Feed chunks as the relay does, and hold it to what it wants."""
    sink = Sink()
    pending, skip, wanted = b"", 0, 5
    for chunk in chunks:
        skipped = chunk[:skip]
        skip -= len(skipped)
        pending += chunk[len(skipped) :]
        if len(pending) < wanted:
            continue
        used, wanted = split_frames(pending, bytes(SOURCE), sink)
        skip = max(0, used - len(pending))
        pending = pending[used:]
        assert len(pending) < wanted
    return sink


def read_plainly(data: bytes) -> list[tuple[object, ...]]:
    """The same by the frame codec alone."""
    found: list[tuple[object, ...]] = []
    view = memoryview(data)
    while (decoded := decode_frame(view, max_body_len=1 << 32)) is not None:
        raw, used = decoded
        frame = decode_client_frame(raw)
        if isinstance(frame, SendPacket):
            wire = encode_recv_packet(SOURCE, frame.packet)
            found.append((bytes(frame.dst), wire, looks_like_disco(frame.packet)))
        else:
            found.append((raw.type, bytes(raw.body) if raw.type in KNOWN else b""))
        view = view[used:]
    return found


keys = st.sampled_from([key("a"), key("b"), SOURCE])
packets = st.one_of(
    st.binary(max_size=8),
    # One size, so that frames stand at equal distances.
    st.binary(min_size=70, max_size=70),
    st.sampled_from([disco(70), disco(62), disco(70)[:61], b"T" * 70, b""]),
)
frames = st.one_of(
    st.builds(encode_send_packet, keys, packets),
    st.builds(encode_send_packet, keys, packets),
    st.builds(encode_ping, st.binary(min_size=8, max_size=8)),
    st.builds(encode_frame, st.sampled_from([0, 6, 0x13, 0x99]), st.binary(max_size=9)),
    st.just(encode_frame(FrameType.NOTE_PREFERRED, b"\1")),
)


@given(
    sent=st.lists(frames, max_size=30),
    cuts=st.lists(st.integers(0, 3000), max_size=8),
)
@example(sent=[encode_send_packet(key("a"), disco(70))] * 4, cuts=[])
@example(
    sent=[
        encode_send_packet(key("a"), packet)
        for packet in (b"x" * 70, disco(70), b"T" * 70, b"x" * 70)
    ],
    cuts=[],
)
def test_however_chopped_it_is_what_the_codec_reads(
    sent: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(sent)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert split_all(chunks).found == read_plainly(data)


@pytest.mark.parametrize(
    "inside",
    [
        encode_send_packet(key("b"), b"y" * 33),
        encode_send_packet(key("a"), b"y" * 33),
        b"\4" * 70,
    ],
    ids=["frame for another", "frame for the same", "types"],
)
def test_packet_that_looks_like_frames_is_a_packet(inside: bytes) -> None:
    data = encode_send_packet(key("a"), inside) * 5
    assert split_all([data]).found == read_plainly(data)
    assert len(split_all([data]).found) == 5


def test_neighbours_for_one_destination_are_one_run() -> None:
    run = b"".join(
        encode_send_packet(key("a"), bytes(size)) for size in (70, 70, 70, 9, 70)
    )
    sink = split_all([run])
    assert (sink.runs, len(sink.found)) == (1, 5)
    sink = split_all([run + encode_send_packet(key("b"), b"") + run])
    assert (sink.runs, len(sink.found)) == (3, 11)


def test_disco_never_shares_a_run() -> None:
    data = b"".join(
        encode_send_packet(key("a"), packet)
        for packet in (bytes(62), disco(62), bytes(62))
    )
    assert split_all([data]).runs == 3


def test_unknown_frame_is_skipped_by_its_length_alone() -> None:
    sink = Sink()
    used, _ = split_frames(FRAME_HEADER.pack(0x99, (1 << 32) - 1), bytes(32), sink)
    assert used == 5 + (1 << 32) - 1
    assert sink.found == [(0x99, b"")]


@pytest.mark.parametrize(
    ("frame_type", "size"),
    [
        (FrameType.SEND_PACKET, 31),
        (FrameType.SEND_PACKET, 32 + MAX_PACKET_SIZE + 1),
        (FrameType.NOTE_PREFERRED, 0),
        (FrameType.NOTE_PREFERRED, 2),
        (FrameType.PING, 7),
        (FrameType.PING, 1001),
        (FrameType.WATCH_CONNS, 1),
        (FrameType.CLOSE_PEER, 31),
        (FrameType.CLOSE_PEER, 33),
        (FrameType.FORWARD_PACKET, 63),
    ],
)
def test_bad_size_is_refused_at_the_header_after_what_was_good(
    frame_type: FrameType, size: int
) -> None:
    sink = Sink()
    data = encode_send_packet(key("a"), b"good") + FRAME_HEADER.pack(frame_type, size)
    with pytest.raises(RemoteProtocolError, match=f"{size}-byte body"):
        split_frames(data, bytes(SOURCE), sink)
    assert len(sink.found) == 1


@given(
    sizes=st.lists(st.integers(0, 99), min_size=1, max_size=20),
    packets=st.integers(0, 25),
    size=st.integers(0, 2000),
)
def test_skipping_takes_the_fewest_packets_that_will_do(
    sizes: list[int], packets: int, size: int
) -> None:
    wires = [encode_recv_packet(SOURCE, bytes(n)) for n in sizes]
    chunk = b"".join(wires)
    pos, count = skip_packets(chunk, 0, packets, size)
    assert pos == sum(len(wire) for wire in wires[:count])
    assert count == len(wires) or (count >= packets and pos >= size)
    if count:
        before = pos - len(wires[count - 1])
        assert count - 1 < packets or before < size


def test_a_public_key_is_needed() -> None:
    """The source goes into each frame as it is: 32 bytes."""
    sink = Sink()
    split_frames(encode_send_packet(key("a"), b"x"), bytes(SOURCE), sink)
    assert sink.found == [(bytes(key("a")), encode_recv_packet(SOURCE, b"x"), False)]
    assert NodePublic(bytes(SOURCE)) == SOURCE
