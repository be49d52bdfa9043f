"""The documents of an audit, in which people label some of the faces: plan.json and ratings.json."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from shards.attributes import workspace_attributes
from shards.documents import (
    Document,
    LabelsDocument,
    ProbeDocument,
    read_document,
    samples_images_hash,
    training_images_hash,
)
from shards.errors import FairfaceError
from shards.locks import check_links, exclusive_lock
from shards.workspace import LabelFiles, RunFolder, Workspace

DESIGNS = ("stratified", "active", "uniform")
ANSWER_COLUMNS = ("plan", "run", "rater", "answers", "face", "attribute", "answer")  # of a rater's CSV
CANNOT_TELL = "can't tell"  # an answer in a rater's file; no class may contain an apostrophe


@dataclass(kw_only=True)
class AuditSide:
    """The faces that a plan chooses from on one side: the samples, or the training images."""

    attributes: list[str]  # asked about each face; of training images, those that are not annotated
    population: int  # faces that it chooses from: those with labels of every attribute
    images: int  # labelled images, as in labels.json
    images_hash: str | None  # as in labels.json
    label_tables: dict[str, str]  # tables of labels, on which strata and probabilities depend -> SHA-256
    faces: list[int]  # chosen in each round


@dataclass(kw_only=True)
class AuditPlan(Document):
    """plan.json: everything that determines which faces people label. Its table has one row for each face."""

    REDO: ClassVar[str] = "make a new plan with `fairface audit plan --force`"

    id: str  # of the run, the options and the labels; the same after an extension
    run: str
    attributes: list[str]  # asked about the samples, in this order
    classes: dict[str, list[str]]  # of each attribute: the possible answers
    labels: list[int]  # faces in each round: of the first plan, and of each extension
    raters: int  # how many people are expected to label every face
    design: str  # one of DESIGNS
    seed: int
    methods: dict[str, str]  # attribute -> labelling method, on whose labels strata and probabilities depend
    sides: dict[str, AuditSide]  # by source: generated, train
    files: dict[str, str]  # the table -> SHA-256

    def __post_init__(self) -> None:
        names = set(self.attributes)
        asked = {name for side in self.sides.values() for name in side.attributes}
        if not (
            names == self.classes.keys() == self.methods.keys() == asked
            and {"generated"} <= self.sides.keys() <= {"generated", "train"}
            and self.design in DESIGNS
            and self.raters >= 0
            and all(count > 0 for count in self.labels)
        ):
            raise TypeError("its parts contradict each other")


@dataclass(kw_only=True)
class RaterFile:
    """An imported file of one rater's answers."""

    name: str  # of the file, without its folder
    sha256: str
    answers: int


@dataclass(kw_only=True)
class RatingsDocument(Document):
    """ratings.json: whose answers were imported. Its table has one row for each answer."""

    REDO: ClassVar[str] = "remove it, and import the raters' files again with `fairface audit import`"

    plan: str  # id of the plan whose faces were rated
    raters: dict[str, RaterFile]  # by name
    files: dict[str, str]  # the table -> SHA-256


@contextmanager
def audit_lock(run: RunFolder, purpose: str) -> Iterator[None]:
    """Lock a run's audit exclusively for a block. Raises FairfaceError if the run's folder is a link."""
    check_links(run.folder)
    with exclusive_lock(run.audit.lock, purpose):
        yield


def read_plan(workspace: Workspace, run: RunFolder) -> AuditPlan:
    """Read the plan of a run. Raises FairfaceError if there is none, or if it is stale."""
    plan = read_document(run.audit.plan_document, AuditPlan)
    if plan is None:
        raise FairfaceError(f"run {run.name} has no audit plan: make one with `fairface audit plan --run {run.name}`")
    if reason := stale_plan(workspace, run, plan):
        raise FairfaceError(reason)
    return plan


def stale_plan(workspace: Workspace, run: RunFolder, plan: AuditPlan) -> str | None:
    """Why a plan must not be used: its classes, or the faces that it chose from, have changed; None if it may be.

    Labels of the same faces may change: people's answers and the probabilities of the faces stay valid.
    """
    attributes = workspace_attributes(workspace)
    for name, classes in plan.classes.items():
        if name not in attributes or list(attributes[name].names) != classes:
            return f"the classes of {name} changed after the plan in {run.audit.folder} was made: {plan.REDO}"
    for source, side in plan.sides.items():
        is_train = source == "train"
        name = "training images" if is_train else "samples"
        present = training_images_hash(workspace.shards) if is_train else samples_images_hash(run)
        labels = read_document(side_label_files(workspace, run, source).document, LabelsDocument)
        if side.images_hash != present or labels is None or labels.images != side.images:
            return f"the plan in {run.audit.folder} was made for other {name} than those labelled now: {plan.REDO}"
    return None


def side_label_files(workspace: Workspace, run: RunFolder, source: str) -> LabelFiles:
    """The label files of one side."""
    return workspace.shards.label_files if source == "train" else run.label_files


def label_table_hashes(files: LabelFiles) -> dict[str, str]:
    """The SHA-256 of the labels of every method, by the names of their files."""
    documents = (read_document(files.document, LabelsDocument), read_document(files.probe_document, ProbeDocument))
    hashes = {name: digest for document in documents if document for name, digest in document.files.items()}
    return {path.name: hashes[path.name] for path in files.methods() if path.name in hashes}
