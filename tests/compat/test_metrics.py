"""What a loader tells of itself: counts of what was delivered, while nothing of that changes."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from laneway import Mixture, SavableLoader, StatefulShardedDataset
from tests.compat.loaders import ids
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path

    from laneway.delivery.metrics import LoaderMetrics

NUM_ROWS = 96


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write 96 rows in 12 row groups of 3 files."""
    write_corpus(tmp_path, files=((8, 8, 8, 8),) * 3, names=("part-0", "part-1", "part-2"))
    return tmp_path


def plus_one(batch: Any) -> Any:
    return {**batch, "next": batch["id"] + 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_counts_are_those_of_what_was_delivered(corpus: Path, num_workers: int) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=8, shuffle=True, transform=plus_one)
    loader = SavableLoader(dataset, num_workers=num_workers, prefetch_factor=4 if num_workers else None)
    nothing = loader.metrics()
    assert (nothing.rows, nothing.batches, nothing.seconds, nothing.progress) == (0, 0, 0.0, None)
    batches = iter(loader)
    for count in range(1, 4):
        next(batches)
        found = loader.metrics()
        # However far workers have read ahead.
        assert (found.batches, found.rows, found.epoch_batches, found.epoch_total) == (count, 8 * count, count, 12)
        assert found.progress == count / 12
    list(batches)
    found = loader.metrics()
    assert (found.batches, found.rows, found.progress, found.epoch) == (12, NUM_ROWS, 1.0, 0)
    in_files = 0
    for path in corpus.iterdir():
        footer = pq.read_metadata(path)
        groups = map(footer.row_group, range(footer.num_row_groups))
        chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
        in_files += sum(chunk.total_compressed_size for chunk in chunks)
    footers = sum(path.stat().st_size for path in corpus.iterdir())
    assert in_files < found.bytes_read <= in_files + max(1, num_workers) * footers
    assert 0 < found.waited_s <= found.seconds
    stages = found.stages
    assert min(stages.wait, stages.decode, stages.order, stages.convert, stages.transform) > 0
    assert (stages.send > 0) == bool(num_workers)
    assert [each.worker for each in found.workers] == list(range(max(1, num_workers)))
    assert found.memory_bytes > 1 << 20
    assert all((each.memory_bytes > 1 << 20) == bool(num_workers) for each in found.workers)
    assert found.queue_depth == 0


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_counts_go_on_over_passes_and_a_resume(corpus: Path, options: dict[str, Any]) -> None:
    loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=8), **options)
    for epoch in range(3):
        list(loader)
        found = loader.metrics()
        assert (found.rows, found.batches, found.epoch) == (NUM_ROWS * (epoch + 1), 12 * (epoch + 1), epoch)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    resumed = SavableLoader(StatefulShardedDataset(corpus, batch_size=8), **options)
    resumed.load_state_dict(loader.state_dict())
    next(iter(resumed))
    found = resumed.metrics()
    assert (found.rows, found.batches, found.epoch_batches, found.epoch_total, found.epoch) == (8, 1, 6, 12, 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_states_and_order_are_the_same_whoever_looks(corpus: Path, num_workers: int) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=8, shuffle=True)
    plain = SavableLoader(dataset, num_workers=num_workers)
    seen: list[LoaderMetrics] = []
    watched = SavableLoader(dataset, num_workers=num_workers, observer=seen.append, observe_every_s=1e-9)
    for one, other in zip(plain, watched, strict=True):
        watched.metrics()
        assert one["id"].tolist() == other["id"].tolist()
        assert plain.state_dict() == watched.state_dict()
    assert ids(plain) == ids(watched)
    assert sum(each.rows for each in seen) == 2 * NUM_ROWS
    assert sum(each.seconds for each in seen) == pytest.approx(watched.metrics().seconds)


