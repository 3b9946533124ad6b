"""How many rows per second come from an S3 server with each client, and what does latency cost?

Starts Ceph's S3 server (scripts/ceph_rgw.py; moto if Ceph isn't installed, which is much slower and only allows to
compare requests) and reads the corpora of corpora.py from it in file order, in batches of 256 rows: laneway with s3fs,
pyarrow's client and obstore; raw pyarrow fragments with the same clients, three row groups ahead; and other installed
libraries. Each runs in a separate process, interleaved, over a link that delays requests by 0 or 20 ms and counts them.
Rates exclude the first batch.
Run `python benchmarks/bench_s3.py [--short] [--json PATH] [--only WORD]`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs

from laneway import StatefulShardedDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.corpora import CorpusName, make_corpus
    from benchmarks.peers import BATCH_ROWS, _tensors_of
    from benchmarks.slow_link import SlowLink, slow_link
else:
    from corpora import make_corpus
    from peers import BATCH_ROWS, _tensors_of
    from slow_link import slow_link

BUCKET = "bench"
REGION = "us-east-1"
LATENCIES_MS = (0, 20)
READ_AHEAD = 3
REPEATS = 3
MAX_SECONDS = 60
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, repr=False)
class Access:
    """Endpoint and keys of the server."""

    endpoint: str
    key: str
    secret: str

    @property
    def s3fs(self) -> dict[str, Any]:
        """Storage options for s3fs."""
        return {"key": self.key, "secret": self.secret, "client_kwargs": {"endpoint_url": self.endpoint}}

    def filesystem(self, client: str) -> Any:  # noqa: ANN401 - of pyarrow, or of fsspec
        """Return a filesystem of s3fs, pyarrow or obstore."""
        if client == "pyarrow":
            return pyarrow.fs.S3FileSystem(
                access_key=self.key, secret_key=self.secret, endpoint_override=self.endpoint, region=REGION
            )
        if client == "obstore":
            return importlib.import_module("obstore.fsspec").FsspecStore(
                "s3",
                access_key_id=self.key,
                secret_access_key=self.secret,
                endpoint=self.endpoint,
                region=REGION,
                virtual_hosted_style_request=False,
                client_options={"allow_http": True},
            )
        return fsspec.filesystem("s3", **self.s3fs)


@dataclass(frozen=True, slots=True)
class Reading:
    """The files to read."""

    access: Access
    folder: str
    """Bucket and prefix."""
    num_rows: int
    """Number of rows in the folder."""


def open_laneway(reading: Reading, client: str) -> Iterable[Any]:
    """Return a dataset that yields batches."""
    options: dict[str, Any] = {"storage_options": reading.access.s3fs}
    if client != "s3fs":
        options = {"filesystem": reading.access.filesystem(client)}
    source = f"s3://{reading.folder}" if client == "s3fs" else reading.folder
    return StatefulShardedDataset(source, batch_size=BATCH_ROWS, cache_dir=False, **options)


def open_raw(reading: Reading, client: str) -> Iterator[Any]:
    """Yield batches of pyarrow's fragments, one per row group, some of them read ahead by threads."""
    filesystem = reading.access.filesystem(client)
    if not isinstance(filesystem, pyarrow.fs.FileSystem):
        handler: Any = pyarrow.fs.FSSpecHandler  # abstract according to its stubs
        filesystem = pyarrow.fs.PyFileSystem(handler(filesystem))
    ranges = pa.CacheOptions(hole_size_limit=1 << 20, range_size_limit=32 << 20, lazy=False)
    scan = ds.ParquetFragmentScanOptions(pre_buffer=True, cache_options=ranges)
    file_format = ds.ParquetFileFormat(default_fragment_scan_options=scan)
    groups = []
    for info in filesystem.get_file_info(pyarrow.fs.FileSelector(reading.folder)):
        fragment: Any = file_format.make_fragment(info.path, filesystem, file_size=info.size)
        fragment.ensure_complete_metadata()
        groups += [fragment.subset(row_group_ids=[index]) for index in range(fragment.num_row_groups)]
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        ahead: deque[Any] = deque()
        for group in chain(groups, [None] * READ_AHEAD):
            if group is not None:
                ahead.append(pool.submit(group.to_table))
            if len(ahead) > READ_AHEAD or (group is None and ahead):
                table = ahead.popleft().result()
                yield from map(_tensors_of, table.combine_chunks().to_batches(BATCH_ROWS))


