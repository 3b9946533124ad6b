"""Datasets whose rows become items or packs: resumed exactly after every batch, everything exactly once."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import (
    CheckpointMismatchError,
    ColumnConversionError,
    LanewayError,
    Mixture,
    NotReproducibleError,
    SavableLoader,
    SchemaMismatchError,
    StatefulShardedDataset,
    audit,
    describe_state,
    merge_states,
)
from laneway.core.apart import merge_gathered
from tests.compat import staged
from tests.compat.loaders import FORKSERVER, loader_raises, saved
from tests.compat.staged import KINDS, LENGTH, make_dataset, packed_tokens, plain, run, run_with_states
from tests.fuzzing import ci_tries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from laneway import RowContext


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged.write_corpus(tmp_path_factory.mktemp("corpus"))


def check_resumes_everywhere(make: Callable[[], Any], every: int = 1) -> None:
    """Check that a pass resumes exactly from its states: from each, or from every so many."""
    batches, states = run_with_states(make())
    assert len(batches) > 5
    for step in range(0, len(states), every):
        resumed = make()
        resumed.load_state_dict(states[step])
        if not isinstance(resumed, StatefulDataLoader):
            # That knows more of a worker which has come to its end than it restores.
            assert saved(resumed.state_dict()) == states[step]
        assert run(resumed) == batches[step:]


@pytest.mark.parametrize("kind", KINDS)
def test_single_items_resume_anywhere(corpus: Path, kind: str) -> None:
    check_resumes_everywhere(lambda: make_dataset(corpus, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_resume_anywhere(corpus: Path, kind: str) -> None:
    check_resumes_everywhere(lambda: make_dataset(corpus, kind).batch(3))


@pytest.mark.parametrize(
    "kind", ci_tries(("flat_map", "best_fit of known lengths", "chunk of known lengths", "random"), KINDS)
)
def test_forked_workers_resume_anywhere(corpus: Path, kind: str) -> None:
    def make() -> SavableLoader:
        return SavableLoader(
            make_dataset(corpus, kind).batch(3), num_workers=2, multiprocessing_context="fork", persistent_workers=True
        )

    check_resumes_everywhere(make, every=5)


@pytest.mark.parametrize(
    "kind", ["flat_map", "best_fit of a column", "chunk of sentences", "best_fit of known lengths"]
)
def test_workers_of_a_fork_server_resume(corpus: Path, kind: str) -> None:
    def make() -> SavableLoader:
        dataset = make_dataset(corpus, kind)
        return SavableLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context=FORKSERVER)

    check_resumes_everywhere(make, every=9)


@pytest.mark.thorough
def test_spawned_workers_resume(corpus: Path) -> None:
    def make() -> SavableLoader:
        dataset = make_dataset(corpus, "chunk of sentences").batch(3)
        return SavableLoader(dataset, num_workers=2, multiprocessing_context="spawn")

    batches, states = run_with_states(make())
    resumed = make()
    resumed.load_state_dict(states[4])
    assert run(resumed) == batches[4:]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["flat_map", "best_fit of sentences", "chunk"])
@pytest.mark.parametrize("is_batched", ci_tries((True,), (True, False)))
def test_a_stateful_dataloader_resumes_anywhere(corpus: Path, kind: str, num_workers: int, *, is_batched: bool) -> None:
    def make() -> Any:
        dataset = make_dataset(corpus, kind)
        if is_batched:
            return StatefulDataLoader(dataset.batch(3), batch_size=None, num_workers=num_workers)
        return StatefulDataLoader(dataset.map(itemised), batch_size=None, num_workers=num_workers)

    check_resumes_everywhere(make, every=7 if num_workers else 2)


def itemised(item: Any) -> Any:
    """Return an item as it is: a function after the stages."""
    return item


@pytest.mark.parametrize("kind", ["flat_map", "best_fit", "chunk of a column"])
def test_ranks_resume_from_their_own_states_and_from_merged_ones(corpus: Path, kind: str) -> None:
    def make(rank: int) -> SavableLoader:
        dataset = make_dataset(corpus, kind, rank=rank, world_size=2, remainder="keep").batch(2)
        return SavableLoader(dataset)

    whole = [run(make(rank)) for rank in range(2)]
    for step in range(0, min(map(len, whole)), 3):
        ranks = [make(rank) for rank in range(2)]
        for loader in ranks:
            batches = iter(loader)
            for _ in range(step):
                next(batches)
        of_ranks = [saved(loader.save_state_rank()) for loader in ranks]
        merged = saved(merge_states(of_ranks))
        for rank in range(2):
            resumed = make(rank)
            resumed.restore_state_rank(of_ranks[rank])
            assert run(resumed) == whole[rank][step:]
            resumed = make(rank)
            resumed.load_state_dict(merged)
            assert run(resumed) == whole[rank][step:]


def test_one_rank_does_not_speak_for_the_job(corpus: Path) -> None:
    def make(rank: int) -> SavableLoader:
        return SavableLoader(make_dataset(corpus, "chunk", rank=rank, world_size=2, remainder="keep").batch(2))

    loader = make(0)
    next(iter(loader))
    state = loader.state_dict()
    assert state["laneway"][0]["scope"] == "rank"
    with pytest.raises(CheckpointMismatchError, match=r"merge_states|rank"):
        make(1).load_state_dict(state)


# -- What is delivered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["best_fit of a column", "chunk of a column", "chunk"])
def test_every_token_comes_once(corpus: Path, kind: str, num_workers: int) -> None:
    loader = SavableLoader(make_dataset(corpus, kind).batch(3), num_workers=num_workers)
    expected = Counter(token for document in staged.tokens() for token in document)
    if kind == "chunk of a column":
        expected[1] += sum(map(bool, staged.tokens()))
    assert Counter(packed_tokens(run(loader))) == expected
    second = Counter(packed_tokens(run(loader)))
    assert second == expected
    assert loader.epoch == 1


def test_best_fit_cuts_no_document_that_fits(corpus: Path) -> None:
    found: Counter[tuple[int, ...]] = Counter()
    for pack in make_dataset(corpus, "best_fit of a column"):
        assert pack["input_ids"].dtype == pack["position_ids"].dtype == pack["document_ids"].dtype == torch.int64
        assert pack["input_ids"].shape == (LENGTH,)
        numbers = pack["document_ids"]
        assert sorted({*numbers.tolist()} - {0}) == [*range(1, int(numbers.max()) + 1)]
        for number in range(1, int(numbers.max()) + 1):
            document = pack["input_ids"][numbers == number]
            assert pack["position_ids"][numbers == number].tolist() == [*range(len(document))]
            found[tuple(document.tolist())] += 1
        assert not pack["input_ids"][numbers == 0].any()
    for document in staged.tokens():
        pieces = (
            [document]
            if len(document) <= LENGTH
            else [document[start : start + LENGTH] for start in range(0, len(document), LENGTH)]
        )
        for piece in filter(None, pieces):
            found[tuple(piece)] -= 1
    assert not any(found.values())


def test_chunks_are_the_documents_end_to_end_and_the_last_is_padded(corpus: Path) -> None:
    order = [row["id"] for row in make_dataset(corpus, "rows")]
    line = [token for row in order for token in [*staged.tokens()[row], *[1] * bool(staged.tokens()[row])]]
    packs = run(make_dataset(corpus, "chunk of a column"))
    assert packed_tokens(packs) == line
    num_padding = -len(line) % LENGTH
    assert num_padding
    assert packs[-1]["document_ids"][-num_padding:] == [0] * num_padding
    assert packs[-1]["input_ids"][-num_padding:] == [0] * num_padding
    assert all(0 not in pack["document_ids"] for pack in packs[:-1])


def test_items_of_flat_map_are_in_the_order_of_their_rows(corpus: Path) -> None:
    rows = run(make_dataset(corpus, "rows"))
    assert run(make_dataset(corpus, "flat_map")) == [item for row in rows for item in staged.in_sentences(row)]


def test_sequence_lengths_of_a_batch_are_those_of_its_packs_end_to_end(corpus: Path) -> None:
    for batch in make_dataset(corpus, "chunk").batch(4):
        bounds, starts = batch["cu_seqlens"], (batch["position_ids"].reshape(-1) == 0).nonzero().reshape(-1)
        assert bounds.dtype == torch.int32
        assert bounds[:-1].tolist() == starts.tolist()
        assert int(bounds[-1]) == batch["input_ids"].numel()


def test_functions_are_called_on_items_packs_and_batches(corpus: Path) -> None:
    dataset = make_dataset(corpus, "best_fit of a column").map(with_sum).batch(2).map(with_batch_sum)
    plain_batches = run(make_dataset(corpus, "best_fit of a column").batch(2))
    for batch, expected in zip(dataset, plain_batches, strict=True):
        assert batch["input_ids"].tolist() == expected["input_ids"]
        assert batch["sum"].tolist() == [sum(row) for row in expected["input_ids"]]
        assert batch["of batch"] == sum(map(sum, expected["input_ids"]))


def with_sum(pack: dict[str, Any]) -> dict[str, Any]:
    return {**pack, "sum": pack["input_ids"].sum()}


def with_batch_sum(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "of batch": int(batch["sum"].sum())}


def test_a_short_last_batch_can_be_dropped(corpus: Path) -> None:
    kept = run(make_dataset(corpus, "chunk").batch(4))
    assert [len(batch["input_ids"]) for batch in kept][-1] < 4
    assert run(make_dataset(corpus, "chunk").batch(4, drop_last=True)) == kept[:-1]


def test_batches_of_rows_are_those_of_batch_size(corpus: Path) -> None:
    def columns(**arguments: Any) -> Any:
        return make_dataset(corpus, "rows", columns=["id"], **arguments)

    batches = [*columns().batch(5)]
    assert run(batches) == run(columns(batch_size=5))
    assert batches[0]["id"].dtype == torch.int64
    doubled = columns().map(with_double).batch(5).map(with_total)
    assert [batch["total"] for batch in doubled] == [3 * sum(batch["id"].tolist()) for batch in batches]
    check_resumes_everywhere(lambda: columns().map(with_double).batch(5).map(with_total))


def with_double(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "double": 2 * row["id"]}


def with_total(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "total": int(batch["id"].sum() + batch["double"].sum())}


def test_a_dataset_with_stages_has_no_length(corpus: Path) -> None:
    dataset = make_dataset(corpus, "chunk").batch(3)
    loader = SavableLoader(dataset)
    for each in (dataset, loader):
        with pytest.raises(TypeError, match="depends on the data"):
            len(each)
    assert "batches of 3 packs by pack(16, 'input_ids', 'chunk', separator=None)" in repr(loader)
    next(iter(loader))
    assert loader.batches_delivered == 1
    assert "1 delivered" in repr(loader)


# -- States ------------------------------------------------------------------------------------------------------------


def test_a_state_holds_two_integers_for_each_lane(corpus: Path) -> None:
    loader = SavableLoader(make_dataset(corpus, "best_fit").batch(3), num_workers=2)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    (state,) = loader.state_dict()["laneway"]
    assert len(state["positions"]) == len(state["offsets"]) == 2
    assert state["stages"] == "pack(16, 'input_ids', 'best_fit', separator=1, overflow='truncate', group_rows=8)"


def test_other_stages_are_a_mismatch(corpus: Path) -> None:
    dataset = make_dataset(corpus, "best_fit").batch(3)
    next(iter(dataset))
    state = dataset.state_dict()
    for other in ("best_fit of a column", "chunk", "flat_map", "rows"):
        with pytest.raises(CheckpointMismatchError, match=r"stages: saved \"pack\(16.*\", this run has "):
            make_dataset(corpus, other).batch(3).load_state_dict(state)


def test_other_workers_are_refused_while_rows_are_half_delivered(corpus: Path) -> None:
    loader = SavableLoader(make_dataset(corpus, "chunk").batch(3), num_workers=2)
    next(iter(loader))
    other = SavableLoader(make_dataset(corpus, "chunk").batch(3), num_workers=3)
    with pytest.raises(CheckpointMismatchError, match=r"half delivered.*can share its 2 lane"):
        other.load_state_dict(loader.state_dict())
    assert other.batches_delivered == 0, "nothing has changed"


@pytest.mark.filterwarnings("ignore:the loaded state is of the last batch")
@pytest.mark.parametrize("kind", ["best_fit of a column", "chunk"])
def test_one_epoch_of_repeated_rows_resumes_on_any_workers(corpus: Path, kind: str) -> None:
    expected = Counter(token for document in staged.tokens() for token in document)

    def make(num_workers: int) -> SavableLoader:
        epoch = staged.with_stages(make_dataset(corpus, "rows").repeat(1), kind).batch(1 + num_workers % 2)
        context = "fork" if num_workers else None
        return SavableLoader(epoch, num_workers=num_workers, multiprocessing_context=context)

    for step in (1, 8, 20, 33, 45, 52):
        loader = make(3)
        found = packed_tokens(map(plain, islice(loader, step // 2)))
        for num_workers in (2, 0):
            resumed = make(num_workers)
            resumed.load_state_dict(saved(loader.state_dict()))
            found += packed_tokens(map(plain, islice(resumed, 3 if num_workers else None)))
            loader = resumed
        assert Counter(found) == expected


@pytest.mark.parametrize("kind", ["flat_map", "best_fit", "chunk"])
def test_functions_that_return_something_else_are_noticed(corpus: Path, kind: str) -> None:
    original = make_dataset(corpus, "rows")
    made: Any = {
        "flat_map": lambda dataset, fn: dataset.flat_map(lambda row: [fn(row)] * 3 if fn is longer else [fn(row)] * 2),
        "best_fit": lambda dataset, fn: dataset.map(fn).pack(LENGTH),
        "chunk": lambda dataset, fn: dataset.map(fn).pack(LENGTH, strategy="chunk"),
    }[kind]
    dataset = made(original, same)
    next(iter(dataset))
    state = dataset.state_dict()
    assert state["offsets"] is not None
    resumed = made(make_dataset(corpus, "rows"), longer)
    resumed.load_state_dict(state)
    with pytest.raises(NotReproducibleError, match=r"must return the same for the same row") as raised:
        next(iter(resumed))
    assert "part-" in raised.value.__notes__[-1]
    assert resumed.state_dict() == state


def same(row: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": [row["id"] + 1] * 20}


def longer(row: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": [row["id"] + 1] * 21}


# -- Bad input ---------------------------------------------------------------------------------------------------------


def test_columns_that_are_no_lists_of_ints_are_refused(corpus: Path) -> None:
    dataset = make_dataset(corpus, "rows")
    with pytest.raises(ColumnConversionError, match="column 'text' can't be packed: it is string"):
        dataset.pack(LENGTH, column="text")
    with pytest.raises(SchemaMismatchError, match=r"no column 'tokens' to pack: .* id, text, input.* Call map\(\)"):
        dataset.pack(LENGTH, column="tokens")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([[1], [2, 3]], "document 0 has lists of different lengths"),
        ([1.5], "document 0 is float64"),
        ("text", "document 0 is str"),
        (7, "it is int, not a list of ints"),
        (None, "needs column 'input_ids', but the functions before it returned a dict with 'input_ids'"),
    ],
)
@pytest.mark.parametrize("strategy", ["best_fit", "chunk"])
def test_documents_that_are_no_lists_of_ints_are_named(
    corpus: Path, document: Any, message: str, strategy: Any
) -> None:
    dataset = make_dataset(corpus, "rows").map(lambda _: {"input_ids": document}).pack(LENGTH, strategy=strategy)
    with pytest.raises(TypeError, match=message) as raised:
        next(iter(dataset))
    assert "part-" in " ".join([str(raised.value), *getattr(raised.value, "__notes__", [])])


def test_nulls_in_files_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input_ids": [[1], None, [2]]}), tmp_path / "part-0.parquet")
    with pytest.raises(ColumnConversionError, match="document 1 is null") as raised:
        next(iter(StatefulShardedDataset(tmp_path).pack(2)))
    assert raised.value.__notes__ == ["document 1 is that of row 1 of part-0.parquet"]


@pytest.mark.parametrize("overflow", ["split", "truncate", "drop", "error"])
def test_documents_that_are_too_long(tmp_path: Path, overflow: Any) -> None:
    pq.write_table(pa.table({"input_ids": [[1, 2], [*range(1, 8)], [3]]}), tmp_path / "part-0.parquet")
    dataset = StatefulShardedDataset(tmp_path).pack(3, overflow=overflow)
    if overflow == "error":
        with pytest.raises(ValueError, match="document 1 has 7 tokens, but a pack has 3") as raised:
            next(iter(dataset))
        assert raised.value.__notes__ == ["document 1 is that of row 1 of part-0.parquet"]
        return
    expected = {
        "split": [[1, 2, 3], [1, 2, 3], [4, 5, 6], [7, 0, 0]],
        "truncate": [[1, 2, 3], [1, 2, 3]],
        "drop": [[1, 2, 3]],
    }[overflow]
    assert sorted(pack["input_ids"].tolist() for pack in dataset) == sorted(expected) or overflow == "split"
    assert Counter(packed_tokens(run(dataset))) == Counter(
        {"split": [1, 2, 3, *range(1, 8)], "truncate": [1, 2, 3, 1, 2, 3], "drop": [1, 2, 3]}[overflow]
    )


def test_several_ranks_must_be_allowed_to_end_apart(corpus: Path) -> None:
    dataset = make_dataset(corpus, "chunk", rank=0, world_size=2).batch(3)
    with pytest.raises(ValueError, match=r"2 ranks would deliver different numbers of batches.*remainder=\"keep\""):
        next(iter(dataset))
    with pytest.raises(ValueError, match='remainder="pad" evens out rows'):
        make_dataset(corpus, "chunk", remainder="pad")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda dataset: dataset.flat_map(3), TypeError, "fn must be callable"),
        (lambda dataset: dataset.pack(0), ValueError, "length must be an int of at least 1"),
        (lambda dataset: dataset.pack(4, strategy="first_fit"), ValueError, "strategy"),
        (lambda dataset: dataset.pack(4, overflow="split it"), ValueError, "overflow"),
        (lambda dataset: dataset.pack(4, mask="blocks"), ValueError, "mask"),
        (lambda dataset: dataset.pack(4, separator="</s>"), TypeError, "separator must be a token"),
        (lambda dataset: dataset.pack(4, separator=2**63), ValueError, "separator must be a token that int64 can"),
        (lambda dataset: dataset.pack(4, pad_value=-(2**64)), ValueError, "pad_value must be a token that int64 can"),
        (lambda dataset: dataset.pack(4, pad_value=None), TypeError, "pad_value must be a token, an int, not None"),
        (lambda dataset: dataset.pack(4, group_rows=0), ValueError, "group_rows"),
        (lambda dataset: dataset.pack(4, strategy="chunk", overflow="drop"), ValueError, "has no effect"),
        (lambda dataset: dataset.pack(4).pack(4), ValueError, r"pack\(\) can't follow pack"),
        (lambda dataset: dataset.pack(4).flat_map(list), ValueError, r"flat_map\(\) can't follow pack"),
        (
            lambda dataset: dataset.pack(4).map(dict, with_context=True),
            ValueError,
            "a pack of many rows has no context",
        ),
        (lambda dataset: dataset.pack(4).batch(2).map(dict, with_context=True), ValueError, "no context"),
        (lambda dataset: dataset.pack(4).batch(2).batch(2), ValueError, "already yields batches of 2"),
        (lambda dataset: dataset.batch(2).pack(4), ValueError, r"pack\(\) takes rows"),
        (lambda dataset: dataset.batch(0), ValueError, "batch_size must be an int of at least 1"),
        (lambda dataset: dataset.pack(4).take(3), ValueError, r"call it before flat_map\(\) and pack"),
        (lambda dataset: dataset.flat_map(list).filter([("id", ">", 3)]), ValueError, "call it before"),
    ],
)
def test_what_makes_no_sense_is_refused(corpus: Path, change: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        change(make_dataset(corpus, "rows"))


def test_a_function_that_returns_no_list_is_named(corpus: Path) -> None:
    with pytest.raises(TypeError, match="flat_map returned dict, but it must return a list") as raised:
        next(iter(make_dataset(corpus, "rows").flat_map(lambda row: row)))
    assert "part-" in raised.value.__notes__[-1]


def test_a_stage_may_drop_every_row(corpus: Path) -> None:
    dataset = make_dataset(corpus, "rows").flat_map(lambda _: None)
    assert run(dataset) == []
    assert dataset.state_dict()["complete"]
    loader = SavableLoader(make_dataset(corpus, "rows").map(lambda _: {"input_ids": []}).pack(4).batch(2))
    assert run(loader) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_without_an_end_that_drops_every_row_is_an_error(corpus: Path, num_workers: int) -> None:
    for dataset in (
        make_dataset(corpus, "rows").repeat().flat_map(nothing),
        make_dataset(corpus, "rows").repeat().map(no_tokens).pack(4, strategy="chunk"),
        make_dataset(corpus, "rows").repeat().map(same).pack(4, overflow="drop", group_rows=50),
    ):
        with loader_raises(LanewayError, "rows of a lane without an end have made no item"):
            next(iter(SavableLoader(dataset.batch(2), num_workers=num_workers)))


def nothing(_: dict[str, Any]) -> None:
    """Drop a row."""


def no_tokens(_: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": []}


def test_a_stream_without_an_end_resumes_on_any_ranks_workers_and_batches(corpus: Path) -> None:
    """Each epoch's tokens come once, over real workers, however many there are."""
    state: dict[str, Any] | None = None
    found: Counter[tuple[int, int]] = Counter()
    for world_size, num_workers, batch_size, num_batches in [(1, 2, 3, 9), (2, 0, 2, 7), (1, 3, 1, 11), (2, 2, 2, 6)]:
        loaders = []
        for rank in range(world_size):
            rows = make_dataset(corpus, "rows", rank=rank, world_size=world_size).repeat()
            items = rows.flat_map(numbered, with_context=True).batch(batch_size)
            loaders.append(
                SavableLoader(items, num_workers=num_workers, multiprocessing_context="fork" if num_workers else None)
            )
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
            batches = iter(loader)
            for _ in range(num_batches):
                batch = next(batches)
                found.update(zip(*(batch[name].tolist() for name in ("epoch", "id", "number")), strict=True))
        state = saved(merge_states([loader.save_state_rank() for loader in loaders]))
    assert max(found.values()) == 1
    assert sum(found.values()) == 9 * 3 + 7 * 2 * 2 + 11 + 6 * 2 * 2


