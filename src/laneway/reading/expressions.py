"""Filters by expressions of pyarrow: their columns, their canonical text, and what may be concluded about them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa
import pyarrow.compute as pc

from laneway.errors import SchemaMismatchError
from laneway.formats.field_paths import find_field
from laneway.reading.projection import no_column, select_columns
from laneway.reading.steps import mask_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.catalog.contents import ManifestContents
    from laneway.reading.steps import Mask, Run

_nulls: Any = pa.nulls
_ERRORS = (pa.ArrowException, TypeError, ValueError, KeyError)
_MAX_TEXT_LENGTH: Final = 300
_MONOTONE: Final = frozenset({"and_kleene", "or_kleene", "equal", "greater", "greater_equal", "less", "less_equal"})
"""Functions without negation: where a comparison is false, as those with NaN are, no more rows are selected.

Not `is_in`, which finds NaN.
"""
_KNOWN: Final = _MONOTONE | {"is_in", "not_equal", "invert", "is_valid", "is_null"}
"""Functions that are null only where one of their arguments is."""


@final
@dataclass(frozen=True, eq=False)
class Filter:
    """Selects the rows for which an expression is true. It is not true where it is null."""

    expression: pc.Expression
    """The expression."""
    schema: pa.Schema
    """The columns that it looks at."""
    is_named: bool = field(default=True, init=False)
    """See Step."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that it looks at."""
        return tuple(self.schema.names)

    @cached_property
    def text(self) -> str:
        """The expression as pyarrow writes it, which leaves out much of long ones, and a digest of all of it."""
        text = re.sub(r"\s+", " ", str(self.expression))
        shown = text if len(text) <= _MAX_TEXT_LENGTH else f"{text[:_MAX_TEXT_LENGTH]}..."
        return f"filter {shown} [{self._digest}]"

    @cached_property
    def has_nan(self) -> bool:
        """Whether a column may hold NaN, which statistics leave out, or it compares with NaN.

        Then the opposite of a comparison is more than the opposite comparison.
        """
        return any(_has_floats(data_type) for data_type in self.schema.types) or self._compares_with_nan

    @property
    def _compares_with_nan(self) -> bool:
        floats = (column for column in self._literals.columns if pa.types.is_floating(column.type))
        return any(pc.any(pc.is_nan(column)).as_py() for column in floats)

    @cached_property
    def is_monotone(self) -> bool:
        """Whether it selects no row with NaN that it would not select with any number instead."""
        return self._functions <= _MONOTONE

    @cached_property
    def is_null_only_for_nulls(self) -> bool:
        """Whether it is true or false for each row without nulls."""
        return self._functions <= _KNOWN and not any(column.null_count for column in self._literals.columns)

    @cached_property
    def _literals(self) -> pa.RecordBatch:
        """The literals of the expression, and in the metadata of the schema its tree: how pyarrow pickles it."""
        data: Any = self.expression.__reduce__()[1]
        return pa.ipc.open_file(data[0]).get_batch(0)

    @property
    def _tree(self) -> list[str]:
        text: str = self._literals.schema.to_string(truncate_metadata=False)
        return re.findall(r"^\w+: '.*'$", text, re.MULTILINE)

    @property
    def _functions(self) -> set[str]:
        return {line[len("call: '") : -1] for line in self._tree if line.startswith("call: '")}

    @property
    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=6)
        texts = [*self._tree, *map(str, self.schema.types), *(str(column.type) for column in self._literals.columns)]
        digest.update("\n".join(texts).encode(errors="surrogatepass"))
        for column in self._literals.columns:
            for buffer in column.buffers():
                # Padding is no part of a value.
                digest.update(b"-" if buffer is None else b"+" + buffer.to_pybytes().rstrip(b"\0"))
        return digest.hexdigest()

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:  # noqa: ARG002 - see Step
        """See Step."""
        found = self.matches(rows)
        return found if left.all() else left & found

    def matches(self, rows: pa.Table) -> Mask:
        """Return for which rows the expression is true, bool of shape (rows,).

        Raises:
            pa.ArrowException: It can't be computed for one of them.
        """
        return _mask(self.expression, rows.select(self.schema.names))


def _mask(expression: pc.Expression, rows: pa.Table) -> Mask:
    """Return for which rows an expression is true, bool of shape (rows,)."""
    from pyarrow import acero  # noqa: PLC0415 - it imports pandas, and only filters need it

    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(rows))
    project = acero.Declaration("project", acero.ProjectNodeOptions([expression], ["mask"]), [source])
    return mask_of(project.to_table(use_threads=False)["mask"])


def filter_of(expression: object, manifest: ManifestContents, schema: pa.Schema | None) -> Filter:
    """Return the step for an expression, or for tuples as pyarrow takes them.

    Args:
        expression: Such as `pc.field("price") > 10` or `[("price", ">", 10)]`.
        manifest: The files.
        schema: Types of columns that the user gave; see `select_columns`.

    Raises:
        TypeError: It is neither.
        SchemaMismatchError: It names a column that doesn't exist, or compares what can't be compared.
    """
    return _filter(
        expression,
        manifest.schema,
        schema,
        lambda names: columns_of(manifest, names, schema, instead="a filter without it"),
    )


def filter_on(expression: object, columns: pa.Schema, schema: pa.Schema | None) -> Filter:
    """Return the step for an expression on the columns of a table, of which no file has been read; see `filter_of`."""
    types = {each.name: each.type for each in (*columns, *(schema or ()))}
    return _filter(expression, columns, schema, lambda names: pa.schema([(name, types[name]) for name in names]))


