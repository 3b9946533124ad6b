"""Packs of documents of known lengths, repeated and mixed: counted, equal on all ranks, and resumed by any of them."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import (
    CheckpointMismatchError,
    Manifest,
    Mixture,
    NotReproducibleError,
    SavableLoader,
    StatefulShardedDataset,
)
from laneway.delivery import source_opening
from laneway.reading.windows import reading_threads
from laneway.testing import assert_resumes_exactly
from tests.compat import staged
from tests.compat.loaders import saved
from tests.compat.staged import LENGTH, make_dataset, packed_tokens, run, tokenise

if TYPE_CHECKING:
    from pathlib import Path

    from laneway import RowContext
    from laneway.reading.threads import DaemonThreads

STRATEGIES = ["best_fit", "chunk"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged.write_corpus(tmp_path_factory.mktemp("corpus"))


def packed(rows: Any, strategy: Any, lengths: Any = "input_ids") -> Any:
    group_rows = 8 if strategy == "best_fit" else None
    return rows.pack(LENGTH, strategy=strategy, group_rows=group_rows, lengths=lengths)


def mixture_of(corpus: Path, strategy: Any = "best_fit", weights: Any = None, **arguments: Any) -> Mixture:
    """Return packs of two sources of the same documents, in another order each."""
    sources = {name: make_dataset(corpus, "rows", seed=seed) for seed, name in enumerate("ab")}
    mixture: Mixture = packed(Mixture(sources, weights or {"a": 0.7, "b": 0.3}, **arguments), strategy)
    return mixture


def all_tokens(times: int = 1) -> Counter[int]:
    return Counter(token for document in staged.tokens() for token in document * times)


# -- Repeated ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_length_of_several_epochs_is_exact_on_any_rank(corpus: Path, strategy: str) -> None:
    one = packed(make_dataset(corpus, "rows"), strategy)
    num_packs = []
    for epoch in range(3):
        one.set_epoch(epoch)
        num_packs.append(len(one))
    assert len(packed(make_dataset(corpus, "rows").repeat(3), strategy)) == sum(num_packs)
    for world_size in (1, 2, 3):
        ranks = []
        for rank in range(world_size):
            rows = make_dataset(corpus, "rows", rank=rank, world_size=world_size)
            # It makes no difference which comes first.
            packs = packed(rows.repeat(3), strategy) if rank else packed(rows, strategy).repeat(3)
            ranks.append(SavableLoader(packs.batch(2)))
        lengths, batches = [*map(len, ranks)], [run(loader) for loader in ranks]
        assert [*map(len, batches)] == lengths
        assert len({*lengths}) == 1
        found = Counter(packed_tokens(batch for of_rank in batches for batch in of_rank))
        assert not all_tokens(3) - found
        if world_size == 1:
            assert found == all_tokens(3)
            assert lengths == [-(-sum(num_packs) // 2)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_rank_speaks_for_a_job_of_several_epochs(corpus: Path, strategy: str) -> None:
    state: dict[str, Any] | None = None
    found: Counter[int] = Counter()
    for world_size, num_workers, batch_size, num_batches in [(2, 0, 3, 9), (3, 2, 1, 14), (1, 3, 2, 5), (2, 1, 2, 9)]:
        loaders = []
        for rank in range(world_size):
            rows = make_dataset(corpus, "rows", rank=rank, world_size=world_size)
            context = "fork" if num_workers else None
            packs = packed(rows.repeat(4), strategy).batch(batch_size)
            loaders.append(SavableLoader(packs, num_workers=num_workers, multiprocessing_context=context))
        states = []
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
            found.update(packed_tokens(map(staged.plain, islice(loader, num_batches))))
            states.append(saved(loader.state_dict()))
        assert all(each == states[0] for each in states)
        (inner,) = states[0]["laneway"]
        assert (inner["scope"], inner["positions"], inner["offsets"]) == ("global", None, None)
        state = states[-1]
    assert state is not None
    last = SavableLoader(packed(make_dataset(corpus, "rows").repeat(4), strategy).batch(2))
    last.load_state_dict(state)
    found.update(packed_tokens(run(last)))
    assert found == all_tokens(4)


def test_passes_have_other_epochs(corpus: Path) -> None:
    loader = SavableLoader(packed(make_dataset(corpus, "rows").repeat(2), "best_fit").batch(2))
    passes = [run(loader) for _ in range(2)]
    assert passes[0] != passes[1]
    assert [Counter(packed_tokens(batches)) for batches in passes] == [all_tokens(2)] * 2
    assert len(loader) == len(passes[1])


def test_only_the_packs_of_a_mixture_are_opened_and_their_threads_end(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def counted(*, is_remote: bool) -> DaemonThreads:
        opened.append(reading_threads(is_remote=is_remote))
        return opened[-1]

    monkeypatch.setattr(source_opening, "reading_threads", counted)
    assert list(mixture_of(corpus, stop="first_exhausted"))
    assert len(opened) == 1
    for thread in opened[0].threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in opened[0].threads)


def test_epochs_of_batches_of_known_packs_go_on_where_the_last_one_ended(corpus: Path) -> None:
    ranks = [
        SavableLoader(
            packed(make_dataset(corpus, "rows", rank=rank, world_size=2).repeat(epoch_batches=5), "chunk").batch(2)
        )
        for rank in range(2)
    ]
    endless = SavableLoader(packed(make_dataset(corpus, "rows").repeat(), "chunk").batch(4), num_workers=0)
    epochs = [[run(loader) for loader in ranks] for _ in range(3)]
    assert {len(batches) for epoch in epochs for batches in epoch} == {len(ranks[0])} == {5}
    tokens = Counter(packed_tokens(batch for epoch in epochs for batches in epoch for batch in batches))
    assert sum(tokens.values()) == sum(Counter(packed_tokens(map(staged.plain, islice(endless, 15)))).values())


# -- Mixed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mixture_of_packs_resumes_exactly(corpus: Path, strategy: str, num_workers: int) -> None:
    def make() -> SavableLoader:
        context = "fork" if num_workers else None
        packs = mixture_of(corpus, strategy).batch(3)
        return SavableLoader(packs, num_workers=num_workers, multiprocessing_context=context)

    assert_resumes_exactly(make, max_items=30, stops=(1, 7, 16, 29))


def test_workers_of_a_stateful_dataloader_resume_a_mixture_of_packs(corpus: Path) -> None:
    def make() -> Any:
        return StatefulDataLoader(mixture_of(corpus, "chunk").batch(3), batch_size=None, num_workers=2)

    assert_resumes_exactly(make, max_items=12, stops=(5,))


def test_spawned_workers_read_a_mixture_of_packs(corpus: Path) -> None:
    expected, found = (
        [
            staged.plain(batch)
            for batch in islice(
                SavableLoader(
                    mixture_of(corpus, lanes=1).batch(3), num_workers=workers, multiprocessing_context=context
                ),
                8,
            )
        ]
        for workers, context in ((0, None), (1, "spawn"))
    )
    assert found == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_source_has_its_share_of_the_packs(corpus: Path, strategy: Any) -> None:
    mixture = mixture_of(corpus, strategy, {"a": 3, "b": 1})
    loader = SavableLoader(mixture.batch(1))
    for count, _ in enumerate(islice(loader, 60), start=1):
        sources = loader.sources
        assert sources["a"].target_share == pytest.approx(0.75, abs=0.01)
        assert abs(sources["a"].actual_share - sources["a"].target_share) * count <= 2


def test_weights_of_rows_and_tokens_are_turned_into_weights_of_packs(corpus: Path) -> None:
    # The rows of one source are twice as long: for as many rows, it needs more packs; for as many tokens, as many.
    long = {"long": make_dataset(corpus, "rows").count_lengths(doubled, num_workers=0).map(doubled)}
    short = {"short": make_dataset(corpus, "rows").count_lengths(same, num_workers=0).map(same)}
    for weights_of, share in (("rows", 2 / 3), ("tokens", 1 / 2)):
        kind: Any = weights_of
        mixture = Mixture({**long, **short}, {"long": 1, "short": 1}, weights_of=kind)
        packs = mixture.pack(LENGTH, strategy="chunk")
        assert packs.weights == {"long": 1, "short": 1}
        weights = packs.definition.weighting.weights_at(0)
        assert weights["long"] / sum(weights.values()) == pytest.approx(share, abs=0.02)
        loader = SavableLoader(packs.batch(1))
        next(iter(loader))
        loader.set_weights({"long": 1, "short": 3})
        assert loader.sources["long"].target_share == pytest.approx(share / (share + 3 * (1 - share)), abs=0.02)


def same(row: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": row["input_ids"]}


def doubled(row: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": row["input_ids"] * 2}


def test_sources_are_added_to_and_extended_in_a_mixture_of_packs(corpus: Path) -> None:
    files = sorted(corpus.glob("*.parquet"))
    begun = StatefulShardedDataset(Manifest.scan(str(files[0]))).count_lengths("input_ids")
    grown = StatefulShardedDataset(Manifest.scan([*map(str, files[:2])])).count_lengths("input_ids")
    first = packed(Mixture({"a": begun}, {"a": 1}), "best_fit", None).batch(2)
    loader = SavableLoader(first)
    found = Counter(packed_tokens(map(staged.plain, islice(loader, 3))))
    mixture = Mixture({"a": begun.extend(grown)}, {"a": 1})
    more = packed(mixture, "best_fit", None).add(
        {"b": make_dataset(corpus, "rows", columns=["id", "text", "input_ids"]).count_lengths("input_ids")},
        {"a": 1, "b": 1},
    )
    resumed = SavableLoader(more.batch(2))
    resumed.load_state_dict(saved(loader.state_dict()))
    while resumed.sources["a"].epoch < 2 or resumed.sources["b"].epoch < 1:
        found.update(packed_tokens(map(staged.plain, islice(resumed, 1))))
    tokens = staged.tokens()
    once = Counter(token for row in range(0, staged.NUM_DOCUMENTS, 3) for token in tokens[row])
    once += Counter(
        token for part in (0, 1) for row in [*range(staged.NUM_DOCUMENTS)][part::3] for token in tokens[row]
    )
    assert not once + all_tokens() - found
    with pytest.raises(ValueError, match="those of source 'c' are not known"):
        more.add({"c": make_dataset(corpus, "rows")}, {"a": 1, "b": 1, "c": 1})
    half = StatefulShardedDataset(Manifest.scan(str(files[0]))).extend(grown)
    with pytest.raises(ValueError, match=r"those of source 'c' are not known: .* also of the dataset that it extends"):
        more.add({"c": half}, {"a": 1, "b": 1, "c": 1})


def test_documents_of_all_sources_share_packs_unless_they_are_counted(corpus: Path) -> None:
    counted = {name: make_dataset(corpus, "rows").count_lengths("input_ids") for name in "ab"}
    mixture = Mixture(counted, {"a": 1, "b": 1}, stop=40)
    uncounted = packed(mixture, "chunk", lengths=False)
    assert uncounted.definition.identity.settings.stages == "pack(16, 'input_ids', 'chunk', separator=None)"
    with pytest.raises(TypeError, match="no length"):
        len(uncounted)
    assert run(uncounted) == run(
        packed(Mixture({name: make_dataset(corpus, "rows") for name in "ab"}, {"a": 1, "b": 1}, stop=40), "chunk", None)
    )
    state = saved(packed(Mixture(counted, {"a": 1, "b": 1}), "chunk", None).state_dict())
    with pytest.raises(CheckpointMismatchError, match=r"stages: saved .* lengths\", this run has"):
        packed(Mixture(counted, {"a": 1, "b": 1}), "chunk", lengths=False).load_state_dict(state)


def test_what_counts_rows_of_a_mixture_is_refused_with_packs(corpus: Path) -> None:
    counted = {name: make_dataset(corpus, "rows").count_lengths("input_ids") for name in "ab"}
    with pytest.raises(ValueError, match=r"stop=40 counts rows of the mixture.* pass lengths=False"):
        Mixture(counted, {"a": 1, "b": 1}, stop=40).pack(LENGTH)
    schedule = [(0, {"a": 1, "b": 1}), (10, {"a": 1, "b": 2})]
    with pytest.raises(ValueError, match=r"a change of weights at row 10 counts rows.* call set_weights\(\)"):
        Mixture(counted, schedule).pack(LENGTH)
    loader = SavableLoader(Mixture(counted, {"a": 1, "b": 1}).pack(LENGTH).batch(2))
    with pytest.raises(ValueError, match="a change of weights at row 10 counts rows"):
        loader.set_weights(schedule)
    with pytest.raises(ValueError, match=r"flat_map\(\) makes several of it: use map\(\), or pass lengths=False"):
        Mixture(counted, {"a": 1, "b": 1}).flat_map(list).pack(LENGTH)


def test_a_document_that_has_changed_is_named_with_its_source(corpus: Path) -> None:
    counted = {name: make_dataset(corpus, "rows").count_lengths(tokenise, num_workers=0) for name in "ab"}
    packs = Mixture(counted, {"a": 1, "b": 1}).map(doubled).pack(LENGTH)
    with pytest.raises(NotReproducibleError, match=r"row \d+ of part-\d.parquet had \d+ tokens") as raised:
        next(iter(packs))
    assert any("this is a row of source '" in note for note in raised.value.__notes__)


def test_sources_without_packs_are_named(corpus: Path) -> None:
    empty = make_dataset(corpus, "rows", filter=[("id", "<", 0)])
    sources = {"none": empty.count_lengths("input_ids"), "b": make_dataset(corpus, "rows").count_lengths("input_ids")}
    none = Mixture(sources, {"none": 0, "b": 1}).pack(LENGTH)
    assert len([*islice(none, 5)]) == 5
    with pytest.raises(ValueError, match="source 'none' has no rows: give it a weight of 0"):
        SavableLoader(none.batch(1)).set_weights({"none": 1, "b": 1})


def test_the_first_and_the_last_source_end_a_mixture_of_packs(corpus: Path) -> None:
    for stop in ("first_exhausted", "all_exhausted"):
        ranks = [
            SavableLoader(mixture_of(corpus, "best_fit", stop=stop, rank=rank, world_size=2).batch(2))
            for rank in range(2)
        ]
        lengths = [*map(len, ranks)]
        assert lengths == [len(run(loader)) for loader in ranks]
        assert len({*lengths}) == 1


# -- Tokens -----------------------------------------------------------------------------------------------------------


def test_sources_count_the_tokens_of_their_rows(corpus: Path) -> None:
    def mixture(**arguments: Any) -> Mixture:
        sources = {
            name: make_dataset(corpus, "rows", seed=seed).count_lengths("input_ids") for seed, name in enumerate("ab")
        }
        return Mixture(sources, {"a": 0.7, "b": 0.3}, **arguments)

    state: dict[str, Any] | None = None
    tokens, sources = Counter[str](), {}
    for world_size, batch_size, num_batches in [(2, 3, 6), (3, 2, 11), (1, 5, 20)]:
        loaders = [
            SavableLoader(
                mixture(rank=rank, world_size=world_size).map(with_source, with_context=True).batch(batch_size)
            )
            for rank in range(world_size)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
            for batch in islice(loader, num_batches):
                for name, number in zip(batch["source"], batch["tokens"].tolist(), strict=True):
                    tokens[name] += number
        state, sources = saved(loaders[0].state_dict()), loaders[-1].sources
        assert {name: source.tokens for name, source in sources.items()} == tokens
    assert min(source.epoch for source in sources.values()) >= 1
    finite = SavableLoader(mixture(stop="first_exhausted").batch(5))
    for _ in range(2):
        # The second pass begins with other epochs.
        for _ in finite:
            pass
        assert finite.sources["a"].tokens == sum(all_tokens().values())
    uncounted = Mixture({"a": make_dataset(corpus, "rows")}, {"a": 1})
    loader = SavableLoader(uncounted.batch(5))
    next(iter(loader))
    assert loader.sources["a"].tokens is None
    assert repr(loader.sources["a"]) == "SourceProgress(epoch=0, rows=5, target_share=1.0, actual_share=1.0)"


def with_source(row: dict[str, Any], context: RowContext) -> dict[str, Any]:
    return {"source": context.source, "tokens": len(row["input_ids"])}


def test_tokens_of_sources_that_are_packed_together_are_those_in_the_packs(corpus: Path) -> None:
    rows = make_dataset(corpus, "rows").count_lengths("input_ids").repeat()
    loader = SavableLoader(rows.pack(LENGTH, strategy="chunk", lengths=False).batch(1))
    found = 0
    for batch in islice(loader, 100):
        found += int((batch["document_ids"] > 0).sum())
        assert loader.sources["rows"].tokens == found
