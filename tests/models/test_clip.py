"""Zero-shot labelling with a tiny open_clip model, random weights and no network."""

import json
import math
import os
import time

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from models import clip
from shards.attributes import built_in_attributes, read_own_attributes
from shards.errors import FairfaceError

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 1},
}
TOKENIZER = open_clip.SimpleTokenizer(context_length=24)

# In bfloat16 every operation rounds to 8 significant bits: a relative error of at most 2^-9. About 18 operations follow
# each other in this model (9 in each of its two blocks), so that an embedding of length 1 is off by some
# sqrt(18) * 2^-9 in a random direction of its 32, and its cosine with a text by 1 / sqrt(32) of that. A probability
# changes by at most 1/4 of the change of its logit, which is scale = 1 / 0.07 times the cosine; three times this
# standard error is 0.016.
BF16_TOLERANCE = 3 * (1 / 4) * (1 / 0.07) * math.sqrt(18) * 2**-9 / math.sqrt(32)


def tiny_model(seed=0):
    torch.manual_seed(seed)
    model = open_clip.CLIP(**CONFIG)
    open_clip.set_model_preprocess_cfg(model, {"size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3})
    return model


def tiny_labeller(seed=0, prompts="faces"):
    return clip.Labeller(tiny_model(seed), TOKENIZER, prompts=clip.read_prompts(prompts), name="tiny")


@pytest.fixture(scope="module")
def labeller():
    """In the precision that this processor is fast at."""
    return tiny_labeller()


@pytest.fixture(params=["off", "on"], ids=["float32", "bfloat16"])
def labeller_of_each_precision(request, monkeypatch):
    monkeypatch.setenv("FAIRFACE_BF16", request.param)
    labeller = tiny_labeller()
    assert labeller.bf16 is (request.param == "on")
    return labeller


@pytest.fixture(scope="module")
def images():
    colours = torch.rand((9, 3, 6, 6), generator=torch.Generator().manual_seed(1))
    return (255 * torch.nn.functional.interpolate(colours, (48, 48), mode="bilinear")).byte()


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """The name of a tiny architecture, made known to open_clip as any model of its own."""
    path = tmp_path_factory.mktemp("configs") / "tiny-test.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    return "tiny-test"


def test_probabilities_sum_to_one_and_embeddings_have_length_one(labeller_of_each_precision, images):
    probabilities, embeddings = labeller_of_each_precision.label(images)
    assert {name: tuple(p.shape) for name, p in probabilities.items()} == {
        "gender": (9, 2),
        "age": (9, 5),
        "skin_tone": (9, 10),
        "race": (9, 7),
    }
    for values in probabilities.values():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.sum(1), torch.ones(9))
    assert embeddings.dtype == torch.float16
    assert embeddings.shape == (9, 32)
    torch.testing.assert_close(embeddings.float().norm(dim=1), torch.ones(9), atol=2e-3, rtol=0)


def test_labels_do_not_depend_on_the_batch_size(labeller_of_each_precision, images):
    labeller = labeller_of_each_precision
    expected, _ = labeller.label(images)
    for name in expected:
        actual = torch.cat([labeller.label(batch)[0][name] for batch in images.split(2)])
        # other kernels serve other batch sizes: the sums' order, and so their rounding, may differ
        tolerance = BF16_TOLERANCE if labeller.bf16 else 1e-3
        torch.testing.assert_close(actual, expected[name], atol=tolerance, rtol=0)


def test_text_is_encoded_once(labeller, images, monkeypatch):
    monkeypatch.setattr(labeller.model, "encode_text", lambda *_, **__: pytest.fail("text was encoded again"))
    labeller.label(images)
    labeller.label(images)


def test_softmax_of_the_models_own_scale_over_template_means(labeller_of_each_precision, images):
    """The label computed by hand in float32, as Radford et al. describe it: one class at a time."""
    labeller = labeller_of_each_precision
    prompts, model = clip.read_prompts("faces"), tiny_model().eval()
    with torch.no_grad():
        image = model.encode_image(labeller.prepare(images), normalize=True)
        classes = []
        for name in labeller.attributes["age"].names:
            texts = TOKENIZER([t.format(prompts["age"][name]) for t in prompts["templates"]])
            mean = model.encode_text(texts, normalize=True).mean(0)
            classes.append(mean / mean.norm())
        expected = (model.logit_scale.exp() * image @ torch.stack(classes).T).softmax(1)
    tolerance = BF16_TOLERANCE if labeller.bf16 else 2e-3
    torch.testing.assert_close(labeller.label(images)[0]["age"], expected, atol=tolerance, rtol=0)


def test_preprocessing_is_open_clips_own(labeller, images):
    from torchvision.transforms.v2.functional import to_pil_image

    theirs = open_clip.image_transform((32, 32), is_train=False, mean=(0.5,) * 3, std=(0.25,) * 3)
    expected = torch.stack([theirs(to_pil_image(image)) for image in images])
    # Pillow rounds to 1/255 after each of its two passes, which is 0.016 here
    torch.testing.assert_close(labeller.prepare(images), expected, atol=0.04, rtol=0)


def test_only_attributes_with_prompts_are_labelled(images):
    labeller = tiny_labeller(prompts="original")
    probabilities, _ = labeller.label(images)
    assert list(probabilities) == list(labeller.attributes) == ["gender", "skin_tone"]


def test_attributes_that_have_other_classes_are_not_labelled(images, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text("""
        [gender]
        title = "Gender"
        subject = "gender balance"
        plural = "genders"
        classes = { male = {}, female = {}, other = {} }
        """)
    labeller, expected = tiny_labeller(), tiny_labeller().label(images)[0]
    probabilities, _ = labeller.restrict_to(read_own_attributes(own).table).label(images)
    assert list(probabilities) == ["age", "skin_tone", "race"]
    assert torch.equal(probabilities["age"], expected["age"])


def test_images_that_are_not_uint8_are_refused(labeller, images):
    with pytest.raises(ValueError, match="uint8"):
        labeller.label(images.float())


def test_name_changes_with_weights_and_prompts_only(labeller):
    name = labeller.name
    assert name.startswith("tiny@")
    assert len(name) == len("tiny@") + 8
    assert tiny_labeller().name == name
    assert len({name, tiny_labeller(seed=1).name, tiny_labeller(prompts="original").name}) == 3


@pytest.mark.parametrize("name", ["faces", "original", "synthetic"])
def test_our_prompt_sets_are_complete(name):
    prompts = clip.read_prompts(name)
    assert {name: set(prompts[name]) for name in prompts if name != "templates"} == {
        name: set(attribute.names) for name, attribute in built_in_attributes().items() if name in prompts
    }
    assert list(prompts["skin_tone"]) == [str(tone) for tone in range(1, 11)]
    assert ("age" in prompts) == (name != "original")


def test_original_prompts_are_the_published_ones():
    prompts = clip.read_prompts("original")
    assert prompts["gender"]["female"] == "a photo of a woman"
    assert prompts["skin_tone"]["4"] == "a person with beige skin"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates = ['a face']", "one {} each"),
        ("templates = ['{}']", "found none"),
        ("templates = ['{}']\n[hair]\nred = 'red'", "found hair"),
        ("templates = ['{}']\n[gender]\nfemale = 'a woman'", "check male"),
        ("templates = [", "not a TOML file"),
        ("gender = 'x'\ntemplates = ['{}']", "gender must be a table"),
        ("templates = ['{} {x}']\n[gender]\nfemale = 'a'\nmale = 'b'", "one {} each"),
        ("templates = ['{}']\n[gender]\nfemale = 1\nmale = 'b'", "gender must be a table"),
        ("templates = '{}'", "one {} each"),
        ("templates = [1]", "one {} each"),
        ("templates = [['{}']]", "one {} each"),
        ("x = " + "[" * 1000 + "]" * 1000, "nested too deeply"),
        ("x = " + "{x = " * 1000 + "1" + "}" * 1000, "nested too deeply"),
        ("\0\1\2", "not a TOML file"),
        ("#" * (1 << 21), "more than the 1,048,576 that are read"),
    ],
)
def test_a_users_prompts_are_checked(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(FairfaceError, match=message):
        clip.read_prompts(tmp_path / "mine.toml")


@pytest.mark.parametrize("kind", ["fifo", "loop", "device", "folder"])
def test_prompts_that_are_not_a_regular_file_are_refused_at_once(tmp_path, kind):
    path = tmp_path / "mine.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    with pytest.raises(FairfaceError, match=r"not a regular file|there is no prompt set or file"):
        clip.read_prompts(path)


def test_an_unknown_prompt_set_is_refused():
    with pytest.raises(FairfaceError, match="the sets are faces, original, synthetic"):
        clip.read_prompts("fces")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_local_checkpoint_is_loaded(tmp_path, registered, labeller, images, suffix):
    path = tmp_path / f"weights.{suffix}"
    state = tiny_model().state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state}, path)
    loaded = clip.load_labeller(registered, path)
    assert loaded.name.startswith("tiny-test-weights@")
    assert loaded.size == 32
    # preprocessing is open_clip's default where no configuration is found; the weights are those of the file
    assert loaded.mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    torch.testing.assert_close(loaded.text["age"], labeller.text["age"])
    assert loaded.label(images)[1].shape == (9, 32)


