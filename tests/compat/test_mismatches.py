"""A state that does not belong to a dataset is refused with the cause and both values, and changes nothing."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import CheckpointMismatchError, SavableLoader, StateFormatError, StatefulShardedDataset
from laneway.core.schema import sealed
from tests.compat.loaders import ids, loader_raises, make_loader, saved
from tests.corpora import rows as corpus_rows
from tests.corpora import write_blocks, write_corpus

if TYPE_CHECKING:
    from pathlib import Path

    from laneway.core.lanes import Remainder

ARGUMENTS: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": 42, "shard_rows": 4, "window_bytes": 400}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


def state_of(corpus: Path, num_batches: int = 3, **arguments: Any) -> dict[str, Any]:
    dataset = StatefulShardedDataset(corpus, **(ARGUMENTS | arguments))
    batches = iter(dataset)
    for _ in range(num_batches):
        next(batches)
    return dataset.state_dict()


def job_state_of(corpus: Path, remainder: Remainder | None, world_size: int) -> dict[str, Any]:
    """Return the state of a job after two batches of each rank."""
    loader = SavableLoader(
        StatefulShardedDataset(corpus, **ARGUMENTS, remainder=remainder, rank=0, world_size=world_size)
    )
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    return saved(loader.state_dict())


def resumed(corpus: Path, state: dict[str, Any], remainder: Remainder | None, world_size: int) -> list[list[list[int]]]:
    """Return the rest of the epoch: the batches of each rank."""
    found = []
    for rank in range(world_size):
        loader = SavableLoader(
            StatefulShardedDataset(corpus, **ARGUMENTS, remainder=remainder, rank=rank, world_size=world_size)
        )
        loader.load_state_dict(state)
        found.append(ids(loader))
    return found


def refusal(
    dataset: StatefulShardedDataset,
    state: Any,
    error: type[Exception] | tuple[type[Exception], ...] = CheckpointMismatchError,
) -> str:
    """Return the error message of a state that is refused, after checking that the dataset has not changed."""
    before = dataset.state_dict(), repr(dataset), dataset.epoch
    with pytest.raises(error) as refused:
        dataset.load_state_dict(state)
    assert (dataset.state_dict(), repr(dataset), dataset.epoch) == before
    return str(refused.value)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"seed": 43}, "seed: saved 42, this run has 43"),
        ({"shuffle": False}, "shuffle: saved True, this run has False"),
        ({"shard_rows": 5}, "shard_rows: saved 4, this run has 5"),
        ({"shard_rows": None}, "shard_rows: saved 4, this run has None"),
        ({"shard_bytes": "1MiB"}, "shard_bytes: saved 8 MiB, this run has 1 MiB"),
        ({"window_bytes": 401}, "window_bytes: saved 400 bytes, this run has 401 bytes"),
        (
            {"remainder": "drop"},
            """remainder: saved None, this run has 'drop' (None: "keep" on one rank, "pad" on several)""",
        ),
        ({"drop_last": True}, "drop_last: saved False, this run has True"),
    ],
)
def test_a_changed_setting_is_named_with_both_values(corpus: Path, changed: dict[str, Any], line: str) -> None:
    dataset = StatefulShardedDataset(corpus, **(ARGUMENTS | changed))
    message = refusal(dataset, state_of(corpus))
    assert message.splitlines()[0] == "this checkpoint does not belong to this dataset"
    assert f"  {line}" in message.splitlines()
    assert "set_epoch()" in message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((None, 2), ("pad", 2)),
        (("pad", 2), (None, 2)),
        ((None, 2), ("pad", 3)),
        ((None, 1), ("keep", 1)),
        (("keep", 1), (None, 1)),
    ],
)
def test_a_default_equals_the_same_choice(
    corpus: Path, before: tuple[Remainder | None, int], after: tuple[Remainder | None, int]
) -> None:
    state = job_state_of(corpus, *before)
    assert resumed(corpus, state, *after) == resumed(corpus, state, before[0], after[1])


@pytest.mark.parametrize(
    ("before", "after"),
    [((None, 1), ("keep", 2)), (("keep", 1), (None, 2)), ((None, 1), ("pad", 1)), ((None, 2), ("keep", 1))],
)
def test_a_default_differs_from_a_choice_that_other_ranks_would_not_make(
    corpus: Path, before: tuple[Remainder | None, int], after: tuple[Remainder | None, int]
) -> None:
    state = job_state_of(corpus, *before)
    line = rf"remainder: saved {before[0]!r}, this run has {after[0]!r} \(None: "
    with pytest.raises(CheckpointMismatchError, match=line):
        resumed(corpus, state, *after)


def add(corpus: Path) -> None:
    pq.write_table(corpus_rows(48, 50), corpus / "part-007.parquet")


def remove(corpus: Path) -> None:
    (corpus / "part-005.parquet").unlink()


def rename(corpus: Path) -> None:
    (corpus / "part-005.parquet").rename(corpus / "part-0055.parquet")


def grow(corpus: Path) -> None:
    pq.write_table(corpus_rows(24, 36), corpus / "part-005.parquet")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (add, "part-007.parquet is new"),
        (remove, "part-005.parquet is gone"),
        (rename, "part-005.parquet is now part-0055.parquet"),
        (grow, "part-005.parquet had 11 rows, now 12"),
    ],
)
def test_changed_files_are_named_with_their_change(corpus: Path, change: Any, cause: str) -> None:
    state = state_of(corpus)
    change(corpus)
    message = refusal(StatefulShardedDataset(corpus, **ARGUMENTS), state)
    assert f"  files: {cause}" in message.splitlines()


def test_a_file_rewritten_with_the_same_size_is_named(corpus: Path) -> None:
    path = corpus / "part-006.parquet"
    options: dict[str, Any] = {"write_statistics": False, "compression": "none", "use_dictionary": False}
    table = corpus_rows(35, 48)
    pq.write_table(table, path, **options)
    state, size = state_of(corpus), path.stat().st_size
    pq.write_table(table.set_column(2, "x", pa.array([7.0] * len(table), pa.float32())), path, **options)
    assert path.stat().st_size == size
    message = refusal(StatefulShardedDataset(corpus, **ARGUMENTS), state)
    assert f"files: part-006.parquet was rewritten with the same size ({size:,} bytes)" in message


@pytest.mark.parametrize("kind", ["arrow-file", "arrow-stream"])
def test_an_arrow_file_rewritten_with_the_same_size_is_named(tmp_path: Path, kind: Any) -> None:
    schema = pa.schema([("id", pa.int64())])
    path = tmp_path / "only.arrow"
    write_blocks(path, kind, [pa.table({"id": [1, 2, 3]}, schema=schema)], schema)
    state = state_of(tmp_path, num_batches=1)
    write_blocks(path, kind, [pa.table({"id": [1, 2, 4]}, schema=schema)], schema)
    assert "only.arrow was rewritten with the same size" in refusal(
        StatefulShardedDataset(tmp_path, **ARGUMENTS), state
    )


def test_one_error_lists_all_differences(corpus: Path) -> None:
    state = state_of(corpus)
    remove(corpus)
    add(corpus)
    message = refusal(StatefulShardedDataset(corpus, **(ARGUMENTS | {"seed": 1, "shuffle": False})), state)
    for cause in ("seed: saved 42", "shuffle: saved True", "part-005.parquet is gone", "part-007.parquet is new"):
        assert cause in message


def test_many_changed_files_are_counted_after_the_first_three(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a", files=((1,),) * 20)
    write_corpus(tmp_path / "b", files=((2,),) * 20)
    message = refusal(StatefulShardedDataset(tmp_path / "b", **ARGUMENTS), state_of(tmp_path / "a"))
    assert "part-000.parquet had 1 row, now 2" in message
    assert "and 17 more differences" in message


def test_a_dataset_that_was_moved_or_is_listed_in_another_order_is_accepted(corpus: Path, tmp_path: Path) -> None:
    state = state_of(corpus)
    moved = tmp_path / "else" / "where"
    moved.mkdir(parents=True)
    for path in sorted(corpus.iterdir(), reverse=True):
        shutil.copy(path, moved / path.name)
    rest = StatefulShardedDataset(corpus, **ARGUMENTS)
    rest.load_state_dict(state)
    for source in (moved, str(moved / "*.parquet"), sorted(moved.iterdir(), reverse=True)):
        dataset = StatefulShardedDataset(source, **ARGUMENTS)
        dataset.load_state_dict(state)
        assert ids(dataset) == ids(rest)
        rest.load_state_dict(state)


def test_the_state_of_another_rank_is_refused(corpus: Path) -> None:
    state = state_of(corpus, rank=1, world_size=2)
    message = refusal(StatefulShardedDataset(corpus, **ARGUMENTS, rank=0, world_size=2), state)
    assert message.splitlines()[0] == "this checkpoint does not belong to this rank"
    assert "rank: saved 1, this is 0" in message
    message = refusal(StatefulShardedDataset(corpus, **ARGUMENTS, rank=1, world_size=3), state)
    assert "world_size: saved 2, this is 3" in message


@pytest.mark.parametrize(("before", "after"), [(2, 3), (1, 2)])
def test_the_error_of_another_number_of_workers_names_the_right_one(corpus: Path, before: int, after: int) -> None:
    loader = make_loader(corpus, num_workers=before)
    next(iter(loader))
    restored = make_loader(corpus, num_workers=after)
    restored.load_state_dict(saved(loader.state_dict()))
    cause = rf"num_workers: saved {before}, this is {after} \(.*give it num_workers={before}\b"
    with loader_raises(CheckpointMismatchError, cause):
        next(iter(restored))


def test_torchdata_refuses_to_restore_workers_from_a_state_without_any(corpus: Path) -> None:
    # It asserts before it calls the dataset, so only the documentation can explain the error.
    loader = make_loader(corpus, num_workers=0)
    next(iter(loader))
    restored = make_loader(corpus, num_workers=2)
    restored.load_state_dict(saved(loader.state_dict()))
    with pytest.raises(AssertionError, match="State doesn't contain key '_snapshot'"):
        next(iter(restored))


def test_the_state_of_a_worker_is_refused_by_a_pass_of_the_main_process(corpus: Path) -> None:
    loader = make_loader(corpus, num_workers=2)
    next(iter(loader))
    worker_states = loader.state_dict()["_snapshot"]["_worker_snapshots"]
    state = worker_states["worker_1"].get("dataset_state")
    dataset = loader.dataset
    fresh = StatefulShardedDataset(corpus, batch_size=3, shard_rows=4, window_bytes=200, seed=5)
    fresh.load_state_dict(state)
    with pytest.raises(CheckpointMismatchError, match="num_workers: saved 2, this is 1"):
        next(iter(fresh))
    assert dataset.epoch == 0


def test_another_batch_size_on_one_of_several_ranks_is_refused(corpus: Path) -> None:
    state = state_of(corpus, rank=0, world_size=2)
    dataset = StatefulShardedDataset(corpus, **(ARGUMENTS | {"batch_size": 6}), rank=0, world_size=2)
    assert "turns of 4 rows" in refusal(dataset, state)


def test_a_single_rank_with_another_batch_size_delivers_every_row_once(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, **ARGUMENTS)
    batches = iter(dataset)
    done = next(batches)["id"].tolist() + next(batches)["id"].tolist()
    other = StatefulShardedDataset(corpus, **(ARGUMENTS | {"batch_size": 6}))
    other.load_state_dict(dataset.state_dict())
    rest = ids(other)
    assert {len(batch) for batch in rest[:-1]} == {6}
    assert sorted(done + [row for batch in rest for row in batch]) == list(range(48))


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda _: None, "not NoneType"),
        (lambda _: [], "not list"),
        (lambda _: {}, "an empty dict is not a state: pass what state_dict() returned"),
        (
            lambda _: {"epoch": 1, "model": 2},
            "its keys are 'epoch', 'model'; pass the part of the checkpoint that state_dict() returned",
        ),
        (lambda _: {"_snapshot": {}, "_iterator_finished": False}, "which only a StatefulDataLoader can load"),
        (lambda s: {**s, "version": 99}, "format version 99"),
        (lambda s: {k: v for k, v in s.items() if k != "positions"}, "truncated: positions missing"),
        (lambda s: {**s, "epoch": "1"}, "epoch is '1', not int"),
        (lambda s: {**s, "epoch": True}, "epoch is True, not int"),
        (lambda s: {**s, "epoch": -1}, "epoch is -1"),
        (lambda s: {**s, "positions": [1, 2]}, "don't fit lanes"),
        (lambda s: {**s, "positions": [-1]}, "positions is [-1]"),
        (lambda s: sealed({**s, "positions": [10**9]}), "lane 0 is at position 1,000,000,000, but has 48 rows"),
        (lambda s: {**s, "positions": ["1"]}, "positions is ['1']"),
        (lambda s: {**s, "lanes": 0, "positions": []}, "damaged"),
        (lambda s: {**s, "lanes": 10**12}, "damaged"),
        (lambda s: {**s, "next_turn": -1}, "damaged"),
        (lambda s: {**s, "next_turn": 10**30}, "damaged"),
        (lambda s: {**s, "epoch": s["epoch"] + 1}, "so a field was changed"),
        (lambda s: sealed({**s, "epoch": 2**33}), "epoch is 8589934592"),
        (lambda s: {**s, "epoch": 2**63}, "epoch is"),
        (lambda s: {**s, "turn_rows": 2**70}, "turn_rows has too many digits"),
        (lambda s: {**s, "turn_rows": 2**60}, "turn_rows is"),
        (lambda s: sealed({**s, "shard_bytes": 2**63}), "shard_bytes is 9223372036854775808"),
        (lambda s: sealed({**s, "window_bytes": -1}), "window_bytes is -1"),
        (lambda s: sealed({**s, "shard_rows": 2**62}), "shard_rows is"),
        (lambda s: {**s, "lane_remainder": "cut"}, "lane_remainder is 'cut'"),
        (lambda s: {**s, "lanes": None, "positions": [], "complete": True}, "complete, but has no lanes"),
        (lambda s: {**s, "turn_rows": 0}, "damaged"),
        (lambda s: {**s, "turn_rows": None}, "damaged"),
        (lambda s: {**s, "rank": 3}, "damaged"),
        (lambda s: {**s, "num_workers": 0}, "damaged"),
        (lambda s: sealed({**s, "complete": True}), "complete=True"),
        (lambda s: {**s, "scope": "worker"}, "scope is 'worker'"),
        (lambda s: {**s, "scope": "galaxy"}, "scope is 'galaxy'"),
        (lambda s: {**s, "lane_indices": [0, 0], "positions": [1, 2], "scope": "rank", "lanes": 2}, "damaged"),
        (lambda s: {**s, "earlier_cuts": [3]}, "damaged"),
        (lambda s: {**s, "earlier_cuts": [[]]}, "damaged"),
        (lambda s: {**s, "earlier_cuts": [[99]]}, "damaged"),
        (lambda s: {**s, "earlier_cuts": [[2**70]]}, "damaged"),
        (lambda s: sealed({**s, "fingerprint": "0", "files": s["files"][:-9]}), "truncated or damaged"),
        (lambda s: sealed({**s, "fingerprint": "0", "files": "~"}), "truncated or damaged"),
    ],
)
def test_a_damaged_state_is_refused_with_the_damage(corpus: Path, damage: Any, cause: str) -> None:
    state = damage(state_of(corpus))
    assert cause in refusal(StatefulShardedDataset(corpus, **ARGUMENTS), state, StateFormatError)


def test_a_state_is_refused_if_any_field_is_missing_or_of_another_type(corpus: Path) -> None:
    state = state_of(corpus)
    dataset = StatefulShardedDataset(corpus, **ARGUMENTS)
    for name in state:
        refusal(dataset, {key: value for key, value in state.items() if key != name}, StateFormatError)
        refusal(dataset, {**state, name: object()}, (StateFormatError, CheckpointMismatchError))
    dataset.load_state_dict(json.loads(json.dumps(state)))


def test_a_state_of_an_unknown_order_is_refused(corpus: Path) -> None:
    state = sealed(state_of(corpus) | {"order_version": 3})
    message = refusal(StatefulShardedDataset(corpus, **ARGUMENTS), state)
    assert "order_version: saved 3, this release reads 1 and 2" in message


def test_a_complete_state_that_another_world_size_saved_again_is_accepted(corpus: Path) -> None:
    whole = StatefulShardedDataset(corpus, **ARGUMENTS, lanes=5)
    list(whole)
    second = StatefulShardedDataset(corpus, **ARGUMENTS, rank=0, world_size=2)
    second.load_state_dict(whole.state_dict())
    second.set_epoch(0)
    assert list(second) == []
    assert second.completed_shards() == list(second.shards)
    third = StatefulShardedDataset(corpus, **ARGUMENTS, rank=1, world_size=2)
    third.load_state_dict(second.state_dict())
    third.set_epoch(0)
    assert list(third) == []


def test_ranks_that_resume_within_a_turn_stay_in_step(corpus: Path) -> None:
    arguments: dict[str, Any] = {"turn_rows": 4, "lanes": 2, "remainder": "pad"}
    whole = StatefulShardedDataset(corpus, **arguments)
    rows = iter(whole)
    done = [next(rows)["id"] for _ in range(3)]
    found = []
    for rank in range(2):
        dataset = StatefulShardedDataset(corpus, **arguments, rank=rank, world_size=2)
        dataset.load_state_dict(whole.state_dict())
        found.append([row["id"] for row in dataset])
    assert len(found[0]) == len(found[1])
    assert set(done + found[0] + found[1]) == set(range(48))
