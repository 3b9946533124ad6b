"""Values of samples of MDS as Arrow arrays: how each encoding stores them."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SIZES: Final = np.dtype("<u4")
_SCALARS: Final = {
    "int": "int64",
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")},
    **{name: name for name in ("float16", "float32", "float64")},
}
"""Encoding -> type of numpy."""
_TEXT: Final = frozenset({"str", "json", "str_int", "str_decimal"})
"""Kept as text: JSON may be of any type, and the numbers of any size."""
_BYTES: Final = frozenset({"bytes", "jpeg", "png"})
_LISTS: Final = {"jpeg_array": 0, "jpegarray": 0, "list[jpeg]": 4, "list[png]": 4}
"""Lists of images -> bytes before the number of images."""
_TYPES: Final[dict[str, pa.DataType]] = {
    **{name: pa.from_numpy_dtype(np.dtype(dtype)) for name, dtype in _SCALARS.items()},
    **dict.fromkeys(_TEXT, pa.string()),
    "str_float": pa.float64(),
    **dict.fromkeys(_BYTES, pa.binary()),
    **dict.fromkeys(_LISTS, pa.list_(pa.binary())),
}
_ARRAY: Final = "ndarray"
_DTYPES: Final = {
    8: "uint8",
    9: "int8",
    16: "uint16",
    17: "int16",
    18: "float16",
    32: "uint32",
    33: "int32",
    34: "float32",
    64: "uint64",
    65: "int64",
    66: "float64",
}
"""Number in front of an array -> its type, where the encoding doesn't say it."""


_list_array: Any = pa.ListArray  # its stubs accept fewer types


def type_of(encoding: str, first: bytes) -> pa.DataType | None:
    """Return the type of a column; None: its values are Python objects, or an encoding that is not known.

    Args:
        encoding: The encoding of the column.
        first: The value of the first sample, which tells of an array what the encoding doesn't.

    Raises:
        ValueError: The value is damaged.
    """
    if encoding.partition(":")[0] != _ARRAY:
        return _TYPES.get(encoding)
    dtype, shape, is_fixed = _read_array(encoding, first)[:3]
    found = _arrow(dtype)
    for length in reversed(shape):
        found = pa.list_(found, length) if is_fixed else pa.list_(found)
    return found


def column_of(encoding: str, values: Sequence[bytes], type_: pa.DataType) -> pa.Array[Any]:
    """Return values as an array.

    Args:
        encoding: The encoding of the column.
        values: The value of each sample, as it is stored.
        type_: As `type_of` returned it.

    Raises:
        ValueError: A value is damaged, or of another type or number of dimensions than the first one.
    """
    if encoding in _SCALARS:
        return pa.array(np.frombuffer(b"".join(values), np.dtype(_SCALARS[encoding]).newbyteorder("<")), type_)
    if encoding in _TEXT:
        return pa.array([bytes(each).decode() for each in values], type_)
    if encoding == "str_float":
        return pa.array([float(bytes(each)) for each in values], type_)
    if encoding in _BYTES:
        return pa.array(values, type_)
    if encoding in _LISTS:
        return pa.array([_images(each, _LISTS[encoding]) for each in values], type_)
    return _arrays(encoding, values, type_)


def _images(value: bytes, start: int) -> list[bytes]:
    (number,) = _numbers(value, start, 1, _SIZES).tolist()
    sizes = _numbers(value, start + 4, number, _SIZES)
    bounds = start + 4 + 4 * number + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    if bounds[-1] != len(value):
        message = f"its images end at byte {bounds[-1]:,} of {len(value):,}"
        raise ValueError(message)
    return [value[begin:end] for begin, end in pairwise(bounds.tolist())]


def _numbers(value: bytes, start: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    if start + count * dtype.itemsize > len(value):
        message = f"it has {len(value):,} bytes, which is too short"
        raise ValueError(message)
    return np.frombuffer(value, dtype, count, start)


def _read_array(encoding: str, value: bytes) -> tuple[str, tuple[int, ...], bool, bytes]:
    """Return the type of an array, its shape, whether all have that shape, and the bytes of its elements."""
    _, _, rest = encoding.partition(":")
    dtype, _, sides = rest.partition(":")
    start = 0
    if not dtype:
        number = int(_numbers(value, 0, 1, np.dtype("u1"))[0])
        start, dtype = 1, _DTYPES.get(number, "")
        if not dtype:
            message = f"it is an array of type {number}, which is not known"
            raise ValueError(message)
    if sides:
        shape = tuple(map(int, sides.split(",")))
    else:
        head = int(_numbers(value, start, 1, np.dtype("u1"))[0])
        width = np.dtype(f"<u{1 << head % 4}")
        shape = tuple(_numbers(value, start + 1, head >> 2, width).tolist())
        start += 1 + (head >> 2) * width.itemsize
    elements = value[start:]
    if len(elements) != prod(shape) * np.dtype(dtype).itemsize:
        message = f"its array of shape {shape} and type {dtype} has {len(elements):,} bytes"
        raise ValueError(message)
    return dtype, shape, bool(sides), elements


def _arrays(encoding: str, values: Sequence[bytes], type_: pa.DataType) -> pa.Array[Any]:
    read = [_read_array(encoding, each) for each in values]
    depth, inner = 0, type_
    while pa.types.is_list(inner) or pa.types.is_fixed_size_list(inner):
        depth, inner = depth + 1, inner.value_type
    for dtype, shape, _, _ in read:
        if len(shape) != depth or not _arrow(dtype).equals(inner):
            message = f"it is an array of {len(shape)} dimensions of {dtype}, and the first one is a {type_}"
            raise ValueError(message)
    dtype = read[0][0]
    found: Any = pa.array(np.frombuffer(b"".join(each[3] for each in read), np.dtype(dtype).newbyteorder("<")), inner)
    shapes = np.array([each[1] for each in read], np.int64).reshape(len(read), depth)
    for level in reversed(range(depth)):
        if read[0][2]:
            found = pa.FixedSizeListArray.from_arrays(found, int(shapes[0, level]))
            continue
        # So many lists of this level does each array consist of.
        counts = shapes[:, :level].prod(axis=1)
        lengths = np.repeat(shapes[:, level], counts)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        found = _list_array.from_arrays(pa.array(offsets), found)
    cast: pa.Array[Any] = found.cast(type_)
    return cast


def _arrow(dtype: str) -> pa.DataType:
    return pa.from_numpy_dtype(np.dtype(dtype))
