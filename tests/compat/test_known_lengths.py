"""Packs of documents of known lengths: counted, equal on all ranks, and resumed by any from the state of any."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import (
    CheckpointMismatchError,
    ColumnConversionError,
    ManifestCacheWarning,
    Mixture,
    NotReproducibleError,
    SavableLoader,
    SchemaMismatchError,
    StatefulShardedDataset,
    audit,
    describe_state,
    redistribute,
)
from tests.compat import staged
from tests.compat.loaders import loader_raises, saved
from tests.compat.staged import LENGTH, make_dataset, packed_tokens, run, tokenise
from tests.corpora import settle

if TYPE_CHECKING:
    from pathlib import Path

STRATEGIES = ["best_fit", "chunk"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged.write_corpus(tmp_path_factory.mktemp("corpus"))


def packs_of(corpus: Path, strategy: Any, **arguments: Any) -> StatefulShardedDataset:
    """Return packs of known lengths, without separators."""
    return make_dataset(corpus, "rows", **arguments).pack(
        LENGTH, strategy=strategy, group_rows=8 if strategy == "best_fit" else None, lengths="input_ids"
    )


def all_tokens() -> Counter[int]:
    return Counter(token for document in staged.tokens() for token in document)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_length_is_exact_on_any_rank_and_in_any_epoch(corpus: Path, strategy: str) -> None:
    line = packs_of(corpus, strategy)
    for epoch in range(2):
        line.set_epoch(epoch)
        num_packs = len(line)
        assert num_packs == len(run(line))
        for world_size, batch_size in ((1, 3), (2, 3), (3, 2)):
            ranks = [packs_of(corpus, strategy, rank=rank, world_size=world_size) for rank in range(world_size)]
            loaders = [SavableLoader(dataset.batch(batch_size)) for dataset in ranks]
            for loader in loaders:
                loader.set_epoch(epoch)
            expected = [len(loader) for loader in loaders]
            batches = [run(loader) for loader in loaders]
            assert [*map(len, batches)] == expected == [-(-num_packs // (world_size * batch_size))] * world_size
            found = Counter(packed_tokens(batch for of_rank in batches for batch in of_rank))
            if num_packs % world_size == 0:
                assert found == all_tokens()
            assert not all_tokens() - found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_packs_are_the_same_on_any_topology(corpus: Path, strategy: str) -> None:
    def job(world_size: int, num_workers: int) -> list[Any]:
        loaders = [
            SavableLoader(
                packs_of(corpus, strategy, rank=rank, world_size=world_size, lanes=12, turn_rows=1).batch(
                    6 // world_size
                ),
                num_workers=num_workers,
                multiprocessing_context="fork" if num_workers else None,
            )
            for rank in range(world_size)
        ]
        return [
            [row for batch in step for row in batch["input_ids"]]
            for step in zip(*[run(loader) for loader in loaders], strict=True)
        ]

    expected = job(1, 0)
    assert job(2, 2)[:-1] == job(3, 0)[:-1] == expected[:-1]
    assert sorted(row for step in expected for row in step) == sorted(
        pack["input_ids"] for pack in run(packs_of(corpus, strategy))
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_rank_speaks_for_the_job_and_any_ranks_resume(corpus: Path, strategy: str) -> None:
    """Batches of real workers, in the middle of rows and groups, from the state of one rank at a time."""
    state: dict[str, Any] | None = None
    found: Counter[int] = Counter()
    for world_size, num_workers, batch_size, num_batches in [(2, 0, 3, 3), (3, 2, 1, 4), (1, 3, 2, 5), (2, 1, 2, 2)]:
        loaders = []
        for rank in range(world_size):
            packs = packs_of(corpus, strategy, rank=rank, world_size=world_size).batch(batch_size)
            context = "fork" if num_workers else None
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
    last = SavableLoader(packs_of(corpus, strategy).batch(2))
    assert state is not None
    last.load_state_dict(state)
    found.update(packed_tokens(run(last)))
    assert found == all_tokens()


def test_workers_of_a_stateful_dataloader_resume(corpus: Path) -> None:
    def make() -> Any:
        return StatefulDataLoader(packs_of(corpus, "chunk").batch(3), batch_size=None, num_workers=2)

    loader = make()
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert run(resumed) == [staged.plain(batch) for batch in batches]


def test_a_short_last_batch_is_dropped_on_all_ranks(corpus: Path) -> None:
    ranks = [packs_of(corpus, "chunk", rank=rank, world_size=2).batch(3, drop_last=True) for rank in range(2)]
    assert (
        [len(rank) for rank in ranks] == [len(run(rank)) for rank in ranks] == [len(packs_of(corpus, "chunk")) // 6] * 2
    )


def test_shards_are_completed_by_their_packs(corpus: Path) -> None:
    dataset = packs_of(corpus, "best_fit", shuffle=False)
    packs = iter(dataset)
    next(packs)
    assert dataset.completed_shards() == []
    run(packs)
    assert len(dataset.completed_shards()) == len(dataset.shards)


# -- Counting ---------------------------------------------------------------------------------------------------------


def test_a_function_is_called_once_on_each_row_and_its_lengths_are_cached(corpus: Path, tmp_path: Path) -> None:
    settle(corpus)
    calls = []

    def counting(row: dict[str, Any]) -> dict[str, Any]:
        calls.append(row["id"])
        return tokenise(row)

    def counted(**arguments: Any) -> StatefulShardedDataset:
        rows = make_dataset(corpus, "rows", cache_dir=tmp_path, rank=1, world_size=2)
        return rows.count_lengths(counting, num_workers=0, **arguments)

    lengths = counted(version="1").definition.lengths
    assert lengths is not None
    assert sorted(calls) == [*range(staged.NUM_DOCUMENTS)]
    by_file = [staged.tokens()[row] for part in range(3) for row in [*range(staged.NUM_DOCUMENTS)][part::3]]
    assert lengths.rows.tolist() == [*map(len, by_file)]
    again = counted(version="1").definition.lengths
    assert again is not None
    assert again.rows.tolist() == lengths.rows.tolist()
    assert len(calls) == staged.NUM_DOCUMENTS
    counted(version="2")
    counted()
    assert len(calls) == 3 * staged.NUM_DOCUMENTS
    for entry in tmp_path.glob("_lengths-*"):
        entry.write_bytes(entry.read_bytes()[:-30])
    with pytest.warns(ManifestCacheWarning, match="a cached lengths is unusable"):
        counted(version="1")
    assert len(calls) == 4 * staged.NUM_DOCUMENTS


def test_several_processes_count_the_selected_rows(corpus: Path) -> None:
    rows = make_dataset(corpus, "rows").filter(pc.field("id").isin([*range(0, 50, 3)]))
    alone, together = (rows.count_lengths(tokenise, num_workers=number) for number in (0, 3))
    assert alone.definition.lengths is not None
    assert together.definition.lengths is not None
    assert together.definition.lengths.rows.tolist() == alone.definition.lengths.rows.tolist()
    packs = together.map(tokenise).pack(LENGTH, group_rows=8)
    assert len(run(packs)) == len(packs)
    expected = Counter(
        token for row, document in enumerate(staged.tokens()) if row % 3 == 0 and row < 50 for token in document
    )
    assert Counter(packed_tokens(run(packs))) == expected


def test_a_column_of_numbers_counts_like_one_of_lists(tmp_path: Path) -> None:
    lists = [[1] * size for size in (3, 0, 9, 2, 5)]
    for kind in (pa.list_(pa.int32()), pa.large_list(pa.int64())):
        table = pa.table({"ids": pa.array(lists, kind), "n": pa.array([3, 0, 9, 2, 5], pa.uint8())})
        pq.write_table(table, tmp_path / "part-0.parquet", row_group_size=2)
        for lengths in ("ids", "n"):
            packs = StatefulShardedDataset(tmp_path).pack(4, column="ids", strategy="chunk", lengths=lengths)
            assert len(packs) == len(run(packs)) == 5


# -- Refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_documents_of_other_lengths_are_named(corpus: Path, strategy: Any) -> None:
    packs = make_dataset(corpus, "rows").count_lengths(tokenise, num_workers=0).map(longer)
    with pytest.raises(NotReproducibleError, match=r"row \d+ of part-\d.parquet had 8 tokens .*, and has 9 now"):
        run(packs.pack(LENGTH, strategy=strategy, separator=3))
    with loader_raises(NotReproducibleError, "had 8 tokens"):
        run(SavableLoader(packs.pack(LENGTH, strategy=strategy).batch(2), num_workers=2))


def longer(row: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens of a row; one more where there are 8."""
    ids = tokenise(row)["input_ids"]
    return {"input_ids": [*ids, *ids[:1]] if len(ids) == 8 else ids}


