"""Features of Hugging Face as Arrow columns: arrays with their shapes, and the names of classes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from laneway.formats.nested_types import storage_type, with_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ARRAY: Final = re.compile(r"datasets\.features\.features\.Array[2-5]DExtensionType")
_NAMES: Final = b"laneway.names"
"""Key of the metadata of a field: the names of its classes, as JSON."""


def columns_of(stored: pa.Schema, names: Iterable[str], features: Mapping[str, Any]) -> pa.Schema:
    """Return columns of a dataset as they are delivered.

    Args:
        stored: The columns of its Arrow files, with extension types, or with the metadata that describe these where
            `datasets` hasn't registered them.
        names: The columns to return.
        features: Column -> its feature, as JSON describes it.
    """
    found = []
    for name in names:
        classes = features.get(name)
        is_label = isinstance(classes, dict) and classes.get("_type") == "ClassLabel" and bool(classes.get("names"))
        metadata = {_NAMES: json.dumps(classes["names"])} if is_label and classes is not None else None
        found.append(pa.field(name, _shaped_type(stored.field(name)), metadata=metadata))
    return pa.schema(found)


def class_names(schema: pa.Schema) -> dict[str, list[Any]]:
    """Return column -> the names of its classes, for those columns of `columns_of` whose values are classes."""
    found = {each.name: (each.metadata or {}).get(_NAMES) for each in schema}
    return {name: json.loads(text) for name, text in found.items() if text is not None}


def _shaped_type(field: pa.Field[Any]) -> pa.DataType:
    """Return the type of a column, arrays of two to five dimensions as lists of fixed sizes: their shape is known."""
    type_ = storage_type(field.type)
    shape = _shape_of(field)
    if shape is not None:
        for _ in shape:
            type_ = type_.field(0).type
        for size in reversed(shape):
            type_ = pa.list_(type_, -1 if size is None else size)
    elif pa.types.is_struct(field.type) or pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
        inner = [field.type.field(index) for index in range(field.type.num_fields)]
        type_ = with_fields(field.type, [pa.field(each.name, _shaped_type(each), each.nullable) for each in inner])
    return type_


def _shape_of(field: pa.Field[Any]) -> list[int | None] | None:
    """Return the shape of an array of Hugging Face, None for a size that may differ; None: it is something else."""
    type_: Any = field.type
    if isinstance(type_, pa.ExtensionType):
        name, text = type_.extension_name, type_.__arrow_ext_serialize__()
    else:
        metadata = field.metadata or {}
        name, text = metadata.get(b"ARROW:extension:name", b"").decode(), metadata.get(b"ARROW:extension:metadata", b"")
    if not _ARRAY.fullmatch(name):
        return None
    shape: list[int | None] = json.loads(text)[0]
    return shape
