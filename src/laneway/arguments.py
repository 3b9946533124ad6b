"""Checks of arguments that users pass: each raises an error that names the argument and the value."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import SupportsIndex

import pyarrow as pa

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}".lower(): base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}
MAX_COUNT = 2**48
"""Largest number of anything that is counted."""


def plain_int(value: SupportsIndex) -> int | None:
    """Return `value` as a built-in int, which JSON can hold; None for a bool and anything that is not an integer."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_int(name: str, value: SupportsIndex, *, minimum: int, maximum: int | None = None, suffix: str = "") -> int:
    """Return `value` as a built-in int.

    Args:
        name: Name of the argument.
        value: Value that the user passed.
        minimum: Smallest value that is allowed.
        maximum: Largest value that is allowed; None: any.
        suffix: Follows the range in the message, such as ", or None".

    Raises:
        ValueError: It is not an integer, or out of its range.
    """
    found = plain_int(value)
    if found is None or found < minimum:
        message = f"{name} must be an int of at least {minimum}{suffix}, not {value!r}"
        raise ValueError(message)
    if maximum is not None and found > maximum:
        message = f"{name} must be an int of at most {maximum:,}, not {value!r}"
        raise ValueError(message)
    return found


def check_count(name: str, count: SupportsIndex | None, maximum: int = MAX_COUNT) -> int | None:
    """Return a positive built-in int, or None where None was passed.

    Raises:
        ValueError: It is not an integer in [1, maximum].
    """
    if count is None:
        return None
    return check_int(name, count, minimum=1, maximum=maximum, suffix=", or None")


def check_seed(seed: SupportsIndex) -> int:
    """Return a seed as a built-in int.

    Raises:
        ValueError: It is not an integer in [0, 2**63).
    """
    found = plain_int(seed)
    if found is None or not 0 <= found < 2**63:
        message = f"seed must be an int in [0, 2**63), not {seed!r}"
        raise ValueError(message)
    return found


def parse_bytes(size: SupportsIndex | str) -> int:
    """Return a number of bytes from an int or a string such as "8MiB", "1GB" or "500 KB".

    Raises:
        ValueError: It is not a valid size, or not in [1, 2**62).
    """
    num_bytes = _parse_size(size) if isinstance(size, str) else plain_int(size)
    if num_bytes is None:
        message = f"{size!r} is not a valid size; give bytes as an int, or a string such as '64MiB' or '1GB'"
        raise ValueError(message)
    if not 1 <= num_bytes < 2**62:
        message = f"a size must be at least 1 byte and less than 2**62, not {size!r}"
        raise ValueError(message)
    return num_bytes


def _parse_size(text: str) -> int | None:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factor = _UNITS.get(match[2].lower()) if match else None
    return int(float(match[1]) * factor) if match and factor else None


def check_size(name: str, size: SupportsIndex | str) -> int:
    """Return a number of bytes; see `parse_bytes`.

    Raises:
        ValueError: It is not a valid size.
    """
    try:
        return parse_bytes(size)
    except ValueError as error:
        message = f"{name}: {error}"
        raise ValueError(message) from None


def check_columns(columns: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return column names as a tuple, or None where None was passed.

    Raises:
        TypeError: It is not a sequence.
        ValueError: It is empty, or holds something that is not a string.
    """
    if columns is None:
        return None
    if isinstance(columns, str | bytes) or not isinstance(columns, Sequence):
        message = f"columns must be a sequence of names, or None for all, not {columns!r}"
        raise TypeError(message)
    if not columns or not all(isinstance(name, str) for name in columns):
        message = f"columns must name at least one column, as strings, not {columns!r}"
        raise ValueError(message)
    return tuple(columns)


def check_schema(schema: pa.Schema | None) -> pa.Schema | None:
    """Return a schema, or None where None was passed.

    Raises:
        TypeError: It is not a schema of pyarrow.
        ValueError: It has no columns, or one twice.
    """
    if schema is None:
        return None
    if not isinstance(schema, pa.Schema):
        message = f"schema must be a pyarrow.Schema, or None for the types in the files, not {schema!r}"
        raise TypeError(message)
    if len(set(schema.names)) != len(schema.names) or not schema.names:
        message = f"schema must have at least one column, and each only once, not {schema.names}"
        raise ValueError(message)
    return schema


def check_seconds(name: str, seconds: float | None) -> None:
    """Check that a time is positive and finite, or None.

    Raises:
        ValueError: It is not.
    """
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and (not is_number or not 0 < seconds < float("inf")):
        message = f"{name} must be a finite number of seconds above 0, not {seconds!r}"
        raise ValueError(message)


def check_choice(name: str, choice: str | None, choices: tuple[str, ...], *, or_none: bool = False) -> None:
    """Check that an option is one of `choices`.

    Args:
        name: Name of the argument.
        choice: Value that the user passed.
        choices: The values that are allowed.
        or_none: Whether None is allowed, too.

    Raises:
        ValueError: It is not.
    """
    # An array, or an expression of pyarrow, can't be looked for in a tuple.
    is_known = choice in choices if isinstance(choice, str) else choice is None and or_none
    if not is_known:
        suffix = " or None" * or_none
        message = f"{name} must be one of {', '.join(map(repr, choices))}{suffix}, not {choice!r}"
        raise ValueError(message)


def check_flag(name: str, flag: object, *, or_none: bool = False) -> None:
    """Check that an option is True or False, or None if that is allowed.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(flag, bool) and not (flag is None and or_none):
        message = f"{name} must be True{', False or None' if or_none else ' or False'}, not {flag!r}"
        raise TypeError(message)


def check_function(fn: object, name: str = "fn") -> None:
    """Check that an argument can be called.

    Args:
        fn: What the user passed.
        name: Name of the argument.

    Raises:
        TypeError: It can't.
    """
    if not callable(fn):
        message = f"{name} must be callable, not {fn!r}"
        raise TypeError(message)


def check_callable(name: str, function: object) -> None:
    """Check that an option is a function, or None.

    Raises:
        TypeError: It can't be called.
    """
    if function is not None and not callable(function):
        message = f"{name} must be callable, not {function!r}"
        raise TypeError(message)
