"""Raters' files, written as the page saves them."""

import csv
import io

from shards.audit import ANSWER_COLUMNS, AuditPlan
from shards.audit_tables import read_plan_table
from shards.workspace import AuditFolder


def answers_csv(audit: AuditFolder, plan: AuditPlan, rater="Ann", *, answers=None, faces=None, **columns) -> str:
    """A file with an answer to every question about `faces` (by default all): `answers`[attribute], or the first class.

    `columns` replace the values of a column.
    """
    table = read_plan_table(audit, plan)
    rows = [
        {"face": face, "attribute": name, "answer": (answers or {}).get(name, plan.classes[name][0])}
        for face, source in table.select("face", "source").iter_rows()
        if faces is None or face in faces
        for name in plan.sides[source].attributes
    ]
    about = {"plan": plan.id, "run": plan.run, "rater": rater, "answers": len(rows)}
    file = io.StringIO()
    writer = csv.DictWriter(file, ANSWER_COLUMNS)
    writer.writeheader()
    writer.writerows(about | row | columns for row in rows)
    return file.getvalue()
