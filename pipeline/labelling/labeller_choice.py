"""Chooses the labeller, and refuses one that would silently replace another's labels."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import click
import torch

from models import clip
from models.classifier import NAME as CLASSIFIER
from models.classifier import ClassifierLabeller
from pipeline.labelling import embedded
from pipeline.labelling.classifier import ClassifierData, FittedClassifier, load_classifier
from pipeline.labelling.embedded_model import NAME as EMBEDDED_NAME
from pipeline.labelling.side import Labeller
from shards import distributed
from shards.attributes import AttributeTable, built_in_attributes
from shards.documents import LabelsDocument, read_document
from shards.errors import FairfaceError, WeightsUnavailable
from shards.workspace import LabelFiles

DEFAULT_MODEL, DEFAULT_TAG, DEFAULT_PROMPTS = "ViT-B-32-quickgelu", "openai", "faces"


@dataclass(frozen=True)
class LabelConfig:
    """The options of `fairface label`."""

    run: str | None = None  # whose samples are labelled; None is the newest
    model: str | None = None  # of open_clip, or `embedded`; None is the default for the data
    pretrained: str | None = None  # tag of the weights, or path of a checkpoint; None is OpenAI's
    prompts: str | None = None  # a set of models/prompts.toml, or path of a file; None is `faces`
    device: str = "auto"
    threads: int | None = None  # of torch on a CPU; None: the fastest number
    batch_size: int = 256  # images of a forward pass
    limit: int | None = None  # training images that are labelled; None is all
    classifier: bool | None = None  # whether to fit one to the annotated images; None: unless they are synthetic
    force: bool = False  # label again, and replace other labels
    progress: bool = True  # show a progress bar

    @property
    def names_labeller(self) -> bool:
        """Whether any option selects a labeller."""
        return bool(self.model or self.pretrained or self.prompts)


def choose_labeller(
    config: LabelConfig,
    device: torch.device,
    *,
    synthetic: bool,
    progress: bool,
    attributes: AttributeTable | None = None,
    load_classifier: Callable[[], FittedClassifier | None] = lambda: None,
) -> Labeller:
    """Load the labeller that `config` names; by default the embedded one for synthetic faces, OpenAI's CLIP for others.

    It labels those of `attributes`, by default the built-in ones, that it has prompts for.

    If CLIP's weights are unavailable and no option names a labeller, the classifier is used. Without one, the embedded
    labeller labels real faces as well, with a warning that the report repeats: its labels of real faces are hardly
    meaningful. Raises FairfaceError for options that contradict each other, WeightsUnavailable if a named
    labeller's weights are not available.
    """
    if config.model == "embedded" or (synthetic and not (config.model or config.pretrained)):
        if config.pretrained or config.prompts:
            raise FairfaceError(
                "--clip-pretrained and --prompts do not apply to the embedded labeller: choose another --clip-model"
            )
        return load_embedded(device, attributes, progress=progress)
    try:
        return clip.load_labeller(
            config.model or DEFAULT_MODEL,
            config.pretrained or DEFAULT_TAG,
            prompts=config.prompts or DEFAULT_PROMPTS,
            attributes=attributes,
            device=device,
        )
    except WeightsUnavailable as error:
        if config.names_labeller:
            raise
        if classifier := load_classifier():
            click.echo(f"Note: {error}. Until then the classifier labels in place of CLIP.", err=True)
            return classifier.labeller
        click.echo(
            f"Warning: {error}. Until then the embedded labeller is used, which was fitted to synthetic faces: "
            "do not rely on its labels of real faces.",
            err=True,
        )
        return load_embedded(device, attributes, progress=progress)


def load_embedded(device: torch.device, attributes: AttributeTable | None, *, progress: bool) -> clip.Labeller:
    """The embedded labeller of those `attributes` whose classes are those of synthetic faces."""
    return embedded.load_embedded(device, progress=progress).restrict_to(attributes or built_in_attributes())


@dataclass(frozen=True)
class ChosenLabellers:
    """The labeller of both sides, and the classifier, which is either that labeller or an additional one."""

    labeller: Labeller
    classifier: FittedClassifier | None

    @property
    def additional(self) -> ClassifierLabeller | None:
        """The classifier, if it is not the labeller itself."""
        classifier = self.classifier.labeller if self.classifier else None
        return None if classifier is self.labeller else classifier

    @property
    def names(self) -> list[str]:
        """The name of every labeller."""
        return [self.labeller.name, *([self.additional.name] if self.additional else [])]


def choose_same_labellers(
    config: LabelConfig, device: torch.device, *, data: ClassifierData, progress: bool
) -> ChosenLabellers:
    """Load the same labellers on every rank. Raises FairfaceError if the ranks have different ones."""
    synthetic = data.packed.synthetic
    wants_classifier = not synthetic if config.classifier is None else config.classifier

    @functools.cache
    def load() -> FittedClassifier | None:
        return load_classifier(data, device, progress=progress) if wants_classifier else None

    def choose() -> ChosenLabellers:
        labeller = choose_labeller(
            config,
            device,
            synthetic=synthetic,
            progress=progress,
            attributes=data.attributes,
            load_classifier=load,
        )
        return ChosenLabellers(labeller, load())

    # rank 0 goes first: it may fit a labeller or download weights, which the others then find in the cache
    first: ChosenLabellers | None = distributed.run_on_rank0(choose, share=lambda _: None)
    chosen = first or choose()
    names = distributed.run_on_rank0(lambda: chosen.names)
    distributed.run_on_all_ranks(lambda: check_same_labellers(chosen.names, names))
    return chosen


def check_same_labellers(names: list[str], first: list[str]) -> None:
    """Raise FairfaceError if this process would label differently from the first one."""
    if names != first:
        raise FairfaceError(
            f"this process labels with {' and '.join(names)}, and rank 0 with {' and '.join(first)}: give all "
            "processes the same cache"
        )


def check_overwrite(files: LabelFiles, labeller: str, *, requested: bool) -> None:
    """Raise FairfaceError if another labeller's labels would be replaced unintentionally.

    Another model's labels are replaced only if the new labeller was `requested`, and imported labels never, because
    they cannot be computed again. Embedded labellers and classifiers replace each other's labels.
    """
    document = read_document(files.document, LabelsDocument)
    if document is None:
        return
    old = document.labeller
    if old.startswith("imported "):
        raise FairfaceError(f"{files.folder} has labels {old}: choose another --run, or replace them with --force")
    both_fitted_here = all(name.startswith((EMBEDDED_NAME, CLASSIFIER)) for name in (old, labeller))
    if old != labeller and not both_fitted_here and not requested:
        raise FairfaceError(
            f"{files.folder} has labels of {old}: name that model again (--clip-model, --clip-pretrained, --prompts), "
            f"or replace them with labels of {labeller} with --force"
        )
