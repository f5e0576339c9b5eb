"""The /debug pages: who may see them, and the names of the metrics."""

from __future__ import annotations

import json
import re
from functools import partial

from tests.interop.probe.answers import Json
from tests.interop.probe.http import Reply, head, read_reply
from tests.interop.probe.scenario import Case, Scenario, run_cases
from tests.interop.probe.wire import Target, open_wire

# What the program and its runtime say of themselves, not of the relay.
_RUNTIME = re.compile(
    r"^(go_|memstats_|process_|promhttp_|gauge_|goroutines|uptime|node_boot"
    r"|counter_|version|tls_active|cmdline)"
)
_METRIC = re.compile(r"^(\w+(?:\{[^}]*\})?) \S+$", re.MULTILINE)
_TYPE = re.compile(r"^# TYPE (\w+) (\w+)$", re.MULTILINE)


async def debug(target: Target) -> dict[str, Json]:
    async def get(
        path: str, *headers: tuple[str, str], method: str = "GET"
    ) -> Reply | str:
        async with open_wire(target) as wire:
            await wire.send(head(target, method=method, path=path, headers=headers))
            return await read_reply(wire, method=method)

    async def access(path: str, *headers: tuple[str, str], method: str = "GET") -> Json:
        reply = await get(path, *headers, method=method)
        if isinstance(reply, str):
            return reply
        answer = reply.answer(target)
        if reply.status == 200:
            answer["body"] = f"{bool(reply.body)}"
        return answer

    async def metric_names() -> Json:
        reply = await get("/debug/varz")
        assert isinstance(reply, Reply), reply
        text = reply.body.decode()
        names = {_sorted_labels(name) for name in _METRIC.findall(text)}
        return sorted(name for name in names if not _RUNTIME.match(name))

    async def metric_types() -> Json:
        reply = await get("/debug/varz")
        assert isinstance(reply, Reply), reply
        found = dict(_TYPE.findall(reply.body.decode()))
        return {
            name: kind
            for name, kind in sorted(found.items())
            if not _RUNTIME.match(name)
        }

    async def variables() -> Json:
        reply = await get("/debug/vars")
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
        "names of metrics": metric_names,
        "types of metrics": metric_types,
        "names in vars": variables,
    }
    return await run_cases(cases)


def _sorted_labels(metric: str) -> str:
    name, _, labels = metric.partition("{")
    if not labels:
        return name
    return f"{name}{{{','.join(sorted(labels[:-1].split(',')))}}}"


DEBUG = Scenario("debug pages", debug)