def test_a_state_of_other_lengths_is_a_mismatch(corpus: Path) -> None:
    packs = packs_of(corpus, "chunk").batch(2)
    next(iter(packs))
    state = packs.state_dict()
    others = make_dataset(corpus, "rows").count_lengths(longer, num_workers=0).map(longer)
    uncounted = make_dataset(corpus, "rows")
    for other in (others, uncounted):
        with pytest.raises(CheckpointMismatchError, match=r"stages: saved .*lengths=[0-9a-f]{16}"):
            other.pack(LENGTH, strategy="chunk").batch(2).load_state_dict(state)


def test_columns_that_hold_no_lengths_are_refused(tmp_path: Path) -> None:
    table = pa.table({"ids": [[1], [2, 3]], "text": ["a", "b"], "null": [1, None], "negative": [1, -2]})
    pq.write_table(table, tmp_path / "part-0.parquet")
    rows = StatefulShardedDataset(tmp_path)
    for column, message in (
        ("text", "column 'text' is string, but a column of lengths must hold ints"),
        ("null", r"row 1 of part-0.parquet has 'null' = null, but a number of tokens must be in \[0, "),
        ("negative", "row 1 of part-0.parquet has 'negative' = -2"),
    ):
        with pytest.raises(ColumnConversionError, match=message):
            rows.pack(4, column="ids", lengths=column)
    with pytest.raises(SchemaMismatchError, match="tokens"):
        rows.pack(4, column="ids", lengths="tokens")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows.count_lengths(3), TypeError, "of, unless it is the name of a column, must be callable"),
        (lambda rows: rows.pack(4, lengths=3), TypeError, "lengths must be the name of a column, not 3: give a func"),
        (lambda rows: rows.pack(4, lengths=tokenise), TypeError, "lengths must be the name of a column, not <func"),
        (lambda rows: rows.count_lengths(tokenise, version=3), TypeError, "version must be a string"),
        (lambda rows: rows.count_lengths(tokenise, num_workers=-1), ValueError, "num_workers must be an int"),
        (lambda rows: rows.count_lengths(len, num_workers=0), TypeError, "must return a dict with a list of ints"),
        (lambda rows: rows.batch(2).count_lengths("input_ids"), ValueError, r"count_lengths\(\) takes rows"),
        (lambda rows: rows.flat_map(list).count_lengths("id"), ValueError, r"before flat_map\(\) and pack"),
        (lambda rows: rows.flat_map(list).pack(4, lengths="id"), ValueError, r"before flat_map\(\) and pack"),
        (
            lambda rows: rows.count_lengths("input_ids").flat_map(list).pack(4),
            ValueError,
            r"flat_map\(\) makes several of it",
        ),
        (lambda rows: rows.count_lengths("input_ids").take(3), ValueError, r"other rows than those of count_lengths"),
        (lambda rows: rows.repeat().pack(4, lengths=True), TypeError, "lengths must be the name of a column, not True"),
        (
            lambda rows: rows.pack(4, overflow="error", lengths="input_ids"),
            ValueError,
            r"row \d+ of part-\d.parquet has \d+ tokens, but a pack has 4",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(corpus: Path, change: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        change(make_dataset(corpus, "rows"))


def test_rows_that_are_hidden_have_no_length(corpus: Path) -> None:
    with pytest.raises(ValueError, match="needs a document of each row, but on_error="):
        make_dataset(corpus, "rows", on_error="skip").count_lengths("input_ids")


# -- Weights of tokens ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StatefulShardedDataset]:
    """Return two sources of known lengths: one of 24 documents of 5 tokens on average, one of 10 of 30."""
    found = {}
    for name, sizes in (("short", [2, 8] * 12), ("long", [20, 40] * 5)):
        folder = tmp_path_factory.mktemp(name)
        table = pa.table({"input_ids": pa.array([[7] * size for size in sizes], pa.list_(pa.int32()))})
        pq.write_table(table, folder / "part-0.parquet", row_group_size=4)
        found[name] = StatefulShardedDataset(folder, shuffle=True, shard_rows=4).count_lengths("input_ids")
    return found


def test_weights_of_tokens_are_kept_over_whole_epochs(sources: dict[str, StatefulShardedDataset]) -> None:
    mixture = Mixture(sources, {"short": 0.25, "long": 0.75}, weights_of="tokens")
    assert mixture.weights == {"short": 0.25, "long": 0.75}
    # Two rows of a source for one of the other; 10 epochs of 24 rows, and 12 of 10.
    documents = [row["input_ids"] for row in islice(mixture, 360)]
    of_short = sum(len(document) for document in documents if len(document) <= 8)
    assert [of_short, sum(map(len, documents))] == [240 * 5, 240 * 5 + 120 * 30]
    for count in range(1, 360):
        num_short = sum(len(document) <= 8 for document in documents[:count])
        assert abs(num_short - count * 2 / 3) <= 2


def test_weights_of_tokens_that_change_are_of_tokens_too(sources: dict[str, StatefulShardedDataset]) -> None:
    mixture = Mixture(sources, [(0, {"short": 1, "long": 0}), (20, {"short": 1, "long": 3})], weights_of="tokens")
    loader = SavableLoader(mixture.batch(4))
    batches = iter(loader)
    for _ in range(20):
        next(batches)
    assert loader.sources["short"].target_share == pytest.approx(2 / 3)
    loader.set_weights({"short": 1, "long": 12})
    assert loader.sources["short"].target_share == pytest.approx(1 / 3)
    added = mixture.add({"more": sources["short"]}, {"short": 1, "more": 1, "long": 6})
    assert added.weights == {"short": 1, "more": 1, "long": 6}
    weights = [*added.definition.weighting.weights_at(0).values()]
    assert [weight / weights[0] for weight in weights] == pytest.approx([1, 1, 1])


def test_weights_of_tokens_need_lengths(sources: dict[str, StatefulShardedDataset], corpus: Path) -> None:
    uncounted = {**sources, "corpus": make_dataset(corpus, "rows", columns=["input_ids"])}
    with pytest.raises(ValueError, match=r"needs the lengths of source 'corpus': call its count_lengths\(\)"):
        Mixture(uncounted, {"short": 1, "long": 1, "corpus": 1}, weights_of="tokens")
    with pytest.raises(ValueError, match="weights_of must be one of"):
        Mixture(sources, {"short": 1, "long": 1}, weights_of="bytes")  # type: ignore[arg-type]  # what is refused
    empty = {"none": make_dataset(corpus, "rows").map(no_tokens).count_lengths(no_tokens, num_workers=0)}
    with pytest.raises(ValueError, match="source 'none' has no tokens"):
        Mixture(empty, {"none": 1}, weights_of="tokens")


def no_tokens(_: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": []}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mixes", [False, True], ids=["dataset", "mixture"])
def test_audits_of_packs_accept_a_run_on_other_ranks_and_find_what_is_missing(
    corpus: Path, strategy: str, *, mixes: bool
) -> None:
    def make(rank: int, world_size: int) -> Any:
        rows = make_dataset(corpus, "rows", rank=rank, world_size=world_size, remainder="keep")
        rows = rows.count_lengths("input_ids")
        other = make_dataset(corpus, "rows", seed=4, rank=rank, world_size=world_size).count_lengths("input_ids")
        line: Any = Mixture({"a": rows, "b": other}, {"a": 3, "b": 1}, stop="all_exhausted") if mixes else rows
        return line.pack(LENGTH, strategy=strategy, group_rows=8 if strategy == "best_fit" else None).batch(2)

    states: list[Any] = []
    for world_size, steps in ((1, 3), (2, 2), (3, 1), (1, 1000)):
        loaders = [SavableLoader(make(rank, world_size)) for rank in range(world_size)]
        for loader in loaders:
            if states:
                loader.load_state_dict(states[-1])
            for _ in islice(loader, steps):
                pass
        states.append(saved(loaders[0].state_dict()))
    whole = make(0, 1)
    report = audit(states, whole)
    assert report.is_exact
    assert report.num_left == 0
    num_packs = 0 if mixes else whole.definition.identity.num_items(0)
    if not mixes:
        assert [(each.num_rows, each.num_delivered) for each in report.epochs] == [(num_packs, num_packs)]
    skipped = audit([states[0], *states[2:]], whole)
    assert {each.kind for each in skipped.findings} == {"not delivered"}
    assert sum(each.num_rows for each in skipped.findings) == 2 * 2 * 2
    assert report.unit == "pack"
    assert {each.unit for each in skipped.epochs} == {each.unit for each in skipped.findings} == {"pack"}
    assert "each pack exactly once" in repr(report)
    assert "packs not delivered" in repr(skipped)
    assert "row" not in repr(report)
    again = audit([states[1], states[0]], whole)
    assert sum(each.num_rows for each in again.findings if each.kind == "delivered twice") >= 2 * 2 * 2
    summary = describe_state(states[-1])
    assert summary.is_complete
    assert summary.num_rows is None
    if not mixes:
        assert all(finding.ranges for finding in skipped.findings)
        for refused in (None, str(corpus)):
            with pytest.raises(ValueError, match=r"how many packs there are|the dataset with pack\(\) as source"):
                audit(states, refused)
        with pytest.raises(ValueError, match="how many packs there are"):
            redistribute(states[0], 2)
        ranks = []
        for rank, state in enumerate(redistribute(states[0], 2, source=whole)):
            resumed = make(rank, 2)
            resumed.load_state_dict(state)
            ranks.append(len(run(resumed)))
        assert sum(ranks) >= -(-(num_packs - 6) // 2)
