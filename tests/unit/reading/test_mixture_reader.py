"""The reader of lanes of a mixture: rows of its sources in order, whatever is asked for at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import Mixture, NullInColumnError, StatefulShardedDataset
from laneway.core.cursor import LaneRange
from laneway.core.mixtures import MixturePlan
from laneway.core.progress import Progress
from laneway.core.turns import WorkerPlace
from laneway.metering import Meter
from laneway.reading import mixture_reader
from laneway.reading.mixture_reader import MixtureReader
from laneway.reading.windows import reading_threads
from tests.laws.simulation import rows_of

if TYPE_CHECKING:
    from pathlib import Path

    from laneway.core.plan import Plan

SIZES = {"a": 40, "b": 13, "c": 1}
FIRST = {"a": 0, "b": 100, "c": 200}


def mixture_of(folder: Path, *, output: Any = "torch", nulls: bool = False, **options: Any) -> Mixture:
    sources = {}
    for name, num_rows in SIZES.items():
        ids = [FIRST[name] + row for row in range(num_rows)]
        columns = {"id": ids, "text": [f"{name}{row}" * 9 for row in range(num_rows)]}
        columns["score"] = [None if nulls and each == 107 else each for each in ids]
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=6)
        sources[name] = StatefulShardedDataset(
            folder / f"{name}.parquet", shuffle=name != "b", seed=1, window_bytes=300, output=output, **options
        )
    return Mixture(sources, {"a": 4, "b": 2, "c": 1}, lanes=2).batch(4)


def reader_of(mixture: Mixture) -> tuple[MixtureReader, MixturePlan]:
    """Return the reader of lanes 0 and 1, and their plan."""
    definition = mixture.definition
    assignment = definition.resolve(Progress(0), WorkerPlace(0, 1, 0, 2))
    plan = MixturePlan(definition.mixed.sources, assignment.progress)
    threads, converter = reading_threads(is_remote=False), definition.columns.converter

    def open_source(name: str, of_epoch: Plan) -> Any:
        source = definition.sources[name]
        return source.open_lanes(of_epoch, source.columns, converter, frozenset(), Meter(), threads=threads)

    return MixtureReader(plan, assignment.ends, converter, open_source, threads, meter=Meter()), plan


def expected_rows(plan: MixturePlan, lane: int, start: int, stop: int) -> list[int]:
    """Return the ids of rows of a lane, one row after another."""
    found = []
    for row in range(start, stop):
        ((name, (epoch, epoch_lane, first, end)),) = plan.ranges(plan.group(lane, row), 1)
        (index,) = rows_of(plan.plan(plan.current, name, epoch), epoch_lane, first, end)
        found.append(FIRST[name] + index)
    return found


def ids(mixture: Mixture, reader: MixtureReader, lane: int, start: int, stop: int) -> list[int]:
    batch = mixture.definition.columns.converter.gather(reader.read(LaneRange(lane, start, stop)))
    assert isinstance(batch, dict)
    values: list[int] = batch["id"].tolist()
    assert [text[0] for text in batch["text"]] == [{0: "a", 1: "b", 2: "c"}[value // 100] for value in values]
    return values


@pytest.mark.parametrize("block_bytes", [1, 500, 16 << 20])
def test_rows_come_in_the_order_of_the_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(mixture_reader, "_BLOCK_BYTES", block_bytes)
    mixture = mixture_of(tmp_path)
    reader, plan = reader_of(mixture)
    for lane in (0, 1):
        expected = expected_rows(plan, lane, 0, 90)
        found = [row for start in range(0, 90, 5) for row in ids(mixture, reader, lane, start, start + 5)]
        assert found == expected
        assert ids(mixture, reader, lane, 33, 71) == expected[33:71]
        reader.close()
        assert ids(mixture, reader, lane, 2, 3) == expected[2:3]
    reader.end()


def test_readers_of_epochs_that_all_lanes_have_left_are_ended(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path)
    reader, _ = reader_of(mixture)
    for start in range(0, 400, 8):
        for lane in (0, 1):
            ids(mixture, reader, lane, start, start + 8)
    assert len(reader._readers) <= 4 * len(SIZES)
    reader.end()


def test_only_the_batch_with_a_null_fails_and_its_row_is_named(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, nulls=True)
    with pytest.raises(NullInColumnError, match=r"null in row 7 of b\.parquet of source 'b'"):
        for _ in zip(mixture, range(20), strict=False):
            pass
    reader, plan = reader_of(mixture)
    at = next(row for row in range(99) if expected_rows(plan, 0, row, row + 1) == [107])
    assert reader.locate([LaneRange(0, at - 3, at + 2)], 3) == "row 7 of b.parquet of source 'b'"
    with pytest.raises(IndexError, match="row 5 is outside"):
        reader.locate([LaneRange(0, at - 3, at + 2)], 5)
    reader.end()


def test_arrow_batches_are_put_in_order_too(tmp_path: Path) -> None:
    numbers = [batch["id"].tolist() for batch, _ in zip(mixture_of(tmp_path), range(9), strict=False)]
    arrow = [
        batch.column("id").to_pylist() for batch, _ in zip(mixture_of(tmp_path, output="arrow"), range(9), strict=False)
    ]
    assert arrow == numbers


def test_blocks_are_no_longer_than_their_lane(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path)
    definition = mixture.definition
    assert definition.weighting.stop is None
    reader, _ = reader_of(mixture)
    reader._ends = [12, 12]
    for start in (0, 4, 8):
        reader.read(LaneRange(0, start, start + 4))
    assert reader._blocks[0].stop == 12
    reader.end()
