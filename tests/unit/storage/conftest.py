"""Files that the tests of storage share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fsspec
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with a visible, a nested and a hidden file."""
    (tmp_path / "a.bin").write_bytes(bytes(range(100)))
    (tmp_path / "deep" / "_hidden").mkdir(parents=True)
    (tmp_path / "deep" / "b.bin").write_bytes(b"b")
    (tmp_path / "deep" / "_hidden" / "c.bin").write_bytes(b"c")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    """URL of an in-memory directory with one file."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/laneway-storage/a.bin", bytes(range(100)))
    yield "memory://laneway-storage"
    filesystem.rm("/laneway-storage", recursive=True)
