"""Shared by the tests of object storage: a server, the proxy in front of it, and corpora in its bucket."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from laneway import SavableLoader, StatefulShardedDataset
from tests.corpora import UNEQUAL_FILES, Kind, write_corpus
from tests.storage.fault_proxy import FaultProxy, fault_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.storage.servers import S3Server

BUCKET = "bucket"
THOROUGH = os.environ.get("LANEWAY_STORAGE_TESTS") == "all"
"""Whether to run all tests, as `make test-storage` does; too slow for CI."""
_NUMBERS = count()


@dataclass(frozen=True)
class Bed:
    """A server with a proxy in front of it, and the corpora in its bucket."""

    server: S3Server
    proxy: FaultProxy

    @property
    def options(self) -> dict[str, Any]:
        """Storage options that lead through the proxy."""
        return self.server.options(self.proxy.endpoint)

    def upload(self, folder: Path) -> str:
        """Upload a folder under a new prefix; return its URL."""
        prefix = f"corpus-{next(_NUMBERS):04}"
        self.server.upload(folder, BUCKET, f"{prefix}/")
        return f"s3://{BUCKET}/{prefix}"

    def corpus(self, folder: Path, kind: Kind = "parquet", files: tuple[tuple[int, ...], ...] = UNEQUAL_FILES) -> str:
        """Write a corpus into a folder and upload it; return its URL."""
        write_corpus(folder, kind, files)
        return self.upload(folder)

    def put(self, url: str, data: bytes) -> None:
        """Store an object at a URL of the bucket."""
        self.server.put(BUCKET, url.removeprefix(f"s3://{BUCKET}/"), data)

    def dataset(self, url: str, **arguments: Any) -> StatefulShardedDataset:
        """Return a shuffled dataset of small shards and windows, read through the proxy."""
        given = {"shuffle": True, "seed": 5, "shard_rows": 4, "window_bytes": 200, "batch_size": 3, **arguments}
        return StatefulShardedDataset(url, **{"storage_options": self.options, **given})

    def savable(self, url: str, num_workers: int = 0, **arguments: Any) -> SavableLoader:
        """Return a SavableLoader over such a dataset."""
        return SavableLoader(self.dataset(url, **arguments), num_workers=num_workers)


@contextmanager
def bed(server: Callable[[str], AbstractContextManager[S3Server]]) -> Iterator[Bed]:
    """Run a server and a proxy in front of it."""
    with server(BUCKET) as running, fault_proxy(running.endpoint, running.key, running.secret) as proxy:
        yield Bed(running, proxy)


def ids(batches: Iterable[Any]) -> list[list[int]]:
    """Return the row ids of each batch."""
    return [batch["id"].tolist() for batch in batches]


def flat(batches: Iterable[list[int]]) -> list[int]:
    """Return the row ids of all batches in one list."""
    return [row for batch in batches for row in batch]
