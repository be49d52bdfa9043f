"""Counts in the cross of an attribute with its strata, for the attributes whose error rates depend on others."""

from dataclasses import replace
from functools import cached_property

import duckdb

from reports.estimation import calibration, group_counts, unsure
from reports.estimation.attribute_estimate import AttributeCounts, missing_for_correction
from reports.estimation.stratified import CalibrationFaces, choose_strata, stratify
from shards.attributes import AttributeTable
from shards.documents import RunConfig
from sql.definitions import labelled_parts


class CrossCounter:
    """Chooses the strata of a run's attributes, and counts faces in them."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, run: str, *, config: RunConfig, attributes: AttributeTable
    ):
        self.connection, self.run, self.config, self.attributes = connection, run, config, attributes

    @cached_property
    def faces(self) -> dict[str, CalibrationFaces]:
        """The calibration images of each method."""
        abstained = unsure.unsure_attributes(self.connection, self.attributes)
        return calibration.read_calibration(self.connection, self.attributes, unsure=abstained)

    def with_strata(self, counts: AttributeCounts) -> AttributeCounts:
        """The counts, stratified if the attribute can be corrected and its error rates depend on other attributes."""
        attribute = self.attributes[counts.attribute]
        # labels of classes that the attribute does not have any more have no codes
        is_known = counts.groups == list(attribute.names)
        if not is_known or missing_for_correction(counts) or counts.method not in self.faces:
            return counts
        faces = self.faces[counts.method]
        own = labelled_parts(attribute, self.attributes)
        parts = {name: labelled_parts(item, self.attributes) for name, item in self.attributes.stored.items()}
        candidates = {name: needed for name, needed in parts.items() if not needed & own}
        strata = choose_strata(faces, attribute.name, candidates=candidates)
        if not strata:
            return counts
        names = (attribute.name, *strata)
        column = group_counts.target_column(self.config, self.attributes)
        weights = group_counts.image_weights(self.connection, self.config, attributes=self.attributes)
        sides = []
        for side in ("generated", "train"):
            labels = calibration.count_cross(
                self.connection,
                names,
                source=(side, self.run, counts.method),
                column=column,
                weights=weights,
                attributes=self.attributes,
            )
            if side == "train":  # weighted faces count as their effective number
                labels *= counts.reference.sum() / max(labels[:-1].sum(), 1e-300)
            sides.append(stratify(faces, names, labels=labels))
        generated, reference = sides
        if not generated.has_sure_labels or not (reference.has_sure_labels or counts.is_fully_annotated):
            return counts
        return replace(counts, stratified=generated, stratified_reference=reference)
