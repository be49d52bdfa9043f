"""Which precision a processor is fast at, and the environment variable that overrides it."""

import pytest
import torch

from models.precision import bf16_is_fast
from shards.errors import FairfaceError

CPU = torch.device("cpu")
PROCESSORS = [("avx2 avx512f", False), ("avx2 avx512_bf16", False), ("amx_bf16", True), ("asimd bf16", True)]


@pytest.fixture(params=PROCESSORS, ids=[flags for flags, _ in PROCESSORS])
def has_bf16(request, monkeypatch):
    """Simulate a processor; whether it has instructions for bfloat16."""
    flags, has_bf16 = request.param
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_: f"flags : {flags} end")
    return has_bf16


@pytest.mark.parametrize("mode", [None, "", "auto"])
def test_bf16_follows_the_processor(monkeypatch, has_bf16, mode):
    if mode is None:
        monkeypatch.delenv("FAIRFACE_BF16", raising=False)
    else:
        monkeypatch.setenv("FAIRFACE_BF16", mode)
    assert bf16_is_fast(CPU) is has_bf16


@pytest.mark.parametrize("mode", ["on", "off"])
def test_the_environment_variable_overrides_the_processor(monkeypatch, has_bf16, mode):
    monkeypatch.setenv("FAIRFACE_BF16", mode)
    assert bf16_is_fast(CPU) is (mode == "on")


@pytest.mark.parametrize("mode", ["1", "ON", "bf16"])
def test_another_value_is_refused_in_one_line(monkeypatch, mode):
    monkeypatch.setenv("FAIRFACE_BF16", mode)
    with pytest.raises(FairfaceError, match=f"^FAIRFACE_BF16={mode}: use on, off or auto$"):
        bf16_is_fast(CPU)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_gpu_ignores_the_environment_variable(monkeypatch, mode):
    monkeypatch.setenv("FAIRFACE_BF16", mode)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert bf16_is_fast(torch.device("cuda"))
