"""Checks of what users pass."""

from __future__ import annotations

import numpy as np
import pytest

from laneway.arguments import parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (7, 7), ("7", 7), ("7B", 7), ("1kB", 1000), ("1KiB", 1024), ("64MiB", 64 << 20), ("1GB", 10**9),
        (" 1.5 mib ", 3 << 19), ("2TiB", 2 << 40), (np.int64(3), 3),
    ],
)  # fmt: skip
def test_sizes_are_parsed_as_they_are_written(text: int | str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MiB", "1 furlong", "-1MB", "1e3", "0", 0, -5, "0.1B"])
def test_an_invalid_size_is_refused(text: int | str) -> None:
    with pytest.raises(ValueError, match=r"is not a valid size|at least 1 byte"):
        parse_bytes(text)
