"""Hashes of values, by which rows are split: equal values have equal hashes, in all files and on every platform."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.core.order import split_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

_is = pa.types
_compute: Any = pc


def is_hashable(data_type: pa.DataType) -> bool:
    """Return whether values of a type have hashes."""
    if _is.is_dictionary(data_type):
        return is_hashable(data_type.value_type)
    return _is_counted(data_type) or _is.is_floating(data_type) or _is_text(data_type)


def bits_of_text(text: str | bytes) -> int:
    """Return the hash of a text, in [0, 2**64)."""
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def bits_of_values(values: Any, *, seed: int) -> NDArray[np.uint64]:  # noqa: ANN401 - an array
    """Return the hash of each value of an array, uint64 of shape (rows,).

    Args:
        values: The array, of a type for which `is_hashable` is true.
        seed: Any int in [0, 2**63).
    """
    if _is.is_dictionary(values.type):
        values = _compute.cast(values, values.type.value_type)
    data_type = values.type
    if _is_counted(data_type):
        numbers = _integers(values)
    elif _is.is_floating(data_type):
        numbers = _bits_of_floats(values)
    else:
        if _is.is_decimal32(data_type) or _is.is_decimal64(data_type):
            # Arrow doesn't encode these.
            values = values.cast(pa.decimal128(data_type.precision, data_type.scale))
        # Each distinct value once.
        encoded = values.dictionary_encode()
        texts = _compute.cast(_as_text(encoded.dictionary), pa.large_binary()).to_pylist()
        numbers = np.array([bits_of_text(text) for text in texts] or [0], np.uint64)
        numbers = numbers[encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)].view(np.int64)
    # Row numbers are hashed in the same way: `+ 1` there makes no two values equal.
    bits = split_bits(numbers, seed=seed, path="\0value")
    if values.null_count:
        is_null = values.is_null().to_numpy(zero_copy_only=False)
        bits[is_null] = np.uint64(bits_of_text(f"null/{seed}"))
    return bits


def _is_counted(data_type: pa.DataType) -> bool:
    return _is.is_integer(data_type) or _is.is_boolean(data_type) or _is.is_temporal(data_type)


def _is_text(data_type: pa.DataType) -> bool:
    is_bytes = _is.is_binary(data_type) or _is.is_large_binary(data_type) or _is.is_fixed_size_binary(data_type)
    is_string = _is.is_string(data_type) or _is.is_large_string(data_type)
    return is_bytes or is_string or _is.is_decimal(data_type)


def _integers(values: Any) -> NDArray[np.int64]:  # noqa: ANN401 - an array
    data_type = values.type
    if _is.is_temporal(data_type):
        values = values.view(pa.int32() if data_type.bit_width == 32 else pa.int64())  # noqa: PLR2004 - bits
    if _is.is_boolean(data_type):
        values = values.cast(pa.int8())
    numbers: NDArray[Any] = values.fill_null(0).to_numpy(zero_copy_only=False)
    return numbers.astype(np.uint64).view(np.int64) if numbers.dtype == np.uint64 else numbers.astype(np.int64)


def _bits_of_floats(values: Any) -> NDArray[np.int64]:  # noqa: ANN401 - an array
    numbers: NDArray[np.float64] = values.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
    numbers = numbers + 0.0  # -0.0 equals 0.0
    numbers[np.isnan(numbers)] = np.nan
    return numbers.view(np.int64)


def _as_text(values: Any) -> Any:  # noqa: ANN401 - arrays
    return values.cast(pa.large_string()) if _is.is_decimal(values.type) else values
