"""Stratified correction: coverage where other attributes shift, the choice of strata, and thin or unsure cells."""

from pathlib import Path

import numpy as np
import pytest

from reports.estimation import worlds
from reports.estimation.correction import correct_shares, raw_is_better
from reports.estimation.stratified import (
    CalibrationFaces,
    choose_strata,
    correct_stratified,
    count_codes,
    log_gamma,
    pool_rows,
    recentred,
    stratify,
)
from reports.estimation.worlds import Scenario
from shards.errors import FairfaceError

pytestmark = pytest.mark.usefixtures("full_computations")

REAL_FACES = Path(__file__).parents[4] / "shared/reference/labeller-errors/resnet18-64px.csv"
SIZES = {"gender": 2, "age": 3}
CANDIDATES = {"age": {"age"}}


def simulate(rng, n, shares, errors, *, unsure=0.0):
    """Faces whose genders and ages have these `shares`, [2, 3]; genders are mistaken by age, ages never."""
    gender, age = np.divmod(rng.choice(6, n, p=np.ravel(shares)), 3)
    label = np.where(rng.random(n) < np.array(errors)[age], 1 - gender, gender)
    label = np.where(rng.random(n) < unsure * (age == 0), 2, label)
    return CalibrationFaces({"gender": gender, "age": age}, {"gender": label, "age": age}, SIZES)


def correct(calibration, samples, names=("gender", "age")):
    """The stratified correction of the labels of `samples`."""
    labels = count_codes([samples.labelled[name] for name in names], [SIZES[name] + 1 for name in names])
    return correct_stratified(stratify(calibration, names, labels=labels), seed=0)


EVEN, SHIFTED = np.full((2, 3), 1 / 6), np.array([[0.42, 0.09, 0.09], [0.28, 0.06, 0.06]])
BY_AGE, SAME = (0.4, 0.05, 0.02), (0.1, 0.1, 0.1)


def test_intervals_hold_where_another_attribute_shifts_and_those_of_one_matrix_do_not():
    population = worlds.simulate_population(0)
    shift = worlds.measure_coverage(population, Scenario("gender", ("age",)), worlds=20)
    assert shift.one_matrix < 0.8
    assert shift.stratified >= 0.9
    same = worlds.measure_coverage(population, Scenario("gender"), worlds=20)
    assert same.stratified >= 0.9
    assert same.width <= 1.6 * same.one_matrix_width


@pytest.mark.skipif(not REAL_FACES.exists(), reason="the labelled real faces are not here")
@pytest.mark.parametrize(("attribute", "others"), [("gender", ("age",)), ("age", ("race", "gender"))])
def test_intervals_hold_in_worlds_of_real_faces(attribute, others):
    population = worlds.read_population(REAL_FACES)
    shift = worlds.measure_coverage(population, Scenario(attribute, others), worlds=20)
    assert shift.one_matrix < 0.8
    assert shift.stratified >= 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gender,age\nfemale,young\n", "labelled_gender"),
        ("", "can't be read as CSV"),
        ("gender,labelled_gender\n,female\n", "no face with a class of gender"),
    ],
)
def test_a_table_without_labelled_faces_is_refused(tmp_path, text, message):
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(FairfaceError, match=message):
        worlds.read_population(tmp_path / "faces.csv")


def test_faces_without_a_class_are_left_out_and_other_labels_are_unsure(tmp_path):
    rows = ("female,female", "male,", ",male", "male,other", "female,male")
    (tmp_path / "faces.csv").write_text("\n".join(["gender,labelled_gender", *rows]))
    population = worlds.read_population(tmp_path / "faces.csv")
    assert population.annotated["gender"].tolist() == [0, 1, 1, 0]
    assert population.labelled["gender"].tolist() == [0, 2, 2, 1]


def test_attributes_are_independent_among_the_samples_of_a_scenario(monkeypatch):
    rng = np.random.default_rng(0)
    age = rng.integers(0, 3, 50_000)
    gender = (rng.random(50_000) < np.array([0.1, 0.5, 0.9])[age]).astype(int)
    population = CalibrationFaces({"gender": gender, "age": age}, {"gender": gender, "age": age}, SIZES)
    monkeypatch.setattr(worlds, "SAMPLES", 50_000)
    monkeypatch.setattr(worlds, "correct_world", lambda *_, samples, **__: samples)
    for independent in (False, True):
        scenario = Scenario("gender", ("age",), independent)
        truth, samples = worlds.simulate_world(np.random.default_rng(3), population, scenario)
        joint = count_codes([gender[samples], age[samples]], [2, 3]) / 50_000
        gap = np.abs(joint - joint.sum(1, keepdims=True) * joint.sum(0)).max()
        assert (gap < 0.02) == independent
        assert joint.sum(1) == pytest.approx(truth, abs=0.02)


