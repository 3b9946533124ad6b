"""The text of mismatches."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from laneway.core.differences import (
    file_differences,
    identity_differences,
    mismatch_message,
    place_differences,
    shorten,
)
from laneway.core.files import FileTable
from laneway.core.strings import Strings
from laneway.core.turns import WorkerPlace
from laneway.errors import StateFormatError
from tests.laws.simulation import file_table

if TYPE_CHECKING:
    from collections.abc import Iterable


def test_different_fields_are_listed_with_both_values() -> None:
    saved, present = {"seed": 1, "kind": "a", "rest": None}, {"seed": 2, "kind": "b", "rest": None}
    assert identity_differences(["kind", "rest", "seed"], saved, present) == [
        "kind: saved 'a', this run has 'b'",
        "seed: saved 1, this run has 2",
    ]
    assert identity_differences(["rest"], saved, present) == []


def test_sizes_have_units() -> None:
    lines = identity_differences(["shard_bytes"], {"shard_bytes": 2**23}, {"shard_bytes": 10**9 + 1})
    assert lines == ["shard_bytes: saved 8 MiB, this run has 1,000,000,001 bytes"]


def changed(files: FileTable, index: int, **values: int | str) -> FileTable:
    """Return a table in which one file is different."""
    columns: dict[str, object] = {}
    for name, value in values.items():
        column = list(getattr(files, name))
        column[index] = value
        columns[name] = np.array(column, np.int64) if name == "sizes" else Strings.of(column)
    return replace(files, **columns)  # type: ignore[arg-type]


BEFORE = file_table([[5], [1200], [7]])


@pytest.mark.parametrize(
    ("present", "line"),
    [
        (file_table([[5], [1200], [9]]), "part-002.parquet had 7 rows, now 9"),
        (changed(BEFORE, 1, sizes=999), "part-001.parquet had 12,100 bytes, now 999"),
        (changed(BEFORE, 1, digests="f"), "part-001.parquet was rewritten with the same size (12,100 bytes)"),
        (file_table([[5], [1200]]), "part-002.parquet is gone"),
        (file_table([[5], [1200], [7], [1], [1]]), "part-003.parquet is new; part-004.parquet is new"),
        (changed(BEFORE, 2, paths="z"), "part-002.parquet is now z"),
        (changed(BEFORE, 2, paths="z", digests="f"), "part-002.parquet is gone; z is new"),
        (file_table([[5], [600, 600], [7]]), "the same files had other row groups, or other columns"),
        (
            file_table([[1], [2], [3], [4], [5]]),
            (
                "part-000.parquet had 5 rows, now 1; part-001.parquet had 1,200 rows, now 2; "
                "part-002.parquet had 7 rows, now 3; and 2 more differences"
            ),
        ),
    ],
)
def test_different_files_are_listed_with_the_change(present: FileTable, line: str) -> None:
    assert file_differences(BEFORE.encoded, present).startswith(f"files: {line}")


def test_two_renamed_files_with_equal_content_are_matched_one_to_one() -> None:
    both = changed(changed(BEFORE, 0, digests="d", sizes=1), 2, digests="d", sizes=1)
    both = replace(both, block_rows=np.array([5, 1200, 5]))
    moved = changed(changed(both, 0, paths="x"), 2, paths="y")
    assert file_differences(both.encoded, moved) == "files: part-000.parquet is now x; part-002.parquet is now y"


def many_files(names: list[str], rows: int = 10) -> FileTable:
    """Return a table of many equal files."""
    blocks = [([rows], [100])] * len(names)
    return FileTable.build(names, [1000] * len(names), ["0" * 16] * len(names), blocks, "s")


def names_of(numbers: Iterable[int], prefix: str = "") -> list[str]:
    return [f"{prefix}part-{number:06}.parquet" for number in numbers]


def test_ten_thousand_other_files_are_compared_in_linear_time() -> None:
    def seconds(num_files: int) -> float:
        saved, present = (many_files(names_of(range(num_files), each)) for each in ("a/", "b/"))
        began = time.process_time()
        line = file_differences("", present, saved)
        took = time.process_time() - began
        assert line.startswith("files: a/part-000000.parquet is now b/part-000000.parquet; ")
        assert line.endswith(f"; and {num_files - 3:,} more differences")
        return took

    # In quadratic time, it takes more than ten seconds.
    assert seconds(10_000) < 5


@pytest.mark.parametrize(
    ("present", "found"),
    [
        (names_of(range(20_000)), None),
        (names_of(number for number in range(20_000) if number != 7777), {7777}),
        (names_of([*range(20_000), 20_000]), {20_000}),
        (names_of(range(1, 20_000)), {0}),
        (names_of(number for number in range(20_000) if number not in {100, 19_000}), {100, 19_000}),
    ],
    ids=["the same", "one gone", "one new at the end", "one gone at the start", "two gone"],
)
def test_ranges_of_paths_name_where_many_files_differ(present: list[str], found: set[int] | None) -> None:
    saved = many_files(names_of(range(20_000)))
    line = file_differences(saved.encoded, many_files(present))
    if found is None:
        assert line == "files: the same files had other row groups, or other columns, when this state was saved"
        return
    assert f"saved 20,000 files with 200,000 rows, this run has {len(present):,} files" in line
    ranges = [
        (int(first), int(last), int(count.replace(",", "")))
        for count, first, last in re.findall(r"some of the ([\d,]+) files part-(\d+).parquet to part-(\d+)", line)
    ]
    assert len(ranges) == len(found)
    for number, (first, last, count) in zip(sorted(found), ranges, strict=True):
        assert first - 1 <= number <= last + 1
        assert count < 20_000 // 2


def test_a_changed_file_among_many_is_named_by_its_range_and_exactly_where_the_saved_files_are_known() -> None:
    names = names_of(range(20_000))
    saved = many_files(names)
    present = changed(saved, 9_999, sizes=5)
    line = file_differences(saved.encoded, present)
    (range_,) = re.findall(r"some of the .* files (\S+) to (\S+) differ", line)
    assert range_[0] <= names[9_999] <= range_[1]
    assert file_differences(saved.encoded, present, saved) == f"files: {names[9_999]} had 1,000 bytes, now 5"


@pytest.mark.parametrize("num_files", [4, 20_000])
def test_a_line_is_short_however_long_the_paths_are(num_files: int) -> None:
    names = [f"{number:06}{'x' * (1000 if num_files < 10 else 100)}" for number in range(num_files)]
    saved, present = many_files(names), many_files([f"{name}{'y' * 900}" for name in names])
    line = file_differences(saved.encoded, present)
    assert len(line) < 3000
    assert "...yyy" in line


def test_a_damaged_file_table_is_a_format_error() -> None:
    with pytest.raises(StateFormatError):
        file_differences(BEFORE.encoded[:-9], BEFORE)


def test_the_differences_of_two_places_say_what_to_do() -> None:
    assert place_differences(WorkerPlace(), WorkerPlace()) == []
    lines = place_differences(WorkerPlace(1, 2, 0, 4), WorkerPlace(0, 3, 0, 1))
    assert [line.split(" (")[0] for line in lines] == [
        "rank: saved 1, this is 0",
        "world_size: saved 2, this is 3",
        "num_workers: saved 4, this is 1",
    ]
    assert "num_workers=4" in lines[2]
    (line,) = place_differences(WorkerPlace(0, 1, 1, 2), WorkerPlace(0, 1, 0, 2))
    assert line.startswith("worker: saved 1, this is 0")


def test_a_state_without_workers_suggests_num_workers_0() -> None:
    (line,) = place_differences(WorkerPlace(0, 1, 0, 1), WorkerPlace(0, 1, 0, 2))
    assert "give it num_workers=1, or 0 if it had none" in line


def test_a_message_lists_the_differences_and_the_ways_out() -> None:
    message = mismatch_message(["seed: a", "files: b", "seed: c"], ["rank: d"], is_of_rank=True).splitlines()
    assert message[0] == "this checkpoint does not belong to this dataset"
    assert message[1:5] == ["  seed: a", "  files: b", "  seed: c", "  rank: d"]
    assert message[5].startswith("use the same seed, files, or ")
    assert "save_state_global()" in message[6]


def test_a_message_about_the_place_alone_is_about_the_rank_or_the_worker() -> None:
    message = mismatch_message([], ["worker: d"], is_of_rank=False)
    assert message == "this checkpoint does not belong to this worker\n  worker: d"
    for lines in (["rank: d"], ["world_size: d"], ["rank: d", "num_workers: e"]):
        message = mismatch_message([], lines, is_of_rank=True)
        assert message.splitlines()[0] == "this checkpoint does not belong to this rank"


def test_only_long_values_are_shortened() -> None:
    assert shorten("a" * 38) == repr("a" * 38)
    assert shorten([1] * 50) == "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ..."
    assert len(shorten("a" * 39)) == 40
