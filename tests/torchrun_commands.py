"""Runs several `fairface` command lines in each process that torchrun starts: the start takes longer than the work."""

import json
import sys

from pipeline.cli.main import main
from shards import distributed

if __name__ == "__main__":
    # one group for all commands: a new one might find the addresses of the last one in torchrun's store
    with distributed.process_group():
        for words in json.loads(sys.argv[1]):
            main(words, standalone_mode=False)
