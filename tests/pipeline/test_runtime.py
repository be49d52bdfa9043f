"""Free memory: of the machine, and of every control group around this process, of both versions."""

from pathlib import Path

import pytest
import torch

from pipeline import runtime
from shards.errors import FairfaceError

CPU, MB = torch.device("cpu"), 10**6
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
UNLIMITED = {1: 9_223_372_036_854_771_712, 2: "max"}


@pytest.fixture
def control_groups(tmp_path, monkeypatch) -> Path:
    """An empty folder in place of /sys/fs/cgroup, on a machine with 10 GB of free memory."""
    real = open
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 20000000 kB\nMemAvailable:   10000000 kB\n")
    monkeypatch.setattr(
        "builtins.open", lambda path, *a, **b: real(meminfo if path == "/proc/meminfo" else path, *a, **b)
    )
    monkeypatch.setattr(runtime, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(runtime, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def add_group(root: Path, path: str, version: int, *, limit: int | str, used: int, cache: int = 0) -> None:
    folder = root / "cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    limit_file, used_file, cache_field = FILES[version]
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{cache_field} {cache}\nfile 7\n")


def test_without_control_groups_the_machine_decides(control_groups):
    assert runtime.free_memory(CPU) == 10_000_000 * 1024
    (control_groups / "own").write_text("4:memory:/a\n0::/b\n")
    assert runtime.free_memory(CPU) == 10_000_000 * 1024


@pytest.mark.parametrize(
    ("version", "mount", "own"),
    [(1, "memory/", "3:cpu:/x\n4:memory:/job/step\n0::/\n"), (1, "memory/", "4:hugetlb,memory:/job/step\n"),
     (2, "", "0::/job/step\n"), (2, "unified/", "3:cpu:/x\n0::/job/step\n")],
)  # fmt: skip
def test_the_tightest_group_from_the_own_one_to_the_root_decides(control_groups, version, mount, own):
    (control_groups / "own").write_text(own)
    for path in ("", "job", "job/step"):
        add_group(control_groups, mount + path, version, limit=UNLIMITED[version], used=50 * MB)
    assert runtime.free_memory(CPU) == 10_000_000 * 1024
    add_group(control_groups, f"{mount}job", version, limit=800 * MB, used=300 * MB)
    assert runtime.free_memory(CPU) == 500 * MB
    add_group(control_groups, f"{mount}job/step", version, limit=600 * MB, used=500 * MB, cache=150 * MB)
    assert runtime.free_memory(CPU) == 250 * MB
    add_group(control_groups, f"{mount}job/other", version, limit=1, used=0)  # of other processes
    assert runtime.free_memory(CPU) == 250 * MB
    add_group(control_groups, mount, version, limit=100 * MB, used=120 * MB)
    assert runtime.free_memory(CPU) == 0


@pytest.mark.parametrize("own", ["4:memory:/docker/of/the/host\n", "4:memory:/../../outside\n"])
def test_in_a_container_the_root_that_is_mounted_decides(control_groups, own):
    (control_groups / "own").write_text(own)
    add_group(control_groups, "memory", 1, limit=700 * MB, used=200 * MB)
    assert runtime.free_memory(CPU) == 500 * MB


def test_files_that_cannot_be_read_are_passed_over(control_groups):
    (control_groups / "own").write_text("0::/job\n")
    add_group(control_groups, "", 2, limit=700 * MB, used=200 * MB)
    add_group(control_groups, "job", 2, limit=1, used=0)
    (control_groups / "cgroup/job/memory.current").write_text("nonsense")
    assert runtime.free_memory(CPU) == 500 * MB


def test_what_does_not_fit_is_refused_for_all_processes_together(control_groups, monkeypatch):
    runtime.check_memory(10**10, CPU, purpose="the tables", remedy="buy some")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(FairfaceError, match="the tables need 20,000 MB of memory, and 10,240 MB are free: buy some"):
        runtime.check_memory(10**10, CPU, purpose="the tables", remedy="buy some")
