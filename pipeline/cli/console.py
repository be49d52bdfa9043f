"""Prints the commands' summaries, warnings and tables."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import category

import click

from shards import distributed
from shards.errors import FairfaceError
from shards.layouts import FILE_NAMES
from shards.workspace import ShardsFolder, Workspace

if TYPE_CHECKING:
    import polars as pl

    from pipeline.audit.import_ratings import ImportResult
    from pipeline.audit.plan import PlanResult
    from pipeline.detection.import_predictions import ImportedPredictions
    from pipeline.detection.train import DetectResult
    from pipeline.gan.sample import SampleResult
    from pipeline.gan.train import TrainResult
    from pipeline.labelling.label import FolderResult, LabelResult
    from reports.audit_summary import ExpectedWidth, RaterCounts
    from reports.detector_summary import DetectorSummary
    from reports.estimation.audit.agreement import Agreement
    from reports.page import BuildResult
    from shards.attributes import AttributeTable
    from shards.documents import ShardsDocument
    from shards.pack import PackResult
    from shards.synthetic.dataset import SyntheticResult

TERMINAL_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, surrogate, line and paragraph separator
KEEPS_PROGRESS = "fairface.keeps_progress"  # in a context's `meta`: whether an interrupted command can be resumed
FAULTS_SHOWN = 10
UNREADABLE_SHOWN = 5
UNMATCHED_TITLES = {"missing_rows": "rows without an image", "missing_images": "images without a row"}
UTILITY_METRICS = {  # printed title -> column of the question `utility`
    "AUC": "auc",
    "accuracy": "accuracy",
    "AP": "average_precision",
    "EER": "eer",
    "FPR": "fpr",
    "TPR": "tpr",
}
FAIRNESS_METRICS = ("f_meo", "f_dp", "f_oae", "f_eo", "f_efpr")  # columns of the question `fairness`


def is_interactive() -> bool:
    """Whether to show progress bars: only on a terminal, and only on rank 0."""
    return sys.stderr.isatty() and distributed.rank() == 0


def forget_progress() -> None:
    """Record that the current command saves no progress, for the message that an interruption prints."""
    click.get_current_context().meta[KEEPS_PROGRESS] = False


def printable(text: str) -> str:
    """`text` with control and direction characters, which a terminal would interpret, as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if category(character) in TERMINAL_CATEGORIES and character not in "\n\t"
        else character
        for character in text
    )


def printable_line(text: str | None) -> str | None:
    """A cell's text, printable and on a single line."""
    return text and printable(text).replace("\n", "\\n").replace("\t", "\\t")


def echo(text: str, *, err: bool = False) -> None:
    """Print on rank 0 only."""
    if distributed.rank() == 0:
        click.echo(printable(text), err=err)


def warn(text: str) -> None:
    """Print a warning to standard error."""
    echo(f"Warning: {text}", err=True)


def unchanged_suffix(unchanged: bool) -> str:
    """The end of the summary line of a stage that had nothing to do."""
    return ", unchanged" if unchanged else ""


def print_synthetic_summary(folder: Path, result: "SyntheticResult") -> None:
    """Print the number of synthetic faces in a folder."""
    echo(f"{folder}: {result.config.count:,} synthetic faces{unchanged_suffix(result.unchanged)}")


def print_pack_summary(shards: ShardsFolder, result: "PackResult") -> None:
    """Print how many images were packed, rejected, annotated and left unmatched."""
    packed = result.document
    if result.unchanged:
        echo(f"{shards.folder}: {packed.images:,} images, unchanged")
        return
    selected = packed.images + sum(packed.rejected.values())
    rate = selected / max(packed.seconds, 0.01)
    echo(
        f"{shards.folder}: {packed.images:,} images packed, {packed.bytes / 1e6:,.1f} MB in {len(packed.shards):,} "
        f"shards, {packed.seconds:.1f} s ({rate:,.0f} images/s)"
    )
    if selected < packed.images_found:
        echo(f"  selected:  {selected:,} of {packed.images_found:,} images found")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in packed.rejected.items())
    details = f" ({reasons}; `fairface sql rejects`)" if reasons else ""
    echo(f"  rejected:  {sum(packed.rejected.values()):,}{details}")
    print_annotation_summary(shards, packed, selected=selected)
    for name in packed.unreadable[:UNREADABLE_SHOWN]:
        warn(f"{name} could not be read{', or is not an annotation table' if name.endswith('.csv') else ''}")
    if len(packed.unreadable) > UNREADABLE_SHOWN:
        warn(f"{len(packed.unreadable) - UNREADABLE_SHOWN:,} more could not be read; shards.json lists them")


