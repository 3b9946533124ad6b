"""Replacing types inside of types."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from laneway.formats.nested_types import nullable, storage_type, text_as_bytes, unreadable_type, without_dictionaries


class Matrix(pa.ExtensionType):
    """A type of a user."""

    def __init__(self) -> None:
        super().__init__(pa.list_(pa.float32()), "tests.matrix")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, data: bytes) -> Matrix:
        return cls()


def _containers(inner: pa.DataType) -> list[pa.DataType]:
    """Return one type of each kind that holds another type."""
    field: Any = pa.field("f", inner, nullable=False)
    union: Any = pa.union([field, pa.field("n", pa.int8())], "dense", [5, 7])
    runs: Any = pa.run_end_encoded
    return [
        pa.struct([field, pa.field("n", pa.int8())]),
        pa.list_(field),
        pa.large_list(field),
        pa.list_view(field),
        pa.large_list_view(field),
        pa.list_(field, 3),
        pa.map_(pa.string(), pa.field("v", inner), keys_sorted=True),  # type: ignore[call-overload]
        union,
        runs(pa.int16(), inner),
    ]


@pytest.mark.parametrize("index", range(9))
def test_a_type_of_a_user_is_replaced_by_its_storage_in_every_container(index: int) -> None:
    stored = pa.list_(pa.float32())
    assert storage_type(_containers(Matrix())[index]) == _containers(stored)[index]
    assert storage_type(pa.list_(_containers(Matrix())[index])) == pa.list_(_containers(stored)[index])
    unchanged = _containers(pa.uuid())[index]
    assert storage_type(unchanged) is unchanged


@pytest.mark.parametrize("index", range(9))
def test_a_dictionary_is_replaced_by_its_indices_in_every_container(index: int) -> None:
    dictionary = pa.dictionary(pa.int16(), pa.string())
    assert without_dictionaries(_containers(dictionary)[index]) == _containers(pa.int16())[index]


def test_types_in_the_values_of_a_dictionary_are_replaced() -> None:
    values: Any = Matrix()
    stored: Any = pa.list_(pa.float32())
    assert storage_type(pa.dictionary(pa.int8(), values)) == pa.dictionary(pa.int8(), stored)


@pytest.mark.parametrize("index", range(9))
def test_text_becomes_bytes_in_every_container(index: int) -> None:
    # The keys of the map are text.
    found = text_as_bytes(_containers(pa.large_string())[index])
    expected = _containers(pa.large_binary())[index]
    assert found == (pa.map_(pa.binary(), pa.large_binary(), True) if index == 6 else expected)  # noqa: FBT003
    stored: Any = pa.json_(pa.string_view())
    assert text_as_bytes(pa.dictionary(pa.int8(), stored)) == pa.dictionary(pa.int8(), pa.binary_view())


@pytest.mark.parametrize("index", range(9))
def test_values_in_every_container_are_made_nullable(index: int) -> None:
    required = pa.list_(pa.field("x", pa.int8(), nullable=False))
    container = _containers(required)[index]
    found = nullable(container)
    assert found == nullable(_containers(pa.list_(pa.field("x", pa.int8())))[index])
    assert "not null" not in str(found)
    assert "not null" in str(container)
    assert nullable(found) == found


def test_the_values_of_a_dictionary_are_made_nullable_and_extension_types_stay() -> None:
    required = pa.list_(pa.field("x", pa.int8(), nullable=False))
    values = pa.list_(pa.field("x", pa.int8()))
    dictionary: Any = pa.dictionary
    assert nullable(dictionary(pa.int8(), required)) == dictionary(pa.int8(), values)
    assert nullable(pa.fixed_shape_tensor(pa.int8(), [2])) == pa.fixed_shape_tensor(pa.int8(), [2])


@pytest.mark.parametrize("type_", [pa.string(), pa.month_day_nano_interval(), pa.uuid(), *_containers(pa.time32("s"))])
def test_pyarrow_can_read_all_types_that_it_can_make(type_: pa.DataType) -> None:
    assert unreadable_type(type_) is None
