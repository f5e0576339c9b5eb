"""Our relay answers as the real derper does, question by question.

The questions are in ``probe/``. Where the two shall differ stands in
INTENDED_DIFFERENCES with the reason; any other difference fails, and so does
an entry there that is no longer true.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Final

import pytest
import trio

from tests.interop.probe.answers import Answers, compare, flatten, judge
from tests.interop.probe.catalog import SCENARIOS, probe
from tests.interop.probe.scenario import Scenario
from tests.interop.probe.wire import Target
from tests.interop.relays import Kind, open_relay_process
from tests.interop.tools import find_go_program, needs

_ACCEPT_TO_ADOPT: Final = (
    "a connection that says nothing is closed 10 s after it was accepted, not "
    "30 s: nothing that a client does before DERP takes so long"
)
_HEAD_LIMIT: Final = (
    "request heads are limited to 16 KiB, not 1 MiB: no client sends 1 KiB, and "
    "whoever has not said who it is should not fill memory"
)
_REFUSED_AT_HEADER: Final = (
    "a frame that is too long is refused at its header; derper waits for the "
    "body first, and then closes all the same"
)
_NO_MESH: Final = (
    "relays do not mesh yet, so there is nothing to count; the metric would "
    "say that they do"
)
_UNPUBLISHED: Final = (
    "unpublished names of the bootstrap DNS are not built, and their flag is refused"
)
_ORDINARY_STUN: Final = (
    "ordinary STUN clients are answered too (RFC 8489), a stated extension"
)

INTENDED_DIFFERENCES: Final[dict[str, str]] = {
    "long heads/20,000 bytes": _HEAD_LIMIT,
    "long heads/500,000 bytes": _HEAD_LIMIT,
    "silence/no request": _ACCEPT_TO_ADOPT,
    "silence/half a request": _ACCEPT_TO_ADOPT,
    "silence/a request byte by byte": _ACCEPT_TO_ADOPT,
    "TLS silence/nothing": _ACCEPT_TO_ADOPT,
    "TLS silence/half a record": _ACCEPT_TO_ADOPT,
    "TLS handshakes/ALPN h2": (
        "HTTP/2 is not spoken here, so it is not agreed on: with it derper "
        "cannot upgrade to DERP"
    ),
    "packets/header of 65,569 bytes, no body": _REFUSED_AT_HEADER,
    "packets/header of 4 GiB, no body": _REFUSED_AT_HEADER,
    "PeerGone/a second time, with a packet": (
        "a peer that came back and left again is reported again: derper forgets "
        "to, by a memory per connection that outlives the subscription"
    ),
    "websocket stream/size of messages with a packet of 65,536 bytes": (
        "messages are at most 32,768 bytes, the read limit of derper's own "
        "websocket library, which closes for larger ones"
    ),
    "websocket stream/message of 32,769 bytes": (
        "larger messages are taken, since Coder's clients write them"
    ),
    "websocket stream/message of 65,573 bytes": (
        "larger messages are taken, since Coder's clients write them"
    ),
    "websocket messages/not masked": (
        "the close code is 1002, protocol error (RFC 6455 section 7.4.1); "
        "derper's 1000 says that all is well"
    ),
    "ClientInfo JSON/nested 9,000 deep": (
        "JSON is read to a depth of 1,000 at most; no client nests at all"
    ),
    "request bodies/bad chunk": (
        "a body that breaks HTTP/1.1 is refused before it is answered; derper "
        "answers first, and closes when it comes to read the body"
    ),
    "helper port/GET http://other.example/x": (
        "the redirect keeps the host once; derper writes https://host before a "
        "URI that already has one"
    ),
    "metrics/derp_buffered_write_frames": (
        "what is queued goes to the kernel in batches of bytes, and nobody "
        "counts the frames in them"
    ),
    "metrics/derp_clients_remote": _NO_MESH,
    "metrics/derp_mesh_update_batch_size": _NO_MESH,
    "metrics/derp_mesh_update_loop_count": _NO_MESH,
    "metrics/derp_multiforwarder_created": _NO_MESH,
    "metrics/derp_multiforwarder_deleted": _NO_MESH,
    "metrics/derp_packet_forwarder_delete_other_value": _NO_MESH,
    "metrics/derp_packets_forwarded_in": _NO_MESH,
    "metrics/derp_packets_forwarded_out": _NO_MESH,
    "metrics/derp_watchers": _NO_MESH,
    "debug pages/names in vars": (
        "the metrics that are not there (see metrics/...) are not there either"
    ),
    "request bodies/both kinds of length": (
        "a request with two lengths ends its connection (RFC 9112 section 6.1): a "
        "proxy may have believed the other one"
    ),
    "upgrade refused/header name with a space": (
        "the body of a 400 does not say what is wrong with a header; the log does"
    ),
    "TLS handshakes/ALPN derp": (
        "Python's ssl cannot refuse an ALPN list without a match; the connection "
        "goes on without ALPN, and so with HTTP/1.1"
    ),
    "metrics/bootstrap_dns_unpublished_hits": _UNPUBLISHED,
    "metrics/bootstrap_dns_unpublished_percent_misses": _UNPUBLISHED,
    "STUN/ordinary request": _ORDINARY_STUN,
    "STUN/ordinary request with a fingerprint": _ORDINARY_STUN,
    "STUN/other software": _ORDINARY_STUN,
    "STUN/empty software": _ORDINARY_STUN,
    "STUN/software tailnode and more": _ORDINARY_STUN,
    "STUN/no fingerprint": _ORDINARY_STUN,
}

_IPV6_SCENARIOS: Final = ("upgrade", "packets", "STUN")

# What each pair of relays is like, for the choice of scenarios.
_KINDS: Final = {
    "plain": Target("127.0.0.1", 1, stun_port=1),
    "TLS": Target("127.0.0.1", 1, tls=True, http_port=1, stun_port=1),
    "IPv6": Target("::1", 1, stun_port=1),
}

Pair = tuple[Answers, Answers]


def chosen(name: str, scenario: Scenario) -> bool:
    fits = scenario.fits(_KINDS[name])
    return fits and (name != "IPv6" or scenario.name in _IPV6_SCENARIOS)


CHOSEN: Final = [
    (name, scenario.name)
    for name in _KINDS
    for scenario in SCENARIOS
    if chosen(name, scenario)
]


@pytest.fixture(scope="module")
def answers() -> dict[str, Pair]:
    """The answers of derper and of ours, all asked at the same time."""
    needs(find_go_program, "derper")
    names = [name for name in _KINDS if name != "IPv6" or _has_ipv6()]
    kinds: tuple[Kind, Kind] = ("derper", "ours")
    found: dict[tuple[str, Kind], Answers] = {}

    async def ask(name: str, kind: Kind, target: Target) -> None:
        found[name, kind] = await probe(
            target, wanted=lambda scenario: chosen(name, scenario)
        )

    async def ask_all(targets: dict[tuple[str, Kind], Target]) -> None:
        async with trio.open_nursery() as nursery:
            for (name, kind), target in targets.items():
                nursery.start_soon(ask, name, kind, target)

    with ExitStack() as stack:
        targets: dict[tuple[str, Kind], Target] = {}
        for name in names:
            for kind in kinds:
                relay = stack.enter_context(
                    open_relay_process(
                        kind, tls=_KINDS[name].tls, host=_KINDS[name].host
                    )
                )
                targets[name, kind] = relay.target
        trio.run(ask_all, targets)
    return {name: (found[name, "derper"], found[name, "ours"]) for name in names}


@pytest.mark.interop
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("name", "scenario"), CHOSEN)
def test_ours_answers_as_derper(
    answers: dict[str, Pair], name: str, scenario: str
) -> None:
    if name not in answers:
        pytest.skip("this machine has no IPv6 loopback address")
    derper, ours = answers[name]
    faults = judge(
        {scenario: derper[scenario]}, {scenario: ours[scenario]}, INTENDED_DIFFERENCES
    )
    assert not faults, "\n".join([f"{len(faults)} faults:", *faults])


@pytest.mark.interop
@pytest.mark.timeout(240)
def test_intended_differences_name_cases(answers: dict[str, Pair]) -> None:
    asked = {where for derper, _ in answers.values() for where in flatten(derper)}
    assert INTENDED_DIFFERENCES.keys() <= asked


@pytest.mark.interop
@pytest.mark.timeout(240)
def test_any_changed_answer_of_derper_is_found(answers: dict[str, Pair]) -> None:
    for derper, _ in answers.values():
        for scenario, cases in derper.items():
            for case, answer in cases.items():
                other = {**derper, scenario: {**cases, case: [answer]}}
                (difference,) = compare(derper, other)
                assert difference.where == f"{scenario}/{case}"


@pytest.mark.interop
@pytest.mark.timeout(120)
def test_a_derper_with_another_home_page_is_found() -> None:
    """The whole way from a relay's behaviour to the fault, with a real one."""
    needs(find_go_program, "derper")

    async def ask(target: Target) -> Answers:
        return await probe(target, wanted=lambda scenario: scenario.name == "pages")

    with (
        open_relay_process("derper") as usual,
        open_relay_process("derper", extra=("-home", "blank")) as other,
    ):
        differences = compare(trio.run(ask, usual.target), trio.run(ask, other.target))
    found = {difference.where for difference in differences}
    assert {"pages/GET /", "pages/POST /", "pages/GET /no/such/page"} <= found
    assert "pages/GET /robots.txt" not in found


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True
