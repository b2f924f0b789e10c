"""`python -m imgsim`: the command line of extras/cli.py."""

import sys

from imgsim.extras.cli import main

sys.exit(main())
