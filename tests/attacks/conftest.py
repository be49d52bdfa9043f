"""OUT after every stage of a small job, run once and copied for every attack."""

from pathlib import Path

import pytest

from tests.attacks.finished_job import finished_folder, job  # noqa: F401 - fixtures
from tests.attacks.helpers import STAGES, Server, copy_tree, write_csv_files


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The process that forks commands, in an empty working folder and with a cache of its own."""
    scratch = tmp_path_factory.mktemp("server")
    with Server(scratch) as running:
        yield running


@pytest.fixture(scope="session")
def base(tmp_path_factory, server) -> Path:
    """A folder with OUT as it is before the first stage and after those that others follow: base / <stage>."""
    root = tmp_path_factory.mktemp("base")
    out = root / "out"
    out.mkdir()
    write_csv_files(server.scratch)
    copy_tree(out, root / "nothing")
    needed = {stage.after for stage in STAGES.values()}
    for stage in [stage for stage in STAGES.values() if stage.name in needed]:
        copy_tree(root / stage.after, out)
        server.finish(*stage.command(out), root=out)
        copy_tree(out, root / stage.name)
    return root
