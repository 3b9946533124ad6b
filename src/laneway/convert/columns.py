"""Conversion of one Arrow array to a tensor, a numpy array or a list of Python values.

`column_converter` composes, once per column, the callable that converts every batch of it from the small callables
below. Tensors and arrays are views of Arrow's memory if that is writable, else copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from laneway.convert.arrays import decode, fit
from laneway.convert.column_types import (
    decoded_type,
    innermost_type,
    is_number,
    is_plain_number,
    stored_dtype,
    time_dtype,
    value_type,
)
from laneway.convert.fill import fill_nulls, stored_number
from laneway.formats.nested_types import storage_type

Output = Literal["python", "numpy", "torch", "arrow"]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    # pyarrow's classes are generic in its stubs only.
    _Array = pa.Array[Any]
    _Scalar = pa.Scalar[Any]
    ColumnConverter = Callable[[_Array], Any]
    ToStored = Callable[[_Array], NDArray[Any]]


CONVERSION_ERRORS = (ValueError, ArithmeticError, LookupError, pa.ArrowNotImplementedError)
"""Exceptions of pyarrow for a value that Python, numpy or torch can't represent."""


class NullFoundError(Exception):
    """A null in an array, raised by converters, which don't know the name of the column."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index
        """Index of the null within the array, or of the list that contains it."""


def column_converter(data_type: pa.DataType, output: Output, fill: _Scalar | None) -> ColumnConverter:
    """Return the converter of arrays of `data_type`; see the table of `laneway.convert.batches.BatchConverter`.

    Args:
        data_type: Type of the arrays.
        output: "python", "numpy" or "torch".
        fill: Replacement for nulls, in the type of the innermost values; None keeps nulls.

    Returns:
        A callable that can be pickled. It raises NullFoundError for a null where a tensor or an array needs a
        value, and one of CONVERSION_ERRORS for a value that Python can't represent.
    """
    stored_type = storage_type(data_type)
    if not stored_type.equals(data_type):
        return _ToStorage(stored_type, column_converter(stored_type, output, fill))
    inner = decoded_type(data_type)
    # As Python values, pyarrow's own extension types have classes: a UUID, for example.
    if inner is not None and not (output == "python" and isinstance(data_type, pa.BaseExtensionType)):
        return _Decode(column_converter(inner, output, fill))
    if output != "python":
        to_stored = _stored_converter(data_type, fill)
        if to_stored is not None:
            return _ToTensor(to_stored) if output == "torch" else _to_array(to_stored, data_type)
        # Fixed-size lists get here if they contain lists of different lengths.
        inner = value_type(data_type)
        if inner is not None and is_number(innermost_type(inner)):
            return _ToLists(column_converter(inner, output, fill))
    dtype = stored_dtype(data_type) if is_plain_number(data_type) else None
    to_values = _ToValues(data_type, None if fill is None else fill.as_py(), dtype)
    return _ToObjects(to_values) if output == "numpy" else to_values


def vectorize(convert: ColumnConverter) -> ToStored | None:
    """Return a converter of whole columns to one array, whose slices equal the results of `convert` for slices.

    Returns None if the column has no such array. For "torch", wrap the array in a tensor.
    """
    if isinstance(convert, _ToTensor):
        return convert.to_stored
    if isinstance(convert, _ToTimes | _Numbers | _FixedSizeLists | _Bools):
        return convert
    if isinstance(convert, _Decode):
        inner = vectorize(convert.convert)
        return None if inner is None else _Decode(inner)
    if isinstance(convert, _ToStorage):
        inner = vectorize(convert.convert)
        return None if inner is None else _ToStorage(convert.data_type, inner)
    return None


def _stored_converter(data_type: pa.DataType, fill: _Scalar | None) -> ToStored | None:
    """Return a converter to one array of the numbers that Arrow stores, or None for a type without such an array."""
    inner = decoded_type(data_type)
    if inner is not None:
        to_stored = _stored_converter(inner, fill)
        return None if to_stored is None else _Decode(to_stored)
    if isinstance(data_type, pa.FixedSizeListType):
        to_stored = _stored_converter(data_type.value_type, fill)
        return None if to_stored is None else _FixedSizeLists(to_stored, data_type.list_size, stored_number(fill))
    if not is_number(data_type):
        return None
    if pa.types.is_boolean(data_type):
        return _Bools(stored_number(fill))
    return _Numbers(stored_dtype(data_type), stored_number(fill))


def _to_array(to_stored: ToStored, data_type: pa.DataType) -> ColumnConverter:
    dtype = time_dtype(innermost_type(data_type))
    return to_stored if dtype is None else _ToTimes(to_stored, dtype)


# Converters, from the outermost type of a column to the innermost.


@dataclass(frozen=True, slots=True)
class _Decode:
    """Encoded values -> result of `convert` for the decoded values."""

    convert: ColumnConverter

    def __call__(self, array: _Array) -> Any:  # noqa: ANN401
        return self.convert(decode(array))


@dataclass(frozen=True, slots=True)
class _ToStorage:
    """Values of registered extension types -> result of `convert` for how they are stored."""

    data_type: pa.DataType
    convert: ColumnConverter

    def __call__(self, array: _Array) -> Any:  # noqa: ANN401
        # The same in a process that has not registered the type.
        return self.convert(fit(array, self.data_type))


@dataclass(frozen=True, slots=True)
class _ToTensor:
    """Numbers, bools and times -> tensor of the numbers that Arrow stores."""

    to_stored: ToStored

    def __call__(self, array: _Array) -> torch.Tensor:
        return torch.from_numpy(self.to_stored(array))


@dataclass(frozen=True, slots=True)
class _ToTimes:
    """Times -> array of datetime64 or timedelta64."""

    to_stored: ToStored
    dtype: np.dtype[Any]

    def __call__(self, array: _Array) -> NDArray[Any]:
        return self.to_stored(array).astype(np.int64, copy=False).view(self.dtype)


@dataclass(frozen=True, slots=True)
class _ToLists:
    """Lists -> list of views, one per row, of the result for all their values; None for a null list."""

    convert: ColumnConverter

    def __call__(self, array: _Array) -> list[Any]:
        sizes = [size or 0 for size in pc.list_value_length(array).to_pylist()]
        stops = np.cumsum(sizes, dtype=np.int64)
        try:
            values = self.convert(cast("pa.ListArray[Any]", array).flatten())
        except NullFoundError as error:
            raise NullFoundError(int(np.searchsorted(stops, error.index, "right"))) from None
        rows = _split(values, sizes, stops.tolist())
        if array.null_count:
            valid = array.is_valid().to_pylist()
            return [row if is_row else None for row, is_row in zip(rows, valid, strict=True)]
        return rows


@dataclass(frozen=True, slots=True)
class _ToValues:
    """Any type -> list of Python values."""

    data_type: pa.DataType
    fill: Any
    dtype: np.dtype[Any] | None
    """dtype of numbers, which numpy converts to Python faster than Arrow; None for all other types."""

    def __call__(self, array: _Array) -> list[Any]:
        if self.dtype is not None and not array.null_count:
            return cast("list[Any]", _view(array, self.dtype).tolist())
        values = array.to_pylist()
        return values if self.fill is None else fill_nulls(values, self.data_type, self.fill)


@dataclass(frozen=True, slots=True)
class _ToObjects:
    """Any type -> array (rows,) of Python objects."""

    to_values: _ToValues

    def __call__(self, array: _Array) -> NDArray[Any]:
        return np.fromiter(self.to_values(array), dtype=object, count=len(array))


@dataclass(frozen=True, slots=True)
class _FixedSizeLists:
    """Fixed-size lists -> array (rows, size, *shape of one value)."""

    to_stored: ToStored
    size: int
    fill: Any

    def __call__(self, array: _Array) -> NDArray[Any]:
        if array.null_count and self.fill is None:
            index = _first_null(array)
            self(array.slice(0, index))  # A null inside an earlier row is reported first.
            raise NullFoundError(index)
        num_rows = len(array)
        # `.values` ignores the bounds of a slice, and `.flatten()` omits null rows.
        child = cast("pa.FixedSizeListArray[Any, Any]", array).values
        try:
            values = self.to_stored(child.slice(array.offset * self.size, num_rows * self.size))
        except NullFoundError as error:
            raise NullFoundError(error.index // self.size) from None
        return _fill_array(values.reshape(num_rows, self.size, *values.shape[1:]), array, self.fill)


@dataclass(frozen=True, slots=True)
class _Bools:
    """Bools, which Arrow stores as bits -> array (rows,)."""

    fill: Any

    def __call__(self, array: _Array) -> NDArray[Any]:
        without_nulls = array.fill_null(False) if array.null_count else array  # noqa: FBT003
        return _fill_array(without_nulls.to_numpy(zero_copy_only=False), array, self.fill)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Numbers and times -> array (rows,)."""

    dtype: np.dtype[Any]
    fill: Any

    def __call__(self, array: _Array) -> NDArray[Any]:
        return _fill_array(_view(array, self.dtype), array, self.fill)


