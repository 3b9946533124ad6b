"""The documents of the rows of lanes: of a column of the files, or of what the user's functions return."""

from __future__ import annotations

from collections.abc import Sized
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from laneway.stages.packs import TOKENS_PER_RUN, Documents, joined_documents
from laneway.stages.tokens import DocumentError, compact, from_arrow, from_rows, with_separators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from laneway.delivery.item_maker import ItemMaker
    from laneway.delivery.transforms import Expansion
    from laneway.stages.packs import PackOptions
    from laneway.stages.tokens import TokenLists

_ROWS_PER_RUN = 1024
"""Number of rows of few tokens, or of none, whose documents are packed together."""
_FIRST_PACKS = 4
"""Number of packs that are made together first of what the user's functions return: few, so that they come soon."""
_TOKENS_LATER = 1 << 15
"""Tokens of the packs that are made together later, unless those of the first ones are more."""


class DocumentReader:
    """Reads the documents of rows of lanes."""

    def __init__(self, rows: ItemMaker, expansion: Expansion) -> None:
        """Prepare to read.

        Args:
            rows: Reads rows, and calls the user's functions on them.
            expansion: Further functions, which make items of a row.
        """
        self._rows = rows
        self._expansion = expansion

    @property
    def calls_functions(self) -> bool:
        """Whether the documents are what the user's functions make of rows, and not a column of the files."""
        return bool(self._rows.transform or self._expansion.steps)

    def expanded(self, lane: int, start: int, stop: int) -> Iterator[tuple[int, list[Any]]]:
        """Yield (row, its items) for rows [start, stop) of a lane."""
        while start < stop:
            for items in self._rows.expanded(lane, start, stop, self._expansion):
                yield start, items
                start += 1

    def read(self, pack: PackOptions, lane: int, start: int, stop: int) -> Iterator[Documents]:
        """Yield the documents of rows [start, stop) of a lane, some at a time."""
        if not self.calls_functions:
            yield from self._documents_in_files(pack, lane, start, stop)
            return
        found: list[Any] = []
        rows: list[int] = []
        num_tokens, enough, row = 0, _FIRST_PACKS * pack.length, start - 1
        for row, items in self.expanded(lane, start, stop):
            for item in items:
                document = self._document(item, pack.column, lane, row)
                # At once, while its ints are in a cache of the processor.
                found.append(compact(document))
                rows.append(row)
                num_tokens += len(document)
            if num_tokens >= enough or row - start >= _ROWS_PER_RUN:
                yield self._made_documents(pack, lane, found, rows, row + 1)
                found, rows, num_tokens, start = [], [], 0, row + 1
                enough = max(enough, min(2 * enough, _TOKENS_LATER))
        yield self._made_documents(pack, lane, found, rows, stop)

    def begin(self, pack: PackOptions, lane: int, start: int, stop: int) -> BegunDocuments:
        """Return the documents of rows [start, stop) of a lane, of which none has been read yet."""
        return BegunDocuments(partial(self.read, pack, lane, start, stop), start)

    def _document(self, item: Any, column: str, lane: int, row: int) -> Sized:  # noqa: ANN401 - a user's function
        """Return the document in an item.

        Raises:
            TypeError: There is none.
        """
        document = item.get(column) if isinstance(item, dict) else None
        if document is None:
            found = f"a dict with {', '.join(map(repr, item))}" if isinstance(item, dict) else type(item).__name__
            message = (
                f"pack() needs column {column!r}, but the functions before it returned {found} for "
                f"{self._rows.name_of_row(lane, row)}: return a dict with a list of ints as {column!r}, or name "
                "another column"
            )
            raise TypeError(message)
        if not isinstance(document, Sized):
            message = (
                f"column {column!r} can't be packed: for {self._rows.name_of_row(lane, row)} it is "
                f"{type(document).__name__}, not a list of ints"
            )
            raise TypeError(message)
        return document

    def _made_documents(self, pack: PackOptions, lane: int, found: list[Any], rows: list[int], stop: int) -> Documents:
        of_rows = np.array(rows, np.int64)
        try:
            return _of_rows(pack, from_rows(pack.column, found), of_rows, stop)
        except DocumentError as error:
            self.name_row(error, lane, of_rows)
            raise

    def _documents_in_files(self, pack: PackOptions, lane: int, start: int, stop: int) -> Iterator[Documents]:
        """Yield the documents of a column of the files, without a step for each."""
        while start < stop:
            rows = self._rows.read_on(lane, start, stop)
            num_rows, numbers = rows.num_rows, np.arange(start, start + rows.num_rows, dtype=np.int64)
            try:
                lists = from_arrow(pack.column, rows.column(pack.column))
            except DocumentError as error:
                self.name_row(error, lane, numbers)
                raise
            first = 0
            while first < num_rows:
                last = int(np.searchsorted(lists.starts, lists.starts[first] + TOKENS_PER_RUN, side="right")) - 1
                last = max(last, first + 1)
                yield _of_rows(pack, lists.slice(first, last), numbers[first:last], start + last)
                first = last
            start += num_rows

    def name_of_row(self, lane: int, row: int) -> str:
        """Return the file and number of a row of a lane."""
        return self._rows.name_of_row(lane, row)

    def name_row(self, error: DocumentError, lane: int, rows: NDArray[np.int64]) -> None:
        """Add the row of a document to an error, as a note."""
        if error.document is not None:
            name = self._rows.name_of_row(lane, int(rows[error.document]))
            error.add_note(f"document {error.document} is that of {name}")


class BegunDocuments:
    """The documents of consecutive rows of a lane, read little by little before they are needed.

    So the user's functions, which may tokenise, are called while packs of earlier rows are delivered, and not on all
    rows at once when there are none left.
    """

    def __init__(self, read: Callable[[], Iterator[Documents]], start: int) -> None:
        """Begin, without reading.

        Args:
            read: Yields the documents, some at a time.
            start: The first row.
        """
        self._read = read
        self._start = start
        self._parts: Iterator[Documents] | None = None
        self._found: list[Documents] = []
        self._error: Exception | None = None

    def read_rows(self, num_rows: int) -> None:
        """Read at least so many more rows, if there are as many.

        An error is raised when the documents are needed: until then, packs of earlier rows are delivered.
        """
        if self._error is not None:
            return
        stop = num_rows + (self._found[-1].stop if self._found else self._start)
        self._parts = self._parts or self._read()
        try:
            for part in self._parts:
                self._found.append(part)
                if part.stop >= stop:
                    break
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises
            self._error = error

    def all(self) -> Documents:
        """Return the documents, after reading what is left; or raise the error of an earlier read."""
        if self._error is not None:
            raise self._error
        return joined_documents([*self._found, *(self._parts or self._read())])


def _of_rows(pack: PackOptions, tokens: TokenLists, rows: NDArray[np.int64], stop: int) -> Documents:
    """Return the documents of whole rows; those that are cut into chunks have their separators."""
    if pack.strategy == "chunk" and pack.separator is not None:
        tokens = with_separators(tokens, pack.separator)
    return Documents.of(tokens, rows, stop)
