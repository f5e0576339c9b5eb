"""Generate the Python code of our .proto files.

The result is committed, stubs included, so that only who changes a .proto file
needs the compiler (grpcio-tools, pinned in requirements/dev.txt). A test runs
this and compares.

Usage: ``python tools/generate_proto.py [FOLDER]``; FOLDER stands for the root
of the project, and is that if it is left out.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Final

from grpc_tools import protoc

ROOT: Final = Path(__file__).resolve().parent.parent
PROTO_FOLDER: Final = Path("tailnet", "control", "proto")
NAMES: Final = ("agent", "tailnet")


def generate(out: Path) -> None:
    """Write the generated modules and stubs.

    Args:
        out: They land in the folder PROTO_FOLDER of this one, which must
            exist.

    Raises:
        SystemExit: The compiler found a fault; it has said so on stderr.
    """
    # Paths from the root, so that generated imports are absolute ones.
    sources = [str(PROTO_FOLDER / f"{name}.proto") for name in NAMES]
    well_known = resources.files("grpc_tools") / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={well_known}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            *sources,
        ]
    )
    if status != 0:
        raise SystemExit(f"generate_proto: protoc ended with status {status}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
