"""Rows for which the user's functions fail are masked or skipped, the same ones after any resume."""

from __future__ import annotations

import logging
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import SavableLoader, SchemaMismatchError, StatefulShardedDataset
from tests.compat.loaders import saved
from tests.compat.savable import make_dataset
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

NUM_ROWS = 48
NUM_WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


class FailFor:
    """Fails for some rows, and otherwise returns the id and a tensor."""

    def __init__(self, bad: Iterable[int]) -> None:
        self.bad = frozenset(bad)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["id"] in self.bad:
            message = f"bad image in {row['id']}"
            raise OSError(message)
        return {"id": row["id"], "image": torch.full((2,), row["id"])}


FILLER = {"id": -1, "image": torch.zeros(2, dtype=torch.int64)}
ALL, NONE, SOME = frozenset(range(NUM_ROWS)), frozenset[int](), frozenset({0, 1, 2, 3, 17, 30, 31, 32, 33, 46, 47})
BAD = [SOME, NONE, ALL, ALL - {20}, frozenset(range(0, NUM_ROWS, 2))]


def rows_with(corpus: Path, on_error: Any, bad: Iterable[int], **options: Any) -> StatefulShardedDataset:
    options |= {"filler": FILLER} if on_error == "mask" else {}
    return make_dataset(corpus, on_error=on_error, transform=FailFor(bad), **options)


LOADERS: dict[str, Callable[[StatefulShardedDataset, int], Any]] = {
    "StatefulDataLoader": lambda rows, n: StatefulDataLoader(rows, batch_size=3, num_workers=n),
    "StatefulDataLoader of rows": lambda rows, n: StatefulDataLoader(rows, batch_size=None, num_workers=n),
    "SavableLoader": lambda rows, n: SavableLoader(rows, batch_size=3, num_workers=n),
    "SavableLoader of rows": lambda rows, n: SavableLoader(rows, num_workers=n),
}


def flat(items: Iterable[Any]) -> list[int]:
    """Return the ids of rows or batches."""
    found: list[int] = []
    for item in items:
        found += item["id"].tolist() if isinstance(item["id"], torch.Tensor) else [item["id"]]
    return found


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("way", LOADERS)
@NUM_WORKERS
def test_skipped_rows_are_not_delivered_and_all_others_are(
    corpus: Path, way: str, num_workers: int, bad: frozenset[int]
) -> None:
    order = flat(LOADERS[way](rows_with(corpus, "raise", NONE), num_workers))
    loader = LOADERS[way](rows_with(corpus, "skip", bad), num_workers)
    for _ in range(2):
        assert sorted(flat(loader)) == sorted(ALL - bad)
    loader = LOADERS[way](rows_with(corpus, "skip", bad), num_workers)
    if num_workers == 0 or isinstance(loader, SavableLoader):
        # With workers, DataLoader fills batches with the next rows of each worker, and then alternates.
        assert flat(loader) == [row for row in order if row not in bad]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("way", LOADERS)
@NUM_WORKERS
def test_masked_rows_leave_fillers_in_their_places(
    corpus: Path, way: str, num_workers: int, bad: frozenset[int]
) -> None:
    order = flat(LOADERS[way](rows_with(corpus, "raise", NONE), num_workers))
    loader = LOADERS[way](rows_with(corpus, "mask", bad), num_workers)
    items = list(loader)
    assert len(items) == len(loader)
    assert flat(items) == [-1 if row in bad else row for row in order]
    valid = [each for item in items for each in torch.as_tensor(item["_valid"]).reshape(-1).tolist()]
    assert valid == [row not in bad for row in order]


