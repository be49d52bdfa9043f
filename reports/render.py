"""Render a page from its template into `index.html`."""

import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from reports.comparison_page import ComparisonPage
from reports.formats import shell_word, short
from reports.run_page import RunPage
from shards.atomic_io import atomic_write
from shards.workspace import ReportFolder, Workspace

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_OUT = Path("outputs")  # that commands need not name


def write_page(folder: ReportFolder, template: str, *, page: RunPage | ComparisonPage, workspace: Workspace) -> None:
    """Write `folder.page` atomically; every value is escaped."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shell"] = shell_word
    html = environment.get_template(template).render(page=page, out_option=out_option(workspace))
    with atomic_write(folder.page) as file:
        file.write(html.encode(errors="replace"))


def out_option(workspace: Workspace) -> str:
    """The `--out` option that names the workspace in a command; empty for the default workspace."""
    return "" if workspace.root == DEFAULT_OUT else f" --out {shlex.quote(short(workspace.root, 300))}"
