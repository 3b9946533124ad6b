"""Rows for which the user's functions fail: what is delivered instead of them, and a log of them."""

from __future__ import annotations

import copy
import logging
import time
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, Self, final, get_args

import numpy as np
import torch

from laneway.arguments import check_choice
from laneway.convert.open_rows import OpenRows
from laneway.convert.zero_rows import zero_row
from laneway.errors import SchemaMismatchError
from laneway.reading.origin import PROVENANCE
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from laneway.convert.batches import BatchConverter
    from laneway.convert.columns import Output

OnError = Literal["raise", "mask", "skip"]
"""What becomes of such a row: its error is raised, or a filler is delivered, or nothing."""

VALID: Final = "_valid"
"""The column that tells rows from fillers."""

_LOG_INTERVAL_S: Final = 60.0
_log = logging.getLogger("laneway")


class Skipped(Enum):
    """The place of a row, or of all rows of a batch, for which nothing is delivered."""

    SKIPPED = 0


SKIPPED: Final = Skipped.SKIPPED


@final
class RowErrors:
    """Delivers a filler, or nothing, where the user's functions fail for a row."""

    def __init__(self, filler: Mapping[str, Any] | None, *, is_default: bool = False) -> None:
        """Start to count.

        Args:
            filler: What is delivered instead of a row, apart from `VALID`; columns that tell where it comes from are
                those of the row. None: nothing.
            is_default: Whether it is a row of zeros, since the user has given no filler.
        """
        self._filler = filler
        self._is_default = is_default
        self._num_hidden = 0
        self._next_log_s = 0.0

    def accept(self, row: Any) -> Any:  # noqa: ANN401 - a user's function may return anything
        """Return what is delivered for a row for which the functions have not failed.

        Raises:
            TypeError: It can't be marked as valid.
        """
        if self._filler is None:
            return row
        if not isinstance(row, dict):
            message = (
                f'on_error="mask" adds {VALID!r} to each row, so transform must return a dict, not {type(row).__name__}'
            )
            raise TypeError(message)
        return {**row, VALID: True}

    def check_keys(self, rows: Iterable[Any], *, is_collated: bool) -> None:
        """Check that rows which are delivered together have the keys of a filler.

        Args:
            rows: What `accept` and `hide` returned.
            is_collated: Whether `default_collate` makes a batch of them: its first row says which keys the batch has.

        Raises:
            ValueError: One has others.
        """
        if self._filler is None or not (self._is_default or is_collated):
            return
        keys = self._filler.keys() | {VALID}
        for row in rows:
            if row.keys() != keys:
                which = "the filler that is used by default" if self._is_default else "filler"
                returned = _listed(key for key in row if key != VALID)
                message = (
                    f'on_error="mask": a row that transform returned has the keys {returned}, but {which} has '
                    f"{_listed(self._filler)}: pass filler=, such as a row that transform could return"
                )
                raise ValueError(message)

    @classmethod
    def of(
        cls,
        on_error: OnError,
        filler: Mapping[str, Any] | None,
        batch_size: int | None,
        output: Output,
        converter: BatchConverter,
    ) -> Self | None:
        """Return what handles the errors of a dataset, or None if they are raised.

        Args:
            on_error: What becomes of rows for which the functions fail.
            filler: What the user wants to have instead of a row; None: a row of zeros.
            batch_size: That of the dataset.
            output: Type of its columns.
            converter: Converts them.

        Raises:
            ValueError: The arguments contradict each other, or `on_error` is unknown.
            SchemaMismatchError: A column has the name of the one that is added.
            TypeError: `filler` is not a dict.
        """
        check_choice("on_error", on_error, get_args(OnError))
        if filler is not None and on_error != "mask":
            message = f'filler is delivered with on_error="mask", not with on_error={on_error!r}: omit one of them'
            raise ValueError(message)
        if on_error == "raise":
            return None
        if batch_size is not None:
            message = (
                f"on_error={on_error!r} is for single rows, but with batch_size={batch_size}, transform gets whole "
                "batches: give batch_size to SavableLoader or DataLoader instead"
            )
            raise ValueError(message)
        if on_error == "skip":
            return cls(None)
        if VALID in converter.schema.names:
            message = f'on_error="mask" adds a column {VALID!r}, but the files have one: leave it out with columns='
            raise SchemaMismatchError(message)
        if output == "arrow":
            message = f'on_error="mask" adds {VALID!r} to each row, but with output="arrow" rows are record batches'
            raise ValueError(message)
        is_default = filler is None
        if filler is None:
            zeros = OpenRows.from_batch(zero_row(converter.schema), converter.vectorized)
            filler = converter.gather_rows([zeros])[0]
        elif not isinstance(filler, dict):
            message = f"filler must be a dict, such as a row that transform returns, not {filler!r}"
            raise TypeError(message)
        return cls(filler, is_default=is_default)

    @property
    def skips(self) -> bool:
        """Whether nothing is delivered instead of a row."""
        return self._filler is None

    def delivers_as(self, other: RowErrors) -> bool:
        """Return whether the same is delivered instead of a row as by another handler."""
        return (self._filler is None) == (other._filler is None) and _is_same(self._filler, other._filler)

    def hide(self, error: Exception, row: Any, place: Callable[[], str]) -> Any:  # noqa: ANN401 - a row in any output
        """Return what is delivered instead of a row, and log it, at most once a minute.

        Args:
            error: What the functions raised.
            row: The row, which the functions may have changed.
            place: Returns the name of the row.

        Raises:
            SchemaMismatchError: It is that error: sources of a mixture deliver different columns.
        """
        if isinstance(error, SchemaMismatchError):
            raise error
        self._num_hidden += 1
        if time.monotonic() >= self._next_log_s:
            self._next_log_s = time.monotonic() + _LOG_INTERVAL_S
            action = "skipped" if self.skips else "masked"
            kind = type(error).__name__
            hidden = counted(self._num_hidden, "row")
            _log.warning("%s %s, the last one %s: %s: %s", hidden, action, place(), kind, error)
        if self._filler is None:
            return SKIPPED
        origin = {name: row[name] for name in PROVENANCE.names if name in self._filler and name in row}
        return {**copy.deepcopy(self._filler), **origin, VALID: False}


def _listed(keys: Iterable[Any]) -> str:
    return ", ".join(map(repr, keys)) or "none"


def _is_same(one: Any, other: Any) -> bool:  # noqa: ANN401 - values of any type, such as columns of a row
    """Return whether two values are the same, with their types: tensors, arrays, and dicts and lists of values."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return one.dtype == other.dtype and np.array_equal(np.asarray(one), np.asarray(other))
    return bool(one == other)
