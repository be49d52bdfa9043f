"""Reference shares are checked, and verdicts against them are right for samples of known shares."""

import numpy as np
import polars as pl
import pytest

from reports.estimation.attribute_estimate import AttributeCounts, estimate_attribute
from reports.estimation.external_reference import (
    EQUAL,
    ExternalShares,
    equal_shares,
    find_reference,
    keep_reference,
    parse_reference,
    reference_rows,
)
from shards.attributes import built_in_attributes
from shards.errors import FairfaceError
from shards.workspace import Workspace

GOOD = "attribute,group,share,n\ngender,female,0.51,900\ngender,male,0.49,900\nage,young,1,\n"
CONFUSION = np.array([[460, 40], [60, 440]])  # of annotated women and men


def write(folder, text):
    path = folder / "census.csv"
    path.write_text(text)
    return path


def counts_of(shares, n, *, generator, confusion=None):
    """Label counts of `n` faces with these shares of genders, mistaken as often as `confusion` says."""
    labels = np.asarray(shares)
    if confusion is not None:
        labels = labels @ (confusion / confusion.sum(1, keepdims=True))
    nothing = np.zeros(2)
    return AttributeCounts(
        attribute="gender",
        method="clip",
        groups=["female", "male"],
        count=generator.multinomial(n, labels).astype(float),
        reference=confusion.sum(0).astype(float) if confusion is not None else nothing,
        annotated=confusion.sum(1).astype(float) if confusion is not None else nothing,
        confusion=confusion if confusion is not None else np.zeros((2, 2), int),
    )


def test_reference_shares_are_read_and_scaled(tmp_path):
    attributes = built_in_attributes()
    table = pl.read_csv(write(tmp_path, GOOD.replace("0.49", "0.48")), infer_schema=False)
    reference = parse_reference(table, tmp_path / "census.csv", attributes)
    gender = reference.attributes["gender"]
    assert gender.shares == pytest.approx({"female": 0.51 / 0.99, "male": 0.48 / 0.99})
    assert (gender.n, gender.baseline) == (900, "census.csv")
    assert reference.attributes["age"] == ExternalShares("census.csv", {"young": 1.0})
    assert reference.notes == ["the shares of gender in census.csv add up to 0.99 and were scaled to a sum of 1"]


def test_columns_that_differ_in_case_alone_are_refused(tmp_path):
    path = write(tmp_path, GOOD.replace(",n", ",Share"))
    with pytest.raises(FairfaceError, match="has two columns 'share'"):
        keep_reference(Workspace(tmp_path / "out"), path, attributes=built_in_attributes())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attribute,", "name,", "has no column attribute"),
        ("share", "shares", "has no column share"),
        ("gender,male", "hat,male", "line 3: there is no attribute 'hat'"),
        ("gender,male", "gender,men", "line 3: gender has no group 'men'"),
        ("gender,male", "gender,female", "line 3: the share of gender female is listed twice"),
        ("0.49", "-0.1", "line 3: '-0.1' is not a share"),
        ("0.49", "49 %", "line 3: '49 %' is not a share"),
        ("0.49", "nan", "line 3: 'nan' is not a share"),
        ("0.49", "", "line 3: '' is not a share"),
        ("0.49", "0.4", "the shares of gender add up to 0.91 instead of 1"),
        ("0.49", "0.6", "the shares of gender add up to 1.11 instead of 1"),
        ("male,0.49,900", "male,0.49,0", "line 3: n is '0' instead of a whole number of people"),
        ("male,0.49,900", "male,0.49,many", "line 3: n is 'many'"),
        ("male,0.49,900", "male,0.49,2.5", "line 3: n is '2.5'"),
        ("male,0.49,900", "male,0.49,800", "differs between rows"),
        ("male,0.49,900", "male,0.49,", "differs between rows"),
    ],
)
def test_a_mistake_is_named_and_the_old_reference_kept(old, new, message, tmp_path):
    workspace, attributes = Workspace(tmp_path), built_in_attributes()
    keep_reference(workspace, write(tmp_path, GOOD), attributes=attributes)
    assert old in GOOD
    with pytest.raises(FairfaceError, match=message) as error:
        keep_reference(workspace, write(tmp_path, GOOD.replace(old, new, 1)), attributes=attributes)
    assert "\n" not in str(error.value)
    kept = find_reference(workspace, attributes)
    assert kept
    assert kept.attributes["gender"].n == 900