def numbered(row: dict[str, Any], context: RowContext) -> list[dict[str, int]]:
    """Return up to four items of a row."""
    return [{"epoch": context.epoch, "id": row["id"], "number": number} for number in range(row["id"] % 5)]


@pytest.mark.parametrize("kind", ["flat_map", "chunk of sentences", "chunk of known lengths"])
def test_repeating_stages_is_to_repeat_rows_before_them(corpus: Path, kind: str) -> None:
    after = make_dataset(corpus, kind).repeat()
    items = [plain(item) for item in islice(after, 200)]
    if kind != "chunk of known lengths":
        before = staged.with_stages(make_dataset(corpus, "rows").repeat(), kind)
        assert items == [plain(item) for item in islice(before, 200)]
    assert len(items) == 200
    twice = run(make_dataset(corpus, kind).repeat(2).batch(2))
    resumed = make_dataset(corpus, kind).repeat(2).batch(2)
    for _ in islice(resumed, 11):
        pass
    again = make_dataset(corpus, kind).repeat(2).batch(2)
    again.load_state_dict(resumed.state_dict())
    assert run(again) == twice[11:]


@pytest.mark.parametrize("kind", ["flat_map", "best_fit of a column", "chunk of sentences"])
def test_a_stream_without_an_end_goes_on_exactly(corpus: Path, kind: str) -> None:
    def make() -> SavableLoader:
        return SavableLoader(staged.with_stages(make_dataset(corpus, "rows").repeat(), kind).batch(2))

    batches, states = iter(make()), []
    loader = make()
    running, expected = iter(loader), []
    for _ in range(40):
        expected.append(plain(next(running)))
        states.append(saved(loader.state_dict()))
        assert plain(next(batches)) == expected[-1]
    for step in range(0, 36, 3):
        resumed = make()
        resumed.load_state_dict(states[step])
        again = iter(resumed)
        assert [plain(next(again)) for _ in range(3)] == expected[step + 1 : step + 4]


