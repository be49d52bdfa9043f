"""Benchmark of an audit's statistics in simulated audits: coverage of intervals, and the human labels that PPI++ saves.

The audits run on all cores, in processes with one thread each.
"""

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from itertools import product
from statistics import fmean

from pipeline.bench import audit_faces
from pipeline.bench.audit_worlds import AuditCoverage, AuditScenario, measure_audits, measure_labelled_faces
from pipeline.bench.context import BenchContext, WorldsConfig
from pipeline.bench.estimates import MeasuredRates, rates_row, submit, submit_rates
from pipeline.bench.measure import Row
from pipeline.bench.rate_worlds import RateScenario
from reports.estimation.worlds import read_population
from shards.audit import DESIGNS
from shards.concurrency import available_cpus
from shards.processes import worker_pool

CLASSES = (2, 3, 5, 10)
ACCURACIES = (0.6, 0.75, 0.9, 0.97)  # of the labeller
LABELS = (100, 300, 1000)  # faces that people label
RATERS = (1, 3)
TYPICAL_ACCURACY, TYPICAL_LABELS = 0.9, 300  # of the row on saved labels
RATE_PLANS = ((500, 100), (2000, 300))  # samples, and how many of them people label, for detection rates
RATE_ACCURACIES = (0.65, 0.8, 0.97)

Coverages = dict[AuditScenario, AuditCoverage]


def bench_audit(context: BenchContext) -> Iterator[Row]:
    """Measure the intervals of shares and detection rates by human labels, next to those of corrected labels."""
    with worker_pool(available_cpus(), preload=__name__) as pool:
        jobs: dict[int, dict[AuditScenario, Future[AuditCoverage]]] = {}
        for classes in CLASSES:
            options = product(ACCURACIES, LABELS, RATERS, DESIGNS)
            scenarios = [AuditScenario(classes, *option) for option in options]
            jobs[classes] = {
                scenario: submit(pool, measure_audits, scenario, context.worlds.count, seed=classes)
                for scenario in scenarios
            }
        labelled, rates = submit_labelled_faces(pool, context.worlds), submit_audited_rates(pool, context.worlds)
        for classes, futures in jobs.items():
            measured = {scenario: future.result() for scenario, future in futures.items()}
            yield coverage_row(classes, measured, worlds=context.worlds.count)
            yield width_row(classes, measured)
            yield saving_row(classes, measured)
        for (attribute, scenario), future in labelled.items():
            yield labelled_row(attribute, scenario, future.result(), worlds=context.worlds.count)
        for groups, audited in rates.items():
            yield rates_row("audit", groups, jobs=audited, names=("audited", "corrected", "raw"))
    yield from synthetic_rows(context)


def submit_labelled_faces(
    pool: Executor, worlds: WorldsConfig
) -> dict[tuple[str, AuditScenario], "Future[AuditCoverage]"]:
    """Submit audits of every attribute of labelled real faces, if there is a file of them."""
    if not worlds.labelled_faces:
        return {}
    population = read_population(worlds.labelled_faces)
    scenarios = {
        (attribute, labels): AuditScenario(classes, 0, labels, raters=0)
        for attribute, classes in population.classes.items()
        for labels in LABELS[:2]
    }
    return {
        (attribute, scenario): submit(
            pool, measure_labelled_faces, population, scenario, worlds.count, attribute=attribute
        )
        for (attribute, _), scenario in scenarios.items()
    }


def submit_audited_rates(pool: Executor, worlds: WorldsConfig) -> dict[str, dict[RateScenario, MeasuredRates]]:
    """Submit audits of detection rates, of simulated groups and of labelled real faces, by the row's groups."""
    jobs = {}
    for classes in CLASSES:
        options = product(RATE_PLANS, RATE_ACCURACIES, DESIGNS)
        scenarios = [
            RateScenario(samples, classes=classes, accuracy=accuracy, labels=labels, design=design)
            for (samples, labels), accuracy, design in options
        ]
        jobs[f"{classes} groups"] = submit_rates(pool, scenarios, count=worlds.count)
    if worlds.labelled_faces:
        population = read_population(worlds.labelled_faces)
        for attribute in population.classes:
            scenarios = [
                RateScenario(samples, attribute=attribute, is_confounded=True, labels=labels)
                for samples, labels in RATE_PLANS
            ]
            jobs[f"real faces, {attribute}"] = submit_rates(pool, scenarios, count=worlds.count, population=population)
    return jobs


def synthetic_rows(context: BenchContext) -> Iterator[Row]:
    """Yield a row for each attribute of synthetic faces, audited from the plan over the page and the import."""
    workspace, known = audit_faces.prepare_workspace(context.scratch("audit"))
    tables = [audit_faces.audit_estimates(workspace, known, seed=seed) for seed in range(audit_faces.AUDITS)]
    for attribute, by_column in audit_faces.measure_coverage(tables).items():
        (covered, width), (alone, alone_width), (corrected, _) = (by_column[name] for name in audit_faces.ESTIMATES)
        yield Row(
            "audit",
            f"blurred synthetic faces, {attribute}: true shares in 95 % intervals by PPI++, vs corrected ones",
            unit="%",
            value=100 * covered,
            baseline=100 * corrected,
            ratio=covered / corrected if corrected else None,
            note=f"{audit_faces.AUDITS} audits of {audit_faces.LABELS} of {audit_faces.FACES:,} samples, by plan, page "
            f"and import; human labels alone {100 * alone:.0f} %; PPI++ saves "
            f"{100 * (1 - (width / alone_width) ** 2):.0f} % of the labels",
        )


