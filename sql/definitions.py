"""The SQL that defines the views over the files of a workspace."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from shards.attributes import PROBABILITY_PREFIX, Attribute, AttributeTable
from shards.provenance import CurrentFiles
from shards.workspace import REPORT_TABLES, TRIVIAL_DETECTORS

FOLDER = Path(__file__).parent / "views"
UNION = "\n    union all\n    "
# in this order, because later views query earlier ones
FILES = (
    "columns.sql", "results.sql", "studies.sql",
    "detection.sql", "operating_points.sql", "detector_tables.sql", "hold_out.sql",
)  # fmt: skip
# with the comments above it; a line of a comment may end in a semicolon
STATEMENT = re.compile(r"(?:--.*\n|\n)*create \w+ (\w+)[\s\S]*?;\n(?=(?:--.*\n|\n)*(?:create |\Z))")
RUN_COLUMNS = (
    "{status: 'VARCHAR', started: 'VARCHAR', finished: 'VARCHAR', device: 'VARCHAR', steps: 'BIGINT', "
    "options: 'JSON', data: 'JSON'}"
)
STUDY_RUN = "arm varchar, seed bigint, run varchar, trained_run varchar, status varchar, reason varchar, seconds json"
JSON_COLUMNS = {  # of the views over JSON files
    "runs": RUN_COLUMNS,
    "detectors": (
        "{name: 'VARCHAR', status: 'VARCHAR', steps: 'BIGINT', requested_options: 'JSON', "
        "data: 'STRUCT(manifest VARCHAR, held_out VARCHAR[])'}"
    ),
    "studies": f"{{name: 'VARCHAR', arms: 'STRUCT(name VARCHAR)[]', runs: 'STRUCT({STUDY_RUN})[]'}}",
    "study_records": "{run: 'VARCHAR', status: 'VARCHAR', reason: 'VARCHAR', seconds: 'JSON'}",
}


def views(current: CurrentFiles) -> str:
    """SQL that creates the views over the current files of a workspace."""
    return "".join(definitions(current).values())


def definitions(current: CurrentFiles) -> dict[str, str]:
    """The statements of `views` by the name that each creates, after the statements that it depends on."""
    files = current.files
    generated = attribute_expressions(current.attributes)
    placeholder = re.compile(r"\{(" + "|".join([*files, *generated]) + r")\}")

    def expression(match: re.Match[str]) -> str:
        if match[1] in generated:  # which may be empty, without crosses
            return generated[match[1]]
        return table_expression(match[1], files[match[1]], stale=stale_rows(match[1], current))

    # one pass, and divided before: a path that is filled in may itself contain a placeholder or a statement
    return {name: placeholder.sub(expression, text) for name, text in templates().items()}


@cache
def templates() -> dict[str, str]:
    """The statements of the files by the name that each creates, with placeholders and the comments above them."""
    text = "".join((FOLDER / name).read_text(encoding="utf-8") for name in FILES)
    return {match[1]: match[0] for match in STATEMENT.finditer(text)}


def attribute_expressions(attributes: AttributeTable) -> dict[str, str]:
    """The parts of the views that depend on the attributes, by placeholder."""
    return {
        **_column_expressions(attributes),
        **_label_expressions(attributes),
        **_count_expressions(attributes),
        **_prediction_expressions(attributes),
    }


def _column_expressions(attributes: AttributeTable) -> dict[str, str]:
    """The names, types and expressions of columns, and the rows of view `attributes`."""
    types = {
        name: f"{identifier(name)} {'tinyint' if item.is_numbered else 'varchar'}" for name, item in attributes.items()
    }
    derived = [f"{derived_class(item)} as {identifier(item.name)}" for item in attributes.derived]
    classes = [
        (name, item.title, each.name, rank, ", ".join(each.of or item.cross), each.faces, each.colour, each.prompt)
        for name, item in attributes.items()
        for rank, each in enumerate(item.classes, 1)
    ]
    return {
        "attributes": ", ".join(map(quote, ["all", *attributes])),
        "classes": ",\n    ".join(f"({', '.join(map(literal, row))})" for row in classes),
        "columns": ", ".join(map(identifier, attributes)),
        "is_annotated": " or ".join(f"{identifier(name)} is not null" for name in attributes.stored),
        "labelled": ", ".join(types[name] for name in attributes.labelled),
        "stored": ", ".join(types[name] for name in attributes.stored),
        "probabilities": ", ".join(f"{_probabilities(name)} float[]" for name in attributes.labelled),
        "derived": ", ".join(derived),
        "recompute_derived": f"replace ({', '.join(derived)})" if derived else "",  # for attributes added after packing
        "crosses": ", ".join(f"{derived_class(item)} as {identifier(item.name)}" for item in attributes.crosses),
    }


def _label_expressions(attributes: AttributeTable) -> dict[str, str]:
    """The branches of the views with a row for each attribute of a face."""
    branch = """select source, run, key, method, labeller, {text} as attribute, {group}::varchar as "group"
    from label_rows where source in ('train', 'generated') and {group} is not null
    union all
    select 'annotated', null, key, 'annotated', 'annotated', {text}, {group}::varchar
    from image_rows where status = 'packed' and {group} is not null"""
    confidence = """select source, run, key, method, {text} as attribute, {name}::varchar as "group",
        list_max({probabilities}) as probability
    from labels where {name} is not null and {probabilities} is not null"""
    return {
        "branches": UNION.join(
            branch.format(text=quote(name), group=class_expression(item, attributes))
            for name, item in attributes.items()
        ),
        "confidence": UNION.join(
            confidence.format(text=quote(name), name=identifier(name), probabilities=_probabilities(name))
            for name in attributes.labelled
        ),
    }


def _count_expressions(attributes: AttributeTable) -> dict[str, str]:
    """The parts of view `class_counts`."""
    counted = '{{attribute: {text}, "group": if(grouping_id = {grouping_id}, {group}::varchar, null)}}'
    sets = dict.fromkeys(grouping_sets(attributes).values())
    return {
        "labelled_columns": ", ".join(map(identifier, attributes.labelled)),
        "grouping_sets": ", ".join(f"(filename, {', '.join(map(identifier, names))})" for names in sets),
        "counted_classes": ", ".join(
            counted.format(
                text=quote(name),
                group=class_expression(item, attributes),
                grouping_id=grouping_id(item, attributes),
            )
            for name, item in attributes.items()
        ),
    }


def _prediction_expressions(attributes: AttributeTable) -> dict[str, str]:
    """The columns of the views of detectors' predictions."""
    names = {name: identifier(name) for name in attributes.stored}
    tabulated = list(map(identifier, attributes.tabulated))
    return {
        "stored_columns": ", ".join(names.values()),
        "stored_classes": ", ".join(
            f"{class_expression(attributes[name], attributes)} as {column}" for name, column in names.items()
        ),
        "selected_columns": ", ".join(
            f"max({column}) filter (is_selected({quote(name)}, method)) as {column}" for name, column in names.items()
        ),
        "predicted_columns": ", ".join(
            f"coalesce(p.{column}, a.{column}, l.{column}) as {column}" for column in names.values()
        ),
        "tabulated_columns": ", ".join(tabulated),
        "tabulated_text": ", ".join(f"{column}::varchar as {column}" for column in tabulated),
        "trivial_detectors": ", ".join(map(quote, TRIVIAL_DETECTORS)),
        **_group_numbers(attributes),
    }


