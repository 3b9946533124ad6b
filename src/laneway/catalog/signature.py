"""The first bytes of a saved manifest, which tell it from data."""

from __future__ import annotations

import zlib
from typing import Final

from laneway.errors import DataFileError

MAGIC: Final = b"LANEWAYM"
"""First bytes of a manifest."""
SIGNATURE_BYTES: Final = 512
"""Bytes that tell whether a file is a manifest."""
_JSON: Final = b'{"laneway_manifest"'
"""First bytes of a manifest of format 2."""
_GZIP: Final = b"\x1f\x8b"


class SavedManifestError(DataFileError):
    """The source is a single file, a saved manifest: `Manifest.load` reads it."""


def is_manifest(head: bytes) -> bool:
    """Return whether a file is a saved manifest, given its first `SIGNATURE_BYTES` bytes."""
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, len(_JSON))
        except zlib.error:
            return False
    return head.startswith((MAGIC, _JSON))
