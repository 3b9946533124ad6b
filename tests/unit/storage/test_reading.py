"""Reading ranges: exactly the requested bytes, or an error that names the file and reveals no secret."""

from __future__ import annotations

import http.server
import os
import threading
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.fs
import pytest

from laneway.errors import DataFileError
from laneway.storage.entries import file_size
from laneway.storage.filesystem import Storage
from laneway.storage.reading import RangeFile, read_range, read_tails
from laneway.storage.retries import RetryPolicy

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "canary-4711"
TWICE = RetryPolicy(max_attempts=2, first_delay_s=0)


class BrokenFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Fails as the clients of object stores do, with messages that reveal secrets."""

    protocol = "broken"
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 100, "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if path.endswith("short"):
            return b"x" * ((end or 0) - (start or 0) - 1)
        if path.endswith("forbidden"):
            raise PermissionError(13, "AccessDenied", path)
        message = f"can't reach https://user:{CANARY}@store.example/{path}?X-Amz-Signature={CANARY}"
        raise RuntimeError(message)


def test_a_range_has_exactly_the_requested_bytes(data: Path, memory: str) -> None:
    for storage in (
        Storage(data),
        Storage(memory),
        Storage(str(data), pyarrow.fs.SubTreeFileSystem("/", pyarrow.fs.LocalFileSystem())),
    ):
        path = storage.join("a.bin")
        assert file_size(storage, path) == 100
        assert read_range(storage, path, 10, 20) == bytes(range(10, 20))
        assert read_range(storage, path, 0, 5) == bytes(range(5))
        assert read_range(storage, path, 10, 10) == b""
        with pytest.raises(
            DataFileError,
            match=r"a\.bin is truncated: requested bytes 90 to 110 \(20 bytes\), received 10 bytes",
        ):
            read_range(storage, path, 90, 110)


def test_a_short_body_is_an_error_and_never_data() -> None:
    storage = Storage("dir", BrokenFileSystem(), retries=TWICE)
    with pytest.raises(
        DataFileError,
        match=r"short is truncated \(tried 2 times in .* s\): requested bytes 10 to 20 \(10 bytes\), received 9 bytes",
    ):
        read_range(storage, "dir/short", 10, 20)


def test_missing_and_forbidden_files_are_named(data: Path, memory: str) -> None:
    for place in (data, memory):
        storage = Storage(place)
        for read in (partial(read_range, start=0, stop=1), file_size):
            with pytest.raises(DataFileError, match=r"gone\.bin does not exist"):
                read(storage, storage.join("gone.bin"))
    with pytest.raises(DataFileError, match="dir/forbidden can't be read, permission denied"):
        read_range(Storage("dir", BrokenFileSystem()), "dir/forbidden", 0, 1)


def test_no_secret_reaches_an_error_or_its_traceback() -> None:
    storage = Storage("dir/file", BrokenFileSystem(token=CANARY))
    with pytest.raises(DataFileError, match=r"can't reach https://store\.example/dir/file") as caught:
        read_range(storage, "dir/file", 0, 1)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_a_file_object_reads_the_requested_bytes(data: Path) -> None:
    file = RangeFile(Storage(data), str(data / "a.bin"), 100)
    assert (file.seek(-3, os.SEEK_END), file.read(), file.read(5)) == (97, bytes([97, 98, 99]), b"")
    assert (file.seek(10), file.read(2), file.tell(), file.seek(1, os.SEEK_CUR)) == (
        10,
        bytes([10, 11]),
        12,
        13,
    )


def test_a_server_that_ignores_ranges_is_detected(data: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(data))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            storage = Storage(f"http://127.0.0.1:{server.server_port}/a.bin?token={CANARY}", retries=TWICE)
            assert read_range(storage, storage.root, 0, 100) == bytes(range(100))
            with pytest.raises(DataFileError, match=r"\(10 bytes\), received 100 bytes") as caught:
                read_range(storage, storage.root, 10, 20)
            assert CANARY not in str(caught.value)
            gone = Storage(f"http://127.0.0.1:{server.server_port}/gone.bin?token={CANARY}")
            with pytest.raises(DataFileError, match=r"gone\.bin does not exist") as caught:
                read_range(gone, gone.root, 0, 20)
            assert CANARY not in "".join(traceback.format_exception(caught.value))
        finally:
            server.shutdown()
            thread.join()


def test_a_pipe_that_has_taken_the_place_of_a_file_is_an_error_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    storage = Storage(tmp_path)
    with pytest.raises(DataFileError, match=r"a\.parquet can't be read"):
        read_range(storage, str(tmp_path / "a.parquet"), 0, 8)
    assert read_tails(storage, [str(tmp_path / "a.parquet")], [8], 8, [""]) == [None]
