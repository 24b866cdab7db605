"""The `rlx` command, and `python -m rlx`: what must be in place before the imports of the command line, which take a while."""

from __future__ import annotations

import sys

from rlx.signals import expect_requests


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] in (["train"], ["resume"], ["sweep"]):
        expect_requests()
    try:
        from rlx.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
