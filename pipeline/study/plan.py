"""Reads a study's TOML, and plans its runs; a plan of which runs began may only be extended."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.study.options import StudyOptions, suggestion
from pipeline.study.progress import has_started
from shards.atomic_io import file_sha256
from shards.documents import load_shards_json, read_document
from shards.errors import FairfaceError
from shards.study import StudyArm, StudyDocument, StudyRun
from shards.toml_tables import parse_toml, read_text
from shards.workspace import Workspace

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}")  # of a study or an arm: no dots, which separate them in a run's
KEYS = dict.fromkeys(("name", "seeds", "samples", "train", "sample", "label", "slurm", "arms"))
ARM_KEYS = dict.fromkeys(("train", "sample", "out"))
DEFAULT_SAMPLES = 2000
MAX_SEED, MAX_SAMPLES = 2**63 - 1, 10**8
SBATCH_OPTION = re.compile(r"[a-z][a-z-]*")
# options of sbatch that the study sets itself
RESERVED_SBATCH = ("array", "dependency", "job-name", "output", "error", "open-mode", "signal", "requeue", "parsable")


@dataclass(frozen=True)
class StudyFile:
    """The content of a study's TOML."""

    path: Path
    document: StudyDocument
    slurm: dict[str, str]  # options of sbatch, without dashes


@dataclass(frozen=True)
class Task:
    """The runs that share a training run, which run one after the other."""

    number: int  # from 0 in the study: the index in SLURM's array
    runs: list[StudyRun]


def read_study(path: Path, options: StudyOptions) -> StudyFile:
    """Read and check a study's TOML; the runs have not been compared with those of an earlier call.

    Raises FairfaceError, which names the file and the place, for anything in it that is not valid.
    """
    try:
        table = parse_toml(read_text(path))
        _check_keys(table, KEYS, "")
        name = table.get("name", path.stem)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise FairfaceError(f"name {name!r:.80}: use at most 60 letters, digits, - and _")
        arms = list(_read_arms(table, options))
        label = options["label"].parse(_table(table, "label", ""), "label")
        document = StudyDocument(
            name=name,
            seeds=_read_seeds(table),
            samples=_read_samples(table),
            arms=arms,
            label=label,
            files=_named_files([label, *(values for arm in arms for values in (arm.train, arm.sample))]),
            runs=[],
        )
        return StudyFile(path, document, _read_slurm(table))
    except FairfaceError as error:
        raise FairfaceError(f"{path}: {error}") from error


def plan_study(workspace: Workspace, file: StudyFile) -> tuple[StudyDocument, list[str]]:
    """The study with its runs, and notes on what is new in it since runs of it began.

    Raises FairfaceError if images are not packed, if a name is too long, or if anything that began runs depend on has
    changed.
    """
    document, path = file.document, file.path
    for arm in document.arms:
        load_shards_json(document.workspace_of(arm.name, workspace).shards)
    existing = read_document(workspace.study(document.name).document, StudyDocument)
    document.runs = _plan_runs(document, existing)
    for run in document.runs:
        workspace.run(run.run)  # checks the name
    if existing is None:
        return document, []
    started = [run for run in existing.runs if has_started(workspace, existing, run)]
    if started:
        _check_unchanged(document, existing, started=started, path=path)
    return document, _describe_new(document, existing) if started else []


def tasks(document: StudyDocument) -> list[Task]:
    """The runs that share each training run: by seed, so that an unfinished study has complete pairs."""

    def training(run: StudyRun) -> tuple[int, str]:
        return document.seeds.index(run.seed), run.trained_run

    order = list(dict.fromkeys(map(training, document.runs)))
    grouped = groupby(sorted(document.runs, key=lambda run: order.index(training(run))), key=training)
    # the run that is trained comes first
    return [
        Task(number, sorted(runs, key=lambda run: run.run != run.trained_run))
        for number, (_, runs) in enumerate(grouped)
    ]


def _plan_runs(document: StudyDocument, existing: StudyDocument | None) -> list[StudyRun]:
    """The runs by seed and arm; arms with the same training share that of the first, or of the one that has started."""
    known = [arm.name for arm in existing.arms] if existing else []
    trained: dict[str, str] = {}  # training options -> arm
    for arm in sorted(document.arms, key=lambda arm: known.index(arm.name) if arm.name in known else len(known)):
        trained.setdefault(_training_key(arm), arm.name)

    def name(arm: str, seed: int) -> str:
        return f"{document.name}.{arm}.{seed}"

    return [
        StudyRun(
            arm=arm.name,
            seed=seed,
            run=name(arm.name, seed),
            trained_run=name(trained[_training_key(arm)], seed),
        )
        for seed in document.seeds
        for arm in document.arms
    ]


def _training_key(arm: StudyArm) -> str:
    return json.dumps([arm.out, arm.train], sort_keys=True)


def _check_unchanged(document: StudyDocument, existing: StudyDocument, *, started: list[StudyRun], path: Path) -> None:
    """Raise FairfaceError if a study of which runs have started would no longer be the same for these runs."""
    arms, changes = {arm.name: arm for arm in document.arms}, []
    for old in existing.arms:
        if not any(run.arm == old.name for run in started):
            continue
        if old.name not in arms:
            changes.append(f"arm {old.name} is gone")
        elif differing := _differing_options(old, arms[old.name]):
            changes.append(f"arm {old.name} has another {', '.join(differing)}")
    gone = sorted({run.seed for run in started} - set(document.seeds))
    changes += [f"seed {seed} is gone" for seed in gone]
    if document.samples != existing.samples:
        changes.append(f"samples is {document.samples:,} instead of {existing.samples:,}")
    if document.label != existing.label:
        changes.append("label has other options")
    changed = [name for name, digest in existing.files.items() if document.files.get(name, digest) != digest]
    changes += [f"{name} has another content" for name in changed]
    if changes:
        raise FairfaceError(
            f"{path} has changed since runs of the study {document.name} began ({'; '.join(changes)}): undo the "
            "change, or start another study under another name"
        )


