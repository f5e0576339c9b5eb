"""Fuzz targets of what servers and proxies send to clients of the API."""

from __future__ import annotations

from uuid import UUID

from tailnet.errors import RemoteProtocolError
from tailnet.proxy import MAX_ANSWER_LEN, ConnectAnswer, ConnectReader, ProxyRules
from tailnet.sdk.coordination import CoordinationState, PeerUpdateKind
from tailnet.sdk.models import (
    decode_api_error,
    decode_connection_info,
    decode_workspace,
)
from tailnet.sdk.resume import decode_resume_token
from tailnet.sdk.workspaces import WorkspaceView
from tests.fuzz.common import pieces, single_bytes

__all__ = (
    "api_answer",
    "connect_answer",
    "coordinate_response",
    "no_proxy",
    "resume_token",
    "workspace_updates",
)


def connect_answer(data: bytes) -> None:
    """A proxy's answer: it does not matter how it is cut."""
    whole = _connected([data])
    for chunks in (pieces(data), single_bytes(data)):
        cut = _connected(chunks)
        assert (whole is None) == (cut is None)
        if whole is not None and cut is not None:
            assert (cut.status, cut.reason) == (whole.status, whole.reason)


def _connected(chunks: list[bytes]) -> ConnectAnswer | None:
    """The answer; None if there is none, or too much of it."""
    reader = ConnectReader()
    read = 0
    try:
        for chunk in chunks:
            read += len(chunk)
            if chunk and (answer := reader.receive_data(chunk)) is not None:
                assert read - len(answer.rest) <= MAX_ANSWER_LEN
                return answer
    except RemoteProtocolError:
        pass
    return None


def no_proxy(data: bytes) -> None:
    """Exceptions and a host, from the first line and the second."""
    text, _, host = data.decode("utf-8", "replace").partition("\n")
    rules = ProxyRules(https="proxy.test", no_proxy=text)
    rules.proxy_for("https", host, 443)
    assert rules.proxy_for("https", "127.0.0.1", 443) is None
    assert rules.proxy_for("http", host, 443) is None


def api_answer(data: bytes) -> None:
    """Every JSON body that a client reads."""
    for decode in (decode_connection_info, decode_workspace):
        try:
            decode(data)
        except RemoteProtocolError:
            pass
    for content_type in ("application/json", ""):
        error = decode_api_error(401, content_type, data)
        assert "\n" not in str(error)
        error.rejects("resume_token")


def coordinate_response(data: bytes) -> None:
    """Two messages, which begin where a byte says."""
    state = CoordinationState()
    state.connection_made()
    cut = data[0] if data else 0
    known: set[UUID] = set()
    for message in (data[1 : 1 + cut], data[1 + cut :]):
        try:
            updates = state.receive_response(message)
        except RemoteProtocolError:
            return
        for update in updates:
            assert (update.node is not None) == (update.kind is PeerUpdateKind.NODE)
            if update.kind is PeerUpdateKind.NODE:
                known.add(update.peer_id)
            elif update.kind is not PeerUpdateKind.READY_FOR_HANDSHAKE:
                known.discard(update.peer_id)
    assert state.peers == known
    state.connection_lost()
    state.connection_made()
    assert {update.peer_id for update in state.lose_unheard()} == known


def resume_token(data: bytes) -> None:
    """The answer to RefreshResumeToken."""
    try:
        token = decode_resume_token(data)
    except RemoteProtocolError:
        return
    assert token.refresh_in > 0
    assert token.expires_at.tzinfo is not None


def workspace_updates(data: bytes) -> None:
    """A snapshot twice: the second time there is nothing new in it."""
    view = WorkspaceView()
    try:
        view.receive_update(data)
    except RemoteProtocolError:
        return
    view.connection_made()
    assert not view.receive_update(data)
