"""Attacks on typed SQL: no query changes a byte in OUT or next to it, or reads a file that is not of a view."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import sql
from shards.errors import FairfaceError
from sql import typed
from tests.sql.conftest import out, workspace  # noqa: F401

SECRET = "CANARY"
# {f} is a file of the views, {n} a new file below OUT, {c} a file next to OUT, {d} its folder.
REFUSED = r"""
copy (select 1) to '{f}'
copy (select 1) to '{n}' (format csv)
copy labels to '{f}' (format parquet)
copy labels from '{f}'
;copy (select 1) to '{f}'
select 1; copy (select 1) to '{f}'
select 1 /* ; */ ; -- x
/**/copy/**/(select 1)/**/to/**/'{f}'
from json_execute_serialized_sql(json_serialize_sql('with x as (copy (select 1) to ''{f}'' (format csv)) from x'))
from json_execute_serialized_sql(json_serialize_sql('copy (select 1) to ''{f}'' (format csv)'))
pragma json_execute_serialized_sql('{{}}')
call json_execute_serialized_sql(json_serialize_sql('select 1'))
select json_serialize_plan('with x as (copy (select 1) to ''{f}'' (format csv)) from x')
select json_serialize_plan('from read_csv(''{f}'')')
with x as (copy (select 1) to '{f}' (format csv)) from x
with x as (insert into vocabulary values ('a','b',1) returning *) from x
with x as (delete from vocabulary returning *) from x
with x as (update vocabulary set rank = 1 returning *) from x
with y as (with x as (copy (select 1) to '{f}' (format csv)) from x) from y
from (copy (select 1) to '{f}' (format csv))
select (copy (select 1) to '{f}')
select (with x as (copy (select 1) to '{f}' (format csv)) select 1)
select exists(with x as (insert into vocabulary values ('a','b',1) returning *) from x)
with recursive x as (select 1 union all (copy (select 1) to '{f}')) from x
with x as materialized (copy (select 1) to '{f}' (format csv)) from x
from query('copy (select 1) to ''{f}''')
from query('with x as (copy (select 1) to ''{f}'' (format csv)) from x')
from query('select ' || '1')
from query_table('{f}')
from query_table(['labels','images'])
attach '{n}' as x
attach '{f}' as x (type sqlite)
attach ':memory:' as y
detach memory
use memory
create table x as select 1
create or replace view labels as select 1
create temp table t(i int)
create macro m() as table from read_csv('{f}')
create secret s (type s3)
create persistent secret s (type s3)
create function f(x) as x
create type t as enum ('a')
create sequence s
create schema s
create index i on vocabulary(rank)
alter table vocabulary add column x int
drop view labels
drop table vocabulary
truncate vocabulary
insert into vocabulary values ('a','b',1)
update vocabulary set rank = 1
delete from vocabulary
merge into vocabulary using (select 1) s on true when matched then delete
set enable_external_access = true
set allowed_paths = ['{c}']
set temp_directory = '{d}'
reset lock_configuration
pragma enable_profiling
pragma profiling_output = '{n}'
pragma enable_logging
call enable_logging(storage = 'file', storage_config = {{'path': '{d}'}})
call enable_profiling(save_location = '{n}')
call set_log_storage('{d}')
from enable_logging()
from enable_profiling()
select write_log('x')
select nextval('s')
install httpfs
install '{c}'
load '{c}'
load httpfs
force install spatial
update extensions
export database '{d}'
import database '{d}'
vacuum
analyze
checkpoint
force checkpoint
from checkpoint()
from force_checkpoint()
call force_checkpoint()
from pragma_storage_info('vocabulary')
from pragma_table_info('vocabulary')
from pragma_database_size()
from pragma_metadata_info()
begin transaction
rollback
prepare p as copy (select 1) to '{f}'
execute p
deallocate p
explain select 1
explain analyze copy (select 1) to '{f}'
explain copy (select 1) to '{f}'
comment on view labels is 'x'
from read_csv('{f}')
from read_csv('{c}')
from read_csv_auto('{c}')
from read_text('{f}')
from read_text('{c}')
from read_blob('{c}')
from read_blob('/proc/self/environ')
from read_text('/proc/self/mem')
from read_text('/dev/zero')
from read_json('{f}')
from read_json_objects('{c}')
from read_ndjson('{c}')
from read_parquet('{c}')
from parquet_scan('{c}')
from parquet_metadata('{f}')
from parquet_schema('{f}')
from parquet_file_metadata('{f}')
from parquet_kv_metadata('{f}')
from parquet_bloom_probe('{f}', 'a', 1)
from sniff_csv('{f}')
from sniff_csv('{c}')
from glob('{d}/*')
from glob('/etc/*')
from '{c}'
from "{c}"
from '{f}'
select * from '{c}'
describe '{c}'
describe "{c}"
summarize '{c}'
show '{c}'
describe table '{c}'
pivot '{c}' on a
unpivot '{c}' on a
select * from "{c}", (with "{c}" as (select 1) select 1)
select * from "{f}", (with "{f}" as (select 1) select 1)
select * from "{f}" where exists (with recursive "{f}" as (select 1) select 1)
from connection
from request
from text
from limits
from workspace
from buffer
select * from connection, (with connection as (select 1) select 1)
select * from workspace, (with workspace as (select 1) select 1)
select * from pa, (with pa as (select 1) select 1)
from pandas_scan(1)
from arrow_scan(1,2,3)
from arrow_scan_dumb(1,2,3)
from python_map_function(1)
from seq_scan('vocabulary')
from test_all_types()
from duckdb_secrets()
from which_secret('s3://x','s3')
from duckdb_settings()
from duckdb_extensions()
from duckdb_logs()
from duckdb_memory()
from duckdb_temporary_files()
from duckdb_external_file_cache()
from duckdb_prepared_statements()
from sql_auto_complete('sel')
from repeat('x', 3)
from repeat_row(1, num_rows = 3)
from summary((from labels))
from check_peg_parser('select 1')
from load_aws_credentials()
from st_read('{c}')
select st_point(1, 2)
from read_xlsx('{c}')
from sqlite_scan('{f}', 'x')
from iceberg_scan('{d}')
from delta_scan('{d}')
from postgres_scan('host=x', 'a', 'b')
from shellfs('touch {n}')
from read_csv('touch {n} |')
from read_text('https://example.com')
from read_text('file://{c}')
from read_parquet('s3://x/y')
select getenv('HOME')
select "getenv"('HOME')
select GetEnv('HOME')
select system.main.getenv('HOME')
select 'HOME'.getenv()
select set_config('x', 'y', false)
select pg_read_file('{c}')
select load_extension('{c}')
select read_text('{c}')
select (from read_text('{c}'))
select content from (values (1)) t, lateral read_text('{c}')
select * from labels, read_text('{c}')
select * from labels positional join read_text('{c}')
select * from labels asof join read_text('{c}') r on labels.key >= r.filename
select * from labels where key in (from read_text('{c}'))
select * from labels where key in (select content from read_text('{c}'))
select list_transform([1], lambda x: (select content from read_text('{c}')))
select [x for x in (from read_text('{c}'))]
select columns((from read_text('{c}')))
select * replace ((from read_text('{c}')) as key) from labels
select count(*) filter (exists (from read_text('{c}'))) from labels
select sum(1) over (order by (select content from read_text('{c}')))
select 1 order by (select content from read_text('{c}'))
select 1 limit (select 1 from read_text('{c}'))
select 1 offset (select 1 from read_text('{c}'))
select 1 group by (select content from read_text('{c}'))
select 1 having exists (from read_text('{c}'))
select 1 qualify exists (from read_text('{c}'))
select distinct on ((select content from read_text('{c}'))) 1
select 1 union from read_text('{c}')
select 1 union all by name (from read_text('{c}'))
values ((select content from read_text('{c}')))
from (values ((select content from read_text('{c}')))) t
pivot labels on (select content from read_text('{c}'))
pivot (from read_text('{c}')) on filename
pivot labels on gender in (select filename from read_text('{c}'))
unpivot (from read_text('{c}')) on size
summarize (from read_text('{c}'))
describe (from read_text('{c}'))
describe from read_text('{c}')
summarize from read_text('{c}')
from (describe from read_text('{c}'))
from (summarize from read_text('{c}'))
show secrets
with x(a) as (from read_text('{c}')) from x
with recursive x as (from read_text('{c}') union all from x) from x
with recursive x using key (filename) as (from read_text('{c}') union all from x) from x
select * from range((select 1 from read_text('{c}')))
from range((select count(*) from read_text('{c}')))
from unnest((select list(content) from read_text('{c}')))
from generate_series(1, 2) t(x) join read_text('{c}') on true
select 1 from labels tablesample (select 1 from read_text('{c}')) rows
from memory.main.labels
from memory.labels
from temp.labels
from system.information_schema.tables
from information_schema.tables
from pg_catalog.pg_tables
from labels at (version => 1)
select 1 ;copy (select 1) to '{f}'
select 1;copy (select 1) to '{f}'
select 1\u037ecopy (select 1) to '{f}'
copy (select 1) to '{f}'
\ufeffcopy (select 1) to '{f}'
\u00a0copy\u2003(select 1)\u3000to '{f}'
select 1 -- \r; copy (select 1) to '{f}'
select $$;$$; copy (select 1) to '{f}'
select $a$ $$ $a$; copy (select 1) to '{f}'
select e'\\'; copy (select 1) to '{f}'; --'
select U&'\0027; copy (select 1) to ''{f}'''
select $1
select ?
select $name
execute immediate 'copy'
do $$ copy $$
select 1 into '{n}'
select 1 into outfile '{n}'
select 1 for update
table '{c}'
list labels
.shell touch {n}
.output {n}
.import {c} x
!touch {n}
%sql select 1
kill 1
connect '{n}'
grant all on labels to x
declare c cursor for select 1
copy labels to program 'touch {n}'
copy (select 1) to '/dev/stdout'
copy (select 1) to '/proc/self/fd/1'
copy (select 1) to '/proc/self/fd/2'
copy (select 1) to '/dev/stderr' (format csv)
copy (select 1 as a) to '{d}' (partition_by a, overwrite)
copy database memory to x
copy (select 1) to '{f}' (format parquet, per_thread_output)
with x as (from query('copy (select 1) to ''{f}''')) from x
with recursive x as (select 1 union all select * from query('copy (select 1) to ''{f}''')) from x
with x as (merge into vocabulary using (select 1) s on true when matched then delete returning *) from x
with x as (create table y as select 1) from x
with x as (attach '{n}') from x
with x as (pragma version) from x
with x as (set threads = 1) from x
with x as (call force_checkpoint()) from x
with x as (explain select 1) from x
from (explain select 1)
from (pragma version)
from (call force_checkpoint())
from (insert into vocabulary values ('a','b',1) returning *)
from (delete from vocabulary returning *)
from (update vocabulary set rank = 1 returning *)
""".strip().splitlines()
ALLOWED = r"""
from vocabulary
from (show all tables)
select 1 -- \r; copy (select 1) to '{f}'
select 1 as "a""; copy (select 1) to '{f}'; --"
select 'copy (select 1) to ''{f}''' as x
""".strip().splitlines()

TRIED = {"statements and expressions of typed SQL": len(REFUSED) + len(ALLOWED)}


@pytest.fixture
def places(out, tmp_path_factory):  # noqa: F811
    """What the placeholders of the shapes stand for."""
    canary = tmp_path_factory.mktemp("canary")
    (canary / "c.csv").write_text(f"a,b\n{SECRET},1\n")
    return {"f": out / "runs" / "new" / "config.json", "n": out / "new", "c": canary / "c.csv", "d": canary}


def content(*folders):
    """Every entry below the folders: its kind and mode, its time of change and its bytes."""
    return {
        path: (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for folder in folders
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def fill(shape, places):
    """The SQL of a shape, with its placeholders and its escaped characters replaced."""
    text = shape.encode("ascii").decode("unicode_escape") if r"\u" in shape or r"\r" in shape else shape
    return text.format(**places)


QUICK, PART = 25, 40  # in the ordinary test suite, one shape of so many; shapes of one test in all of the attacks
PARTS = [REFUSED[start : start + PART] for start in range(0, len(REFUSED), PART)]


@pytest.mark.parametrize(
    "shapes", [REFUSED[::QUICK], *(pytest.param(part, marks=pytest.mark.attack) for part in PARTS)], ids=lambda _: ""
)
def test_no_shape_changes_or_reads_a_foreign_file(workspace, places, shapes):  # noqa: F811
    before = content(workspace.root, places["d"])

    def attack(shape):
        try:
            answer = sql.query(workspace, fill(shape, places), sql.Limits(seconds=60))
        except FairfaceError as error:
            return "" if "\n" not in str(error) and SECRET not in str(error) else f"{shape}: {error}"
        return f"{shape}: answered {answer}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert [line for line in pool.map(attack, shapes) if line] == []
        for shape in ALLOWED:  # may be answered
            assert SECRET not in attack(shape)
    assert content(workspace.root, places["d"]) == before


KERNEL_ONLY = """
import json, sys, threading
sys.path.insert(0, sys.argv[1])
import duckdb
from sql.restrictions import forbid_writing
forbid_writing()
for text in json.load(sys.stdin):
    connection = duckdb.connect()  # which may do everything
    for name in ("labels", "vocabulary"):
        connection.execute(f"create table {name} as select 1 as key, 'a' as gender, 1 as rank, 1 as step")
    timer = threading.Timer(3, connection.interrupt)
    timer.start()
    try:
        connection.execute(text).fetchmany(1000)
    except Exception:
        pass
    timer.cancel()
