"""Numbers as messages say them: counts with their noun, sizes with their unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_UNITS: Final = {"TiB": 2**40, "TB": 10**12, "GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "KiB": 2**10}
"""Largest first."""
_FOUR_DIGITS: Final = 999.5
"""The least number that is rounded to four digits."""


def plural(noun: str) -> str:
    """Return the plural of a noun, such as "files" or "batches"."""
    return f"{noun}es" if noun.endswith(("ch", "s")) else f"{noun}s"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, given in the singular, such as "1 file" or "1,200 files"."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def span(values: Sequence[int], name: Callable[[int], str] = "{:,}".format) -> str:
    """Return the least and the greatest of some values, such as "3 to 5", or "3" if both have the same name."""
    least, most = name(min(values)), name(max(values))
    return least if least == most else f"{least} to {most}"


def size(num_bytes: int) -> str:
    """Return a size in the largest unit of which it is a whole number, such as "8 MiB", "1 GB" or "401 bytes"."""
    for unit, factor in _UNITS.items():
        if num_bytes and num_bytes % factor == 0:
            return f"{num_bytes // factor:,} {unit}"
    return counted(num_bytes, "byte")


def rounded_size(num_bytes: float) -> str:
    """Return about how large something is, to three digits, such as "8.01 MiB" or "401 bytes"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if (number := num_bytes / _UNITS[unit]) >= 1:
            # Four digits with "g" would be "1e+03".
            return f"{number:.3g} {unit}" if number < _FOUR_DIGITS else f"{number:,.0f} {unit}"
    return counted(round(num_bytes), "byte")
