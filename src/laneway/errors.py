"""The exceptions of laneway: each derives from LanewayError and from the closest builtin."""

from __future__ import annotations


class LanewayError(Exception):
    """Base class of all errors that laneway raises.

    Itself, it is raised for an iterator that another pass has replaced, and for workers that ended too early.
    """


class CheckpointMismatchError(LanewayError, ValueError):
    """A state belongs to another dataset, another order or another rank."""


class StateFormatError(LanewayError, ValueError):
    """A value is not a state, is a damaged state, or has a format version that this release does not know."""


class CheckpointError(LanewayError, RuntimeError):
    """A training checkpoint could not be saved, or is missing, incomplete or damaged, or another job writes there."""


class StateUnavailableError(LanewayError, RuntimeError):
    """A loader or its workers hold the progress, so the dataset does not know it."""


class WorkerError(LanewayError, RuntimeError):
    """A worker process was killed, or its batch did not come although workers were replaced several times."""


class DataFileError(LanewayError, OSError):
    """A data file is missing, unreadable, damaged, changed or of another format, or there are no data files."""


class SchemaMismatchError(LanewayError, ValueError):
    """The selected columns differ from file to file, can't be cast to `schema`, or don't exist."""


class ColumnConversionError(LanewayError, TypeError):
    """A column can't be converted to `output` without loss."""


class NullInColumnError(ColumnConversionError):
    """A column has a null, which a tensor or an array can't represent."""

    # The message alone is enough: DataLoader re-raises a worker's exception from its message.
    def __init__(
        self,
        message: str,
        *,
        column: str | None = None,
        type_name: str | None = None,
        row_index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.column = column
        """Name of the column."""
        self.type_name = type_name
        """The column's Arrow type as a string."""
        self.row_index = row_index
        """Index of the row within the batch that was converted."""

    @classmethod
    def found(cls, column: str, type_name: str, row_index: int, row_name: str | None = None) -> NullInColumnError:
        """Return the error for a null in row `row_index` of a batch, which the message calls `row_name`."""
        row_name = row_name or f"row {row_index} of this batch"
        message = (
            f"column {column!r} of type {type_name} has a null in {row_name}, and numbers in a tensor or an "
            f"array can't be null: give a replacement, such as fill_null={{{column!r}: 0}}, "
            f'or use output="python" or "arrow", which keep nulls'
        )
        return cls(message, column=column, type_name=type_name, row_index=row_index)

    def at(self, row_name: str) -> NullInColumnError:
        """Return the same error with a message that calls the row `row_name`, such as "row 7 of part-0.parquet"."""
        if self.column is None or self.type_name is None or self.row_index is None:
            return self
        return self.found(self.column, self.type_name, self.row_index, row_name)


class NotReproducibleError(LanewayError, RuntimeError):
    """A function of the user has returned something else for the same rows than before the state was saved."""


class CollectiveError(LanewayError, RuntimeError):
    """A rank could not reach the other ranks: one of them died or did not make the same call."""


class ManifestCacheWarning(UserWarning):
    """The cache of manifests could not be used: the data is correct, but the next start must scan again."""
