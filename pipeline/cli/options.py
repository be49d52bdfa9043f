"""Options that several commands share, their types, and helpers that turn them into configs."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.cli.console import printable
from shards.errors import FairfaceError
from shards.workspace import Workspace, check_name, is_unicode

# The modules that define these names load torch or DALI, which --help does without; a test compares them.
PERTURBATION_NAMES = (
    "gaussian_blur",
    "jpeg_compression",
    "hue_saturation_value",
    "brightness_contrast",
    "random_crop",
    "rotation",
)


class Number(click.FloatRange):
    """A finite number in a range; click's own ranges accept NaN, which is neither below nor above a bound."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """The number. Fails for one that is out of range, NaN or infinite."""
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", parameter, context)
        return number


class NonEmptyPath(click.Path):
    """A path; click takes an empty one, such as that of a variable that is not set, for the working folder."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path. Fails for an empty one."""
        if value == "":
            self.fail("the path is empty", parameter, context)
        return super().convert(value, parameter, context)


FOLDER = NonEmptyPath(path_type=Path, file_okay=False)
FILE = NonEmptyPath(path_type=Path, dir_okay=False)
ANY_SEED = click.IntRange(0, 2**63 - 1)  # fits SQL's bigint
STEPS = click.IntRange(1, 10**9 - 1)  # file names of checkpoints have nine digits
EPOCHS = click.IntRange(1, 10**6)
IMAGES = click.IntRange(1, 10**8)
MAX_BATCH = 2**16
POSITIVE = Number(0, min_open=True)
BELOW_ONE = Number(0, 1, max_open=True)


def workspace_callback(_context: click.Context, _parameter: click.Parameter, value: Path) -> Workspace:
    """The workspace below --out."""
    try:
        path = str(value.absolute())
    except FileNotFoundError as error:
        raise click.BadParameter("the working folder has been removed: change to another one") from error
    if not is_unicode(path):
        raise click.BadParameter(f"{path!r} is not valid UTF-8: choose another folder")
    if printable(path) != path or set(path) & set("\n\t"):  # it is part of many messages
        raise click.BadParameter(f"{path!r} contains control characters: choose another folder")
    return Workspace(value)


def name_callback(
    _context: click.Context, parameter: click.Parameter, value: str | tuple[str, ...] | None
) -> str | tuple[str, ...] | None:
    """The name of a run or a detector, or several. Raises FairfaceError for a name that is not valid."""
    names = value if isinstance(value, tuple) else () if value is None else (value,)
    for name in names:
        check_name(name, parameter.opts[0])
    return value


def workspace_option(*names: str) -> Callable[[Any], Any]:
    """The option --out, and other `names` for it; the command receives a `workspace`."""
    return click.option(
        "--out",
        *names,
        "workspace",
        type=FOLDER,
        default="outputs",
        show_default=True,
        callback=workspace_callback,
        help="Output folder.",
    )


attributes_option = click.option(
    "--attributes",
    type=FILE,
    help="TOML file that adds attributes to the built-in ones; copied to OUT.  [default: the copy in OUT]",
)
run_option = click.option("--run", callback=name_callback, help="Name of the run.  [default: the newest]")
force_option = click.option("--force", is_flag=True, help="Run the stage again and replace its results.")
device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
seed_option = click.option("--seed", type=ANY_SEED, default=0, show_default=True, help="Random seed.")
preset_seed_option = click.option("--seed", type=ANY_SEED, help="Random seed.  [default: 0]")
workers_option = click.option(
    "--workers",
    "--num-workers",
    type=click.IntRange(1, 1024),
    help="Number of processes or threads.  [default: one per core]",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Number of torch's threads on a CPU.  [default: OMP_NUM_THREADS if set, otherwise the fastest of 1, half "
    "of the cores and all cores]",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    help="auto: bf16 where it is faster than fp32.  [default: auto]",
)
feed_option = click.option(
    "--feed",
    type=click.Choice(["auto", "resident", "streaming"]),
    help="auto: resident if the images fit into memory, otherwise streaming.  [default: auto]",
)


def given_options() -> set[str]:
    """The names of the current command's parameters that the user set."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT}


def drop_unset(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that are None, which take the defaults of their config."""
    return {name: value for name, value in options.items() if value is not None}


def refuse_torchrun(option: str) -> None:
    """Raise UsageError if torchrun started several processes of a command that runs in a single one."""
    from shards import distributed

    if distributed.world_size() > 1:
        raise click.UsageError(f"{option} runs in a single process: start it without torchrun")


def shares_callback(attribute: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that parses shares of an attribute's classes, such as `female=0.7,male=0.3`."""

    def parse(_context: click.Context, _parameter: click.Parameter, value: str | None) -> dict[Any, float] | None:
        from shards.synthetic.dataset import parse_shares

        try:
            return parse_shares(value, attribute) if value else None
        except FairfaceError as error:
            raise click.BadParameter(str(error)) from error

    return parse


def aliases_callback(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
    """Parse repeated NAME=NAME, the names of single folders."""
    aliases = tuple(tuple(name.strip() for name in value.split("=")) for value in values)
    for value, names in zip(values, aliases, strict=True):
        if len(names) != 2 or not all(names):
            raise click.BadParameter(f"{value!r} is not NAME=NAME")
        for name in names:
            if "/" in name or not name.strip("_-"):
                raise click.BadParameter(f"{name!r} is not the name of a single folder")
    return aliases


def balance_callback(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | dict[str, float] | None:
    """Parse `natural`, `uniform` or the path of a CSV with target shares."""
    if value in (None, "natural", "uniform"):
        return value
    from pipeline.data.sampler import read_shares

    try:
        return read_shares(Path(value))
    except FairfaceError as error:
        raise click.BadParameter(str(error)) from error


def integer_callback(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """The number behind a choice of numbers."""
    return None if value is None else int(value)


class ByteSize(click.ParamType):
    """A number of bytes, with or without a unit: 1000, 256MB, 1GiB."""

    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        """The number of bytes. Fails for anything else, below a kilobyte and above a petabyte."""
        match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*(?:([kmgt])?(i)?b?)?", str(value).strip().lower())
        if not match:
            self.fail(f"{value!r} is not a size, such as 256MB or 1GiB", parameter, context)
        number, unit, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(unit) if unit else 0))
        if not 10**3 <= size <= 10**15:
            self.fail(f"{value!r} is not between a kilobyte and a petabyte", parameter, context)
        return size


BYTE_SIZE = ByteSize()
