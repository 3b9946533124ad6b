"""CSV and TSV: rows of fields between delimiters, which may be quoted; blocks are runs of rows, parsed by pyarrow."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.csv

from laneway.formats.inferred_types import CsvTypes
from laneway.formats.text import NEWLINE, RETURN, FoundRows, RowError, codes_of, without_row_number
from laneway.formats.text_format import TextFormat
from laneway.formats.text_search import positions_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.formats.text import Codes, Parsing, Text

_QUOTE: Final = ord('"')
_ROW_NUMBER: Final = re.compile(r"Row #\d+: ")
_COLUMN_NUMBER: Final = re.compile(r"In CSV column #(\d+): ")
_ENDS_LINE: Final = np.isin(np.arange(256), (NEWLINE, RETURN))
_read_csv: Any = pyarrow.csv.read_csv  # its stubs accept fewer types


@final
class DelimitedFormat(TextFormat):
    """Reads CSV or TSV, plain or compressed with gzip or zstd, by blocks of about one MiB of rows.

    The first row names the columns. Fields may be quoted, and then hold delimiters, newlines and doubled quotes.
    """

    def __init__(self, name: str, delimiter: str) -> None:
        """Create the format.

        Args:
            name: Its name, which is also the suffix of its files.
            delimiter: The character between two fields, of one byte.
        """
        super().__init__(DelimitedParser(delimiter))
        self._name = name

    @property
    def name(self) -> str:
        """Name of the format."""
        return self._name

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes."""
        return f".{self._name}", f".{self._name}.gz", f".{self._name}.zst"


@final
class DelimitedParser:
    """Finds and parses rows of fields."""

    inference = CsvTypes()
    has_header = True

    def __init__(self, delimiter: str) -> None:
        """Create the parser."""
        self._delimiter = delimiter
        between = [ord(delimiter), NEWLINE, RETURN]
        # A quote beside another one stands for a quote, or they are an empty field.
        self._beside_quotes = np.isin(np.arange(256), [*between, _QUOTE])
        # As pyarrow understands them: only a quote at the beginning of a field opens one.
        self._quoted_field = re.compile(rb"(?:\A|(?<=[" + re.escape(bytes(between)) + rb']))"(?:[^"]|"")*("(?!")|\Z)')

    def find_rows(self, text: bytes, *, is_end: bool) -> FoundRows:
        """Return where rows end: at newlines that are not in quoted fields."""
        codes = codes_of(text)
        has_quotes = b'"' in text
        # In one search.
        found = positions_of(codes, NEWLINE, _QUOTE) if has_quotes else positions_of(codes, NEWLINE)
        is_quote = codes[found] == _QUOTE
        quotes, ends = found[is_quote], found[~is_quote] + 1
        if b"\r" in text:
            returns = np.flatnonzero(codes == RETURN)
            is_last = returns == len(codes) - 1
            following = codes[np.minimum(returns + 1, len(codes) - 1)]
            # What follows the last byte is not known yet.
            alone = returns[np.where(is_last, is_end, following != NEWLINE)]
            ends = np.sort(np.concatenate([ends, alone + 1])) if len(alone) else ends
        if is_end and len(codes) and (not len(ends) or ends[-1] < len(codes)):
            ends = np.append(ends, len(codes))
        line_ends = ends
        if has_quotes:
            ends = self._outside_quotes(text, codes, quotes, ends, is_end=is_end)
        starts = np.zeros(len(ends), np.int64)
        starts[1:] = ends[:-1]
        is_empty = _ENDS_LINE[codes[starts]]
        return FoundRows(ends, is_empty if is_empty.any() else None, line_ends)

    def _outside_quotes(
        self, text: bytes, codes: Codes, quotes: NDArray[np.int64], ends: NDArray[np.int64], *, is_end: bool
    ) -> NDArray[np.int64]:
        """Return the ends that are not inside of quoted fields. Quotes: where all of them are."""
        opening, closing = quotes[::2], quotes[1::2]
        before, after = codes[np.maximum(opening - 1, 0)], codes[np.minimum(closing + 1, len(codes) - 1)]
        is_plain = (self._beside_quotes[before] | (opening == 0)).all() and self._beside_quotes[after].all()
        if is_plain:
            is_inside = np.searchsorted(quotes, ends) % 2 == 1
            opened = int(opening[-1]) if len(opening) > len(closing) else -1
        else:
            # A quote inside of an unquoted field: only the fields tell which quotes open one.
            found = list(self._quoted_field.finditer(text))
            starts, stops = np.array([each.span() for each in found], np.int64).reshape(-1, 2).T
            opened = int(starts[-1]) if found and not found[-1][1] else -1
            # A field that is closed may end where the text does. Before its last quote, a newline is inside of it.
            stops[-1:] += opened >= 0
            index = np.searchsorted(starts, ends, side="left") - 1
            is_inside = (index >= 0) & (ends < stops[np.maximum(index, 0)]) if len(starts) else ends < 0
        if is_end and opened >= 0:
            raise RowError(
                opened, "has a quoted field that is not closed: the file is truncated, or a quote is missing"
            )
        outside: NDArray[np.int64] = ends[~is_inside]
        return outside

    def count_fields(self, text: Text, num_rows: int, num_names: int) -> int:
        """Return how many fields there are."""
        del text
        return num_rows * num_names

    def parse_header(self, row: bytes) -> list[str]:
        """Return the names of columns."""
        text = row.decode().rstrip("\r\n")
        try:
            (names,) = csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter, strict=True)
        except csv.Error as error:
            raise ValueError(str(error)) from error
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            message = f"it has the column {twice!r} twice: rename one"
            raise ValueError(message)
        return names

    def infer(self, text: Text, names: list[str]) -> pa.Table:
        """Return the rows of a text, in the types that their values suggest."""
        return self._read(text, names, pyarrow.csv.ConvertOptions())

    def parse(self, text: Text, parsing: Parsing) -> pa.Table:
        """Return the rows of a text. A column that the file doesn't have is null."""
        names = parsing.schema.names
        options = pyarrow.csv.ConvertOptions(
            check_utf8=False,  # the scan has checked it, and the checksum that nothing has changed
            column_types=parsing.schema,
            # pyarrow takes longer if it has to select.
            include_columns=[] if names == parsing.in_file else names,
            include_missing_columns=True,
        )
        return self._read(text, parsing.in_file, options)

    def _read(self, text: Text, names: list[str], options: pyarrow.csv.ConvertOptions) -> pa.Table:
        # As one block, so that a row of any length fits.
        reading: Any = pyarrow.csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=names)
        parsing = pyarrow.csv.ParseOptions(delimiter=self._delimiter)
        table: pa.Table = _read_csv(pa.BufferReader(text), reading, parsing, options)
        return table

    def explain(self, row: bytes, error: Exception, parsing: Parsing | None) -> str:
        """Return what is wrong with a row."""
        del row
        problem = _ROW_NUMBER.sub("", without_row_number(error))
        column = _COLUMN_NUMBER.match(problem)
        if column is None or parsing is None:
            return f"is malformed: {problem}"
        name = parsing.in_file[int(column[1])]
        return f"doesn't fit the columns: column {name!r}: {problem[column.end() :]}; give its type with schema="