def test_rows_that_on_error_hides_are_counted(corpus: Path) -> None:
    def refuse_odd_rows(row: dict[str, Any]) -> dict[str, Any]:
        if row["id"] % 2:
            raise ValueError
        return row

    dataset = StatefulShardedDataset(corpus, transform=refuse_odd_rows, on_error="skip")
    loader = SavableLoader(dataset, batch_size=8, num_workers=2)
    assert sum(len(batch["id"]) for batch in loader) == NUM_ROWS / 2
    found = loader.metrics()
    assert (found.rows, found.hidden_rows) == (NUM_ROWS, NUM_ROWS / 2)
    expanded = SavableLoader(StatefulShardedDataset(corpus, transform=refuse_odd_rows, on_error="skip").flat_map(twice))
    assert len(list(expanded)) == NUM_ROWS
    assert (expanded.metrics().rows, expanded.metrics().hidden_rows) == (NUM_ROWS, NUM_ROWS / 2)
    assert expanded.metrics().progress is None


def twice(row: Any) -> list[Any]:
    return [row, row]


def test_mixtures_and_rows_one_by_one_are_measured(corpus: Path) -> None:
    sources = {name: StatefulShardedDataset(corpus) for name in ("a", "b")}
    mixed = SavableLoader(Mixture(sources, {"a": 1, "b": 3}, stop=64).batch(8), num_workers=2)
    list(mixed)
    found = mixed.metrics()
    assert (found.rows, found.batches, found.progress) == (64, 8, 1.0)
    assert min(found.stages.order, found.stages.decode, found.bytes_read) > 0
    single = SavableLoader(StatefulShardedDataset(corpus))
    rows = iter(single)
    for _ in range(10):
        next(rows)
    assert (single.metrics().epoch_batches, single.metrics().epoch_total) == (10, NUM_ROWS)


def test_the_loop_that_works_is_told_from_the_loop_that_waits(corpus: Path) -> None:
    loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=8, transform=slowly))
    for _ in loader:
        time.sleep(0.01)
    found = loader.metrics()
    assert found.stages.transform >= 12 * 0.02
    assert found.waited_s >= 12 * 0.02
    assert found.seconds - found.waited_s >= 12 * 0.01
    assert found.waited_share == found.waited_s / found.seconds


def slowly(batch: Any) -> Any:
    time.sleep(0.02)
    return batch


def test_what_an_observer_raises_costs_no_batch(corpus: Path) -> None:
    fails = iter([False, True, True])

    def observe(_: LoaderMetrics) -> None:
        if next(fails, False):
            message = "no connection"
            raise ConnectionError(message)

    loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=8), observer=observe, observe_every_s=1e-9)
    batches, found = iter(loader), []
    num_failures = 0
    while True:
        try:
            found.append(next(batches)["id"].tolist())
        except ConnectionError:
            num_failures += 1
        except StopIteration:
            break
    assert num_failures == 2
    assert found == ids(SavableLoader(StatefulShardedDataset(corpus, batch_size=8)))


def test_a_log_has_a_line_for_each_interval_and_pass_on_rank_0(corpus: Path) -> None:
    lines = io.StringIO()
    with redirect_stderr(lines):
        list(SavableLoader(StatefulShardedDataset(corpus, batch_size=8), progress="log"))
        second = StatefulShardedDataset(corpus, batch_size=8, rank=1, world_size=2)
        list(SavableLoader(second, progress="log"))
    (line,) = lines.getvalue().splitlines()
    assert "epoch 0: 12/12 (100.0%), " in line
    assert " rows/s, " in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"progress": True}, "progress must be one of 'bar', 'log' or None, not True"),
        ({"observe_every_s": 0}, "observe_every_s must be a finite number of seconds above 0, not 0"),
        ({"observer": 3}, "observer must be callable, not 3"),
    ],
)
def test_arguments_are_checked(corpus: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SavableLoader(StatefulShardedDataset(corpus), **arguments)


def test_metrics_of_an_interval_and_as_numbers(corpus: Path) -> None:
    loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=8), num_workers=1)
    batches = iter(loader)
    next(batches)
    first = loader.metrics()
    next(batches)
    found = loader.metrics().since(first)
    assert (found.rows, found.batches, found.epoch_batches) == (8, 1, 2)
    numbers = loader.metrics().as_dict()
    assert all(isinstance(value, (int, float)) for value in numbers.values())
    assert {"rows_per_s", "waited_share", "progress", "decode_s", "worker_memory_bytes"} <= numbers.keys()
