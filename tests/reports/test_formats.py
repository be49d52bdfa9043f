"""Numbers and words as the page prints them."""

from reports import formats


def test_shares_and_ratios_are_rounded_for_reading():
    shares = (None, 0, 0.004, 0.0996, 0.62, 1)
    assert [formats.percent(x) for x in shares] == ["–", "0 %", "0.4 %", "10 %", "62 %", "100 %"]
    ratios = (None, 0.0, 0.034, 0.37, 0.95, 1.42)
    assert [formats.ratio(x) for x in ratios] == ["–", "×0", "×0.03", "×0.37", "×0.9", "×1.4"]


def test_a_label_is_printable_and_short():
    assert formats.short("a\x00b\nc") == "a b c"
    assert formats.short("x" * 100, 5) == "xxxx…"


def test_words_are_listed_as_in_a_sentence():
    assert [formats.conjunction(list(words)) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
