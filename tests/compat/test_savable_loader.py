"""SavableLoader in one process: resuming at every batch, with other workers, after errors, and from epoch to epoch."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import (
    CheckpointMismatchError,
    LanewayError,
    SavableLoader,
    StateFormatError,
    StatefulShardedDataset,
    StateUnavailableError,
    merge_states,
)
from laneway.cores import cores_of_rank
from tests.compat.loaders import FORKSERVER, flat, loader_raises, saved
from tests.compat.savable import WAYS, Way, make_dataset, make_savable, row_ids
from tests.corpora import write_corpus
from tests.fuzzing import thorough
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

NUM_ROWS = 48


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    assert write_corpus(path) == NUM_ROWS
    return path


def run_with_states(loader: SavableLoader) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Run one epoch; return its items, and the states before the first item and after each one."""
    states, items = [saved(loader.state_dict())], []
    for item in loader:
        items += row_ids([item])
        states.append(saved(loader.state_dict()))
    return items, states


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_a_state_saved_after_any_batch_resumes_exactly(corpus: Path, way: Way, num_workers: int) -> None:
    loader = make_savable(corpus, way, num_workers=num_workers)
    items, states = run_with_states(loader)
    assert sorted(flat(items)) == list(range(NUM_ROWS))
    next_epoch = row_ids(loader)
    assert sorted(flat(next_epoch)) == list(range(NUM_ROWS))
    assert next_epoch != items
    assert loader.epoch == 1
    middle = len(items) // 2
    for step in range(len(states)) if num_workers == 0 else (0, 1, middle, middle + 1, len(items) - 1, len(items)):
        resumed = make_savable(corpus, way, num_workers=num_workers)
        resumed.load_state_dict(states[step])
        assert resumed.state_dict() == states[step]
        assert resumed.batches_delivered == step
        assert row_ids(resumed) == items[step:]
        assert (resumed.epoch, resumed.batches_delivered) == (0, len(loader))
        if step in {0, middle, len(items)}:
            assert row_ids(resumed) == next_epoch


@pytest.mark.parametrize("way", WAYS)
def test_the_number_of_workers_may_change_mid_epoch(corpus: Path, way: Way) -> None:
    state, received = None, []
    for num_workers, steps in [(2, 4), (0, 3), (3, 2), (1, None)]:
        loader = make_savable(corpus, way, num_workers=num_workers)
        if state:
            loader.load_state_dict(state)
        for step, item in enumerate(loader, start=1):
            received += row_ids([item])[0]
            if step == steps:
                break
        state = saved(loader.state_dict())
    assert sorted(received) == list(range(NUM_ROWS))
    assert sorted(flat(row_ids(loader))) == list(range(NUM_ROWS))


@pytest.mark.parametrize("way", ["batches", "collated"])
def test_with_fixed_lanes_the_order_does_not_depend_on_workers_even_if_they_change(corpus: Path, way: Way) -> None:
    given = {"lanes": 12, "turn_rows": 3}
    items, states = run_with_states(make_savable(corpus, way, dataset=given))
    for num_workers in (1, 2, 3, 4):
        assert row_ids(make_savable(corpus, way, dataset=given, num_workers=num_workers)) == items
    for step, num_workers in [(1, 3), (5, 2), (9, 0), (14, 4)]:
        # Lanes and turns come from the state too.
        loader = make_savable(corpus, way, num_workers=num_workers)
        loader.load_state_dict(states[step])
        assert row_ids(loader) == items[step:]


def test_ten_restores_in_a_chain_lose_nothing(corpus: Path) -> None:
    uninterrupted = row_ids(make_savable(corpus, num_workers=2))
    received: list[list[int]] = []
    state = make_savable(corpus, num_workers=2).state_dict()
    for _ in range(10):
        loader = make_savable(corpus, num_workers=2)
        loader.load_state_dict(saved(state))
        batches = iter(loader)
        received += row_ids([next(batches)])
        assert loader.batches_delivered == len(received)
        state = loader.state_dict()
    loader.load_state_dict(state)
    assert received + row_ids(loader) == uninterrupted


