"""`python -m abswitch.cli`."""

import sys

from abswitch.cli import main

if __name__ == "__main__":
    sys.exit(main())
