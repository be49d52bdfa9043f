"""SQL that a user typed: reading works, limits hold, every type is returned, and interruption is immediate."""

import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest

import sql
from shards.errors import FairfaceError
from sql import restrictions, typed
from sql.connection import create_views

ENDLESS = "select count(*) from range(100000000) a, range(100000) b"


@pytest.mark.parametrize(
    "text",
    [
        "from runs",
        "select 1 -- why",
        "select 1 /* why */ ;;",
        "describe labels",
        "show tables",
        "select 'a;b';",
        "summarize steps",
        "with x as (select * from labels), y as materialized (from x) select count(*) from y join x using (key)",
        "with recursive r(n) as (select 1 union all select n + 1 from r where n < 5) from r",
        "select run, row_number() over (partition by run order by step) from steps qualify row_number() over () < 3",
        "pivot labels on gender in ('female', 'male') using count(*) group by source",
        "unpivot (select 1 as a, 2 as b) on a, b",
        "select list_transform([1, 2], lambda x: x + 1)",
        "from unnest([1, 2])",
        "from generate_series(1, 3)",
        "from (values (1), (2)) as t(n) where n in (select max(step) - 8 from main.steps)",
        "select key from images asof join (select 'x' as key) as b using (key)",
        "select key from images union all by name select key, source from labels",
        "from images positional join labels",
        "select * exclude (key) from labels tablesample 3 rows",
        "select count(*) from duckdb_views()",
        "from images, lateral (select images.key || 'x' as k)",
    ],
)
def test_reading_is_allowed(workspace, text):
    connection = sql.connect(workspace)
    create_views(connection)
    typed.check(connection, text)
    assert connection.sql(text).pl().width


VALUES = {
    "interval 1 month": "1 month",
    r"'\xAA'::blob": r"\xAA",
    "'101'::bit": "101",
    "340282366920938463463374607431768211455::uhugeint": "340282366920938463463374607431768211455",
    "170141183460469231731687303715884105727::hugeint": "170141183460469231731687303715884105727",
    "timetz '10:00:00+02'": "10:00:00+02",
    "date '290000-01-01'": "290000-01-01",
    "'infinity'::timestamp": "infinity",
    "map {'k': 1}": "{k=1}",
    "{'a': 1}": "{'a': 1}",
    "union_value(k := 1)": "1",
    "[interval 1 day]": "[1 day]",
    "[1, 2]": [1, 2],
    "'a'::enum('a', 'b')": "a",
    "1.50::decimal(4, 2)": Decimal("1.50"),
    "'inf'::double": float("inf"),
    "null": None,
    "repeat('x', 100000)": "x" * 100000,
}


def test_every_type_is_returned(workspace):
    columns = ", ".join(f"{expression} as x{number}" for number, expression in enumerate(VALUES))
    answer = dict(zip(VALUES, sql.query(workspace, f"select {columns}").row(0), strict=True))
    assert {name: value for name, value in answer.items() if value != VALUES[name]} == {}


def test_a_sum_is_a_number_where_it_fits(workspace):
    assert sql.query(workspace, "select sum(n) as x from range(4) as t(n)")["x"].to_list() == [Decimal(6)]


def test_columns_of_the_same_name_get_different_names(workspace):
    assert sql.query(workspace, "select 1 as a, 2 as a, 3 as a_1").columns == ["a", "a_1", "a_1_1"]


@pytest.mark.parametrize(
    ("text", "limits", "message"),
    [
        ("from range(11)", sql.Limits(rows=10), "more than 10 rows.*--max-rows"),
        ("from range(400000000)", sql.Limits(), "more than 1,000,000 rows"),
        (ENDLESS, sql.Limits(seconds=2), "stopped after 2 s.*--timeout"),
        ("select sleep_ms(60000)", sql.Limits(seconds=2), "stopped after 2 s"),
        ("select repeat('x', 900000000) from range(9)", sql.Limits(memory=500_000_000), "emory.*--max-memory"),
        ("select list(n) from range(1000000000) t(n)", sql.Limits(memory=500_000_000), "emory.*--max-memory"),
        ("from range(1)", sql.Limits(memory=1_000_000), "at least 200 MB"),
        ("select " + "+".join("1" * 2000), sql.Limits(), r".+"),
        ("select * from " + "(select * from " * 3000 + "images" + ")" * 3000, sql.Limits(), r".+"),
        (" union all ".join(["select 1"] * 3000), sql.Limits(memory=300_000_000), r".+"),
        ("select n from range(100000000) t(n) order by random()", sql.Limits(memory=400_000_000), "memory"),
        ("select repeat('x', 1000) from range(300000)", sql.Limits(memory=200_000_000), "emory"),
        ("select " + "(" * 50_000 + "1" + ")" * 50_000, sql.Limits(), r".+"),
    ],
)
def test_limits_hold_and_are_one_line(workspace, text, limits, message):
    with pytest.raises(FairfaceError, match=message) as caught:
        sql.query(workspace, text, limits)
    assert "\n" not in str(caught.value)


