"""The file table: the identity of a dataset."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest

from laneway.core.files import FileFacts, FileTable, decode_files, digest
from laneway.errors import StateFormatError


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
        {"paths": ("a", "c")},
        {"sizes": np.array([10, 21])},
        {"digests": ("01", "03")},
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


def test_the_encoded_table_names_files_with_their_facts() -> None:
    assert decode_files(table().encoded) == {"a": FileFacts(10, 0, "01"), "b": FileFacts(20, 3, "02")}


@pytest.mark.parametrize("text", ["", "~", "c-jO", "0"])
def test_a_damaged_table_is_no_state(text: str) -> None:
    with pytest.raises(StateFormatError, match="truncated or damaged"):
        decode_files(text)


def test_borders_between_parts_count_in_a_digest() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc") != digest(b"abc")
    assert len(digest(b"")) == 16


def test_a_table_without_files_has_no_rows() -> None:
    files = FileTable.build([], [], [], [], "schema")
    assert files.num_rows == 0
    assert files.rows.tolist() == []
    assert decode_files(files.encoded) == {}
