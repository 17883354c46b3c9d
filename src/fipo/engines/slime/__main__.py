"""`python -m fipo.engines.slime`: slime's train.py with --loss-type fipo_loss."""

import sys

from fipo.engines.slime.launch import main

if __name__ == "__main__":
    sys.exit(main())
