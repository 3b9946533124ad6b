"""Tokens of the sources of a mixture whose packs have unknown lengths: exactly those in the batches that came."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import Mixture, SavableLoader, StatefulShardedDataset, describe_state, merge_states
from laneway.core.schema import sealed
from tests.compat.loaders import saved

if TYPE_CHECKING:
    from pathlib import Path

NAMES = "abc"
LENGTH, SEPARATOR = 16, 9
PACKINGS: list[dict[str, Any]] = [
    {"group_rows": 7},
    {"group_rows": 5, "separator": SEPARATOR, "overflow": "truncate"},
    {"strategy": "chunk", "separator": SEPARATOR},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for index, name in enumerate(NAMES):
        documents = [[index + 1] * (number * (7 + index) % 31) for number in range(50)]
        pq.write_table(pa.table({"text": pa.array(documents, pa.list_(pa.int32()))}), folder / f"{name}.parquet")
    return folder


def tokenise(row: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": row["text"]}


def mixture(corpus: Path, names: str = "ab", weights: Any = None, packing: Any = None, **options: Any) -> Mixture:
    place = {name: options.pop(name, default) for name, default in (("rank", 0), ("world_size", 1))}
    sources = {name: StatefulShardedDataset(corpus / f"{name}.parquet", shuffle=True, **place) for name in names}
    weights = {name: 1 + index for index, name in enumerate(names)} if weights is None else weights
    mixed = Mixture(sources, weights, **options).map(tokenise)
    return mixed.pack(LENGTH, **(PACKINGS[0] if packing is None else packing)).batch(3)


class Delivered(Counter[str]):
    """The tokens of each source in the batches that came."""

    def take(self, batches: Any, num_batches: int) -> None:
        for batch in islice(batches, num_batches):
            ids = batch["input_ids"][batch["document_ids"] > 0]
            self.update(NAMES[token - 1] for token in ids.tolist() if token != SEPARATOR)

    def of(self, names: str = "ab") -> dict[str, int]:
        return {name: self[name] for name in names}


def told(loader: SavableLoader) -> dict[str, int | None]:
    return {name: source.tokens for name, source in loader.sources.items()}


def in_state(state: Any) -> dict[str, int | None]:
    return {source.name: source.num_tokens for source in describe_state(state).sources}


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_tokens_are_those_of_the_batches_on_any_ranks_with_sources_that_come_and_go(corpus: Path, packing: Any) -> None:
    state, delivered = None, Delivered()
    for world_size, names, num_batches in ((1, "ab", 4), (2, "ab", 3), (3, "abc", 5), (1, "cba", 6), (2, "ab", 2)):
        weights = {name: 1 if name in names else 0 for name in names}
        loaders = [
            SavableLoader(mixture(corpus, names, weights, packing, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
            delivered.take(loader, num_batches)
        states = [loader.state_dict() for loader in loaders]
        state = saved(states[0] if world_size == 1 else merge_states(states))
        assert in_state(states) == in_state(state) == delivered.of(names)
        restored = SavableLoader(mixture(corpus, names, weights, packing))
        restored.load_state_dict(state)
        assert told(restored) == delivered.of(names)
        if names == "cba":
            # Its groups must be delivered before it can be removed.
            idle = SavableLoader(mixture(corpus, names, {"a": 1, "b": 1, "c": 0}, packing))
            idle.load_state_dict(state)
            delivered.take(idle, 12)
            state = saved(idle.state_dict())


def test_what_workers_have_read_ahead_does_not_count_and_neither_does_it_after_a_change_of_weights(
    corpus: Path,
) -> None:
    delivered = Delivered()
    loader = SavableLoader(mixture(corpus), num_workers=2, prefetch_factor=4)
    delivered.take(loader, 3)
    assert told(loader) == delivered.of()
    batches = iter(loader)
    delivered.take(batches, 2)
    loader.set_weights({"a": 5, "b": 1})
    assert told(loader) == delivered.of()
    delivered.take(batches, 5)
    assert told(loader) == delivered.of()
    resumed = SavableLoader(mixture(corpus), num_workers=1)
    resumed.load_state_dict(saved(loader.state_dict()))
    delivered.take(resumed, 4)
    assert told(resumed) == delivered.of()


def test_ranks_that_resume_from_their_own_states_count_on_through_a_schedule_of_weights(corpus: Path) -> None:
    schedule = [(0, {"a": 3, "b": 1}), (40, {"a": 1, "b": 3}), (80, {"a": 0, "b": 1})]
    states: list[Any] = [None, None]
    delivered = Delivered()
    for num_batches in (2, 9, 1, 20):
        loaders = [SavableLoader(mixture(corpus, weights=schedule, rank=rank, world_size=2)) for rank in range(2)]
        for rank, loader in enumerate(loaders):
            if states[rank] is not None:
                loader.restore_state_rank(states[rank])
                assert saved(loader.save_state_rank()) == states[rank]
            delivered.take(loader, num_batches)
            states[rank] = saved(loader.save_state_rank())
        assert in_state(states) == delivered.of()


def test_epochs_of_batches_count_on_and_a_mixture_that_ends_counts_anew(corpus: Path) -> None:
    delivered = Delivered()
    loader = SavableLoader(mixture(corpus, epoch_batches=4))
    for _ in range(3):
        delivered.take(loader, 5)
        assert told(loader) == delivered.of()
    ending = SavableLoader(mixture(corpus, stop="first_exhausted"))
    for _ in range(2):
        delivered = Delivered()
        delivered.take(ending, 10**6)
        assert told(ending) == delivered.of()


def test_the_states_of_workers_of_another_loader_add_up(corpus: Path) -> None:
    def loader() -> Any:
        return StatefulDataLoader(mixture(corpus), batch_size=None, num_workers=2, multiprocessing_context="fork")

    delivered, first = Delivered(), loader()
    delivered.take(first, 5)
    state = saved(first.state_dict())
    assert in_state(state) == delivered.of()
    resumed = loader()
    resumed.load_state_dict(state)
    delivered.take(resumed, 4)
    assert in_state(saved(resumed.state_dict())) == delivered.of()


def test_states_that_have_not_counted_resume_without_a_number(corpus: Path) -> None:
    loader = SavableLoader(mixture(corpus))
    Delivered().take(loader, 3)
    (state,) = saved(loader.state_dict())["laneway"]
    old = sealed({**state, "tokens": []})
    assert "tokens" not in old
    resumed = SavableLoader(mixture(corpus, "abc"))
    resumed.load_state_dict(old)
    Delivered().take(resumed, 3)
    assert told(resumed) == dict.fromkeys("abc")
    assert "tokens" not in resumed.state_dict()["laneway"][0]
