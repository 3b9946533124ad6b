"""Laws: a filter selects the rows that pyarrow does, splits partition, and each step is "of what is left"."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway import StatefulShardedDataset
from tests.corpora import FORMAT_OF, KINDS, SUFFIX_OF, Kind, schema_of, write_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

FLOATS = st.sampled_from([math.nan, -0.0, 0.0, 1.5, -2.5, math.inf])
MOMENTS = st.integers(0, 5).map(lambda day: dt.datetime(2024, 1, 1 + day))  # noqa: DTZ001 - a type without zone
COLUMNS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "number": (pa.int32(), st.integers(-2, 6)),
    "share": (pa.float32(), FLOATS),
    "exact": (pa.float64(), FLOATS),
    "word": (pa.string(), st.sampled_from(["", "a", "ab", "b", "é"])),
    "kind": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["x", "y", "z"])),
    "price": (pa.decimal128(7, 2), st.integers(-300, 300).map(lambda cents: decimal.Decimal(cents) / 100)),
    "time": (pa.timestamp("us"), MOMENTS),
    "flag": (pa.bool_(), st.booleans()),
    "inner": (
        pa.struct([pa.field("a", pa.int64()), pa.field("b", pa.string())]),
        st.fixed_dictionaries({"a": st.integers(0, 4)}),
    ),
}
KEYS = {"country": st.sampled_from(["DE", "FR", "__HIVE_DEFAULT_PARTITION__"]), "year": st.sampled_from([2023, 2024])}
COMPARISONS: tuple[Callable[[Any, Any], Any], ...] = (
    pc.equal,
    pc.not_equal,
    pc.less,
    pc.less_equal,
    pc.greater,
    pc.greater_equal,
)


@dataclass(frozen=True)
class Corpus:
    """A dataset: the rows of each file in the order of the paths."""

    names: tuple[str, ...]
    blocks: tuple[tuple[pa.Table, ...], ...]

    def write(self, directory: Path, kind: Kind) -> None:
        for name, tables in zip(self.names, self.blocks, strict=True):
            path = directory / f"{name}{SUFFIX_OF[kind]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_blocks(path, kind, list(tables), tables[0].schema)

    @property
    def num_rows(self) -> int:
        return sum(table.num_rows for tables in self.blocks for table in tables)


def _column(values: list[Any], data_type: Any) -> Any:
    if pa.types.is_dictionary(data_type):
        # The writer of Arrow files takes one dictionary for all batches.
        indices = [None if value is None else "xyz".index(value) for value in values]
        return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), pa.array(["x", "y", "z"]))
    return pa.array(values, data_type)


@st.composite
def corpora(draw: st.DrawFn, *, with_keys: bool = False) -> Corpus:
    """Draw files of blocks, some of which have equal or increasing values, so that statistics tell something."""
    names, blocks, num_rows = [], [], 0
    for index in range(draw(st.integers(1, 4))):
        keys = "/".join(f"{name}={draw(values)}" for name, values in KEYS.items()) if with_keys else ""
        names.append(f"{keys}/part-{index}".lstrip("/"))
        tables = []
        for length in draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)):
            columns: dict[str, Any] = {"id": pa.array(range(num_rows, num_rows + length), pa.int64())}
            num_rows += length
            for name, (data_type, values) in COLUMNS.items():
                is_constant = draw(st.booleans())
                some = st.none() | values if draw(st.booleans()) else values
                found = [draw(some)] * length if is_constant else draw(st.lists(some, min_size=length, max_size=length))
                columns[name] = _column(found, data_type)
            tables.append(pa.table(columns))
        blocks.append(tuple(tables))
    order = sorted(range(len(names)), key=names.__getitem__)
    return Corpus(tuple(names[i] for i in order), tuple(blocks[i] for i in order))


def _atom(draw: st.DrawFn, names: list[str]) -> pc.Expression:
    """Draw a condition on one column."""
    name = draw(st.sampled_from(names))
    if name in KEYS:
        key = pc.field(name)
        return key == draw(KEYS[name]) if draw(st.booleans()) else key.is_null()
    data_type, values = {**COLUMNS, "id": (pa.int64(), st.integers(0, 40))}[name]
    column = pc.field(name)
    if name == "inner":
        column, data_type, values = pc.field("inner", "a"), pa.int64(), st.integers(0, 4)
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    ways = [
        column.is_null(nan_is_null=draw(st.booleans())),
        column.is_valid(),
        *(draw(st.sampled_from(COMPARISONS))(column, pa.scalar(draw(values), data_type)) for _ in range(6)),
    ]
    if pa.types.is_boolean(data_type):
        ways.append(column)
    if not pa.types.is_decimal(data_type):
        ways.append(column.isin(pa.array([draw(values), draw(values)], data_type)))
    found: pc.Expression = draw(st.sampled_from(ways))
    return found


@st.composite
def conditions(draw: st.DrawFn, *, with_keys: bool = False) -> pc.Expression:
    """Draw an expression over the columns."""
    names = ["id", *COLUMNS, *(KEYS if with_keys else ())]
    found = _atom(draw, names)
    for _ in range(draw(st.integers(0, 2))):
        other = _atom(draw, names)
        found = found & other if draw(st.booleans()) else found | other
        if draw(st.booleans()):
            found = ~found
    return found


def _dataset(directory: Path, kind: Kind, corpus: Corpus) -> Any:
    """Return pyarrow's dataset of all rows, in the order of the paths, with the keys of the directories."""
    if kind == "arrow-stream":
        return pa.dataset.dataset(pa.concat_tables([table for tables in corpus.blocks for table in tables]))
    paths: Any = [str(directory / f"{name}{SUFFIX_OF[kind]}") for name in corpus.names]
    hive: Any = pa.dataset.partitioning(schema_of(country=pa.string(), year=pa.int64()), flavor="hive")
    format_: Any = "parquet" if kind == "parquet" else "ipc"
    return pa.dataset.dataset(paths, format=format_, partitioning=hive, partition_base_dir=str(directory))


