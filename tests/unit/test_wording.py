"""Numbers as messages say them."""

from __future__ import annotations

import pytest

from laneway.arguments import parse_bytes
from laneway.wording import counted, rounded_size, size, span


def test_a_noun_is_in_the_singular_after_one_only() -> None:
    assert [counted(number, "file") for number in (0, 1, 2, 1200)] == ["0 files", "1 file", "2 files", "1,200 files"]
    assert [counted(number, "batch") for number in (1, 2)] == ["1 batch", "2 batches"]
    assert [counted(number, "process") for number in (1, 2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (401, "401 bytes"),
        (2**10, "1 KiB"),
        (3 * 2**19, "1,536 KiB"),
        (2**23, "8 MiB"),
        (2**23 + 1, "8,388,609 bytes"),
        (5 * 10**8, "500 MB"),
        (10**9, "1 GB"),
        (2**30, "1 GiB"),
        (10**12, "1 TB"),
        (2**52, "4,096 TiB"),
    ],
)
def test_a_size_has_the_largest_unit_of_which_it_is_a_whole_number(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text
    if num_bytes and "byte" not in text:
        assert parse_bytes(text.replace(",", "")) == num_bytes


def test_sizes_are_rounded_to_three_digits() -> None:
    found = [rounded_size(number) for number in (1, 1023, 1536, 8_400_000, 1_100_000_000, 2**50)]
    assert found == ["1 byte", "1,023 bytes", "1.5 KiB", "8.01 MiB", "1.02 GiB", "1,024 TiB"]
    assert [rounded_size(number * 2**20) for number in (999.4, 999.5, 1023.4)] == ["999 MiB", "1,000 MiB", "1,023 MiB"]


def test_a_span_has_both_ends_if_they_differ() -> None:
    assert [span(values) for values in ([5, 1200, 3], [7, 7], [0])] == ["3 to 1,200", "7", "0"]
    assert span([2**20, 2**20 + 1], rounded_size) == "1 MiB"
