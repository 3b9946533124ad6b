"""The columns of the data files, which may differ: the distinct schemas, and which file has which."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import TYPE_CHECKING, Final, final

import numpy as np
import pyarrow as pa

from laneway.core.files import digest
from laneway.formats.inferred_types import join_schemas
from laneway.formats.nested_types import storage_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from laneway.formats import TypeInference

_NUM_RECENT: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class _Recent:
    """A schema that the next files may have too."""

    schema: pa.Schema
    """As it is in a file."""
    nested: list[tuple[int, pa.DataType]]
    """Its nested types, by column."""
    index: int
    """Index of the distinct schema."""

    @classmethod
    def of(cls, schema: pa.Schema, index: int) -> _Recent:
        nested = [(i, type_) for i, type_ in enumerate(schema.types) if "<" in str(type_)]
        return cls(schema, nested, index)

    def is_same(self, schema: pa.Schema) -> bool:
        """Return whether a schema is certainly the same: far faster than comparing text."""
        if schema is self.schema:
            return True
        # Arrow compares the names of list items only if it also compares metadata.
        return schema.equals(self.schema) and all(
            schema.field(i).type.equals(type_, check_metadata=True) for i, type_ in self.nested
        )


@final
@dataclass(frozen=True, eq=False)
class FileSchemas:
    """The distinct schemas of the data files, and which file has which: few schemas, however many files."""

    distinct: tuple[pa.Schema, ...]
    """Without metadata and all nullable, in the order of the first files that have them."""
    indices: NDArray[np.int64]
    """Index of the schema of each file, shape (num_files,)."""
    stored: tuple[pa.Schema, ...] = ()
    """The same schemas with the names and the metadata that the files have; empty: the names are the same."""

    @classmethod
    def renamed(cls, schemas: Iterable[pa.Schema], rename: Callable[[pa.Schema], pa.Schema]) -> FileSchemas:
        """Return the distinct schemas of files whose columns a table gives other names.

        Args:
            schemas: The schema of each file.
            rename: Returns a schema with the names of the table, which has the same fields at the same places.
        """
        pairs: list[tuple[pa.Schema, pa.Schema]] = []
        indices: list[int] = []
        known: dict[bytes, int] = {}
        for each in schemas:
            schema = each.remove_metadata()
            # With the metadata of its fields, which may number them.
            key = schema.serialize().to_pybytes()
            if key not in known:
                known[key] = len(pairs)
                names = rename(schema)
                pairs.append((pa.schema(list(zip(names.names, names.types, strict=True))), schema))
            indices.append(known[key])
        distinct, stored = zip(*pairs, strict=True) if pairs else ((), ())
        return cls(tuple(distinct), np.array(indices, np.int64), tuple(stored))

    @classmethod
    def of(cls, schemas: Iterable[pa.Schema]) -> FileSchemas:
        """Return the distinct schemas, given that of each file."""
        distinct: list[pa.Schema] = []
        indices: list[int] = []
        known: dict[tuple[str, ...], list[int]] = {}
        recent: deque[_Recent] = deque(maxlen=_NUM_RECENT)
        for schema in schemas:
            index = next((each.index for each in recent if each.is_same(schema)), None)
            if index is None:
                plain = pa.schema(list(zip(schema.names, schema.types, strict=True)))
                # As text, because not all types can be hashed, and because text includes the names of list items.
                same = known.setdefault((*plain.names, *map(str, plain.types)), [])
                index = next((i for i in same if distinct[i].equals(plain)), len(distinct))
                if index == len(distinct):
                    distinct.append(plain)
                    same.append(index)
                recent.appendleft(_Recent.of(schema, index))
            indices.append(index)
        return cls(tuple(distinct), np.array(indices, np.int64))

    @classmethod
    def same(cls, schema: pa.Schema, num_files: int) -> FileSchemas:
        """Return the distinct schema of files that all have the same one."""
        return cls((schema,), np.zeros(num_files, np.int64))

    def of_file(self, file_index: int) -> pa.Schema:
        """Return the schema of a file."""
        return self.distinct[int(self.indices[file_index])]

    def stored_in(self, file_index: int) -> pa.Schema:
        """Return the schema of a file, with the names that it has there."""
        return self.stored[int(self.indices[file_index])] if self.stored else self.of_file(file_index)

    def first_file(self, index: int) -> int:
        """Return the index of the first file that has the schema at `index`."""
        return int(np.argmax(self.indices == index))

    @cached_property
    def union(self) -> pa.Schema:
        """All columns, in the order of the first file that has them, and of the type in that file."""
        if len(self.distinct) == 1:
            return self.distinct[0]
        fields: dict[str, pa.Field[pa.DataType]] = {}
        for schema in self.distinct:
            for field in schema:
                fields.setdefault(field.name, field)
        return pa.schema(list(fields.values()))

    def joined(self, inference: TypeInference) -> FileSchemas:
        """Return these files with all columns in each, of the types that all their values have."""
        found = reduce(partial(join_schemas, inference), self.distinct)
        return FileSchemas.same(found, len(self.indices))

    @property
    def digest(self) -> str:
        """Digest of the names and types: of the columns that all files share, or of which file has which.

        It depends neither on extension types, which are known only where they are registered, nor on metadata.
        """
        in_files = self.stored or self.distinct
        stored = [[(field.name, storage_type(field.type)) for field in schema] for schema in in_files]
        texts = ["\n".join(f"{name}: {type_}" for name, type_ in columns).encode() for columns in stored]
        if all(columns == stored[0] for columns in stored):
            return digest(texts[0])
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        which = np.array([numbers[text] for text in texts], np.int64)[self.indices]
        return digest(*numbers, np.ascontiguousarray(which, "<i8").tobytes())
