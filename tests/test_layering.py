"""Protocol modules stay free of I/O, clocks, chance and tasks.

So a test can drive both ends of a protocol by hand, and a fuzzer a million
times. What may do more is on the list below; everything else may not.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.modules import ROOT, dotted, imports, is_within, modules, parsed

# The trio side of the library, and what it is for.
IO_MODULES = {
    Path("tailnet/__init__.py"): "re-exports the trio side too",
    Path("tailnet/coordinator/serve.py"): "the coordinator's streams",
    Path("tailnet/derp/client.py"): "the DERP client",
    Path("tailnet/derp/dial.py"): "TCP, TLS, addresses of a node",
    Path("tailnet/derp/exchange.py"): "one HTTP request before an upgrade",
    Path("tailnet/derp/login.py"): "one attempt to connect, under its deadline",
    Path("tailnet/derp/session.py"): "the tasks of one connection",
    Path("tailnet/sdk/access.py"): "holds how to connect",
    Path("tailnet/sdk/controller.py"): "the tasks of an SDK client",
    Path("tailnet/sdk/dialer.py"): "one websocket of the API, and the next",
    Path("tailnet/sdk/embedded.py"): "knows Access",
    Path("tailnet/sdk/latest.py"): "readers wait for a change",
    Path("tailnet/sdk/link.py"): "a websocket on a stream of trio's",
    Path("tailnet/sdk/rest.py"): "requests of the API",
    Path("tailnet/headers.py"): "waits for headers of the caller's own",
    Path("tailnet/tls_stream.py"): "TLS on a stream of trio's",
    Path("tailnet/transport.py"): "TCP, and through a proxy",
    Path("tailnet/control/session.py"): "the tasks of one control session",
    Path("tailnet/control/calls.py"): "one call of it, at either end",
    Path("tailnet/control/server.py"): "serving calls",
    Path("tailnet/control/client.py"): "making calls",
}

# What blocks, sleeps, tells the time, throws dice or starts tasks.
BANNED = (
    "anyio", "asyncio", "concurrent", "http", "importlib", "multiprocessing", "os",
    "queue", "random", "sched", "secrets", "select", "selectors", "signal", "socket",
    "socketserver", "ssl", "subprocess", "tempfile", "threading", "time", "trio",
    "trio_websocket", "urllib", "uuid",
)  # fmt: skip

# The type alone, what makes new ones throws dice; and texts, no requests.
ALLOWED = {
    "uuid.UUID",
    "urllib.parse.SplitResult",
    "urllib.parse.unquote",
    "urllib.parse.urlsplit",
}

# The methods that tell the time by another way.
CLOCKS = {"now", "utcnow", "today"}


# The commands: they may do anything, and import the server inside functions,
# so that a command that needs no server starts fast.
COMMANDS = Path("tailnet/cli")


def command_modules() -> list[Path]:
    return [*modules(str(COMMANDS)), Path("tailnet/__main__.py")]


def library_modules() -> list[Path]:
    return [path for path in modules("tailnet") if path not in command_modules()]


def protocol_modules() -> list[Path]:
    return [path for path in library_modules() if path not in IO_MODULES]


@pytest.mark.parametrize("path", protocol_modules(), ids=str)
def test_protocol_module_does_no_io(path: Path) -> None:
    above = [dotted(module) for module in IO_MODULES if module.name != "__init__.py"]
    for name in imports(path):
        assert name in ALLOWED or not any(is_within(name, b) for b in BANNED), name
        # Nor by way of the trio side.
        assert not any(is_within(name, module) for module in above), name
        assert name.split(".")[0] != "tailnet" or name.count("."), name
    for node in ast.walk(parsed(path)):
        assert not (isinstance(node, ast.Attribute) and node.attr in CLOCKS), node.attr
        if isinstance(node, ast.Name):
            assert node.id not in {"open", "input", "print", "__import__"}, node.id


def test_protocol_modules_are_found() -> None:
    """The list above is of exceptions: a new protocol module is covered."""
    found = set(protocol_modules())
    for module in ("keys", "errors", "derp/frames", "derp/connection", "stun/messages"):
        assert Path(f"tailnet/{module}.py") in found
    assert len(found) > 10


@pytest.mark.parametrize("path", IO_MODULES, ids=str)
def test_exceptions_are_exceptions(path: Path) -> None:
    """A module that does nothing of the kind has no business on the list."""
    assert (ROOT / path).exists()
    names = list(imports(path))
    allowed = [dotted(other) for other in IO_MODULES if other != path]
    assert any(is_within(n, package) for n in names for package in (*BANNED, *allowed))


@pytest.mark.parametrize("path", library_modules(), ids=str)
def test_library_never_imports_the_program(path: Path) -> None:
    for name in imports(path):
        assert not is_within(name, "relay")
        assert not is_within(name, dotted(COMMANDS))


def loaded_by(node: ast.AST) -> list[str]:
    """What a part of a module imports when that part runs, functions left out."""
    found = []
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                found += [alias.name for alias in names]
            case ast.ImportFrom(module=module):
                found.append(str(module))
            case _:
                found += loaded_by(child)
    return found


@pytest.mark.parametrize("path", command_modules(), ids=str)
def test_commands_import_the_program_in_functions_only(path: Path) -> None:
    """Only inside the function that needs it: most commands are a client's."""
    assert not any(is_within(name, "relay") for name in loaded_by(parsed(path)))


def test_what_a_module_loads() -> None:
    source = """
import a
if TYPE_CHECKING:
    import b
try:
    from c import d
except ImportError:
    pass
class E:
    import f
def g():
    import h
"""
    assert loaded_by(ast.parse(source)) == ["a", "c", "f"]


@pytest.mark.parametrize("path", [*modules("tailnet"), *modules("relay")], ids=str)
def test_nothing_imports_tests_or_benchmarks(path: Path) -> None:
    for name in imports(path):
        assert not any(is_within(name, package) for package in ("tests", "bench"))


@pytest.mark.parametrize("package", ["keys", "errors"])
def test_the_lowest_layer_knows_no_protocol(package: str) -> None:
    for name in imports(Path(f"tailnet/{package}.py")):
        assert not is_within(name, "tailnet") or is_within(name, "tailnet.errors"), name


@pytest.mark.parametrize("path", modules("tailnet/stun"), ids=str)
def test_protocols_do_not_know_each_other(path: Path) -> None:
    assert not any(is_within(name, "tailnet.derp") for name in imports(path))


@pytest.mark.parametrize(
    "name", ["yamux_frames", "yamux", "keepalive", "drpc", "drpc_stream", "session"]
)
def test_the_control_transport_knows_no_other_protocol(name: str) -> None:
    for imported in imports(Path(f"tailnet/control/{name}.py")):
        assert not is_within(imported, "tailnet.derp")
        assert not is_within(imported, "tailnet.control.proto")
