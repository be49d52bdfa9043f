"""README and docs/ are checked against the program: commands, options, targets, questions, files and links."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

import sql
from pipeline.cli.main import main
from shards.attributes import built_in_attributes
from shards.workspace import Workspace
from tests.pipeline.cli.helpers import all_commands

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
STAGE_VARIABLES = ("SHARDS", "TRAIN", "SAMPLE", "LABEL", "REPORT", "DETECT", "BENCH")
PACKAGES = ("pipeline", "shards", "models", "sql", "reports", "tests", "docs")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    """The fenced blocks of code."""
    return re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.M | re.S)


def inline_code(text: str) -> list[str]:
    """The code in backticks outside of fenced blocks, each on a single line."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def shell_lines(text: str) -> list[str]:
    """The lines that a reader may type: inline code, and the lines of blocks with continuations joined."""
    blocks = "".join(code_blocks(text)).replace("\\\n", " ")
    return [*inline_code(text), *re.findall(r"`([^`\n]+)`", blocks), *re.sub(r"`[^`\n]+`", "", blocks).splitlines()]


def split_words(line: str) -> list[str]:
    """The words of a shell command; variables are replaced by a number."""
    lexer = shlex.shlex(re.sub(r"\$\{?\w+\}?", "1", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def find_commands(text: str) -> list[tuple[str, ...]]:
    """The words of every `fairface` command: `fairface`, the subcommand and its arguments."""
    found = []
    for line in shell_lines(text):
        if not re.search(r"(?<![\w/.-])fairface [a-z]", line):
            continue
        words = split_words(line)
        for start in [i for i, word in enumerate(words) if word == "fairface"]:
            rest = words[start:]
            end = next((i for i, word in enumerate(rest) if set(word) <= set("();<>|&{}")), len(rest))
            found.append(tuple(rest[:end]))
    for stage, arguments in re.findall(rf'\b({"|".join(STAGE_VARIABLES)})="([^"]*)"', text):
        found.append(("fairface", stage.lower(), *split_words(arguments)))
    return found


def find_make_lines(text: str) -> list[str]:
    """What follows `make` in every command, without comments."""
    return [line.split("#")[0][5:].strip() for line in shell_lines(text) if line.startswith("make ")]


COMMANDS = sorted({words for page in PAGES for words in find_commands(read(page))})
QUERIES = [words for words in COMMANDS if words[1] == "sql"]


def option_names(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}


def find_command(words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """The command that the words after `fairface` name, and its arguments."""
    command, arguments = main.commands[words[1]], list(words[2:])
    if isinstance(command, click.Group) and arguments:
        return command.commands[arguments[0]], arguments[1:]
    return command, arguments


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_commands_are_found_in_text_and_in_blocks():
    text = (
        "Run `fairface sql\ncomparison`.\n\n```\nx=1 # a comment\nsrun $RUN fairface train --steps $N \\\n  --force "
        '|| exit\nfor r in a; do fairface sample --run "$r"; done\n```\n\nand `make train TRAIN="--steps 5"`.\n'
    )
    assert find_commands(text) == [
        ("fairface", "sql", "comparison"),
        ("fairface", "train", "--steps", "1", "--force"),
        ("fairface", "sample", "--run", "1"),
        ("fairface", "train", "--steps", "5"),
    ]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_and_option_exists(words):
    command, arguments = find_command(words)
    used = {word for word in arguments if word.startswith("-")}
    assert used <= option_names(command)
    command.make_context(words[1], arguments)  # parses, with values of the right type


def test_every_command_has_an_example():
    shown = {words[1 : 1 + length] for words in COMMANDS for length in (1, 2)}
    assert set(all_commands()) <= shown


@every_page
def test_every_option_in_the_text_exists(page):
    known = {"--help", *option_names(main)} | {name for c in all_commands().values() for name in option_names(c)}
    used = {word for code in inline_code(read(page)) if code.startswith("--") for word in code.split()}
    assert {word for word in used if re.match(r"--\w", word)} <= known


@pytest.mark.parametrize("name", ["train", "sample", "label"])
def test_the_original_options_exist(name):
    text = "".join(map(read, PAGES))
    (listed,) = re.findall(rf"`((?:--[a-z0-9]+(?:-[a-z0-9]+)*\s?)+)`\s+for `{name}`", text)
    assert set(listed.split()) <= option_names(main.commands[name])


@pytest.mark.parametrize("words", QUERIES, ids=" ".join)
def test_every_question_and_parameter_exists(words, tmp_path):
    given = main.commands["sql"].make_context("sql", list(words[2:])).params
    if given["text"]:
        assert sql.query(Workspace(tmp_path), given["text"]).columns
    if not given["name"]:
        return
    names = {"@attributes": list(built_in_attributes()), "@labelled": list(built_in_attributes().labelled)}
    parameters = sql.questions()[given["name"]].parameters(names)
    values = dict(pair.split("=", 1) for pair in given["parameters"])
    assert values.keys() <= parameters.keys()
    for name, value in values.items():
        assert value in (parameters[name].choices or (value,))
    # a question that is named without any parameter is only referred to
    assert not values or {name for name, p in parameters.items() if p.default is None} <= values.keys()


@every_page
def test_the_make_targets_and_variables_exist(page):
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in find_make_lines(read(page)):
        for word in shlex.split(line):
            name, is_variable, _ = word.partition("=")
            assert re.search(
                rf"\$\({name}\)" if is_variable else rf"make {name}\b", MAKEFILE if is_variable else listed
            )


@pytest.mark.parametrize("target", ["all", "study", "detect", "detectors", "bench"])
def test_the_commands_of_a_target_exist(target):
    done = subprocess.run(
        ["make", "--dry-run", "--assume-old=setup", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commands = re.findall(r"^\S*/(fairface .*)$", done.stdout, re.M)
    assert commands
    for line in commands:
        words = split_words(line)
        command, arguments = find_command(words)
        command.make_context(words[1], arguments)


def test_readme_shows_the_whole_job():
    assert "shards train sample report" in find_make_lines(read(ROOT / "README.md"))


@every_page
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:", "mailto:")):
            continue
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.+)$", read(linked), re.M)), target


@every_page
def test_source_files_in_the_text_exist(page):
    for code in inline_code(read(page)):
        if re.fullmatch(rf"(?:{'|'.join(PACKAGES)})/[\w./-]*", code) and not code.endswith(".parquet"):
            assert (ROOT / code).exists(), code


def test_the_reference_names_files_that_the_workspace_has():
    source = read(ROOT / "shards" / "workspace.py")
    named = set(re.findall(r"(\w+)\.(?:parquet|json)`", read(ROOT / "docs" / "reference.md")))
    assert named
    assert not {name for name in named if not re.search(rf"\b{name}\b", source)}


def test_environment_variables_are_documented():
    files = [path for package in PACKAGES[:5] for path in (ROOT / package).rglob("*.py")]
    in_source = {name for path in files for name in re.findall(r"\bFAIRFACE_[A-Z0-9_]+\b", read(path))}
    in_docs = {name for page in PAGES for name in re.findall(r"\bFAIRFACE_[A-Z0-9_]+\b", read(page))}
    assert in_source == in_docs


def test_every_detector_is_described():
    from models.detectors import ALIASES, DETECTORS

    text = "".join(map(read, PAGES))
    rows = re.findall(r"^\| `(\w+)`(?: \(`(\w+)`\))? \| .* \| ([^|]+) \|$", text, re.M)
    assert {name for name, *_ in rows} >= set(DETECTORS)
    assert all(ALIASES[alias] == name for name, alias, _ in rows if alias)
    papers = {name: paper for name, _, paper in rows}
    for name, spec in DETECTORS.items():
        assert spec.paper.split(",")[0] == papers[name].split(",")[0]
        assert spec.paper[-4:] == papers[name][-4:]
        assert name in main.commands["detect"].get_help(click.Context(main.commands["detect"]))
