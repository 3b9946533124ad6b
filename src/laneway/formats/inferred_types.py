"""Types of columns whose files don't say them: those of JSON values, and of the fields of CSV.

Numbers, bools and text are told apart. Dates and times stay text unless `schema=` gives their type, because a part of
the rows can't tell whether all of them are dates.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

if TYPE_CHECKING:
    from laneway.formats.base import TypeInference

# The stubs of pyarrow accept fewer types here.
_read_json: Any = pyarrow.json.read_json
_read_csv: Any = pyarrow.csv.read_csv
_SCALARS: Final = frozenset({pa.null(), pa.bool_(), pa.int64(), pa.float64()})


@final
class JsonTypes:
    """Types of JSON values: null, bool, int64, double, string, lists and structs of these."""

    def join(self, first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
        """Return the type of both kinds of values: whole numbers are also doubles, and null is anything."""
        if pa.types.is_struct(first) and pa.types.is_struct(second):
            fields = join_fields(self, [*first], [*second])
            return None if fields is None else pa.struct(fields)
        if pa.types.is_list(first) and pa.types.is_list(second):
            joined = self.join(first.value_type, second.value_type)
            return None if joined is None else pa.list_(joined)
        return _join_scalars(first, second)

    def parsed(self, inferred: pa.DataType | None, delivered: pa.DataType) -> pa.DataType:
        """Return `delivered` if pyarrow parses such JSON values as it, else what was inferred."""
        if inferred is None or inferred.equals(delivered):
            return delivered
        return delivered if _is_parsed_json(_json_example(inferred), delivered) else inferred


@final
class CsvTypes:
    """Types of the fields of CSV: null, bool, int64, double, and string for all others."""

    def join(self, first: pa.DataType, second: pa.DataType) -> pa.DataType:
        """Return the type of both kinds of fields: string if nothing else has them."""
        return _join_scalars(first, second) or pa.string()

    def parsed(self, inferred: pa.DataType | None, delivered: pa.DataType) -> pa.DataType:
        """Return `delivered` if pyarrow parses fields as it, else what was inferred, or string."""
        return delivered if _is_parsed_csv(delivered) else inferred or pa.string()


def join_fields(
    inference: TypeInference, first: list[pa.Field[Any]], second: list[pa.Field[Any]]
) -> list[pa.Field[Any]] | None:
    """Return fields of the joined types, those of `first` first; None if a type has nothing in common with another."""
    found = {field.name: field for field in first}
    for field in second:
        known = found.get(field.name)
        type_ = field.type if known is None else inference.join(known.type, field.type)
        if type_ is None:
            return None
        found[field.name] = pa.field(field.name, type_)
    return [*found.values()]


def join_schemas(inference: TypeInference, first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """Return all columns of two schemas; where types have nothing in common, that of the first."""
    fields = {field.name: field for field in first}
    for field in second:
        known = fields.get(field.name)
        type_ = field.type if known is None else inference.join(known.type, field.type)
        fields[field.name] = known if known is not None and type_ is None else pa.field(field.name, type_)
    return pa.schema([*fields.values()])


def without_times(type_: pa.DataType) -> pa.DataType:
    """Return a type that pyarrow has inferred, where dates and times are text, at any depth."""
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(without_times(field.type)) for field in type_])
    if pa.types.is_list(type_):
        return pa.list_(without_times(type_.value_type))
    return type_ if type_ in _SCALARS else pa.string()


def _join_scalars(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if first.equals(second) or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    return pa.float64() if {first, second} == {pa.int64(), pa.float64()} else None


def _json_example(type_: pa.DataType) -> object:
    """Return a value of a type that was inferred."""
    if pa.types.is_struct(type_):
        return {field.name: _json_example(field.type) for field in type_}
    if pa.types.is_list(type_):
        return [_json_example(type_.value_type)]
    return {pa.null(): None, pa.bool_(): True, pa.int64(): 0, pa.float64(): 0.5}.get(type_, "")


def _is_parsed_json(example: object, type_: pa.DataType) -> bool:
    text = json.dumps({"value": example}).encode()
    options = pyarrow.json.ParseOptions(explicit_schema=pa.schema([("value", type_)]))
    try:
        _read_json(pa.BufferReader(text), parse_options=options)
    except pa.ArrowNotImplementedError:
        return False
    except pa.ArrowInvalid as error:
        # Another error is about this value: the next one may be fine.
        return "changed from" not in str(error)
    return True


def _is_parsed_csv(type_: pa.DataType) -> bool:
    options = pyarrow.csv.ConvertOptions(column_types={"value": type_})
    try:
        _read_csv(pa.BufferReader(b"value\n\n"), convert_options=options)
    except pa.ArrowNotImplementedError:
        return False
    return True
