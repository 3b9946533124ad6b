"""The content of states: plain values, small, without growth over an epoch, and without secrets."""

from __future__ import annotations

import json
import logging
import pickle
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import pytest

from laneway import DataFileError, LanewayError, Manifest, RetryPolicy, Shard, StatefulShardedDataset
from laneway.core.saved_files import decode_files
from tests.compat.loaders import ids, make_loader, saved
from tests.corpora import KINDS, Kind, write_corpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "c4nary-0f-s3crets"


@pytest.fixture
def memory_url() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    yield "memory://states"
    memory.rm("/", recursive=True)


def upload(tmp_path: Path, url: str, kind: Kind = "parquet") -> None:
    write_corpus(tmp_path, kind)
    for path in sorted(tmp_path.iterdir()):
        with fsspec.open(f"{url}/{path.name}", "wb") as file:
            file.write(path.read_bytes())


def test_states_survive_json_and_torch_load_with_weights_only(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=4, shuffle=True, lanes=2)
    for _ in islice(dataset, 3):
        pass
    state = dataset.state_dict()
    assert json.loads(json.dumps(state)) == state == saved(state)


@pytest.mark.parametrize("lanes", [1, 8])
def test_a_state_is_small_and_does_not_grow_with_completed_work(tmp_path: Path, lanes: int) -> None:
    num_rows = write_corpus(tmp_path, files=((1000, 900), (2000,), (1100,)))
    dataset = StatefulShardedDataset(tmp_path, shuffle=True, lanes=lanes, shard_rows=500)
    sizes = []
    for done, _ in enumerate(dataset, start=1):
        if done in (num_rows // 100, num_rows * 99 // 100):
            state = dataset.state_dict()
            sizes.append(len(json.dumps(state)) - len(state["files"]))
    assert max(sizes) < 2048
    # Only the number of digits of the positions grows.
    assert sizes[1] - sizes[0] <= 3 * (lanes + 1)


def test_the_state_of_several_workers_is_small_too(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    loader = make_loader(tmp_path, num_workers=4)
    next(iter(loader))
    for worker in loader.state_dict()["_snapshot"]["_worker_snapshots"].values():
        state = worker["dataset_state"]
        assert len(json.dumps(state)) - len(state["files"]) < 2048


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_is_in_a_state_a_manifest_a_repr_a_log_or_an_error(
    tmp_path: Path, memory_url: str, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    upload(tmp_path, memory_url, kind)
    options = {"token": CANARY, "client_kwargs": {"secret": CANARY}}
    dataset = StatefulShardedDataset(memory_url, batch_size=4, shuffle=True, storage_options=options)
    local = StatefulShardedDataset(tmp_path, batch_size=4, shuffle=True)
    assert ids(dataset) == ids(local)
    dataset.manifest.save(f"{memory_url}/_manifest.json", storage_options=options)
    seen = [str(dataset.state_dict()), repr(dataset), repr(dataset.manifest), str(vars(dataset))]
    seen.append(fsspec.filesystem("memory").cat("/states/_manifest.json").decode("latin1"))
    other: Literal["parquet", "arrow"] = "arrow" if kind == "parquet" else "parquet"
    for bad in (
        lambda: StatefulShardedDataset(f"{memory_url}/nowhere", storage_options=options),
        lambda: StatefulShardedDataset(memory_url, columns=["none"], storage_options=options),
        lambda: StatefulShardedDataset(memory_url, format=other, storage_options=options),
        lambda: dataset.load_state_dict({**local.state_dict(), "fingerprint": "0", "seed": 3}),
    ):
        with pytest.raises(LanewayError) as error:
            bad()
        seen += [str(error.value), repr(error.value), repr(error.value.__cause__)]
    name = f"/states/part-006.{'parquet' if kind == 'parquet' else 'arrow'}"
    with fsspec.filesystem("memory").open(name, "wb") as file:
        file.write(b"damaged")
    with pytest.raises(LanewayError) as error:
        list(dataset)
    seen += [str(error.value), repr(error.value), caplog.text]
    assert not [text for text in seen if CANARY in text]


def test_no_secret_is_in_the_error_of_an_endpoint_that_does_not_answer() -> None:
    options = {
        "key": "an-access-key",
        "secret": CANARY,
        "client_kwargs": {"endpoint_url": f"http://user:{CANARY}@127.0.0.1:9"},
        "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1},
    }
    with pytest.raises(DataFileError, match=r"s3://bucket/data") as error:
        StatefulShardedDataset("s3://bucket/data", storage_options=options, retries=RetryPolicy(max_attempts=2))
    assert CANARY not in str(error.value) + repr(error.value) + repr(error.value.__cause__)


def test_a_state_holds_no_path_outside_the_dataset(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    dataset = StatefulShardedDataset(tmp_path / "corpus")
    assert not any(str(tmp_path) in str(value) for value in dataset.state_dict().values())
    assert list(decode_files(dataset.state_dict()["files"])) == [f"part-{i:03}.parquet" for i in range(7)]


def test_a_dataset_given_a_manifest_reads_no_footer(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    manifest = Manifest.scan(tmp_path / "corpus")
    manifest.save(tmp_path / "manifest.json")
    state = StatefulShardedDataset(tmp_path / "corpus", batch_size=4).state_dict()
    moved = (tmp_path / "corpus").rename(tmp_path / "hidden")
    dataset = StatefulShardedDataset(Manifest.load(tmp_path / "manifest.json"), batch_size=4)
    dataset.load_state_dict(state)
    assert len(dataset) == 12
    with pytest.raises(DataFileError, match=r"part-000\.parquet"):
        next(iter(dataset))
    moved.rename(tmp_path / "corpus")
    assert len(list(dataset)) == 12


@pytest.mark.parametrize("shuffle", [False, True])
def test_completed_shards_are_those_whose_rows_were_all_delivered(tmp_path: Path, shuffle: bool) -> None:
    num_rows = write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, shuffle=shuffle, shard_rows=4, window_bytes=300)
    starts = dict(zip(dataset.manifest.files.paths, first_rows(dataset), strict=True))
    assert dataset.completed_shards() == []
    delivered: set[int] = set()
    for row in dataset:
        delivered.add(row["id"])
        expected = [
            shard
            for shard in dataset.shards
            if delivered >= {starts[shard.path] + shard.row_offset + i for i in range(shard.row_length)}
        ]
        assert dataset.completed_shards() == expected
    assert dataset.completed_shards() == list(dataset.shards)
    assert sum(shard.row_length for shard in dataset.shards) == num_rows
    assert dataset.shards[0] == Shard("part-000.parquet", 0, 5)


def first_rows(dataset: StatefulShardedDataset) -> list[int]:
    files = dataset.manifest.files
    found: list[int] = files.block_row_starts[files.block_starts[:-1]].tolist()
    return found


def test_a_pickled_dataset_resumes_from_its_loaded_state(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=4, shuffle=True)
    batches = iter(dataset)
    first = next(batches)["id"].tolist()
    restored = StatefulShardedDataset(tmp_path, batch_size=4, shuffle=True)
    restored.load_state_dict(dataset.state_dict())
    copy: Any = pickle.loads(pickle.dumps(restored))
    assert [first, *ids(copy)] == ids(StatefulShardedDataset(tmp_path, batch_size=4, shuffle=True))


def test_the_repr_shows_files_rows_order_batches_rank_and_epoch(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    text = repr(StatefulShardedDataset(tmp_path, batch_size=4, shuffle=True, seed=9, rank=1, world_size=3))
    for fact in ("7 files", "48 rows", "shuffled with seed 9", "batches of 4 rows as torch", "rank 1 of 3", "epoch 0"):
        assert fact in text
