"""Law: a mixture of packs of known lengths delivers each token of each epoch of each source once, in lockstep."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from laneway import Manifest, Mixture, RowContext, SavableLoader, StatefulShardedDataset
from tests.fuzzing import num_cases

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

NAMES = "abc"
LENGTH = 6


class Token(NamedTuple):
    """A delivered token."""

    source: str
    epoch: int
    document: int
    place: int


def with_epoch(row: dict[str, Any], context: RowContext) -> dict[str, Any]:
    """Return a document whose tokens say where they are from: source, epoch, document and index, in decimal digits."""
    source = NAMES.index(context.source or "") + 1
    first = (source * 1000 + context.epoch) * 100_000 + row["document"] * 100
    return {"input_ids": [first + index for index in range(len(row["input_ids"]))]}


def tokens_of(batch: dict[str, Any]) -> list[Token]:
    numbers = batch["input_ids"][batch["document_ids"] > 0].tolist()
    return [Token(NAMES[n // 10**8 - 1], n // 10**5 % 1000, n // 100 % 1000, n % 100) for n in numbers]


class Corpora:
    """The files of sources, which grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions: dict[str, list[Manifest]] = {}
        self.documents: dict[str, list[list[int]]] = {}
        """Source -> for each of its versions, the length of each document."""

    def write(self, name: str, lengths: list[int]) -> None:
        folder, before = self.folder / name, self.documents.get(name, [[]])[-1]
        folder.mkdir(exist_ok=True)
        documents = range(len(before), len(before) + len(lengths))
        column = pa.array([[0] * length for length in lengths], pa.list_(pa.int32()))
        table = pa.table({"document": documents, "input_ids": column})
        pq.write_table(table, folder / f"{len(self.versions.get(name, []))}.parquet", row_group_size=3)
        self.versions.setdefault(name, []).append(Manifest.scan(folder))
        self.documents.setdefault(name, []).append([*before, *lengths])

    def open(self, name: str) -> StatefulShardedDataset:
        found = None
        for manifest in self.versions[name]:
            dataset = StatefulShardedDataset(
                manifest, seed=NAMES.index(name), shuffle=name != "b", shard_rows=4, window_bytes=100
            ).count_lengths("input_ids")
            found = dataset if found is None else found.extend(dataset)
        assert found is not None
        return found


@st.composite
def legs(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "weights": [draw(st.sampled_from([0, 1, 3, 0.2])) for _ in NAMES],
        "sources": draw(st.sets(st.sampled_from(NAMES), min_size=1)),
        "world_size": draw(st.integers(1, 3)),
        "batch_size": draw(st.integers(1, 4)),
        "steps": draw(st.integers(0, 6)),
        "grows": draw(st.none() | st.sampled_from(NAMES)),
        "weights_of": draw(st.sampled_from(["rows", "tokens"])),
    }


lengths = st.lists(st.integers(0, 15), min_size=1, max_size=12).filter(any)


@given(
    st.lists(lengths, min_size=3, max_size=3),
    st.lists(legs(), min_size=1, max_size=4),
    st.sampled_from(["best_fit", "chunk"]),
)
@settings(max_examples=num_cases(12), deadline=None)
def test_each_token_comes_once_in_each_epoch_of_its_source(
    tmp_path_factory: pytest.TempPathFactory, first: list[list[int]], chain: list[dict[str, Any]], strategy: Any
) -> None:
    corpora = Corpora(tmp_path_factory.mktemp("sources"))
    for name, of_source in zip(NAMES, first, strict=True):
        corpora.write(name, of_source)
    state, delivered = None, Counter[Token]()
    names: list[str] = []
    for leg in chain:
        names = [name for name in NAMES if name in leg["sources"] or name in names]
        if leg["grows"] in names and state is not None:
            corpora.write(leg["grows"], [7, 3])
        weights = dict(zip(names, leg["weights"], strict=False))
        if not any(weights.values()):
            weights = dict.fromkeys(names, 1)
        loaders = []
        for rank in range(leg["world_size"]):
            mixture = Mixture(
                {name: corpora.open(name) for name in names},
                weights,
                weights_of=leg["weights_of"],
                rank=rank,
                world_size=leg["world_size"],
            )
            packs = mixture.map(with_epoch, with_context=True).pack(
                LENGTH, strategy=strategy, group_rows=3 if strategy == "best_fit" else None
            )
            loaders.append(SavableLoader(packs.batch(leg["batch_size"])))
            if state is not None:
                loaders[-1].load_state_dict(state)
        for _, *batches in zip(range(leg["steps"]), *loaders, strict=False):
            delivered.update(token for batch in batches for token in tokens_of(batch))
        states = [loader.state_dict() for loader in loaders]
        assert all(each == states[0] for each in states)
        (inner,) = states[0]["laneway"]
        assert (inner["scope"], inner["positions"], inner["offsets"]) == ("global", None, None)
        state = states[0]
    assert max(delivered.values(), default=1) == 1
    for name, source in loaders[0].sources.items():
        complete = Counter(token.epoch for token in delivered if token.source == name and token.epoch < source.epoch)
        assert len(complete) == source.epoch
        assert {*complete.values()} <= {*map(sum, corpora.documents[name])}
        num_tokens = sum(1 for token in delivered if token.source == name)
        if len(corpora.versions[name]) > 1:
            assert source.tokens is None
        else:
            # With best_fit, a group of which a pack was delivered counts as a whole.
            assert source.tokens is not None
            assert source.tokens == num_tokens or (strategy == "best_fit" and source.tokens > num_tokens)
