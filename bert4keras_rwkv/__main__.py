"""`python -m bert4keras_rwkv`: the command line."""

import sys

from bert4keras_rwkv.cli import main

if __name__ == "__main__":
    sys.exit(main())
