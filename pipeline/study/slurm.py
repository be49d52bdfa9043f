"""The script that submits a study to SLURM: an array of training runs, and a job that writes the report."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from shards.errors import FairfaceError
from shards.workspace import StudyFolder

DEFAULTS = {"nodes": "1", "ntasks": "1", "gpus-per-node": "1", "time": "04:00:00"}
GPU_OPTIONS = ("gpus", "gres", "gpu-bind", "gpu-freq", "mem-per-gpu", "cpus-per-gpu", "ntasks-per-gpu")


def submission_script(
    study: StudyFolder, command: Sequence[str], *, tasks: Sequence[int], options: Mapping[str, str]
) -> str:
    """The bash script that submits a study, of which the training runs `tasks` are not finished.

    `command` is the `fairface study` command without options that choose a part of the study. SLURM sends SIGTERM two
    minutes before the time limit; the task then saves its progress, ends with 75, and is requeued by its own index.
    """
    task = " ".join([*map(shlex.quote, command), "--task", '"$SLURM_ARRAY_TASK_ID"'])
    report = " ".join([*map(shlex.quote, command), "--report"])
    array = {"array": ",".join(map(str, tasks)), "signal": "TERM@120", "open-mode": "append"}
    own = DEFAULTS | dict(options)
    requeue = 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"'
    report_options = {name: value for name, value in own.items() if not name.startswith(GPU_OPTIONS)}
    run = [
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not inherit it" * ("cpus-per-task" in own),
        f'srun {task} || {{ code=$?; [ "$code" = 75 ] && {requeue}; exit "$code"; }}',
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# Submits the study {study.name}: an array of training runs, and then a job for the report.",
            "set -e",
            f"mkdir -p {shlex.quote(str(study.folder.absolute() / 'logs'))}",
            "job=$(sbatch --parsable <<'TASKS'",
            *_header(study, own | array, log="slurm-%A_%a.log"),
            *filter(None, run),
            "TASKS",
            ")",
            "sbatch --dependency=\"afterany:${job%%;*}\" <<'REPORT'",
            *_header(study, report_options, log="slurm-report-%j.log"),
            report,
            "REPORT",
            "",
        ]
    )


def fairface_command() -> str:
    """The absolute path of the `fairface` command that runs now."""
    return str(Path(sys.executable).parent / "fairface")


def submit(script: str) -> str:
    """Run a submission script; return what sbatch printed. Raises FairfaceError if sbatch is missing or fails."""
    result = subprocess.run(["bash"], input=script, capture_output=True, text=True, env=os.environ)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise FairfaceError(f"the study could not be submitted: {reason}")
    return result.stdout.strip()


def _header(study: StudyFolder, options: Mapping[str, str], *, log: str) -> list[str]:
    """The first lines of a job's script."""
    output = str(study.folder.absolute() / "logs" / log)
    lines = {"job-name": f"fairface-{study.name}", "output": output, **options}
    return [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={_quoted(value)}" for name, value in lines.items()),
        "#SBATCH --requeue",
    ]


def _quoted(value: str) -> str:
    """A value of an #SBATCH line, in double quotes if it has spaces."""
    return f'"{value}"' if " " in value else value