def test_preprocessing_is_read_from_the_file_next_to_a_checkpoint(tmp_path, registered):
    save_file(tiny_model().state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}))
    labeller = clip.load_labeller(registered, tmp_path / "weights.safetensors")
    assert labeller.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        "[" * 100_000,
        *(
            json.dumps({"preprocess_cfg": config})
            for config in (
                None,
                [],
                "x",
                {"mean": None},
                {"mean": "abc"},
                {"mean": [1, 2]},
                {"mean": [[1], [2], [3]]},
                {"mean": [True, False, True]},
                {"mean": [math.nan, 0, 0]},
                {"std": [0, 1, 1]},
                {"std": [math.inf, 1, 1]},
                {"std": {}},
                {"size": []},
                {"size": "big"},
                {"size": -1},
                {"size": 10**9},
                {"size": [32, 32, 32]},
                {"size": 1.5},
                {"interpolation": 7},
                {"mode": []},
                {"unknown": 1},
            )
        ),
    ],
)
def test_preprocessing_of_any_shape_is_used_or_refused_in_one_line(tmp_path, registered, images, text):
    save_file(tiny_model().state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "open_clip_config.json").write_text(text)
    message = ""
    try:
        labeller = clip.load_labeller(registered, tmp_path / "weights.safetensors")
        assert labeller.label(images)[1].isfinite().all()
    except FairfaceError as error:
        message = str(error)
    assert "\n" not in message
    if any(word in text for word in ("mean", "std", "size")):
        assert "open_clip_config.json: '" in message