def print_annotation_summary(shards: ShardsFolder, packed: "ShardsDocument", *, selected: int) -> None:
    """Print how many of the `selected` images have an annotation, and what is wrong with the tables."""
    if not packed.tables:
        echo("  annotated: none, because no annotation table was found: the report will compare labels only")
        return
    tables = f"{len(packed.tables):,} table{'s' * (len(packed.tables) > 1)} ({', '.join(packed.layouts)})"
    source = f"match one of {packed.rows:,} rows in {tables}"
    if packed.tables[0].startswith(FILE_NAMES):
        source = f"have labels in their {packed.tables[0]}"
    echo(f"  annotated: {packed.matched:,} of {selected:,} images ({packed.matched / selected:.1%}) {source}")
    reasons = ", ".join(
        f"{count:,} {UNMATCHED_TITLES.get(name, name.replace('_', ' '))}" for name, count in packed.unmatched.items()
    )
    details = f" (`fairface sql unmatched`, {shards.unmatched})" if reasons else ""
    echo(f"  unmatched: {reasons or 'none'}{details}")
    if packed.rows_repeated:
        warn(f"{packed.rows_repeated:,} rows name an image that an earlier row names; the first row is used")
    if packed.rows_disagreeing:
        warn(f"{packed.rows_disagreeing:,} rows have an Intersection that is not gender x skin tone")
    if packed.rows_uncoded:
        warn(f"{packed.rows_uncoded:,} rows with a label that matches no class; such labels are treated as missing")


def print_faults(workspace: Workspace, faults: "dict[Path, list[str]]") -> None:
    """Print the first faults of each folder; if there are any, raise FairfaceError with their number."""
    for folder, lines in faults.items():
        for line in lines[:FAULTS_SHOWN]:
            echo(printable_line(line) or "", err=True)
        if len(lines) > FAULTS_SHOWN:
            echo(f"... and {len(lines) - FAULTS_SHOWN:,} more in {folder}", err=True)
    count = sum(map(len, faults.values()))
    if count:
        raise FairfaceError(
            f"{count:,} fault{'s' * (count > 1)} in {workspace.root}: copy the damaged files again from an intact "
            "copy, or run the commands named above"
        )


def print_train_summary(workspace: Workspace, result: "TrainResult") -> None:
    """Print how many steps a run was trained."""
    state = f"{'already ' * result.unchanged}trained {result.config.steps:,} steps"
    echo(f"{workspace.run(result.config.name).folder}: {state}")


def print_sample_summary(result: "SampleResult") -> None:
    """Print how many samples a run has, and the checkpoint that generated them."""
    samples = result.document
    state = unchanged_suffix(result.unchanged)
    echo(f"{result.folder.folder}: {samples.count:,} samples of {samples.checkpoint}{state}")
    if samples.source and (rejected := samples.source.rejected):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items())
        echo(f"  rejected: {sum(rejected.values()):,} images ({reasons})")
    if samples.is_constant:
        remedy = "their labels mean nothing" if samples.source else "train again, perhaps with a lower --lr"
        warn(f"all samples are the same image, or each has a single colour: {remedy}")


def print_folder_labels(csv: Path, result: "FolderResult") -> None:
    """Print how many images of a plain folder were labelled."""
    rejected = sum(result.rejected.values())
    details = f", {rejected:,} could not be decoded" if rejected else ""
    echo(f"{csv}: {result.images:,} images labelled by {result.labeller}{details}")


def print_label_summary(result: "LabelResult") -> None:
    """Print what was labelled, and the accuracy of each method."""
    for side in result.sides:
        labels = side.document
        state = unchanged_suffix(side.unchanged)
        echo(f"{labels.source}: {labels.images:,} images labelled by {labels.labeller}{state}")
    if all(side.document.source == "generated" for side in result.sides):
        echo("  no training images are packed, so the labeller's error rates are unknown")
    elif result.accuracies is None:
        echo("  too few annotated images to fit a probe or to measure the labeller's errors")
    else:
        print_accuracies(result.accuracies)


