"""Detectors from shards to figures: which faces they learn from, what is kept of an interruption, what SQL says."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner

import sql
from models.detectors import DETECTORS
from pipeline.cli.main import main
from pipeline.data.loader import DecoderConfig, load_resident
from pipeline.data.sampler import PairedSampler, RankSlice
from pipeline.detection import evaluate, import_predictions, train, trainer
from pipeline.detection.dataset import GROUPS, build_pool
from pipeline.detection.evaluate import EvaluationConfig
from pipeline.detection.perturbations import PERTURBATIONS
from pipeline.detection.trainer import DetectorOptions, DetectorTrainer
from pipeline.gan.sample import sample
from pipeline.gan.train import train as train_gan
from pipeline.gan.trainer import GanOptions as GanOptions
from pipeline.training import checkpoint
from reports import detection
from shards import pack
from shards.atomic_io import read_json
from shards.errors import FairfaceError

TINY = GanOptions(image_size=32, latent_dim=16, width_g=8, width_d=8, batch_size=16, precision="fp32", compile=False)
SMALL = DetectorOptions(
    image_size=64, batch_size=8, lr=5e-3, from_scratch=True, precision="fp32", compile=False, feed="resident"
)


def label(path: Path, keys: pl.Series, source: str, run: str | None) -> None:
    """Labels of chance, as labelling leaves them."""
    rng = np.random.default_rng(len(keys))
    table = {"key": keys, "gender": rng.choice(["female", "male"], len(keys)), "age": "adult"}
    tones = rng.choice(np.array([2, 5, 9], np.int8), len(keys))
    about = {"source": source, "run": run, "method": "clip", "labeller": "x@1", "size": 32}
    pl.DataFrame(table).with_columns(
        skin_tone=tones, **{k: pl.lit(v, pl.String) for k, v in about.items() if k != "size"}
    ).write_parquet(path)


@pytest.fixture(scope="module")
def sampled(packed, tmp_path_factory) -> Path:
    """Drawn faces in shards, and two runs of 90 and 40 samples; all labelled."""
    out = tmp_path_factory.mktemp("sampled")
    shutil.copytree(packed / "shards", out / "shards")
    for run, count in (("early", 40), ("mine", 90)):
        train_gan(out, TINY, "sketch", steps=2, run=run, progress=False)
        sample(out, run, count=count, device="cpu", progress=False)
        keys = pl.read_parquet(out / "runs" / run / "samples.parquet")["key"]
        label(out / "runs" / run / "labels.parquet", keys, "generated", run)
    label(out / "shards" / "labels.parquet", pl.read_parquet(out / "shards" / "images.parquet")["key"], "train", None)
    return out


@pytest.fixture(scope="module")
def annotated(drawn, tmp_path_factory) -> Path:
    """Real and fake faces of two families with a split, all of them drawn ones by their pixels."""
    root = tmp_path_factory.mktemp("aiface")
    lines = (drawn / "train.csv").read_text().splitlines()
    tables = {"train": [lines[0]], "test": [lines[0]]}
    for number, line in enumerate(lines[1:151]):
        folder, target = [("Real/FFHQ", 0), ("GANs/ProGAN", 1), ("DMs/Palette", 1)][number % 3]
        words = line.split(",")
        old = drawn / words[0].removeprefix("AI_Face_imagesV2/")
        new = root / folder / f"{number}.jpg"
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(old, new)
        row = [f"AI_Face_imagesV2/{folder}/{number}.jpg", *words[1:4], str(target), *words[5:]]
        tables["test" if number % 5 == 0 else "train"].append(",".join(row))
    for name, rows in tables.items():
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("annotated")
    pack.pack(root, out / "shards", pack.PackConfig(shard_images=40), progress=False)
    return out


@pytest.fixture
def copied(sampled, tmp_path) -> Path:
    shutil.copytree(sampled, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(out: Path, options: DetectorOptions = SMALL, name: str = "x", steps: int = 4, **more) -> dict:
    return train.train_and_evaluate(out, options, name, steps=steps, progress=False, **more)


def state(out: Path, name: str, step: int) -> dict:
    return checkpoint.load(checkpoint.checkpoint_path(out / "detectors" / name / "checkpoints", step))["nets"]


def test_annotated_faces_are_taken_by_their_target_and_split(annotated):
    faces = build_pool(annotated)
    assert (faces.grouped_by, faces.image_size, faces.run) == ("annotated", None, None)
    assert faces.counts() == {"train_real": 40, "train_fake": 80, "test_real": 10, "test_fake": 20}
    images = pl.read_parquet(annotated / "shards" / "images.parquet").filter(status="packed")
    assert faces.rows["key"].equals(images["key"])  # in tar order
    known = faces.rows.with_columns(place=images["family"], target=images["target"], split=images["split"])
    for place, number in (("Real", 0), ("GANs", 2), ("DMs", 3)):
        assert set(known.filter(place=place)["family"]) == {number}
    assert set(known.filter(split="test")["test"]) == {True}
    groups = images.select(pl.col("gender") + "-" + pl.col("skin_group")).to_series()
    assert [GROUPS[number] for number in known["group"]] == groups.to_list()
    assert sum(faces.groups()) == 120


def test_drawn_faces_are_told_from_the_newest_samples(sampled):
    faces = build_pool(sampled)
    assert (faces.grouped_by, faces.image_size, faces.run) == ("labelled", 32, "mine")
    counts = faces.counts()
    assert sum(counts.values()) == 240 + 90
    assert 30 <= counts["test_real"] <= 70
    assert 8 <= counts["test_fake"] <= 30
    assert build_pool(sampled).rows.equals(faces.rows)  # the same test faces for every detector
    assert set(faces.rows.filter("fake")["family"]) == {2}
    assert set(faces.rows["group"]) <= set(range(6))
    assert build_pool(sampled, run="early").run == "early"


def test_pairs_are_real_faces_first_and_every_fake_once():
    fake = torch.tensor([True, False, True, True, False, True, False] * 10)
    order = PairedSampler([30, 40], 0, 8, ~fake, fake)
    seen = [order.epoch(epoch) for epoch in range(4)]
    assert order.length == 80
    for numbers in seen:
        for batch in numbers.split(8):
            assert fake[batch].tolist() == [False] * 4 + [True] * 4
        fakes = numbers[fake[numbers]].tolist()
        assert len(set(fakes)) == 40
    reals = torch.cat([numbers[~fake[numbers]] for numbers in seen]).tolist()
    assert all(len(set(reals[i : i + 30])) == 30 for i in (0, 30, 60))  # all of them before one comes again


def test_ranks_share_the_faces_of_both_kinds(sampled):
    faces = build_pool(sampled)
    shares = [faces.share(RankSlice(rank, 3)) for rank in range(3)]
    kinds = [
        [(s, k) for s, k, f in share.rows.select("source", "key", "fake").iter_rows() if f is not None]
        for share in shares
    ]
    everyone = faces.rows.select("source", "key").rows()
    assert sorted(pair for mine in kinds for pair in mine) == sorted(everyone)  # each is one rank's
    for share in shares:
        assert len(share.rows) == share.shards.images == sum(share.sizes)
        assert min(share.counts().values()) > 0
        pixels = load_resident(share.shards, 64, torch.device("cpu"), DecoderConfig(through=32), False)
        everything = load_resident(faces.shards, 64, torch.device("cpu"), DecoderConfig(through=32), False)
        places = {pair: i for i, pair in enumerate(everyone)}
        for i in (0, len(share.rows) - 1):  # its rows are of its pixels
            assert torch.equal(pixels[i], everything[places[share.rows.select("source", "key").row(i)]])


def test_from_shards_to_figures(annotated, tmp_path):
    shutil.copytree(annotated, tmp_path, dirs_exist_ok=True)
    done = run(tmp_path, judging=EvaluationConfig(7, ("gaussian_blur", "random_crop")))
    assert (done["status"], done["steps"], done["unchanged"]) == ("finished", 4, False)
    folder = tmp_path / "detectors" / "x"
    steps = pl.read_parquet(folder / "steps.parquet")
    assert steps["step"].to_list() == [1, 2, 3, 4]
    assert steps["images"].to_list() == [8, 16, 24, 32]
    assert steps["accuracy"].is_between(0, 1).all()
    said = pl.read_parquet(folder / "predictions.parquet")
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet").filter(status="packed", split="test")
    for change in ("none", "gaussian_blur", "random_crop"):
        rows = said.filter(change=change).sort("key")
        assert rows["key"].to_list() == images.sort("key")["key"].to_list()
        assert rows["target"].to_list() == images.sort("key")["target"].to_list()
        assert rows["logit"].dtype == pl.Float64
    assert said["logit"].n_unique() > 80
    connection = sql.connect(tmp_path)
    detection.keep(tmp_path, connection, "x")
    whole = sql.ask(connection, "utility", detector="x", attribute="all").row(0, named=True)
    assert (whole["fakes"], whole["reals"]) == (20, 10)
    by_gender = sql.ask(connection, "utility", detector="x", attribute="gender")
    wanted = dict(images["gender"].value_counts().iter_rows())
    assert dict(by_gender.select("group", "n").iter_rows()) == wanted
    changed = sql.ask(connection, "robustness", detector="x")
    assert changed["change"].to_list() == ["none", "gaussian_blur", "random_crop"]
    assert changed["n"].to_list() == [30, 30, 30]
    assert len(sql.ask(sql.connect(tmp_path), "detection", detector="x", measure="f_eo")) == 4


def test_predictions_are_what_the_network_says_of_each_face(copied):
    """Another batch size, and one face after the other: the same logits for the same keys."""
    run(copied, steps=2)
    folder = copied / "detectors" / "x"
    first = pl.read_parquet(folder / "predictions.parquet")
    faces, config = build_pool(copied), read_json(folder / "config.json")
    options = DetectorOptions(**config["options"])
    trainer = DetectorTrainer(options, config["groups"], torch.device("cpu"), 5)
    trainer.load(state(copied, "x", 2))
    net = trainer.net.eval()
    shutil.rmtree(folder / "answers")
    (folder / "predictions.parquet").unlink()
    run(copied, steps=2, judging=EvaluationConfig(5))
    again = pl.read_parquet(folder / "predictions.parquet")
    assert first.drop("logit").equals(again.drop("logit"))
    near = 0.01 * first.filter(source="images")["logit"].std()  # a network of two steps says nearly the same of all
    assert np.allclose(first["logit"], again["logit"], rtol=0, atol=near)
    pixels = load_resident(faces.shards, 64, torch.device("cpu"), DecoderConfig(through=32), False)
    test = faces.rows["test"].arg_true().to_list()
    with torch.inference_mode():
        wanted = [net(options.kind.normalised(pixels[i][None]))[0].item() for i in test[:5] + test[-5:]]
    known = dict(first.filter(part="test", source="images").select("key", "logit").iter_rows())
    known |= {
        f"s{key}": logit
        for key, logit in first.filter(part="test", source="samples").select("key", "logit").iter_rows()
    }
    names = ["s" * (source == "samples") + key for source, key in faces.rows.select("source", "key").iter_rows()]
    assert np.allclose(wanted, [known[names[i]] for i in test[:5] + test[-5:]], rtol=0, atol=near)


def test_samples_are_judged_by_group(copied):
    run(copied, steps=2)
    connection = sql.connect(copied)
    for name, count in (("early", 40), ("mine", build_pool(copied).counts()["test_fake"])):
        rows = sql.ask(connection, "detected", run=name)
        whole = rows.filter(attribute="all").row(0, named=True)
        assert whole["n"] == count  # of the run that was learnt from, the held-out samples alone
        assert whole["rate"] == whole["called_fake"] / whole["n"]
        assert whole["low"] <= whole["rate"] <= whole["high"]
        assert rows.filter(attribute="gender")["n"].sum() == count
    said = pl.read_parquet(copied / "detectors" / "x" / "predictions.parquet").filter(run="early")
    labels = pl.read_parquet(copied / "runs" / "early" / "labels.parquet")
    joined = said.join(labels, on="key")
    wanted = {g: rows["logit"].ge(0).mean() for (g,), rows in joined.group_by("gender")}
    rates = dict(
        sql.ask(connection, "detected", run="early").filter(attribute="gender").select("group", "rate").iter_rows()
    )
    assert rates == pytest.approx(wanted)
    groups = sql.ask(connection, "utility", attribute="skin_group")
    assert groups["n"].sum() == sum(build_pool(copied).counts()[key] for key in ("test_real", "test_fake"))


def test_an_interruption_changes_nothing(copied):
    whole = run(copied, name="whole", steps=6)
    run(copied, name="parts", steps=2)
    went_on = run(copied, name="parts", steps=6)
    ours, theirs = state(copied, "whole", 6), state(copied, "parts", 6)
    assert all(torch.equal(ours["net"][key], theirs["net"][key]) for key in ours["net"])
    assert whole["steps"] == went_on["steps"] == 6
    told = [pl.read_parquet(copied / "detectors" / n / "steps.parquet")["loss"].to_list() for n in ("whole", "parts")]
    assert told[0] == told[1]
    logits = [pl.read_parquet(copied / "detectors" / n / "predictions.parquet")["logit"] for n in ("whole", "parts")]
    assert logits[0].equals(logits[1])
    streamed = run(copied, replace(SMALL, feed="streaming"), name="streamed", steps=6)
    assert streamed["options"]["feed"] == "streaming"
    theirs = state(copied, "streamed", 6)
    assert all(torch.equal(ours["net"][key], theirs["net"][key]) for key in ours["net"])


def test_what_is_done_is_not_done_again(copied, monkeypatch):
    run(copied, steps=2)
    before = {p: p.stat().st_mtime_ns for p in (copied / "detectors" / "x").rglob("*") if p.is_file()}
    asked = []
    real = evaluate.predict_logits
    monkeypatch.setattr(
        evaluate, "predict_logits",
        lambda net, options, sight, *more: (asked.append(sight.change), real(net, options, sight, *more))[1],
    )
    assert run(copied, steps=2)["unchanged"]
    assert asked == []
    assert {p: p.stat().st_mtime_ns for p in before} == before
    run(copied, steps=2, judging=EvaluationConfig(changes=("rotation",)))
    assert asked == ["rotation"]  # and nothing of what was asked before
    shutil.rmtree(copied / "runs" / "early")
    run(copied, steps=2)
    assert asked == ["rotation"]
    assert set(sql.ask(sql.connect(copied), "robustness")["change"]) == {"none", "rotation"}  # it stays
    assert set(pl.read_parquet(copied / "detectors" / "x" / "predictions.parquet")["run"].drop_nulls()) == {"mine"}


def test_other_options_and_other_faces_are_refused(copied):
    run(copied, steps=2)
    with pytest.raises(FairfaceError, match="trained with another lr, seed: choose another --name"):
        run(copied, replace(SMALL, lr=0.1, seed=3), steps=2)
    with pytest.raises(FairfaceError, match="learnt from other faces"):
        run(copied, steps=2, run="early")
    assert run(copied, replace(SMALL, seed=3), steps=2, force=True)["options"]["seed"] == 3
    with pytest.raises(FairfaceError, match="fewer faces to learn from than a batch of 1024"):
        run(copied, replace(SMALL, batch_size=1024), name="y")
    with pytest.raises(FairfaceError, match="name of one folder"):
        run(copied, name="../x")
    assert not (copied / "detectors" / "y").exists()


def test_what_there_is_to_learn_from_is_said(packed, annotated, tmp_path):
    (tmp_path / "shards").symlink_to(packed / "shards")
    with pytest.raises(FairfaceError, match="there is no run"):
        build_pool(tmp_path)
    with pytest.raises(FairfaceError, match="no face to train a detector with that is real"):
        build_pool(packed, "images")
    with pytest.raises(FairfaceError, match="--fakes samples"):
        build_pool(annotated, "images", run="x")


def test_the_command_line_takes_the_benchmarks_spellings(copied):
    words = [
        "detect", "--out", str(copied), "--model", "xception", "--train_batchsize", "8", "--test_batchsize", "16",
        "--lr", "0.0005", "--steps", "2", "--device", "cpu", "--feed", "resident",
    ]  # fmt: skip
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    config = read_json(copied / "detectors" / "xception" / "config.json")
    asked = config["asked"]
    assert (asked["batch_size"], asked["lr"], asked["image_size"], asked["from_scratch"]) == (8, 0.0005, 64, True)
    assert "all faces:    AUC" in done.output
    assert "skin group:   F_MEO" in done.output
    for wrong, line in (
        (["--model", "resnet"], "there is no such detector"),
        (["--model", "all", "--name", "x"], "--name goes with one --model"),
        (["--epochs", "1", "--steps", "1"], "give one"),
        (["--import", "x.csv", "--lr", "1"], "only --out, --name and --force go with it"),
        (["--pretrained", "x", "--from-scratch"], "exclude each other"),
        (["--fakes", "images"], "no face to train a detector with that is real"),
    ):
        failed = CliRunner().invoke(main, ["detect", "--out", str(copied), *wrong])
        assert failed.exit_code != 0
        assert line in failed.output, (wrong, failed.output)


def test_two_processes_share_the_training_and_the_judging(copied):
    def torchrun(name: str, steps: int) -> str:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
        words += ["pipeline.cli", "detect", "--out", str(copied), "--model", "daw_fdd", "--name", name]
        words += ["--steps", str(steps), "--train-batchsize", "4", "--device", "cpu"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert torchrun("whole", 3).count("trained 3 steps") == 1
    torchrun("parts", 1)
    torchrun("parts", 3)
    ours, theirs = state(copied, "whole", 3), state(copied, "parts", 3)
    assert all(torch.equal(ours["net"][key], theirs["net"][key]) for key in ours["net"])
    said = [pl.read_parquet(copied / "detectors" / name / "predictions.parquet") for name in ("whole", "parts")]
    assert said[0].drop("detector").equals(said[1].drop("detector"))
    config = read_json(copied / "detectors" / "whole" / "config.json")
    single = run(
        copied, DetectorOptions(**config["asked"]), "whole", 3, judging=EvaluationConfig(8)
    )  # one process says the same
    assert single["unchanged"]
    shutil.rmtree(copied / "detectors" / "whole" / "answers")
    (copied / "detectors" / "whole" / "predictions.parquet").unlink()
    run(copied, DetectorOptions(**config["asked"]), "whole", 3)
    alone = pl.read_parquet(copied / "detectors" / "whole" / "predictions.parquet")
    assert alone.drop("logit").equals(said[0].drop("logit"))
    assert np.allclose(alone["logit"], said[0]["logit"], atol=1e-3)


def test_faces_of_unknown_target_or_for_validation_are_left_alone(annotated, tmp_path):
    shutil.copytree(annotated, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "shards" / "images.parquet"
    images = pl.read_parquet(path)
    number = pl.int_range(pl.len())
    images = images.with_columns(
        target=pl.when(number % 10 == 0).then(None).otherwise("target"),
        split=pl.when(number % 10 == 1).then(pl.lit("val")).otherwise("split"),
    )
    images.write_parquet(path)
    faces = build_pool(tmp_path)
    left = faces.rows.filter(pl.col("fake").is_null())
    assert len(left) == 30
    assert sum(faces.counts().values()) == 120
    assert sum(faces.groups()) == faces.counts()["train_real"] + faces.counts()["train_fake"]
    assert not (faces.mask(False) | faces.mask(True) | faces.mask(False, True) | faces.mask(True, True))[::10].any()
    run(tmp_path, steps=1)
    assert len(pl.read_parquet(tmp_path / "detectors" / "x" / "predictions.parquet")) == int(
        (faces.mask(False, True) | faces.mask(True, True)).sum()
    )
    images.with_columns(split=pl.lit("test")).write_parquet(path)
    with pytest.raises(FairfaceError, match="no face to train a detector with"):  # the test faces are not for learning
        build_pool(tmp_path)


def test_imports_and_trainings_do_not_overwrite_each_other(copied):
    csv = copied / "x.csv"
    csv.write_text("gender,skin_group,age,target,logit\nfemale,dark,adult,1,2.5\nmale,light,adult,0,-1\n")
    run(copied, steps=1)
    with pytest.raises(FairfaceError, match="was trained here"):
        import_predictions.import_predictions(copied, csv, "x")
    import_predictions.import_predictions(copied, csv, "x", force=True)
    with pytest.raises(FairfaceError, match="predictions that were imported"):
        run(copied, steps=1)
    assert pl.read_parquet(copied / "detectors" / "x" / "predictions.parquet")["logit"].to_list() == [2.5, -1]
    assert run(copied, steps=1, force=True)["status"] == "finished"


def test_a_detector_goes_on_with_the_samples_it_began_with(copied):
    run(copied, steps=2, run="early")
    went_on = run(copied, replace(SMALL, feed="streaming"), steps=3)  # though another run is the newest
    assert (went_on["data"]["run"], went_on["options"]["feed"], went_on["steps"]) == ("early", "streaming", 3)
    shutil.copytree(copied / "runs" / "mine", copied / "runs" / "twin")
    assert run(copied, steps=1)["steps"] == 3  # no fewer than were taken
    said = pl.read_parquet(copied / "detectors" / "x" / "predictions.parquet").filter(part="samples")
    assert dict(said["run"].value_counts().iter_rows()) == {"mine": 90, "twin": 90}


def test_pretrained_weights_are_needed_once(copied, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    torch.save(trainer.build_detector(replace(SMALL, seed=9), []).net.state_dict(), path)
    options = replace(SMALL, from_scratch=False, pretrained=str(path))
    run(copied, options, steps=1)
    path.unlink()
    assert run(copied, options, steps=2, judging=EvaluationConfig(changes=("rotation",)))["steps"] == 2


def test_losses_by_group_want_the_groups_they_began_with(copied):
    options = replace(SMALL, model="daw_fdd")
    run(copied, options, steps=1)
    for path in copied.rglob("labels.parquet"):
        pl.read_parquet(path).with_columns(gender=pl.lit("male")).write_parquet(path)
    with pytest.raises(FairfaceError, match="labelled otherwise"):
        run(copied, options, steps=2)
    run(copied, steps=1, name="y")  # cross entropy looks at no groups
    for path in copied.rglob("labels.parquet"):
        path.unlink()
    with pytest.raises(FairfaceError, match="DAW-FDD learns from groups, and no face has one"):
        run(copied, options, name="z")
    assert run(copied, steps=2, name="y")["steps"] == 2


def test_a_sketch_is_short_but_for_epochs_asked_for(copied, monkeypatch):
    monkeypatch.setattr(train, "SKETCH_STEPS", 1)
    words = ["detect", "--out", str(copied), "--device", "cpu", "--train-batchsize", "100"]
    for more, steps in (([], 1), (["--epochs", "1", "--name", "x"], 2)):
        done = CliRunner().invoke(main, [*words, *more])
        assert done.exit_code == 0, done.output
        assert f"trained {steps} steps" in done.output


def test_weights_that_one_lacks_do_not_stop_the_others(copied, monkeypatch):
    real = train.train_and_evaluate

    def lacking(out, options, *more, **named):
        if options.model == "univfd":
            raise click.ClickException("the weights are not here")
        return real(out, options, *more, **named)

    monkeypatch.setattr(train, "train_and_evaluate", lacking)
    words = [
        "detect",
        "--out",
        str(copied),
        "--device",
        "cpu",
        "--steps",
        "1",
        "--model",
        "univfd",
        "--model",
        "dag_fdd",
    ]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "univfd: the weights are not here" in done.output
    assert "univfd could not be trained" in done.output
    assert (copied / "detectors" / "dag_fdd" / "predictions.parquet").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("model", DETECTORS)
def test_on_a_gpu_compiled_in_bf16(copied, model):
    size = 70 if model == "univfd" else 64
    options = replace(SMALL, model=model, image_size=size, batch_size=4, lr=1e-4, precision="bf16", compile=True)
    done = run(copied, options, model, steps=4, judging=EvaluationConfig(changes=tuple(PERTURBATIONS)))
    assert done["device"] == torch.cuda.get_device_name()
    said = pl.read_parquet(copied / "detectors" / model / "predictions.parquet")
    assert said["change"].n_unique() == 1 + len(PERTURBATIONS)
    assert said["logit"].is_finite().all()
