"""Where a section of the page is made."""

from reports.render import TEMPLATES
from reports.run_page import RunPage


def test_every_section_has_a_template_and_a_module_of_its_name():
    sections = set(RunPage.__annotations__) - {"title", "run", "synthetic"}
    templates = {path.name.removesuffix(".html.j2") for path in (TEMPLATES / "sections").iterdir()}
    modules = {path.stem for path in (TEMPLATES.parent / "sections").glob("*.py")}
    assert templates == sections | {"limitations"}  # which has no data
    assert modules == sections | {"__init__", "table"}
