"""Every format of laneway passes the conformance kit that others use for theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from laneway.formats import FORMATS
from laneway.testing import check_format
from tests.writers import WRITERS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_keeps_its_promises(tmp_path: Path, kind: str) -> None:
    name, write = WRITERS[kind]
    check_format(FORMATS[name], write, tmp_path)


def test_every_format_is_among_them() -> None:
    # Those that a library reads by itself have no files that stand alone.
    alone = {name for name, each in FORMATS.items() if not each.reads_by_itself}
    assert {name for name, _ in WRITERS.values()} == alone
