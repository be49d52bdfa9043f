"""The embedded labeller for synthetic faces: fitted on first use, then read from a cache."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from models import clip
from pipeline.labelling import embedded_fit, embedded_model
from shards.atomic_io import fingerprint, read_bytes
from shards.documents import Document, changed_files, read_document
from shards.errors import FairfaceError
from shards.replacement import replace_described_files
from shards.synthetic.face import VERSION as RENDER_VERSION

REVISION = 1  # bumped when the fit changes, so that weights of an older version are not used
STEPS, FACES, HELD_OUT = 450, 6000, 1000


@dataclass(kw_only=True)
class EmbeddedDocument(Document):
    """The JSON file next to the weights in the cache: how they were fitted, and how accurate they are."""

    FORMAT = 2
    REDO = "remove it, and the labeller is fitted again"

    held_out: int  # faces that the accuracies were measured on, none of which the labeller was fitted to
    accuracy: dict[str, float]  # by attribute
    balanced_accuracy: dict[str, float]
    steps: int
    faces: int
    seed: int
    seconds: float
    files: dict[str, str]  # the weights -> SHA-256


def load_embedded(
    device: str | torch.device = "cpu", cache: Path | None = None, *, progress: bool = True
) -> clip.Labeller:
    """Load the labeller for synthetic faces, fitted on first use; `cache` is a folder, the user's cache by default.

    Raises FairfaceError for a cache that cannot be written and for damaged weights.
    """
    path = fit(cache, progress=progress)
    model = embedded_model.build_model()
    try:
        model.load_state_dict(load(read_bytes(path)))
    except (SafetensorError, RuntimeError) as error:
        raise FairfaceError(f"{path} is damaged: {EmbeddedDocument.REDO}") from error
    return embedded_model.make_labeller(model, device)


def fit(
    cache: Path | None = None, *, steps: int = STEPS, faces: int = FACES, seed: int = 0, progress: bool = True
) -> Path:
    """Fit the labeller unless the cache holds it intact; return the path of its weights, as float16.

    An EmbeddedDocument is written next to them. Raises FairfaceError for a cache that cannot be written.
    """
    path = cache_path(cache, steps=steps, faces=faces, seed=seed)
    if is_intact(path):
        return path
    start = time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        images, classes = embedded_fit.render_faces(faces, 2 * seed + 1_000_000, progress=progress)
        model = embedded_fit.fit_model(images, classes, steps=steps, seed=seed, progress=progress)
        model.half().float()  # rounds the weights, so that the saved weights are the ones that are measured
        held_out = embedded_fit.render_faces(HELD_OUT, 2 * seed + 1_000_001, progress=progress)
        accuracies = embedded_fit.measure(model, *held_out)
        seconds = round(time.monotonic() - start, 1)
        weights = save({key: value.half().contiguous() for key, value in model.state_dict().items()})
        replace_described_files(
            path.with_suffix(".json"),
            {path: lambda file: file.write(weights)},
            describe=lambda files: EmbeddedDocument(
                **accuracies, steps=steps, faces=faces, seed=seed, seconds=seconds, files=files
            ),
            clean=False,  # other processes may write the same labeller
        )
    except OSError as error:
        raise FairfaceError(
            f"cannot write the labeller to {path.parent} ({error.strerror or error}): "
            "set XDG_CACHE_HOME to a folder that is writable and has enough space"
        ) from error
    click.echo(describe(path))
    return path


def is_intact(path: Path) -> bool:
    """Whether the weights in `path` exist, and are those that their document describes."""
    try:
        document = read_document(path.with_suffix(".json"), EmbeddedDocument)
        return document is not None and path.name in document.files and not changed_files(path.parent, document.files)
    except (FairfaceError, OSError):
        return False


def describe(path: Path) -> str:
    """One line about the held-out accuracies of the labeller whose weights are in `path`."""
    document = read_document(path.with_suffix(".json"), EmbeddedDocument)
    if document is None:
        raise FileNotFoundError(path.with_suffix(".json"))
    accuracies = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in document.accuracy.items())
    return (
        f"embedded labeller: accuracy {accuracies} on {document.held_out:,} synthetic faces that it was not fitted to "
        f"(chance: 0.50, 0.20, 0.10; fitted in {document.seconds:.0f} s)"
    )


def cache_path(cache: Path | None, *, steps: int, faces: int, seed: int) -> Path:
    """The path of the weights, whose name contains a hash of everything that determines them."""
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairface"
    inputs = [
        REVISION,
        embedded_model.MODEL,
        embedded_model.PREPROCESS,
        embedded_fit.BATCH,
        embedded_fit.LR,
        embedded_fit.DECAY,
        embedded_fit.GENDER_WEIGHT,
        steps,
        faces,
        seed,
        RENDER_VERSION,
        clip.read_prompts(embedded_model.PROMPT_SET),
    ]
    return folder / f"{embedded_model.NAME}-{fingerprint(inputs)}.safetensors"
