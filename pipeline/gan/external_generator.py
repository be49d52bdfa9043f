"""Generates images with another program's generator: a TorchScript file, or a Python function."""

import importlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.random_streams import EXTERNAL_SAMPLES, seeded_generator
from pipeline.gan.png import encode_png, filter_rows
from shards.atomic_io import check_regular, file_sha256, fingerprint
from shards.errors import FairfaceError
from shards.image_check import MAX_ASPECT

FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # module:function
TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ts", ".jit")
MAX_VALUE = 2  # of float images; values between 1 and this are clipped, larger ones are refused
MAX_SIDE = 4096  # pixels
SEEDS = 2**32  # numpy's legacy generator accepts no larger ones


@dataclass(frozen=True)
class ExternalGenerator:
    """A generator of another program."""

    name: str
    generate: Callable[[int, int], Any]  # (count, seed) -> images
    sha256: str  # of its file
    device: torch.device
    seed: int
    batch_size: int

    def batch(self, number: int) -> Tensor:
        """Generate one full batch, uint8 [batch_size, 3, H, W] on the CPU: a function of (seed, batch size, number).

        Every batch has its own seed, which also seeds torch's global generators. Raises FairfaceError if the generator
        fails, and as `to_uint8_images` does.
        """
        first = int(torch.randint(SEEDS, (), generator=seeded_generator("cpu", self.seed, EXTERNAL_SAMPLES)))
        seed = (first + number) % SEEDS
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            with user_errors(f"{self.name}({self.batch_size}, {seed})"):
                output = self.generate(self.batch_size, seed)
        return to_uint8_images(output, count=self.batch_size, name=self.name)

    def images(self, count: int, *, size: int) -> Iterator[bytes]:
        """Yield `count` PNG files of `size` x `size` pixels, cropped and resized like training images."""
        side: tuple[int, ...] = ()
        for number in range(-(-count // self.batch_size)):
            batch = self.batch(number)[: count - number * self.batch_size]
            side = side or tuple(batch.shape[2:])
            if tuple(batch.shape[2:]) != side:
                raise FairfaceError(f"{self.name} returned images of {side}, then of {tuple(batch.shape[2:])} pixels")
            yield from map(encode_png, filter_rows(resize_and_crop(batch, size).permute(0, 2, 3, 1).contiguous()))


def load_function(name: str) -> tuple[Callable[[int, int], Any], str]:
    """Import `module:function`, from the installed packages, PYTHONPATH or the working folder, and hash its file.

    Raises FairfaceError if that fails, or if there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    sys.path.append(str(Path.cwd()))  # last: no installed module is replaced by a file of the working folder
    try:
        with user_errors(f"importing {module_name}"):
            module = importlib.import_module(module_name)
    finally:
        sys.path.pop()
    function = getattr(module, function_name, None)
    if not callable(function):
        raise FairfaceError(f"--from {name}: {module_name} has no function {function_name}")
    file = getattr(module, "__file__", None)
    return function, file_sha256(Path(file)) if file else fingerprint(name)


def load_torchscript(path: Path, device: torch.device) -> tuple[Callable[[int, int], Any], str]:
    """Load a TorchScript module, whose forward takes (count, seed), onto the device, and hash its file.

    Raises FairfaceError for any other file.
    """
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch.jit is deprecated, but generators are published in it
            module = torch.jit.load(path, map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise FairfaceError(
            f"{path} is not TorchScript ({reason}): save the generator with torch.jit.save; checkpoints of `fairface "
            "train` are sampled with --checkpoint"
        ) from error
    return module.eval(), file_sha256(path)


@contextmanager
def user_errors(action: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into a FairfaceError; FAIRFACE_DEBUG=1 shows its traceback."""
    try:
        yield
    except (Exception, SystemExit) as error:  # it may raise anything
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or ["without a message"]
        line = lines[-1 if isinstance(error, torch.jit.Error) else 0].strip()[
            :300
        ]  # TorchScript's messages start with a traceback
        raise FairfaceError(
            f"{action} failed: {type(error).__name__}: {line} (FAIRFACE_DEBUG=1 shows the traceback)"
        ) from error


def to_uint8_images(output: Any, *, count: int, name: str) -> Tensor:
    """Check a generator's output, and convert it to uint8 [count, 3, H, W] on the CPU.

    Raises FairfaceError unless it is a tensor or array of that shape, either uint8, or finite floats in [-1, 1].
    """
    expected = f"uint8 or floats in [-1, 1], [{count}, 3, height, width]"
    if isinstance(output, np.ndarray):
        try:
            output = torch.from_numpy(np.ascontiguousarray(output))
        except (TypeError, ValueError) as error:  # of objects, of long doubles, of another byte order
            raise FairfaceError(f"{name} returned an array of {output.dtype} instead of {expected}") from error
    if isinstance(output, Tensor) and output.layout != torch.strided:
        layout = str(output.layout).removeprefix("torch.")
        raise FairfaceError(f"{name} returned Tensor of layout {layout} instead of a dense one: {expected}")
    if not isinstance(output, Tensor):
        raise FairfaceError(f"{name} returned {type(output).__name__} instead of a tensor: {expected}")
    shape = tuple(output.shape)
    if len(shape) != 4 or shape[:2] != (count, 3) or not all(shape):
        raise FairfaceError(f"{name} returned the shape {list(shape)} instead of [{count}, 3, height, width]")
    height, width = shape[2:]
    if max(height, width) > min(MAX_SIDE, MAX_ASPECT * min(height, width)):
        raise FairfaceError(f"{name} returned images of {width} x {height} pixels, which are too large or too narrow")
    output = output.detach().cpu()
    if output.dtype == torch.uint8:
        return output
    if not output.is_floating_point():
        raise FairfaceError(f"{name} returned {str(output.dtype).removeprefix('torch.')} instead of {expected}")
    if not output.isfinite().all():
        raise FairfaceError(f"{name} returned values that are NaN or infinite")
    low, high = output.aminmax()
    if max(-low, high) > MAX_VALUE:
        raise FairfaceError(f"{name} returned values from {low:.3g} to {high:.3g} instead of {expected}")
    return ((output.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def resize_and_crop(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side of uint8 [N, 3, H, W] to `size` and crop the centre: uint8 [N, 3, size, size].

    The filter is an antialiased triangle, as in the feed of training images.
    """
    height, width = images.shape[2:]
    scale = size / min(height, width)
    if scale != 1:
        sides = [max(size, round(side * scale)) for side in (height, width)]
        resized = F.interpolate(images.float(), sides, mode="bilinear", antialias=True, align_corners=False)
        images = resized.round().clamp(0, 255).to(torch.uint8)
    top, left = ((side - size + 1) // 2 for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]
