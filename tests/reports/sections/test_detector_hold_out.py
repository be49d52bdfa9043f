"""Detectors on the page: their rates by generator, and on generators that they have not seen."""

import shutil

import numpy as np
import polars as pl
import pytest

import sql
from reports.estimation.detection.held_out import HELD_OUT_GAP
from shards.workspace import Workspace
from tests.reports.fake_detectors import add_detector, name_generators
from tests.reports.fake_workspace import build, replace_table, text_of

pytestmark = pytest.mark.usefixtures("short_reports")


@pytest.fixture
def judged(world):
    """An OUT folder without a run: a detector trained without DMs, and one trained on all fakes."""
    out, rng = world(n=4, m=400), np.random.default_rng(0)
    shutil.rmtree(out / "runs")
    images = name_generators(out)
    fake, diffusion = (images["target"] == "fake").to_numpy(), (images["family"] == "DMs").to_numpy()
    entire = np.where(fake, 1.5, -1.5) + rng.normal(size=400)
    add_detector(out, "<i>all", entire, images=images)
    add_detector(out, "part", entire - 2 * diffusion, images=images, held_out=["DMs"])
    return out


def test_unseen_generators_are_shown_by_group_next_to_the_detector_that_saw_them(judged):
    html = build(judged).page.read_text()
    text, connection = text_of(html), sql.connect(Workspace(judged))
    assert "<i>all" not in html
    row = sql.ask(connection, "hold_out", detector="part", attribute="all").row(0, named=True)
    shown = f"part DMs {row['fakes']} {row['tpr']:.3f} {row['tpr_low']:.3f} to {row['tpr_high']:.3f}"
    assert shown in text
    difference = f"{row['tpr_difference']:+.3f} {row['tpr_difference_low']:+.3f} to {row['tpr_difference_high']:+.3f}"
    assert f"&lt;i&gt;all {row['full_tpr']:.3f}" in text
    assert difference in text
    assert f"(majority) DMs {row['fakes']} 1.000" in text
    assert "(majority) DMs Gender several 1.000 0.000 " in text
    genders = sql.ask(connection, "hold_out", detector="part", attribute="gender")
    worst = genders.filter("is_worst_group").row(0, named=True)
    gap = sql.ask(connection, "detection_metrics", measure=HELD_OUT_GAP).filter(attribute="gender").row(0, named=True)
    assert f"{worst['group']} {worst['tpr']:.3f} {worst['tpr_low']:.3f} to {worst['tpr_high']:.3f}" in text
    assert f"{gap['value']:.3f} {gap['low']:.3f} to {gap['high']:.3f}; floor {gap['floor']:.3f}" in text
    assert "part, unseen generators by group" in text
    assert "; trained without the fakes of DMs." in text


def test_rates_are_shown_by_family_and_method_and_say_what_was_not_seen(judged):
    text = text_of(build(judged).page.read_text())
    assert "detector DMs DMs: Palette GANs GANs: ProGAN GANs: StyleGAN" in text
    rows = sql.ask(sql.connect(Workspace(judged)), "generators", detector="part")
    unseen = rows.filter(family="DMs", method="all").row(0, named=True)
    seen = rows.filter(method="ProGAN").row(0, named=True)
    assert f"{unseen['tpr']:.3f} not seen; {unseen['low']:.3f} to" in text
    assert f"{seen['tpr']:.3f} {seen['low']:.3f} to" in text
    assert "(majority) 1.000" in text


def test_fakes_of_a_single_generator_are_not_divided(judged):
    path = judged / "shards" / "images.parquet"
    images = pl.read_parquet(path).with_columns(family=pl.lit("GANs"), subset=pl.lit("ProGAN"))
    replace_table(path, images)
    shutil.rmtree(Workspace(judged).detector("part").folder)
    text = text_of(build(judged, force=True).page.read_text())
    assert "Which generators" not in text
    assert "Generators that the detector has not seen" not in text
