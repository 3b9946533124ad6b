"""A column of strings in two arrays, which take no Python object per string and may be views of a mapped file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, final, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

_MAX_SHOWN = 3


@final
class Strings(Sequence[str]):
    """An immutable sequence of strings, each stored as UTF-8 and a NUL byte.

    It equals any other sequence of the same strings, so that it can be compared with a list or a tuple.

    Examples:
        >>> column = Strings.of(["a", "b/c"])
        >>> column[1], len(column), column == ("a", "b/c")
        ('b/c', 2, True)
    """

    __slots__ = ("data", "offsets")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> None:
        """Create a column from its arrays, which it does not copy.

        Args:
            offsets: Offset of each string in `data`, and the length of `data`, shape (num_strings + 1,).
            data: The strings, shape (num_bytes,).
        """
        self.offsets = offsets
        """Offset of each string in `data`, and the length of `data`, shape (num_strings + 1,)."""
        self.data = data
        """The strings, shape (num_bytes,)."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """Return a column of these strings.

        Raises:
            UnicodeEncodeError: A string holds a lone surrogate.
        """
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)) + 1, out=offsets[1:])
        joined = bytearray(b"\0".join([*encoded, b""]))
        return cls(offsets, np.frombuffer(joined, np.uint8))

    def joined(self) -> memoryview:
        """Return the strings as one, with a NUL byte between two, in UTF-8."""
        return self.data.data[: max(len(self.data) - 1, 0)]

    def part(self, start: int, stop: int) -> Strings:
        """Return the strings [start, stop) as a column that shares the data."""
        offsets = self.offsets[start : stop + 1]
        return Strings(offsets - offsets[0], self.data[offsets[0] : offsets[-1]])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        """Return the string at `index`, or a tuple of strings for a slice."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        position = range(len(self))[index]
        return str(self.data.data[self.offsets[position] : self.offsets[position + 1] - 1], "utf-8")

    def __iter__(self) -> Iterator[str]:
        data, offsets = self.data.data, self.offsets.tolist()
        return (str(data[start : stop - 1], "utf-8") for start, stop in pairwise(offsets))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return np.array_equal(self.offsets, other.offsets) and np.array_equal(self.data, other.data)
        if isinstance(other, Sequence) and not isinstance(other, (str, bytes)):
            return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))
        return NotImplemented

    def __repr__(self) -> str:
        more = f", and {len(self) - _MAX_SHOWN:,} more" if len(self) > _MAX_SHOWN else ""
        return f"<Strings: {', '.join(map(repr, self[:_MAX_SHOWN]))}{more}>"