print("survived")
"""


@pytest.mark.attack
def test_the_kernel_alone_holds(workspace, places):  # noqa: F811
    """Without the check of the parsed tree, and without the locks of the connection."""
    skipped = (
        "/dev/",
        "/proc/self/",
        "kill",
        "https:",
        "s3:",
        "postgres",
        "install",
        "load ",
        "update extensions",
        ".csv |",
    )
    texts = [fill(shape, places) for shape in REFUSED if not any(word in shape for word in skipped)]
    before = content(workspace.root, places["d"])
    command = [sys.executable, "-c", KERNEL_ONLY, str(typed.ROOT)]
    answer = subprocess.run(
        command, input=json.dumps(texts), text=True, capture_output=True, cwd=places["d"], timeout=300
    )
    assert "survived" in answer.stdout, answer.stderr
    assert content(workspace.root, places["d"]) == before


CALLS = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from sql.restrictions import forbid_writing
libc = ctypes.CDLL(None, use_errno=True)
forbid_writing()
failed = libc.syscall(452, -100, sys.argv[2].encode(), 0, 0) == -1
print(failed and ctypes.get_errno() == 1)
"""


def test_fchmodat2_is_refused(tmp_path):
    """Linux 6.6's call, which older libraries do not wrap."""
    file = tmp_path / "file"
    file.touch(0o644)
    command = [sys.executable, "-c", CALLS, str(typed.ROOT), str(file)]
    assert subprocess.check_output(command, text=True).strip() == "True"
    assert file.stat().st_mode & 0o777 == 0o644


def error_of(workspace, text, **limits):  # noqa: F811
    """The message of the error of a query; empty for one with an answer."""
    try:
        sql.query(workspace, text, sql.Limits(seconds=60, **limits))
    except FairfaceError as error:
        return str(error)
    return ""


DEEP = {
    "subqueries": "select " + "(select " * 250 + "1" + ")" * 250,
    "a sum": "select " + "1+" * 600 + "1",
    "lists": "select " + "[" * 400 + "1" + "]" * 400,
    "unions": " union all ".join(["select 1"] * 3000),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_sql_is_one_line_or_an_answer(workspace, name):  # noqa: F811
    assert "\n" not in error_of(workspace, DEEP[name])


@pytest.mark.parametrize("memory", [1, 10_000_000, 60_000_000, 200_000_000])
def test_little_memory_is_one_line_or_an_answer(workspace, memory):  # noqa: F811
    assert "\n" not in error_of(workspace, "select repeat('x', 1000) from range(300000)", memory=memory)
