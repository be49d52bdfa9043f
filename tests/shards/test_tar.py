"""Our tars are what Python's tarfile and GNU tar would write and read."""

import subprocess
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import tar
from shards.errors import FairfaceError


@given(
    st.text(st.characters(codec="ascii", exclude_characters="\0/"), min_size=1, max_size=100), st.integers(0, 8**11 - 1)
)
def test_headers_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar.header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("a" * 101, 1), ("ü", 1), ("a", 8**11)])
def test_what_a_plain_header_cannot_hold_is_refused(name, size):
    with pytest.raises(ValueError, match="does not fit"):
        tar.header(name, size)


def test_gnu_tar_reads_the_same_bytes(tmp_path):
    members = {f"{i:08d}": bytes([i]) * size for i, size in enumerate((1, 511, 512, 513, 3 << 20))}
    with tar.TarWriter(tmp_path / "a.tar") as writer:
        for key, data in members.items():
            writer.add(key, "jpg", data)
    subprocess.run(["tar", "-xf", "a.tar"], cwd=tmp_path, check=True)
    assert {path.stem: path.read_bytes() for path in tmp_path.glob("*.jpg")} == members
    assert tar.read_members(tmp_path / "a.tar", members) == members


def test_nothing_is_left_under_its_name_when_writing_fails(tmp_path):
    def fail(writer: tar.TarWriter) -> None:
        writer.add("0", "jpg", b"1")
        raise RuntimeError

    with pytest.raises(RuntimeError), tar.TarWriter(tmp_path / "a.tar") as writer:
        fail(writer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "lines", [b"", b"v1.2", b"v1.2 x\n", b"v1.2 2\njpg 512 1 0.jpg\n", b"v1.2 1\nx y\n", b"\xff\xfe"]
)
def test_a_damaged_index_is_the_users_to_mend(tmp_path, lines):
    (tmp_path / "a.idx").write_bytes(lines)
    with pytest.raises(FairfaceError, match=r"a\.idx is not a complete"):
        tar.read_index(tmp_path / "a.tar")
