"""Runs the command in this process."""

import click
from click.testing import CliRunner

from pipeline.cli.main import main

SMALL_TRAINING = ("--image-size", 32, "--width-g", 8, "--width-d", 8, "--batch-size", 16, "--steps", 30)


def all_commands(group: click.Group = main, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Every command by its words, such as ("audit", "plan"), and the groups of commands."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        found[*words, name] = command
        if isinstance(command, click.Group):
            found |= all_commands(command, (*words, name))
    return found


def fairface(*words: object, code: int = 0) -> str:
    """All that a command prints; it must end with the exit code `code` and without a traceback."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    printed = result.output
    assert result.exit_code == code, printed
    assert "Traceback" not in printed
    assert result.exception is None or isinstance(result.exception, SystemExit), printed
    return printed


def error_line(*words: object, code: int = 1) -> str:
    """The only line with an error that a command prints."""
    printed = fairface(*words, code=code)
    lines = [line for line in printed.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1, printed
    return lines[0]
