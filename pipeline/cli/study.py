"""The command that trains and compares several conditions with several seeds: `study`."""

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.cli import console
from pipeline.cli.gan import check_sample_options, check_train_options, sample, train
from pipeline.cli.label import check_label_options, label
from pipeline.cli.options import FILE, given_options, refuse_torchrun, workspace_option
from pipeline.study.options import StageOptions, StudyOptions
from pipeline.study.plan import StudyFile, Task, plan_study, read_study, tasks
from pipeline.study.progress import read_runs, remaining_seconds
from pipeline.study.runner import PRELOADED, StudyRunner
from pipeline.study.slurm import fairface_command, submission_script, submit
from shards.atomic_io import fingerprint
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
REASONS_SHOWN = 5


@click.command()
@click.argument("file", metavar="STUDY.toml", type=FILE)
@workspace_option()
@click.option("--plan", is_flag=True, help="Only show the runs and estimate their time.")
@click.option("--slurm", is_flag=True, help="Print a script that submits the study to SLURM.")
@click.option("--submit", "submits", is_flag=True, help="Submit the study to SLURM.")
@click.option(
    "--task", type=click.IntRange(0, 10**6), help="Run only the training run with this number, as a task of SLURM does."
)
@click.option("--report", "reports", is_flag=True, help="Only write the report, of the runs that are finished.")
def study(file: Path, workspace: Workspace, task: int | None, **modes: bool) -> None:
    """Train several arms with several seeds and compare them.

    Rerunning the same command runs what is missing. Several GPUs share the runs.
    """
    refuse_torchrun("study")
    if len(given := given_options() - {"file", "workspace"}) > 1:
        names = " and ".join(f"--{name.removesuffix('s')}" for name in sorted(given))
        raise click.UsageError(f"{names} are alternatives: use one of them")
    description = read_study(file, OPTIONS)
    document, notes = plan_study(workspace, description)
    document.runs = read_runs(workspace, document)
    if task is None and not modes["reports"]:
        check_arms_differ(workspace, document)
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
        trained = {} if has_times(document) else measure_arms(workspace, document)
        print_remaining(document, trained, devices=len(find_devices(document)))
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
    devices = find_devices(document)
    print_remaining(document, {}, devices=len(devices))

    def finished(run: StudyRun) -> None:
        write_document(workspace.study(document.name).document, document)
        print_run(document, run, devices=len(devices))

    make_runner(workspace, document, finished).run(remaining, devices)


def run_task(workspace: Workspace, document: StudyDocument, number: int) -> None:
    """Run one training run of a study and the runs that sample it. Raises FairfaceError if one of these fails."""
    every = tasks(document)
    if number >= len(every):
        raise FairfaceError(f"--task {number}: the study has the training runs 0 to {len(every) - 1}")
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


def make_runner(workspace: Workspace, document: StudyDocument, finished: Callable[[StudyRun], None]) -> StudyRunner:
    """The runner of a study's commands."""
    return StudyRunner(workspace, document, options=OPTIONS, execute=run_command, finished=finished)


def is_unfinished(task: Task) -> bool:
    """Whether a run of a task is not labelled."""
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


def finish_study(workspace: Workspace, document: StudyDocument) -> None:
    """Write the state and the report of a study; raise FairfaceError if runs of it are missing."""
    from reports.study_report import write_study_report

    write_document(workspace.study(document.name).document, document)
    labelled = [run for run in document.runs if run.status == "labelled"]
    if labelled:
        console.echo(str(write_study_report(workspace, document.name)))
    if missing := [run for run in document.runs if run.status != "labelled"]:
        for run in [run for run in missing if run.reason][:REASONS_SHOWN]:
            console.warn(f"{describe_run(run)}: {run.status} in {run.reason}")
        for arm in document.arms:
            if all(run.status == "failed" for run in document.runs if run.arm == arm.name):
                console.warn(f"every run of the arm {arm.name} failed: the report says nothing about it")
        consequence = "the report is without them" if labelled else "there is nothing to report"
        raise FairfaceError(
            f"{len(missing)} of {len(document.runs)} runs of the study {document.name} are not finished, and "
            f"{consequence}: rerun the same command to run them again"
        )


def ask_torch(function: str, calls: list[tuple[Any, ...]]) -> list[Any]:
    """The results of a function of pipeline.study.cost in a process that has torch: this one does without."""
    start_fork_server(*PRELOADED, "pipeline.study.cost")
    with new_pool(1) as pool:
        return [pool.submit(call_cost, function, *arguments).result() for arguments in calls]


def call_cost(function: str, *arguments: Any) -> Any:
    """Call a function of pipeline.study.cost."""
    from pipeline.study import cost

    return getattr(cost, function)(*arguments)