def open_datasets(reading: Reading, _: str) -> Iterable[Any]:
    """Return a streaming dataset of HF datasets."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    dataset = importlib.import_module("datasets").load_dataset(
        "parquet",
        data_files=f"s3://{reading.folder}/*.parquet",
        storage_options=reading.access.s3fs,
        split="train",
        streaming=True,
    )
    batches: Iterable[Any] = dataset.with_format("torch").iter(BATCH_ROWS)
    return batches


def open_dataloader_utils(reading: Reading, _: str) -> Iterable[Any]:
    """Return torch-dataloader-utils."""
    loader, _dataset = importlib.import_module("torch_dataloader_utils").StructuredDataset.create_dataloader(
        f"s3://{reading.folder}",
        "parquet",
        batch_size=BATCH_ROWS,
        num_workers=0,
        output_format="arrow",
        collate_fn=_tensors_of,
        storage_options=reading.access.s3fs,
    )
    batches: Iterable[Any] = loader
    return batches


CONTENDERS: dict[str, tuple[str, Callable[[Reading, str], Iterable[Any]], str]] = {
    **{f"laneway {client}": (client, open_laneway, client) for client in ("s3fs", "pyarrow", "obstore")},
    **{f"raw {client}": (client, open_raw, client) for client in ("s3fs", "pyarrow", "obstore")},
    "datasets": ("datasets", open_datasets, ""),
    "torch-dataloader-utils": ("torch_dataloader_utils", open_dataloader_utils, ""),
}
"""Name -> required module, function that opens it, client."""


def measure(contender: str, reading: Reading) -> dict[str, float]:
    """Return the rate of one pass after its first batch, and the seconds to that batch; check that it is complete."""
    _, opener, client = CONTENDERS[contender]
    try:
        items = iter(opener(reading, client))
        start = time.perf_counter()
        rows = first_rows = _num_rows(next(items))
        first_s = time.perf_counter() - start
        for item in items:
            rows += _num_rows(item)
            if time.perf_counter() - start > MAX_SECONDS:
                break
        seconds = time.perf_counter() - start
    except Exception as error:  # noqa: BLE001 - an error of one library must not stop the others
        message = f"{type(error).__name__}: {error}"
        raise RuntimeError(message) from None
    if seconds < MAX_SECONDS and rows != reading.num_rows:
        message = f"delivered {rows:,} rows of {reading.num_rows:,}"
        raise RuntimeError(message)
    return {"rows/s": (rows - first_rows) / (seconds - first_s), "first batch s": first_s}


def _num_rows(item: Any) -> int:  # noqa: ANN401 - each library has its own
    tokens = item.get("tokens")
    if tokens is not None:
        # Touch each cache line, because views are free until then.
        tokens.reshape(-1)[:: 64 // tokens.element_size()].sum()
    return len(next(iter(item.values())))


def _quietly() -> None:
    warnings.simplefilter("ignore")
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)


@contextmanager
def server() -> Iterator[tuple[str, dict[str, str]]]:
    """Run an S3 server; yields its name and its access data."""
    command = [sys.executable, str(ROOT / "scripts" / "ceph_rgw.py"), "--json", "--until-stdin-closes"]
    name = "Ceph RGW"
    if not shutil.which("radosgw"):
        print("Ceph's S3 server is not installed (scripts/ceph_rgw.py --install); using moto, which is slow")
        name, command = "moto", [sys.executable, str(ROOT / "tests" / "storage" / "moto_server.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it was started with pipes
            yield name, {"key": "key", "secret": "secret", **json.loads(process.stdout.readline())}
        finally:
            process.kill()


def compare(
    link: SlowLink, pools: dict[str, ProcessPoolExecutor], reading: Reading, latency_ms: float, repeats: int
) -> dict[str, Any]:
    """Return a row of the table: interleaved passes, after one uncounted pass each."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in pools}
    counts: dict[str, dict[str, int]] = {}
    errors: dict[str, str] = {}
    for repeat in range(repeats + 1):
        for name in [name for name in pools if name not in errors]:
            link.set_latency(latency_ms)
            try:
                result = pools[name].submit(measure, name, reading).result()
            except (RuntimeError, OSError) as error:
                errors[name] = str(error)
                continue
            counts[name] = link.set_latency(0)
            if repeat:
                found[name].append(result)
    medians = {
        name: {key: median(each[key] for each in passes) for key in passes[0]}
        for name, passes in found.items()
        if passes and name not in errors
    }
    return {"folder": reading.folder, "latency ms": latency_ms, "passes": medians, "crossed": counts, "errors": errors}


