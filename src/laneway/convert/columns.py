"""One Arrow array becomes a tensor, an array or a list of Python values.

`column_converter` decides once, from a column's type, what runs for every batch: a callable built of the small
ones below it. Tensors and arrays are views of Arrow's memory where that memory may be written to, and copies
where it may not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from laneway.convert.column_types import (
    decoded,
    decoded_type,
    innermost_type,
    is_number,
    is_plain_number,
    stored_dtype,
    time_dtype,
    value_type,
)
from laneway.convert.fill import filled_values, stored_number

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
"""What pyarrow raises for a value that Python, numpy or torch can't express."""


class NullFoundError(Exception):
    """A null in the array that a converter was given, on its way up to where the column has a name."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index
        """Index of the null, or of what holds it, within the array."""


def column_converter(data_type: pa.DataType, output: Output, fill: _Scalar | None) -> ColumnConverter:
    """Return what converts arrays of `data_type`, as the table of `laneway.convert.batches.BatchConverter` says.

    Args:
        data_type: Type of the arrays.
        output: "python", "numpy" or "torch".
        fill: What stands for a null, in the type of the innermost values; None leaves nulls as they are.

    Returns:
        A callable that can be pickled. It raises NullFoundError for a null where a tensor or an array needs a
        value, and what pyarrow raises for a value that Python can't express.
    """
    inner = decoded_type(data_type)
    # In Python, values of an extension type are more than their storage: a UUID, say.
    if inner is not None and not (output == "python" and isinstance(data_type, pa.BaseExtensionType)):
        return _Decoded(column_converter(inner, output, fill))
    if output != "python":
        to_stored = _stored_converter(data_type, fill)
        if to_stored is not None:
            return _ToTensor(to_stored) if output == "torch" else _to_array(to_stored, data_type)
        # Fixed-size lists get here if they hold lists, which share no shape.
        inner = value_type(data_type)
        if inner is not None and is_number(innermost_type(inner)):
            return _ToLists(column_converter(inner, output, fill))
    dtype = stored_dtype(data_type) if is_plain_number(data_type) else None
    to_values = _ToValues(data_type, None if fill is None else fill.as_py(), dtype)
    return _ToObjects(to_values) if output == "numpy" else to_values


def vectorize(convert: ColumnConverter) -> ToStored | None:
    """Return what makes one array of a whole column, where slices of it are what `convert` makes of slices, else None.

    With "torch" the array has still to be made a tensor.
    """
    if isinstance(convert, _ToTensor):
        return convert.to_stored
    if isinstance(convert, _ToTimes | _Numbers | _FixedSizeLists | _Bools):
        return convert
    if isinstance(convert, _Decoded):
        inner = vectorize(convert.convert)
        return None if inner is None else _Decoded(inner)
    return None


def _stored_converter(data_type: pa.DataType, fill: _Scalar | None) -> ToStored | None:
    """Return what makes one array of the numbers that Arrow stores, or None for types that have no such array."""
    inner = decoded_type(data_type)
    if inner is not None:
        to_stored = _stored_converter(inner, fill)
        return None if to_stored is None else _Decoded(to_stored)
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


# Converters, from the outside of a column in.


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Encoded values -> what `convert` makes of the values."""

    convert: ColumnConverter

    def __call__(self, array: _Array) -> Any:  # noqa: ANN401
        return self.convert(decoded(array))


@dataclass(frozen=True, slots=True)
class _ToTensor:
    """Numbers, bools and times -> tensor of what Arrow stores."""

    to_stored: ToStored

    def __call__(self, array: _Array) -> torch.Tensor:
        return torch.from_numpy(self.to_stored(array))


@dataclass(frozen=True, slots=True)
class _ToTimes:
    """Times -> array of numpy's own dtype for them."""

    to_stored: ToStored
    dtype: np.dtype[Any]

    def __call__(self, array: _Array) -> NDArray[Any]:
        return self.to_stored(array).astype(np.int64, copy=False).view(self.dtype)


@dataclass(frozen=True, slots=True)
class _ToLists:
    """Lists -> list of views, one per row, of what all their values become; None for a null list."""

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
    """Anything -> list of Python values."""

    data_type: pa.DataType
    fill: Any
    dtype: np.dtype[Any] | None
    """Of numbers that numpy turns into Python's faster than Arrow; None for all other types."""

    def __call__(self, array: _Array) -> list[Any]:
        if self.dtype is not None and not array.null_count:
            return cast("list[Any]", _view(array, self.dtype).tolist())
        values = array.to_pylist()
        return values if self.fill is None else filled_values(values, self.data_type, self.fill)


@dataclass(frozen=True, slots=True)
class _ToObjects:
    """Anything -> array (rows,) of Python objects."""

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
            self(array.slice(0, index))  # A null inside an earlier row comes first.
            raise NullFoundError(index)
        num_rows = len(array)
        # `.values` does not know of slices, and `.flatten()` leaves null rows out.
        inside = cast("pa.FixedSizeListArray[Any, Any]", array).values
        try:
            values = self.to_stored(inside.slice(array.offset * self.size, num_rows * self.size))
        except NullFoundError as error:
            raise NullFoundError(error.index // self.size) from None
        return _filled(values.reshape(num_rows, self.size, *values.shape[1:]), array, self.fill)


@dataclass(frozen=True, slots=True)
class _Bools:
    """Bools, which Arrow packs into bits -> array (rows,)."""

    fill: Any

    def __call__(self, array: _Array) -> NDArray[Any]:
        without_nulls = array.fill_null(False) if array.null_count else array  # noqa: FBT003
        return _filled(without_nulls.to_numpy(zero_copy_only=False), array, self.fill)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Numbers and times -> array (rows,)."""

    dtype: np.dtype[Any]
    fill: Any

    def __call__(self, array: _Array) -> NDArray[Any]:
        return _filled(_view(array, self.dtype), array, self.fill)


# What converters do with an array.


def _split(values: torch.Tensor | Sequence[Any], sizes: list[int], stops: list[int]) -> list[Any]:
    if isinstance(values, torch.Tensor):
        return list(values.split_with_sizes(sizes))
    return [values[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def _view(array: _Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the stored values of `array` as a writable view of its memory, or a copy if it is read-only."""
    count = len(array)
    buffer: Any = array.buffers()[1]
    values: NDArray[Any]
    if count == 0 or buffer is None:
        return np.empty(0, dtype)
    start = array.offset * dtype.itemsize
    # Arrow calls every slice of a buffer read-only; what it was sliced from knows whether its memory is.
    owner = buffer
    while not owner.is_mutable:
        if owner.parent is None:
            values = np.frombuffer(buffer, dtype, count, start)
            return values.copy()
        owner = owner.parent
    values = np.frombuffer(owner, dtype, count, buffer.address - owner.address + start)
    return values


def _filled(values: NDArray[Any], array: _Array, fill: Any) -> NDArray[Any]:  # noqa: ANN401
    """Return `values`, or a copy with `fill` where `array` is null."""
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
