"""Where bfloat16 pays."""

from pathlib import Path

import torch


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there.

    A CPU without instructions for it emulates it, 5 to 20 times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    words = set(Path("/proc/cpuinfo").read_text().split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})  # x86 twice, then ARM
