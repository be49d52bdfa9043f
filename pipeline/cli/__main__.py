"""`python -m pipeline.cli` is the `fairface` command."""

import os
import sys

# `python -m` puts the working folder first, and its csv.py would be imported; keep it only if it has this package
if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(os.path.dirname(__file__))):
    del sys.path[0]

from pipeline.cli.main import main

main()
