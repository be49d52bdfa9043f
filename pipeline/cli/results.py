"""Commands that present the results: `report` and `sql`."""

import os
from pathlib import Path

import click

from pipeline.cli import console
from pipeline.cli.options import BYTE_SIZE, FILE, force_option, given_options, name_callback, workspace_option
from shards.attributes import workspace_attributes
from shards.errors import FairfaceError
from shards.workspace import Workspace


@click.command()
@workspace_option()
@click.option(
    "--run",
    "runs",
    multiple=True,
    callback=name_callback,
    help="Name of the run. Repeatable; several are compared side by side.  [default: the newest]",
)
@click.option(
    "--reference",
    type=FILE,
    help="CSV with the columns attribute, group, share and, optionally, n (number of people): shares of a census, of "
    "your users or of other data to compare the samples with. Copied to OUT.  [default: the copy in OUT]",
)
@click.option(
    "--reference-only",
    is_flag=True,
    help="Compare the samples with --reference instead of with the training images, here and in later reports.",
)
@click.option("--no-reference", "drop_reference", is_flag=True, help="Remove the copy of --reference from OUT.")
@force_option
def report(
    workspace: Workspace,
    runs: tuple[str, ...],
    reference: Path | None,
    reference_only: bool,
    drop_reference: bool,
    force: bool,
) -> None:
    """Write the report: estimates, figures and a single-file page."""
    if reference and drop_reference:
        raise click.UsageError("--reference and --no-reference are alternatives: use one of them")
    if reference_only and not reference:
        raise click.UsageError("--reference-only needs a file of shares: pass it with --reference")
    from reports import page

    result = page.build(
        workspace,
        runs=runs,
        reference=reference,
        reference_only=reference_only,
        drop_reference=drop_reference,
        force=force,
    )
    console.print_report(result)


@click.command()
@click.argument("name", required=False)
@workspace_option()
@click.option("--views", is_flag=True, help="Print the SQL of the views, for DuckDB's own shell.")
@click.option("-c", "--command", "text", metavar="SELECT", help="Any SELECT over the views, instead of a question.")
@click.option(
    "--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Set a parameter of the question. Repeatable."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet", "markdown"]),
    default="table",
    show_default=True,
    help="Output format; parquet needs -o.",
)
@click.option("-o", "--output", type=FILE, help="Output file, instead of the terminal.")
@click.option(
    "--max-rows",
    type=click.IntRange(1, 10**9),
    default=10**6,
    show_default=True,
    help="With -c: maximum number of rows in the answer.",
)
@click.option(
    "--max-memory", type=BYTE_SIZE, default="4GB", show_default=True, help="With -c: maximum memory of the query."
)
@click.option(
    "--timeout",
    type=click.IntRange(1, 10**6),
    default=600,
    show_default=True,
    help="With -c: maximum run time in seconds.",
)
def sql(
    workspace: Workspace,
    name: str | None,
    views: bool,
    text: str | None,
    parameters: tuple[str, ...],
    form: str,
    output: Path | None,
    max_rows: int,
    max_memory: int,
    timeout: int,
) -> None:
    """Answer a named question about the results, or any SELECT.

    Without a NAME and without -c, all questions are listed with their parameters.
    """
    check_sql_options(name, text, views=views, parameters=parameters, form=form, output=output)
    if not (name or text or views):
        console.print_questions(workspace_attributes(workspace))
        return
    if not workspace.root.is_dir():
        raise FairfaceError(f"there is no folder {workspace.root}: run `fairface shards` first, or name it with --out")
    import sql as questions

    current = questions.find_files(workspace)
    results = {os.path.realpath(path) for paths in workspace.view_files().values() for path in paths}
    if output and os.path.realpath(output) in results:
        raise FairfaceError(f"-o {output}: this is a result that the views read: choose another name")
    for warning in current.warnings:
        console.warn(warning)
    if views:
        click.echo(questions.views(current))
        return
    if text:
        answer = questions.query(workspace, text, questions.Limits(max_rows, max_memory, timeout))
    else:
        values = dict(pair.split("=", 1) for pair in parameters)
        answer = questions.ask(questions.connect(workspace, current), name or "", **values)
    console.write_answer(answer, form, output=output)


def check_sql_options(
    name: str | None,
    text: str | None,
    *,
    views: bool,
    parameters: tuple[str, ...],
    form: str,
    output: Path | None,
) -> None:
    """Raise UsageError for options that contradict each other or would have no effect."""
    if views and (name or text or parameters or output or form != "table"):
        raise click.UsageError("--views can be combined only with --out")
    if parameters and not name:
        raise click.UsageError("--param needs a named question")
    if name and text:
        raise click.UsageError("give the name of a question or -c, not both")
    if not text and (limits := given_options() & {"max_rows", "max_memory", "timeout"}):
        raise click.UsageError(f"--{min(limits).replace('_', '-')} limits a query that is given with -c")
    if not (name or text):
        return
    if form == "parquet" and not output:
        raise click.UsageError("--format parquet needs a file: name it with -o")
    for pair in parameters:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--param")