@pytest.mark.parametrize("on_error", ["skip", "mask"])
@pytest.mark.parametrize(
    ("way", "num_workers"), [*product(LOADERS, [0]), ("SavableLoader", 2), ("StatefulDataLoader of rows", 2)]
)
def test_a_run_resumes_exactly_at_many_items(corpus: Path, way: str, num_workers: int, on_error: str) -> None:
    def make() -> Any:
        return LOADERS[way](rows_with(corpus, on_error, SOME), num_workers)

    whole = make()
    epochs = [flat(whole), flat(whole)]
    num_items = len([*make()])
    steps = range(0, num_items + 1, max(1, num_items // (5 if num_workers else 12)))
    for step in steps:
        loader, resumed = make(), make()
        received = flat(islice(loader, step))
        resumed.load_state_dict(saved(loader.state_dict()))
        assert received + flat(resumed) == epochs[0]
        if step < num_items:
            assert flat(resumed) == epochs[1]


def test_the_state_of_a_dataset_that_skips_its_last_rows_is_complete(corpus: Path) -> None:
    dataset = rows_with(corpus, "skip", ALL)
    assert list(dataset) == []
    assert dataset.state_dict()["complete"]


def test_a_pass_with_an_error_that_is_no_exception_of_the_row_ends(corpus: Path) -> None:
    def interrupt(_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(iter(make_dataset(corpus, on_error="skip", transform=interrupt)))


def test_a_function_that_returns_nothing_is_no_error_of_a_row(corpus: Path) -> None:
    with pytest.raises(TypeError, match="transform returned None"):
        next(iter(make_dataset(corpus, on_error="skip", transform=lambda _: None)))


def test_without_a_filler_a_masked_row_has_zeros(corpus: Path) -> None:
    def fail(_: Any) -> Any:
        raise ValueError

    (row, *_) = make_dataset(corpus, on_error="mask", transform=fail, columns=["id"], provenance=True)
    assert row["id"] == 0
    assert not row["_valid"]
    # Where it comes from is that of the row.
    assert row["_path"].endswith(".parquet")
    fine = next(iter(make_dataset(corpus, on_error="mask", columns=["id"])))
    assert fine["_valid"]


@pytest.mark.parametrize("way", LOADERS)
def test_a_default_filler_with_other_keys_than_the_rows_is_refused(corpus: Path, way: str) -> None:
    for bad in (frozenset({47}), frozenset({0})):
        rows = make_dataset(corpus, on_error="mask", transform=FailFor(bad), shuffle=False)
        message = "transform returned has the keys 'id', 'image', but the filler that is used by default has 'id', "
        with pytest.raises(ValueError, match=message):
            [*LOADERS[way](rows, 0)]


def test_a_filler_with_other_keys_than_rows_that_are_collated_is_refused(corpus: Path) -> None:
    rows = make_dataset(corpus, on_error="mask", transform=FailFor({0}), shuffle=False, filler={"id": -1})
    message = r"has the keys 'id', 'image', but filler has 'id': pass filler="
    with pytest.raises(ValueError, match=message):
        next(iter(SavableLoader(rows, batch_size=3)))
    # A collate_fn of one's own may look at _valid first.
    only_valid = SavableLoader(
        rows, batch_size=3, collate_fn=lambda batch: [row["id"] for row in batch if "image" in row]
    )
    assert next(iter(only_valid)) == [1, 2]


def test_a_filler_tells_where_its_row_comes_from_only_if_it_has_these_keys(corpus: Path) -> None:
    def keep(row: dict[str, Any]) -> dict[str, Any]:
        return {**FailFor({0})(row), "_row": row["_row"]}

    options: dict[str, Any] = {"on_error": "mask", "shuffle": False, "provenance": True}
    rows = make_dataset(corpus, transform=FailFor({0, 4}), filler=FILLER, **options)
    batch = next(iter(SavableLoader(rows, batch_size=3)))
    assert batch.keys() == {"id", "image", "_valid"}
    rows = make_dataset(corpus, transform=keep, filler={**FILLER, "_row": -1}, **options)
    assert next(iter(SavableLoader(rows, batch_size=3)))["_row"].tolist() == [0, 1, 2]


def test_rows_are_logged_once_a_minute_with_their_places(
    corpus: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("laneway.delivery.row_errors.time.monotonic", lambda: now[0])
    dataset = rows_with(corpus, "skip", SOME, shuffle=False)
    with caplog.at_level(logging.WARNING, "laneway"):
        rows = iter(dataset)
        assert next(rows)["id"] == 4
        now[0] = 61.0
        assert len([*rows]) == NUM_ROWS - len(SOME) - 1
    first, second = caplog.messages
    assert first == "1 row skipped, the last one row 0 of part-000.parquet: OSError: bad image in 0"
    assert second.startswith("5 rows skipped, the last one row ")
    assert second.endswith("OSError: bad image in 17")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"on_error": "ignore"}, ValueError, "on_error must be one of"),
        ({"on_error": "skip", "batch_size": 3}, ValueError, "give batch_size to SavableLoader or DataLoader instead"),
        ({"on_error": "mask", "output": "arrow"}, ValueError, "rows are record batches"),
        ({"on_error": "skip", "filler": {}}, ValueError, "omit one of them"),
        ({"on_error": "mask", "filler": [0]}, TypeError, "filler must be a dict"),
        ({"on_error": "skip", "rank": 0, "world_size": 2}, ValueError, 'use "mask", or remainder="keep"'),
    ],
)
def test_arguments_that_contradict_each_other(
    corpus: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        StatefulShardedDataset(corpus, **options)


def test_the_name_of_the_added_column_must_be_free(tmp_path: Path) -> None:
    pq.write_table(pa.table({"_valid": [1, 2], "id": [3, 4]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaMismatchError, match="'_valid', but the files have one"):
        StatefulShardedDataset(tmp_path, on_error="mask")
    assert [row["id"] for row in StatefulShardedDataset(tmp_path, on_error="mask", columns=["id"])] == [3, 4]


def test_ranks_may_skip_rows_if_they_may_end_at_another_step(corpus: Path) -> None:
    ranks = [rows_with(corpus, "skip", SOME, rank=rank, world_size=2, remainder="keep") for rank in range(2)]
    assert sorted(flat(ranks[0]) + flat(ranks[1])) == sorted(ALL - SOME)
    with pytest.raises(ValueError, match="would let the 2 ranks deliver different numbers"):
        rows_with(corpus, "skip", SOME).shard(2, 0)


def test_a_masked_row_must_be_a_dict(corpus: Path) -> None:
    rows = make_dataset(corpus, on_error="mask", transform=lambda row: row["id"])
    with pytest.raises(TypeError, match="transform must return a dict, not int"):
        next(iter(rows))


@NUM_WORKERS
def test_a_plain_dataloader_gets_whole_batches_of_what_is_left(corpus: Path, num_workers: int) -> None:
    rows = rows_with(corpus, "skip", SOME, shuffle=False)
    sizes = [len(batch["id"]) for batch in DataLoader(rows, batch_size=4, num_workers=num_workers)]
    assert sum(sizes) == NUM_ROWS - len(SOME)
    assert sum(size < 4 for size in sizes) <= max(1, num_workers)