def test_batches_that_arrive_in_any_order_are_counted_exactly(corpus: Path, tmp_path: Path) -> None:
    def receive(state: dict[str, Any] | None, gate: Path, max_rows: int) -> tuple[list[int], dict[str, Any]]:
        dataset = make_dataset(corpus, batch_size=3, transform=LateInWorker0(gate))
        loader = SavableLoader(DataLoader(dataset, batch_size=None, num_workers=3, in_order=False))
        if state is not None:
            loader.load_state_dict(state)
        received: list[int] = []
        for item in loader:
            gate.touch()
            received += row_ids([item])[0]
            if len(received) > max_rows:
                break
        return received, saved(loader.state_dict())

    received, state = receive(None, tmp_path / "first", NUM_ROWS // 2)
    in_order = flat(row_ids(make_savable(corpus, num_workers=3)))
    assert received[0] != in_order[0]
    rest, _ = receive(state, tmp_path / "second", NUM_ROWS)
    assert sorted(received + rest) == list(range(NUM_ROWS))


def with_threads(_: dict[str, Any]) -> dict[str, Any]:
    """Return, in the place of a row, how many threads read in this process, and how many Arrow has."""
    reading = [thread for thread in threading.enumerate() if thread.name == "laneway-read"]
    return {"threads": (len(reading), pa.cpu_count())}


@pytest.mark.parametrize("kind", [SavableLoader, DataLoader])
def test_workers_share_the_cores_of_the_machine(corpus: Path, kind: Any) -> None:
    dataset = StatefulShardedDataset(corpus, shuffle=True).map(with_threads)
    cores = max(1, cores_of_rank() // 2)
    shares = {tuple(map(int, row["threads"])) for row in kind(dataset, batch_size=None, num_workers=2)}
    assert shares == {(min(4, cores), min(pa.cpu_count(), cores))}


@dataclass(frozen=True)
class LateInWorker0:
    """A transform that makes worker 0 wait until a file exists."""

    gate: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        info = torch.utils.data.get_worker_info()
        if info is not None and info.id == 0:
            wait_until(self.gate.exists, lambda: "a batch of another worker was delivered")
        return batch


@pytest.mark.parametrize("context", [thorough("spawn"), FORKSERVER])
def test_persistent_workers_that_are_spawned_continue_from_epoch_to_epoch(corpus: Path, context: Any) -> None:
    plain = make_savable(corpus, num_workers=2)
    epochs = [row_ids(plain) for _ in range(3)]
    options = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": context}
    loader = make_savable(corpus, **options)
    assert row_ids([next(iter(loader))]) == epochs[0][:1]
    assert row_ids(loader) == epochs[1]
    loader.set_epoch(0)
    batches = iter(loader)
    received = row_ids([next(batches), next(batches)])
    state = saved(loader.state_dict())
    loader.load_state_dict(state)
    assert received + row_ids(loader) == epochs[0]
    assert [row_ids(loader) for _ in range(2)] == epochs[1:]
    loader.set_epoch(0)
    assert row_ids(loader) == epochs[0]


def test_set_epoch_keeps_the_progress_of_its_epoch_and_starts_another_from_its_first_row(corpus: Path) -> None:
    loader = make_savable(corpus)
    epochs = [row_ids(loader) for _ in range(3)]
    loader.set_epoch(1)
    batches = iter(loader)
    next(batches)
    state = saved(loader.state_dict())
    resumed = make_savable(corpus)
    resumed.load_state_dict(state)
    assert resumed.epoch == 1
    resumed.set_epoch(1)
    assert (resumed.epoch, resumed.batches_delivered) == (1, 1)
    assert row_ids(resumed) == epochs[1][1:]
    resumed.load_state_dict(state)
    with pytest.warns(UserWarning, match=r"set_epoch\(2\) drops the loaded state, which is of the middle of epoch 1"):
        resumed.set_epoch(2)
    assert (resumed.epoch, resumed.batches_delivered) == (2, 0)
    assert row_ids(resumed) == epochs[2]
    resumed.load_state_dict(state)
    with pytest.warns(UserWarning, match=r"set_epoch\(0\) drops the loaded state"):
        resumed.dataset.set_epoch(0)
    assert row_ids(resumed) == epochs[0]


def test_the_error_of_the_dataset_names_the_loader_that_holds_its_progress(corpus: Path) -> None:
    loader = make_savable(corpus)
    next(iter(loader))
    with pytest.raises(StateUnavailableError, match="SavableLoader"):
        loader.dataset.state_dict()
    assert loader.dataset.epoch == 0
    state = saved(loader.state_dict())
    dataset = make_dataset(corpus, batch_size=3)
    dataset.load_state_dict(state)
    assert row_ids(dataset) == row_ids(make_savable(corpus))[1:]
    dataset.load_state_dict(state)
    assert row_ids(SavableLoader(dataset)) == row_ids(make_savable(corpus))[1:]


def test_an_iterator_of_an_earlier_pass_raises_an_error(corpus: Path) -> None:
    loader = make_savable(corpus)
    older, younger = iter(loader), iter(loader)
    next(older)
    next(younger)
    with pytest.raises(LanewayError, match="another pass"):
        next(older)
    loader.dataset.load_state_dict(make_savable(corpus).state_dict())
    with pytest.raises(LanewayError, match="a state was restored"):
        next(younger)
    younger = iter(loader)
    next(younger)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(LanewayError, match="a state was restored"):
        next(younger)
    batches = iter(loader)
    assert len(row_ids(batches)) == len(loader) - 1
    assert next(batches, None) is None


def test_a_pass_begins_with_its_first_batch(corpus: Path) -> None:
    loader = make_savable(corpus)
    epochs = [row_ids(loader) for _ in range(3)]
    loader = make_savable(corpus)
    iter(loader)
    passed = iter(loader)
    assert (loader.epoch, loader.batches_delivered) == (0, 0)
    loader.sampler.set_epoch(1)
    assert row_ids(passed) == epochs[1]
    assert (loader.epoch, loader.batches_delivered) == (1, 16)
    loader.set_epoch(2)
    assert (loader.epoch, loader.batches_delivered) == (2, 0)
    assert repr(loader).endswith("epoch 2: 0 of 16 delivered)")


def test_a_stateful_loader_into_which_a_state_was_loaded_is_refused(corpus: Path) -> None:
    def stateful() -> StatefulDataLoader[Any]:
        return StatefulDataLoader(make_dataset(corpus, batch_size=3), batch_size=None, num_workers=1)

    used = stateful()
    next(iter(used))
    before = stateful()
    before.load_state_dict(used.state_dict())
    with pytest.raises(ValueError, match="a state was loaded into the StatefulDataLoader itself"):
        SavableLoader(before)
    after = stateful()
    loader = SavableLoader(after)
    after.load_state_dict(used.state_dict())
    with pytest.raises(ValueError, match="a state was loaded into the StatefulDataLoader itself"):
        next(iter(loader))


def test_only_the_arguments_of_a_stateful_loader_are_used_so_its_snapshots_do_not_matter(corpus: Path) -> None:
    def loader() -> SavableLoader:
        dataset = make_dataset(corpus)
        stateful = StatefulDataLoader(dataset, batch_size=3, num_workers=2, snapshot_every_n_steps=5)
        loader = SavableLoader(stateful)
        assert dataset.definition.options.turn_rows is None
        return loader

    uninterrupted = row_ids(loader())
    first = loader()
    received = row_ids(islice(first, 4))
    second = loader()
    second.load_state_dict(saved(first.state_dict()))
    assert received + row_ids(second) == uninterrupted


def test_the_state_of_one_worker_is_refused(corpus: Path) -> None:
    stateful = StatefulDataLoader(make_dataset(corpus, batch_size=3), batch_size=None, num_workers=2)
    next(iter(stateful))
    of_worker = stateful.state_dict()["_snapshot"]["_worker_snapshots"]["worker_0"]["dataset_state"]
    loader = make_savable(corpus, num_workers=2)
    for restore in (loader.load_state_dict, loader.restore_state_rank):
        with pytest.raises(CheckpointMismatchError, match="of DataLoader worker 0 of 2 only"):
            restore(of_worker)
    assert len(row_ids(loader)) == 16


def test_the_state_of_a_rank_is_refused_if_its_batches_need_lanes_of_others(corpus: Path) -> None:
    def loader(batch_size: int) -> SavableLoader:
        options = {"rank": 0, "world_size": 2, "lanes": 8, "turn_rows": 2}
        return SavableLoader(make_dataset(corpus, batch_size=batch_size, **options), num_workers=2)

    first = loader(4)
    next(iter(first))
    with pytest.raises(CheckpointMismatchError, match="batches of this size can't share them"):
        loader(2).restore_state_rank(first.save_state_rank())


def test_no_rank_infers_the_job_mid_epoch_if_batches_arrive_in_any_order(corpus: Path) -> None:
    dataset = make_dataset(corpus, batch_size=3, rank=0, world_size=2)
    loader = SavableLoader(DataLoader(dataset, batch_size=None, num_workers=2, in_order=False))
    batches = iter(loader)
    next(batches)
    assert loader.state_dict()["laneway"][0]["scope"] == "rank"
    assert len(row_ids(batches)) == 7
    assert loader.state_dict()["laneway"][0]["scope"] == "global"


class TransformError(Exception):
    """The error of a failing transform."""


class FailsOnce:
    """A transform that fails at one row, once in all processes: afterwards the marker file exists."""

    def __init__(self, row: int, marker: Path) -> None:
        self.row, self.marker = row, marker

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = batch["id"]
        if self.row in (found.tolist() if isinstance(found, torch.Tensor) else [found]) and not self.marker.exists():
            self.marker.touch()
            message = f"row {self.row}"
            raise TransformError(message)
        return batch


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("way", ["batches", "collated", "rows", "a StatefulDataLoader", "its rows"])
def test_after_an_error_the_same_iterator_resumes_where_it_was(
    corpus: Path, tmp_path: Path, way: Way, num_workers: int
) -> None:
    uninterrupted = row_ids(make_savable(corpus, way, num_workers=num_workers))
    dataset = {"transform": FailsOnce(23, tmp_path / "failed")}
    loader = make_savable(corpus, way, dataset=dataset, num_workers=num_workers)
    batches, received = iter(loader), []
    while True:
        try:
            received += row_ids([next(batches)])
        except StopIteration:
            break
        except TransformError as error:
            # The error of a worker is in a reference cycle, which keeps the workers alive.
            traceback.clear_frames(error.__traceback__)
            state = saved(loader.state_dict())
            assert loader.batches_delivered == len(received)
    assert (tmp_path / "failed").exists()
    assert received == uninterrupted
    resumed = make_savable(corpus, way, num_workers=num_workers)
    resumed.load_state_dict(state)
    rest = row_ids(resumed)
    assert received[: -len(rest)] + rest == uninterrupted


def test_a_killed_worker_loses_no_row(corpus: Path) -> None:
    uninterrupted = row_ids(make_savable(corpus, num_workers=2))
    loader = make_savable(corpus, dataset={"transform": with_pid}, num_workers=2, persistent_workers=True)
    batches, received = iter(loader), []
    first = next(batches)
    received += row_ids([first])
    with loader_raises(RuntimeError, match="killed by signal"):
        # torch's handler of SIGCHLD raises wherever the main process is, so let it wait here.
        os.kill(first["pid"], signal.SIGKILL)
        time.sleep(30)
    with loader_raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
        for batch in batches:
            received += row_ids([batch])
    for batch in batches:
        received += row_ids([batch])
    assert received == uninterrupted
    assert len(row_ids(loader)) == len(uninterrupted)


def with_pid(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "pid": os.getpid()}


def test_a_collate_fn_is_called_on_rows_or_on_the_datasets_batches(corpus: Path) -> None:
    ids = row_ids(make_savable(corpus, "collated"))
    assert (
        list(make_savable(corpus, "collated", collate_fn=ids_of_rows, num_workers=2)) != ids
    )  # two lanes instead of one
    assert list(make_savable(corpus, "collated", collate_fn=ids_of_rows)) == ids
    assert list(make_savable(corpus, "batches", collate_fn=ids_of_batch)) == ids
    by_numpy = next(iter(make_savable(corpus, "batches", dataset={"output": "numpy"})))
    assert type(by_numpy["id"]).__name__ == "ndarray"


def ids_of_rows(rows: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in rows]


def ids_of_batch(batch: dict[str, Any]) -> list[int]:
    found: list[int] = batch["id"].tolist()
    return found


def test_a_progress_bar_starts_where_the_epoch_resumes(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = make_savable(corpus, progress="bar")
    batches = iter(loader)
    next(batches)
    next(batches)
    state = saved(loader.state_dict())
    capsys.readouterr()
    resumed = make_savable(corpus, progress="bar")
    resumed.load_state_dict(state)
    rest = iter(resumed)
    next(rest)
    assert "2/16" in capsys.readouterr().err
    assert len(row_ids(rest)) == 13
    assert "16/16" in capsys.readouterr().err
    other = make_savable(corpus, dataset={"rank": 1, "world_size": 2}, progress="bar")
    assert len(row_ids(other)) == 8
    assert capsys.readouterr().err == ""


def test_states_are_plain_and_small_and_equal_on_all_ranks(corpus: Path) -> None:
    ranks = [make_savable(corpus, dataset={"rank": r, "world_size": 2}, num_workers=0) for r in range(2)]
    passes = [iter(rank) for rank in ranks]
    for _ in range(8):
        states = [rank.state_dict() for rank in ranks]
        assert states[0] == states[1]
        assert json.loads(json.dumps(states[0])) == states[0]
        (state,) = states[0]["laneway"]
        assert len(json.dumps({**state, "files": ""})) < 1024
        assert state["scope"] == "global"
        for each in passes:
            next(each)


@pytest.mark.parametrize("how", ["rank 1 to 0", "4 to 2", "whole to rank", "torn", "one is missing", "other steps"])
def test_a_state_that_does_not_belong_is_refused_and_changes_nothing(corpus: Path, how: str) -> None:
    def loader(rank: int, world_size: int = 2) -> SavableLoader:
        made = make_savable(corpus, dataset={"rank": rank, "world_size": world_size})
        next(iter(made))
        return made

    mine = loader(0)
    before = mine.save_state_rank()
    match how:
        case "rank 1 to 0":
            with pytest.raises(CheckpointMismatchError, match=r"(?s)rank: saved 1, this is 0.*save_state_global"):
                mine.restore_state_rank(loader(1).save_state_rank())
        case "4 to 2":
            with pytest.raises(CheckpointMismatchError, match=r"(?s)world_size: saved 4, this is 2.*merge_states"):
                mine.restore_state_rank(loader(0, 4).save_state_rank())
        case "whole to rank":
            with pytest.raises(CheckpointMismatchError, match=r"whole job of 2 rank.*restore_state_global"):
                mine.restore_state_rank(mine.state_dict())
        case "torn":
            with pytest.raises(StateFormatError, match="truncated: epoch missing"):
                mine.load_state_dict({key: value for key, value in before.items() if key != "epoch"})
        case "one is missing":
            with pytest.raises(CheckpointMismatchError, match=r"(?s)rank 1 is missing.*save_state_global"):
                merge_states([before])
        case "other steps":
            other = loader(1)
            batches = iter(other)
            next(batches)
            other.load_state_dict(other.state_dict())
            late = make_savable(corpus, dataset={"rank": 1, "world_size": 2})
            later = iter(late)
            next(later)
            next(later)
            with pytest.raises(
                CheckpointMismatchError, match="step: rank 0 has delivered 3 rows, rank 1 has delivered 6"
            ):
                merge_states([before, late.save_state_rank()])
    assert mine.save_state_rank() == before
    assert mine.batches_delivered == 1


def test_the_error_without_a_process_group_names_the_alternative(corpus: Path) -> None:
    loader = make_savable(corpus, dataset={"rank": 0, "world_size": 2})
    with pytest.raises(ValueError, match=r"not initialised.*merge_states"):
        loader.save_state_global()
    with pytest.raises(ValueError, match="not initialised"):
        make_savable(corpus, process_group=object())
    alone = make_savable(corpus)
    next(iter(alone))
    state = alone.save_state_global()
    assert state == alone.save_state_rank()
    with pytest.raises(ValueError, match=r"dst_rank must be a data-parallel rank in \[0, 1\), not 3"):
        alone.save_state_global(dst_rank=3)
    alone.restore_state_global(state)
    assert len(row_ids(alone)) == len(alone) - 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: SavableLoader(make_dataset(path, batch_size=3), batch_size=3),
            "already yields batches of 3 rows",
        ),
        (lambda path: SavableLoader(make_dataset(path), batch_size=0), "at least 1"),
        (
            lambda path: SavableLoader(make_dataset(path, turn_rows=2), batch_size=3),
            "multiple of the dataset's turn_rows 2",
        ),
        (
            lambda path: SavableLoader(DataLoader(make_dataset(path)), num_workers=2),
            "num_workers can't be passed together",
        ),
        (lambda path: SavableLoader(DataLoader(make_dataset(path), batch_size=3, drop_last=True)), "drop_last"),
        (lambda path: SavableLoader(make_dataset(path, batch_size=3), prefetch_factor=2), "prefetch_factor"),
    ],
)
def test_arguments_that_make_states_inexact_are_refused(corpus: Path, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(corpus)


def test_any_other_dataset_is_refused(corpus: Path) -> None:
    with pytest.raises(TypeError, match="must be a StatefulShardedDataset or Mixture, or a DataLoader over one"):
        SavableLoader([1, 2, 3])  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="must be a StatefulShardedDataset or Mixture, or a DataLoader over one"):
        SavableLoader(DataLoader([1, 2, 3]))  # type: ignore[arg-type]  # on purpose
    assert "of 16 delivered" in repr(make_savable(corpus))
    assert isinstance(make_savable(corpus).dataset, StatefulShardedDataset)
