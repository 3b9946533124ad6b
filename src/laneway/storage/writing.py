"""Writing files atomically."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laneway.storage.filesystem import Storage


def write_file(storage: Storage, path: str, data: bytes) -> None:
    """Write a file atomically; an existing one is replaced.

    Raises:
        DataFileError: The storage refused.
    """
    if not storage.is_local:
        storage.call(path, lambda: storage.filesystem.pipe_file(storage.request_path(path), data), access="written")
        return
    target = Path(path)
    # Not by the tempfile module: its files are private, which is wrong for a shared cache.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    with storage.translate_errors(path, "written"):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
