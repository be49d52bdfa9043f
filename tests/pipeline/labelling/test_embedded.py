"""The embedded labeller: a fit of few steps to few synthetic faces, its cache and its errors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save

from models import clip
from pipeline.labelling import embedded, embedded_fit, embedded_model
from shards.documents import file_hashes
from shards.errors import FairfaceError
from shards.synthetic import dataset

SMALL = {"steps": 40, "faces": 300, "seed": 3}
HELD_OUT_SEED = 2 * SMALL["seed"] + 1_000_001

rendered = {}
render_faces = embedded_fit.render_faces


def render_once(count, seed, *, progress=False):
    """Faces as `render_faces` returns them, rendered in this process and only once."""
    if (count, seed) not in rendered:
        parts = [
            render_faces(min(200, count - first), 1000 * seed + first, progress=False) for first in range(0, count, 200)
        ]
        rendered[count, seed] = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    return rendered[count, seed]


@pytest.fixture(autouse=True, scope="module")
def small_fit():
    """Half the width, small batches and few held-out faces, so that a fit takes seconds; labels in float32."""
    with pytest.MonkeyPatch.context() as patch:
        vision = embedded_model.MODEL["vision_cfg"] | {"width": 8, "head_width": 16}
        patch.setattr(embedded_model, "MODEL", embedded_model.MODEL | {"vision_cfg": vision})
        patch.setattr(embedded_fit, "BATCH", 48)
        patch.setattr(embedded, "HELD_OUT", 200)
        patch.setattr(embedded_fit, "render_faces", render_once)
        patch.setenv("FAIRFACE_BF16", "off")
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def path(small_fit, cache):
    return embedded.fit(cache, **SMALL, progress=False)


def test_the_fit_is_cached_and_its_accuracy_is_above_chance(path):
    assert path.name.startswith("synthetic-faces-")
    assert path.stat().st_size < 9e6
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["held_out"] == 200
    assert document["accuracy"].keys() == {"gender", "age", "skin_tone"}
    assert document["balanced_accuracy"]["gender"] > 0.6
    assert document["balanced_accuracy"]["skin_tone"] > 0.2
    assert "skin tone 0." in embedded.describe(path)


def test_a_second_fit_reads_the_cache(path, cache, monkeypatch):
    monkeypatch.setattr(embedded_fit, "fit_model", lambda *_, **__: pytest.fail("fitted again"))
    assert embedded.fit(cache, **SMALL, progress=False) == path


# In bfloat16 the labels of faces near the boundary between two classes may differ: of few among 200 faces.
@pytest.mark.parametrize(("bf16", "tolerance"), [("off", 1e-4), ("on", 0.03)])
def test_the_labeller_is_as_accurate_as_measured(path, monkeypatch, bf16, tolerance):
    monkeypatch.setenv("FAIRFACE_BF16", bf16)
    monkeypatch.setattr(embedded, "fit", lambda *_, **__: path)
    labeller = embedded.load_embedded("cpu")
    assert labeller.name.startswith("synthetic-faces@")
    assert labeller.size == 64
    assert labeller.bf16 is (bf16 == "on")
    images, classes = render_once(200, HELD_OUT_SEED)
    hits = labeller.label(images)[0]["gender"].argmax(1) == classes[:, 0]
    document = json.loads(path.with_suffix(".json").read_text())
    assert hits.float().mean().item() == pytest.approx(document["accuracy"]["gender"], abs=tolerance)


def test_the_fit_reduces_the_held_out_loss(path):
    images, classes = render_once(200, HELD_OUT_SEED)
    tokens = embedded_fit.captions()

    @torch.no_grad()
    def loss(model):
        rng, pixels = torch.Generator().manual_seed(0), (images - 127.5) / 63.75
        return embedded_fit.contrastive_loss(model.eval(), pixels, classes=classes, tokens=tokens, rng=rng).item()

    untrained, model = embedded_model.build_model(), embedded_model.build_model()
    model.load_state_dict(load_file(path))
    assert loss(model) < 0.9 * loss(untrained)


def test_the_fit_is_reproducible_and_keeps_the_random_state():
    images, classes = render_once(200, 6)
    state = torch.random.get_rng_state()
    first, second = (embedded_fit.fit_model(images, classes, steps=3, seed=7, progress=False) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


def test_captions_name_the_classes_of_the_face():
    face = dataset.sample_faces(1, 11)[0]
    truth = {name: str(getattr(face, name)) for name in embedded_model.ATTRIBUTES}
    classes = torch.tensor([[embedded_model.ATTRIBUTES[name].index(value) for name, value in truth.items()]])
    tokens, encode = embedded_fit.captions(), embedded_model.tokenizer()
    words = [clip.read_prompts("synthetic")[name][value] for name, value in truth.items()]
    for kind, table in zip(embedded_fit.KINDS, tokens, strict=True):
        text = "a drawn face, " + ", ".join(words[index] for index in kind)
        assert torch.equal(table[embedded_fit.caption_index(kind, classes)[0]], encode(text)[0])
    # the longest caption ends within the context, so that none is truncated
    assert all(
        (table == encode.eot_token_id).any(1).all() and table[:, -1].max() in (0, encode.eot_token_id)
        for table in tokens
    )


def test_synthetic_faces_have_the_labeller_s_classes():
    prompts = clip.read_prompts(embedded_model.PROMPT_SET)
    assert {name: set(prompts[name]) for name in prompts if name != "templates"} == {
        name: set(names) for name, names in embedded_model.ATTRIBUTES.items()
    }


def test_rendered_faces_are_balanced_and_in_order():
    images, _ = render_faces(40, 21, progress=False)
    assert images.shape == (40, 3, 64, 64)
    assert images.dtype == torch.uint8
    again, _ = render_faces(20, 21, progress=False)
    assert torch.equal(images[:20], again)
    _, classes = render_faces(200, 22, progress=False)
    assert torch.bincount(classes[:, 2], minlength=10).min() >= 8


def test_augmented_faces_keep_their_colours():
    images, _ = render_once(200, 6)
    augmented = embedded_fit.augment(images[:32], torch.Generator().manual_seed(1))
    assert augmented.shape == (32, 3, 64, 64)
    assert augmented.min() >= 0
    assert augmented.max() <= 255
    assert (augmented.mean((2, 3)) - images[:32].float().mean((2, 3))).abs().max() < 3


@pytest.mark.parametrize("change", [{"steps": 41}, {"faces": 301}, {"seed": 4}])
def test_the_name_of_the_cached_file_depends_on_everything_that_decides_the_weights(cache, change, monkeypatch):
    before = embedded.cache_path(cache, **SMALL)
    assert embedded.cache_path(cache, **SMALL | change) != before
    monkeypatch.setattr(embedded, "RENDER_VERSION", -1)
    assert embedded.cache_path(cache, **SMALL) != before


def test_the_default_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded.cache_path(None, steps=1, faces=1, seed=0).parent == tmp_path / "fairface"


def test_a_cache_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FairfaceError, match="set XDG_CACHE_HOME"):
        embedded.fit(tmp_path / "file" / "cache", **SMALL, progress=False)


@pytest.mark.parametrize("damage", ["a flipped bit", "cut off", "no document", "an old document", "another's weights"])
def test_a_damaged_cache_is_written_again(path, tmp_path, monkeypatch, damage):
    cached = embedded.cache_path(tmp_path, **SMALL)
    content, document = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    damaged = {
        "a flipped bit": content[:90_000] + bytes([content[90_000] ^ 1]) + content[90_001:],
        "cut off": content[:-1],
        "another's weights": save({"x": torch.zeros(3)}),
    }
    cached.write_bytes(damaged.get(damage, content))
    if damage == "an old document":
        document = {key: value for key, value in document.items() if key != "files"} | {"format": 1}
    if damage != "no document":
        cached.with_suffix(".json").write_text(json.dumps(document))
    fits, model = [], embedded_model.build_model()
    monkeypatch.setattr(embedded_fit, "fit_model", lambda *_, **__: fits.append(1) or model)
    assert embedded.fit(tmp_path, **SMALL, progress=False) == cached
    assert fits == [1]
    embedded.fit(tmp_path, **SMALL, progress=False)
    assert fits == [1]  # it is intact now
    assert json.loads(cached.with_suffix(".json").read_text())["files"] == file_hashes(cached)


def test_damaged_weights_are_reported(path, tmp_path, monkeypatch):
    damaged = tmp_path / "synthetic-faces-0.safetensors"
    damaged.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setattr(embedded, "fit", lambda *_, **__: damaged)
    with pytest.raises(FairfaceError, match="is damaged: remove it"):
        embedded.load_embedded()
