"""What all tests with real ranks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.corpora import write_corpus
from tests.distributed.ranks import RankPool, RunRanks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def run_ranks() -> Iterator[RunRanks]:
    """Ranks that the tests of a module share: starting them takes longer than most of the tests."""
    pool = RankPool()
    yield pool
    pool.stop()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a dataset of 48 rows, in a folder that tests may put other files into."""
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"