def _ids(dataset: StatefulShardedDataset) -> list[int]:
    return [row for batch in dataset for row in batch["id"].to_pylist()]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_filter_selects_the_rows_that_pyarrow_does_in_their_order(kind: Kind, data: st.DataObject) -> None:
    with_keys = kind != "arrow-stream" and data.draw(st.booleans())
    corpus = data.draw(corpora(with_keys=with_keys))
    with tempfile.TemporaryDirectory() as folder:
        corpus.write(Path(folder), kind)
        expected_of = _dataset(Path(folder), kind, corpus)
        table = expected_of.to_table()
        options: dict[str, Any] = {"format": FORMAT_OF[kind], "output": "arrow", "batch_size": 3}
        plain = StatefulShardedDataset(folder, **options)
        for _ in range(4):
            condition = data.draw(conditions(with_keys=with_keys))
            expected = table.filter(condition)["id"].to_pylist()
            if "share" not in str(condition) and "exact" not in str(condition):
                # Statistics leave out NaN, which pyarrow.dataset doesn't heed.
                assert expected_of.to_table(filter=condition)["id"].to_pylist() == expected
            filtered = plain.filter(condition)
            selection = filtered.selection
            assert _ids(filtered) == expected, condition
            assert selection is not None
            assert selection.num_rows == len(expected)
            assert len(filtered) == -(-len(expected) // 3)


@given(data=st.data())
def test_splits_are_disjoint_and_complete_and_the_same_on_any_number_of_ranks(data: st.DataObject) -> None:
    corpus = data.draw(corpora())
    weights = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any))
    shares = {f"part{index}": weight / sum(weights) for index, weight in enumerate(weights)}
    by = data.draw(st.sampled_from(["row", "file", "id", *(name for name in COLUMNS if name != "inner")]))
    world_size = data.draw(st.integers(2, 3))
    with tempfile.TemporaryDirectory() as folder:
        corpus.write(Path(folder), "parquet")
        options: dict[str, Any] = {"output": "arrow", "batch_size": 2, "remainder": "keep"}
        parts = StatefulShardedDataset(folder, **options).split(shares, seed=3, by=by)
        found = [_ids(part) for part in parts]
        assert sorted(row for ids in found for row in ids) == list(range(corpus.num_rows))
        ranks = [
            StatefulShardedDataset(folder, rank=rank, world_size=world_size, shuffle=True, **options)
            for rank in range(world_size)
        ]
        for name, ids in zip(shares, found, strict=True):
            of_ranks = [_ids(getattr(rank.split(shares, seed=3, by=by), name)) for rank in ranks]
            assert sorted(row for rank in of_ranks for row in rank) == sorted(ids)
        if by in COLUMNS:
            rows = [row for tables in corpus.blocks for table in tables for row in table[by].to_pylist()]
            # Equal, for pyarrow's dictionary, is what is the same part: -0.0 and 0.0, all NaN, all nulls.
            sides: dict[Any, set[int]] = {}
            for side, ids in enumerate(found):
                for row in ids:
                    value = "nan" if rows[row] != rows[row] else rows[row]
                    sides.setdefault(value, set()).add(side)
            assert all(len(each) == 1 for each in sides.values())


STEPS = st.one_of(
    st.tuples(st.just("filter"), st.integers(0, 40)),
    st.tuples(st.just("function"), st.integers(2, 5)),
    st.tuples(st.just("take"), st.integers(0, 30) | st.floats(0, 1)),
    st.tuples(st.just("skip"), st.integers(0, 30) | st.floats(0, 1)),
    st.tuples(st.just("slice"), st.tuples(st.integers(0, 10), st.integers(0, 30) | st.none())),
)


def _apply(dataset: StatefulShardedDataset, rows: list[int], step: tuple[str, Any]) -> tuple[Any, list[int]]:
    """Return what a step makes of a dataset, and of a list of its rows."""
    name, value = step
    if name == "filter":
        return dataset.filter(pc.field("id") < value), [row for row in rows if row < value]
    if name == "function":
        rest = dataset.filter(lambda batch: np.asarray(batch["id"]) % value > 0, columns=["id"])
        return rest, [row for row in rows if row % value > 0]
    if name == "slice":
        return dataset.slice(*value), rows[slice(*value)]
    bound = round(value * len(rows)) if isinstance(value, float) else value
    return (dataset.take(value), rows[:bound]) if name == "take" else (dataset.skip(value), rows[bound:])


@given(corpus=corpora(), steps=st.lists(STEPS, max_size=5))
def test_any_chain_of_steps_selects_what_it_selects_of_a_list(corpus: Corpus, steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus.write(Path(folder), "parquet")
        dataset = StatefulShardedDataset(folder, output="arrow", batch_size=4)
        rows = list(range(corpus.num_rows))
        for step in steps:
            dataset, rows = _apply(dataset, rows, step)
            assert _ids(dataset) == rows
        assert sorted(_ids(dataset.shuffle(1))) == rows


@given(corpus=corpora(), bound=st.integers(0, 40) | st.floats(0, 1), by_row=st.booleans())
def test_what_is_taken_and_what_is_skipped_are_all_rows(corpus: Corpus, bound: float, by_row: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus.write(Path(folder), "parquet")
        dataset = StatefulShardedDataset(folder, output="arrow", batch_size=4)
        if by_row:
            dataset = dataset.split({"a": 0.7, "b": 0.3}).a
        assert _ids(dataset.take(bound)) + _ids(dataset.skip(bound)) == _ids(dataset)
