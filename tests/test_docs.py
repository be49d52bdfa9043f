"""README's commands and options are those that the program has."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from pipeline.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"`(fairface [^`]+)`", README)))


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}


@pytest.mark.parametrize("text", COMMANDS)
def test_every_command_and_option_exists(text):
    words = shlex.split(text)
    command = main.commands[words[1]]
    used = {word for word in words[2:] if word.startswith("-")}
    assert used <= options(command)
    command.make_context(words[1], words[2:])  # parses, with values of the right type


def test_every_command_has_an_example():
    assert set(main.commands) == {shlex.split(text)[1] for text in COMMANDS}


@pytest.mark.parametrize("name", ["train", "sample", "label"])
def test_the_original_options_are_there(name):
    (listed,) = re.findall(rf"`((?:--[a-z0-9-]+\s?)+)`\s+for `{name}`", README)
    assert set(listed.split()) <= options(main.commands[name])


def test_the_make_targets_exist():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    used = re.findall(r"^make ([a-z ]+?)(?: [A-Z].*)?$", README, re.M)
    assert used
    for target in {word for line in used for word in line.split()}:
        assert re.search(rf"make {target}\b", listed)


def test_the_pictures_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()


def test_every_detector_is_described():
    from models.detectors import ALIASES, DETECTORS

    told = re.findall(r"^\| `(\w+)`(?: \(`(\w+)`\))? \| .* \| ([^|]+) \|$", README, re.M)
    assert {name for name, *_ in told} >= set(DETECTORS)
    assert all(ALIASES[alias] == name for name, alias, _ in told if alias)
    papers = {name: paper for name, _, paper in told}
    for name, kind in DETECTORS.items():
        assert kind.paper.split(",")[0] == papers[name].split(",")[0]
        assert kind.paper[-4:] == papers[name][-4:]
        assert name in main.commands["detect"].get_help(click.Context(main.commands["detect"]))