def labelled_row(attribute: str, scenario: AuditScenario, result: AuditCoverage, *, worlds: int) -> Row:
    """How often 95 % intervals contain the truth where the samples are resampled real faces."""
    saved = 1 - (result.width["powered"] / result.width["human"]) ** 2
    return Row(
        "audit",
        f"real faces, {attribute}, {scenario.labels} labels: true shares in 95 % intervals by PPI++, vs corrected ones",
        unit="%",
        value=100 * result.covered["powered"],
        baseline=100 * result.covered["corrected"],
        ratio=result.covered["powered"] / result.covered["corrected"],
        note=f"{worlds} worlds; human labels alone {100 * result.covered['human']:.1f} %; PPI++ saves "
        f"{100 * saved:.0f} % of the labels",
    )


def coverage_row(classes: int, measured: Coverages, *, worlds: int) -> Row:
    """How often 95 % intervals by PPI++ contain the truth, next to those of the corrected labels of all samples."""
    powered, corrected, human = (
        fmean(result.covered[name] for result in measured.values()) for name in ("powered", "corrected", "human")
    )
    parts = {
        f"{scenario.design}, {scenario.labels:,} labels": [
            result.covered["powered"]
            for other, result in measured.items()
            if (other.design, other.labels) == (scenario.design, scenario.labels)
        ]
        for scenario in measured
    }
    lowest = min(parts, key=lambda name: fmean(parts[name]))
    rare = fmean(result.rare["powered"] for result in measured.values())
    seen = fmean(result.classes_seen for result in measured.values())
    least_rare = min(
        fmean(result.rare["powered"] for scenario, result in measured.items() if scenario.labels == labels)
        for labels in LABELS
    )
    return Row(
        "audit",
        f"{classes} classes: true shares in 95 % intervals by PPI++, vs corrected labels",
        unit="%",
        value=100 * powered,
        baseline=100 * corrected,
        ratio=powered / corrected,
        note=f"{len(measured) * worlds:,} simulated audits; human labels alone {100 * human:.1f} %; lowest "
        f"{100 * fmean(parts[lowest]):.1f} % ({lowest}); classes of 1 % {100 * rare:.1f} %, lowest "
        f"{100 * least_rare:.1f} %; shares of the true classes {100 * seen:.0f} %",
    )


def width_row(classes: int, measured: Coverages) -> Row:
    """How wide intervals by PPI++ are in the worst scenario, next to those of the same human labels alone."""
    ratios = {scenario: result.width["powered"] / result.width["human"] for scenario, result in measured.items()}
    worst = max(ratios, key=lambda scenario: ratios[scenario])
    wider = max(result.wider for result in measured.values())
    return Row(
        "audit",
        f"{classes} classes: widest intervals by PPI++, vs the same human labels alone",
        unit="%",
        value=100 * measured[worst].width["powered"],
        baseline=100 * measured[worst].width["human"],
        ratio=1 / ratios[worst],
        note=f"labeller of accuracy {worst.accuracy}, {worst.design}, {worst.labels:,} labels; more than 5 % wider in "
        f"at most {100 * wider:.1f} % of a scenario's audits",
    )


def saving_row(classes: int, measured: Coverages) -> Row:
    """How many labels PPI++ needs for the width of human labels alone, with a labeller of accuracy 0.9."""
    alone = measured[AuditScenario(classes, TYPICAL_ACCURACY, TYPICAL_LABELS)]

    def needed(design: str = "uniform", *, accuracy: float = TYPICAL_ACCURACY, is_common: bool = True) -> float:
        scenario = AuditScenario(classes, accuracy, TYPICAL_LABELS, 1, design)
        powered, human = (item.common_width if is_common else item.width for item in (measured[scenario], alone))
        return TYPICAL_LABELS * (powered["powered"] / human["human"]) ** 2

    designs = ", ".join(f"{design} {needed(design):.0f}" for design in DESIGNS if design != "uniform")
    accuracies = ", ".join(f"{accuracy}: {needed(accuracy=accuracy):.0f}" for accuracy in ACCURACIES)
    return Row(
        "audit",
        f"{classes} classes: labels for the same width by PPI++, vs human labels alone",
        unit="labels",
        value=needed(),
        baseline=TYPICAL_LABELS,
        ratio=TYPICAL_LABELS / needed(),
        note=f"labeller of accuracy {TYPICAL_ACCURACY}, uniform plans; {designs}; by accuracy {accuracies}; with a "
        f"class of 1 % in half of the worlds {needed(is_common=False):.0f}",
    )
