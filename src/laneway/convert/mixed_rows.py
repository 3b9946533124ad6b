"""Converts rows of several sources whose columns differ, one source after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from laneway.errors import NullInColumnError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from laneway.convert.batches import BatchConverter
    from laneway.convert.columns import ToStored
    from laneway.convert.open_rows import OpenRows


@final
class MixedConverter:
    """Converts rows of several sources to Python objects, each as its source delivers it."""

    def __init__(self, converters: Sequence[BatchConverter], source_of: Callable[[OpenRows], int]) -> None:
        """Prepare to convert.

        Args:
            converters: That of each source.
            source_of: Returns the index of the source that some rows come from, all of them the same.
        """
        self._converters = converters
        self._source_of = source_of

    @property
    def vectorized(self) -> Mapping[str, ToStored]:
        """None: a column of one source may be another one, or none, in the next."""
        return {}

    def gather(self, parts: Sequence[OpenRows]) -> Any:  # noqa: ANN401, ARG002 - columns in any output
        """Refuse: rows of different columns are no batch of columns.

        Raises:
            TypeError: Always.
        """
        message = (
            "sources whose columns differ before their own functions are delivered row by row: create the mixture of "
            "all of them before batch()"
        )
        raise TypeError(message)

    def gather_rows(self, parts: Sequence[OpenRows]) -> list[Any]:
        """Return one object per row of several parts, at least one; see `BatchConverter.gather_rows`."""
        of_sources: dict[int, list[tuple[int, OpenRows]]] = {}
        num_rows = 0
        for part in parts:
            of_sources.setdefault(self._source_of(part), []).append((num_rows, part))
            num_rows += part.num_rows
        found: list[Any] = [None] * num_rows
        for source, of_source in of_sources.items():
            places = [row for first, part in of_source for row in range(first, first + part.num_rows)]
            try:
                rows = self._converters[source].gather_rows([part for _, part in of_source])
            except NullInColumnError as error:
                if error.column is None or error.type_name is None or error.row_index is None:
                    raise
                raise NullInColumnError.found(error.column, error.type_name, places[error.row_index]) from None
            for place, row in zip(places, rows, strict=True):
                found[place] = row
        return found
