"""The file table: the identity of a dataset."""

from __future__ import annotations

import pickle
from dataclasses import replace
from operator import attrgetter

import numpy as np

from laneway.core.files import FileTable, digest
from laneway.core.strings import Strings


def table(**changes: object) -> FileTable:
    files = FileTable.build(["b", "a"], [20, 10], ["02", "01"], [([3, 0], [30, 0]), ([], [])], "schema")
    return replace(files, **changes)  # type: ignore[arg-type]


def test_files_are_sorted_by_path_with_their_blocks() -> None:
    files = table()
    assert files.paths == ("a", "b")
    assert files.digests == ("01", "02")
    assert files.sizes.tolist() == [10, 20]
    assert files.block_starts.tolist() == [0, 0, 2]
    assert files.rows.tolist() == [0, 3]
    assert files.num_rows == 3
    assert files.block_row_starts.tolist() == [0, 3, 3]


def test_everything_in_the_table_is_in_the_fingerprint() -> None:
    changes: list[dict[str, object]] = [
        {"paths": Strings.of(["a", "c"])},
        {"sizes": np.array([10, 21])},
        {"digests": Strings.of(["01", "03"])},
        {"block_starts": np.array([0, 1, 2])},
        {"block_rows": np.array([2, 1])},
        {"block_bytes": np.array([30, 1])},
        {"schema_digest": "other"},
    ]
    for of_version in (attrgetter("fingerprint"), attrgetter("fingerprint_v1")):
        fingerprints = {of_version(table()), *(of_version(table(**change)) for change in changes)}
        assert len(fingerprints) == 1 + len(changes)
    decoded = table(block_memory_bytes=np.array([31, 1]))
    assert (decoded.fingerprint_v1, decoded.fingerprint != table().fingerprint) == (table().fingerprint_v1, True)
    assert table().fingerprint_v1 == "327f768a1dfce7031900f8d13ee4b673"
    assert table().fingerprint == "1873b328f49334c70fa4144c7b418b84"


def test_rows_are_counted_for_each_file_also_for_files_without_blocks() -> None:
    blocks: list[tuple[list[int], list[int]]] = [([], []), ([2, 3], [1, 1]), ([], []), ([4], [1]), ([], [])]
    files = FileTable.build(list("abcde"), [1] * 5, ["0"] * 5, blocks, "s")
    assert files.rows.tolist() == [0, 5, 0, 4, 0]


def test_a_pickled_table_has_its_fingerprint_and_nothing_else_that_follows_from_its_columns() -> None:
    files = table()
    assert files.known_fingerprint is None
    without = len(pickle.dumps(files))
    fingerprint, _, _, _ = files.fingerprint, files.block_row_starts, files.rows, files.encoded
    assert len(pickle.dumps(files)) - without < 100
    found = pickle.loads(pickle.dumps(files))
    assert found.known_fingerprint == fingerprint
    assert replace(found).fingerprint == fingerprint
    assert found.encoded == files.encoded


def test_borders_between_parts_count_in_a_digest() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc") != digest(b"abc")
    assert len(digest(b"")) == 16


def test_a_table_without_files_has_no_rows() -> None:
    files = FileTable.build([], [], [], [], "schema")
    assert files.num_rows == 0
    assert files.rows.tolist() == []