def _filter(
    expression: object, existing: pa.Schema, schema: pa.Schema | None, columns_named: Callable[[list[str]], pa.Schema]
) -> Filter:
    if not isinstance(expression, pc.Expression):
        expression = _expression_of(expression)
    if "FieldPath(" in str(expression):
        message = f"filter {expression} numbers a column: name it instead, as in pc.field('price')"
        raise SchemaMismatchError(message)
    fields = {each.name: each for each in existing} | {each.name: each for each in schema or ()}
    columns = pa.schema(list(fields.values()))
    _check(expression, columns)
    needed = columns_named(_needed(expression, columns, columns.names))
    if not needed.names:
        message = f"filter {expression} names no column: it selects all rows or none"
        raise SchemaMismatchError(message)
    # The files may have other types than the first one.
    _check(expression, needed)
    try:
        _mask(expression, pa.Table.from_arrays([_nulls(1, each.type) for each in needed], schema=needed))
    except pa.ArrowInvalid as error:  # of a function that looks at several rows
        problem = str(error).split("\n", 1)[0]
        message = f"filter {expression} can't be computed row by row, without knowing the other rows: {problem}"
        raise SchemaMismatchError(message) from error
    return Filter(expression, needed)


def columns_of(
    manifest: ManifestContents, names: list[str], schema: pa.Schema | None, *, instead: str = "another column"
) -> pa.Schema:
    """Return the types of columns that a step looks at: those that the user gave, else those in the files.

    Args:
        manifest: The files.
        names: The columns.
        schema: Types of columns that the user gave.
        instead: What users may pass instead of a column whose types in the files differ, for messages.

    Raises:
        SchemaMismatchError: A column doesn't exist, or its type can't be determined; see `select_columns`.
    """
    given = [] if schema is None else [name for name in names if name in schema.names]
    found = {
        each.name: each
        for chosen, types in ((given, schema), ([name for name in names if name not in given], None))
        for each in select_columns(manifest, chosen, types, instead=instead)
    }
    return pa.schema([found[name] for name in names])


def _expression_of(tuples: object) -> pc.Expression:
    from pyarrow.parquet import filters_to_expression  # noqa: PLC0415 - slow to import, and few need it

    given: Any = [tuples] if isinstance(tuples, tuple) else tuples
    message = (
        "filter must be a pyarrow expression, such as pc.field('price') > 10, or tuples, such as "
        f"[('price', '>', 10)], not {tuples!r:.200}"
    )
    if not isinstance(given, list):
        raise TypeError(message)
    try:
        found: pc.Expression = filters_to_expression(given)
    except (ValueError, TypeError, IndexError, OverflowError, pa.ArrowException) as error:
        message = f"{message} ({error})"
        raise TypeError(message) from error
    return found


def _check(expression: pc.Expression, schema: pa.Schema) -> None:
    problem = _problem(expression, schema)
    if problem is not None:
        reason = _missing(problem, schema) or f"doesn't fit the columns {_columns_text(schema)}: {problem}"
        message = f"filter {expression} {reason}"
        raise SchemaMismatchError(message)


def _missing(problem: str, schema: pa.Schema) -> str | None:
    """Return which column doesn't exist, if that is what pyarrow complains of."""
    found = re.match(r"No match for (FieldRef\..*\)) in ", problem)
    names = [] if found is None else re.findall(r"FieldRef\.Name\((.*?)\)(?= |\)|$)", found[1])
    if not names:
        return None
    name = ".".join(names)
    path = find_field(schema, name)
    if path is not None and len(names) == 1:
        names_of_path = ", ".join(map(repr, path))
        return f"needs pc.field({names_of_path}) for the field of a struct, not pc.field({name!r})"
    return f"can't be computed: {no_column(name, schema)}"


def _columns_text(schema: pa.Schema) -> str:
    columns = [f"{field.name}: {field.type}" for field in schema]
    return ", ".join(columns[:20]) + (f", ... ({len(columns):,})" if len(columns) > 20 else "")  # noqa: PLR2004


def _problem(expression: pc.Expression, schema: pa.Schema) -> str | None:
    """Return why an expression can't be computed for a schema, or None if it is a condition on its columns."""
    from pyarrow.dataset import Scanner  # noqa: PLC0415 - it imports pandas, and only filters need it

    make: Any = Scanner.from_batches
    try:
        scanner = make(iter(()), schema=schema, columns={"mask": expression})
        data_type = scanner.projected_schema.field(0).type
    except _ERRORS as error:
        return str(error).split("\n", 1)[0]
    is_condition = pa.types.is_boolean(data_type) or pa.types.is_null(data_type)
    return None if is_condition else f"its values are of type {data_type}, not bool"


def _needed(expression: pc.Expression, schema: pa.Schema, names: list[str]) -> list[str]:
    """Return which of some columns an expression looks at; pyarrow doesn't say, so they are left out by halves."""
    if not names or _problem(expression, pa.schema([each for each in schema if each.name not in {*names}])) is None:
        return []
    if len(names) == 1:
        return names
    half = len(names) // 2
    return _needed(expression, schema, names[:half]) + _needed(expression, schema, names[half:])


def _has_floats(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        return _has_floats(data_type.value_type)
    children = [data_type.field(i).type for i in range(data_type.num_fields)]
    return pa.types.is_floating(data_type) or any(map(_has_floats, children))
