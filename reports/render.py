"""Render a page from its template."""

import functools
import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from reports.comparison_page import ComparisonPage
from reports.detectors_page import DetectorsPage
from reports.formats import shell_word, short
from reports.run_page import RunPage
from reports.study_page import StudyPage
from shards.workspace import Workspace

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_OUT = Path("outputs")  # that commands need not name


def render_page(
    template: str, *, page: RunPage | ComparisonPage | DetectorsPage | StudyPage, workspace: Workspace
) -> bytes:
    """The HTML of a page; every value is escaped."""
    html = template_environment().get_template(template).render(page=page, out_option=out_option(workspace))
    return html.encode(errors="replace")


@functools.cache
def template_environment() -> Environment:
    """The environment of the templates, cached so that each is compiled once in a process."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shell"] = shell_word
    return environment


def out_option(workspace: Workspace) -> str:
    """The `--out` option that names the workspace in a command; empty for the default workspace."""
    return "" if workspace.root == DEFAULT_OUT else f" --out {shlex.quote(short(workspace.root, 300))}"
