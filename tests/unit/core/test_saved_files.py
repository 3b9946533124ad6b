"""The file table in states: short enough, read back with bounded memory, and refused where it is damaged."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laneway.core.files import FileTable
from laneway.core.saved_files import (
    MAX_ENCODED_BYTES,
    FileFacts,
    decode_files,
    decode_parts,
    names_files,
    part_digests,
    part_starts,
)
from laneway.core.strings import Strings
from laneway.errors import StateFormatError

TABLE = FileTable.build(["b", "a"], [20, 10], ["02", "01"], [([3, 0], [30, 0]), ([], [])], "schema")


def packed(value: Any, level: int = 9) -> str:
    """Return what earlier releases wrote into states."""
    return base64.b85encode(zlib.compress(json.dumps(value).encode(), level)).decode()


def many(num_files: int, *, seed: int = 0) -> FileTable:
    """Return a table of files with random digests, as they are in practice."""
    digests = np.random.default_rng(seed).bytes(8 * num_files).hex()
    return FileTable.build(
        [f"data/part-{number:07}.parquet" for number in range(num_files)],
        [1000] * num_files,
        [digests[start : start + 16] for start in range(0, 16 * num_files, 16)],
        [([10], [100])] * num_files,
        "s",
    )


def test_few_files_are_named_with_their_facts() -> None:
    assert names_files(TABLE.encoded)
    assert decode_files(TABLE.encoded) == {"a": FileFacts(10, 0, "01"), "b": FileFacts(20, 3, "02")}
    assert decode_files(FileTable.build([], [], [], [], "schema").encoded) == {}


def test_the_tables_of_earlier_releases_are_read() -> None:
    facts = [["a", "b"], [10, 20], [0, 3], ["01", "02"]]
    assert decode_files(packed(facts)) == decode_files(TABLE.encoded)


@pytest.mark.parametrize("num_files", [1000, 2000, 3000, 6000, 50_000])
def test_a_table_in_a_state_is_short_however_many_files_there_are(num_files: int) -> None:
    files = many(num_files)
    assert len(files.encoded) < MAX_ENCODED_BYTES
    if names_files(files.encoded):
        assert list(decode_files(files.encoded)) == list(files.paths)
        return
    found = decode_parts(files.encoded)
    assert (found.num_files, found.num_rows) == (num_files, 10 * num_files)
    assert len(found.digests) == pytest.approx(num_files / 1024, rel=0.5, abs=4)


def test_the_table_of_ten_thousand_files_takes_two_hundred_characters() -> None:
    assert len(many(10_000).encoded) < 300


@pytest.mark.parametrize("text", ["", "~", "c-jO", "0", "\u00e9", TABLE.encoded[:-9], f"{TABLE.encoded} "])
def test_a_damaged_table_is_no_state(text: str) -> None:
    with pytest.raises(StateFormatError, match="truncated or damaged"):
        decode_files(text)


@pytest.mark.parametrize(
    "value",
    [
        [],
        None,
        5,
        {"a": 1},
        [["a"], [1], [2]],
        [["a"], [1], [2], ["0"], []],
        [["a", "b"], [1], [2], ["0"]],
        [["a", "a"], [1, 1], [2, 2], ["0", "0"]],
        [["a"], [1], [2], [0]],
        [["a"], ["1"], [2], ["0"]],
        [["a"], [1.5], [2], ["0"]],
        [["a"], [True], [2], ["0"]],
        [["a"], [None], [2], ["0"]],
        [[["a"]], [1], [2], ["0"]],
        [[1], [1], [2], ["0"]],
        "abcd",
    ],
)
def test_a_table_of_other_values_is_no_state(value: Any) -> None:
    with pytest.raises(StateFormatError, match="truncated or damaged"):
        decode_files(packed(value))


def test_arrays_nested_deep_are_no_state() -> None:
    text = base64.b85encode(zlib.compress(b"[" * 50_000)).decode()
    with pytest.raises(StateFormatError, match="RecursionError"):
        decode_files(text)


def test_a_text_that_unpacks_to_far_more_than_a_table_is_refused_in_bounded_memory() -> None:
    text = base64.b85encode(zlib.compress(b" " * (64 << 20), 9)).decode()
    tracemalloc.start()
    try:
        with pytest.raises(StateFormatError, match=r"unpacks to more than [\d,]+ bytes"):
            decode_files(text)
        assert tracemalloc.get_traced_memory()[1] < 100 * len(text)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["parts:", "parts:1:2", "parts:1:2:abc", "parts:-1:2:", "parts:1:2:~~~~~", "parts:x:1:"]
)
def test_damaged_parts_are_no_state(text: str) -> None:
    with pytest.raises(StateFormatError, match="truncated or damaged"):
        decode_parts(text)


def test_parts_depend_on_the_platform_or_release_as_little_as_a_state_does() -> None:
    files = many(5000)
    starts = part_starts(files.paths)
    assert starts.tolist() == STARTS
    assert part_digests(files.columns, starts)[0].hex() == DIGEST


STARTS = [0, 3679, 4608]
DIGEST = "06afd2a84c66ebe4"


@settings(max_examples=15)
@given(st.sets(st.integers(0, 3999), min_size=1, max_size=3), st.integers(0, 2))
def test_a_change_of_few_files_changes_few_parts(indices: set[int], kind: int) -> None:
    paths = list(BASE.paths)
    if kind == 0:
        paths = [path for index, path in enumerate(paths) if index not in indices]
    elif kind == 1:
        paths = sorted([*paths, *(f"{paths[index]}-2" for index in indices)])
    else:
        paths = sorted(f"{path}x" if index in indices else path for index, path in enumerate(paths))
    before, after = digests_of(BASE.paths), digests_of(Strings.of(paths))
    assert before != after
    # A file that begins a part and goes joins two of them.
    assert len(before - after) <= 2 * len(indices)
    assert len(after - before) <= 2 * len(indices)


BASE = many(4000)


def digests_of(paths: Strings) -> set[bytes]:
    """Return the digests of the parts of equal files."""
    files = FileTable.build(paths, [1] * len(paths), ["0"] * len(paths), [([1], [1])] * len(paths), "s")
    return set(part_digests(files.columns, part_starts(paths)))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), unique=True, max_size=30))
def test_any_paths_are_cut_into_parts(texts: list[str]) -> None:
    starts = part_starts(Strings.of(sorted(texts))).tolist()
    assert starts[:1] == [0][: len(texts)]
    assert starts == sorted(set(starts))
    assert all(start < len(texts) for start in starts)


def test_where_parts_begin_does_not_depend_on_how_many_paths_are_hashed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = many(10_000).paths
    expected = part_starts(paths).tolist()
    assert len(expected) > 3
    monkeypatch.setattr("laneway.core.saved_files._HASHED_AT_ONCE", 1000)
    assert part_starts(paths).tolist() == expected
