"""The functions that the sources of a mixture have of their own, called on each row by the source that it is from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, final

from laneway.errors import SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from laneway.delivery.context import RowContext
    from laneway.delivery.transforms import Transforms


@final
class SourceFunctions:
    """Calls the functions of the source of a row, and checks that all sources deliver the same columns."""

    def __init__(self, functions: Mapping[str, Transforms], columns: Mapping[str, Iterable[str]]) -> None:
        """Prepare to call.

        Args:
            functions: Name of a source -> its functions.
            columns: Name of a source -> the columns that it delivers without these.
        """
        self._functions = functions
        declared = (name for name, each in functions.items() if not each.steps)
        self._first = next(((name, frozenset(columns[name])) for name in declared), None)
        """A source, and its columns: one without functions, or that of the first row."""

    @classmethod
    def of(cls, functions: Mapping[str, Transforms], columns: Mapping[str, Iterable[str]]) -> Self | None:
        """Return what calls the functions of sources, or None if no source has any."""
        return cls(functions, columns) if any(functions.values()) else None

    def __call__(self, row: Any, context: RowContext) -> Any:  # noqa: ANN401 - the functions may return anything
        """Return what the functions of a source make of one of its rows.

        Raises:
            SchemaMismatchError: It has other columns than the rows of another source.
        """
        name = context.source or ""
        row = self._functions[name](row, context)
        if isinstance(row, dict):
            if self._first is None:
                self._first = name, frozenset(row)
            elif self._first[1] != row.keys():
                self._refuse(name, row)
        return row

    def _refuse(self, name: str, row: dict[str, Any]) -> None:
        if self._first is None:
            return
        first, columns = self._first
        has, lacks = (name, first) if row.keys() - columns else (first, name)
        column = min(row.keys() ^ columns, key=lambda each: (each in columns, str(each)))
        message = (
            f"source {has!r} delivers column {column!r}, and source {lacks!r} does not: after their own map, all "
            "sources of a mixture must deliver the same columns"
        )
        raise SchemaMismatchError(message)
