"""``python -m dlhpc`` is the same as the ``dlhpc`` command."""

from dlhpc.cli import main

if __name__ == "__main__":
    main()