def _differing_options(old: StudyArm, new: StudyArm) -> list[str]:
    """The names of the options in which two versions of an arm differ."""
    pairs = [(old.train, new.train), (old.sample, new.sample), ({"out": old.out}, {"out": new.out})]
    return [name for a, b in pairs for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def _describe_new(document: StudyDocument, existing: StudyDocument) -> list[str]:
    """What a study has in addition to an earlier version of it, in words."""
    known = {arm.name for arm in existing.arms}
    arms = [arm.name for arm in document.arms if arm.name not in known]
    seeds = [str(seed) for seed in document.seeds if seed not in existing.seeds]
    new = [f"arm {name}" for name in arms] + [f"seed {seed}" for seed in seeds]
    return [f"new since the study began: {', '.join(new)}; only their runs are added"] if new else []


def _check_keys(table: Mapping[str, Any], known: Mapping[str, Any], place: str) -> None:
    """Raise FairfaceError for an unknown key of a table."""
    for key in table.keys() - known.keys():
        raise FairfaceError(f"{place}{key[:80]!r} is not a key of a study: {suggestion(key, known)}")


def _table(table: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    """A table within a table, empty if it is missing."""
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise FairfaceError(f"{place}{key} is not a table of options")
    return value


def _read_arms(table: Mapping[str, Any], options: StudyOptions) -> Iterator[StudyArm]:
    """Yield the arms, each with the options of all arms and its own."""
    common = {stage: options[stage].parse(_table(table, stage, ""), stage) for stage in ("train", "sample")}
    arms = _table(table, "arms", "")
    if not arms:
        raise FairfaceError("it has no arms: add tables such as [arms.natural] and [arms.uniform.train]")
    seen: dict[str, str] = {}  # content -> arm
    for name, own in arms.items():
        place = f"arms.{name[:80]}"
        if not NAME.fullmatch(name):
            raise FairfaceError(f"{place}: name an arm by at most 60 letters, digits, - and _")
        if not isinstance(own, dict):
            raise FairfaceError(f"{place} is not a table")
        for key in own.keys() - ARM_KEYS.keys():
            for stage in common:
                if key.replace("_", "-") in options[stage].options:
                    raise FairfaceError(f"{place}: {key!r} is an option of {stage}: write it below [{place}.{stage}]")
        _check_keys(own, ARM_KEYS, f"{place}: ")
        out = own.get("out")
        if not (out is None or (isinstance(out, str) and out.isprintable() and out)):
            raise FairfaceError(f"{place}: out is not the name of a folder")
        merged = {}
        for stage, shared in common.items():
            parsed = options[stage].parse(_table(own, stage, f"{place}."), f"{place}.{stage}")
            merged[stage] = shared | parsed
            options[stage].check_together(merged[stage], f"{place}.{stage}")
        arm = StudyArm(name=name, out=out, **merged)
        content = json.dumps([arm.out, arm.train, arm.sample], sort_keys=True)
        if content in seen:
            raise FairfaceError(f"the arms {seen[content]} and {name} are alike: give one of them other options")
        seen[content] = name
        yield arm


def _read_seeds(table: Mapping[str, Any]) -> list[int]:
    seeds = table.get("seeds")
    if not isinstance(seeds, list) or not seeds:
        raise FairfaceError("seeds is missing: list the seeds, as in seeds = [0, 1, 2, 3, 4, 5]")
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:
            raise FairfaceError(f"seeds: {seed!r:.80} is not a whole number from 0 to {MAX_SEED}")
        if seeds.count(seed) > 1:
            raise FairfaceError(f"seeds: {seed} is listed twice, and would be trained only once")
    return seeds


def _read_samples(table: Mapping[str, Any]) -> int:
    samples = table.get("samples", DEFAULT_SAMPLES)
    if type(samples) is not int or not 1 <= samples <= MAX_SAMPLES:
        raise FairfaceError(f"samples: {samples!r:.80} is not a number of images from 1 to {MAX_SAMPLES:,}")
    return samples


def _read_slurm(table: Mapping[str, Any]) -> dict[str, str]:
    """The options of sbatch."""
    options = {}
    for name, value in _table(table, "slurm", "").items():
        if name in RESERVED_SBATCH:
            raise FairfaceError(f"slurm: the study itself sets {name}")
        if not SBATCH_OPTION.fullmatch(name):
            raise FairfaceError(f"slurm: {name[:80]!r} is not an option of sbatch, such as time or gpus-per-node")
        is_text = isinstance(value, str) and value.isprintable() and value.strip() == value != ""
        if not (is_text or type(value) is int):
            raise FairfaceError(f"slurm: {name} is {value!r:.80}, and not a text on one line or a whole number")
        options[name] = str(value)
    return options


def _named_files(tables: list[dict[str, Any]]) -> dict[str, str]:
    """The SHA-256 of each file that is the value of an option, by path."""
    values = {value for table in tables for value in table.values() if isinstance(value, str)}
    return {name: file_sha256(Path(name)) for name in sorted(values) if Path(name).is_file()}
