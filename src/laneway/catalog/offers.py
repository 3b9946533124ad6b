"""Offers of a large manifest: ranks that can open its file map it, so that a host holds it once."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laneway.catalog.decoding import decode
from laneway.catalog.encoding import encode, head_of
from laneway.catalog.sharing import MIN_SHARED_BYTES, map_descriptor
from laneway.errors import DataFileError

if TYPE_CHECKING:
    from typing import Self

    from laneway.catalog.contents import ManifestContents


@dataclass(frozen=True, slots=True)
class Offer:
    """A local file with a manifest, which other processes may or may not be able to open."""

    path: str
    """The file."""
    head: bytes
    """Its first bytes, with the digest of the rest: on another host, the path may be that of another file."""
    fingerprint: str | None
    """The fingerprint of the manifest, if it has been computed."""
    is_temporary: bool
    """Whether the file was created for the offer."""

    @classmethod
    def of(cls, manifest: ManifestContents) -> Self | None:
        """Return an offer of a manifest; None if it is small, or if no file can be written."""
        if manifest.num_bytes < MIN_SHARED_BYTES or sys.platform == "win32":
            return None
        shared, fingerprint = manifest.shared_file, manifest.files.known_fingerprint
        if shared.path is not None:
            return cls(shared.path, shared.head, fingerprint, is_temporary=False)
        data = encode(manifest)
        try:
            with tempfile.NamedTemporaryFile(prefix="laneway-manifest-", delete=False) as file:
                offer = cls(file.name, head_of(memoryview(data)), fingerprint, is_temporary=True)
                try:
                    file.write(data)
                except BaseException:
                    offer.withdraw()
                    raise
        except OSError:
            return None
        return offer

    def accept(self) -> ManifestContents | None:
        """Return the manifest, mapped into memory; None if this process can't read the file that was offered."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = map_descriptor(os.dup(descriptor))
            manifest = decode(data, self.path) if head_of(data) == self.head else None
        except (OSError, ValueError, DataFileError):
            manifest = None
        if manifest is None:
            os.close(descriptor)
            return None
        manifest.shared_file.adopt(descriptor)
        manifest.files.adopt_fingerprint(self.fingerprint)
        return manifest

    def withdraw(self) -> None:
        """Delete the file if it was created for the offer; processes that have accepted it keep the memory."""
        if self.is_temporary:
            Path(self.path).unlink(missing_ok=True)