def test_rows_for_which_a_function_fails_can_be_skipped(corpus: Path) -> None:
    def half(row: dict[str, Any]) -> Any:
        if row["id"] % 2:
            message = "odd"
            raise ValueError(message)
        return [row["id"]]

    dataset = make_dataset(corpus, "rows", on_error="skip").flat_map(half)
    assert sorted(run(dataset)) == [*range(0, staged.NUM_DOCUMENTS, 2)]
    with pytest.raises(ValueError, match='on_error="mask" would have a filler'):
        make_dataset(corpus, "rows", on_error="mask").flat_map(half)


def test_after_an_error_the_same_items_come_again(corpus: Path) -> None:
    fails = {20: True}

    def flaky(row: dict[str, Any]) -> dict[str, Any]:
        if fails.pop(row["id"], False):
            message = "once"
            raise OSError(message)
        return staged.tokenise(row)

    expected = run(make_dataset(corpus, "rows").map(staged.tokenise).pack(LENGTH, group_rows=8).batch(2))
    batches, found = iter(make_dataset(corpus, "rows").map(flaky).pack(LENGTH, group_rows=8).batch(2)), []
    num_errors = 0
    while True:
        try:
            found.append(plain(next(batches)))
        except OSError:
            num_errors += 1
        except StopIteration:
            break
    assert num_errors == 1
    assert found == expected


