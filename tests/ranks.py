"""Ranks that train together, forked from a server that has imported torch: torchrun would import it in each of them."""

import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from shards.processes import start_command


def run_rank(arguments: list[str]) -> None:
    """Run the command after `--` in an environment with the variables before it."""
    end = arguments.index("--")
    os.environ |= dict(text.split("=") for text in arguments[:end])
    from pipeline.cli.main import main

    main(arguments[end + 1 :])


def start_ranks(
    words: list[str], log: Path, *, count: int = 2, run: Callable[[list[str]], None] = run_rank
) -> list[BaseProcess]:
    """Start a command on every rank, with the environment that torchrun sets; their output is appended to a log."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = [f"WORLD_SIZE={count}", f"LOCAL_WORLD_SIZE={count}", "MASTER_ADDR=localhost", f"MASTER_PORT={port}"]
    return [
        start_command(run, [*job, f"RANK={rank}", f"LOCAL_RANK={rank}", "--", *words], log=log) for rank in range(count)
    ]


def finish_ranks(words: list[str], log: Path, *, run: Callable[[list[str]], None] = run_rank) -> str:
    """Run a command on two ranks, which must succeed; returns the log."""
    for process in start_ranks(words, log, run=run):
        process.join()
        assert process.exitcode == 0, log.read_text()
    return log.read_text()