def print_accuracies(accuracies: "pl.DataFrame") -> None:
    """Print each method's balanced accuracy by attribute, and which method the report uses."""
    for (attribute,), rows in accuracies.group_by("attribute", maintain_order=True):
        labellers = ", ".join(
            f"{row['method']} {row['balanced_accuracy']:.2f}{' (selected)' * row['selected']}"
            for row in rows.sort("method").iter_rows(named=True)
        )
        name = str(attribute).replace("_", " ") + ":"
        echo(f"  {name:13} balanced accuracy {labellers} on {rows['n'][0]:,} annotated images")


def print_detector_summary(workspace: Workspace, result: "DetectResult") -> None:
    """Print a detector's number of training steps and test faces, and its metrics."""
    from reports.detector_summary import summarise

    counts, name = result.counts, result.config.name
    echo(
        f"{workspace.detector(name).folder}: trained {result.steps:,} steps, evaluated on {counts['test_real']:,} real "
        f"faces and {counts['test_fake']:,} fakes{unchanged_suffix(result.unchanged)}"
    )
    summary = summarise(workspace, name)
    print_metrics(summary)
    for reason in result.left_out:
        warn(reason)
    pretrained = (result.config.requested_options or {}).get("pretrained")
    if not result.steps and not Path(pretrained or "").is_file():
        warn(f"{name} was not trained: its head is random, unless --pretrained names the file of a published detector")
    if result.grouped_by == "labelled" and not summary.fairness:
        warn("no face has a label: run `fairface label`, then `fairface detect` again for the metrics by group")


def print_imported_predictions(imported: "ImportedPredictions") -> None:
    """Print how many predictions were imported."""
    counts = imported.document
    echo(
        f"{imported.folder.folder}: {counts.images:,} predictions, {counts.real:,} of real faces "
        f"and {counts.fake:,} of fakes"
    )


def print_metrics(summary: "DetectorSummary") -> None:
    """Print a detector's utility over all faces, and its fairness by attribute."""
    utility = {title: summary.utility[column] for title, column in UTILITY_METRICS.items()}
    defined = ", ".join(f"{title} {value:.3f}" for title, value in utility.items() if value is not None)
    echo(f"  {'all faces:':13} {defined}")
    if unseen := summary.hold_out:
        auc = "" if unseen["auc"] is None else f", AUC {unseen['auc']:.3f}"
        seen = (
            f"; {unseen['full_detector']}, trained on all fakes: TPR {unseen['full_tpr']:.3f}"
            if unseen["full_detector"]
            else ""
        )
        interval = f"{unseen['tpr_low']:.3f} to {unseen['tpr_high']:.3f}"
        echo(f"  {'held out:':13} {unseen['held_out']}: TPR {unseen['tpr']:.3f} ({interval}){auc}{seen}")
    for row in summary.fairness:
        metrics = ", ".join(f"{metric.upper()} {row[metric]:.3f}" for metric in FAIRNESS_METRICS)
        excluded = f", without {row['excluded_groups']}" if row["excluded_groups"] else ""
        echo(f"  {row['attribute'].replace('_', ' ') + ':':13} {metrics}{excluded}")
    echo("  intervals: `fairface sql detection_metrics`; of samples: `fairface sql detection_rates`")


def print_report(result: "BuildResult") -> None:
    """Print the path of the page, and what it lacks."""
    echo(f"{result.page}{unchanged_suffix(not result.rebuilt)}")
    for missing in result.missing:
        warn(f"{missing}; the page shows what is available")
    for reason in result.warnings:
        warn(reason)


