"""Runs several `fairface` command lines in each process that torchrun starts: the start takes longer than the work.

A small network takes Xception's place.
"""

import json
import sys

from models.detectors import registry
from pipeline.cli.main import main
from shards import distributed
from tests.pipeline.detection.helpers import small_xception

if __name__ == "__main__":
    registry.xception = small_xception
    # one group for all commands: a new one might find the addresses of the last one in torchrun's store
    with distributed.process_group():
        for words in json.loads(sys.argv[1]):
            main(words, standalone_mode=False)
