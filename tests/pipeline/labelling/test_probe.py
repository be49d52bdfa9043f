"""The probe, who is judged on what, labels that go on after a kill, and labels from elsewhere."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save

import sql
from models.probe import MIN_CLASS_IMAGES, Probe
from pipeline.data import loader
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import embedded, import_labels, label
from reports import correct, distances
from shards import distributed
from shards.atomic_io import exclusive_lock, file_sha256
from shards.errors import FairfaceError

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "fairface-generator"
CPU = torch.device("cpu")


def clouds(count, seed=0, classes=10):
    """Embeddings [count, 16] in ten clouds, and which one each is in."""
    rng = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, classes, (count,), generator=rng)
    return 3 * torch.eye(10, 16)[numbers] + 0.5 * torch.randn(count, 16, generator=rng), numbers


def test_a_probe_learns_what_embeddings_tell_and_leaves_out_what_is_rare():
    embeddings, tones = clouds(3000)
    tones = torch.where((tones == 9) & (torch.arange(3000) > 100), -1, tones)  # a dozen of them are annotated
    genders = torch.full((3000,), -1)
    assert (tones == 9).sum() < MIN_CLASS_IMAGES
    fitted = Probe.fit(embeddings, {"skin_tone": tones, "gender": genders})
    fresh, truth = clouds(1000, seed=1)
    said = fitted.probabilities(fresh)
    known = truth != 9
    assert (said["skin_tone"].argmax(1) == truth)[known].float().mean() > 0.98
    assert torch.allclose(said["skin_tone"].sum(1), torch.ones(1000), atol=1e-5)
    assert (said["skin_tone"][:, 9] < 1e-6).all()
    assert said["gender"].isnan().all()
    assert said["age"].isnan().all()
    again = Probe.fit(embeddings, {"skin_tone": tones, "gender": genders})
    assert again.hash == fitted.hash
    assert Probe.fit(embeddings, {"skin_tone": tones.flip(0)}).hash != fitted.hash


def test_a_penalty_keeps_a_probe_of_noise_modest():
    rng = torch.Generator().manual_seed(0)
    noise, coin = torch.randn(300, 64, generator=rng), torch.randint(0, 2, (300,), generator=rng)
    said = Probe.fit(noise, {"gender": coin}).probabilities(torch.randn(500, 64, generator=rng))["gender"]
    assert said.max(1).values.mean() < 0.97  # unpenalised it separates 300 points of 64 dimensions with certainty


@pytest.fixture
def labelled(packed, tmp_path, quick_labeller, monkeypatch) -> Path:
    """An OUT folder whose training images stand for samples too."""
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    shutil.copytree(packed / "shards", tmp_path / "shards")
    run = tmp_path / "runs" / "mine"
    shutil.copytree(packed / "shards", run / "samples")
    packing = json.loads((packed / "shards" / "shards.json").read_text())
    tars = [{key: shard[key] for key in ("name", "images", "bytes")} for shard in packing["shards"]]
    tars = [tar | {"sha256": file_sha256(run / "samples" / tar["name"])} for tar in tars]
    (run / "samples.json").write_text(json.dumps({"image_size": 64, "fingerprint": "f", "shards": tars}))
    (run / "config.json").write_text(json.dumps({"run": "mine", "started": "now", "options": {}}))
    images = pl.read_parquet(packed / "shards" / "images.parquet").filter(status="packed")
    images.select("key").write_parquet(run / "samples.parquet")
    return tmp_path


def test_labellers_are_judged_on_images_the_probe_has_not_seen(labelled):
    _, judged = label.label(labelled, progress=False)
    shards, run = labelled / "shards", labelled / "runs" / "mine"
    assert len(pl.read_parquet(shards / "probe.parquet")) == 120  # the other half was fitted to
    assert len(pl.read_parquet(run / "probe.parquet")) == 240
    assert set(judged["n"]) == {120}
    assert judged.group_by("attribute").agg(pl.col("chosen").sum())["chosen"].to_list() == [1] * 6
    assert not judged.filter(method="pixels")["chosen"].any()  # a check only, however good
    best = judged.filter("chosen").join(judged.filter(pl.col("method") != "pixels"), on="attribute")
    assert (best["balanced_accuracy"] >= best["balanced_accuracy_right"]).all()
    names = pl.concat([pl.read_parquet(folder / "probe.parquet") for folder in (shards, run)])["labeller"].unique()
    assert len(names) == 1
    probability = pl.read_parquet(run / "probe.parquet").select(pl.sum_horizontal("p_female", "p_male")).to_series()
    assert np.allclose(probability, 1, atol=1e-5)
    pixels = pl.read_parquet(run / "pixels.parquet")
    truth = pl.read_parquet(shards / "images.parquet").filter(status="packed")
    assert (pixels["skin_tone"] == truth["skin_tone"]).mean() > 0.9
    before = {path: path.stat().st_mtime_ns for path in (*shards.iterdir(), *run.iterdir())}
    assert all(side["unchanged"] for side in label.label(labelled, progress=False)[0])
    assert {path: path.stat().st_mtime_ns for path in (*shards.iterdir(), *run.iterdir())} == before


def test_without_annotations_nobody_is_judged_and_old_judgements_go(labelled):
    label.label(labelled, progress=False)
    path = labelled / "shards" / "images.parquet"
    images = pl.read_parquet(path).with_columns(pl.lit(None, pl.String).alias(n) for n in ("gender", "age"))
    images.with_columns(skin_tone=pl.lit(None, pl.Int8)).write_parquet(path)
    assert label.label(labelled, progress=False, force=True)[1] is None
    for folder in (labelled / "shards", labelled / "runs" / "mine"):
        assert not (folder / "probe.parquet").exists()
    assert not (labelled / "shards" / "labellers.parquet").exists()


def test_a_killed_labelling_goes_on_with_what_is_missing(labelled, monkeypatch):
    whole, calls = label.label_shards, []

    def read(shards, *given):
        calls.append(shards.names)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(shards, *given)

    monkeypatch.setattr(label, "label_shards", read)
    with pytest.raises(KeyboardInterrupt):
        label.label(labelled, progress=False)
    assert not (labelled / "shards" / "labels.parquet").exists()
    label.label(labelled, progress=False)
    first = [names for names in calls if calls.count(names) > 1]
    assert len(calls) == 1 + 6  # three tars on either side, the interrupted one twice
    assert len(first) >= 2
    labels = pl.read_parquet(labelled / "shards" / "labels.parquet")
    assert labels["key"].to_list() == sorted(pl.read_parquet(labelled / "runs" / "mine" / "samples.parquet")["key"])
    assert not (labelled / "shards" / ".labels").exists()


def test_labels_of_another_model_are_not_replaced_unasked(labelled):
    for folder in (labelled / "shards", labelled / "runs" / "mine"):
        (folder / "labels.json").write_text(json.dumps({"labeller": "ViT-B-32@1"}))
        with pytest.raises(FairfaceError, match="has labels of ViT-B-32@1"):
            label.label(labelled, progress=False)
        (folder / "labels.json").unlink()
    (labelled / "shards" / "labels.json").write_text(json.dumps({"labeller": "drawn-faces@old"}))
    assert not label.label(labelled, progress=False)[0][0]["unchanged"]
    (labelled / "shards" / "labels.json").write_text(json.dumps({"labeller": "ViT-B-32@1"}))
    label.label(labelled, progress=False, force=True)
    (labelled / "runs" / "mine" / "labels.json").write_text(json.dumps({"labeller": "imported x.csv@1"}))
    with pytest.raises(FairfaceError, match=r"labels imported x\.csv@1: choose another --run, or replace"):
        label.label(labelled, progress=False, model="embedded")


def test_cut_and_damaged_files_are_made_again(labelled):
    label.label(labelled, progress=False)
    shards, run = labelled / "shards", labelled / "runs" / "mine"
    whole = {path: path.read_bytes() for folder in (shards, run) for path in folder.glob("*.parquet")}
    for name in ("labels.parquet", "embeddings.parquet", "pixels.parquet", "probe.parquet"):
        for folder in (shards, run):
            (folder / name).write_bytes(whole[folder / name][:-20])
            label.label(labelled, progress=False)
            assert pl.read_parquet(folder / name).equals(pl.read_parquet(whole[folder / name]))
    other = Probe.fit(torch.randn(100, 4), {"gender": torch.arange(100) % 2})
    for content in (b"nothing", save(other.state), save({"mean": torch.zeros(3)})):
        kept = (shards / "probe.safetensors").read_bytes()
        (shards / "probe.safetensors").write_bytes(content)
        label.label(labelled, progress=False)
        assert (shards / "probe.safetensors").read_bytes() == kept


def test_a_part_that_was_cut_is_labelled_again(labelled, quick_labeller):
    keys = pl.read_parquet(labelled / "runs" / "mine" / "samples.parquet")["key"]
    side = label.LabelledSide(labelled / "shards", ShardSet.open(labelled / "shards"), keys, {"size": 64})
    parts = labelled / "parts"
    side.label_parts(parts, quick_labeller, CPU, 64, False)
    before = (parts / "000001.parquet").read_bytes()
    (parts / "000001.parquet").write_bytes(before[:-100])
    side.label_parts(parts, quick_labeller, CPU, 64, False)
    assert (parts / "000001.parquet").read_bytes() == before


def test_bits_that_rot_in_samples_are_one_line(labelled):
    tar = next((labelled / "runs" / "mine" / "samples").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[700:900] = bytes(200)
    tar.write_bytes(content)
    with pytest.raises(FairfaceError, match=r"is not as it was written.*fairface sample --force"):
        label.label(labelled, progress=False)


def test_the_table_of_images_is_read_once(labelled, monkeypatch):
    asked, read = [], loader.read_parquet
    monkeypatch.setattr(loader, "read_parquet", lambda path, *rest: (asked.append(path), read(path, *rest))[1])
    label.label(labelled, progress=False)
    assert len(asked) == 1


def test_two_labellings_at_once_are_refused(labelled):
    with (
        exclusive_lock(labelled / "shards", "labelling"),
        pytest.raises(FairfaceError, match="another process is at work"),
    ):
        label.label(labelled, progress=False)


def test_labels_that_went_missing_are_not_gathered(labelled, quick_labeller):
    keys = pl.read_parquet(labelled / "runs" / "mine" / "samples.parquet")["key"]
    side = label.LabelledSide(labelled / "shards", ShardSet.open(labelled / "shards"), keys, {"size": 64})
    parts = labelled / "parts"
    side.label_parts(parts, quick_labeller, CPU, 64, False)
    (parts / "000001.parquet").unlink()
    with pytest.raises(FairfaceError, match="are missing"):
        side.gather(parts, {})
    assert not (labelled / "shards" / "labels.parquet").exists()


def test_a_damaged_table_is_one_line(labelled):
    label.label(labelled, progress=False)
    path = labelled / "runs" / "mine" / "samples.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FairfaceError, match=r"samples\.parquet can't be read"):
        label.label(labelled, progress=False)
    path.unlink()
    with pytest.raises(FairfaceError, match=r"samples\.parquet is missing"):
        label.label(labelled, progress=False)


def test_ranks_share_the_shards(labelled, quick_labeller, monkeypatch):
    keys = pl.read_parquet(labelled / "runs" / "mine" / "samples.parquet")["key"]
    side = label.LabelledSide(labelled / "shards", ShardSet.open(labelled / "shards"), keys[:150], {"size": 64})
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank, there in ((1, ["000001"]), (0, ["000000", "000001"])):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        side.label_parts(labelled / "parts", quick_labeller, CPU, 64, False)
        assert sorted(path.stem for path in (labelled / "parts").glob("*.parquet")) == there
    assert len(pl.read_parquet(labelled / "parts" / "000001.parquet")) == 50


def test_a_skewed_truth_of_drawn_faces_comes_out_nearer_when_corrected(quick_labeller):
    """Samples of another distribution than the calibration faces, and a labeller that errs often."""
    images, classes = embedded.render_faces(1200, 77, progress=False)
    said = torch.cat(
        [torch.stack([p.argmax(1) for p in quick_labeller.label(part)[0].values()]) for part in images.split(400)], 1
    )
    known = np.arange(1200) < 500
    grouped = [torch.bucketize(tones.contiguous(), torch.tensor([2, 5])) for tones in (classes[:, 2], said[2])]
    rng = np.random.default_rng(0)
    for (truth, labels), wanted in (((classes[:, 0], said[0]), (0.2, 0.8)), (grouped, (0.8, 0.15, 0.05))):
        truth, labels, k = truth.numpy(), labels.numpy(), len(wanted)
        pools = [np.flatnonzero(~known & (truth == group)) for group in range(k)]
        size = min(len(pool) / share for pool, share in zip(pools, wanted, strict=True))
        chosen = [rng.choice(pool, int(size * share), replace=False) for pool, share in zip(pools, wanted, strict=True)]
        target = np.array([len(part) for part in chosen]) / sum(map(len, chosen))
        counts = np.bincount(labels[np.concatenate(chosen)], minlength=k)
        confusion = np.zeros((k, k), int)
        np.add.at(confusion, (truth[known], labels[known]), 1)
        found = correct.corrected(counts, confusion, 0)
        raw, after = (distances.total_variation(p, target) for p in (counts / counts.sum(), found.shares))
        assert raw > 0.1
        assert after <= raw / 2  # a quarter in large samples; here 500 faces calibrate a labeller fitted in seconds
        assert not correct.raw_is_better(counts, found)


PUBLISHED = """Image Path,GenderPrompt,GenderIdx,GenderProb_man,GenderProb_woman,SkinPrompt,SkinTonePred
g/sample_00000.png,a photo of a woman,1,0.15,0.85,a person with beige skin,4
g/sample_00001.png,a photo of a man,0,0.9,0.1,a person with light skin,2
"""


def test_the_originals_labels_are_taken_as_they_are(tmp_path):
    csv = tmp_path / "theirs.csv"
    csv.write_text(PUBLISHED)
    done = import_labels.import_labels(tmp_path / "out", csv, None)
    assert (done["images"], Path(done["folder"]).name) == (2, "theirs")
    labels = pl.read_parquet(Path(done["folder"]) / "labels.parquet")
    assert labels.select("key", "source", "run", "method", "gender", "age", "skin_tone", "p_female").rows() == [
        ("00000000", "generated", "theirs", "imported", "female", None, 4, pytest.approx(0.85)),
        ("00000001", "generated", "theirs", "imported", "male", None, 2, pytest.approx(0.1)),
    ]
    answer = sql.ask(sql.connect(tmp_path / "out"), "distribution", run="theirs")
    assert answer.rows() == [("generated", "female", 1, 0.5), ("generated", "male", 1, 0.5)]


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published labels are not here")
def test_the_published_distributions_come_out_exactly(tmp_path):
    import_labels.import_labels(tmp_path, REFERENCE / "dcgan_gan_subset_clip_labels.csv", "published")
    connection = sql.connect(tmp_path)
    for name, attribute in (("GenderIdx", "gender"), ("SkinTonePred", "skin_tone")):
        published = pl.read_csv(REFERENCE / f"generated_{name}_distribution.csv")
        groups = published[name].cast(pl.String).replace({"0": "male", "1": "female"} if attribute == "gender" else {})
        ours = sql.ask(connection, "distribution", attribute=attribute, run="published")
        assert dict(zip(ours["group"], ours["count"], strict=True)) == dict(
            zip(groups, published["count"], strict=True)
        )
        assert dict(zip(ours["group"], (100 * ours["share"]).round(2), strict=True)) == dict(
            zip(groups, published["percent"], strict=True)
        )


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data here")
def test_the_originals_tables_of_its_training_data_are_questions(tmp_path):
    """Its 135,766 rows, made again from the published counts: of tones, and of gender within the groups of tones."""
    tables = {name: pl.read_csv(REFERENCE / f"train_{name}_distribution.csv") for name in ("skin_tone", "intersection")}
    tones = tables["skin_tone"].select(pl.col("Skin Tone").repeat_by("count").explode()).to_series().sort()
    group = pl.when(pl.col("skin_tone") < 4).then(pl.lit("light")).when(pl.col("skin_tone") < 7).then(pl.lit("medium"))
    images = tones.cast(pl.Int8).to_frame("skin_tone").with_columns(skin_group=group.otherwise(pl.lit("dark")))
    women = dict(tables["intersection"].filter(pl.col("Intersection") < 3).select("Intersection", "count").iter_rows())
    place = pl.int_range(pl.len()).over("skin_group")
    limit = pl.col("skin_group").replace_strict(
        {"light": women[0], "medium": women[1], "dark": women[2]}, return_dtype=pl.Int64
    )
    gender = pl.when(place < limit).then(pl.lit("female")).otherwise(pl.lit("male"))
    about = {"status": "packed", "target": "fake", "family": "GANs"}
    images = images.with_columns(gender=gender, key=pl.int_range(pl.len()).cast(pl.String))
    (tmp_path / "shards").mkdir()
    images.with_columns(pl.lit(v).alias(k) for k, v in about.items()).write_parquet(tmp_path / "shards/images.parquet")
    connection = sql.connect(tmp_path)
    codes = ["female-light", "female-medium", "female-dark", "male-light", "male-medium", "male-dark"]
    for attribute, theirs in tables.items():
        ours = sql.ask(connection, "distribution", attribute=attribute, source="annotated")
        names = [codes[i] for i in theirs["Intersection"]] if attribute == "intersection" else theirs["Skin Tone"]
        assert ours["group"].to_list() == [str(name) for name in names]
        assert ours["count"].to_list() == theirs["count"].to_list()
        assert (100 * ours["share"]).round(2).to_list() == theirs["percent"].to_list()
    assert sql.ask(connection, "target").rows() == [("fake", "GANs", 135_766, 1.0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "neither the original"),
        (PUBLISHED.replace(",4\n", ",11\n"), "'11' is no skin_tone"),
        (PUBLISHED.replace(",1,0.15", ",2,0.15"), "'2' is no gender"),
        (PUBLISHED.replace("0.85", "much"), "no number"),
        (PUBLISHED.replace("sample_00001", "sample_00000"), "an image twice"),
        (PUBLISHED.split("\n")[0] + "\n", "holds no labels"),
        ("", "can't be read as CSV"),
        (PUBLISHED.replace("0.85", "8.5"), "is not between 0 and 1"),
        (PUBLISHED.replace("GenderIdx", "SkinTonePred", 1), "neither the original|twice"),
        (re.sub("^[^,\n]*sample_00001[^,\n]*,", ",", PUBLISHED, flags=re.M), "row 2 names no image"),
    ],
)
def test_labels_that_cannot_be_taken_are_one_line(tmp_path, text, says):
    csv = tmp_path / "theirs.csv"
    csv.write_text(text)
    with pytest.raises(FairfaceError, match=says) as caught:
        import_labels.import_labels(tmp_path / "out", csv, None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_labels_from_elsewhere_must_be_of_the_runs_samples_and_replace_no_others(labelled, tmp_path):
    csv = tmp_path / "theirs.csv"
    csv.write_text(PUBLISHED)
    with pytest.raises(FairfaceError, match="don't match"):
        import_labels.import_labels(labelled, csv, "mine")
    pl.DataFrame({"key": ["00000000", "00000001"]}).write_parquet(labelled / "runs" / "mine" / "samples.parquet")
    (labelled / "runs" / "mine" / "labels.json").write_text(json.dumps({"labeller": "other"}))
    with pytest.raises(FairfaceError, match="has labels of other"):
        import_labels.import_labels(labelled, csv, "mine")
    assert import_labels.import_labels(labelled, csv, "mine", force=True)["images"] == 2
