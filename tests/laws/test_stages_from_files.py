"""Items and packs from files, through chains of ranks, batch sizes and weights that change: every token comes once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laneway import Mixture, SavableLoader, StatefulShardedDataset, describe_state, merge_states
from tests.compat.loaders import saved

if TYPE_CHECKING:
    from laneway import RowContext

LENGTH = 8
SEPARATOR = 0
SIZES = {"a": [3, 0, 9, 1, 20, 5, 8, 2, 0, 7, 16, 4, 6], "b": [11, 2, 5, 0, 30, 1, 8]}
"""Source -> tokens of its documents."""
TOKENS = range(1, 1 + sum(map(sum, SIZES.values())))
"""All tokens of epoch 0."""
_EPOCH = 1_000_000
"""Tokens of later epochs are larger by this."""
MAX_BATCHES = 2_000
"""Batches until all that has begun must have come."""


class Step(NamedTuple):
    """Some batches of a job."""

    world_size: int
    batch_size: int
    num_batches: int
    weight: int


steps = st.builds(Step, st.integers(1, 3), st.integers(1, 3), st.integers(0, 6), st.sampled_from([1, 3]))
chains = st.lists(steps, min_size=2, max_size=6)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StatefulShardedDataset]:
    """Write two sources, whose tokens are all different; return their rows."""
    found, first = {}, 1
    for name, sizes in SIZES.items():
        folder = tmp_path_factory.mktemp(name)
        documents = []
        for size in sizes:
            documents.append([*range(first, first + size)])
            first += size
        table = pa.table({"input_ids": pa.array(documents, pa.list_(pa.int32()))})
        pq.write_table(table, folder / "part-0.parquet", row_group_size=3)
        found[name] = StatefulShardedDataset(folder, shuffle=True, seed=4, shard_rows=3, window_bytes=200)
    return found


def of_epoch(row: dict[str, Any], context: RowContext) -> dict[str, Any]:
    """Return a row whose tokens differ from epoch to epoch."""
    return {"input_ids": [token + _EPOCH * context.epoch for token in row["input_ids"]]}


def single_tokens(row: dict[str, Any]) -> list[int]:
    """Return the tokens of a row as items."""
    tokens: list[int] = row["input_ids"]
    return tokens


def with_stages(rows: Mixture, kind: str) -> Mixture:
    """Return the rows with stages."""
    rows = rows.map(of_epoch, with_context=True)
    if kind == "flat_map":
        return rows.flat_map(single_tokens)
    if kind == "chunk":
        return rows.pack(LENGTH, strategy="chunk")
    if kind == "chunk with separators":
        return rows.pack(LENGTH, strategy="chunk", separator=SEPARATOR)
    return rows.pack(LENGTH, group_rows=4)


def tokens_of(batch: Any) -> list[int]:
    """Return the tokens of a batch without padding and separators."""
    if isinstance(batch, torch.Tensor):
        return list(batch.tolist())
    ids = batch["input_ids"][batch["document_ids"] > 0]
    return list(ids[ids > SEPARATOR].tolist())


@pytest.mark.parametrize("kind", ["flat_map", "chunk", "chunk with separators", "best_fit"])
@given(chain=chains)
@settings(max_examples=8, deadline=None)
def test_every_token_of_each_epoch_comes_once(
    sources: dict[str, StatefulShardedDataset], kind: str, chain: list[Step]
) -> None:
    found: list[int] = []
    state: dict[str, Any] | None = None

    def make(step: Step, rank: int) -> SavableLoader:
        weights = {"a": step.weight, "b": 1}
        mixture = Mixture(sources, weights, rank=rank, world_size=step.world_size)
        loader = SavableLoader(with_stages(mixture, kind).batch(step.batch_size))
        if state is not None:
            loader.load_state_dict(state)
        return loader

    for step in chain:
        loaders = [make(step, rank) for rank in range(step.world_size)]
        for loader in loaders:
            batches = iter(loader)
            for _ in range(step.num_batches):
                found += tokens_of(next(batches))
        state = saved(merge_states([loader.save_state_rank() for loader in loaders]))
        assert tokens_in(state) == (dict.fromkeys(SIZES) if kind == "flat_map" else by_source(found))
    # The rest of what has begun: lanes come to the next epoch each at its own pace.
    missing = {token + _EPOCH * epoch for epoch in range(max(map(epoch_of, found), default=0) + 1) for token in TOKENS}
    missing -= {*found}
    batches = iter(make(Step(1, 2, 0, 1), 0))
    for _ in range(MAX_BATCHES):
        if not missing:
            break
        tokens = tokens_of(next(batches))
        missing -= {*tokens}
        found += tokens
    assert not missing
    assert max(Counter(found).values()) == 1


def tokens_in(state: dict[str, Any]) -> dict[str, int | None]:
    """Return the tokens of each source that a state says were delivered."""
    return {source.name: source.num_tokens for source in describe_state(state).sources}


def by_source(tokens: list[int]) -> dict[str, int]:
    """Return how many of the tokens are from each source."""
    of_a = sum(token % _EPOCH <= sum(SIZES["a"]) for token in tokens)
    return {"a": of_a, "b": len(tokens) - of_a}


def epoch_of(token: int) -> int:
    """Return the epoch of its source that a token is of."""
    return token // _EPOCH


class Run(NamedTuple):
    """Some batches of a rank, in a number of lanes if they are cut anew."""

    lanes: int
    batch_size: int
    num_batches: int


runs = st.lists(st.builds(Run, st.integers(1, 5), st.integers(1, 4), st.integers(0, 9)), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", ["flat_map", "chunk", "chunk with separators", "best_fit"])
@pytest.mark.parametrize("end", ["two epochs", "all_exhausted", 31])
@given(chain=runs)
@settings(max_examples=6, deadline=None)
def test_what_has_an_end_comes_whole_however_often_it_is_cut_again(
    sources: dict[str, StatefulShardedDataset], kind: str, end: Any, chain: list[Run]
) -> None:
    found: list[int] = []
    state: dict[str, Any] | None = None

    def make(run: Run) -> SavableLoader:
        if end == "two epochs":
            mixture = Mixture({"a": sources["a"]}, {"a": 1}, stop="all_exhausted", lanes=run.lanes)
            weighting = replace(mixture.definition.given, num_epochs=2)
            mixture.definition = replace(mixture.definition, given=weighting)
        else:
            mixture = Mixture(sources, {"a": 3, "b": 1}, stop=end, lanes=run.lanes)
        loader = SavableLoader(with_stages(mixture, kind).batch(run.batch_size))
        if state is not None:
            loader.load_state_dict(state)
        return loader

    for run in chain:
        loader = make(run)
        for batch in islice(loader, run.num_batches):
            found += tokens_of(batch)
        state = saved(loader.state_dict())
        told = {name: source.tokens for name, source in loader.sources.items()}
        assert told == (dict.fromkeys(told) if kind == "flat_map" else {name: by_source(found)[name] for name in told})
        if state["laneway"][0]["complete"]:
            break
    else:
        for batch in make(Run(2, 3, 0)):
            found += tokens_of(batch)
    counts = Counter(found)
    assert max(counts.values()) == 1
    of_a = range(1, 1 + sum(SIZES["a"]))
    if end == "two epochs":
        assert counts.keys() == {token + _EPOCH * epoch for epoch in range(2) for token in of_a}
    elif end == "all_exhausted":
        assert counts.keys() >= {*TOKENS}
    else:
        documents = [*SIZES["a"], *SIZES["b"]]
        starts = [1 + sum(documents[:index]) for index in range(len(documents))]
        rows = [
            (epoch, index)
            for epoch in range(3)
            for index, (start, size) in enumerate(zip(starts, documents, strict=True))
            if size and {token + _EPOCH * epoch for token in range(start, start + size)} <= counts.keys()
        ]
        # Empty documents can't be seen.
        assert end - 2 * documents.count(0) - 2 <= len(rows) <= end
