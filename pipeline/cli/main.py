"""The `fairface` command: its group, and the one place that turns errors into messages and exit codes."""

import errno
import os
import signal
from types import FrameType

import click

from pipeline.cli.audit import audit
from pipeline.cli.bench import bench
from pipeline.cli.console import KEEPS_PROGRESS, printable
from pipeline.cli.detect import detect
from pipeline.cli.gan import sample, train
from pipeline.cli.label import label, labeller
from pipeline.cli.results import report, sql
from pipeline.cli.shards import shards, synth, verify
from pipeline.cli.study import study
from shards.errors import FairfaceError
from shards.processes import use_safe_path
from shards.workspace import is_unicode

use_safe_path()

# Torch's threads spin while they wait for each other, which made a step 40 times slower when another busy process
# shared the cores. A short spin keeps a fifth of the speed there and costs nothing otherwise. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

TERMINATED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h, "try again"
INTERRUPTED_EXIT_CODE = 130


class Terminated(BaseException):
    """Raised on SIGTERM. Like KeyboardInterrupt it is not an Exception, which a library might catch and ignore."""


def raise_terminated(_number: int, _frame: FrameType | None) -> None:
    """The handler of SIGTERM, which SLURM sends at a time limit."""
    raise Terminated


class Group(click.Group):
    """The group of all commands, listed in order of use; prints an error that the user can fix as a single line."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """The commands in the order in which they were added."""
        return list(self.commands)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments of all commands. Refuses text that is not UTF-8, which no document can contain."""
        if invalid := [text for text in args if not is_unicode(text)]:
            raise click.UsageError(f"{invalid[0]!r} is not valid UTF-8")
        return super().parse_args(context, args)

    def invoke(self, context: click.Context) -> object:
        """Run a command; errors that are bugs keep their traceback."""
        previous = signal.signal(signal.SIGTERM, raise_terminated)
        try:
            return super().invoke(context)
        except click.ClickException as error:
            vars(error)["message"] = printable(error.message)
            raise
        except (click.exceptions.Exit, click.Abort):
            raise
        except (KeyboardInterrupt, Terminated) as stop:
            keeps_progress = context.invoked_subcommand != "sql" and context.meta.get(KEEPS_PROGRESS, True)
            hint = " Progress is saved; rerun the same command to resume." if keeps_progress else ""
            click.echo(f"Interrupted.{hint}", err=True)
            context.exit(TERMINATED_EXIT_CODE if isinstance(stop, Terminated) else INTERRUPTED_EXIT_CODE)
        except Exception as error:
            message = error_message(error)
            if message is None or os.environ.get("FAIRFACE_DEBUG"):
                raise
            click.echo(f"Error: {printable(message)}", err=True)
            context.exit(error.exit_code if isinstance(error, FairfaceError) else 1)
        finally:
            signal.signal(signal.SIGTERM, previous)


def error_message(error: Exception) -> str | None:
    """The one-line message of an error that the user can fix; None for a bug."""
    if isinstance(error, FairfaceError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space, or write to another disk, and rerun the same command"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} can't be used: {error.strerror}"
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "not enough memory: use a smaller network, batch or image size"
    return None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": False})
@click.version_option(package_name="fairface-generator", prog_name="fairface")
def main() -> None:
    """Does a face generator trained on annotated, diverse faces produce balanced faces?

    Run `fairface shards`, `train`, `sample`, `label` and `report`, in this order. Without --data, synthetic faces
    with known attributes are used. Set FAIRFACE_DEBUG=1 to see the traceback of any error.
    """


for command in (synth, shards, verify, train, sample, label, labeller, report, audit, study, sql, detect, bench):
    main.add_command(command)


if __name__ == "__main__":
    main()
