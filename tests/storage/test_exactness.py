"""Resuming on S3 is as exact as on a disk, at any batch and on any number of workers and ranks."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import merge_states
from tests.compat.loaders import FORKSERVER, run_with_states, saved
from tests.corpora import KINDS, Kind
from tests.storage.beds import flat, ids

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed

NUM_ROWS = 48
ALL_ROWS = list(range(NUM_ROWS))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stateful_dataloader_resumes_exactly(each_s3: Bed, tmp_path: Path, kind: Kind, num_workers: int) -> None:
    url = each_s3.corpus(tmp_path / "corpus", kind)

    def create() -> Any:
        return StatefulDataLoader(each_s3.dataset(url), batch_size=None, num_workers=num_workers)

    uninterrupted, states = run_with_states(create())
    assert sorted(flat(uninterrupted)) == ALL_ROWS
    for done in (0, 5, len(uninterrupted) - 1, len(uninterrupted)):
        resumed = create()
        resumed.load_state_dict(states[done])
        assert uninterrupted[:done] + ids(resumed) == uninterrupted, f"resumed after batch {done}"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["parquet", "arrow-file"])
def test_a_savable_loader_resumes_exactly(each_s3: Bed, tmp_path: Path, kind: Kind, num_workers: int) -> None:
    url = each_s3.corpus(tmp_path / "corpus", kind)
    uninterrupted, states = run_with_states(each_s3.savable(url, num_workers))
    following = ids(each_s3.savable(url, num_workers, seed=6))
    assert sorted(flat(uninterrupted)) == sorted(flat(following)) == ALL_ROWS
    for done in (1, 7, len(uninterrupted)):
        resumed = each_s3.savable(url, num_workers)
        resumed.load_state_dict(states[done])
        assert uninterrupted[:done] + ids(resumed) == uninterrupted, f"resumed after batch {done}"


def test_rows_read_from_s3_are_equal_to_those_on_the_disk(s3: Bed, tmp_path: Path) -> None:
    for kind in KINDS:
        url = s3.corpus(tmp_path / kind, kind)
        local = s3.dataset(str(tmp_path / kind), storage_options=None)
        remote = s3.dataset(url)
        assert remote.manifest.fingerprint == local.manifest.fingerprint
        for ours, theirs in zip(remote, local, strict=True):
            assert ours["text"] == theirs["text"]
            assert ours["id"].tolist() == theirs["id"].tolist()
            assert ours["x"].tolist() == theirs["x"].tolist()


def test_a_state_saved_on_s3_resumes_on_a_disk(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "corpus")
    loader = s3.savable(url)
    received = ids(islice(loader, 6))
    resumed = s3.savable(str(tmp_path / "corpus"), storage_options=None)
    resumed.load_state_dict(saved(loader.state_dict()))
    assert sorted(flat(received + ids(resumed))) == ALL_ROWS


def test_workers_started_without_fork_read_from_s3(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "corpus")
    loader = StatefulDataLoader(s3.dataset(url), batch_size=None, num_workers=2, multiprocessing_context=FORKSERVER)
    assert sorted(flat(ids(loader))) == ALL_ROWS


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["parquet", "arrow-stream"])
def test_two_ranks_become_three_and_every_row_is_delivered_once(
    each_s3: Bed, tmp_path: Path, kind: Kind, num_workers: int
) -> None:
    url = each_s3.corpus(tmp_path / "corpus", kind)
    received, states = [], []
    for rank in range(2):
        loader = each_s3.savable(url, num_workers, rank=rank, world_size=2, remainder="keep", batch_size=2)
        received += flat(ids(islice(loader, 4)))
        states.append(saved(loader.save_state_rank()))
    assert len(received) == 2 * 4 * 2
    merged = merge_states(states)
    for rank in range(3):
        loader = each_s3.savable(url, num_workers, rank=rank, world_size=3, remainder="keep", batch_size=2)
        loader.load_state_dict(merged)
        received += flat(ids(loader))
    assert sorted(received) == ALL_ROWS
