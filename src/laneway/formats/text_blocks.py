"""An open text file: reads, checks and parses its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa

from laneway.errors import DataFileError
from laneway.formats.compression import Compression, decompress
from laneway.formats.field_paths import path_of, select_fields
from laneway.formats.restarts import StoredPoints
from laneway.formats.text import Parsing, RowError, checksum, count_lines, first_that_fails, row_text
from laneway.formats.text_index import (
    CHECKSUM,
    COMPRESSION,
    FILE_START,
    FILE_STOP,
    LENGTH,
    LINE,
    NUM_COLUMNS,
    SKIP,
    TEXT_START,
)
from laneway.storage.reading import read_ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.formats.base import BlockMatches, PlannedFile
    from laneway.formats.text import Text, TextParser
    from laneway.storage.filesystem import Storage

_PARSED_AT_ONCE: Final = 256 << 20
"""More text than this is parsed in parts: pyarrow doesn't parse more than 2 GiB at once."""


@final
class TextBlocks:
    """An open text file. It holds nothing open: each read is one request."""

    def __init__(self, parser: TextParser, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> None:
        """Prepare to read.

        Args:
            parser: Parses rows.
            storage: Where the file is.
            planned: The file as the manifest describes it.
            schema: The columns of the dataset, in the types to parse.
        """
        self._parser = parser
        self._storage = storage
        self._planned = planned
        self._schema = schema
        self._in_file = list(schema.names if planned.schema is None else planned.schema.names)
        num_blocks = len(planned.block_rows)
        is_whole = planned.layout.shape[1:] == (NUM_COLUMNS,) or not num_blocks
        if not is_whole or len(planned.layout) < num_blocks:
            message = (
                f"the manifest has no index of the blocks of {storage.redact(planned.path)}: scan the dataset again"
            )
            raise DataFileError(message)
        try:
            self._points = StoredPoints(planned.layout[num_blocks:])
        except ValueError as error:
            raise storage.error_for(planned.path, "has no sound index in the manifest", error) from error

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Parse the blocks [first, stop) of these columns, in this order.

        Raises:
            DataFileError: The file changed since it was planned, or a line is malformed, or doesn't fit the columns.
        """
        fields = [(name, path_of(self._schema, name)) for name in columns]
        names = [*dict.fromkeys(path[0] for _, path in fields)]
        # Where no columns were inferred, a field is one that nobody has looked at.
        if not names and not (self._planned.is_closed and not self._in_file):
            num_rows = int(self._planned.block_rows[first:stop].sum())
            return pa.table({"rows": pa.nulls(num_rows)}).select([])
        parsing = Parsing(
            self._in_file,
            pa.schema([self._schema.field(name) for name in names]),
            # A field that is left out on purpose is no error.
            is_closed=self._planned.is_closed and len(names) == len(self._schema),
        )
        # A block of a local file is parsed while its bytes are in the cache of the processor.
        is_split = self._storage.is_local and self._planned.layout[first, COMPRESSION] == Compression.NONE
        runs = [(block, block + 1) for block in range(first, stop)] if is_split else [(first, stop)]
        texts = (text for run in runs for text in self._texts(*run))
        tables = [self._parse(first + index, text, parsing) for index, text in enumerate(texts)]
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
        return select_fields(table, fields)

    def matches(self, *_: object) -> BlockMatches | None:
        """Return None: there are no statistics."""
        return None

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _texts(self, first: int, stop: int) -> list[Text]:
        """Return the texts of blocks, checked."""
        planned, entries = self._planned, self._planned.layout[first:stop].tolist()
        start, end = entries[0][FILE_START], entries[-1][FILE_STOP]
        (data,) = read_ranges(self._storage, planned.path, [(start, end)], planned.version)
        origin = entries[0][TEXT_START]
        offsets = [entry[TEXT_START] + entry[SKIP] - origin for entry in entries]
        try:
            point = self._points.at(origin)
            text = decompress(Compression(entries[0][COMPRESSION]), data, offsets[-1] + entries[-1][LENGTH], point)
        except ValueError as error:
            raise self._storage.change_error(planned.path, str(error)) from error
        view = memoryview(text)
        texts: list[Text] = []
        for index, (entry, offset) in enumerate(zip(entries, offsets, strict=True)):
            part = view[offset : offset + entry[LENGTH]]
            if checksum(part) != entry[CHECKSUM]:
                difference = f"block {first + index}, from line {entry[LINE]:,} on, has another checksum"
                raise self._storage.change_error(planned.path, difference)
            texts.append(part)
        return texts

    def _parse(self, block: int, text: Text, parsing: Parsing) -> pa.Table:
        num_rows = int(self._planned.block_rows[block])
        if len(text) > _PARSED_AT_ONCE:
            return self._parse_in_parts(block, bytes(text), parsing)
        try:
            table = self._parser.parse(text, parsing)
        except (pa.ArrowException, ValueError) as error:
            raise self._row_error(block, bytes(text), parsing, error) from error
        if table.num_rows != num_rows:
            message = f"{table.num_rows:,} rows where {num_rows:,} were planned"
            raise self._row_error(block, bytes(text), parsing, ValueError(message))
        return table

    def _parse_in_parts(self, block: int, text: bytes, parsing: Parsing) -> pa.Table:
        found = self._parser.find_rows(text, is_end=True)
        tables, start, stop = [], 0, 0
        for end in [*found.ends.tolist(), len(text) + _PARSED_AT_ONCE]:
            if stop > start and end - start > _PARSED_AT_ONCE:
                try:
                    tables.append(self._parser.parse(memoryview(text)[start:stop], parsing))
                except (pa.ArrowException, ValueError) as error:
                    raise self._row_error(block, text, parsing, error) from error
                start = stop
            stop = end
        return pa.concat_tables(tables)

    def _row_error(self, block: int, text: bytes, parsing: Parsing, error: Exception) -> DataFileError:
        """Return the error for the first row of a block that can't be parsed."""
        parse: Any = lambda part: self._parser.parse(part, parsing)  # noqa: E731
        line = int(self._planned.layout[block][LINE])
        path = self._storage.redact(self._planned.path)
        try:
            found = self._parser.find_rows(text, is_end=True)
        except RowError as own:
            return DataFileError(f"{path} line {line + count_lines(text[: own.offset]):,} {own}")
        bad = first_that_fails(text, found, parse)
        start = int(found.ends[bad - 1]) if bad else 0
        row = row_text(text, found, bad)
        try:
            parse(row)
        except (pa.ArrowException, ValueError) as own:
            error = own
        line += count_lines(text[:start])
        return DataFileError(f"{path} line {line:,} {self._parser.explain(row, error, parsing)}")
