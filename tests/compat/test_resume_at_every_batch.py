"""A checkpoint at every batch: the batches before it and those after a resume are the uninterrupted run."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

import pytest
import torch

from laneway import StatefulShardedDataset
from tests.compat.loaders import FORKSERVER, flat, ids, make_loader, run_with_states, saved
from tests.corpora import KINDS, Kind, write_corpus
from tests.fuzzing import ci_tries, thorough
from tests.waiting import CountedTransform

if TYPE_CHECKING:
    from pathlib import Path

# Every combination without workers; with two workers every kind, with one and with four two combinations.
_TWO = {(False, False): "parquet", (True, True): "arrow-file", (False, True): "arrow-stream", (True, False): "parquet"}
MATRIX = [
    (kind, shuffle, rows, num_workers)
    for kind, shuffle, rows, num_workers in product(get_args(Kind), [False, True], [False, True], [0, 1, 2, 4])
    if not num_workers
    or (num_workers == 2 and _TWO[shuffle, rows] == kind)
    or (kind, shuffle, rows) in {("parquet", True, False), ("arrow-stream", False, True)}
]


@pytest.mark.parametrize(
    ("kind", "shuffle", "rows", "num_workers"),
    [each if each[-1] in {0, 2} or each[0] == "parquet" else thorough(*each) for each in MATRIX],
)
def test_prefix_and_suffix_are_the_uninterrupted_run_at_every_batch(
    tmp_path: Path, kind: Kind, shuffle: bool, rows: bool, num_workers: int
) -> None:
    num_rows = write_corpus(tmp_path, kind)
    options: dict[str, Any] = {"rows": rows, "dataset": {"shuffle": shuffle}, "num_workers": num_workers}
    uninterrupted, states = run_with_states(make_loader(tmp_path, **options))
    assert sorted(flat(uninterrupted)) == list(range(num_rows))
    for done, state in enumerate(states):
        resumed = make_loader(tmp_path, **options)
        resumed.load_state_dict(state)
        assert uninterrupted[:done] + ids(resumed) == uninterrupted, f"resumed after batch {done}"


LOADER_OPTIONS: dict[str, dict[str, Any]] = {
    "spawn": {"num_workers": 1, "multiprocessing_context": "spawn"},
    "forkserver": {"num_workers": 2, "multiprocessing_context": FORKSERVER},
    "persistent": {"num_workers": 2, "persistent_workers": True},
    "persistent_spawn": {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"},
    "far_ahead": {"num_workers": 2, "prefetch_factor": 8},
    "rare_snapshots": {"num_workers": 2, "snapshot_every_n_steps": 7},
    "rare_snapshots_in_process": {"num_workers": 0, "snapshot_every_n_steps": 7},
}


@pytest.mark.parametrize("way", ci_tries(("spawn", "forkserver", "persistent", "rare_snapshots"), LOADER_OPTIONS))
def test_resuming_and_the_next_epoch_are_exact_with_any_loader_options(tmp_path: Path, way: str) -> None:
    write_corpus(tmp_path)
    options = {"dataset": {"shuffle": True}, **LOADER_OPTIONS[way]}
    loader = make_loader(tmp_path, **options)
    uninterrupted, states = run_with_states(loader)
    following = ids(loader)
    assert sorted(flat(following)) == sorted(flat(uninterrupted))
    assert following != uninterrupted
    # A spawned worker takes seconds to start.
    dones = {"spawn": [5], "persistent_spawn": [0, 5, len(uninterrupted) - 1]}.get(way, range(len(uninterrupted)))
    for done in dones:
        resumed = make_loader(tmp_path, **options)
        resumed.load_state_dict(states[done])
        assert uninterrupted[:done] + ids(resumed) == uninterrupted, f"resumed after batch {done}"
        assert ids(resumed) == following, f"the epoch after one resumed at batch {done}"


def test_batches_that_slow_training_has_not_received_are_not_counted(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    uninterrupted = ids(make_loader(tmp_path, dataset={"shuffle": True}, num_workers=2, prefetch_factor=8))
    read = CountedTransform(tmp_path / "_calls")
    loader = make_loader(tmp_path, dataset={"shuffle": True, "transform": read}, num_workers=2, prefetch_factor=8)
    batches = iter(loader)
    received = [next(batches)["id"].tolist()]
    read.wait_for(len(uninterrupted))
    resumed = make_loader(tmp_path, dataset={"shuffle": True}, num_workers=2, prefetch_factor=8)
    resumed.load_state_dict(saved(loader.state_dict()))
    assert received + ids(resumed) == uninterrupted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs an accelerator")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pinned_batches_resume_exactly(tmp_path: Path, num_workers: int) -> None:
    write_corpus(tmp_path)
    options: dict[str, Any] = {"dataset": {"shuffle": True}, "num_workers": num_workers, "pin_memory": True}
    uninterrupted, states = run_with_states(make_loader(tmp_path, **options))
    resumed = make_loader(tmp_path, **options)
    resumed.load_state_dict(states[4])
    batches = list(resumed)
    assert all(batch["id"].is_pinned() for batch in batches)
    assert uninterrupted[:4] + ids(batches) == uninterrupted


FRESH_PROCESS = """
import json, sys, torch
from pathlib import Path
from tests.compat.loaders import ids, make_loader
if __name__ == "__main__":
    for checkpoint in sys.argv[3:]:
        loader = make_loader(Path(sys.argv[1]), dataset={"shuffle": True}, num_workers=int(sys.argv[2]))
        loader.load_state_dict(torch.load(checkpoint, weights_only=True))
        print(json.dumps(ids(loader)))
"""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_new_process_resumes_exactly(tmp_path: Path, num_workers: int) -> None:
    corpus = tmp_path / "corpus"
    write_corpus(corpus)
    loader = make_loader(corpus, dataset={"shuffle": True}, num_workers=num_workers)
    uninterrupted, states = run_with_states(loader)
    checkpoints = {done: tmp_path / f"checkpoint-{done}.pt" for done in (1, 8, len(uninterrupted) - 1)}
    for done, checkpoint in checkpoints.items():
        torch.save(states[done], checkpoint)
    command = [sys.executable, "-c", FRESH_PROCESS, str(corpus), str(num_workers), *map(str, checkpoints.values())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for done, rest in zip(checkpoints, result.stdout.splitlines(), strict=True):
        assert uninterrupted[:done] + json.loads(rest) == uninterrupted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("lanes", [None, 4])
def test_the_dataset_without_a_loader_resumes_after_every_item(
    tmp_path: Path, kind: Kind, shuffle: bool, batch_size: int | None, lanes: int | None
) -> None:
    num_rows = write_corpus(tmp_path, kind)

    def make() -> StatefulShardedDataset:
        return StatefulShardedDataset(
            tmp_path, shuffle=shuffle, seed=1, batch_size=batch_size, lanes=lanes, shard_rows=4, window_bytes=200,
            turn_rows=2, output="python",
        )  # fmt: skip

    dataset = make()
    uninterrupted, states = [], [json.dumps(dataset.state_dict())]
    for item in dataset:
        uninterrupted.append(item)
        states.append(json.dumps(dataset.state_dict()))
    found = [row for item in uninterrupted for row in (item["id"] if batch_size else [item["id"]])]
    assert sorted(found) == list(range(num_rows))
    for done, state in enumerate(states):
        resumed = make()
        resumed.load_state_dict(json.loads(state))
        assert uninterrupted[:done] + list(resumed) == uninterrupted
