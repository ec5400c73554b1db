"""``python -m growtas`` is the ``growtas`` command, also under torchrun."""

import sys

from growtas.cli import main

if __name__ == "__main__":
    sys.exit(main())