def test_the_shares_behind_known_error_rates_are_found():
    rng = np.random.default_rng(0)
    calibration, samples = simulate(rng, 100_000, EVEN, BY_AGE), simulate(rng, 100_000, SHIFTED, BY_AGE)
    correction = correct(calibration, samples)
    assert correction.shares[0] == pytest.approx(0.6, abs=0.02)
    confusion, counts = calibration.table(["gender"], "gender")[:, :2], np.bincount(samples.labelled["gender"])
    assert abs(correct_shares(counts, confusion, seed=0).shares[0] - 0.6) > 0.02
    # error rates in the samples' own mix of ages: 0.7 children
    assert correction.matrix[0, 1] == pytest.approx(0.7 * 0.4 + 0.15 * 0.07, abs=0.02)


def test_strata_are_chosen_where_error_rates_depend_on_them():
    rng = np.random.default_rng(1)
    assert choose_strata(simulate(rng, 1000, EVEN, BY_AGE), "gender", candidates=CANDIDATES) == ("age",)
    chosen = [choose_strata(simulate(rng, 1000, SHIFTED, SAME), "gender", candidates=CANDIDATES) for _ in range(60)]
    assert chosen.count(("age",)) <= 8  # 5 % are expected
    assert choose_strata(simulate(rng, 1000, EVEN, BY_AGE), "gender", candidates={}) == ()


def test_of_two_strata_of_the_same_attribute_one_is_chosen():
    faces = simulate(np.random.default_rng(2), 3000, EVEN, BY_AGE)
    is_child = np.minimum(faces.annotated["age"], 1)
    both = CalibrationFaces(faces.annotated | {"child": is_child}, faces.labelled, {**SIZES, "child": 2})
    assert choose_strata(both, "gender", candidates={**CANDIDATES, "child": {"age"}}) in [("age",), ("child",)]


def test_thin_cells_widen_the_intervals():
    rng = np.random.default_rng(3)
    samples, widths = simulate(rng, 2000, SHIFTED, BY_AGE), []
    for images in (5000, 150):
        low, high = correct(simulate(rng, images, EVEN, BY_AGE), samples).interval()
        widths.append(high[0] - low[0])
    assert widths[1] > 2 * widths[0]


def test_pooled_rows_are_near_their_parent_if_cells_do_not_differ_and_near_their_counts_if_they_do():
    thin, rng = np.full((2, 40, 2), 5), np.random.default_rng(4)
    thin[0, 0] = 8, 2
    mean, samples = pool_rows(thin, 0, generator=rng, replicates=50)
    assert abs(mean[0, 0, 0] - 0.5) < 0.1
    assert samples.shape == (50, 2, 40, 2)
    assert np.allclose(samples.sum(-1), 1)
    different = np.array([[[90, 10], [10, 90]] * 10] * 2)
    mean, _ = pool_rows(different, 0, generator=rng, replicates=50)
    assert mean[0, 0, 0] > 0.85


def test_an_empty_cell_has_uncertain_rates():
    table = np.array([[[90, 10], [10, 90], [0, 0]], [[10, 90], [80, 20], [0, 0]]])
    _, samples = pool_rows(table, 0, generator=np.random.default_rng(5), replicates=400)
    assert samples[:, 0, 2, 0].std() > 4 * samples[:, 0, 0, 0].std()


def test_classes_that_are_often_unsure_are_not_underestimated():
    """Half of the children have no sure gender: among the sure labels, women are as rare as girls."""
    rng = np.random.default_rng(6)
    shares = np.array([[0.1, 0.2, 0.2], [0.4, 0.05, 0.05]])
    calibration = simulate(rng, 20_000, EVEN, SAME, unsure=0.5)
    samples = simulate(rng, 20_000, shares, SAME, unsure=0.5)
    counts = np.bincount(samples.labelled["gender"])[:2]
    assert counts[0] / counts.sum() > 0.55
    stratified = correct(calibration, samples)
    assert stratified.shares[0] == pytest.approx(0.5, abs=0.03)
    assert stratified.matrix.shape == (2, 2)
    one_matrix = correct_shares(counts, calibration.table(["gender"], "gender"), seed=0)
    assert one_matrix.shares.sum() == pytest.approx(1)
    assert isinstance(raw_is_better(counts, one_matrix), bool)


