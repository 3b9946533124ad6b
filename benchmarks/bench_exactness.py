"""Which rows does a job lose or repeat when it stops mid-epoch and resumes, on the same or other ranks and workers?

A job of two ranks with two workers each reads a shuffled epoch, and stops after some batches. Another job loads what it
saved and reads the rest: on as many ranks and workers, with three workers per rank, or on three ranks. Every rank is a
process of torch.distributed. Printed is how many rows were lost and how many were repeated, or the first error.

Each library saves and loads as its documentation recommends. Where each rank has a state of its own, a new rank without
one loads that of rank 0. Libraries that are not installed are skipped.
Run `python benchmarks/bench_exactness.py [--short] [NAME ...]`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import tempfile
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUM_ROWS, NUM_FILES, GROUP_ROWS = 12_000, 12, 250
BATCH_ROWS = 48
NUM_BATCHES = 20
"""Batches that each rank takes before the job stops."""
START = (2, 2)
"""Ranks, and workers of each."""
MOVES = {"the same": (2, 2), "3 workers": (2, 3), "3 ranks": (3, 2)}
TIMEOUT_S = 240


class Job(Protocol):
    """One rank of a job that reads an epoch."""

    def batches(self) -> Iterator[list[int]]:
        """Yield the ids of the rows of each batch."""

    def save(self) -> Any:  # noqa: ANN401 - each library has a type of its own
        """Return what this rank saves."""

    def load(self, states: list[Any]) -> None:
        """Resume from what all ranks saved."""


def _load_module(name: str) -> Any:  # noqa: ANN401 - the types of optional libraries are unknown
    return importlib.import_module(name)


def _own(states: list[Any]) -> Any:  # noqa: ANN401 - as in Job
    rank = dist.get_rank()
    return states[rank if rank < len(states) else 0]


class Loader:
    """A job whose loader has the state."""

    def __init__(self, loader: Any, *, one_for_all: bool = False) -> None:  # noqa: ANN401 - any library's loader
        self.loader = loader
        self.one_for_all = one_for_all

    def batches(self) -> Iterator[list[int]]:
        """Yield the ids of the rows of each batch."""
        for batch in self.loader:
            ids = batch["id"]
            yield ids.tolist() if hasattr(ids, "tolist") else [int(each) for each in ids]

    def save(self) -> Any:  # noqa: ANN401 - as in Job
        """Return what this rank saves."""
        return self.loader.state_dict()

    def load(self, states: list[Any]) -> None:
        """Resume from the state of rank 0, or from the rank's own."""
        self.loader.load_state_dict(states[0] if self.one_for_all else _own(states))


def open_laneway(folder: Path, num_workers: int) -> Job:
    """Open the Parquet files with laneway: rank 0 saves for all."""
    laneway = _load_module("laneway")
    dataset = laneway.StatefulShardedDataset(folder / "parquet", shuffle=True, batch_size=BATCH_ROWS)
    return Loader(laneway.SavableLoader(dataset, num_workers=num_workers), one_for_all=True)


def open_datasets(folder: Path, num_workers: int) -> Job:
    """Open the Parquet files with a streaming dataset of HF datasets, in a StatefulDataLoader."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    datasets = _load_module("datasets")
    files = sorted(map(str, (folder / "parquet").glob("*.parquet")))
    dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    dataset = dataset.shuffle(seed=0, buffer_size=1_000, max_buffer_input_shards=1)
    dataset = _load_module("datasets.distributed").split_dataset_by_node(
        dataset, dist.get_rank(), dist.get_world_size()
    )
    loader = _load_module("torchdata.stateful_dataloader").StatefulDataLoader
    return Loader(loader(dataset, batch_size=BATCH_ROWS, num_workers=num_workers))


class _Ids(torch.utils.data.Dataset[dict[str, int]]):
    def __init__(self, folder: Path) -> None:
        self.ids: list[Any] = pq.read_table(folder / "parquet", columns=["id"])["id"].to_pylist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"id": self.ids[index]}


def open_torchdata(folder: Path, num_workers: int) -> Job:
    """Open a map-style dataset with torchdata's StatefulDataLoader and StatefulDistributedSampler."""
    sampler = _load_module("torchdata.stateful_dataloader.sampler").StatefulDistributedSampler
    loader = _load_module("torchdata.stateful_dataloader").StatefulDataLoader
    dataset = _Ids(folder)
    return Loader(loader(dataset, batch_size=BATCH_ROWS, num_workers=num_workers, sampler=sampler(dataset)))


def open_litdata(folder: Path, num_workers: int) -> Job:
    """Open files of litdata's format with its loader: the state of rank 0 is that of the job."""
    litdata = _load_module("litdata")
    # drop_last is what it needs for several ranks.
    dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, drop_last=True, seed=0)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH_ROWS, num_workers=num_workers)
    return Loader(loader, one_for_all=True)