def test_weights_that_are_not_finite_are_refused(tmp_path, registered):
    state = tiny_model().state_dict()
    state["visual.proj"][0, 0] = torch.nan
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(FairfaceError, match="a weight is NaN or infinite"):
        clip.load_labeller(registered, tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path, registered, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FairfaceError, match="is not a checkpoint of tiny-test"):
        clip.load_labeller(registered, tmp_path / name)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, registered):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(FairfaceError, match="is not a checkpoint of tiny-test") as raised:
        clip.load_labeller(registered, tmp_path / "other.safetensors")
    assert "\n" not in str(raised.value)


def test_an_unknown_model_is_refused_with_suggestions():
    with pytest.raises(FairfaceError, match=r"no model 'ViT-B-33'; did you mean .*ViT-B-32"):
        clip.load_labeller("ViT-B-33", "openai")


def test_a_missing_file_or_unknown_tag_is_refused():
    with pytest.raises(FairfaceError, match=r"'gone.pt' is neither a file nor a tag .* tags are: openai"):
        clip.load_labeller("ViT-B-32-quickgelu", "gone.pt")


def test_a_missing_network_is_reported_within_seconds(monkeypatch):
    monkeypatch.setattr(clip.hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(clip.hub.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(clip.hub.huggingface_hub, "hf_hub_url", lambda *_: "http://127.0.0.1:9/weights")  # closed
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    start = time.monotonic()
    with pytest.raises(FairfaceError) as raised:
        clip.load_labeller("ViT-B-32-quickgelu", "openai")
    assert time.monotonic() - start < 3 + clip.hub.REQUEST_SECONDS
    repository = "timm/vit_base_patch32_clip_224.openai"
    assert f"hf download {repository} open_clip_model.safetensors" in str(raised.value)
    assert "--clip-pretrained /path/to/open_clip_model.safetensors" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_in_the_cache_need_no_network(monkeypatch, tmp_path):
    cached = tmp_path / "cached.safetensors"
    cached.touch()
    monkeypatch.setattr(clip.hub.huggingface_hub, "try_to_load_from_cache", lambda *_: str(cached))
    monkeypatch.setattr(clip.hub.urllib.request, "urlopen", lambda *_, **__: pytest.fail("used the network"))
    assert clip.find_weights("ViT-B-32-quickgelu", "openai") == cached
