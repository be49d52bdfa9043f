"""Formats numbers and names for the page and the figures."""

import shlex


def short(text: object, length: int = 20) -> str:
    """`text` as a label: printable, on one line, and at most `length` characters long."""
    text = "".join(c if c.isprintable() else " " for c in str(text)[: length + 1])
    return text if len(text) <= length else text[: length - 1] + "…"


def percent(share: float | None) -> str:
    """A share as a percentage: 62 %, 4.1 %, 0.3 %, 0 %; a dash for None."""
    if share is None:
        return "–"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def precise_percent(share: float | None) -> str:
    """A share as a percentage with one decimal: 62.4 %; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def ratio(value: float | None) -> str:
    """A ratio as the figures print it: ×0.37, ×1.2, ×0; a dash for None."""
    if value is None:
        return "–"
    return f"×{value:.1f}" if value >= 0.95 else f"×{value:.2f}" if value >= 0.095 else f"×{value:.1g}"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separators: 1,200; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign: +1.2."""
    return f"{100 * difference:+.1f}"


def conjunction(words: list[str]) -> str:
    """Words as a list in a sentence: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def shell_word(text: str) -> str:
    """`text` as one quoted word of a shell command."""
    return shlex.quote(short(text, 200))
