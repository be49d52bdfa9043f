"""Types of options: every number is finite and bounded, and text that no document can hold is refused."""

from collections.abc import Iterator

import click
import pytest

from tests.pipeline.cli.helpers import all_commands, error_line

UNSAFE_NAMES = ("x*", "a?", "[a]", "newest", "all", "-a", "a/b", "a\nb", "a" * 201, "")


def numbers(kind: type[click.ParamType]) -> Iterator[tuple[tuple[str, ...], str, click.ParamType]]:
    """Command, option and type of every option of this kind of number."""
    for name, command in all_commands().items():
        for parameter in command.params:
            if isinstance(parameter.type, kind):
                yield name, parameter.opts[-1], parameter.type


FLOATS = [(command, option) for command, option, _ in numbers(click.types.FloatParamType)]


def test_every_option_with_a_fraction_is_known():
    assert {"--lr", "--ema", "--truncation", "--hw-decoder-load", "--momentum"} <= {option for _, option in FLOATS}


@pytest.mark.parametrize("value", ["nan", "NaN", "-nan", "inf", "-inf", "infinity", "1e400", "-1e400"])
@pytest.mark.parametrize(("command", "option"), FLOATS, ids=str)
def test_no_number_is_nan_or_infinite(command, option, value):
    assert option in error_line(*command, f"{option}={value}", code=2)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
def test_no_share_is_nan_or_infinite(tmp_path, value):
    assert "gender" in error_line("synth", "--out", tmp_path, "--gender", f"female={value},male=1", code=2)
    shares = tmp_path / "shares.csv"
    shares.write_text(f"group,share\nfemale,{value}\nmale,1\n")
    assert "share" in error_line("train", "--out", tmp_path, "--balance", shares, code=2)
    assert "size" in error_line("shards", "--out", tmp_path, "--shard-bytes", value, code=2)


def test_every_whole_number_has_bounds_that_sql_can_hold():
    found = list(numbers(click.types.IntParamType))
    assert len(found) > 20
    for command, option, kind in found:
        assert isinstance(kind, click.IntRange), (command, option)
        assert (-1 if kind.min is None else kind.min) >= 0, (command, option)
        assert (2**63 if kind.max is None else kind.max) < 2**63, (command, option)
        assert option in error_line(*command, option, 10**23, code=2)


def test_a_size_is_bounded():
    assert "petabyte" in error_line("shards", "--shard-bytes", "999999999999t", code=2)
    assert "is not a size" in error_line("shards", "--shard-bytes", "9" * 400, code=2)


@pytest.mark.parametrize("name", UNSAFE_NAMES)
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--data", "x", "--run"),
        ("sample", "--run"),
        ("label", "--run"),
        ("report", "--run"),
        ("audit plan", "--run"),
        ("audit import", "answers.csv", "--run"),
        ("detect", "--data", "x", "--run"),
        ("detect", "--data", "x", "--name"),
    ],
    ids=str,
)
def test_a_name_is_refused_before_anything_is_written(tmp_path, words, name):
    command, *others = words
    line = error_line(*command.split(), "--out", tmp_path / "out", *others[:-1], f"{others[-1]}={name}")
    assert others[-1] in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (name, parameter.opts[0])
        for name, command in all_commands().items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and isinstance(parameter.type, click.Path | click.types.StringParamType)
    ],
    ids=str,
)
def test_text_that_is_not_utf8_is_refused_first_by_every_option(tmp_path, monkeypatch, command, option):
    monkeypatch.chdir(tmp_path)
    assert "is not valid UTF-8" in error_line(*command, option, "a\udcff", code=2)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_below_a_name_that_is_not_utf8_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "a\udcff"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert "is not valid UTF-8" in error_line("synth", "--count", 1, code=2)
    folder.rmdir()
    assert "has been removed" in error_line("synth", "--count", 1, code=2)
