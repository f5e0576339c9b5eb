"""``python -m tailnet`` is the program ``tailnet``."""

from __future__ import annotations

from tailnet.cli.main import main

if __name__ == "__main__":
    main()
