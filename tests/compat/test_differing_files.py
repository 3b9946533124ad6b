"""Files whose columns differ, read with torchdata's StatefulDataLoader and resumed mid-epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import DataFileError, Manifest, NullInColumnError, SavableLoader, SchemaMismatchError
from laneway import StatefulShardedDataset as Dataset
from tests.compat.loaders import FORKSERVER, flat, ids, loader_raises, saved
from tests.corpora import KINDS, SUFFIX_OF, Kind, schema_of, write_blocks

if TYPE_CHECKING:
    from pathlib import Path

WANTED = schema_of(
    id=pa.int64(),
    text=pa.string(),
    score=pa.float64(),
    price=pa.decimal128(9, 2),
    seen=pa.timestamp("us"),
    tokens=pa.list_(pa.int64()),
    year=pa.string(),
)
YEARS = (2021, 2022, 2023, 2024)
ROWS_PER_FILE, ROWS_PER_BLOCK = 10, 4
TYPES: tuple[dict[str, Any], ...] = (
    {"id": pa.int8(), "text": pa.string(), "tokens": pa.list_(pa.field("item", pa.int64(), nullable=False))},
    {"text": pa.dictionary(pa.int8(), pa.string()), "id": pa.int32(), "score": pa.float32()},
    {"seen": pa.timestamp("s"), "price": pa.decimal128(5, 1), "id": pa.int64(), "text": pa.large_string()},
    {"tokens": pa.large_list(pa.int32()), "score": pa.null(), "id": pa.uint16(), "text": pa.null()},
)
"""Columns of each file."""


def row_of(index: int) -> dict[str, Any]:
    """Return row `index` as the files with all columns would have it."""
    time, price = index * 86_400, pa.scalar(index).cast(pa.decimal128(21, 1)).as_py()
    seen = pa.scalar(time, pa.timestamp("s")).as_py()
    row = {"id": index, "text": f"row {index % 3}", "score": index / 2, "price": price, "seen": seen}
    return {**row, "tokens": [index] * (index % 3)}


def expected_rows() -> list[dict[str, Any]]:
    """Return what is delivered of each row."""
    rows = []
    for file, types in enumerate(TYPES):
        known = {name for name, type_ in types.items() if not pa.types.is_null(type_)}
        for index in range(file * ROWS_PER_FILE, (file + 1) * ROWS_PER_FILE):
            row = {name: value if name in known else None for name, value in row_of(index).items()}
            rows.append({**row, "year": str(YEARS[file])})
    return rows


@pytest.fixture(params=KINDS)
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind: Kind = request.param
    for file, types in enumerate(TYPES):
        schema = pa.schema(list(types.items()))
        rows = [row_of(index) for index in range(file * ROWS_PER_FILE, (file + 1) * ROWS_PER_FILE)]
        rows = [{name: None if types[name] == pa.null() else row[name] for name in types} for row in rows]
        table = pa.Table.from_pylist(rows, schema)
        path = tmp_path / f"year={YEARS[file]}" / f"part{SUFFIX_OF[kind]}"
        path.parent.mkdir()
        blocks = [table.slice(start, ROWS_PER_BLOCK) for start in range(0, ROWS_PER_FILE, ROWS_PER_BLOCK)]
        write_blocks(path, kind, blocks, schema)
    return tmp_path


def rows_of(batches: Any) -> list[dict[str, Any]]:
    return [dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True)]


def make_dataset(source: Path | Manifest, **options: Any) -> Dataset:
    arguments = {"schema": WANTED, "shuffle": True, "seed": 3, "shard_rows": 4, "window_bytes": 200, "batch_size": 3}
    return Dataset(source, **{"output": "python", **arguments, **options})


@pytest.mark.parametrize("context", ["fork", FORKSERVER], ids=["fork", "forkserver"])
def test_two_workers_deliver_each_row_once_and_resume_in_mid_epoch(corpus: Path, context: Any) -> None:
    options: dict[str, Any] = {"batch_size": None, "num_workers": 2, "multiprocessing_context": context}
    whole = [rows_of([batch]) for batch in StatefulDataLoader(make_dataset(corpus), **options)]
    delivered = [row for rows in whole for row in rows]
    assert sorted(delivered, key=lambda row: row["id"]) == expected_rows()
    assert delivered != expected_rows()
    loader = StatefulDataLoader(make_dataset(corpus), **options)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = saved(loader.state_dict())
    del batches
    # Not part of the state, as `columns` is not: a run may resume with other types, or without the schema.
    for changed in (WANTED, schema_of(text=pa.large_string(), id=pa.float64())):
        resumed = StatefulDataLoader(make_dataset(corpus, schema=changed), **options)
        resumed.load_state_dict(state)
        wanted = [[{name: row[name] for name in changed.names} for row in rows] for rows in whole[5:]]
        assert [rows_of([batch]) for batch in resumed] == wanted


def test_the_order_is_that_without_a_schema(corpus: Path) -> None:
    widened = schema_of(id=pa.int64())
    shuffled = flat(ids(make_dataset(corpus, schema=widened, output="torch")))
    # Only the numbers of rows and bytes in the files decide.
    assert flat(ids(make_dataset(corpus, schema=widened, output="numpy", columns=["id"]))) == shuffled
    assert [row["id"] for row in rows_of(make_dataset(corpus))] == shuffled


def test_a_savable_loader_passes_the_schema_to_its_workers(corpus: Path) -> None:
    loader = SavableLoader(make_dataset(corpus), num_workers=2)
    assert sorted(rows_of(loader), key=lambda row: row["id"]) == expected_rows()


def test_a_saved_manifest_of_differing_files_delivers_the_same(corpus: Path, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("saved") / "manifest"
    Manifest.scan(corpus).save(path)
    assert rows_of(make_dataset(Manifest.load(path))) == rows_of(make_dataset(corpus))


def test_columns_select_from_the_schema_in_their_order(corpus: Path) -> None:
    dataset = make_dataset(corpus, columns=["year", "id"])
    assert dataset.schema == schema_of(year=pa.string(), id=pa.int64())
    first = next(iter(dataset))
    assert list(first) == ["year", "id"]


def test_missing_numbers_are_an_error_in_tensors_or_filled(corpus: Path) -> None:
    score = schema_of(score=pa.float32())
    dataset = make_dataset(corpus, schema=score, shuffle=False, output="torch")
    with pytest.raises(NullInColumnError, match=r"'score' of type float has a null in row 0 of year=2021/part"):
        next(iter(dataset))
    filled = make_dataset(corpus, schema=score, shuffle=False, output="torch", fill_null=-1)
    found = torch.cat([batch["score"] for batch in filled])
    assert found.tolist() == [-1.0] * 10 + [index / 2 for index in range(10, 20)] + [-1.0] * 20


def test_a_value_that_does_not_fit_is_an_error_in_a_worker_too(corpus: Path) -> None:
    dataset = make_dataset(corpus, schema=schema_of(id=pa.int8(), text=pa.int32()), columns=["text"])
    with loader_raises(
        DataFileError, match=r"part\.\w+ has a value that doesn't fit the type in schema= \((row gr|rec)"
    ):
        list(StatefulDataLoader(dataset, batch_size=None, num_workers=1))


def test_files_that_differ_in_selected_columns_need_a_schema(corpus: Path) -> None:
    with pytest.raises(SchemaMismatchError, match=r"'id' is int8 in year=2021/part\.\w+ and int32 in year=2022/part"):
        Dataset(corpus, columns=["id"])
    years = [row["year"] for row in Dataset(corpus, columns=["year"])]
    assert years == [year for year in YEARS for _ in range(ROWS_PER_FILE)]
