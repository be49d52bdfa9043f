"""The embedded labeller: a fit of few steps on few drawn faces, its cache and its errors."""

import json

import pytest
import torch
from safetensors.torch import load_file

from models import clip
from pipeline.labelling import embedded
from shards.errors import FairfaceError
from shards.synthetic import dataset, face

SMALL = {"steps": 40, "faces": 300, "seed": 3, "progress": False}


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Small enough for a test: half the width, small batches, few held-out faces, drawn in this process."""
    with pytest.MonkeyPatch.context() as patch:
        vision = embedded.MODEL["vision_cfg"] | {"width": 8, "head_width": 16}
        patch.setattr(embedded, "MODEL", embedded.MODEL | {"vision_cfg": vision})
        patch.setattr(embedded, "BATCH", 48)
        patch.setattr(embedded, "HELD_OUT", 200)
        patch.setattr(embedded, "render_faces", remembered)
        yield


DRAWN, draw = {}, embedded.render_faces


def remembered(count, seed, progress=False):
    if (count, seed) not in DRAWN:
        parts = [draw(min(200, count - first), 1000 * seed + first, False) for first in range(0, count, 200)]
        DRAWN[count, seed] = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    return DRAWN[count, seed]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def path(quick, cache):
    return embedded.fit(cache, **SMALL)


def test_fit_is_kept_and_measured_above_chance(path):
    assert path.name.startswith("drawn-faces-")
    assert path.stat().st_size < 9e6
    found = json.loads(path.with_suffix(".json").read_text())
    assert found["held_out"] == 200
    assert found["accuracy"].keys() == {"gender", "age", "skin_tone", "skin_group"}
    assert found["balanced_accuracy"]["skin_group"] > 0.6
    assert found["balanced_accuracy"]["skin_tone"] > 0.2
    assert "skin tone 0." in embedded.describe(path)


def test_a_second_fit_reads_the_cache(path, cache, monkeypatch):
    monkeypatch.setattr(embedded, "fit_model", lambda *_: pytest.fail("fitted again"))
    assert embedded.fit(cache, **SMALL) == path


def test_embedded_labels_as_measured(path, monkeypatch):
    monkeypatch.setattr(embedded, "fit", lambda *_, **__: path)
    read = embedded.load_embedded("cpu")
    assert read.name.startswith("drawn-faces@")
    assert read.size == 64
    images, classes = remembered(200, 2 * SMALL["seed"] + 1_000_001)
    hit = read.label(images)[0]["gender"].argmax(1) == classes[:, 0]
    found = json.loads(path.with_suffix(".json").read_text())
    assert hit.float().mean().item() == pytest.approx(found["accuracy"]["gender"], abs=1e-4)


def test_the_loss_falls(path):
    images, classes = remembered(200, 2 * SMALL["seed"] + 1_000_001)  # held out

    @torch.no_grad()
    def loss(model):
        rng = torch.Generator().manual_seed(0)
        return embedded.contrastive_loss(model.eval(), (images - 127.5) / 63.75, classes, tokens, rng).item()

    tokens, untrained, model = embedded.captions(), embedded.build_model(), embedded.build_model()
    model.load_state_dict(load_file(path))
    assert loss(model) < 0.9 * loss(untrained)


def test_the_fit_repeats_and_leaves_the_random_state_alone():
    images, classes = remembered(200, 6)
    state = torch.random.get_rng_state()
    first, second = (embedded.fit_model(images, classes, 3, 7, progress=False) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


def test_captions_say_what_was_drawn():
    face = dataset.sample_faces(1, 11)[0]
    truth = {name: str(getattr(face, name)) for name in embedded.ATTRIBUTES}
    classes = torch.tensor([[clip.CLASSES[name].index(value) for name, value in truth.items()]])
    tokens, encode = embedded.captions(), embedded.tokenizer()
    words = [clip.read_prompts("drawn")[name][value] for name, value in truth.items()]
    for kind, table in zip(embedded.KINDS, tokens, strict=True):
        text = "a drawn face, " + ", ".join(words[index] for index in kind)
        assert torch.equal(table[embedded.caption_index(kind, classes)[0]], encode(text)[0])
    # the longest caption ends within the context, so that none is cut
    assert all(
        (table == encode.eot_token_id).any(1).all() and table[:, -1].max() in (0, encode.eot_token_id)
        for table in tokens
    )


def test_drawn_classes_are_ours():
    assert {name: tuple(map(str, table)) for name, table in dataset.CLASSES.items()} == clip.CLASSES


def test_drawing_is_even_and_in_order():
    images, _ = draw(40, 21, progress=False)
    assert images.shape == (40, 3, 64, 64)
    assert images.dtype == torch.uint8
    again, _ = draw(20, 21, progress=False)
    assert torch.equal(images[:20], again)
    _, many = draw(200, 22, progress=False)
    assert torch.bincount(many[:, 2], minlength=10).min() >= 8


def test_worn_faces_stay_faces():
    images, _ = remembered(200, 6)
    worn = embedded.augment(images[:32], torch.Generator().manual_seed(1))
    assert worn.shape == (32, 3, 64, 64)
    assert worn.min() >= 0
    assert worn.max() <= 255
    assert (worn.mean((2, 3)) - images[:32].float().mean((2, 3))).abs().max() < 3


@pytest.mark.parametrize("change", [{"steps": 41}, {"faces": 301}, {"seed": 4}])
def test_the_cache_is_of_everything_that_decides(cache, change, monkeypatch):
    key = {name: SMALL[name] for name in ("steps", "faces", "seed")}
    before = embedded.cache_path(cache, **key)
    assert embedded.cache_path(cache, **key | change) != before
    monkeypatch.setattr(embedded, "RENDER_VERSION", -1)
    assert embedded.cache_path(cache, **key) != before


def test_default_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded.cache_path(None, 1, 1, 0).parent == tmp_path / "fairface"


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FairfaceError, match="set XDG_CACHE_HOME"):
        embedded.fit(tmp_path / "file" / "cache", **SMALL)


def test_a_damaged_cache(path, tmp_path, monkeypatch):
    damaged = tmp_path / "drawn-faces-0.safetensors"
    damaged.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setattr(embedded, "fit", lambda *_, **__: damaged)
    with pytest.raises(FairfaceError, match="is damaged: remove it"):
        embedded.load_embedded()
