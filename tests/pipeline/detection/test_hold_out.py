"""Detectors that are trained without some generators and evaluated on all."""

import re
import shutil
from dataclasses import replace
from itertools import islice

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.detectors import FAMILIES, Labels, registry
from pipeline.cli import console
from pipeline.data.sampler import RankSlice, iterate_batches
from pipeline.detection.dataset import build_pool, build_sampler, iterate_labels
from pipeline.detection.hold_out import resolve_hold_out, why_not, without_generators
from pipeline.detection.train_all import DetectorsConfig, build_config
from pipeline.detection.trainer import DetectorTrainer
from shards.documents import DetectorConfig, read_document, write_document
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.pipeline.detection.helpers import SMALL, predictions, train, weights
from tests.pipeline.detection.test_detect_command import detect
from tests.pipeline.detection.test_features import FROZEN, SmallBackbone, run_small_rank
from tests.ranks import finish_ranks


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


def test_a_detector_is_named_after_any_generators(fakes):
    def name(*hold_out: str) -> str:
        return build_config(fakes, DetectorsConfig(("xception",)), model="xception", hold_out=hold_out).name

    assert name("DMs", "ProGAN") == "xception-without-DMs+ProGAN"
    others = [name("Diffusion [v1]"), name("Diffusion [v2]"), name(*(f"method {number}" for number in range(40)))]
    assert all(re.fullmatch(r"xception-without-[0-9a-f]{16}", other) for other in others)
    assert len(set(others)) == 3


def train_as_two_ranks(workspace: Workspace, *, hold_out: str, steps: int) -> dict[str, Tensor]:
    """The head of a detector after steps on the batches of two ranks together, on the features that are stored."""
    faces, options = without_generators(build_pool(workspace), [hold_out]), FROZEN
    parts = [load_file(path) for path in workspace.shards.features.parts()]
    rows, found = (torch.cat([part[name] for part in parts]) for name in ("rows", "features"))
    features = torch.zeros(len(faces.rows), found.shape[1], dtype=torch.float16).index_copy(0, rows, found)
    assert len(rows) == len(set(rows.tolist()))  # no face was extracted twice
    shares = [faces.rank_share(RankSlice(rank, 2)) for rank in range(2)]
    samplers = [build_sampler(options, share, world_size=2) for share in shares]
    batches, size, device = [], options.batch_size // 2, torch.device("cpu")
    for share, sampler in zip(shares, samplers, strict=True):
        sampler.images_per_epoch = min(one.images_per_epoch for one in samplers)
        labels = iterate_labels(share, sampler, batch_size=size, first_step=0, device=device)
        own = features[share.sources[0].first :]
        batches.append(zip(map(own.__getitem__, iterate_batches(sampler, size, first_step=0)), labels, strict=False))
    trainer = DetectorTrainer(options, [], device=device, steps_per_epoch=100)
    for step, ((one, of_one), (other, of_other)) in enumerate(islice(zip(*batches, strict=True), steps)):
        labels = Labels(*(torch.cat(pair) for pair in zip(of_one, of_other, strict=True)))
        trainer.step(step, torch.cat([one, other]), labels)
    return trainer.net.head.state_dict()


def run_quiet_rank(arguments: list[str]) -> None:
    """Like `run_small_rank`, without the metrics that the command prints at the end."""
    console.print_detector_summary = lambda *_: None
    run_small_rank(arguments)


def test_two_processes_hold_out_each_family_on_stored_features_and_resume(fakes, torch_server, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ClipFeatures", SmallBackbone)
    words = ["detect", "--out", str(fakes.root), "--device", "cpu", "--model", "univfd", "--image-size", "70"]
    words += ["--train-batchsize", "8", "--lr", "0.005", "--from-scratch", "--name", "two"]
    finish_ranks([*words, "--steps", "20", "--hold-out", "all"], tmp_path / "first.log", run=run_quiet_rank)
    finish_ranks([*words, "--steps", "24", "--hold-out", "DMs"], tmp_path / "resumed.log", run=run_quiet_rank)
    heads = []
    for family, steps in (("DMs", 24), ("GANs", 20)):
        expected = train_as_two_ranks(fakes, hold_out=family, steps=steps)
        head = weights(fakes, f"two-without-{family}", steps)
        for name, value in expected.items():
            assert torch.allclose(head[f"head.{name}"], value, rtol=0, atol=1e-6)
        heads.append(head["head.weight"])
    assert not torch.allclose(*heads, rtol=0, atol=1e-3)
