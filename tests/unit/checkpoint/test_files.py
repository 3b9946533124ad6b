"""Files of checkpoints: what is written is read, and a damaged byte is found where it is read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.checkpoint import files as module
from laneway.checkpoint import verified
from laneway.checkpoint.files import CheckpointFiles
from laneway.checkpoint.folder import CheckpointFolder
from laneway.checkpoint.verified import VerifiedFile
from laneway.errors import CheckpointError, DataFileError
from laneway.storage.filesystem import Storage

if TYPE_CHECKING:
    from pathlib import Path

NAME = "000001-step-0"
BLOCK, PIECE = 16, 6


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
            patch.setattr(each, "PIECE_BYTES", PIECE)
        yield


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 100), st.integers(0, 100))
def test_any_part_of_what_was_written_in_any_pieces_is_read(
    folder: CheckpointFolder, pieces: list[bytes], start: int, length: int
) -> None:
    with CheckpointFiles(folder, NAME) as files, files.create_stream("x", "wb") as stream:
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
    with CheckpointFiles(folder, NAME) as files, files.create_stream("y", "wb") as stream:
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


def test_what_was_written_is_synced_and_closed(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.path.realpath(f"/proc/self/fd/{descriptor}")))
    paths = [folder.path(NAME, file) for file in ("one", "two")]
    with CheckpointFiles(folder, NAME) as files:
        with files.create_stream("one", "wb") as stream:
            stream.write(b"1")
        files.write("two", b"2" * (BLOCK + 1))
        files.sync()
        assert synced == paths
    assert files.written["two"].size == BLOCK + 1
    assert not {*paths} & {os.path.realpath(each.path) for each in os.scandir("/proc/self/fd")}


def test_a_file_that_can_not_be_written_is_closed(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    # /dev/full refuses every byte.
    monkeypatch.setattr(folder, "path", lambda _name, _file="": "/dev/full")
    with CheckpointFiles(folder, NAME) as files, pytest.raises(DataFileError, match="No space left on device"):
        files.write("x", b"1")
    assert files.written == {}
    assert "/dev/full" not in {os.path.realpath(each.path) for each in os.scandir("/proc/self/fd")}
