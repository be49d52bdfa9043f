"""Warnings about how the two sides came about."""

from dataclasses import replace

import polars as pl

from reports import caveats
from shards.attributes import built_in_attributes
from shards.documents import write_document
from tests.reports.fake_workspace import edit_config, page_text, run_config, samples_document

ATTRIBUTES = built_in_attributes()


def test_requested_classes_are_named_and_not_attributed_to_the_generator(world):
    out, config = world(), run_config("first")
    run = out / "runs" / "first"
    assert (caveats.sampling_requests(config, None), caveats.training_weights(config)) == ([], None)
    options = config.options | {"balance": "uniform", "balance_by": "gender"}
    config = replace(config, classes={"female": 0.5, "male": 0.5}, options=options)
    edit_config(out, classes=config.classes, options=options)
    text = page_text(out)
    assert "was trained on the groups of gender equally often" in text
    assert "No: " in text
    write_document(run / "samples.json", samples_document(shares={"female": 1.0, "male": 0.0}))
    text = page_text(out)
    assert "The samples follow a request: " in text
    assert "The samples were generated for requested classes (female)" in text
    assert "No: " not in text
    assert caveats.sampling_requests(config, samples_document(shares=config.classes)) == []


def test_truncated_latents_are_named():
    (warning,) = caveats.sampling_requests(run_config("first"), samples_document(truncation=1.5))
    assert "truncated at 1.5" in warning


def test_a_run_that_continued_on_other_data_says_so(world):
    out = world()
    edit_config(out, previous_data=[replace(run_config("first").data, root="/older")])
    assert "The run began on other images (/older)" in page_text(out)


def test_a_shift_is_a_warning_only_where_the_labeller_decides():
    shifts = pl.DataFrame({"attribute": ["gender", "age"], "statistic": 0.3, "floor": 0.1})
    shifts = shifts.with_columns(confidence_generated=0.9, confidence_held_out=0.8)
    (warning,) = caveats.shift_warnings(shifts, ATTRIBUTES, audited={"gender"})
    assert "age 90.0 % instead of 80.0 %" in warning
    assert "gender" not in warning
    assert caveats.shift_warnings(shifts, ATTRIBUTES, audited={"gender", "age"}) == []
