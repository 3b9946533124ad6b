"""What `load_hf` has found, remembered beside the cache of `datasets`, so that the next call needs no library."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import pyarrow as pa

from laneway.errors import ManifestCacheWarning
from laneway.tables.base import Catalog, TableFiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_VERSION: Final = 1


@final
class CachedSplit(Catalog):
    """Rows of Arrow files in the cache of `datasets`, in the order of the files."""

    format = "arrow"

    def __init__(
        self, columns: pa.Schema, paths: Sequence[str], ranges: Sequence[NDArray[np.int64]], rows: Sequence[int]
    ) -> None:
        """Take what is known of the files.

        Args:
            columns: The columns.
            paths: Absolute paths, sorted.
            ranges: The rows of each file that belong to the split, as ascending ranges of shape (num_ranges, 2).
            rows: Rows of each file.
        """
        self._columns, self._paths, self._ranges, self._rows = columns, [*paths], [*ranges], [*rows]

    @property
    def root(self) -> str:
        """See Catalog."""
        return os.path.commonpath([str(Path(path).parent) for path in self._paths])

    @cached_property
    def schema(self) -> pa.Schema:
        """See Catalog."""
        return self._columns

    def files(self) -> TableFiles:
        """See Catalog."""
        return TableFiles(paths=self._paths, sizes=[Path(path).stat().st_size for path in self._paths])

    def deleted_rows(self, indices: Sequence[int]) -> Mapping[int, NDArray[np.int64]]:
        """See Catalog: the rows that are not in the split."""
        found = {index: left_out(self._ranges[index], self._rows[index]) for index in indices}
        return {index: ranges for index, ranges in found.items() if len(ranges)}

    def encode(self) -> str:
        """Return what `decode` takes."""
        files = zip(self._paths, self._ranges, self._rows, strict=True)
        return json.dumps(
            {
                "version": _VERSION,
                "schema": base64.b64encode(self._columns.serialize().to_pybytes()).decode(),
                "files": [[path, ranges.tolist(), rows, *_facts(path)] for path, ranges, rows in files],
            }
        )

    @classmethod
    def decode(cls, text: str) -> CachedSplit | None:
        """Return what was encoded; None: a file has changed since, or it is damaged."""
        try:
            found = json.loads(text)
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(found["schema"])))
            paths, ranges, rows, *facts = zip(*found["files"], strict=True)
            if found["version"] != _VERSION or [_facts(path) for path in paths] != [*zip(*facts, strict=True)]:
                return None
            return cls(schema, paths, [np.array(each, np.int64).reshape(-1, 2) for each in ranges], rows)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None


def left_out(ranges: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Return the ranges of the rows of a file that are in none of some ascending ranges, shape (num_ranges, 2)."""
    bounds = np.concatenate([[0], ranges.reshape(-1), [num_rows]]).reshape(-1, 2)
    found: NDArray[np.int64] = bounds[bounds[:, 1] > bounds[:, 0]]
    return found


def memory_of(
    name_or_path: str, config: str | None, split: str, revision: str | None, load_options: Mapping[str, Any]
) -> Path | None:
    """Return the file that remembers what a call of `load_hf` found; None: it may find something else the next time.

    That is so unless a folder is loaded, whose files are a part of the name, or a commit of the Hub.
    """
    if not {"cache_dir", "token"}.issuperset(load_options):
        return None
    folder = Path(name_or_path)
    facts: list[Any] = []
    if folder.is_dir():
        name_or_path = str(folder.absolute())
        facts = sorted([str(path), *_facts(path)] for path in folder.rglob("*") if path.is_file())
    elif not _COMMIT.fullmatch(revision or ""):
        return None
    call = json.dumps([_VERSION, name_or_path, config, split, revision, facts])
    cache = load_options.get("cache_dir") or os.environ.get("HF_DATASETS_CACHE") or _default_cache()
    digest = hashlib.blake2b(call.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return Path(cache).expanduser() / f"laneway-{digest}.json"


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME") or Path(base) / "huggingface") / "datasets"


def recall(memory: Path) -> CachedSplit | None:
    """Return what a file remembers; None: nothing that still holds."""
    try:
        return CachedSplit.decode(memory.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def remember(memory: Path, found: CachedSplit) -> None:
    """Write what was found; a failure is a warning."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        written = memory.with_suffix(f".{os.getpid()}")
        written.write_text(found.encode(), encoding="utf-8")
        written.replace(memory)
    except OSError as error:
        message = f"what load_hf() found can't be remembered, so the next call asks datasets again: {error}"
        warnings.warn(message, ManifestCacheWarning, stacklevel=3)


def _facts(path: str | Path) -> tuple[int, int]:
    """Return what changes when a file is written again."""
    status = os.stat(path)  # noqa: PTH116 - takes both
    return status.st_size, status.st_mtime_ns