MATRIX, TRUTH = np.array([[0.7, 0.1, 0.2], [0.1, 0.5, 0.4]]), np.array([0.3, 0.7])  # the last label is unsure


def test_a_labeller_that_is_unsure_more_often_of_all_samples_does_not_move_the_shares():
    rng = np.random.default_rng(10)
    sure = np.array([1, 1, 0])
    rates = 0.5 * sure * MATRIX  # of labels of the samples; half of those that are sure of photographs are not
    counts = rng.multinomial(200_000, [*(TRUTH @ rates)[:2], 1 - (TRUTH @ rates).sum()])
    correction = correct_shares(counts[:2], np.round(100_000 * MATRIX).astype(int), seed=0, replicates=50)
    assert correction.shares == pytest.approx(TRUTH, abs=0.01)
    annotated = rng.choice(2, 30_000)
    labelled = np.array([rng.choice(3, p=MATRIX[code]) for code in annotated])
    age = rng.integers(0, 3, 30_000)
    calibration = CalibrationFaces({"gender": annotated, "age": age}, {"gender": labelled, "age": age}, SIZES)
    gender, ages = rng.choice(2, 30_000, p=TRUTH), rng.integers(0, 3, 30_000)
    label = np.array([rng.choice(3, p=[*rates[code, :2], 1 - rates[code].sum()]) for code in gender])
    samples = CalibrationFaces({"gender": gender, "age": ages}, {"gender": label, "age": ages}, SIZES)
    assert correct(calibration, samples).shares == pytest.approx(TRUTH, abs=0.03)


def test_one_matrix_with_unsure_labels_covers_the_truth():
    rng, covered, deviations, variances = np.random.default_rng(7), [], [], []
    for seed in range(80):
        confusion = np.stack([rng.multinomial(200, row) for row in MATRIX])
        counts = rng.multinomial(2000, TRUTH @ MATRIX)[:2]
        low, high = correct_shares(counts, confusion, seed=seed, replicates=300).interval()
        covered.append(low[0] <= 0.3 <= high[0])
        exact = correct_shares(counts, 10_000 * MATRIX, seed=seed, replicates=2)
        deviations.append(exact.shares[0] - 0.3)
        variances.append(exact.sampling_variance(counts)[0])
    assert np.mean(covered) > 0.88
    assert np.mean(variances) == pytest.approx(np.var(deviations), rel=0.4)


def test_no_share_is_certain_to_be_0():
    faces = simulate(np.random.default_rng(11), 200_000, EVEN, (0, 0, 0))  # the labeller makes no errors
    only_women = np.zeros((3, 4))
    only_women[0, :3] = 400, 400, 200
    only_women[2, :3] = 9000  # unsure
    one_matrix = correct_shares(only_women.sum(1)[:2], faces.table(["gender"], "gender"), seed=0)
    stratified = correct_stratified(stratify(faces, ("gender", "age"), labels=only_women), seed=0)
    for correction in (one_matrix, stratified):
        _, high = correction.interval()
        assert correction.shares[1] < 1e-4
        assert high[1] == pytest.approx(1 - 0.025 ** (1 / 1000), rel=0.3)


def test_a_class_without_calibration_images_has_no_share():
    rng = np.random.default_rng(8)
    only_women = simulate(rng, 500, np.array([[0.4, 0.3, 0.3], [0, 0, 0]]), BY_AGE)
    correction = correct(only_women, only_women)
    assert correction.shares.tolist() == [1, 0]
    assert correction.matrix[1].tolist() == [0, 1]


def test_no_labels_or_no_calibration_images_are_refused():
    faces = simulate(np.random.default_rng(9), 100, EVEN, SAME)
    with pytest.raises(ValueError, match="no labels"):
        correct_stratified(stratify(faces, ("gender", "age"), labels=np.zeros((3, 4))), seed=0)


def test_replicates_without_a_sure_label_have_the_shares_of_the_fit():
    resampled, observed, fitted = np.array([[0.0, 0.0], [0.5, 0.5]]), np.array([[1.0, 0.0]]), np.array([[0.9, 0.1]])
    (moved,) = recentred([resampled], [observed], [fitted])
    assert moved[0].tolist() == [0.9, 0.1]
    assert moved[1] == pytest.approx([0.4, 0.6])


def test_log_gamma():
    values = np.array([1e-6, 0.5, 1, 3, 20, 1e4])
    assert np.allclose(
        log_gamma(values), [np.log(1e6), np.log(np.pi) / 2, 0, np.log(2), 39.339884187, 82099.717496], 1e-6
    )
