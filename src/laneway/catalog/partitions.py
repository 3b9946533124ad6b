"""Hive-style directories: `lang=en/year=2024/part-0.parquet` has the columns `lang` and `year`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from laneway.errors import DataFileError, SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.catalog.schemas import FileSchemas

_NULL = "__HIVE_DEFAULT_PARTITION__"
_CANONICAL_INT = re.compile(r"0|-?[1-9][0-9]*")
_INT64 = range(-(2**63), 2**63)

PartitionValue = int | str | None
"""Value of one partition key for one file."""


@dataclass(frozen=True, slots=True, eq=False)
class Partitions:
    """The columns that directory names add to the rows of the files below them."""

    fields: tuple[pa.Field[pa.DataType], ...]
    """Name and type of each key, in the order of the directories: int64 or string."""
    values: tuple[Sequence[PartitionValue], ...]
    """For each key, its value for each file."""

    def value(self, name: str, file_index: int, data_type: pa.DataType) -> Any:  # noqa: ANN401 - a scalar
        """Return the value of a key for a file, as a scalar of a type that it can be cast to; null: it is no key."""
        index = next((index for index, field in enumerate(self.fields) if field.name == name), None)
        value = None if index is None else self.values[index][file_index]
        if index is None or value is None:
            return pa.scalar(None, data_type)
        return pa.scalar(value, self.fields[index].type).cast(data_type)

    @classmethod
    def parse(cls, paths: Sequence[str], schemas: FileSchemas) -> Partitions:
        """Parse the partition keys in paths.

        Names and values are URL-decoded; `__HIVE_DEFAULT_PARTITION__` is null. A key is int64 if all its values
        are integers as Python prints them, else a string. Unlike in `pyarrow.dataset`, `007` stays a string, so that
        no value changes, and integers are int64 rather than int32.

        A key that is also a column of all files adds no column: the values in the files are delivered, once they have
        been checked against the directory. The same holds in each file for a column that only some of the files have.

        Args:
            paths: Paths relative to the dataset's root, with forward slashes.
            schemas: The columns of the files.

        Raises:
            SchemaMismatchError: The keys of the files differ, a path has a key twice, or a key is also a column of
                the files with an incompatible type.
        """
        found = [keys_of(path) for path in paths]
        names = [name for name, _ in found[0]] if found else []
        for path, pairs in zip(paths, found, strict=True):
            keys = [name for name, _ in pairs]
            twice = [name for name, count in Counter(keys).items() if count > 1]
            if twice:
                message = f"{path} has the partition key {twice[0]!r} twice: rename one of the directories"
                raise SchemaMismatchError(message)
            if keys != names:
                message = (
                    f"{path} has the partition keys {_join(keys)}, but {paths[0]} has {_join(names)}: "
                    f"every file needs the same key=value directories in the same order"
                )
                raise SchemaMismatchError(message)
        fields, columns = [], []
        for index, name in enumerate(names):
            values, type_ = _infer_type([pairs[index][1] for pairs in found])
            in_files = [schema.field(name) for schema in schemas.distinct if schema.get_field_index(name) >= 0]
            for field in in_files:
                _check_column(name, type_, field.type)
            if len(in_files) == len(schemas.distinct):
                continue
            fields.append(pa.field(name, type_))
            columns.append(values)
        return cls(tuple(fields), tuple(columns))


def keys_of(path: str) -> list[tuple[str, str | None]]:
    """Return the keys of a path and their values, in order."""
    pairs: list[tuple[str, str | None]] = []
    if "=" not in path:
        return pairs
    for directory in path.split("/")[:-1]:
        name = partition_key(directory)
        if name is not None:
            value = directory.partition("=")[2]
            pairs.append((_unquote(name, path), None if value == _NULL else _unquote(value, path)))
    return pairs


def _unquote(text: str, path: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        message = f"a directory of {path} has {text!r} in its name, which is not UTF-8 once it is decoded: rename it"
        raise DataFileError(message) from None


def partition_key(directory: str) -> str | None:
    """Return the key of a directory name such as `lang=en`, or None."""
    name, equals, _ = directory.partition("=")
    return name if equals and name else None


def _infer_type(texts: Sequence[str | None]) -> tuple[tuple[PartitionValue, ...], pa.DataType]:
    distinct = {text for text in texts if text is not None}
    if distinct and all(_CANONICAL_INT.fullmatch(text) and int(text) in _INT64 for text in distinct):
        return tuple(None if text is None else int(text) for text in texts), pa.int64()
    return tuple(texts), pa.string()


def _check_column(name: str, key_type: pa.DataType, column_type: pa.DataType) -> None:
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    is_string = pa.types.is_string(column_type) or pa.types.is_large_string(column_type)
    if pa.types.is_integer(column_type) if pa.types.is_integer(key_type) else is_string:
        return
    message = (
        f"{name!r} is both a column of the files, of type {column_type}, and a partition key, of type "
        f"{key_type}: rename one of them"
    )
    raise SchemaMismatchError(message)


def _join(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
