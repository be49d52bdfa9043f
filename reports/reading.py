"""What one labeller says of one attribute: shares, ratios, verdicts, distances, and what its errors leave of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports import correct, distances
from reports.intervals import Z, pearson, ratio_interval, two_sided, wilson

PRESERVED = (
    0.8,
    1.25,
)  # the four-fifths rule (29 CFR 1607.4 D) and its inverse: our choice of what counts as kept
SEED = 1  # of every bootstrap
MOST = 12  # groups of an attribute whose errors are corrected: of K there are K^2 to be known


def verdict(low: float, high: float, other: float) -> str:
    """What an interval of generated / reference says. Too few to say is `inconclusive`, never fair.

    Nothing else is said where the `other` estimate's ratio points elsewhere: what a correction alone shows may be its
    own, and so may what the labels alone show.
    """
    if low >= PRESERVED[0] and high <= PRESERVED[1]:
        return "preserved" if PRESERVED[0] <= other <= PRESERVED[1] else "inconclusive"
    if low > 1:
        return "amplified" if other > 1 else "inconclusive"
    return "reduced" if high < 1 and other < 1 else "inconclusive"


@dataclass
class Reading:
    """What one labeller says of one attribute: counts by group, [K] each, and what its errors leave of them."""

    attribute: str
    method: str
    groups: list[str]
    count: np.ndarray  # generated faces
    reference: np.ndarray  # training faces, labelled alike; effective numbers where they were weighted
    annotated: np.ndarray  # training faces, as annotated
    confusion: np.ndarray  # [K, K] of training faces, annotated by labelled
    whole: bool = True  # whether all but a few of the training faces are annotated
    note: str | None = None  # why nothing is corrected

    def __post_init__(self):
        self.raw, self.there = shares(self.count), shares(self.reference)
        self.found = self.without_errors()
        self.beside = self.without_errors_there() if self.found else None
        self.best = "corrected" if self.found and not correct.raw_is_better(self.count, self.found) else "raw"

    def without_errors(self) -> correct.Corrected | None:
        """The corrected shares, over the groups that anything is known of; None, with a note, where there are none."""
        seen = (self.count + self.reference + self.annotated + self.confusion.sum(0) + self.confusion.sum(1)) > 0
        if not self.count.sum() or not self.reference.sum():
            self.note = "no labels of either side"
        elif not self.confusion.sum() or not self.annotated.sum():
            self.note = "no annotated faces to measure the labeller's errors on"
        elif missing := [g for g, s, n in zip(self.groups, seen, self.confusion.sum(1), strict=True) if s and not n]:
            named = ", ".join(name[:40] for name in missing[:5]) + " and more" * (len(missing) > 5)
            self.note = f"no calibration images of {named}"
        elif seen.sum() < 2:
            self.note = "one group only"
        elif len(self.groups) > MOST:
            self.note = f"{len(self.groups)} cells are too many for annotated faces to tell the labeller's errors apart"
        if self.note:
            return None
        found = correct.corrected(self.count, self.confusion, SEED)
        if found.condition > correct.CONDITION:
            self.note = f"the labels tell too little of the groups apart (condition number {found.condition:.0f})"
            return None
        return found

    def without_errors_there(self) -> tuple[np.ndarray, np.ndarray]:
        """What corrected shares are compared with, [K], and draws of it: the training faces as they are annotated.

        Where only some are, those may be others than the rest: the labels of all of them, corrected by the same matrix.
        """
        if not self.whole:
            there = correct.corrected(self.reference, self.confusion, SEED, side=1)
            return there.shares, there.draws
        there = shares(self.annotated)
        n = round(self.annotated.sum())
        return there, correct.labelled(np.random.default_rng([SEED, 2]), there, n, len(self.found.draws))

    def ratios(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of the better estimate: the ratio to its reference, its ends, the other estimate's ratio, and p.

        p is that of there being no difference, the greater of the two estimates'. An interval around raw labels does
        not hold what they get wrong: where there is a correction, it reaches as far as that one's.
        """
        n, m = self.count.sum(), self.reference.sum()
        raw = divided(self.raw, self.there)
        p = pearson(self.count, np.full_like(self.count, n), self.reference, np.full_like(self.count, m))
        if not self.found:
            low, high = ratio_interval(self.count, n, self.reference, m)
            said = n > 0 and m > 0
            return raw, np.where(said, low, 0), np.where(said, high, np.inf), raw, p
        there, again = self.beside
        ratio = divided(self.found.shares, there)
        least = 0.5 / max(self.annotated.sum(), 1)  # of a group that is not there: finite, as half a face would be
        drawn = self.found.draws / np.maximum(again, least)
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        apart = two_sided(self.found.shares - there, self.found.draws.var(0) + again.var(0))
        best, other = (raw, ratio) if self.best == "raw" else (ratio, raw)
        return best, np.fmin(low, best), np.fmax(high, best), other, np.maximum(p, apart)

    def estimate_rows(self, run: str) -> list[dict[str, Any]]:
        """Rows of `estimates`, but for `shifted`, which is for all attributes together; `p` stands in its place."""
        n, m, total = self.count.sum(), self.reference.sum(), self.annotated.sum()
        raw, beside = (self.raw, *wilson(self.count, n)), (self.there, *wilson(self.reference, m))
        annotated = (shares(self.annotated), *wilson(self.annotated, total))
        corrected = (
            (self.found.shares, *self.found.interval()) if self.found else np.full((3, len(self.groups)), np.nan)
        )
        better = (self.reaching(raw, corrected), beside, m)
        if self.best == "corrected":
            better = (
                corrected,
                annotated if self.whole else with_percentiles(*self.beside),
                total if self.whole else m,
            )
        ratio, low, high, other, p = self.ratios()
        said = [verdict(*ends) for ends in zip(low, high, other, strict=True)]
        groups = zip(range(len(said)), said, ratio, other, strict=True)
        columns = {"run": run, "attribute": self.attribute, "group": self.groups, "method": self.method}
        columns |= {"n": round(n), "count": np.round(self.count)} | named("share", raw)
        columns |= {"reference_n": round(m), "reference_count": np.round(self.reference)} | named("reference", beside)
        columns |= named("corrected", corrected) | {"annotated": annotated[0], "best": self.best, "note": self.note}
        columns |= named("best_share", better[0]) | named("best_reference", better[1])
        columns |= {"best_reference_n": round(better[2])} | named("ratio", (ratio, low, high))
        columns |= {
            "verdict": said,
            "p": p,
            "why": [self.why(*group) for group in zip(said, ratio, other, strict=True)],
        }
        columns["n_needed"] = [self.needed(*group) for group in groups]
        return rows_of(columns, len(self.groups))

    def reaching(self, raw: Sequence[np.ndarray], corrected: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """A raw share and its interval, as far as the corrected one's where there is one."""
        if not self.found:
            return raw
        return raw[0], np.minimum(raw[0], corrected[1]), np.maximum(raw[0], corrected[2])

    def why(self, said: str, ratio: float, other: float) -> str | None:
        """Why nothing is said: there are no labels, raw and corrected ones disagree, or there are too few."""
        if said != "inconclusive":
            return None
        if not self.count.sum() or not self.reference.sum():
            return "no labels"
        return (
            "disagree" if self.found and (ratio - 1) * (other - 1) < 0 and abs(np.log(ratio / other)) > 0.2 else "few"
        )

    def needed(self, group: int, said: str, ratio: float, other: float) -> int | None:
        """How many generated faces would settle a group, were its ratio what it seems.

        The interval must come to lie between PRESERVED, or beside 1: whichever is nearer. Only the generated side's
        part of its width shrinks. None where no number would do, and where the verdict that is `said` is one.
        """
        if said != "inconclusive" or not (0 < ratio < np.inf) or not (0 < other < np.inf):
            return None
        n, inside = self.count.sum(), min(np.log(PRESERVED[1] / ratio), np.log(ratio / PRESERVED[0]))
        allowed = (max(inside, abs(np.log(ratio))) - abs(np.log(ratio / other))) / Z
        if self.found:
            share = max(self.found.shares[group], 1e-9)
            own = self.found.sampling_variance(self.count)[group] / share**2
            rest = max(self.found.draws.var(0)[group] / share**2 - own, 0)
            rest += self.beside[1].var(0)[group] / max(self.beside[0][group], 1e-9) ** 2
        else:
            own = (1 - self.raw[group]) / self.count[group]
            rest = (1 - self.there[group]) / self.reference[group]
        if allowed <= 0 or allowed**2 <= rest:
            return None
        return max(round(n * own / (allowed**2 - rest)), round(n) + 1)

    def reading_rows(self, run: str, labeller: str, used: bool) -> list[dict[str, Any]]:
        """Rows of `readings`: the labels as they are, and corrected where that can be."""
        sides = [("raw", self.raw, wilson(self.count, self.count.sum()), self.there)]
        if self.found:
            sides.append(("corrected", self.found.shares, self.found.interval(), self.beside[0]))
        about = {"run": run, "attribute": self.attribute, "group": self.groups, "method": self.method}
        found = []
        for name, p, (low, high), q in sides:
            columns = about | {"labeller": labeller, "estimate": name, "share": p, "low": low, "high": high}
            columns |= {"reference": q, "ratio": divided(p, q), "used": used and name == self.best}
            found += rows_of(columns, len(self.groups))
        return found

    def distance_rows(self, run: str, seed: int) -> list[dict[str, Any]]:
        """Rows of `distances`: of the raw and of the corrected shares, to the reference and to equal shares."""
        found, even = [], np.full(len(self.groups), 1 / len(self.groups))
        for estimate in ("raw", "corrected") if self.found else ("raw",):
            there = self.there if estimate == "raw" else self.beside[0]
            m = round(self.annotated.sum() if estimate == "corrected" and self.whole else self.reference.sum())
            p = self.raw if estimate == "raw" else self.found.shares
            for q, size in ((there, m), (even, None)):
                if not self.count.sum() or size == 0:
                    continue
                generator = np.random.default_rng(seed)
                sampler, draws = distances.counted(round(self.count.sum()), size, generator), distances.DRAWS
                if estimate == "corrected":
                    sampler, draws = self.sampler(size, generator), distances.CORRECTED_DRAWS
                about = {"run": run, "attribute": self.attribute, "estimate": estimate}
                about["against"] = "uniform" if size is None else "reference"
                found += [about | row for row in distances.rows(p, q, sampler, draws)]
        return found

    def sampler(self, size: int | None, generator: np.random.Generator) -> distances.Sampler:
        """What correcting would find of as many faces, with as much calibration, beside `size` reference faces."""
        n, matrix = round(self.count.sum()), correct.estimated(self.confusion)

        def draw(mixtures: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
            left = np.empty((len(mixtures), draws, mixtures.shape[1]))
            for i, mixture in enumerate(mixtures):
                again = correct.matrices(generator, self.confusion, draws)
                left[i] = correct.solve(again, correct.labelled(generator, mixture @ matrix, n, draws))
            if size is None:
                return left, mixtures[0]
            return left, generator.multinomial(size, mixtures[0], size=left.shape[:2]) / size

        return draw


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts [K] over their sum; NaN of nothing."""
    total = counts.sum()
    return counts / total if total else np.full(len(counts), np.nan)


def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def with_percentiles(values: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [K] and the 95 % percentiles of their draws."""
    return values, *np.quantile(draws, [0.025, 0.975], axis=0)


def named(name: str, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """A value and the ends of its interval, as columns."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def rows_of(columns: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Columns of one value or of `count` as rows."""
    spread = {k: v if isinstance(v, list | np.ndarray) else [v] * count for k, v in columns.items()}
    return [{name: known(values[i]) for name, values in spread.items()} for i in range(count)]


def known(value: Any) -> Any:
    """None for a number that can't be said: a share of no images, a ratio to none, an unbounded end."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
