"""The file formats that laneway reads."""

from __future__ import annotations

from laneway.formats.arrow import ArrowFormat
from laneway.formats.base import (
    BlockMatches,
    BlockReader,
    FileScan,
    Format,
    PlannedFile,
    SelectiveBlockReader,
    TypeInference,
)
from laneway.formats.delimited import DelimitedFormat
from laneway.formats.json_lines import JsonLinesFormat
from laneway.formats.orc import OrcFormat
from laneway.formats.parquet import ParquetFormat
from laneway.formats.registry import FORMATS, format_of_content, format_of_suffix

__all__ = [
    "FORMATS",
    "ArrowFormat",
    "BlockMatches",
    "BlockReader",
    "DelimitedFormat",
    "FileScan",
    "Format",
    "JsonLinesFormat",
    "OrcFormat",
    "ParquetFormat",
    "PlannedFile",
    "SelectiveBlockReader",
    "TypeInference",
    "format_of_content",
    "format_of_suffix",
]
