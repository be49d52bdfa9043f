"""Audits of synthetic faces from the plan to the estimates, in which the known attributes are a rater's answers."""

import contextlib
import csv
import io
from pathlib import Path

import polars as pl
from PIL import Image, ImageFilter

import sql
from pipeline.audit.import_ratings import import_ratings
from pipeline.audit.plan import PlanConfig, plan_audit
from pipeline.gan.import_samples import ImportConfig, import_samples
from pipeline.labelling.label import label
from pipeline.labelling.labeller_choice import LabelConfig
from reports.audit_page import write_audit_page
from reports.estimation.estimates import write_estimates
from shards import pack
from shards.audit import ANSWER_COLUMNS, AuditPlan
from shards.audit_tables import read_plan_table
from shards.synthetic import dataset
from shards.synthetic.dataset import CLASSES, Shares, SyntheticConfig, normalised
from shards.workspace import AuditFolder, Workspace

RUN, RATER = "blurred", "truth"
FACES = 2000  # photographs, and as many samples
BLUR = 1.0  # pixels, of the samples: the labeller's errors on them are not those on the photographs
LABELS, AUDITS = 200, 10
GENERATED = Shares(
    gender={"female": 0.65, "male": 0.35},
    age=normalised({"child": 0.05, "young": 0.4, "adult": 0.4, "middle": 0.1, "senior": 0.05}),
)
ESTIMATES = ("audited", "human", "corrected")  # columns of `estimates`


def prepare_workspace(root: Path) -> tuple[Workspace, pl.DataFrame]:
    """Pack synthetic faces, label them and blurred samples of a skewed generator.

    Returns the workspace, and the samples' attributes by key.
    """
    workspace, known = Workspace(root / "out"), Workspace(root / "known")
    with contextlib.redirect_stdout(io.StringIO()):
        for name, seed, shares in (("photographs", 1, None), ("generated", 2, GENERATED)):
            config = SyntheticConfig(FACES, seed=seed, size=64, shares=shares or Shares())
            dataset.write_dataset(root / name, config, progress=False)
        pack.pack(root / "photographs", workspace.shards, progress=False)
        pack.pack(root / "generated", known.shards, progress=False)
        images = pl.read_parquet(known.shards.images).filter(status="packed")
        for path in images["path"]:
            blurred = root / RUN / path
            blurred.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(root / "generated" / path) as image:
                image.filter(ImageFilter.GaussianBlur(BLUR)).save(blurred, quality=95)
        import_samples(workspace, ImportConfig(str(root / RUN), run=RUN, progress=False))
        label(workspace, LabelConfig(run=RUN, progress=False))
    samples = pl.read_parquet(workspace.run(RUN).samples_table).select("key", "path")
    return workspace, samples.join(images.select("path", *CLASSES), on="path")


def audit_estimates(workspace: Workspace, known: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Plan an audit, write its page, answer it by the `known` attributes, import that; the run's `estimates`."""
    folder = workspace.run(RUN)
    config = PlanConfig(labels=LABELS, attributes=tuple(CLASSES), seed=seed, force=True)
    plan = plan_audit(workspace, sql.connect(workspace), RUN, config).plan
    write_audit_page(workspace, RUN)
    path = workspace.root / f"{RATER}.csv"
    path.write_text(known_answers(folder.audit, plan, known))
    import_ratings(workspace, [path])
    return write_estimates(workspace, sql.connect(workspace), run=RUN)["estimates"]


def known_answers(audit: AuditFolder, plan: AuditPlan, known: pl.DataFrame) -> str:
    """The CSV that a rater who always sees the `known` attributes would save on the page."""
    faces = read_plan_table(audit, plan).join(known, on="key", maintain_order="left")
    rows = [(row["face"], name, row[name]) for row in faces.iter_rows(named=True) for name in CLASSES]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(ANSWER_COLUMNS)
    values = {"plan": plan.id, "run": plan.run, "rater": RATER, "answers": len(rows)}
    writer.writerows([*values.values(), *row] for row in rows)
    return file.getvalue()


def measure_coverage(tables: list[pl.DataFrame]) -> dict[str, dict[str, tuple[float, float]]]:
    """Coverage of the generator's shares by 95 % intervals and their mean width, by attribute and column."""
    measured: dict[str, dict[str, tuple[float, float]]] = {}
    for name in CLASSES:
        shares = {str(group): share for group, share in vars(GENERATED)[name].items()}
        rows = pl.concat(tables).filter(pl.col("attribute") == name, pl.col("group").is_in(list(shares)))
        truth = rows["group"].replace_strict(shares, return_dtype=pl.Float64).to_numpy()
        ends = {column: rows.select(f"{column}_low", f"{column}_high").to_numpy().T for column in ESTIMATES}
        measured[name] = {
            column: (float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean()))
            for column, (low, high) in ends.items()
        }
    return measured
