"""Memory that is shared with workers."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

from laneway.delivery.cells import shared_cells

OPEN_FILES = Path("/proc/self/fd")


class Owner:
    """Owns cells."""


def test_many_owners_share_a_few_file_descriptors() -> None:
    before = len([*OPEN_FILES.iterdir()])
    owners = [Owner() for _ in range(100)]
    cells = [shared_cells(owner, 7) for owner in owners]
    assert len([*OPEN_FILES.iterdir()]) - before <= 4
    for number, each in enumerate(cells):
        each[:] = number
    assert [each.tolist() for each in cells] == [[number] * 7 for number in range(100)]


def test_the_memory_of_an_owner_that_is_gone_is_zeros_for_the_next() -> None:
    owners = [Owner()]
    shared_cells(owners[0], 11)[:] = 5
    addresses = {shared_cells(owners[0], 11).data_ptr()}
    owners.clear()
    gc.collect()
    owner = Owner()
    taken = [shared_cells(owner, 11) for _ in range(32)]
    assert addresses <= {each.data_ptr() for each in taken}
    assert not torch.stack(taken).any()


def test_a_child_process_writes_to_the_memory_that_it_inherited_but_owns_memory_of_its_own() -> None:
    owner = Owner()
    cells = shared_cells(owner, 5)
    if (child := os.fork()) == 0:
        cells[0] = 1
        other = Owner()
        shared_cells(other, 5)[1] = 1
        del owner
        os._exit(0)
    os.waitpid(child, 0)
    assert cells.tolist() == [1, 0, 0, 0, 0]
    rest = Owner()
    assert not torch.stack([shared_cells(rest, 5) for _ in range(31)]).any()
