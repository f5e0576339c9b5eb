"""The /debug pages: who may see them, and the names of the metrics."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Final

from tests.interop.probe.answers import Json
from tests.interop.probe.http import Reply, head, read_reply
from tests.interop.probe.scenario import Case, Scenario, run_cases
from tests.interop.probe.wire import Target, open_wire

# Of the relay; derper's runtime has many more, which are not asked about.
# derp_tcp_rtt has values only from time to time, so it is left out too.
_METRICS: Final = (
    *(f"bootstrap_dns_{name}" for name in ("requests", "queried_domains")),
    *(f"bootstrap_dns_published_{name}" for name in ("hits", "misses")),
    *(f"bootstrap_dns_unpublished_{name}" for name in ("hits", "misses")),
    "bootstrap_dns_unpublished_percent_misses",
    "derp_accepts",
    "derp_average_queue_duration_ms",
    "derp_buffered_write_frames",
    *(f"derp_bytes_{name}" for name in ("dropped", "received", "sent")),
    *(f"derp_clients_{name}" for name in ("local", "remote", "total")),
    *(f"derp_current_dup_client_{name}" for name in ("conns", "keys")),
    *(f"derp_current_{name}connections" for name in ("", "home_", "notideal_")),
    "derp_current_file_descriptors",
    *("derp_got_ping", "derp_sent_pong"),
    *("derp_home_moves_in", "derp_home_moves_out"),
    "derp_memstats_sys0",
    *("derp_mesh_update_batch_size", "derp_mesh_update_loop_count"),
    *("derp_multiforwarder_created", "derp_multiforwarder_deleted"),
    "derp_packet_forwarder_delete_other_value",
    *("derp_packets_forwarded_in", "derp_packets_forwarded_out"),
    *(f"derp_packets_{name}" for name in ("dropped", "received", "sent")),
    "derp_packets_received_kind",
    *(f"derp_peer_gone_{name}_frames" for name in ("disconnected", "not_here")),
    "derp_sclient_write_timeouts",
    "derp_total_dup_client_conns",
    "derp_unknown_frames",
    "derp_watchers",
    "derp_websocket_accepts",
    *("derper_tls_active_version", "derper_tls_request_version"),
    *("stun_addrfamily", "stun_requests"),
    *(f"tls_listener_{name}_connections" for name in ("accepted", "rejected")),
)
# Their labels are there once something of the kind has happened.
_LABELS_COME_LATER: Final = ("derper_tls_active_version", "derper_tls_request_version")

_SAMPLE: Final = re.compile(r"^(\w+)(?:\{([^}]*)\})? \S+$", re.MULTILINE)
_TYPE: Final = re.compile(r"^# TYPE (\w+) (\w+)$", re.MULTILINE)


async def get(
    target: Target, path: str, *headers: tuple[str, str], method: str = "GET"
) -> Reply | str:
    async with open_wire(target) as wire:
        await wire.send(head(target, method=method, path=path, headers=headers))
        return await read_reply(wire, method=method)


async def debug(target: Target) -> dict[str, Json]:
    async def access(path: str, *headers: tuple[str, str], method: str = "GET") -> Json:
        reply = await get(target, path, *headers, method=method)
        if isinstance(reply, str):
            return reply
        answer = reply.answer(target)
        if reply.status == 200:
            answer["body"] = f"{bool(reply.body)}"
        return answer

    async def variables() -> Json:
        reply = await get(target, "/debug/vars")
        assert isinstance(reply, Reply), reply
        whole = json.loads(reply.body)
        derp = whole.get("derp") if isinstance(whole, dict) else None
        return sorted(derp) if isinstance(derp, dict) else "no derp"

    forwarded = ("X-Forwarded-For", "192.0.2.1")
    empty = ("X-Forwarded-For", "")
    cases: dict[str, Case] = {
        "index": partial(access, "/debug/"),
        "index without slash": partial(access, "/debug"),
        "index, HEAD": partial(access, "/debug/", method="HEAD"),
        "index, POST": partial(access, "/debug/", method="POST"),
        "index, X-Forwarded-For": partial(access, "/debug/", forwarded),
        "index, empty X-Forwarded-For": partial(access, "/debug/", empty),
        "index, Forwarded": partial(access, "/debug/", ("Forwarded", "for=192.0.2.1")),
        "index, X-Real-IP": partial(access, "/debug/", ("X-Real-IP", "192.0.2.1")),
        "varz": partial(access, "/debug/varz"),
        "varz, X-Forwarded-For": partial(access, "/debug/varz", forwarded),
        "vars": partial(access, "/debug/vars"),
        "vars, X-Forwarded-For": partial(access, "/debug/vars", forwarded),
        "check, X-Forwarded-For": partial(access, "/debug/check", forwarded),
        "traffic, X-Forwarded-For": partial(access, "/debug/traffic", forwarded),
        "no such page": partial(access, "/debug/no-such-page"),
        "no such page, X-Forwarded-For": partial(
            access, "/debug/no-such-page", forwarded
        ),
        "debugkey, X-Forwarded-For": partial(access, "/debug/?debugkey=x", forwarded),
        "names in vars": variables,
    }
    return await run_cases(cases)


async def metrics(target: Target) -> dict[str, Json]:
    """Of each metric its type, and all its names with their labels."""
    reply = await get(target, "/debug/varz")
    if isinstance(reply, str):
        return {"all": reply}
    text = reply.body.decode()
    kinds = dict(_TYPE.findall(text))
    samples: dict[str, set[str]] = {}
    for name, labels in _SAMPLE.findall(text):
        family = name
        for ending in ("_bucket", "_count", "_sum"):
            if kinds.get(name.removesuffix(ending)) == "histogram":
                family = name.removesuffix(ending)
        if family in _LABELS_COME_LATER:
            labels = ""
        shown = ",".join(sorted(labels.split(",")))
        samples.setdefault(family, set()).add(f"{name}{{{shown}}}" if shown else name)
    answers: dict[str, Json] = {}
    for name in _METRICS:
        found = sorted(samples.get(name, ()))
        kind = kinds.get(name, "untyped")
        answers[name] = [kind, *found] if found else "no such metric"
    return answers


DEBUG = Scenario("debug pages", debug)
METRICS = Scenario("metrics", metrics)
