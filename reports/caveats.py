"""The page's warnings, and how the training images and samples were chosen."""

from collections.abc import Collection

import polars as pl

from reports.estimation.labelled_sides import LabelledSides
from reports.formats import conjunction, precise_percent, short
from reports.run_documents import RunDocuments
from shards.attributes import AttributeTable
from shards.documents import RunConfig, SamplesDocument, SampleSource

SYNTHETIC_LABELLER = "synthetic-faces"  # how the name of the labeller for synthetic faces begins


def is_foreign_labeller(labelling: LabelledSides | None, *, synthetic: bool | None, methods: Collection[str]) -> bool:
    """Whether faces that are not known to be synthetic were labelled by the labeller made for synthetic ones.

    `methods` are those whose labels are used. A classifier that was fitted to the training images is not foreign.
    """
    is_synthetic_labeller = labelling is not None and labelling.labeller.startswith(SYNTHETIC_LABELLER)
    return is_synthetic_labeller and not synthetic and not set(methods) <= {"classifier"}


def warnings(
    documents: RunDocuments, labelling: LabelledSides | None, *, annotated: bool, is_foreign: bool
) -> list[str]:
    """Everything that limits the validity of the page's numbers, the most serious first."""
    found, samples = [], documents.samples
    if samples and samples.is_constant:
        advice = "The training of the generator has failed. Train again, perhaps with a lower --lr."
        found.append(
            "All samples are the same image, or each has a single colour: their labels mean nothing."
            + ("" if samples.source else f" {advice}")
        )
    found += labelling_warnings(labelling, annotated=annotated, is_foreign=is_foreign)
    found += training_warnings(documents.config)
    if samples and samples.source:
        found += source_warnings(samples, samples.source, has_training=documents.shards is not None)
    return found


def source_warnings(samples: SamplesDocument, source: SampleSource, *, has_training: bool) -> list[str]:
    """What imported samples mean for the page."""
    found = [
        f"The samples ({samples.count:,} images) were imported from {short(source.path, 200)}: their generator was not "
        "trained by this program."
    ]
    if has_training:
        found[0] += (
            " This page refers to the packed images as training images, whether or not the generator was trained on "
            "them."
        )
    if rejected := sum(source.rejected.values()):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in source.rejected.items())
        found.append(f"{rejected:,} of the imported images could not be used: {reasons}.")
    return found


def labelling_warnings(labelling: LabelledSides | None, *, annotated: bool, is_foreign: bool) -> list[str]:
    """What is wrong with the labels."""
    if labelling is None:
        return []
    found = []
    if is_foreign:
        found.append(
            "These labels are not to be trusted: the faces are real, but the labeller was made for synthetic "
            "faces. Label them again with a model made for photographs (fairface label --help)."
        )
    if len(labelling.sizes) > 1:
        sizes = " and ".join(map(str, labelling.sizes))
        found.append(
            f"The two sides were labelled at different sizes ({sizes} pixels): blur alone may change the labels."
        )
    if not labelling.train:
        found.append(
            "No training images are packed, so the labeller's error rates are unknown, and its raw shares cannot be "
            "corrected. Pack annotated images with `fairface shards`, and label again."
        )
    elif not annotated:
        found.append(
            "The training images have no annotations: the reference is the labeller's labels of them, and "
            "its error rate is unknown."
        )
    return found


def shift_warnings(
    shifts: pl.DataFrame, attributes: AttributeTable, *, audited: Collection[str] = frozenset()
) -> list[str]:
    """Warn where the labeller's confidence differs between samples and photographs by more than chance explains.

    The verdicts on `audited` attributes rest on people's labels, whatever the labeller's errors are.
    """
    shifted = shifts.filter(pl.col("statistic") > pl.col("floor"), ~pl.col("attribute").is_in(list(audited)))
    if shifted.is_empty():
        return []
    values = conjunction(
        [
            f"{attributes[row['attribute']].title.lower()} {precise_percent(row['confidence_generated'])} "
            f"instead of {precise_percent(row['confidence_held_out'])}"
            for row in shifted.to_dicts()
        ]
    )
    return [
        "The labeller's confidence on the samples differs from that on training images that it was not fitted to (mean "
        f"probability of its labels: {values}). Its error rates, measured on those images, may not hold for the "
        "samples. Raw shares are therefore used; where there are corrected ones, too, a verdict needs both. People's "
        "labels of a few hundred samples would correct the shares all the same: `fairface audit plan`."
    ]


def training_warnings(config: RunConfig) -> list[str]:
    """What is unusual about the training."""
    found = []
    if config.previous_data:
        roots = ", ".join(short(data.root, 200) for data in config.previous_data)
        found.append(
            f"The run began on other images ({roots}) and continued on those in the shards now. This page calls only "
            "the latter training images: its ratios do not refer to everything the generator was trained on."
        )
    if config.imported:
        found.append(
            "The labels were imported: nothing is known about the generator or the images that it was trained on."
        )
    elif config.status != "finished" and config.source is None:
        found.append(f"The training run is {config.status or 'in an unknown state'}, not finished.")
    return found


def training_weights(config: RunConfig) -> str | None:
    """The packed images that the generator was trained on, and how often; None if on all of them equally often."""
    options = config.options or {}
    if (balance := options.get("balance", "natural")) != "natural":
        shares = "equally often" if balance == "uniform" else "in the requested shares"
        return f"the groups of {options.get('balance_by')} {shares}"
    return f"only images whose {options['conditional']} is annotated" if options.get("conditional") else None


def sampling_requests(config: RunConfig, samples: SamplesDocument | None) -> list[str]:
    """How the requested classes or truncation make the samples differ from what the generator produces on its own."""
    if samples is None:
        return []
    found = []
    if samples.shares and samples.shares != config.classes:
        requested = ", ".join(group for group, share in samples.shares.items() if share)
        found.append(
            f"The samples were generated for requested classes ({requested}): their shares are those of the request, "
            "not the generator's."
        )
    if samples.truncation:
        found.append(
            f"The samples' latents were truncated at {samples.truncation:g}: the samples are closer to the mean than "
            "those the generator produces on its own."
        )
    return found
