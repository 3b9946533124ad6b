"""Law: a mixture delivers each row of each epoch of each source once, from files, through any chain of changes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from laneway import Manifest, Mixture, SavableLoader, StatefulShardedDataset

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from laneway.delivery.source_progress import SourceProgress

NAMES = "abcd"
WEIGHTS = [0, 1, 3, 0.2, 1.006, 1e-3]


class Row(NamedTuple):
    """A delivered row."""

    source: str
    path: str
    row: int
    epoch: int


class Corpora:
    """The files of sources, which grow."""

    def __init__(self, folder: Path, remainder: Any = None) -> None:
        self.folder = folder
        self.remainder = remainder
        self.versions: dict[str, list[Manifest]] = {}
        """Source -> its files before they grew, and now."""

    def write(self, name: str, sizes: list[int]) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        for index, num_rows in enumerate(sizes):
            path = self.folder / name / f"{len(self.versions.get(name, []))}-{index}.parquet"
            pq.write_table(pa.table({"source": [name] * num_rows}), path, row_group_size=3)
        self.versions.setdefault(name, []).append(Manifest.scan(self.folder / name))

    def open(self, name: str, rank: int, world_size: int) -> StatefulShardedDataset:
        seed = NAMES.index(name)
        found = None
        for manifest in self.versions[name]:
            dataset = StatefulShardedDataset(
                manifest,
                seed=seed,
                shuffle=bool(seed % 2),
                shard_rows=4,
                window_bytes=100,
                provenance=True,
                remainder=self.remainder,
                rank=rank,
                world_size=world_size,
            )
            found = dataset if found is None else found.extend(dataset)
        assert found is not None
        return found


def rows_of(batch: dict[str, Any]) -> list[Row]:
    columns = (batch["source"], batch["_path"], batch["_row"].tolist(), batch["_epoch"].tolist())
    return [Row(*values) for values in zip(*columns, strict=True)]


@st.composite
def legs(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "weights": [draw(st.sampled_from(WEIGHTS)) for _ in NAMES],
        "sources": draw(st.sets(st.sampled_from(NAMES), min_size=1)),
        "world_size": draw(st.integers(1, 3)),
        "batch_size": draw(st.integers(1, 9)),
        "lanes": draw(st.sampled_from([None, 6])),
        "steps": draw(st.integers(0, 8)),
        "grows": draw(st.none() | st.sampled_from(NAMES)),
    }


def weights_of(values: list[float], names: list[str]) -> dict[str, float]:
    found = dict(zip(names, values, strict=False))
    return found if any(found.values()) else dict.fromkeys(names, 1)


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def run(corpora: Corpora, chain: list[dict[str, Any]]) -> tuple[Counter[Row], dict[str, SourceProgress]]:
    """Return the rows that a chain of legs delivers, and how far the sources say that they have come."""
    state, delivered = None, Counter[Row]()
    names: list[str] = []
    for leg in chain:
        # Sources stay: those that are removed begin anew when they come back.
        names = [name for name in NAMES if name in leg["sources"] or name in names]
        if leg["grows"] in names and state is not None:
            corpora.write(leg["grows"], [3, 1])
        world_size = leg["world_size"]
        mixtures = [
            Mixture(
                {name: corpora.open(name, rank, world_size) for name in names},
                weights_of(leg["weights"], names),
                lanes=leg["lanes"],
            ).batch(leg["batch_size"])
            for rank in range(world_size)
        ]
        loaders = [SavableLoader(mixture) for mixture in mixtures]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
        for _, *batches in zip(range(leg["steps"]), *loaders, strict=False):
            delivered.update(row for batch in batches for row in rows_of(batch))
        states = [loader.state_dict() for loader in loaders]
        assert all(each == states[0] for each in states)
        state = states[0]
    return delivered, loaders[0].sources


def corpora_of(folder: Path, first_sizes: list[list[int]], remainder: Any = None) -> Corpora:
    corpora = Corpora(folder, remainder)
    for name, of_source in zip(NAMES, first_sizes, strict=True):
        corpora.write(name, of_source)
    return corpora


@given(st.lists(sizes, min_size=4, max_size=4), st.lists(legs(), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_each_row_comes_once_in_each_epoch_of_its_source(
    tmp_path_factory: pytest.TempPathFactory, first_sizes: list[list[int]], chain: list[dict[str, Any]]
) -> None:
    corpora = corpora_of(tmp_path_factory.mktemp("sources"), first_sizes)
    delivered, sources = run(corpora, chain)
    assert max(delivered.values(), default=1) == 1
    for name, source in sources.items():
        assert source.rows == sum(1 for row in delivered if row.source == name)
        complete = [row for row in delivered if row.source == name and row.epoch < source.epoch]
        by_epoch = Counter(row.epoch for row in complete)
        assert len(by_epoch) == source.epoch
        assert min(by_epoch.values(), default=99) >= corpora.versions[name][0].num_rows
        if len(corpora.versions[name]) == 1:
            assert {*by_epoch.values()} <= {corpora.versions[name][0].num_rows}


@given(
    st.lists(st.lists(st.integers(6, 9), min_size=1, max_size=2), min_size=4, max_size=4),
    st.lists(legs(), min_size=1, max_size=4),
    st.sampled_from(["pad", "drop"]),
)
@settings(max_examples=15, deadline=None)
def test_sources_count_the_rows_that_they_deliver_with_any_remainder(
    tmp_path_factory: pytest.TempPathFactory, first_sizes: list[list[int]], chain: list[dict[str, Any]], remainder: str
) -> None:
    delivered, sources = run(corpora_of(tmp_path_factory.mktemp("sources"), first_sizes, remainder), chain)
    for name, source in sources.items():
        assert source.rows == sum(count for row, count in delivered.items() if row.source == name)