def open_streaming(folder: Path, num_workers: int) -> Job:
    """Open files of mosaicml-streaming's format with its loader: the state of rank 0 is that of the job."""
    streaming = _load_module("streaming")
    _load_module("streaming.base.util").clean_stale_shared_memory()  # of jobs that were stopped
    dataset = streaming.StreamingDataset(
        local=str(folder / "streaming"), shuffle=True, shuffle_seed=0, batch_size=BATCH_ROWS
    )
    loader = streaming.StreamingDataLoader(dataset, batch_size=BATCH_ROWS, num_workers=num_workers)
    return Loader(loader, one_for_all=True)


class LanceJob(Loader):
    """A job whose dataset has the state, which is merged from all ranks."""

    def save(self) -> Any:  # noqa: ANN401 - as in Job
        """Return what this rank saves."""
        return self.loader._streaming_dataset.state_dict()  # noqa: SLF001 - set below

    def load(self, states: list[Any]) -> None:
        """Resume from the merged states."""
        streaming = _load_module("lancedb.streaming")
        dataset = self.loader._streaming_dataset  # noqa: SLF001 - as above
        dataset.load_state_dict(streaming.StreamingDataset.merge_state_dicts(states))


def open_lancedb(folder: Path, num_workers: int) -> Job:
    """Open a Lance table with LanceDB's StreamingDataset, in as many splits as all moves can share."""
    streaming = _load_module("lancedb.streaming")
    table = _load_module("lancedb").connect(str(folder / "lancedb")).open_table("rows")
    dataset = streaming.StreamingDataset(
        table, num_splits=12, shuffle_seed=0, rank=dist.get_rank(), world_size=dist.get_world_size()
    )
    # Threads of Lance don't survive a fork.
    loader = streaming.StreamingDataLoader(
        dataset, batch_size=BATCH_ROWS, num_workers=num_workers, multiprocessing_context="spawn"
    )
    return LanceJob(loader)


class EnergonJob(Loader):
    """A job whose loader calls its methods otherwise."""

    def save(self) -> Any:  # noqa: ANN401 - as in Job
        """Return what this rank saves."""
        return self.loader.save_state_rank()

    def load(self, states: list[Any]) -> None:
        """Resume from the state of this rank."""
        self.loader.restore_state_rank(_own(states))

    def batches(self) -> Iterator[list[int]]:
        """Yield the ids of the rows of each batch: the loader repeats the epoch forever."""
        for batch in self.loader:
            yield [int(key.split("/")[-1]) for key in batch.__key__]


def open_energon(folder: Path, num_workers: int) -> Job:
    """Open files of WebDataset's format with Megatron-Energon: each row once, as in its validation datasets."""
    energon = _load_module("megatron.energon")
    config = energon.WorkerConfig(rank=dist.get_rank(), world_size=dist.get_world_size(), num_workers=num_workers)
    dataset = energon.get_train_dataset(
        str(folder / "energon"),
        worker_config=config,
        batch_size=BATCH_ROWS,
        shuffle_buffer_size=100,
        max_samples_per_sequence=100,
        repeat=False,
    )
    return EnergonJob(energon.get_savable_loader(dataset))


def _rows(path: str) -> Iterator[dict[str, Any]]:
    for i in pq.read_table(path)["id"].to_pylist():
        yield {"id": i}


def write_litdata(folder: Path) -> None:
    """Write the rows in the format of litdata."""
    files = sorted(map(str, (folder / "parquet").glob("*.parquet")))
    _load_module("litdata").optimize(
        fn=_rows, inputs=files, output_dir=str(folder / "litdata"), chunk_size=GROUP_ROWS, num_workers=1
    )


def write_streaming(folder: Path) -> None:
    """Write the rows in the format of mosaicml-streaming, in shards of about a row group."""
    with _load_module("streaming").MDSWriter(
        out=str(folder / "streaming"), columns={"id": "int64"}, size_limit=4_000
    ) as writer:
        for i in range(NUM_ROWS):
            writer.write({"id": np.int64(i)})


def write_lancedb(folder: Path) -> None:
    """Write the rows as a Lance table."""
    _load_module("lancedb").connect(str(folder / "lancedb")).create_table("rows", pa.table({"id": range(NUM_ROWS)}))


