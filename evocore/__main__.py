"""``python -m evocore``: the same as the command ``evocore``."""

import sys

from evocore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
