"""The faces that a detector was evaluated on, and cells of similar logits, in which replicates are counted."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

CALIBRATION_BINS = 15  # of equal width, as in the view `calibration`
MAX_CELLS = 512  # of a group; the metrics of a group with more logits are those of a curve through this many points
REPLICATES, MIN_REPLICATES = 500, 50  # of the bootstrap: at most and at least
MAX_WEIGHTS = 1e8  # faces times replicates: with many faces there are fewer replicates
SEED = 1


@dataclass(frozen=True)
class Groups:
    """The groups of an attribute, and the group of each face."""

    names: list[str]
    numbers: np.ndarray  # index into `names`, int16 [N]; -1 if the group is unknown


@dataclass(frozen=True)
class EvaluatedFaces:
    """The faces of an evaluation set with a detector's logits.

    They are in the order of their keys. Detectors of the same evaluation set thus have the same bootstrap weights for
    the same faces, so that their replicates are paired.
    """

    is_fake: np.ndarray  # bool [N]
    logits: np.ndarray  # float64 [N]
    weights: np.ndarray  # uint8 [replicates, N]
    groups: Mapping[str, Groups]  # by attribute

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The probabilities of being fake, float64 [N]."""
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-self.logits))

    @property
    def called_fake(self) -> np.ndarray:
        """Whether each face is called fake, bool [N]."""
        return self.probabilities >= 0.5

    @property
    def bins(self) -> np.ndarray:
        """The calibration bin of each face, int64 [N]."""
        return np.maximum(np.ceil(CALIBRATION_BINS * self.probabilities), 1).astype(int) - 1

    @cached_property
    def falling(self) -> np.ndarray:
        """The indices of the faces by falling logit, int64 [N]."""
        return np.argsort(-self.logits, kind="stable")

    @property
    def everyone(self) -> Groups:
        """All faces as a single group."""
        return Groups(["all"], np.zeros(len(self.logits), np.int16))


def bootstrap_weights(count: int) -> np.ndarray:
    """Poisson(1) weights of `count` faces, uint8 [replicates, count]; always the same ones."""
    rng = np.random.default_rng(SEED)
    replicates = int(np.clip(MAX_WEIGHTS / count, MIN_REPLICATES, REPLICATES))
    return np.stack([rng.poisson(1, count).astype(np.uint8) for _ in range(replicates)])


@dataclass(frozen=True)
class ScoreCells:
    """The faces of each group in cells of equal or, in a group with many logits, similar logits, by falling logit.

    Similar logits are in the same calibration bin and on the same side of the threshold.
    """

    starts: np.ndarray  # the first cell of each group, and the number of cells, int64 [groups + 1]
    codes: np.ndarray  # of each face: twice its cell, plus 1 for a fake, int64 [N]; 2 * cells if its group is unknown
    bins: np.ndarray  # calibration bin, int64 [cells]
    called_fake: np.ndarray  # bool [cells]
    probabilities: np.ndarray  # mean of the faces, float64 [cells]
    is_merged: np.ndarray  # whether a group has cells of several logits, bool [groups]

    def group(self, number: int) -> slice:
        """The cells of a group."""
        return slice(self.starts[number], self.starts[number + 1])

    def count(self, codes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """The (weighted) real faces and fakes in each cell, float64 [cells, 2]."""
        counts = np.bincount(codes, weights, minlength=2 * len(self.bins) + 1)[: 2 * len(self.bins)]
        return counts.reshape(-1, 2)


def starts_new_value(values: np.ndarray) -> np.ndarray:
    """Whether each of the values differs from the one before it, bool [N]; the first one does.

    In contrast to `np.diff`, the distance of finite values can't overflow.
    """
    return np.append(np.ones(min(len(values), 1), bool), values[1:] != values[:-1])


def score_cells(faces: EvaluatedFaces, groups: Groups) -> ScoreCells:
    """Divide the faces of each group into cells."""
    numbers, count = groups.numbers, len(groups.names)
    order = faces.falling[np.argsort(numbers[faces.falling], kind="stable")]
    order = order[np.count_nonzero(numbers < 0) :]
    group, logits = numbers[order], faces.logits[order]
    is_first = np.diff(group, prepend=-1) != 0
    is_new_logit = is_first | starts_new_value(logits)
    sizes = np.bincount(group, minlength=count)
    is_merged = np.bincount(group[is_new_logit], minlength=count) > MAX_CELLS
    # equal logits remain together: all have the position of the first of them
    position = np.flatnonzero(is_new_logit)[np.cumsum(is_new_logit) - 1] - (np.cumsum(sizes) - sizes)[group]
    bins, called_fake = faces.bins[order], faces.called_fake[order]
    parts = (position * MAX_CELLS // np.maximum(sizes, 1)[group], bins, called_fake.astype(int))
    is_new_part = is_first | np.any([np.diff(part, prepend=-1) != 0 for part in parts], 0)
    firsts = np.flatnonzero(np.where(is_merged[group], is_new_part, is_new_logit))
    cell = np.zeros(len(order), int)
    cell[firsts] = 1
    cell = np.cumsum(cell) - 1
    codes = np.full(len(numbers), 2 * len(firsts))
    codes[order] = 2 * cell + faces.is_fake[order]
    faces_in_cell = np.maximum(np.bincount(cell, minlength=len(firsts)), 1)
    return ScoreCells(
        starts=np.searchsorted(group[firsts], np.arange(count + 1)),
        codes=codes,
        bins=bins[firsts],
        called_fake=called_fake[firsts],
        probabilities=np.bincount(cell, faces.probabilities[order], minlength=len(firsts)) / faces_in_cell,
        is_merged=is_merged,
    )