def _group_numbers(attributes: AttributeTable) -> dict[str, str]:
    """The numbers of the groups of the tabulated attributes, from 1, and the expressions that compute a face's."""
    rows: list[str] = []
    numbered = []
    for name, item in attributes.tabulated.items():
        parts = [attributes[part] for part in item.cross] or [item]
        index = ""  # of the class, from 0; of a cross, the last part varies fastest
        for part in parts:
            classes = f"[{', '.join(map(quote, part.names))}]"
            rank = f"(list_position({classes}, {identifier(part.name)}::varchar) - 1)"
            index = f"({index} * {len(part.names)} + {rank})" if index else rank
        numbered.append(f"{len(rows) + 1} + {index}")
        rows += [f"({len(rows) + rank}, {quote(name)}, {quote(group)})" for rank, group in enumerate(item.names, 1)]
    return {"group_numbers": ", ".join(rows), "numbered_groups": ", ".join(numbered)}


def _probabilities(attribute: str) -> str:
    """The column with the probabilities of an attribute's classes."""
    return identifier(PROBABILITY_PREFIX + attribute)


def grouping_id(attribute: Attribute, attributes: AttributeTable) -> int:
    """The value of SQL's `grouping` over all labelled attributes, in their order, in the set of `grouping_sets`."""
    counted = grouping_sets(attributes)[attribute.name]
    return sum(1 << bit for bit, name in enumerate(reversed(attributes.labelled)) if name not in counted)


