"""`python -m pipeline.cli` is the `fairface` command."""

from pipeline.cli.main import main

main()
