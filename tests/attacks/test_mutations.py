"""No file below OUT that was changed, replaced or made by others leads to a traceback, a hang or a wrong result.

Every example changes one file of a finished job and runs a command that reads it. It succeeds, or ends with one line.
"""

import contextlib
import json
import random
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save

from models import clip
from pipeline.labelling import embedded
from shards import annotations
from shards.atomic_io import file_sha256
from shards.documents import file_hashes, write_document
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.attacks.finished_job import DETECT, TRAIN, Job, all_answers, run, write_tables
from tests.attacks.mutations import SPECIAL_FILES, changed_bytes, changed_json, changed_table, nested, put_special_file
from tests.reports.fake_workspace import make

pytestmark = pytest.mark.attack  # minutes
QUICK, ALL = 5, 60  # examples of each test that runs commands: in the ordinary suite, and in all of the attacks
QUICK_FILES, ALL_FILES = 30, 300  # of each test that only reads a file
SLOW = 5  # one of so many examples where a command takes seconds
counts = pytest.mark.parametrize("examples", [QUICK, pytest.param(ALL, marks=pytest.mark.attack)])
file_counts = pytest.mark.parametrize("examples", [QUICK_FILES, pytest.param(ALL_FILES, marks=pytest.mark.attack)])
TRIED = {
    "changed bytes of Parquet files, tars, indices, checkpoints and weights": ALL,
    "changed JSON documents": ALL,
    "Parquet files of another shape or with other values, whose documents describe them": ALL,
    "files in the place of others": ALL,
    "folders, pipes, devices, links and nothing in the place of files": ALL,
    "changed CSV files for `label --import`": ALL_FILES,
    "changed CSV files for `detect --import`": ALL_FILES // SLOW,
    "changed CSV files for `train --balance`": ALL_FILES,
    "changed CSV files for `audit import`": ALL_FILES,
    "changed annotation tables": ALL_FILES,
    "changed files of prompts, and open_clip_config.json": 3 * ALL_FILES,
    "changed weights of the embedded labeller, and their document": 2 * (ALL_FILES // SLOW),
    "changed lists, documents and tables of synthetic faces": ALL_FILES // SLOW,
}
# The commands that read a file, by the folder that it is in. All of them find nothing to do in the finished job.
READERS = {
    "shards": (
        ("verify", "--workers", 1),
        ("sql", "composition"),
        ("sql", "rejects"),
        ("sql", "labellers"),
        ("sql", "distribution"),
        ("train", *TRAIN),
        ("label", "--run", "r"),
        ("report", "--run", "r"),
        ("shards", "--shard-images", 100, "--workers", 1, "--data", "../faces"),
    ),
    "runs": (
        ("verify", "--workers", 1),
        ("sql", "runs"),
        ("sql", "loss_curves"),
        ("sql", "distribution", "--param", "source=generated"),
        ("sql", "confidence"),
        ("train", *TRAIN),
        ("sample", "--num-samples", 64, "--run", "r"),
        ("label", "--run", "r"),
        ("audit", "page", "--run", "r"),
        ("sql", "audit_agreement"),
        ("report", "--run", "r"),
    ),
    "detectors": (
        ("verify", "--workers", 1),
        ("sql", "fairness"),
        ("sql", "detection_metrics"),
        ("detect", *DETECT),
        ("report", "--run", "r"),
    ),
    "report": (
        ("verify", "--workers", 1),
        ("sql", "comparison"),
        ("sql", "quality"),
        ("sql", "confusion"),
        ("report", "--run", "r"),
    ),
}


def attack(job: Job, examples: int, test) -> None:
    """Run `test(draw)` on `examples` copies of the job."""

    def test_copy(draw):
        job.reset()
        test(draw)

    attack_files(examples, test_copy)
    job.reset()


def attack_files(examples: int, test) -> None:
    """Run `test(draw)` with `examples` different draws of hypothesis, always the same ones."""

    @seed(15)
    @settings(
        max_examples=examples,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attack_once(data):
        test(data.draw)

    attack_once()


def draw_reader(draw, name: str) -> tuple[object, ...]:
    *quick, report = READERS[Path(name).parts[0]]
    return draw(st.sampled_from([*quick * 4, report]))  # which takes seconds


@counts
def test_changed_bytes_are_named_by_verify_and_never_change_a_result(job, examples):
    verify = ("verify", "--workers", 1)
    assert job.undisturbed(verify).code == 0
    files = job.files(".parquet", ".pt", ".safetensors", ".tar", ".idx")
    assert len(files) > 30

    def test(draw):
        name = draw(st.sampled_from(files))
        before = (job.out / name).read_bytes()
        changed = draw(changed_bytes(before))
        if changed == before:
            return
        words = draw_reader(draw, name)
        expected = job.undisturbed(words)
        job.replace(name, changed)
        verified = job.run(*verify)
        assert verified.code == 1
        assert Path(name).name in verified.printed
        outcome = job.run(*words)
        if outcome.code == 0 and words[0] not in ("sql", "verify"):
            # nothing that the file was read for, or it was written again
            assert outcome.printed == expected.printed or job.run(*verify).code == 0, outcome.printed

    attack(job, examples, test)


@counts
def test_changed_documents_are_read_or_refused_in_one_line(job, examples):
    files = job.files(".json")
    assert len(files) > 12

    def test(draw):
        name = draw(st.sampled_from(files))
        before = (job.out / name).read_bytes()
        words = draw_reader(draw, name)
        if draw(st.booleans()):
            job.replace(name, draw(changed_json(before.decode())).encode(errors="surrogatepass"))
        else:
            job.replace(name, draw(changed_bytes(before)))
        job.run(*words)

    attack(job, examples, test)


@counts
def test_tables_of_others_are_read_or_refused_in_one_line(job, examples):
    """Tables of another shape that their documents describe, as another program may write them."""
    files = job.files(".parquet")

    def test(draw):
        name = draw(st.sampled_from(files))
        words = draw_reader(draw, name)
        table = draw(changed_table(pl.read_parquet(job.out / name, glob=False)))
        (job.out / name).unlink()
        table.write_parquet(job.out / name)
        describe(job.out, name)
        job.run(*words)

    attack(job, examples, test)


def describe(out: Path, name: str) -> None:
    """Write the hash of a changed file into the documents that describe it."""
    path = out / name
    for document in path.parent.glob("*.json"):
        content = json.loads(document.read_text())
        if isinstance(content, dict) and path.name in (content.get("files") or {}):
            content["files"][path.name] = file_sha256(path)
            document.unlink()
            document.write_text(json.dumps(content))


@counts
def test_files_of_others_are_refused_in_one_line(job, examples):
    """Files replaced by others of the same kind, such as those of another run."""
    files = job.files(".parquet", ".pt", ".json", ".safetensors", ".tar", ".idx")

    def test(draw):
        name = draw(st.sampled_from(files))
        other = draw(st.sampled_from([path for path in files if Path(path).suffix == Path(name).suffix]))
        words = draw_reader(draw, name)
        job.replace(name, (job.pristine / other).read_bytes())
        if draw(st.booleans()):
            describe(job.out, name)
        job.run(*words)

    attack(job, examples, test)


@counts
def test_anything_but_a_file_is_refused_in_one_line(job, examples):
    files = job.files(".parquet", ".pt", ".json", ".safetensors", ".tar", ".idx")
    cases = [(name, kind, words) for name in files for kind in SPECIAL_FILES for words in READERS[name.split("/")[0]]]
    for name, kind, words in random.Random(15).sample(cases, examples):
        job.reset()
        put_special_file(job.out / name, kind)
        job.run(*words)
    job.reset()


CELLS = (
    "",
    "0",
    "1",
    "-1",
    "nan",
    "inf",
    "1e400",
    "9" * 30,
    "female",
    "female-dark",
    "x" * 1000,
    '"',
    '"a\nb"',
    "\0",
    "=1+1",
    "\ud800",
    "é",
)
USER_TABLES = {
    "labels.csv": ("label", "--import", "{file}", "--run", "new"),
    "predictions.csv": ("detect", "--import", "{file}", "--name", "new"),
    "shares.csv": ("train", "--balance", "{file}", "--run", "new"),
}


@st.composite
def changed_csv(draw: st.DrawFn, text: str) -> bytes:
    """A CSV with another cell, line or column, or with changed bytes."""
    rows = [line.split(",") for line in text.splitlines()]
    row = draw(st.sampled_from(rows))
    column = draw(st.integers(0, len(row) - 1))
    change = draw(st.sampled_from(["cell", "cell", "cell", "header", "longer", "shorter", "repeat", "bytes", "binary"]))
    if change == "bytes":
        return draw(changed_bytes(text.encode()))
    if change == "binary":
        return draw(st.binary(max_size=400))
    if change == "cell":
        row[column] = draw(st.one_of(st.sampled_from(CELLS), st.text(max_size=5)))
    elif change == "header":
        rows[0][column % len(rows[0])] = draw(st.sampled_from([*rows[0], *CELLS]))
    elif change == "longer":
        row.append("x")
    elif change == "shorter":
        del row[column]
    else:
        rows.append(list(row))
    return "\n".join(map(",".join, rows)).encode(errors="surrogatepass")


@pytest.mark.parametrize("name", USER_TABLES)
@file_counts
def test_tables_of_the_user_are_read_or_refused_in_one_line(tmp_path, name, examples):
    write_tables(tmp_path)
    (tmp_path / "shares.csv").write_text("group,share\nfemale-dark,0.5\nmale-light,1\n")
    text = (tmp_path / name).read_text()
    file, out = tmp_path / "mutated" / name, tmp_path / "out"
    file.parent.mkdir()
    words = [word.replace("{file}", str(file)) for word in USER_TABLES[name]]

    def test(draw):
        file.write_bytes(draw(changed_csv(text)))
        shutil.rmtree(out, ignore_errors=True)
        if run(*words, "--out", out).code:
            assert not list(out.rglob("*.parquet"))

    attack_files(examples // SLOW if words[0] == "detect" else examples, test)


@file_counts
def test_answers_of_raters_are_read_or_refused_in_one_line(tmp_path, examples):
    out, file = make(tmp_path / "out"), tmp_path / "answers.csv"
    assert run("audit", "plan", "--labels", 20, "--out", out).code == 0
    audit = Workspace(out).run("first").audit
    text = all_answers(Workspace(out).run("first"))

    def test(draw):
        file.write_bytes(draw(changed_csv(text)))
        for path in (audit.ratings_document, audit.ratings):
            path.unlink(missing_ok=True)
        if run("audit", "import", file, "--out", out).code:
            assert not audit.ratings.exists()

    attack_files(examples, test)


@file_counts
def test_annotation_tables_are_read_or_refused_in_one_line(tmp_path, examples):
    rows = [f"GANs/{number}.jpg,{number % 2},{number % 5},{number % 10 + 1}" for number in range(20)]
    text = "\n".join(["Image Path,Gender,Age,Skin Tone", *rows, ""])

    def test(draw):
        (tmp_path / "train.csv").write_bytes(draw(changed_csv(text)))
        refused_or_read(lambda: annotations.read_tables([tmp_path / "train.csv"]))

    attack_files(examples, test)


@file_counts
def test_prompts_and_settings_of_weights_are_read_or_refused_in_one_line(tmp_path, examples):
    prompts = {"templates": ["a photo of {}"], "gender": {"female": "a woman", "male": "a man"}}
    config = {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": 32}}
    weights, toml = tmp_path / "weights.pt", tmp_path / "prompts.toml"

    def test(draw):
        (tmp_path / "open_clip_config.json").write_bytes(
            draw(changed_json(json.dumps(config))).encode(errors="surrogatepass")
        )
        refused_or_read(lambda: clip.preprocess_config("ViT-B-32", str(weights), weights))
        changed = draw(changed_json(json.dumps(prompts)))
        text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in json_object(changed).items())
        toml.write_bytes(
            draw(st.sampled_from([text, changed, f"templates = {nested(5_000)}"])).encode(errors="replace")
        )
        refused_or_read(lambda: clip.read_prompts(toml))
        toml.write_bytes(draw(changed_bytes(clip.PROMPTS.read_bytes())))
        refused_or_read(lambda: clip.read_prompts(toml))

    attack_files(examples, test)


def json_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except RecursionError:
        return {}
    return value if isinstance(value, dict) else {}


@file_counts
def test_a_cached_labeller_is_read_or_fitted_again(tmp_path, monkeypatch, quick_labeller, examples):
    path = tmp_path / "labeller.safetensors"
    path.write_bytes(save({"weight": torch.ones(100)}))
    document = path.with_suffix(".json")
    accuracy = {"gender": 0.9}
    write_document(
        document,
        embedded.EmbeddedDocument(
            held_out=1, accuracy=accuracy, balanced_accuracy=accuracy, steps=1, faces=1, seed=0, seconds=1.0,
            files=file_hashes(path),
        ),
    )  # fmt: skip
    originals = {path: path.read_bytes(), document: document.read_bytes()}
    assert embedded.is_intact(path)
    monkeypatch.setattr(embedded, "fit", lambda *_, **__: path)

    def test(draw):
        for file, content in originals.items():
            file.write_bytes(content)
        changed = draw(changed_bytes(originals[path]))
        path.write_bytes(changed)
        assert embedded.is_intact(path) == (changed == originals[path])
        refused_or_read(lambda: embedded.load_embedded(progress=False))
        document.write_bytes(draw(changed_json(originals[document].decode())).encode(errors="surrogatepass"))
        embedded.is_intact(path)

    attack_files(examples // SLOW, test)


@file_counts
def test_a_changed_list_of_synthetic_faces_loses_nothing(tmp_path, examples):
    """`synth` knows by its list and its document what it may replace."""
    pristine, folder = tmp_path / "pristine", tmp_path / "faces"
    assert run("synth", "--count", 4, "--size", 32, "--workers", 1, "--data", pristine).code == 0
    (pristine / "GANs" / "mine.jpg").write_text("mine")
    (pristine / "mine.csv").write_text("mine")

    def test(draw):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine, folder)
        file = folder / draw(st.sampled_from(["synthetic.json", "synthetic.sha256", "train.csv"]))
        changed = draw(changed_bytes(file.read_bytes()))
        if file.suffix == ".json" and draw(st.booleans()):
            changed = draw(changed_json(file.read_text())).encode(errors="surrogatepass")
        file.write_bytes(changed)
        outcome = run("synth", "--count", 4, "--size", 32, "--workers", 1, "--data", folder)
        if outcome.code:
            assert file.read_bytes() == changed
        assert (folder / "GANs" / "mine.jpg").read_text() == (folder / "mine.csv").read_text() == "mine"

    attack_files(examples // SLOW, test)


def refused_or_read(read) -> None:
    """Call a function that may raise FairfaceError with one line, and nothing else."""
    with contextlib.suppress(FairfaceError):
        read()