def write_energon(folder: Path) -> None:
    """Write the rows as WebDataset shards, and energon's index of them."""
    import io  # noqa: PLC0415 - for this library only
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415
    import tarfile  # noqa: PLC0415

    target = folder / "energon"
    target.mkdir()
    rows_per_shard = NUM_ROWS // NUM_FILES
    for shard in range(NUM_FILES):
        with tarfile.open(target / f"shard-{shard:03d}.tar", "w") as tar:
            for i in range(shard * rows_per_shard, (shard + 1) * rows_per_shard):
                data = str(i).encode()
                info = tarfile.TarInfo(f"{i:06d}.txt")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    command = Path(sys.executable).with_name("energon")
    answers = "\n".join(["y"] * 10)
    subprocess.run(  # its own tool
        [command, "prepare", "--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "TextSample",
         "--field-map", '{"text": "txt"}', str(target)],
        input=answers, text=True, check=True, capture_output=True,
    )  # fmt: skip


LIBRARIES: dict[str, tuple[str, Callable[[Path, int], Job], Callable[[Path], None] | None]] = {
    "laneway": ("laneway", open_laneway, None),
    "HF datasets": ("datasets", open_datasets, None),
    "torchdata": ("torchdata", open_torchdata, None),
    "litdata": ("litdata", open_litdata, write_litdata),
    "mosaicml-streaming": ("streaming", open_streaming, write_streaming),
    "lancedb": ("lancedb", open_lancedb, write_lancedb),
    "energon": ("megatron.energon", open_energon, write_energon),
}
"""Name -> its module, how it is opened on one rank, and how its files are written."""


def run_rank(name: str, folder: Path, rank: int, topology: tuple[int, int], num_batches: int | None) -> None:
    """Read as one rank, and write the rows, the state, or the error to files."""
    world_size, num_workers = topology
    local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)}
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), **local)
    warnings.simplefilter("ignore")
    report: dict[str, Any] = {"ids": []}
    try:
        store = f"file://{folder}/store"
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29655")
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
        job = LIBRARIES[name][1](folder, num_workers)
        if num_batches is None:
            count = START[0]
            job.load([torch.load(folder / f"state-{i}.pt", weights_only=False) for i in range(count)])
        for step, ids in enumerate(job.batches(), start=1):
            report["ids"] += ids
            if step == num_batches:
                torch.save(job.save(), folder / f"state-{rank}.pt")
                break
        dist.barrier()
    except Exception as error:  # noqa: BLE001 - any error is a result
        message = str(error).strip().splitlines()
        report["error"] = f"{type(error).__name__}: {message[-1] if message else ''}"[:160]
    (folder / f"report-{rank}.json").write_text(json.dumps(report), encoding="utf-8")
    os._exit(0)  # not all of them let a process end


def run_job(
    name: str, folder: Path, topology: tuple[int, int], num_batches: int | None = None
) -> tuple[list[int], str]:
    """Run all ranks; return the rows of all of them, and the first error or ""."""
    for path in [folder / "store", *folder.glob("report-*.json")]:
        path.unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=run_rank, args=(name, folder, rank, topology, num_batches))
        for rank in range(topology[0])
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("report-*.json"))]
    # A rank that fails makes others fail too, in the barrier.
    errors = sorted((report["error"] for report in reports if "error" in report), key=lambda error: "gloo" in error)
    if len(reports) < topology[0] and not errors:
        errors = [f"hangs ({TIMEOUT_S} s)"]
    return [i for report in reports for i in report["ids"]], (errors or [""])[0]


def compare(name: str, folder: Path, topology: tuple[int, int]) -> str:
    """Stop, resume on a topology, and return what happened to the rows."""
    before, error = run_job(name, folder, START, NUM_BATCHES)
    if error:
        return f"first job: {error}"
    after, error = run_job(name, folder, topology)
    if error:
        return error
    counts = Counter(before + after)
    lost = NUM_ROWS - len(counts)
    repeated = sum(count - 1 for count in counts.values())
    return f"{lost} lost, {repeated} repeated"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(LIBRARIES)}")
    parser.add_argument("--short", action="store_true", help="laneway only")
    arguments = parser.parse_args()
    names = arguments.names or (["laneway"] if arguments.short else list(LIBRARIES))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "parquet").mkdir()
        rows_per_file = NUM_ROWS // NUM_FILES
        for i in range(NUM_FILES):
            table = pa.table({"id": range(i * rows_per_file, (i + 1) * rows_per_file)})
            pq.write_table(table, folder / "parquet" / f"part-{i:03d}.parquet", row_group_size=GROUP_ROWS)
        for name in names:
            module, _, write = LIBRARIES[name]
            found = None
            with suppress(ImportError):
                found = importlib.util.find_spec(module)
            if found is None:
                print(f"{name}: not installed")
                continue
            if write is not None:
                write(folder)
            for move, topology in MOVES.items():
                print(f"{name:20} {move:12} {compare(name, folder, topology)}", flush=True)


if __name__ == "__main__":
    main()
