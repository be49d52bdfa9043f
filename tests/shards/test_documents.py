"""Documents come back as they were written; another version's and damaged ones are one clear error."""

import json

import pytest

from shards.documents import (
    DataSource,
    RunConfig,
    ShardEntry,
    ShardsDocument,
    UnfinishedPack,
    load_shards_json,
    read_document,
    write_document,
)
from shards.errors import FairfaceError
from shards.workspace import ShardsFolder


def test_documents_come_back_as_they_were_written(packed, tmp_path):
    document = load_shards_json(ShardsFolder(packed / "shards"))
    assert document.shards[0] == ShardEntry(name="shard-000000.tar", images=100, bytes=document.shards[0].bytes)
    write_document(tmp_path / "shards.json", document)
    assert read_document(tmp_path / "shards.json", ShardsDocument) == document
    assert json.loads((tmp_path / "shards.json").read_text())["format"] == ShardsDocument.FORMAT
    source = DataSource(manifest="m", images=1, synthetic=True, root="r", annotated=1)
    run = RunConfig(name="x", status="running", started="now", data=source, previous_data=[source, source])
    write_document(tmp_path / "config.json", run)
    assert read_document(tmp_path / "config.json", RunConfig) == run


def test_a_missing_document_is_none(tmp_path):
    assert read_document(tmp_path / "plan.json", UnfinishedPack) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("null", "is of format None"),
        ("[1]", "is of format None, and this version reads 1: pack again with `fairface shards --force`"),
        ({"format": 0}, "is of format 0"),
        ({"fingerprint": "f", "order": "o", "root": "r"}, "is of format None"),
        ({"format": 1, "fingerprint": "f", "order": "o", "root": "r", "x": 1}, "unknown field 'x'"),
        ({"format": 1, "fingerprint": "f", "order": "o"}, "root"),
        ({"format": 1, "fingerprint": 7, "order": "o", "root": "r"}, "fingerprint: 7 where str should be"),
    ],
)
def test_another_format_and_damage_are_errors_that_name_the_file(tmp_path, content, message):
    (tmp_path / "plan.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(FairfaceError, match=r"plan\.json") as caught:
        read_document(tmp_path / "plan.json", UnfinishedPack)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [True, 1.5, None, "1"])
def test_integers_are_integers(tmp_path, value):
    (tmp_path / "x.json").write_text(
        json.dumps({"format": 2, "name": "x", "status": "s", "started": "n", "excluded": value})
    )
    with pytest.raises(FairfaceError, match="excluded"):
        read_document(tmp_path / "x.json", RunConfig)
