"""Composer is not supported, and says so: its Trainer asks the dataset for a state after a number of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from laneway import StatefulShardedDataset
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path


def test_the_call_of_its_checkpoints_is_an_error(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset: Any = StatefulShardedDataset(tmp_path)
    with pytest.raises(TypeError, match="state_dict"):
        dataset.state_dict(12, True)  # noqa: FBT003 - as composer.core.State calls it
