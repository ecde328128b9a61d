"""`python -m roles` is `quasar-node`."""

import sys

from roles.cli import main

if __name__ == "__main__":
    sys.exit(main())
