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
    """Let people label some faces, and correct the labeller.

    `plan` chooses the faces, `page` writes the file on which people label them, and `import` reads the files that
    they save there.
    """


@audit.command()
@workspace_option()
@run_option
@click.option("--labels", type=FACES, default=300, show_default=True, help="Number of faces that each person labels.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    help="Attribute that people are asked about, such as gender. Repeatable.  [default: those of the verdict]",
)
@click.option(
    "--raters",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Number of people who label every face.",
)
@click.option(
    "--design",
    type=click.Choice(["stratified", "active", "uniform"]),
    default="stratified",
    show_default=True,
    help="stratified: by label and confidence; active: faces whose labels are probably wrong more often; uniform: all "
    "faces equally often.",
)
@seed_option
@click.option("--extend", type=FACES, help="Add this number of faces to the plan; earlier faces and answers stay.")
@force_option
def plan(workspace: Workspace, run: str | None, extend: int | None, **options: Any) -> None:
    """Choose the faces that people label, and print how precise the result will be.

    The samples are chosen from, and the training images where they are not annotated.
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
    """Write the HTML file on which people label the faces of the plan.

    It needs nothing but a browser: send it to each person. It contains the faces, but not the labels.
    """
    from reports.audit_page import write_audit_page
    from reports.estimation.estimates import choose_run

    name = choose_run(connect(workspace), workspace, run=run)
    console.echo(str(write_audit_page(workspace, name)))
    console.echo("  next: open it in a browser, or send it to each rater; then `fairface audit import` the saved files")


def connect(workspace: Workspace) -> "duckdb.DuckDBPyConnection":
    """A connection without the audits' own tables: a plan must be replaceable even if one of them is damaged."""
    import sql

    current = sql.find_files(workspace)
    return sql.connect(workspace, replace(current, files=current.files | {"audit_faces": [], "ratings": []}))


@audit.command("import")
@click.argument("files", nargs=-1, required=True, type=FILE)
@workspace_option()
@click.option("--run", callback=name_callback, help="Name of the run.  [default: the run that the files name]")
@click.option("--replace", "replaces", is_flag=True, help="Replace other answers of the same people.")
def import_(workspace: Workspace, files: tuple[Path, ...], run: str | None, replaces: bool) -> None:
    """Import the FILES that people saved on the page, and print how well they agree."""
    from pipeline.audit.import_ratings import import_ratings
    from reports.audit_summary import count_answers, rater_agreement
    from shards.attributes import workspace_attributes

    result = import_ratings(workspace, files, run=run, replace=replaces)
    ordered = {name for name, attribute in workspace_attributes(workspace).items() if attribute.is_numbered}
    counts, agreement = count_answers(result.plan, result.ratings), rater_agreement(result.plan, result.ratings)
    console.print_ratings(result, counts, agreement, ordered=ordered)
