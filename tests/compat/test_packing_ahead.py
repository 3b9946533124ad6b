"""The functions of a group of rows are called while the packs of the group before are delivered."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import StatefulShardedDataset

if TYPE_CHECKING:
    from pathlib import Path

NUM_ROWS, GROUP_ROWS, NUM_TOKENS, LENGTH = 3000, 1000, 640, 2048
PACKS_OF_GROUP = 334
"""Three documents fill a pack."""


class Tokenizer:
    """Makes documents of equal lengths, notes how many, and fails at a row until it is mended."""

    def __init__(self, broken_row: int | None = None) -> None:
        self.num_calls = 0
        self.broken_row = broken_row

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.num_calls += 1
        if row["id"] == self.broken_row:
            message = "broken on purpose"
            raise ValueError(message)
        return {"input_ids": [row["id"]] * NUM_TOKENS}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"id": range(NUM_ROWS)}), tmp_path / "part-0.parquet", row_group_size=100)
    return tmp_path


def packs_of(corpus: Path, tokenise: Tokenizer) -> StatefulShardedDataset:
    return StatefulShardedDataset(corpus).map(tokenise).pack(LENGTH, group_rows=GROUP_ROWS).batch(2)


def first_tokens(batches: Any) -> list[int]:
    return [token for batch in batches for token in batch["input_ids"][:, 0].tolist()]


def test_functions_are_called_a_few_rows_at_a_time_after_the_first_group(corpus: Path) -> None:
    tokenise = Tokenizer()
    calls = [tokenise.num_calls for _ in packs_of(corpus, tokenise)]
    assert calls[0] == GROUP_ROWS
    assert calls[-1] == NUM_ROWS
    assert max(after - before for before, after in pairwise(calls)) < GROUP_ROWS / 3


def test_a_row_that_fails_ahead_is_an_error_after_the_packs_before_it(corpus: Path) -> None:
    expected = first_tokens(packs_of(corpus, Tokenizer()))
    tokenise = Tokenizer(broken_row=GROUP_ROWS + 10)
    packs = packs_of(corpus, tokenise)
    batches = iter(packs)
    found = first_tokens(islice(batches, PACKS_OF_GROUP // 2))
    with pytest.raises(ValueError, match="broken on purpose"):
        next(batches)
    assert found == expected[:PACKS_OF_GROUP]
    tokenise.broken_row = None
    assert found + first_tokens(batches) == expected
