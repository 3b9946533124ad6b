"""Files of checkpoints: what is written is read, and a damaged byte is found where it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.checkpoint import files as module
from laneway.checkpoint import verified
from laneway.checkpoint.files import CheckpointFiles
from laneway.checkpoint.folder import CheckpointFolder
from laneway.checkpoint.verified import VerifiedFile
from laneway.errors import CheckpointError
from laneway.storage.filesystem import Storage

if TYPE_CHECKING:
    from pathlib import Path

NAME = "000001-step-0"
BLOCK = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFolder:
    root: Path = tmp_path_factory.mktemp("run")
    (root / NAME).mkdir()
    return CheckpointFolder(Storage(root))


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> object:
    with pytest.MonkeyPatch.context() as patch:
        for each in (module, verified):
            patch.setattr(each, "BLOCK_BYTES", BLOCK)
        yield


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 100), st.integers(0, 100))
def test_any_part_of_what_was_written_in_any_pieces_is_read(
    folder: CheckpointFolder, pieces: list[bytes], start: int, length: int
) -> None:
    files = CheckpointFiles(folder, NAME)
    with files.create_stream("x", "wb") as stream:
        for piece in pieces:
            stream.write(piece)
        assert stream.tell() == sum(map(len, pieces))
    record, data = files.written["x"], b"".join(pieces)
    assert (record.size, len(record.checksums)) == (len(data), -(-len(data) // BLOCK))
    with VerifiedFile(folder, NAME, "x", record) as opened:
        opened.seek(start)
        assert opened.read(length) == data[start : start + length]


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_changed_byte_is_found_where_its_block_is_read(
    folder: CheckpointFolder, content: bytes, data: st.DataObject
) -> None:
    files = CheckpointFiles(folder, NAME)
    with files.create_stream("y", "wb") as stream:
        stream.write(content)
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    path = folder.path(NAME, "y")
    with open(path, "wb") as file:  # noqa: PTH123 - a path of the storage
        file.write(changed)
    with (
        VerifiedFile(folder, NAME, "y", files.written["y"]) as opened,
        pytest.raises(CheckpointError, match="damaged"),
    ):
        opened.read()
    with VerifiedFile(folder, NAME, "y", files.written["y"], verify=False) as opened:
        assert opened.read() == changed
