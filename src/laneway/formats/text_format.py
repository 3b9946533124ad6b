"""A format of text files: scanned by one pass over each file, and read by blocks of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laneway.formats.base import Format
from laneway.formats.text_blocks import TextBlocks
from laneway.formats.text_index import scan_text

if TYPE_CHECKING:
    import pyarrow as pa

    from laneway.formats.base import FileScan, PlannedFile, TypeInference
    from laneway.formats.text import TextParser
    from laneway.storage.filesystem import Storage


class TextFormat(Format):
    """Reads text, plain or compressed with gzip or zstd, by blocks of about one MiB of rows."""

    block_name = "block"
    scans_all = True

    def __init__(self, parser: TextParser) -> None:
        """Create the format.

        Args:
            parser: Finds and parses rows.
        """
        self._parser = parser

    @property
    def inference(self) -> TypeInference:
        """How types are inferred."""
        return self._parser.inference

    def scan(
        self,
        storage: Storage,
        path: str,
        size: int,
        tail: bytes | None = None,  # noqa: ARG002 - text is read from the front
        version: str = "",
    ) -> FileScan:
        """Read the file, and return where its blocks are and which columns its header, or a part of its rows, has."""
        return scan_text(self._parser, storage, path, size, version)

    def open(self, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> TextBlocks:
        """Open a file. Each block is compared with its checksum when it is read."""
        return TextBlocks(self._parser, storage, planned, schema)
