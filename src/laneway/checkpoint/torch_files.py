"""Reads the files that torch.distributed.checkpoint writes, large tensors straight into the memory of the job."""

from __future__ import annotations

import io
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.planner import LoadItemType
from torch.futures import Future

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

DIRECT_BYTES = 1 << 20
"""Smaller tensors are read by torch.load alone: the place of their bytes would take longer to find."""
_RECORD = "data/0"
"""Name of the bytes of the only storage in a file of torch.save."""


class TorchFilesReader(FileSystemReader):
    """Reads like its base class, in the order of the files, and without a copy of each large tensor."""

    def __init__(self, name: str, files: FileSystem) -> None:
        """Read which tensors there are.

        Args:
            name: The folder of the checkpoint.
            files: Its files.
        """
        super().__init__(name)
        self.fs = files
        self.metadata = super().read_metadata()
        """Which tensors there are, and where."""

    def read_metadata(self, *_: object, **__: object) -> Metadata:
        """Return which tensors there are."""
        return self.metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what is planned into the tensors of the job."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for file, items in by_file.items():
            with self.fs.create_stream(self.fs.concat_path(self.path, file), "rb") as stream:
                for item in sorted(items, key=lambda each: self.storage_data[each.storage_index].offset):
                    self._read_item(stream, item, planner)
        found: Future[None] = Future()
        found.set_result(None)
        return found

    def _read_item(self, stream: io.IOBase, item: ReadItem, planner: LoadPlanner) -> None:
        place = self.storage_data[item.storage_index]
        part: IO[bytes] = self._slice_file(stream, place)
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, io.BytesIO(part.read(-1)))
            return
        if place.length < DIRECT_BYTES:
            # At once: torch.load makes many reads, each of a few bytes.
            part = io.BytesIO(part.read(-1))
        target = planner.resolve_tensor(item).detach()
        if place.length < DIRECT_BYTES or not _read_into(part, target, item):
            part.seek(0)
            saved = torch.load(part, map_location="cpu", weights_only=True)
            target.copy_(_narrowed(saved, item))
        planner.commit_tensor(item, target)


def _narrowed(saved: torch.Tensor, item: ReadItem) -> torch.Tensor:
    """Return the part of a saved tensor that is wanted."""
    for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        saved = saved.narrow(dimension, start, length)
    return saved


def _read_into(file: IO[bytes], target: torch.Tensor, item: ReadItem) -> bool:
    """Read the bytes of a saved tensor straight into `target`; return False if they have another form there."""
    with torch.serialization.skip_data():
        saved = torch.load(file, map_location="cpu", weights_only=True)
    if not (
        saved.size() == target.size() == item.lengths
        and saved.dtype == target.dtype
        and target.is_cpu
        and not any(each.is_conj() or each.is_neg() or not each.is_contiguous() for each in (saved, target))
    ):
        return False
    file.seek(0)
    # Private and not typed, but there is no public way to find the bytes of a tensor.
    records: Any = torch._C.PyTorchFileReader(file)  # noqa: SLF001
    if records.get_record("byteorder").decode() != sys.byteorder:
        return False
    file.seek(records.get_record_offset(_RECORD))
    array: Any = target.flatten().view(torch.uint8).numpy()
    memory = memoryview(array)
    return cast("io.RawIOBase", file).readinto(memory) == memory.nbytes


@contextmanager
def without_zip_checksums() -> Iterator[None]:
    """Have torch.save, in this thread, leave out the checksums of zip files, which torch.load doesn't compare."""
    before: Any = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
