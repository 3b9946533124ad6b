"""How much memory Arrow allocates."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

_pools: list[pa.MemoryPool] = []
"""All pools ever used: a buffer that outlives its pool would crash the process."""


@contextmanager
def counted_memory() -> Iterator[pa.MemoryPool]:
    """Return a memory pool that counts what is allocated from now on, until the end of the block."""
    default = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(default)
    _pools.append(counting)
    pa.set_memory_pool(counting)
    try:
        yield counting
    finally:
        pa.set_memory_pool(default)
