"""The machine and the software that a stage runs on: device, memory, allocator, versions, processor."""

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

import torch

from shards.concurrency import available_cpus
from shards.errors import FairfaceError

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# by version of control groups: folders of the memory controller, files of limit and usage, and the field of memory.stat
# for the page cache that the kernel drops first
CGROUP_FILES = {
    1: (("memory",), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: (("", "unified"), "memory.max", "memory.current", "inactive_file"),
}
# of glibc's malloc.h: M_MMAP_MAX 0 and M_TRIM_THRESHOLD -1 keep every freed block, M_TOP_PAD grows the heap by 64 MiB
MALLOC_OPTIONS = ((-4, 0), (-1, -1), (-2, 1 << 26))
LIBRARIES = (  # libraries that affect results; only one of the two DALI builds is installed
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "open_clip_torch",
    "polars",
    "duckdb",
    "numpy",
    "pillow",
)


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is a GPU if there is one, a different one for every local rank.

    Raises FairfaceError for an unknown name, and for a GPU on a machine without one.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise FairfaceError(f"--device {name}: use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FairfaceError(f"--device {name}: torch finds no GPU on this machine; leave --device out, or use cpu")
    if device.type not in ("cpu", "cuda"):
        raise FairfaceError(f"--device {name}: use cpu, cuda or cuda:N")
    return device


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the number of CPU cores that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {(cores := available_cpus())} core{'s' if cores > 1 else ''}"


def processor_name() -> str:
    """Return the name of the processor, and how many of its cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{available_cpus()} cores of {name}"


def free_memory(device: torch.device) -> int:
    """Return the bytes that new tensors on `device` may take: of the GPU, or of this machine and its control groups."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    return max(min([free, *cgroup_free_memory()]), 0)


def check_memory(needed: int, device: torch.device, *, purpose: str, remedy: str) -> None:
    """Raise FairfaceError if `needed` bytes for each process that shares the device don't fit into its free memory.

    `purpose` is a plural that says what needs them, and `remedy` says what to do.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1
    if needed * processes > (free := free_memory(device)):
        raise FairfaceError(
            f"{purpose} need {needed * processes / 1e6:,.0f} MB of memory, and {free / 1e6:,.0f} MB are free: {remedy}"
        )


def cgroup_free_memory() -> Iterator[int]:
    """Yield the bytes that each control group of this process, from its own up to the root, may still take.

    Inactive page cache counts as free. Groups without a limit are left out.
    """
    lines = OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mounts, limit, used, cache = CGROUP_FILES[1 if controllers else 2]
        # in a container the path may be the host's, of which only the root is mounted here
        own = PurePosixPath("" if ".." in path else path.lstrip("/"))
        for group in [CGROUPS / mount / group for mount in mounts for group in (own, *own.parents)]:
            try:
                text = (group / limit).read_text().strip()
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                if text.isdigit():
                    yield int(text) - int((group / used).read_text()) + int(stat.get(cache, 0))
            except (OSError, ValueError):
                continue  # not mounted, or not readable


def tune_allocator() -> None:
    """Make glibc keep freed memory, because a step on a CPU allocates the same large blocks again and again."""
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in MALLOC_OPTIONS:
            mallopt(option, value)


def has_compiler() -> bool:
    """Return whether the C++ compiler that torch.compile needs is installed."""
    return bool(shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect results, for the report's provenance."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def command_line() -> str:
    """Return the command that this process runs, as the user typed it; bytes that are not UTF-8 are escaped."""
    return " ".join(["fairface", *sys.argv[1:]]).encode(errors="backslashreplace").decode()


def utc_now() -> str:
    """Return the time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