def test_an_answer_of_exactly_the_limit_is_returned(workspace):
    assert sql.query(workspace, "from range(10)", sql.Limits(rows=10)).height == 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_query_is_interrupted_within_a_second(workspace, number, code):
    command = [sys.executable, "-m", "pipeline.cli", "sql", "-c", ENDLESS, "--out", str(workspace.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        child = wait_for_child(process.pid)
        start = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert time.monotonic() - start < 1.5  # with room for a busy machine
    assert process.returncode == code
    assert errors.count(b"\n") == 1
    assert has_ended(child)


def has_ended(pid):
    """Whether a process has ended, although its parent may not have waited for it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def wait_for_child(pid):
    """The process that runs the query of `pid`, once it is running it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if "Seccomp:\t2" in Path(f"/proc/{name}/status").read_text():
                time.sleep(0.5)
                return int(name)
        time.sleep(0.05)
    raise TimeoutError


def test_the_process_ends_with_its_parent(workspace):
    command = [sys.executable, "-m", "pipeline.cli", "sql", "-c", ENDLESS, "--out", str(workspace.root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        child = wait_for_child(process.pid)
        process.kill()
    deadline = time.monotonic() + 10
    while not has_ended(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert has_ended(child)


RIGHTS = """
import os, subprocess, sys, threading
sys.path.insert(0, sys.argv[1])
from sql.restrictions import forbid_writing
os.chdir(sys.argv[2])
file, ready, refused = "file", threading.Event(), []
attempts = [
    lambda: open(file, "w"), lambda: open(file, "a"), lambda: open(file, "r+"),
    lambda: os.open("new", os.O_CREAT | os.O_RDONLY), lambda: os.open(file, os.O_TRUNC | os.O_RDONLY),
    lambda: os.open(".", os.O_TMPFILE | os.O_RDWR), lambda: os.unlink(file), lambda: os.rename(file, "new"),
    lambda: os.replace(file, "new"), lambda: os.mkdir("new"), lambda: os.rmdir("."), lambda: os.link(file, "new"),
    lambda: os.symlink(file, "new"), lambda: os.chmod(file, 0), lambda: os.utime(file), lambda: os.truncate(file, 0),
    lambda: os.mkfifo("new"), lambda: os.setxattr(file, "user.x", b"1"), lambda: os.execv("/bin/true", ["true"]),
    lambda: subprocess.run(["/bin/true"]), lambda: os.kill(os.getppid(), 0), lambda: __import__("socket").socket(),
]
def attempt():
    ready.wait()
    for one in attempts:
        try:
            one()
        except PermissionError:
            refused.append(one)
thread = threading.Thread(target=attempt)
thread.start()
forbid_writing()
ready.set()
thread.join()
ready_in_main = len(refused)
attempt()
print(ready_in_main == len(attempts), len(refused) == 2 * len(attempts), open(file).read(), os.listdir("."))
"""


def test_the_kernel_refuses_every_change_in_every_thread(tmp_path):
    (tmp_path / "file").write_text("content")
    command = [sys.executable, "-c", RIGHTS, str(typed.ROOT), str(tmp_path)]
    assert subprocess.check_output(command, text=True).strip() == "True True content ['file']"


def test_the_same_calls_are_refused_on_both_machines():
    x86, arm = restrictions.X86_64_CALLS, restrictions.ARM64_CALLS
    replaced = {"fork", "vfork", "creat", "link", "unlink", "symlink", "rename", "mkdir", "rmdir", "chmod", "chown"}
    assert x86.keys() - arm.keys() == replaced | {"lchown", "mknod", "utime", "utimes", "futimesat"}
    assert not arm.keys() - x86.keys()
    for calls in (x86, arm):
        assert len(set(calls.values())) == len(calls)


def test_without_a_lock_nothing_is_run(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(FairfaceError, match="can't be run safely on riscv64"):
        restrictions.forbid_writing()


def test_many_queries_run_at_the_same_time(workspace):
    counts = []
    threads = [
        threading.Thread(target=lambda: counts.append(sql.query(workspace, "select count(*) n from labels")["n"][0]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [10] * 4
