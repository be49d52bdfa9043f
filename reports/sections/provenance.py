"""Section: the commands, data, checkpoints and versions behind the page."""

from collections.abc import Mapping
from dataclasses import dataclass

from reports.formats import number, short
from reports.run_report import RunReport

HASH = 16  # hexadecimal digits of a hash that are shown
WEIGHTS = {"ema": "moving average of the weights"}


@dataclass(frozen=True)
class Provenance:
    run: str
    commands: list[str]
    device: str
    options: str
    data: str
    manifest: str  # hash of the packed images
    samples: str
    checkpoint: str | None  # hash of the checkpoint, or of the imported images or generator
    checkpoint_weights: str
    reference: str | None  # the file of the external reference
    labellers: str
    training_versions: str
    page_versions: str
    built: str


def provenance_section(report: RunReport) -> Provenance:
    config = report.config
    methods = report.labelling.methods if report.labelling else {}
    return Provenance(
        run=f"{short(report.run, 200)}, {config.status or 'state unknown'}, "
        f"{config.started or '?'} to {config.finished or '?'}",
        commands=[short(command, 1000) for command in report.commands],
        device=config.device or "unknown",
        options=key_values(config.options or {}) or "none",
        data=f"{short(config.data.root, 300)}, {number(config.data.images)} images" if config.data else "unknown",
        manifest=config.data.manifest[:HASH] if config.data else "unknown",
        samples=describe_samples(report),
        checkpoint=report.checkpoint_sha256[:HASH] if report.checkpoint_sha256 else None,
        checkpoint_weights=describe_source(report),
        reference=f"{short(report.reference.name, 200)}, SHA-256 {report.reference.sha256[:HASH]}"
        if report.reference
        else None,
        labellers="; ".join(f"{method}: {short(name, 200)}" for method, name in methods.items()) or "none",
        training_versions=key_values(config.versions or {}) or "unknown",
        page_versions=key_values(report.versions),
        built=report.built,
    )


def key_values(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def describe_source(report: RunReport) -> str:
    """What the hash in `checkpoint` was computed from, in words."""
    if report.source:
        return f"imported {report.source.kind}"
    return f"checkpoint, {WEIGHTS.get(report.checkpoint_weights or '', 'last weights')}"


def describe_samples(report: RunReport) -> str:
    """The number of samples by checkpoint and seed, in words."""
    samples = [f"{number(row['images'])} from {row['checkpoint'] or '?'}, seed {row['seed']}" for row in report.samples]
    return "; ".join(samples) or "not recorded"
