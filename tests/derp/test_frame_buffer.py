"""Frames out of a stream, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tailnet.derp.frame_buffer import FrameBuffer, decode_frame
from tailnet.derp.frames import encode_frame
from tailnet.errors import RemoteProtocolError
from tests.derp.test_frames import RECV, SEND, raw, split


def test_oversized_body_is_refused_before_it_arrives() -> None:
    with pytest.raises(RemoteProtocolError, match="4294967295-byte body"):
        decode_frame(memoryview(b"\x04\xff\xff\xff\xff"))
    with pytest.raises(RemoteProtocolError, match="limit is 10"):
        decode_frame(memoryview(b"\x04\0\0\0\x0b"), max_body_len=10)
    assert decode_frame(memoryview(b"\x04\0\0\0\x0a"), max_body_len=10) is None


def test_bodies_are_views_that_outlive_the_buffer() -> None:
    buffer = FrameBuffer()
    buffer.receive_data(SEND + RECV[:10])
    frame = buffer.next_frame()
    assert buffer.next_frame() is None
    buffer.receive_data(RECV[10:])
    assert frame is not None
    assert bytes(frame.body) == SEND[5:]
    assert buffer.next_frame() == raw(0x05, RECV[5:])


def test_limits_of_the_buffer() -> None:
    buffer = FrameBuffer(max_body_len=10)
    buffer.receive_data(encode_frame(0x7F, bytes(10)) + encode_frame(0x7F, bytes(9)))
    assert buffer.next_frame() is not None
    with pytest.raises(RemoteProtocolError, match="limit is 8"):
        buffer.next_frame(max_body_len=8)
    assert buffer.next_frame() is not None
    buffer.receive_data(b"\x7f\0\0\0\x0b")
    with pytest.raises(RemoteProtocolError, match="limit is 10"):
        buffer.next_frame()


def test_rest_and_header_and_discarding() -> None:
    buffer = FrameBuffer()
    assert buffer.next_header() is None
    buffer.receive_data(SEND + RECV[:4])
    assert buffer.next_header() == (0x04, 34)
    assert buffer.next_frame() is not None
    assert buffer.next_header() is None
    buffer.receive_data(RECV[4:] + b"rest")
    assert buffer.next_header() == (0x05, 34)
    assert buffer.discard(39) == 39
    assert buffer.discard(2) == 2
    assert buffer.take_rest() == b"st"
    assert buffer.discard(1) == 0
    assert buffer.take_rest() == b""


@given(
    frames=st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=6),
    step=st.integers(1, 300),
)
def test_split_undoes_encode(frames: list[tuple[int, bytes]], step: int) -> None:
    wire = b"".join(encode_frame(*frame) for frame in frames)
    assert split(*(wire[i : i + step] for i in range(0, len(wire), step))) == frames
