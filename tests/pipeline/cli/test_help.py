"""--help names every command and choice, without loading the libraries that the work needs."""

import re
import subprocess
import sys

import click
import pytest

from pipeline.cli import options
from pipeline.cli.main import main
from tests.pipeline.cli.helpers import all_commands, fairface

COMMANDS = (
    "synth",
    "shards",
    "verify",
    "train",
    "sample",
    "label",
    "labeller",
    "report",
    "audit",
    "study",
    "sql",
    "detect",
    "bench",
)


def choices(command: str, option: str) -> tuple[str, ...]:
    """The values that an option accepts."""
    (found,) = [parameter for parameter in main.commands[command].params if option in parameter.opts]
    assert isinstance(found.type, click.Choice)
    return tuple(found.type.choices)


def test_help_lists_every_command_in_the_order_of_use():
    printed = fairface("--help")
    listed = [line.split()[0] for line in printed.partition("Commands:\n")[2].splitlines()]
    assert listed == list(COMMANDS)
    assert "..." not in printed.partition("Commands:\n")[2]


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_option_is_described(words):
    assert "--" in fairface(*words, "--help")
    for parameter in all_commands()[words].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{words} {parameter.name} has no help"


def test_help_loads_no_heavy_library():
    code = "import sys; from pipeline.cli.main import main; main(['train', '--help'], standalone_mode=False); " \
           "print({'torch', 'numpy', 'polars', 'duckdb', 'nvidia', 'PIL'} & set(sys.modules))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_choices_of_perturbations_are_those_of_the_benchmark():
    from pipeline.detection.perturbations import PERTURBATIONS

    assert tuple(PERTURBATIONS) == options.PERTURBATION_NAMES
    assert choices("detect", "--postprocess") == ("all", *PERTURBATIONS)


def test_choices_of_age_codes_are_those_of_the_annotations():
    from shards.annotations import AGE_CODES

    assert choices("shards", "--age-codes") == ("auto", *AGE_CODES)


def test_choices_of_presets_are_those_of_the_networks():
    from pipeline.gan.options import PRESETS

    assert choices("train", "--preset") == ("auto", *PRESETS)


@pytest.mark.parametrize("command", ["train", "detect"])
def test_choices_of_feeds_are_those_of_the_loader(command):
    from pipeline.data.loader import FEEDS

    assert set(choices(command, "--feed")) == {"auto", *FEEDS}


def test_the_help_of_bench_names_every_stage():
    from pipeline.bench.run import STAGES

    assert set(STAGES) <= set(re.findall(r"\w+", fairface("bench", "--help")))


def test_the_help_of_detect_names_every_detector():
    from models.detectors import DETECTORS

    assert set(DETECTORS) <= set(re.findall(r"\w+", fairface("detect", "--help")))


def test_options_left_out_keep_the_defaults_of_their_config():
    assert options.drop_unset({"lr": None, "steps": 0, "flip": False, "groups": ()}) == {
        "steps": 0,
        "flip": False,
        "groups": (),
    }


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("256MB", 256 * 10**6), ("1GiB", 2**30), ("1.5 kb", 1500), ("2t", 2 * 10**12)]
)
def test_byte_sizes(text, size):
    assert options.BYTE_SIZE.convert(text, None, None) == size
