"""Detectors that are trained without some generators and evaluated on all."""

import re
import shutil
from dataclasses import replace
from itertools import islice

import polars as pl
import pytest
import torch

from models.detectors import FAMILIES
from pipeline.detection.dataset import build_pool, build_sampler, iterate_labels
from pipeline.detection.hold_out import resolve_hold_out, why_not, without_generators
from shards.documents import DetectorConfig, read_document, write_document
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.pipeline.detection.helpers import SMALL, predictions, train, weights
from tests.pipeline.detection.test_detect_command import detect


@pytest.fixture(scope="session")
def pool(annotated):
    """The pool of `annotated`: two families with a method each."""
    return build_pool(annotated)


def with_methods(pool, **methods):
    """The pool whose fakes of a family have these methods in turn."""
    families = {"GANs": 2, "DMs": 3}
    rows = pool.rows
    for family, names in methods.items():
        is_family = (pl.col("family") == families[family]) & pl.col("fake")
        number = is_family.cum_sum() % len(names)
        chosen = number.replace_strict(dict(enumerate(names)), return_dtype=pl.String)
        rows = rows.with_columns(subset=pl.when(is_family).then(chosen).otherwise("subset"))
    return replace(pool, rows=rows)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["DMs"], [("DMs",)]),
        (["dms", "pro_gan"], [("DMs",), ("ProGAN",)]),
        (["style-gan, Palette"], [("Palette", "StyleGAN")]),
        (["all"], [("DMs",), ("GANs",)]),
        (["all-methods"], [("Palette",), ("ProGAN",), ("StyleGAN",)]),
        (["all", "GANs"], [("DMs",), ("GANs",)]),
    ],
)
def test_names_are_found_and_each_option_is_a_training(pool, values, expected):
    assert resolve_hold_out(with_methods(pool, GANs=["ProGAN", "StyleGAN"]), values) == expected


def test_all_is_each_method_of_a_single_family(pool):
    rows = pool.rows.filter(pl.col("family") != 3)
    single = with_methods(replace(pool, rows=rows), GANs=["ProGAN", "StyleGAN"])
    assert resolve_hold_out(single, ["all"]) == [("ProGAN",), ("StyleGAN",)]


def test_training_leaves_out_the_fakes_and_the_test_keeps_them(pool):
    held_out = without_generators(pool, ["DMs"])
    is_diffusion = pl.col("family") == 3
    assert held_out.rows.filter("test").equals(pool.rows.filter("test"))
    assert held_out.rows.filter(is_diffusion, ~pl.col("test"))["fake"].null_count() > 20
    assert held_out.rows.filter(~is_diffusion).equals(pool.rows.filter(~is_diffusion))
    removed = pool.counts()["train_fake"] - held_out.counts()["train_fake"]
    assert removed == len(pool.rows.filter(is_diffusion, ~pl.col("test")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["diffusion"],
            "'diffusion' is not a family or method of the fakes; there are: family: DMs, GANs; method: Pal",
        ),
        (["DMs,"], "'' is not a family"),
    ],
)
def test_unknown_names_are_refused_with_those_that_exist(pool, values, message):
    with pytest.raises(FairfaceError, match=message) as error:
        resolve_hold_out(pool, values)
    assert "\n" not in str(error.value)


def test_generators_that_cannot_be_left_out_are_refused_and_passed_over_by_all(pool):
    rare = with_methods(pool, GANs=["ProGAN", "StyleGAN"])
    is_pro = pl.col("subset") == "ProGAN"
    untested = replace(rare, rows=rare.rows.filter(~(is_pro & pl.col("test"))))
    untrained = replace(rare, rows=rare.rows.filter(~is_pro | pl.col("test")))
    for faces, reason in ((untested, "no test face is"), (untrained, "no training face is")):
        with pytest.raises(FairfaceError, match=f"--hold-out ProGAN: {reason} a fake of it"):
            without_generators(faces, ["ProGAN"])
        assert resolve_hold_out(faces, ["all-methods"]) == [("Palette",), ("StyleGAN",)]
    with pytest.raises(FairfaceError, match="--hold-out DMs,GANs: no fakes are left to train on"):
        without_generators(pool, ["DMs", "GANs"])
    single = replace(pool, rows=pool.rows.filter(pl.col("family") != 3))
    assert why_not(single, ["ProGAN"])
    with pytest.raises(FairfaceError, match="nothing can be held out: ProGAN: no fakes are left"):
        resolve_hold_out(single, ["all"])


