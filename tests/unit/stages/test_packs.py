"""The packs of a lane: in sequence or group by group, from any position on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.progress import LanePosition
from laneway.errors import NotReproducibleError
from laneway.stages.packs import Chunks, Documents, PackOptions, fitted_runs, half_delivered, joined_documents
from laneway.stages.tokens import TokenLists, with_separators

if TYPE_CHECKING:
    from laneway.stages.runs import Run


def options(**changes: Any) -> PackOptions:
    arguments: dict[str, Any] = {
        "length": 4,
        "column": "ids",
        "strategy": "chunk",
        "separator": None,
        "overflow": "split",
        "mask": "document_ids",
        "pad_value": 0,
        "group_rows": 10,
    }
    return PackOptions(**{**arguments, **changes})


def documents(*sizes: list[int], first: int = 0) -> Documents:
    """Return the documents of rows `first`, ...: their sizes. Tokens are 1, 2, 3, ..."""
    flat = [size for row in sizes for size in row]
    rows = [first + index for index, row in enumerate(sizes) for _ in row]
    starts = np.cumsum([0, *flat])
    return Documents.of(TokenLists(np.arange(1, 1 + sum(flat)), starts), np.array(rows, np.int64), first + len(sizes))


def ids(run: Run) -> list[list[int]]:
    return [pack["input_ids"].tolist() for pack in run.items]


def positions(run: Run) -> list[LanePosition]:
    return [run.position_after(index) for index in range(len(run.items))]


def without_check(position: LanePosition) -> tuple[int, int]:
    return position.rows, position.offset % 2**30


def test_chunks_go_on_from_one_run_to_the_next_and_count_tokens_of_the_row_under_way() -> None:
    chunks = Chunks(options())
    first = chunks.cut(documents([3], [2, 4]))
    assert ids(first) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [*map(without_check, positions(first))] == [(1, 1), (1, 5)]
    second = chunks.cut(documents([], [1], first=2))
    assert ids(second) == []
    assert without_check(second.end) == (1, 5)
    last = chunks.finish(4)
    assert ids(last) == [[9, 1, 0, 0]]
    (pack,) = last.items
    assert pack["document_ids"].tolist() == [1, 2, 0, 0]
    assert pack["position_ids"].tolist() == [0, 0, 0, 1]
    assert last.end == LanePosition(4)
    assert not Chunks(options()).finish(9).items


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=9), st.integers(1, 6), st.booleans())
def test_from_the_position_after_any_chunk_the_same_chunks_follow(
    sizes: list[list[int]], length: int, separated: bool
) -> None:
    whole = documents(*sizes)
    if separated:
        whole = Documents.of(with_separators(whole.tokens, -1), whole.rows, whole.stop)
    chunks = Chunks(options(length=length))
    run = chunks.cut(whole)
    expected = [*ids(run), *ids(chunks.finish(len(sizes)))]
    for index, (row, offset) in enumerate(positions(run)):
        again = Chunks(options(length=length))
        found: list[list[int]] = []
        for each in range(row, len(sizes)):
            is_of_row = whole.rows == each
            first = int(np.argmax(is_of_row)) if is_of_row.any() else 0
            stop = first + int(is_of_row.sum())
            own = Documents.of(whole.tokens.slice(first, stop), whole.rows[first:stop], each + 1)
            if each == row and offset:
                own = half_delivered(own, offset, 0, of="tokens")
            part = again.cut(own)
            found += ids(part)
            if each == row and positions(part):
                after = positions(run)[index + 1]
                assert positions(part)[0] == after or after.rows > row
        assert [*found, *ids(again.finish(len(sizes)))] == expected[index + 1 :]


def test_what_an_earlier_cut_left_of_a_row_is_counted_from_there() -> None:
    row = documents([5, 4])
    chunks = Chunks(options())
    run = chunks.cut(row)
    carried = run.position_after(0).offset
    rest = half_delivered(row, 0, carried, of="tokens")
    run = Chunks(options()).cut(rest)
    assert ids(run) == [[5, 6, 7, 8]]
    assert run.position_after(0) == LanePosition(0, 4)
    assert half_delivered(row, 4, carried, of="tokens").tokens.stream.tolist() == [9]
    with pytest.raises(NotReproducibleError, match=r"4 tokens were delivered before.*, 8 in all"):
        half_delivered(documents([5, 3]), 0, carried, of="tokens")
    with pytest.raises(NotReproducibleError, match="0 in all"):
        half_delivered(documents([]), 0, carried, of="tokens")


def test_groups_are_packed_from_any_position_on() -> None:
    group = documents([3], [2], [1, 4], [9], first=20)
    arguments = options(strategy="best_fit", separator=7)
    (whole,) = fitted_runs(arguments, group, LanePosition(20))
    assert whole.end == LanePosition(24)
    for index, position in enumerate([LanePosition(20), *positions(whole)[:-1]]):
        (run,) = fitted_runs(arguments, group, position)
        assert ids(run) == ids(whole)[index:]
    with pytest.raises(NotReproducibleError, match="packs of rows 20 to 24 of a lane"):
        [*fitted_runs(arguments, documents([3], [2], [4, 1], [9], first=20), positions(whole)[0])]
    carried = positions(whole)[1].offset
    (run,) = fitted_runs(arguments, group, LanePosition(20), carried)
    assert ids(run) == ids(whole)[2:]
    assert run.position_after(0) == LanePosition(20, 1)


def test_a_group_without_tokens_is_passed_over() -> None:
    (run,) = fitted_runs(options(strategy="best_fit"), documents([0], [], [0]), LanePosition(0))
    assert not run.items
    assert run.end == LanePosition(3)


def test_documents_of_several_parts_are_joined() -> None:
    one, other = documents([3], [2]), documents([1, 1], first=2)
    both = joined_documents([one, other])
    assert both.rows.tolist() == [0, 1, 2, 2]
    assert both.before.tolist() == [0, 0, 0, 1]
    assert both.width.tolist() == [3, 2, 2, 2]
    assert both.stop == 3
    assert joined_documents([one]) is one
    assert joined_documents([one], np.int64).tokens.values.dtype == np.int64


def test_the_text_of_a_pack_names_what_decides_its_tokens() -> None:
    assert options().text == "pack(4, 'ids', 'chunk', separator=None)"
    fitted = options(strategy="best_fit", separator=2, overflow="drop")
    assert fitted.text == "pack(4, 'ids', 'best_fit', separator=2, overflow='drop', group_rows=10)"