def find_devices(document: StudyDocument) -> list[str | None]:
    """The devices that runs are spread over: every GPU if there are several and no option names a device."""
    tables = [document.label, *(table for arm in document.arms for table in (arm.train, arm.sample))]
    if any("device" in table for table in tables):
        start_fork_server(*PRELOADED)
        return [None]
    (count,) = ask_torch("gpu_count", [()])
    return [f"cuda:{number}" for number in range(count)] if count > 1 else [None]


def training_parameters(workspace: Workspace, document: StudyDocument) -> list[tuple[Any, ...]]:
    """The workspace of each arm, and the parameters of its `fairface train`."""
    return [
        (
            document.workspace_of(arm.name, workspace),
            OPTIONS["train"].parameters(arm.train, f"arms.{arm.name}.train"),
        )
        for arm in document.arms
    ]


def check_arms_differ(workspace: Workspace, document: StudyDocument) -> None:
    """Raise FairfaceError for two arms that differ only by an option that one of them sets to its default."""
    seen: dict[str, str] = {}  # content -> arm
    resolved = ask_torch("training_fingerprint", training_parameters(workspace, document))
    for arm, training in zip(document.arms, resolved, strict=True):
        sampling = OPTIONS["sample"].parameters(arm.sample, f"arms.{arm.name}.sample")
        content = fingerprint([arm.out, training, sampling])
        if content in seen:
            raise FairfaceError(
                f"the arms {seen[content]} and {arm.name} are alike, because options that only one of them sets have "
                "their default values: give one of them other options"
            )
        seen[content] = arm.name


def measure_arms(workspace: Workspace, document: StudyDocument) -> dict[str, float]:
    """The seconds of each arm's training runs, estimated by a trial."""
    seconds = ask_torch("training_seconds", training_parameters(workspace, document))
    return dict(zip((arm.name for arm in document.arms), seconds, strict=True))


def has_times(document: StudyDocument) -> bool:
    """Whether a finished run shows how long a training run takes."""
    return any("train" in run.seconds for run in document.runs if run.status == "labelled")


def print_plan(document: StudyDocument) -> None:
    """Print the arms with their options, and how many runs are left."""
    arms, seeds = len(document.arms), len(document.seeds)
    console.echo(
        f"{document.name}: {arms} arm{'s' * (arms > 1)} x {seeds} seed{'s' * (seeds > 1)} = {arms * seeds} runs with "
        f"{document.samples:,} samples each"
    )
    for arm in document.arms:
        words = [*OPTIONS["train"].arguments(arm.train), *OPTIONS["sample"].arguments(arm.sample)]
        if arm.out:
            words += ["--out", arm.out]
        console.echo(f"  {arm.name}: {shlex.join(words)}")
    if seeds == 1:
        console.warn(
            "with one seed no interval can be given, and no difference between arms is distinguishable from chance"
        )


def print_remaining(document: StudyDocument, trained: Mapping[str, float], *, devices: int) -> None:
    """Print how many runs are left, and about how long they will take."""
    unfinished, runs = sum(map(is_unfinished, tasks(document))), sum(run.status != "labelled" for run in document.runs)
    if not runs:
        console.echo("  all runs are finished")
        return
    counts = f"{unfinished} training run{'s' * (unfinished > 1)} and {runs} set{'s' * (runs > 1)} of samples to go"
    console.echo(f"  {counts}: {describe_remaining(document, trained, devices=devices)}")


def describe_remaining(document: StudyDocument, trained: Mapping[str, float], *, devices: int) -> str:
    """About how long the rest of a study will take, in words."""
    seconds = remaining_seconds([task.runs for task in tasks(document)], trained)
    known = [value for value in seconds.values() if value is not None]
    if not known:
        return "the first finished run shows how long they take"
    unknown = [stage for stage, value in seconds.items() if value is None]
    total = sum(known) / devices
    minutes = round(total / 60)
    about = f"about {minutes} minute{'s' * (minutes > 1)}" if total < 2 * 3600 else f"about {total / 3600:,.1f} hours"
    about = "less than a minute" if total < 60 else about
    shared = f" on {devices} GPUs" if devices > 1 else ""
    missing = f", and the time of {' and '.join(unknown)}, which the first run shows" if unknown else ""
    return f"{about}{shared}{missing}"


def describe_run(run: StudyRun) -> str:
    """An arm and a seed in words."""
    return f"{run.arm}, seed {run.seed}"


def print_run(document: StudyDocument, run: StudyRun, *, devices: int = 1) -> None:
    """Print how a run ended, and how long the others will take."""
    if run.status == "failed":
        console.warn(f"{describe_run(run)} failed in {run.reason}")
        return
    times = ", ".join(f"{stage} {seconds:,.0f} s" for stage, seconds in run.seconds.items())
    done = sum(one.status == "labelled" for one in document.runs)
    rest = "" if done == len(document.runs) else f"; to go: {describe_remaining(document, {}, devices=devices)}"
    console.echo(f"  {describe_run(run)}: {times} ({done} of {len(document.runs)} runs{rest})")
