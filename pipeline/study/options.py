"""The options in a study's TOML: those of the commands that it runs, under the names of the command line."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import click

from shards.errors import FairfaceError

# parameters that the study itself sets, or that would change what it has already run
RESERVED = {
    "train": {"workspace", "data", "run", "seed", "other_data", "resume", "force"},
    "sample": {"workspace", "run", "checkpoint", "source", "count", "size", "as_is", "png_dir", "seed", "force"},
    "label": {"workspace", "run", "csv", "input_dir", "out_csv", "attributes", "force"},
}


StudyOptions = Mapping[str, "StageOptions"]  # by stage


def suggestion(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the known name that `name` resembles most, or at all of them, as the end of a message."""
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(sorted(known))}"


@dataclass(frozen=True)
class StageOptions:
    """The options of one command that a study may set."""

    stage: str  # train, sample, label
    command: click.Command
    check: Callable[..., None]  # raises UsageError for parameters that contradict each other

    @property
    def options(self) -> dict[str, click.Option]:
        """Every option by each of its names, without dashes."""
        options = [one for one in self.command.params if isinstance(one, click.Option)]
        allowed = [one for one in options if one.name not in RESERVED[self.stage]]
        return {name.removeprefix("--"): one for one in allowed for name in one.opts if name.startswith("--")}

    def parse(self, table: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The options in a table of a study, by their first names, with values as the command understands them.

        Files stay paths. Raises FairfaceError, which names the `place` of the table, for unknown options and for values
        that the command would refuse on their own.
        """
        known, raw = self.options, {}
        for written, value in table.items():
            name = written.replace("_", "-")
            if name not in known:
                reserved = {opt for one in self.command.params for opt in one.opts}
                if f"--{name}" in reserved:
                    raise FairfaceError(f"{place}: {written!r} can't be an option of a study, which sets it itself")
                raise FairfaceError(
                    f"{place}: `fairface {self.stage}` has no option {written[:80]!r}: {suggestion(name, known)}"
                )
            first = known[name].opts[0].removeprefix("--")
            if first in raw:
                raise FairfaceError(f"{place}: {first!r} is given twice")
            _check_kind(known[name], value, f"{place}: {written}")
            raw[first] = value
        parsed = self.parameters(raw, place)
        return {name: _plain(parsed[known[name].name or ""], value) for name, value in raw.items()}

    def check_together(self, options: Mapping[str, Any], place: str) -> None:
        """Raise FairfaceError if the command would refuse a run's options together."""
        parameters = self.parameters(options, place)
        with _refused(place):
            self.check(**parameters)

    def parameters(self, options: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The parameters of the command with these options. Raises FairfaceError as `parse`."""
        with _refused(place):
            return self.command.make_context(self.stage, self.arguments(options)).params

    def arguments(self, options: Mapping[str, Any]) -> list[str]:
        """The options as arguments of the command."""
        arguments = []
        for name, value in options.items():
            option = self.options[name]
            if isinstance(value, bool):
                arguments.append(option.opts[0] if value else option.secondary_opts[0])
            else:
                values = value if isinstance(value, list) else [value]
                arguments += [f"--{name}={item}" for item in values]
        return arguments


@contextmanager
def _refused(place: str) -> Iterator[None]:
    """Raise FairfaceError that starts with a place for what the command refuses in the block."""
    try:
        yield
    except click.UsageError as error:
        raise FairfaceError(f"{place}: {error.format_message()}") from error
    except FairfaceError as error:
        raise FairfaceError(f"{place}: {error}") from error


def _check_kind(option: click.Option, value: Any, place: str) -> None:
    """Raise FairfaceError for a value of TOML that can't be written on a command line as this option's."""
    if option.is_flag:
        fits = value is True or (value is False and bool(option.secondary_opts))
        expected = "true or false" if option.secondary_opts else "true"
    elif option.multiple:
        fits = isinstance(value, list) and all(type(item) in (str, int, float) for item in value)
        expected = "a list of texts or numbers"
    else:
        fits, expected = type(value) in (str, int, float), "a text or a number"
    if not fits:
        raise FairfaceError(f"{place}: {value!r:.80} is not {expected}")


def _plain(parsed: Any, raw: Any) -> Any:
    """The parsed value if JSON can hold it as one value or as a list; otherwise, as for a file, what was written."""
    if isinstance(parsed, tuple):
        return list(parsed)
    return parsed if isinstance(parsed, bool | int | float | str) else raw