def grouping_sets(attributes: AttributeTable) -> dict[str, tuple[str, ...]]:
    """For each attribute, the grouping set of labelled attributes that it is counted from.

    An attribute is counted with the first set that contains all of its parts, so that there are few sets.
    """
    parts = {name: labelled_parts(attribute, attributes) for name, attribute in attributes.items()}
    largest = [names for names in parts.values() if not any(names < others for others in parts.values())]
    return {
        name: tuple(sorted(next(others for others in largest if needed <= others))) for name, needed in parts.items()
    }


def labelled_parts(attribute: Attribute, attributes: AttributeTable) -> set[str]:
    """The attributes that are labelled themselves, of which an attribute is made."""
    if attribute.is_labelled:
        return {attribute.name}
    parts = attribute.cross or (attribute.parent or "",)
    return {name for part in parts for name in labelled_parts(attributes[part], attributes)}


def class_expression(attribute: Attribute, attributes: AttributeTable, *, suffix: str = "") -> str:
    """The SQL of an attribute's class, from the columns of the attributes that are labelled directly.

    The names of these columns end with `suffix`.
    """
    if attribute.cross:
        parts = (class_expression(attributes[name], attributes, suffix=suffix) for name in attribute.cross)
        return "(" + " || '-' || ".join(parts) + ")"
    return f"({derived_class(attribute, suffix=suffix)})" if attribute.parent else identifier(attribute.name + suffix)


def derived_class(attribute: Attribute, *, suffix: str = "") -> str:
    """The SQL of a derived attribute's class, from its parent's column; or of a cross's, from its attributes' columns.

    The names of these columns end with `suffix`.
    """
    if attribute.cross:
        return " || '-' || ".join(identifier(name + suffix) for name in attribute.cross)
    parent = identifier(f"{attribute.parent}{suffix}")
    cases = (
        f"when {parent} in ({', '.join(map(quote, item.of))}) then {quote(item.name)}" for item in attribute.classes
    )
    return f"case {' '.join(cases)} end"


def literal(value: str | int | None) -> str:
    """A value as an SQL literal; null for None and for empty text."""
    return quote(value) if isinstance(value, str) and value else str(value) if isinstance(value, int) else "null"


def identifier(name: str) -> str:
    """`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def stale_rows(view: str, current: CurrentFiles) -> str | None:
    """The SQL predicate of a view's rows that are out of date; None if there are none."""
    if view == "rate_estimates" and current.stale_rates:
        return f"run || '/' || detector in ({', '.join(map(quote, sorted(current.stale_rates)))})"
    if view in REPORT_TABLES and view != "confusion" and current.stale_runs:
        return f"run in ({', '.join(map(quote, sorted(current.stale_runs)))})"
    return None


def table_expression(view: str, files: Iterable[Path], *, stale: str | None = None) -> str:
    """The SQL table that reads the `files` of a view, or its empty table of columns if there are none.

    Rows for which the predicate `stale` is true are left out.
    """
    paths = ", ".join(quote(glob_pattern(file)) for file in files)
    if not paths:
        return f"{view}_columns"
    if view in JSON_COLUMNS:
        return f"read_json([{paths}], columns = {JSON_COLUMNS[view]}, filename = true)"
    if stale:
        return f"(from read_parquet([{paths}], union_by_name = true) where not {stale})"
    # labels and samples have a column `run`; the run of other files is the name of a folder
    named = ", filename = true" if view in ("steps", "labels", "audit_faces", "ratings") else ""
    return f"read_parquet([{paths}], union_by_name = true{named})"


def glob_pattern(path: Path) -> str:
    """The glob pattern, as DuckDB reads every path, that matches exactly one path."""
    return re.sub(r"[*?\[]", r"[\g<0>]", str(path))


def quote(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