@pytest.mark.parametrize("mixes", [False, True], ids=["dataset", "mixture"])
@pytest.mark.parametrize("kind", ["known packs", "packs", "items"])
def test_a_pass_of_batches_goes_on_with_single_items(corpus: Path, kind: str, *, mixes: bool) -> None:
    def make() -> Any:
        rows: Any = make_dataset(corpus, "rows")
        rows = rows.repeat(1) if mixes or kind == "packs" else rows
        if kind == "items":
            return rows.flat_map(lambda row: [{"input_ids": [token]} for token in row["input_ids"][:2]])
        return rows.pack(LENGTH, strategy="chunk", lengths="input_ids" if kind == "known packs" else None)

    expected = Counter(str(item) for item in run(make()))
    for loads in (False, True):
        batched, single = make().batch(3), make()
        reader = SavableLoader(batched) if loads else batched
        batches = iter(reader)
        for _ in range(2):
            next(batches)
        resumed = SavableLoader(single) if loads else single
        resumed.load_state_dict(saved(reader.state_dict()))
        after = run(resumed)
        assert 2 * 3 + len(after) == expected.total()
        assert not Counter(str(item) for item in after) - expected


def test_turns_of_several_packs_need_batches(corpus: Path) -> None:
    packs = make_dataset(corpus, "rows", turn_rows=2).pack(LENGTH, lengths="input_ids")
    assert run(packs.batch(4))
    for single in (packs, SavableLoader(packs)):
        with pytest.raises(ValueError, match="turn_rows=2 counts the packs of a batch, and there are no batches"):
            next(iter(single))