def print_audit_plan(result: "PlanResult", widths: "Sequence[ExpectedWidth]") -> None:
    """Print which faces people should label, and the precision to expect."""
    plan = result.plan
    names = {"generated": "samples", "train": "training images"}
    chosen = " and ".join(
        f"{sum(side.faces):,} of {side.population:,} {names[source]}" for source, side in plan.sides.items()
    )
    echo(f"{result.folder.folder}: {chosen}, {plan.design}{unchanged_suffix(result.unchanged)}")
    answers = sum(sum(side.faces) * len(side.attributes) for side in plan.sides.values())
    people = f" from each of {plan.raters} raters" if plan.raters > 1 else ""
    echo(f"  {answers:,} answers{people}, about {', '.join(name.replace('_', ' ') for name in plan.attributes)}")
    for source, title in names.items():
        for row in (row for row in widths if row.source == source):
            name = row.attribute.replace("_", " ") + ":"
            echo(
                f"  {name:13} about ±{row.width * 50:.1f} percentage points for shares of the {title} (95 %, widest: "
                f"{row.group}), if raters agree"
            )
    echo(f"  next: `fairface audit page --run {shlex.quote(plan.run)}`")


def print_ratings(
    result: "ImportResult", counts: "Sequence[RaterCounts]", agreement: "Mapping[str, Agreement]", *, ordered: set[str]
) -> None:
    """Print how many answers each rater gave, and how well they agree; `ordered` attributes have ordered classes."""
    for row in counts:
        state = "" if row.rater in result.imported else ", imported before"
        missing = row.questions - row.answers
        rest = f", {missing:,} questions left" if missing else ""
        echo(f'{row.rater}: {row.answers:,} answers, {row.cannot_tell:,} of them "can\'t tell"{rest}{state}')
    for attribute, found in agreement.items():
        name, is_ordered = attribute.replace("_", " ") + ":", attribute in ordered
        alpha, low, high = found.ordinal if is_ordered else found.nominal
        near = f", {found.close[0]:.0%} at most one class apart" if is_ordered else ""
        same = f"{found.same[0]:.0%} of pairs of answers are equal{near}, on {found.faces:,} faces"
        measured = f"Krippendorff's {'ordinal ' * is_ordered}alpha {alpha:.2f} ({low:.2f} to {high:.2f})"
        echo(f"  {name:13} {'agreement undefined: all answers are equal' if math.isnan(alpha) else measured}; {same}")
    if len(counts) < result.plan.raters:
        echo(f"  {result.plan.raters - len(counts)} of {result.plan.raters} raters have not answered yet")
    echo(f"  next: `fairface report --run {shlex.quote(result.plan.run)}`")


def print_questions(attributes: "AttributeTable") -> None:
    """Print every SQL question with its parameters."""
    import sql

    names = {"@attributes": list(attributes), "@labelled": list(attributes.labelled)}
    for name, question in sql.questions().items():
        echo(f"{name}: {question.title}")
        for key, parameter in question.parameters(names).items():
            value = "..." if parameter.default is None else parameter.default
            echo(f"    --param {key}={value}  {parameter.meaning}")


def write_answer(answer: "pl.DataFrame", form: str, *, output: Path | None) -> None:
    """Print a table in a format (table, csv, json, markdown), or write it to a file (parquet, too)."""
    from shards.atomic_io import open_output, write_parquet

    if output is None:
        text = render_table(answer, form)
        click.echo(printable(text) if sys.stdout.isatty() else text)
        return
    with open_output(output) as file:
        if form == "parquet":
            write_parquet(output, answer, output=file)
        else:
            file.write(render_table(answer, form).encode() + b"\n")


def render_table(frame: "pl.DataFrame", form: str) -> str:
    """A table as text: table, csv, json or markdown. A csv has no cells that a spreadsheet runs as formulas."""
    import json

    import polars as pl

    from shards.csv_output import escape_formulas

    if form == "csv":
        lists = [name for name, kind in frame.schema.items() if kind.is_nested()]
        texts = {
            name: [None if value is None else json.dumps(value, default=str) for value in frame[name].to_list()]
            for name in lists
        }
        flat = frame.with_columns(pl.Series(name, values, pl.String) for name, values in texts.items())
        return escape_formulas(flat).write_csv().rstrip("\n")
    if form == "json":
        return frame.write_json()
    bar = "\\|" if form == "markdown" else "|"
    text = [name for name, kind in frame.schema.items() if kind == pl.String]
    frame = frame.with_columns(
        pl.Series(name, [line and line.replace("|", bar) for line in map(printable_line, frame[name])], pl.String)
        for name in text
    )
    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=10_000,
        fmt_str_lengths=200,
        tbl_formatting="ASCII_MARKDOWN" if form == "markdown" else "NOTHING",
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        float_precision=4,
    ):
        return str(frame)