# Operations on one array, for the converters.


def _split(values: torch.Tensor | Sequence[Any], sizes: list[int], stops: list[int]) -> list[Any]:
    if isinstance(values, torch.Tensor):
        return list(values.split_with_sizes(sizes))
    return [values[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def _view(array: _Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers that `array` stores, as a writable view of its memory, or as a copy if that is read-only."""
    count = len(array)
    buffer: Any = array.buffers()[1]
    values: NDArray[Any]
    if count == 0 or buffer is None:
        return np.empty(0, dtype)
    start = array.offset * dtype.itemsize
    # Arrow marks every slice of a buffer read-only; only the original buffer knows whether the memory is writable.
    owner = buffer
    while not owner.is_mutable:
        if owner.parent is None:
            values = np.frombuffer(buffer, dtype, count, start)
            return values.copy()
        owner = owner.parent
    values = np.frombuffer(owner, dtype, count, buffer.address - owner.address + start)
    return values


def _fill_array(values: NDArray[Any], array: _Array, fill: Any) -> NDArray[Any]:  # noqa: ANN401
    """Return `values`, or a copy that has `fill` where `array` is null."""
    if not array.null_count:
        return values
    if fill is None:
        raise NullFoundError(_first_null(array))
    values = values.copy()
    values[_is_null(array)] = fill
    return values


def _first_null(array: _Array) -> int:
    return int(np.argmax(_is_null(array)))


def _is_null(array: _Array) -> NDArray[np.bool_]:
    return array.is_null().to_numpy(zero_copy_only=False)
