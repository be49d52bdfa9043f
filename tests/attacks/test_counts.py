"""The numbers in docs/attacks.md are those of the suite."""

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "attacks.md"
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py") if path.stem != Path(__file__).stem)


def rows() -> dict[str, int]:
    """The rows of all tables on the page: what was tried -> how often."""
    found = re.findall(r"^\| (.+) \| ([\d,]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {words: int(number.replace(",", "")) for words, number in found}


@pytest.mark.parametrize("module", MODULES)
def test_the_page_states_what_was_tried(module):
    tried = import_module(f"tests.attacks.{module}").TRIED
    assert tried
    assert {words: rows().get(words) for words in tried} == tried


def test_the_page_states_nothing_else():
    tried = {words for module in MODULES for words in import_module(f"tests.attacks.{module}").TRIED}
    assert rows().keys() == tried
