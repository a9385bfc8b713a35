"""Entry point of the ``dlhpc`` command, also as ``python -m dlhpc``.

Imports nothing at the top, so that Ctrl-C is answered kindly from the first instruction on.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; 130 after Ctrl-C."""
    try:
        from dlhpc.cli import run

        run()
    except KeyboardInterrupt:
        if "--debug" in sys.argv[1:]:
            raise
        sys.stderr.write("\ndlhpc: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