@pytest.mark.parametrize("content", [b"", b"attribute,group,share\n", b"\xff\xfe\0\0", None])
def test_a_file_that_is_not_a_csv_is_refused(content, tmp_path):
    path = tmp_path / "census.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FairfaceError, match=r"census\.csv"):
        keep_reference(Workspace(tmp_path), path, attributes=built_in_attributes())
    assert not Workspace(tmp_path).reference.exists()


def test_a_changed_copy_is_refused(tmp_path):
    workspace = Workspace(tmp_path)
    keep_reference(workspace, write(tmp_path, GOOD), attributes=built_in_attributes())
    workspace.reference.write_text(GOOD.replace("900", "800"))
    with pytest.raises(FairfaceError, match="was changed after it was written: pass the file again"):
        find_reference(workspace, built_in_attributes())


@pytest.mark.parametrize(("share", "verdict"), [(0.8, "over"), (0.5, "similar"), (0.3, "under")])
@pytest.mark.parametrize("corrected", [False, True])
def test_samples_of_known_shares_get_the_right_verdict(share, verdict, corrected):
    generator = np.random.default_rng(0)
    counts = counts_of([share, 1 - share], 3000, generator=generator, confusion=CONFUSION if corrected else None)
    estimate = estimate_attribute(counts)
    assert bool(estimate.corrected) == corrected
    female, male = reference_rows(estimate, "run", equal_shares(["female", "male"]))
    assert (female["verdict"], female["baseline"], female["reference_n"]) == (verdict, EQUAL, None)
    assert female["ratio_low"] <= share / 0.5 <= female["ratio_high"]
    assert male["ratio"] == pytest.approx(male["share"] / 0.5)
    assert (female["p"] < 1e-6) == (verdict != "similar")


def test_the_verdict_rests_on_corrected_shares_where_there_are_any():
    """Of 86 % women, 81 % are labelled so."""
    generator = np.random.default_rng(1)
    counts = counts_of([0.86, 0.14], 4000, generator=generator, confusion=CONFUSION)
    female = reference_rows(
        estimate_attribute(counts), "run", ExternalShares("census.csv", {"female": 0.66, "male": 0.34})
    )[0]
    assert female["estimate"] == "corrected"
    assert female["share"] == pytest.approx(0.86, abs=0.04)
    assert female["verdict"] == "over"


@pytest.mark.parametrize("n", [None, 400])
@pytest.mark.parametrize("corrected", [False, True])
def test_intervals_hold_the_true_ratio(n, corrected):
    generator, share, reference, hits, worlds = np.random.default_rng(2), 0.6, 0.45, 0, 200
    for _ in range(worlds):
        confusion = None
        if corrected:
            rates = CONFUSION / CONFUSION.sum(1, keepdims=True)
            confusion = np.stack([generator.multinomial(500, row) for row in rates])
        counts = counts_of([share, 1 - share], 800, generator=generator, confusion=None if not corrected else CONFUSION)
        if confusion is not None:
            counts = counts_of_calibration(counts, confusion)
        given = generator.binomial(n, reference) / n if n else reference
        rows = reference_rows(
            estimate_attribute(counts), "run", ExternalShares("x", {"female": given, "male": 1 - given}, n)
        )
        hits += rows[0]["ratio_low"] <= share / reference <= rows[0]["ratio_high"]
    assert hits / worlds >= 0.9


def counts_of_calibration(counts, confusion):
    """The same labels, with error rates measured on other images."""
    return AttributeCounts(**{**vars(counts), "confusion": confusion, "annotated": confusion.sum(1).astype(float)})


def test_a_group_that_the_reference_lacks_is_over_only_if_it_is_frequent():
    generator = np.random.default_rng(3)
    for share, verdict in ((0.0, "inconclusive"), (0.001, "inconclusive"), (0.2, "over")):
        estimate = estimate_attribute(counts_of([share, 1 - share], 1000, generator=generator))
        female = reference_rows(estimate, "run", ExternalShares("x", {"male": 1.0}))[0]
        assert female["ratio"] is None
        assert female["verdict"] == verdict


def test_without_labels_nothing_is_decided():
    estimate = estimate_attribute(counts_of([0.5, 0.5], 0, generator=np.random.default_rng(4)))
    for given in (equal_shares(["female", "male"]), ExternalShares("x", {"female": 0.5, "male": 0.5}, 100)):
        assert [row["verdict"] for row in reference_rows(estimate, "run", given)] == ["inconclusive"] * 2
