"""Runs `fairface` commands in forked processes, which saves the import of torch, and kills them at chosen moments.

A moment is a change of the file system by the process itself, counted from 0: the process ends, as by SIGKILL, just
before it makes that change; or a time after its start. Requests and results are lines of JSON.
"""

import faulthandler
import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
POLL_SECONDS = 0.005
DUMP_SECONDS = 20  # before the end of its time
# What makes commands long without changing which files they write, by command and module.
SHORTER: dict[str, dict[str, dict[str, int]]] = {
    "report": {
        "reports.estimation.distances": {"REPLICATES": 20, "CORRECTED_REPLICATES": 4, "MIXTURES": 3},
        "reports.estimation.detection.faces": {"REPLICATES": 50},
        "reports.estimation.detection.metric_rows": {"SCORE_PERMUTATIONS": 4},
        "reports.estimation.detection.repair": {"REPLICATES": 50},
        "reports.estimation.quality": {"SPLITS": 20},
        "reports.faces": {"FIRST_FACES": 4, "GROUP_FACES": 1},
    },
    "detect": {
        "reports.estimation.detection.faces": {"REPLICATES": 50},
        "reports.estimation.detection.metric_rows": {"SCORE_PERMUTATIONS": 4},
        "reports.estimation.detection.repair": {"REPLICATES": 50},
    },
    "label": {"pipeline.labelling.embedded": {"HELD_OUT": 32}},
    "labeller": {"pipeline.labelling.embedded": {"HELD_OUT": 32}},
}
FIT = {"steps": 2, "faces": 64}  # of the embedded labeller


def preload() -> None:
    """Import what is slow and starts no thread: a fork keeps only the thread that forks."""
    for name in ("torch", "torchvision", "open_clip", "duckdb", "PIL.Image", "safetensors.torch", "tqdm", "jinja2"):
        __import__(name)
    import matplotlib

    matplotlib.use("agg")
    __import__("matplotlib.pyplot")
    __import__("nvidia.dali")


def is_change(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Whether an audit event announces a change of the file system below `root`."""
    if event == "open":
        path, _, flags = arguments
        if not flags & WRITING:
            return False
    elif event in CHANGES:
        path = arguments[0]
    else:
        return False
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(root)


def shorten(command: str) -> None:
    """Make a command short, in this process alone."""
    for module, values in SHORTER.get(command, {}).items():
        for name, value in values.items():
            setattr(import_module(module), name, value)
    if command in ("label", "labeller"):
        import_module("pipeline.labelling.embedded").fit.__kwdefaults__.update(FIT)


def run_command(request: dict[str, Any]) -> NoReturn:
    """Run the command of a request in this process, and end it."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request["seconds"] > DUMP_SECONDS:  # a command that hangs says where
        faulthandler.dump_traceback_later(request["seconds"] - DUMP_SECONDS)
    root, last, owner = request["root"], request["change"], os.getpid()
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if os.getpid() == owner and is_change(event, arguments, root):
            if count == last:
                os.killpg(0, signal.SIGKILL)
            count += 1
            if request["counter"]:
                os.pwrite(counter, f"{count:9d}".encode(), 0)

    if request["counter"]:
        counter = os.open(request["counter"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.addaudithook(hook)
    from pipeline.cli.main import main

    sys.argv = ["fairface", *request["arguments"]]
    shorten(request["arguments"][0])
    code = 1
    try:
        main(request["arguments"], prog_name="fairface")
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer requests until standard input ends."""
    preload()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if not child:
            run_command(request)
        deadline, status = request["seconds"], 0
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() - started > deadline:
                try:
                    os.killpg(child, signal.SIGKILL)
                except ProcessLookupError:
                    os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(POLL_SECONDS)
        status = os.waitstatus_to_exitcode(ended[1])
        seconds = time.monotonic() - started
        print(json.dumps({"code": status, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    serve()
