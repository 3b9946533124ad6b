"""Typical code of users: it runs, and mypy infers the types that they expect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, assert_type

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import (
    CheckpointMismatchError,
    LanewayError,
    Manifest,
    RetryPolicy,
    SavableLoader,
    Shard,
    StatefulShardedDataset,
    merge_states,
)
from laneway.dcp import GatheredState
from laneway.distributed import scan_once
from laneway.resumable import ResumableDataset
from tests.corpora import write_corpus

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import torch


class Corpus(StatefulShardedDataset):
    """A user's class."""


def double(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**batch, "x": batch["x"] * 2}


def test_a_dataset(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(
        tmp_path,
        format="parquet",
        columns=("id", "x"),
        shuffle=True,
        seed=1,
        shard_bytes="8MiB",
        window_bytes=2**20,
        lanes=4,
        turn_rows=2,
        remainder="pad",
        batch_size=4,
        drop_last=True,
        output="torch",
        transform=double,
        fill_null={"x": 0.0},
        rank=0,
        world_size=1,
        storage_options={},
        retries=RetryPolicy(max_attempts=3),
        cache_dir=False,
    )
    assert_type(len(dataset), int)
    assert_type(iter(dataset), Iterator[Any])
    assert_type(dataset.epoch, int)
    assert_type(dataset.manifest, Manifest)
    assert_type(dataset.schema, pa.Schema)
    assert_type(dataset.shards[0], Shard)
    assert_type(dataset.shards[1:], list[Shard])
    assert_type(dataset.completed_shards(), list[Shard])
    state = dataset.state_dict()
    assert_type(state, dict[str, Any])
    assert_type(dataset.load_state_dict(state), None)
    assert_type(dataset.set_epoch(0), None)


def test_copies_of_a_dataset_have_its_class(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    assert_type(Corpus(str(tmp_path)).shuffle(), Corpus)
    assert_type(Corpus([tmp_path / "part-000.parquet"]).shard(2, index=0), Corpus)
    assert_type(Corpus(tmp_path).map(lambda row: row["id"]), Corpus)


def test_sources(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    files: list[str | os.PathLike[str]] = [str(tmp_path / "part-000.parquet"), tmp_path / "part-002.parquet"]
    manifest = scan_once(tmp_path)
    for source in (str(tmp_path), tmp_path, files, manifest, Manifest.scan(files)):
        assert len(StatefulShardedDataset(source)) > 0
    assert_type(manifest, Manifest)
    assert_type(manifest.num_rows, int)
    assert_type(manifest.fingerprint, str)
    assert_type(manifest.root, str)
    assert_type(manifest.files.paths[0], str)
    assert_type(manifest.files.rows, NDArray[np.int64])
    assert_type(manifest.save(tmp_path / "manifest.json"), None)
    assert_type(Manifest.load(tmp_path / "manifest.json", root=tmp_path), Manifest)


def test_loaders(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=4)
    SavableLoader(DataLoader(dataset, batch_size=None))
    SavableLoader(StatefulDataLoader(dataset, batch_size=None))
    loader = SavableLoader(dataset, num_workers=0, pin_memory=False, progress=None)
    assert_type(len(loader), int)
    assert_type(loader.epoch, int)
    assert_type(loader.batches_delivered, int)
    assert_type(loader.num_workers, int)
    assert_type(loader.dataset, ResumableDataset)
    for _ in loader:
        break
    of_rank = loader.save_state_rank()
    assert_type(of_rank, dict[str, Any])
    assert_type(loader.restore_state_rank(of_rank), None)
    of_job = loader.save_state_global(dst_rank=0)
    assert_type(of_job, dict[str, Any] | None)
    assert_type(loader.restore_state_global(of_job, src_rank=None), None)
    assert_type(merge_states([of_rank]), dict[str, Any])
    assert_type(loader.load_state_dict(loader.state_dict()), None)


def test_what_dcp_takes(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    loader = SavableLoader(StatefulShardedDataset(tmp_path))
    stateful: list[Stateful] = [loader, GatheredState(loader), StatefulShardedDataset(tmp_path)]
    assert all(isinstance(each, Stateful) for each in stateful)


def test_errors_are_caught_as_laneways_or_as_builtins(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    state = StatefulShardedDataset(tmp_path, shuffle=True, seed=1).state_dict()
    caught: list[ValueError] = []
    try:
        StatefulShardedDataset(tmp_path, shuffle=True, seed=2).load_state_dict(state)
    except CheckpointMismatchError as error:
        caught.append(error)
    assert isinstance(caught[0], LanewayError)