def test_ranks_that_come_to_a_change_of_weights_apart_are_saved_and_resume(tmp_path: Path) -> None:
    for name, length in (("short", 1), ("long", 9)):
        pq.write_table(pa.table({"input_ids": [[token] * length for token in range(40)]}), tmp_path / f"{name}.parquet")
    schedule = [(0, {"short": 1, "long": 1}), (40, {"short": 5, "long": 1})]

    sources = {name: StatefulShardedDataset(tmp_path / f"{name}.parquet") for name in ("short", "long")}
    packs = Mixture(sources, schedule).pack(8, strategy="chunk").batch(2)

    def ranks(world_size: int) -> list[SavableLoader]:
        return [SavableLoader(packs.shard(world_size, rank)) for rank in range(world_size)]

    begun = ranks(2)
    ahead, behind = map(iter, begun)
    for batches, count in ((ahead, 9), (behind, 3)):
        run(islice(batches, count))
    state = merge_gathered([loader.save_state_rank() for loader in begun])
    num_delivered = describe_state(state).num_delivered
    assert num_delivered is not None
    assert num_delivered < 40
    assert [each.kind for each in audit([state], source=packs).findings] == ["unknown"]

    resumed = ranks(2)
    for loader, rest in zip(resumed, (ahead, behind), strict=True):
        loader.load_state_dict(state)
        assert run(islice(loader, 10)) == run(islice(rest, 10))
    with pytest.raises(CheckpointMismatchError, match=r"a scheduled change of the weights.* on 2 ranks only"):
        ranks(3)[0].load_state_dict(state)
