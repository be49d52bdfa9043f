"""Which labeller is used where CLIP's weights can't be had."""

import pytest
import torch

from models import clip
from pipeline.labelling import embedded
from pipeline.labelling.labeller_choice import LabelConfig, choose_labeller
from shards.errors import WeightsUnavailable

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch, quick_labeller):
    """CLIP's weights are unavailable; the embedded labeller is the one that was fitted for tests."""

    def unavailable(*_, **__):
        raise WeightsUnavailable("the weights are not here")

    monkeypatch.setattr(clip, "load_labeller", unavailable)
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)


def test_real_faces_without_weights_fall_back_with_a_warning(quick_labeller, capsys):
    assert choose_labeller(LabelConfig(), CPU, synthetic=False, progress=False) is quick_labeller
    assert "do not rely on its labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config", [LabelConfig(model="ViT-B-32"), LabelConfig(pretrained="openai"), LabelConfig(prompts="original")]
)
def test_a_named_labeller_has_no_fallback(config):
    with pytest.raises(WeightsUnavailable):
        choose_labeller(config, CPU, synthetic=False, progress=False)


def test_synthetic_faces_are_labelled_by_the_embedded_labeller_without_a_warning(quick_labeller, capsys):
    assert choose_labeller(LabelConfig(), CPU, synthetic=True, progress=False) is quick_labeller
    assert not capsys.readouterr().err
