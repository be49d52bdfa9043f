"""The command that trains and compares several conditions with several seeds: `study`."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from pipeline.cli import console
from pipeline.cli.gan import check_sample_options, check_train_options, sample, train
from pipeline.cli.label import check_label_options, label
from pipeline.cli.options import FILE, given_options, refuse_torchrun, workspace_option
from pipeline.study.options import StageOptions, StudyOptions
from pipeline.study.plan import StudyFile, Task, plan_study, read_study, tasks
from pipeline.study.progress import arm_workspace, find_arm, read_runs, remaining_seconds
from pipeline.study.runner import PRELOADED, StudyRunner
from pipeline.study.slurm import fairface_command, submission_script, submit
from shards.documents import write_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock, shared_lock
from shards.processes import new_pool, start_fork_server
from shards.study import StudyDocument, StudyRun
from shards.workspace import Workspace

OPTIONS: StudyOptions = {
    "train": StageOptions("train", train, check_train_options),
    "sample": StageOptions("sample", sample, check_sample_options),
    "label": StageOptions("label", label, check_label_options),
}
FREE_OPTIONS = ("balance", "balance-by", "lr", "beta1", "beta2", "ema", "flip")  # of training, which cost no time
REASONS_SHOWN = 5


@click.command()
@click.argument("file", metavar="STUDY.toml", type=FILE)
@workspace_option()
@click.option("--plan", is_flag=True, help="Only show the runs and estimate their time.")
@click.option("--slurm", is_flag=True, help="Print a script that submits the study to SLURM.")
@click.option("--submit", "submits", is_flag=True, help="Submit the study to SLURM.")
@click.option(
    "--task", type=click.IntRange(0, 10**6), help="Run only the training of this number, as a task of SLURM does."
)
@click.option("--report", "reports", is_flag=True, help="Only write the report, of the runs that are finished.")
def study(file: Path, workspace: Workspace, task: int | None, **modes: bool) -> None:
    """Train every arm of a study with every seed, sample and label, and compare the arms.

    Rerunning the same command runs what is missing. Several GPUs share the runs.
    """
    refuse_torchrun("study")
    if len(given := given_options() - {"file", "workspace"}) > 1:
        names = " and ".join(f"--{name.removesuffix('s')}" for name in sorted(given))
        raise click.UsageError(f"{names} are alternatives: use one of them")
    description = read_study(file, OPTIONS)
    document, notes = plan_study(workspace, description)
    document.runs = read_runs(workspace, document)
    if modes["slurm"] or modes["submits"]:
        submit_study(workspace, document, description, submits=modes["submits"])
        return
    for note in notes:
        console.echo(note)
    if task is not None:
        run_task(workspace, document, task)
        return
    if modes["plan"]:
        print_plan(document)
        echo_estimate(workspace, document, devices=find_devices(workspace, document))
        return
    folder = workspace.study(document.name)
    with exclusive_lock(folder.lock, "running the study"):
        write_document(folder.document, document)
        if not modes["reports"]:
            run_study(workspace, document)
        finish_study(workspace, document)


def run_command(arguments: list[str]) -> None:
    """Run a `fairface` command in this process, and exit with its code."""
    from pipeline.cli.main import main

    sys.argv = ["fairface", *arguments]  # config.json and others record it
    main(arguments, prog_name="fairface")


def run_study(workspace: Workspace, document: StudyDocument) -> None:
    """Run what a study lacks, and print how each run ended."""
    print_plan(document)
    remaining = [task for task in tasks(document) if is_unfinished(task)]
    if not remaining:
        return
    devices = find_devices(workspace, document)
    echo_estimate(workspace, document, devices=devices)

    def finished(run: StudyRun) -> None:
        write_document(workspace.study(document.name).document, document)
        print_run(document, run, devices=len(devices))

    make_runner(workspace, document, finished).run(remaining, devices)


def run_task(workspace: Workspace, document: StudyDocument, number: int) -> None:
    """Run one training of a study and the runs that sample it. Raises FairfaceError if one of these fails."""
    every = tasks(document)
    if number >= len(every):
        raise FairfaceError(f"--task {number}: the study has the trainings 0 to {len(every) - 1}")
    task = every[number]
    folder = workspace.study(document.name)
    folder.folder.mkdir(parents=True, exist_ok=True)
    if is_unfinished(task):
        start_fork_server(*PRELOADED)
        runner = make_runner(workspace, document, lambda run: print_run(document, run))
        with shared_lock(folder.lock, "running a task of the study"):
            runner.run([task], [None])
    if failed := [run for run in task.runs if run.status == "failed"]:
        raise FairfaceError(f"{describe_run(failed[0])} failed in {failed[0].reason}")


def make_runner(workspace: Workspace, document: StudyDocument, finished) -> StudyRunner:
    """The runner of a study's commands."""
    return StudyRunner(workspace, document, options=OPTIONS, execute=run_command, finished=finished)


def is_unfinished(task: Task) -> bool:
    """Whether a run of a training is not labelled."""
    return any(run.status != "labelled" for run in task.runs)


def submit_study(workspace: Workspace, document: StudyDocument, file: StudyFile, *, submits: bool) -> None:
    """Print the script that submits what a study lacks to SLURM, or run it."""
    folder = workspace.study(document.name)
    missing = [task.number for task in tasks(document) if is_unfinished(task)]
    if not missing:
        raise FairfaceError(f"every run of the study {document.name} is finished: `fairface study` writes its report")
    command = [fairface_command(), "study", str(file.path.absolute()), "--out", str(workspace.root.absolute())]
    script = submission_script(folder, command, tasks=missing, options=file.slurm)
    if not submits:
        click.echo(script, nl=False)
        return
    with exclusive_lock(folder.lock, "submitting the study"):
        write_document(folder.document, document)
        console.echo(submit(script))
