"""No link below OUT makes a command write or remove what lies elsewhere, or lose what is in OUT."""

import random
import shutil
from pathlib import Path

import pytest

from shards import atomic_io
from tests.attacks.finished_job import DETECT, TRAIN, Job, run, tree_hashes

# The commands that replace what is in a folder; what they read lies in other folders.
WRITERS = {
    "shards": ("shards", "--shard-images", 100, "--workers", 1, "--data", "../faces", "--seed", 1, "--force"),
    "train": ("train", *TRAIN, "--seed", 1, "--force"),
    "sample": ("sample", "--num-samples", 32, "--run", "r", "--force"),
    "label": ("label", "--run", "r", "--force"),
    "import labels": ("label", "--import", "../labels.csv", "--run", "imported", "--force"),
    "import predictions": ("detect", "--import", "../predictions.csv", "--name", "imported", "--force"),
    "import over training": ("detect", "--import", "../predictions.csv", "--name", "d", "--force"),
    "report": ("report", "--run", "r", "--force"),
    "detect": ("detect", *DETECT, "--seed", 1, "--force"),
    "synth": ("synth", "--count", 8, "--size", 32, "--workers", 1),
}
QUICK_WRITERS = ("import labels", "import predictions", "import over training", "sample")
# What takes the place of a file or a folder; `canary` is a folder of the user's next to OUT.
LINKS = ("canary", "canary/file", "canary/missing", "self", "/dev/zero", "/dev/full")
pytestmark = pytest.mark.attack  # minutes
QUICK, ALL = 24, 100
FOLDER_OF = {
    "shards": ("shards",),
    "train": ("runs/r",),
    "sample": ("runs/r",),
    "label": ("shards", "runs/r"),
    "import labels": ("runs/imported",),
    "import predictions": ("detectors/imported",),
    "import over training": ("detectors/d",),
    "report": ("report", "detectors/imported"),
    "detect": ("detectors/d",),
    "synth": ("synthetic",),
}
TRIED = {"links in the place of files and folders that commands replace": ALL}


@pytest.fixture
def canary(job) -> Path:
    """A folder of the user's next to OUT."""
    folder = job.out.parent / "canary"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "deeper").mkdir(parents=True)
    for name in (
        "file",
        "index.html",
        "step_000000004.pt",
        "sample_00000.png",
        "deeper/labels.parquet",
        "samples-000000.tar",
    ):
        (folder / name).write_text(f"mine: {name}")
    return folder


def put_link(path: Path, link: str, canary: Path) -> None:
    """Replace a file or folder by a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    targets = {
        "self": path.name,
        "canary": canary,
        "canary/file": canary / "file",
        "canary/missing": canary / "missing",
    }
    path.symlink_to(targets.get(link, link))


def places(job: Job, writer: str) -> list[str]:
    """The files and folders that a command may replace, and the temporary names that it used before this version."""
    found = []
    for folder in FOLDER_OF[writer]:
        entries = sorted((job.pristine / folder).rglob("*")) if (job.pristine / folder).exists() else []
        found += [str(path.relative_to(job.pristine)) for path in entries]
        found += [
            f"{Path(path).parent}/.{Path(path).name}.partial" for path in found if (job.pristine / path).is_file()
        ]
    return found or [f"synthetic/{name}" for name in ("GANs", "train.csv", "synthetic.json", ".rendering", ".lock")]


@pytest.mark.parametrize("examples", [QUICK, pytest.param(ALL, marks=pytest.mark.attack)])
def test_a_link_in_the_place_of_anything_leads_nowhere(job, canary, examples):
    rng = random.Random(15)
    before = tree_hashes(canary)
    for number in range(examples):
        writer = rng.choice(QUICK_WRITERS if examples == QUICK else list(WRITERS))
        place, link = rng.choice(places(job, writer)), LINKS[number % len(LINKS)]
        job.reset()
        (job.out / place).parent.mkdir(parents=True, exist_ok=True)
        put_link(job.out / place, link, canary)
        content = tree_hashes(job.out)
        outcome = job.run(*WRITERS[writer])
        assert tree_hashes(canary) == before, (writer, place, link)
        if outcome.code:
            lost = content.keys() - tree_hashes(job.out).keys()
            assert not lost, (writer, place, link, outcome.printed)
    job.reset()


@pytest.mark.parametrize(
    "writer", [pytest.param(w, marks=() if w in QUICK_WRITERS else pytest.mark.attack) for w in WRITERS]
)
def test_a_folder_of_out_may_itself_be_a_link(job, canary, writer):
    """OUT/runs may be a link to a large disk; there, the same files are replaced as without the link, and no others."""
    before = tree_hashes(canary)
    for folder in FOLDER_OF[writer]:
        job.reset()
        elsewhere = canary / "elsewhere"
        shutil.rmtree(elsewhere, ignore_errors=True)
        if (job.out / folder).exists():
            shutil.move(job.out / folder, elsewhere)
        else:
            elsewhere.mkdir()
        (job.out / folder).symlink_to(elsewhere)
        run(*WRITERS[writer], "--out", job.out)
        assert (job.out / folder).is_symlink()
        shutil.rmtree(elsewhere)
        assert tree_hashes(canary) == before
    job.reset()


def test_temporary_names_that_were_foreseen_would_not_be_followed(job, canary, monkeypatch):
    """Even an attacker who knew the random part of a temporary name could not lead a command elsewhere."""
    before = tree_hashes(canary)
    monkeypatch.setattr(atomic_io.os, "urandom", lambda count: bytes(count))
    monkeypatch.setattr(atomic_io, "remove_partials", lambda *_: None)
    for writer in ("import labels", "import predictions"):
        job.reset()
        for folder in FOLDER_OF[writer]:
            for path in list((job.out / folder).iterdir()):
                if path.is_file():
                    (path.parent / f".{path.name}.00000000.partial").symlink_to(canary / "file")
        job.run(*WRITERS[writer])
        assert tree_hashes(canary) == before
    job.reset()


@pytest.mark.parametrize("name", ["sample_00000.png", "sample_00031.png"])
@pytest.mark.parametrize("link", LINKS)
def test_a_link_among_png_files_is_refused_or_replaced(job, canary, name, link):
    before = tree_hashes(canary)
    job.reset()
    folder = job.out.parent / "png"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    put_link(folder / name, link, canary)
    content = tree_hashes(job.out)
    outcome = job.run("sample", "--num-samples", 32, "--run", "r", "--force", "--png-dir", folder)
    assert tree_hashes(canary) == before
    if outcome.code:
        assert tree_hashes(job.out) == content
    else:
        assert not (folder / name).is_symlink()
    shutil.rmtree(folder)
    job.reset()
