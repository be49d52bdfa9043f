"""The commands of an audit, in which people label some of the faces: `audit plan`, `audit page` and `audit import`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import console
from pipeline.cli.options import (
    FILE,
    force_option,
    given_options,
    name_callback,
    run_option,
    seed_option,
    workspace_option,
)
from shards.workspace import Workspace

if TYPE_CHECKING:
    import duckdb

FACES = click.IntRange(10, 10_000)  # the page holds all of them


@click.group()
def audit() -> None:
    """Let people label some faces, and correct the shares.

    `plan` chooses the faces, `page` writes the page on which people label them, and `import` reads the answers that
    they save from it.
    """


@audit.command()
@workspace_option()
@run_option
@click.option("--labels", type=FACES, default=300, show_default=True, help="Number of faces that each rater labels.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    help="Attribute that raters are asked about, such as gender. Repeatable.  [default: those of the verdict]",
)
@click.option(
    "--raters",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Number of raters; each labels every face.",
)
@click.option(
    "--design",
    type=click.Choice(["stratified", "active", "uniform"]),
    default="stratified",
    show_default=True,
    help="How faces are chosen: stratified by label and confidence; active: more often where the label is probably "
    "wrong; uniform: all with the same probability.",
)
@seed_option
@click.option("--extend", type=FACES, help="Number of faces to add to the plan; earlier faces and answers are kept.")
@force_option
def plan(workspace: Workspace, run: str | None, extend: int | None, **options: Any) -> None:
    """Choose faces for people to label, and print the precision to expect.

    Half of the faces are training images if these are not annotated; the others are samples.
    """
    if extend and (others := given_options() - {"workspace", "run", "extend"}):
        name = min(others).replace("attributes", "attribute")
        raise click.UsageError(f"--extend can't be combined with --{name}")
    from pipeline.audit.plan import PlanConfig, extend_plan, plan_audit
    from reports.audit_summary import expected_widths
    from reports.estimation.estimates import choose_run
    from shards.attributes import workspace_attributes

    connection = connect(workspace)
    name = choose_run(connection, workspace, run=run)
    if extend:
        result = extend_plan(workspace, connection, name, extend)
    else:
        result = plan_audit(workspace, connection, name, PlanConfig(**options))
    attributes = workspace_attributes(workspace)
    console.print_audit_plan(result, expected_widths(connection, result.plan, result.population, attributes=attributes))


@audit.command()
@workspace_option()
@run_option
def page(workspace: Workspace, run: str | None) -> None:
    """Write the HTML page on which people label the faces of the plan.

    The page needs only a browser: send it to each rater. It contains the faces, but no labels.
    """
    from reports.audit_page import write_audit_page
    from reports.estimation.estimates import choose_run

    name = choose_run(connect(workspace), workspace, run=run)
    console.echo(str(write_audit_page(workspace, name)))
    console.echo("  next: open it in a browser, or send it to each rater; then `fairface audit import` the saved files")


def connect(workspace: Workspace) -> "duckdb.DuckDBPyConnection":
    """Connect without the tables of audits: it must be possible to replace a plan even if one of them is damaged."""
    import sql

    current = sql.find_files(workspace)
    return sql.connect(workspace, replace(current, files=current.files | {"audit_faces": [], "ratings": []}))


@audit.command("import")
@click.argument("files", nargs=-1, required=True, type=FILE)
@workspace_option()
@click.option("--run", callback=name_callback, help="Name of the run.  [default: the run named in the files]")
@click.option("--replace", "replaces", is_flag=True, help="Replace the earlier answers of the same raters.")
def import_(workspace: Workspace, files: tuple[Path, ...], run: str | None, replaces: bool) -> None:
    """Import the FILES that raters saved from the page, and print how well the raters agree."""
    from pipeline.audit.import_ratings import import_ratings
    from reports.audit_summary import count_answers, rater_agreement
    from shards.attributes import workspace_attributes

    result = import_ratings(workspace, files, run=run, replace=replaces)
    ordered = {name for name, attribute in workspace_attributes(workspace).items() if attribute.is_numbered}
    counts, agreement = count_answers(result.plan, result.ratings), rater_agreement(result.plan, result.ratings)
    console.print_ratings(result, counts, agreement, ordered=ordered)
