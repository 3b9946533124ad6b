"""The columns that a dataset delivers: which, of which type, and how they are read and converted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, final

import pyarrow as pa

from laneway.convert.batches import BatchConverter
from laneway.convert.column_types import fixed_width
from laneway.reading.categories import find_categories
from laneway.reading.origin import PROVENANCE, Origin
from laneway.reading.projection import select_columns, warn_of_missing, with_provenance
from laneway.reading.selected import open_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from laneway.catalog.caching import CacheDir
    from laneway.convert.columns import Output
    from laneway.convert.fill import FillNull
    from laneway.manifest import Manifest
    from laneway.reading.categories import Categories
    from laneway.reading.rows import Rows
    from laneway.reading.selecting import RowSelection
    from laneway.storage.filesystem import Storage


@final
@dataclass(frozen=True, eq=False)
class DeliveredColumns:
    """The columns that a dataset delivers."""

    schema: pa.Schema
    """Their names and Arrow types."""
    output: Output
    """The type that users get them as."""
    converter: BatchConverter
    """Converts them."""
    provenance: bool
    """Whether they include those of `PROVENANCE`."""
    categories: Categories | None
    """The vocabularies of those that are ids; None: there are none."""
    fill_null: FillNull | None = None
    """What replaces nulls in columns of numbers."""
    is_closed: bool = False
    """Whether they are all columns, as they were inferred: a field that is none of them is an error."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        storage: Storage,
        *,
        names: Sequence[str] | None,
        schema: pa.Schema | None,
        categories: Mapping[str, Sequence[Any] | None] | None,
        provenance: bool,
        output: Output,
        fill_null: FillNull | None,
        cache_dir: CacheDir,
    ) -> Self:
        """Return the columns that a user asks for; see `StatefulShardedDataset` for the arguments and errors."""
        found, vocabularies = select_columns(manifest, names, schema), None
        warn_of_missing(manifest, found.names, schema, stacklevel=3)
        if categories is not None and categories != {}:
            vocabularies = find_categories(categories, manifest, storage, found, cache_dir)
            found = vocabularies.as_delivered(found)
        if provenance:
            found = with_provenance(found)
        is_closed = names is None and schema is None
        converter = BatchConverter(found, output, fill_null)
        return cls(found, output, converter, provenance, vocabularies, fill_null, is_closed)

    @property
    def names_in_files(self) -> list[str]:
        """Names of those that are in the files, or in the names of their directories."""
        return [name for name in self.schema.names if not self.provenance or name not in PROVENANCE.names]

    def row_bytes(self, in_files: int) -> int:
        """Return the estimated size of a row in memory, in bytes.

        Args:
            in_files: Bytes of a row with all columns of the files, on average; those of strings and lists are unknown.
        """
        widths = [fixed_width(field.type) for field in self.schema]
        known = sum(width for width in widths if width is not None)
        return known if None not in widths else max(known, in_files)

    def difference(self, other: DeliveredColumns, name: str, other_name: str) -> str | None:
        """Return why rows of two sources can't be converted together; None: they are alike.

        Args:
            other: The columns of the other source.
            name: The source of these columns.
            other_name: The other source.
        """
        # There may be hundreds of sources, most of them with the same columns.
        if not self.schema.equals(other.schema):
            names, of_other = self.schema.names, other.schema.names
            both = (name, names), (other_name, of_other)
            for (has, of_has), (lacks, of_lacks) in (both, both[::-1]):
                missing = [each for each in of_has if each not in of_lacks]
                if missing:
                    return f"source {has!r} delivers column {missing[0]!r}, and source {lacks!r} does not"
            for field in self.schema:
                type_ = other.schema.types[of_other.index(field.name)]
                if not field.type.equals(type_):
                    return (
                        f"column {field.name!r} is of type {field.type} in source {name!r}, and of type {type_} in "
                        f"source {other_name!r}"
                    )
            if names != of_other:
                orders = f"{', '.join(names)} and {', '.join(of_other)}"
                return f"sources {name!r} and {other_name!r} deliver their columns in another order, {orders}"
        if self.fill_null != other.fill_null:
            return (
                f"fill_null is {self.fill_null!r} in source {name!r}, and {other.fill_null!r} in source {other_name!r}"
            )
        texts = [each.categories.text if each.categories else None for each in (self, other)]
        if texts[0] != texts[1]:
            return (
                f"sources {name!r} and {other_name!r} have other categories, so the same id would mean different values"
            )
        return None

    def with_hidden(self, hidden: pa.Schema | None) -> BatchConverter:
        """Return what converts them and hidden columns, from which contexts are made; None: there are none."""
        return self.converter if hidden is None else self.converter.with_columns(hidden)

    def only(self, name: str) -> Self:
        """Return one of the columns in the files, as it is there."""
        schema = pa.schema([self.schema.field(name)])
        return type(self)(schema, "arrow", BatchConverter(schema, "arrow"), provenance=False, categories=None)

    def with_output(self, output: Output) -> Self:
        """Return the same columns, delivered as another type."""
        converter = BatchConverter(self.schema, output, self.fill_null)
        return replace(self, output=output, converter=converter)

    def open(
        self,
        manifest: Manifest,
        storage: Storage,
        schema: pa.Schema,
        *,
        epoch: int,
        selection: RowSelection | None,
        hidden: frozenset[str] = frozenset(),
        source_index: int = 0,
    ) -> Rows:
        """Return what reads them.

        Args:
            manifest: The files.
            storage: Where they are.
            schema: The columns, with hidden ones.
            epoch: The epoch that is read.
            selection: The rows; None: all.
            hidden: Names of the hidden columns.
            source_index: In a mixture, the index of the source.
        """
        made = hidden.union(PROVENANCE.names if self.provenance else ())
        origin = Origin(epoch, made, source_index) if made else None
        return open_rows(
            manifest,
            storage,
            schema,
            origin,
            selection=selection,
            categories=self.categories,
            is_closed=self.is_closed,
        )
