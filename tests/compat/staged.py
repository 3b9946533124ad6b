"""Datasets with stages for the tests, and functions to run them: documents of text, and a real tokenizer."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from laneway import Mixture, StatefulShardedDataset
from tests.compat.loaders import saved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from laneway import RowContext

Staged = TypeVar("Staged", StatefulShardedDataset, Mixture)
State = dict[str, Any]
Row = dict[str, Any]

NUM_DOCUMENTS = 53
LENGTH = 16
_WORDS = [
    *("lane", "row", "shard", "turn", "batch", "rank", "worker", "state", "window", "epoch", "pack", "token", "cut"),
    *("plan", "order", "file"),
]


def texts() -> list[str]:
    """Return documents of 0 to 40 words, the same in every process."""
    rng = random.Random(7)
    return [" ".join(rng.choices(_WORDS, k=rng.choice([0, 1, 3, 8, 15, 40]))) for _ in range(NUM_DOCUMENTS)]


@cache
def tokenizer() -> Tokenizer:
    """Return a byte-pair tokenizer that was trained on the documents."""
    made = Tokenizer(models.BPE(unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=60, special_tokens=["?"], show_progress=False))
    return made


def tokens() -> list[list[int]]:
    """Return the tokens of all documents."""
    return [tokenizer().encode(text).ids for text in texts()]


def write_corpus(folder: Path) -> Path:
    """Write the documents to three files: their text, and their tokens as lists of int32."""
    numbers = list(range(NUM_DOCUMENTS))
    for part in range(3):
        rows = numbers[part::3]
        table = pa.table(
            {
                "id": rows,
                "text": [texts()[row] for row in rows],
                "input_ids": pa.array([tokens()[row] for row in rows], pa.list_(pa.int32())),
            }
        )
        pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=5)
    return folder


def tokenise(row: Row) -> Row:
    """Return the tokens of a row, as a step of `map`."""
    return {"input_ids": tokenizer().encode(row["text"]).ids}


def in_sentences(row: Row) -> Iterator[Row]:
    """Yield some words of a row at a time: nothing for an empty one, and nothing for every seventh."""
    words = row["text"].split()
    if row["id"] % 7 == 0:
        return
    for start in range(0, len(words), 4):
        yield {"id": row["id"], "start": start, "text": " ".join(words[start : start + 4])}


def jittered(row: Row, context: RowContext) -> Row:
    """Return a random part of the tokens of a row, which is the same after any resume."""
    ids = tokenizer().encode(row["text"]).ids
    return {"input_ids": ids[: context.rng.integers(len(ids) + 1)]}


def make_dataset(folder: Path, kind: str, **arguments: Any) -> StatefulShardedDataset:
    """Return a shuffled dataset of small windows with stages, or with none for "rows"."""
    settings = {"shard_rows": 5, "window_bytes": 2000, "seed": 3, "shuffle": True, **arguments}
    dataset = StatefulShardedDataset(folder, **settings)
    return dataset if kind == "rows" else with_stages(dataset, kind)


def with_stages(rows: Staged, kind: str) -> Staged:
    """Return the rows of a dataset or mixture with stages."""
    staged: Staged = _STAGED[kind](rows)
    return staged


_STAGED: dict[str, Callable[[Any], Any]] = {
    "flat_map": lambda rows: rows.flat_map(in_sentences),
    "best_fit of a column": lambda rows: rows.pack(LENGTH, group_rows=8),
    "chunk of a column": lambda rows: rows.pack(LENGTH, strategy="chunk", separator=1),
    "best_fit": lambda rows: rows.map(tokenise).pack(LENGTH, separator=1, group_rows=8, overflow="truncate"),
    "chunk": lambda rows: rows.map(tokenise).pack(LENGTH, strategy="chunk", mask="cu_seqlens"),
    "best_fit of sentences": lambda rows: rows.flat_map(in_sentences).map(tokenise).pack(LENGTH, group_rows=5),
    "chunk of sentences": lambda rows: (
        rows.flat_map(in_sentences).map(tokenise).pack(LENGTH, strategy="chunk", separator=1)
    ),
    "best_fit of known lengths": lambda rows: (
        rows.count_lengths(tokenise, num_workers=0).map(tokenise).pack(LENGTH, separator=1, group_rows=8)
    ),
    "chunk of known lengths": lambda rows: rows.pack(LENGTH, strategy="chunk", separator=1, lengths="input_ids"),
    "random": lambda rows: rows.map(jittered, with_context=True).pack(LENGTH, strategy="chunk"),
}
KINDS = [*_STAGED]


def plain(item: Any) -> Any:
    """Return an item or batch as Python values."""
    if isinstance(item, torch.Tensor):
        return item.tolist()
    if isinstance(item, dict):
        return {name: plain(value) for name, value in item.items()}
    return item


def run(loader: Any) -> list[Any]:
    """Return all batches of a pass, as Python values."""
    return [plain(batch) for batch in loader]


def run_with_states(loader: Any) -> tuple[list[Any], list[State]]:
    """Run a pass; return its batches, and the states before the first batch and after each one."""
    states, batches = [saved(loader.state_dict())], []
    for batch in loader:
        batches.append(plain(batch))
        states.append(saved(loader.state_dict()))
    return batches, states


def packed_tokens(batches: Iterable[Row]) -> list[int]:
    """Return the tokens in packs, or batches of packs, without padding."""
    found = []
    for batch in batches:
        ids, documents = torch.tensor(batch["input_ids"]), torch.tensor(batch["document_ids"])
        found += ids[documents > 0].tolist()
    return found
