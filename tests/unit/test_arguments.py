"""Checks of arguments that users pass: a plain value, or an error that names the argument and the value."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from laneway.arguments import (
    check_callable,
    check_choice,
    check_columns,
    check_count,
    check_flag,
    check_int,
    check_schema,
    check_seed,
    check_size,
    parse_bytes,
    plain_int,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def refused(check: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        check()


class Index:
    """An integer of a class of its own."""

    def __index__(self) -> int:
        return 7

    def __repr__(self) -> str:
        return "Index(7)"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7), (-1, -1), (2**70, 2**70), (np.int64(7), 7), (np.uint8(7), 7), (Index(), 7),
        (True, None), (np.True_, None), (7.0, None), ("7", None), (None, None), ([7], None),
    ],
)  # fmt: skip
def test_only_integers_are_plain_ints(value: Any, expected: int | None) -> None:
    found = plain_int(value)
    assert found == expected
    assert type(found) in (int, type(None))


@pytest.mark.parametrize("value", [3, 2**80, np.int32(5), Index()])
def test_an_int_is_returned_as_a_built_in_int(value: Any) -> None:
    found = check_int("lanes", value, minimum=3)
    assert type(found) is int
    assert found == value.__index__()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2, "2"), (-1, "-1"), (True, "True"), (3.0, "3.0"), ("3", "'3'"), (None, "None")],
)
def test_anything_but_an_int_of_the_minimum_is_refused(value: Any, shown: str) -> None:
    refused(
        partial(check_int, "lanes", value, minimum=3), ValueError, f"lanes must be an int of at least 3, not {shown}"
    )
    refused(
        partial(check_int, "lanes", value, minimum=3, suffix=", or None"),
        ValueError,
        f"lanes must be an int of at least 3, or None, not {shown}",
    )


def test_a_count_is_none_or_an_int_in_its_range() -> None:
    assert check_count("lanes", None) is None
    assert check_count("lanes", 1) == 1
    assert check_count("lanes", 2**48) == 2**48
    assert check_count("lanes", np.int64(5), 5) == 5
    assert type(check_count("lanes", np.int64(5))) is int


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "lanes must be an int of at least 1, or None, not 0"),
        (True, "lanes must be an int of at least 1, or None, not True"),
        (1.5, "lanes must be an int of at least 1, or None, not 1.5"),
        (2**48 + 1, "lanes must be an int of at most 281,474,976,710,656, not 281474976710657"),
    ],
)
def test_an_invalid_count_is_refused(count: Any, message: str) -> None:
    refused(partial(check_count, "lanes", count), ValueError, message)


def test_a_count_above_a_maximum_of_its_own_is_refused() -> None:
    refused(partial(check_count, "lanes", 6, 5), ValueError, "lanes must be an int of at most 5, not 6")


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, np.uint64(2**63 - 1)])
def test_a_seed_is_any_int_below_2_to_the_63(seed: Any) -> None:
    found = check_seed(seed)
    assert type(found) is int
    assert found == int(seed)


@pytest.mark.parametrize("seed", [-1, 2**63, True, 1.0, "1", None])
def test_an_invalid_seed_is_refused(seed: Any) -> None:
    refused(partial(check_seed, seed), ValueError, f"seed must be an int in [0, 2**63), not {seed!r}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (7, 7), ("7", 7), ("7B", 7), ("1kB", 1000), ("1KiB", 1024), ("64MiB", 64 << 20), ("1GB", 10**9),
        (" 1.5 mib ", 3 << 19), ("2TiB", 2 << 40), (np.int64(3), 3), (2**62 - 1, 2**62 - 1),
    ],
)  # fmt: skip
def test_sizes_are_parsed_as_they_are_written(text: int | str, expected: int) -> None:
    assert parse_bytes(text) == check_size("shard_bytes", text) == expected


INVALID = "is not a valid size; give bytes as an int, or a string such as '64MiB' or '1GB'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, f"{text!r} {INVALID}") for text in ("", "MiB", "1 furlong", "-1MB", "1e3", 1.5, True, None)),
        *(
            (text, f"a size must be at least 1 byte and less than 2**62, not {text!r}")
            for text in ("0", 0, -5, "0.1B", 2**62, "5000000TiB")
        ),
    ],
)
def test_an_invalid_size_is_refused(text: Any, message: str) -> None:
    refused(partial(parse_bytes, text), ValueError, message)
    refused(partial(check_size, "shard_bytes", text), ValueError, f"shard_bytes: {message}")


def test_columns_are_none_or_a_sequence_of_names() -> None:
    assert check_columns(None) is None
    assert check_columns(["a", "b"]) == ("a", "b")
    assert check_columns(("b", "a")) == ("b", "a")


@pytest.mark.parametrize("columns", ["id", b"id", {"id"}, iter(["id"]), 3])
def test_columns_that_are_no_sequence_are_refused(columns: Any) -> None:
    message = f"columns must be a sequence of names, or None for all, not {columns!r}"
    refused(partial(check_columns, columns), TypeError, message)


@pytest.mark.parametrize("columns", [[], (), ["id", 3], [None]])
def test_columns_without_names_are_refused(columns: Any) -> None:
    message = f"columns must name at least one column, as strings, not {columns!r}"
    refused(partial(check_columns, columns), ValueError, message)


def test_a_schema_is_none_or_one_of_pyarrow() -> None:
    assert check_schema(None) is None
    schema = pa.schema({"a": pa.int64()})
    assert check_schema(schema) is schema


@pytest.mark.parametrize("schema", [{"a": pa.int64()}, [("a", pa.int64())], ["a"], "a"])
def test_a_schema_that_is_none_of_pyarrow_is_refused(schema: Any) -> None:
    message = f"schema must be a pyarrow.Schema, or None for the types in the files, not {schema!r}"
    refused(partial(check_schema, schema), TypeError, message)


@pytest.mark.parametrize("names", [[], ["a", "b", "a"]])
def test_a_schema_without_columns_or_with_one_twice_is_refused(names: list[str]) -> None:
    fields: list[pa.Field[Any]] = [pa.field(name, pa.int64()) for name in names]
    message = f"schema must have at least one column, and each only once, not {names}"
    refused(partial(check_schema, pa.schema(fields)), ValueError, message)


@pytest.mark.parametrize("choice", ["keep", 3, np.array(["pad", "drop"]), pc.field("x") == "pad"])
def test_a_choice_is_one_of_the_choices_and_none_only_where_that_is_one(choice: Any) -> None:
    check = partial(check_choice, "remainder", choices=("pad", "drop"))
    check(choice="drop")
    check(choice=None, or_none=True)
    message = "remainder must be one of 'pad', 'drop'"
    refused(partial(check, choice=None), ValueError, f"{message}, not None")
    refused(partial(check, choice=choice), ValueError, f"{message}, not {choice!r}")
    refused(partial(check, choice=choice, or_none=True), ValueError, f"{message} or None, not {choice!r}")


def test_a_flag_is_true_or_false_and_none_only_where_that_is_allowed() -> None:
    for flag in (True, False):
        check_flag("shuffle", flag)
    check_flag("progress", None, or_none=True)
    refused(partial(check_flag, "progress", 1, or_none=True), TypeError, "progress must be True, False or None, not 1")


@pytest.mark.parametrize("flag", [1, 0, None, "yes", np.True_])
def test_any_other_flag_is_refused(flag: object) -> None:
    refused(partial(check_flag, "shuffle", flag), TypeError, f"shuffle must be True or False, not {flag!r}")


def test_a_function_is_none_or_can_be_called() -> None:
    check_callable("transform", None)
    check_callable("transform", len)
    refused(partial(check_callable, "transform", "len"), TypeError, "transform must be callable, not 'len'")
