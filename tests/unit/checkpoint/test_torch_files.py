"""Tensors of every type and layout are read as torch.distributed.checkpoint reads them; large ones without a copy."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from laneway.checkpoint import torch_files
from laneway.checkpoint.files import CheckpointFiles
from laneway.checkpoint.folder import CheckpointFolder
from laneway.checkpoint.layout import Checkpoint
from laneway.checkpoint.torch_calls import load_states, open_states, save_states
from laneway.errors import CheckpointError
from laneway.storage.filesystem import Storage

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int8,
    torch.int64,
    torch.uint16,
    torch.bool,
)
LAYOUTS = {
    "contiguous": lambda each: each,
    "transposed": lambda each: each.t(),
    "a part of another one": lambda each: each[1:, 2:],
    "scalar": lambda each: each[0, 0],
    "empty": lambda each: each[:0],
}


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def everything_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "DIRECT_BYTES", 0)


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(*_: object) -> torch.Tensor:
        raise AssertionError

    monkeypatch.setattr(torch_files, "_narrowed", copied)


def of_type(dtype: torch.dtype) -> torch.Tensor:
    values = torch.arange(35).reshape(5, 7)
    return (values % 2 == 0) if dtype == torch.bool else values.to(dtype)


def saved(root: Path, states: dict[str, Any]) -> tuple[CheckpointFolder, Checkpoint]:
    folder = CheckpointFolder(Storage(root))
    checkpoint = Checkpoint(1, 0)
    folder.create(checkpoint.name)
    with CheckpointFiles(folder, checkpoint.name) as files:
        save_states(files, checkpoint.name, states, None)
    return folder, Checkpoint(1, 0, files=files.written)


def as_bytes(tensor: torch.Tensor) -> list[int]:
    return [*bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())]


@pytest.mark.usefixtures("everything_direct")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["contiguous", "transposed"])
def test_tensors_of_every_type_and_layout_are_read_as_torch_reads_them(
    tmp_path: Path, layout: str, target: str
) -> None:
    states = {str(dtype): LAYOUTS[layout](of_type(dtype)) for dtype in DTYPES}
    folder, checkpoint = saved(tmp_path, states)
    ours, theirs = ({name: empty_like(each, target) for name, each in states.items()} for _ in range(2))
    load_states(open_states(folder, checkpoint, verify=True), ours, None)
    load(theirs, storage_reader=FileSystemReader(tmp_path / checkpoint.name), no_dist=True)
    for name, each in states.items():
        assert as_bytes(ours[name]) == as_bytes(theirs[name]) == as_bytes(each)


def empty_like(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "transposed" and tensor.dim() > 1:
        return torch.empty_strided(tensor.size(), (1, max(1, tensor.size(0))), dtype=tensor.dtype)
    return torch.empty(tensor.size(), dtype=tensor.dtype)


@pytest.mark.usefixtures("everything_direct", "no_copies")
def test_a_tensor_that_is_contiguous_is_read_without_a_copy(tmp_path: Path) -> None:
    states = {str(dtype): of_type(dtype) for dtype in DTYPES}
    folder, checkpoint = saved(tmp_path, states)
    found = {name: torch.empty_like(each) for name, each in states.items()}
    load_states(open_states(folder, checkpoint, verify=True), found, None)
    assert {name: as_bytes(each) for name, each in found.items()} == {
        name: as_bytes(each) for name, each in states.items()
    }


@pytest.mark.usefixtures("everything_direct")
def test_a_tensor_of_another_type_is_converted(tmp_path: Path) -> None:
    folder, checkpoint = saved(tmp_path, {"x": torch.arange(4.0)})
    found = {"x": torch.zeros(4, dtype=torch.float64)}
    load_states(open_states(folder, checkpoint, verify=True), found, None)
    assert found["x"].tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("everything_direct")
def test_a_damaged_byte_anywhere_in_a_file_is_found(tmp_path: Path) -> None:
    folder, checkpoint = saved(tmp_path, {"x": torch.arange(4.0), "y": 3})
    path = tmp_path / checkpoint.name / "__0_0.distcp"
    data = path.read_bytes()
    for place in range(0, len(data), 37):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"damaged: the checksum"):
            load_states(open_states(folder, checkpoint, verify=True), {"x": torch.zeros(4), "y": 0}, None)
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"damaged: it ends after"):
        load_states(open_states(folder, checkpoint, verify=True), {"x": torch.zeros(4), "y": 0}, None)


def test_only_the_thread_that_saves_a_checkpoint_leaves_out_the_checksums_of_zip_files() -> None:
    def look() -> None:
        seen.append(torch.serialization.get_crc32_options())

    seen: list[bool] = []
    with torch_files.without_zip_checksums():
        look()
        other = threading.Thread(target=look)
        other.start()
        other.join()
    look()
    assert seen == [False, True, True]
