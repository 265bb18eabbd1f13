"""``python -m wavalign_fast``: the command line, also for ``torchrun -m wavalign_fast``."""

import sys

from wavalign_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
