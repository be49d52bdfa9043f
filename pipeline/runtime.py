"""What this machine is, and what runs on it."""

import ctypes
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from shards.concurrency import available_cpus
from shards.errors import FairfaceError


def free_memory(device: torch.device) -> int:
    """Bytes that a new tensor on `device` could take: of the GPU, or of this machine and this job's cgroup."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return free


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one, and of several processes on a machine each has its own."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise FairfaceError(f"--device {name}: use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FairfaceError(f"--device {name}: torch sees no GPU here; leave --device out, or use cpu")
    if device.type not in ("cpu", "cuda"):
        raise FairfaceError(f"--device {name}: use cpu, cuda or cuda:N")
    return device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def tune_allocator() -> None:
    """Lets glibc keep freed memory: a step on a CPU allocates the same large blocks again and again."""
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-4, 0), (-1, -1), (-2, 1 << 26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(parameter, value)  # no block of its own from the system, and none given back


def versions() -> dict[str, str]:
    """Python and the libraries that decide a result: for the report's provenance."""
    names = [
        "torch",
        "torchvision",
        "nvidia-dali-cuda130",
        "nvidia-dali-cuda120",
        "open_clip_torch",
        "polars",
        "duckdb",
    ]
    found = {"python": platform.python_version()}
    for name in [*names, "numpy", "pillow"]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # one of the two DALI builds
            continue
    return found


def command_line() -> str:
    return " ".join(["fairface", *sys.argv[1:]])


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def processor() -> str:
    """The processor's name, as Linux has it, and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{available_cpus()} cores of {name}"