def test_the_samples_of_a_run_have_a_single_generator(sampled):
    with pytest.raises(FairfaceError, match="samples of run mine, which have a single generator"):
        resolve_hold_out(build_pool(sampled), ["GANs"])


@pytest.fixture
def fakes(annotated, tmp_path) -> Workspace:
    """A copy of `annotated`."""
    shutil.copytree(annotated.root, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path)


def test_a_detector_is_resumed_with_what_it_leaves_out_and_judged_on_all_test_faces(fakes):
    full = train(fakes, name="full", steps=2)
    held_out = train(fakes, name="part", steps=4, hold_out=("DMs",))
    assert held_out.config.data.held_out == ["DMs"]
    assert held_out.counts["train_fake"] < full.counts["train_fake"]
    assert (
        predictions(fakes, "part")
        .drop("detector", "logit")
        .equals(predictions(fakes, "full").drop("detector", "logit"))
    )
    train(fakes, name="resumed", steps=1, hold_out=("DMs",))
    assert train(fakes, name="resumed", steps=4).config.data.held_out == ["DMs"]  # without the option
    one, other = weights(fakes, "part", 4), weights(fakes, "resumed", 4)
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(FairfaceError, match="part was trained without DMs: choose another --name"):
        train(fakes, name="part", steps=4, hold_out=("GANs",))
    with pytest.raises(FairfaceError, match="full was trained on all fakes"):
        train(fakes, name="full", steps=4, hold_out=("GANs",))
    assert train(fakes, name="full", steps=2, hold_out=("GANs",), force=True).config.data.held_out == ["GANs"]


def test_documents_of_earlier_versions_are_read_and_resumed(fakes):
    train(fakes, name="old", steps=1)
    path = fakes.detector("old").config
    text = path.read_text()
    assert '"held_out": []' in text
    path.write_text(text.replace(',\n    "held_out": []', "").replace('"held_out": [],', ""))
    assert '"held_out"' not in path.read_text()
    document = read_document(path, DetectorConfig)
    assert document.data.held_out == []
    assert train(fakes, name="old", steps=2).steps == 2
    write_document(path, document)


@pytest.mark.parametrize("model", ["xception", "ucf"], ids=["natural", "pairs"])
def test_no_batch_has_a_fake_that_is_left_out(pool, model):
    faces, options = without_generators(pool, ["GANs"]), replace(SMALL, model=model, batch_size=4)
    sampler = build_sampler(options, faces, world_size=1)
    labels = iterate_labels(
        faces, sampler, batch_size=options.images_per_step, first_step=0, device=torch.device("cpu")
    )
    families = {family for batch in islice(labels, 40) for family in batch.family.tolist()}
    assert families == {0, FAMILIES.index("DMs")}


def test_the_command_trains_a_detector_for_each_family(fakes):
    words = ["--device", "cpu", "--steps", "1", "--train-batchsize", "4", "--name", "mine"]
    done = detect(fakes, *words, "--hold-out", "all")
    assert done.exit_code == 0, done.output
    assert sorted(folder.name for folder in fakes.detectors()) == ["mine-without-DMs", "mine-without-GANs"]
    assert "fakes without DMs" in done.output
    assert re.search(r"held out: +GANs: TPR \d.\d{3} \(.* to .*\), AUC \d.\d{3}$", done.output, re.M)
    full = detect(fakes, *words)
    assert "not seen" not in full.output
    again = detect(fakes, *words, "--hold-out", "gans")
    assert re.search(r"unchanged\n.*\n.* GANs: TPR .*; mine, trained on all fakes: TPR \d.\d{3}$", again.output, re.M)
    refused = detect(fakes, *words, "--hold-out", "nothing")
    assert refused.exit_code == 1
    assert "--hold-out 'nothing' is not a family or method" in refused.output