def show(row: dict[str, Any], before: dict[str, Any] | None) -> None:
    """Print the results of one corpus at one latency, compared with no latency."""
    print(f"\n{row['folder']}, {row['latency ms']} ms: rows/s, ratio to raw with the same client, seconds to the first")
    print("batch, requests and MB of the last pass, ratio to the rate without latency")
    for name, figures in row["passes"].items():
        raw = row["passes"].get(name.replace("laneway", "raw"))
        ratio = f"{figures['rows/s'] / raw['rows/s']:.2f}" if raw and "laneway" in name else "-"
        crossed = row["crossed"][name]
        requests = f"{crossed.get('GET', 0)} GET {crossed.get('HEAD', 0)} HEAD"
        unharmed = before["passes"].get(name) if before else None
        kept = f"{figures['rows/s'] / unharmed['rows/s']:.2f}" if unharmed else "-"
        megabytes = crossed.get("bytes", 0) / 1e6
        print(
            f"{name:<24}{figures['rows/s']:>12,.0f}{ratio:>8}{figures['first batch s']:>8.2f}"
            f"{requests:>18}{megabytes:>8.0f}{kept:>8}",
            flush=True,
        )
    for name, error in row["errors"].items():
        print(f"  ! {name}: {error.splitlines()[-1][:150]}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="small corpora, one pass per contender")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--only", default="", help="only contenders with one of these words in the name")
    parser.add_argument("--directory", type=Path, help="keep corpora here, for the next run")
    arguments = parser.parse_args()
    contenders = []
    for name, (module, _, _) in CONTENDERS.items():
        if arguments.only and not set(arguments.only.split()) & set(name.split()):
            continue
        if importlib.util.find_spec(module):
            contenders.append(name)
        else:
            print(f"skipped, {module} is not installed: {name}")
    rows: list[dict[str, Any]] = []
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        # Spawned, so that no contender inherits threads or memory of another.
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, spawn, _quietly)) for name in contenders}
        directory = arguments.directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        name, told = stack.enter_context(server())
        print(f"server: {name}; {os.cpu_count()} cores, shared by server, link and client")
        direct = Access(told["endpoint"], told["key"], told["secret"]).filesystem("s3fs")
        direct.mkdir(BUCKET)
        link = stack.enter_context(slow_link(told["endpoint"]))
        access = Access(link.endpoint, told["key"], told["secret"])
        names: tuple[CorpusName, ...] = ("tokens", "tabular")
        for corpus_name in names:
            corpus = make_corpus(corpus_name, directory, "short" if arguments.short else "full")
            direct.put(f"{corpus.folder('parquet')}/", f"{BUCKET}/{corpus_name}/", recursive=True)
            reading = Reading(access, f"{BUCKET}/{corpus_name}", corpus.num_rows)
            before = None
            for latency_ms in LATENCIES_MS:
                repeats = 1 if arguments.short else REPEATS
                rows.append(compare(link, pools, reading, latency_ms, repeats))
                show(rows[-1], before)
                before = before or rows[-1]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
