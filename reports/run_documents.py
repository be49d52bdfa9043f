"""The documents that the page of a run is about."""

from dataclasses import dataclass

from shards.documents import LabelsDocument, ReferenceDocument, RunConfig, SamplesDocument, ShardsDocument


@dataclass(frozen=True, kw_only=True)
class RunDocuments:
    """The documents of a run; None for those that do not exist yet."""

    config: RunConfig
    shards: ShardsDocument | None
    samples: SamplesDocument | None
    labels: LabelsDocument | None  # of the samples
    reference: ReferenceDocument | None = None

    @property
    def synthetic(self) -> bool | None:
        """Whether the faces are synthetic; None if neither the run nor the shards nor the samples' source say so."""
        imported = self.samples.source if self.samples else None
        sources = [item.synthetic for item in (self.config.data, self.shards, imported) if item is not None]
        return any(sources) if sources else None
