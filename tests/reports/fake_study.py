"""A small study with known shares: its runs are copies of a run, labelled at random."""

import shutil

import numpy as np

from shards.documents import write_document
from shards.study import StudyArm, StudyDocument, StudyRun
from shards.workspace import Workspace
from tests.reports.fake_workspace import LABELLER, edit_config, make, people, replace_table, with_columns

WOMEN = {"natural": 0.8, "uniform": 0.55}  # mean share of each arm
SPREAD = 0.05  # standard deviation of the share between seeds


def make_study(out, *, arms=None, seeds=(1, 2, 3, 4), n=600, spread=SPREAD, failed=()):
    """An OUT folder with a study of arms (name -> share of women); the `failed` runs (arm, seed) have no labels."""
    arms = WOMEN if arms is None else arms
    if not out.exists():
        make(out)
    chance = np.random.default_rng(11)
    runs = []
    for seed in seeds:
        for number, (arm, women) in enumerate(arms.items()):
            run, share = f"study-{arm}-{seed}", women + spread * chance.standard_normal()
            if (arm, seed) in failed:
                runs.append(
                    StudyRun(arm=arm, seed=seed, run=run, trained_run=run, status="failed", reason="train: no <memory>")
                )
                continue
            add_labelled_run(out, run, women=share, n=n, seed=100 * number + seed)
            seconds = {"train": 400.0 + seed, "sample": 5.0, "label": 20.0}
            runs.append(StudyRun(arm=arm, seed=seed, run=run, trained_run=run, status="labelled", seconds=seconds))
    document = StudyDocument(
        name="study",
        seeds=list(seeds),
        samples=n,
        arms=[StudyArm(name=arm, train={"balance": arm, "steps": 2000}, sample={}) for arm in arms],
        label={},
        files={},
        runs=runs,
    )
    folder = Workspace(out).study("study")
    folder.folder.mkdir(parents=True)
    write_document(folder.document, document)
    return Workspace(out)


def add_labelled_run(out, run, *, women, n, seed):
    """A copy of the run `first` with other labels."""
    folder = out / "runs" / run
    shutil.copytree(out / "runs" / "first", folder)
    edit_config(out, run, name=run)
    about = {"source": "generated", "run": run, "labeller": LABELLER, "method": "clip", "size": 64}
    faces = people(np.random.default_rng(seed), n, women)
    replace_table(folder / "labels.parquet", with_columns(faces, **about))
    table = {"key": faces["key"], "index": list(range(n))}
    constant = {"run": run, "checkpoint": "step-10.pt", "seed": 7, "shard": "s.tar"}
    replace_table(folder / "samples.parquet", with_columns(table, **constant))
