"""Mixing: which source each row of a lane of a mixture comes from, by weight. Integer arithmetic alone.

The sources are the leaves of a Huffman tree over their weights. Of the first `k` rows of a node, the heavier of its two
children has `(k * p + t) // q`, where `p / q` is its share, and `t` places the rounding. So the counts after any number
of rows take one division for each node, and no source is ever more than two rows off its weight: an error of at most
one row is made at each node, and shrinks by the share of each child on the way down. Rows are never drawn at random.

`t` differs from lane to lane, as far as the two rows allow it. With the same `t`, all lanes would take their rare rows
at the same time, and a global batch of many lanes would consist of them.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property, lru_cache
from heapq import heapify, heappop, heappush
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.order import lane_phases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_SOURCES = 2**20
"""Maximum number of sources of a mixture."""
MAX_DENOMINATOR = 2**31 - 1
"""Shares of nodes are fractions with at most this denominator, so that their products with it fit into 64 bits."""
_MAX_OFF = 2
"""Maximum number of rows by which a source may be off its weight."""
_MAX_MIXINGS = 8
"""Number of the latest mixings that a process remembers."""


class _Node(NamedTuple):
    """An inner node of the tree. Its children are sources, or other nodes if they are >= the number of sources."""

    heavier: int
    lighter: int
    share: int
    """The share of the heavier child is `share / whole`."""
    whole: int
    first_phase: int
    """The smallest `t` of a lane."""
    num_phases: int
    """Number of possible `t`."""


class SourceRows(NamedTuple):
    """The rows of one source among consecutive rows of a lane of a mixture."""

    source: int
    """Index of the source."""
    start: int
    """The first of them, counted in the lane of the source; the others follow it."""
    places: NDArray[np.int64]
    """Where they are among the rows of the mixture, ascending, shape (rows,)."""


def exact_weights(weights: Sequence[float]) -> list[Fraction]:
    """Return weights as exact numbers: a float is the decimal number that it is printed as, so 0.7 to 0.3 is 7 to 3.

    Args:
        weights: A number >= 0 for each source.

    Raises:
        ValueError: A weight is negative or not finite, all are 0, or one is too small beside the others.
    """
    if len(weights) > MAX_SOURCES:
        message = f"a mixture can have {MAX_SOURCES:,} sources, not {len(weights):,}"
        raise ValueError(message)
    for given in weights:
        if not isfinite(given) or given < 0:
            message = f"a weight must be a number >= 0, not {given}"
            raise ValueError(message)
    exact = [Fraction(weight) if isinstance(weight, int) else Fraction(repr(float(weight))) for weight in weights]
    total = sum(exact)
    if not total:
        message = "at least one source must have a weight above 0"
        raise ValueError(message)
    for weight, given in zip(exact, weights, strict=True):
        if 0 < weight < total / MAX_DENOMINATOR:
            message = (
                f"a weight of {given} is too small beside a total of {float(total)}: a source with a weight must "
                f"have at least one of {MAX_DENOMINATOR:,} rows; give it more, or 0"
            )
            raise ValueError(message)
    return exact


class Mixing:
    """The sources of the rows of all lanes of a mixture: a pure function of the weights.

    Shares whose denominator is above `MAX_DENOMINATOR` are rounded to the nearest fraction that is not: they change by
    less than 2**-32, and usually by about 2**-62.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """Build the tree.

        Args:
            weights: A number >= 0 for each source; see `exact_weights`.
        """
        exact = exact_weights(weights)
        self.num_sources = len(weights)
        """Number of sources, those with a weight of 0 included."""
        heap = [(weight, source) for source, weight in enumerate(exact) if weight]
        heapify(heap)
        merged: list[tuple[int, int, Fraction]] = []
        while len(heap) > 1:
            (light, lighter), (heavy, heavier) = heappop(heap), heappop(heap)
            heappush(heap, (light + heavy, self.num_sources + len(merged)))
            merged.append((heavier, lighter, (heavy / (light + heavy)).limit_denominator(MAX_DENOMINATOR)))
        self._root = heap[0][1]
        self._nodes = self._with_phases(merged)

    def _with_phases(self, merged: list[tuple[int, int, Fraction]]) -> list[_Node]:
        """Return the nodes, with the phases that keep every source within `_MAX_OFF` rows of its weight."""
        # Width of the interval of errors: one row for each node on the way, shrunk by the shares below it.
        widths = {self._root: 0.0}
        for number in reversed(range(len(merged))):
            heavier, lighter, share = merged[number]
            width = widths.pop(self.num_sources + number)
            widths |= {heavier: 1 + width * float(share), lighter: 1 + width * float(1 - share)}
        # With phase t, a node is off by at most max(t, whole - 1 - t) / whole rows.
        most = Fraction(_MAX_OFF) / Fraction(max(widths.values()) or 1.0) * Fraction(1 - 1e-9)
        nodes = []
        for heavier, lighter, share in merged:
            whole = share.denominator
            last = min(whole - 1, max(int(most * whole), whole // 2))
            first = whole - 1 - last
            nodes.append(_Node(heavier, lighter, share.numerator, whole, first, last - first + 1))
        return nodes

    def counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many rows of each source are among the first rows of each lane.

        Args:
            rows: The number of rows of lanes 0, 1, 2, ..., int64 of shape (num_lanes,).

        Returns:
            int64 array of shape (num_sources, num_lanes). Exact for all numbers below 2**63.
        """
        phases = self._phases(np.arange(len(rows), dtype=np.int64))
        found = np.zeros((self.num_sources + len(self._nodes), len(rows)), np.int64)
        found[self._root] = rows
        for number in reversed(range(len(self._nodes))):
            node, of_node = self._nodes[number], found[self.num_sources + number]
            quotient, rest = np.divmod(of_node, node.whole)
            found[node.heavier] = quotient * node.share + (rest * node.share + phases[number]) // node.whole
            found[node.lighter] = of_node - found[node.heavier]
        return found[: self.num_sources]

    def lane(self, lane: int) -> LaneMixing:
        """Return the sources of the rows of one lane."""
        return LaneMixing(self.num_sources, self._root, self._nodes, self._phases(np.array([lane]))[:, 0].tolist())

    def _phases(self, lanes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the `t` of each node for each lane, shape (num_nodes, lanes)."""
        hashes = lane_phases(lanes, len(self._nodes)) >> np.uint64(32)
        first = np.array([node.first_phase for node in self._nodes], np.int64)
        count = np.array([node.num_phases for node in self._nodes], np.uint64)
        # The product of 32 and 31 bits fits, and its upper half is evenly spread.
        spread: NDArray[np.int64] = ((hashes * count[:, None]) >> np.uint64(32)).astype(np.int64)
        return first[:, None] + spread


# Typed: the int 2**60 and the float that equals it are different weights.
@lru_cache(maxsize=_MAX_MIXINGS, typed=True)
def mixing_of(*weights: float) -> Mixing:
    """Return the mixing of some weights, which a process builds once: hundreds of sources take milliseconds.

    Args:
        weights: A number >= 0 for each source; see `exact_weights`.
    """
    return Mixing(weights)


class LaneMixing:
    """The sources of the rows of one lane of a mixture."""

    def __init__(self, num_sources: int, root: int, nodes: list[_Node], phases: list[int]) -> None:
        """Take the tree, and the `t` of this lane at each node."""
        self._num_sources = num_sources
        self._root = root
        self._nodes = nodes
        self._phases = phases

    @cached_property
    def _paths(self) -> dict[int, list[tuple[int, bool]]]:
        """For each source with a weight: the nodes from the root to it, and whether it goes on at the heavier child."""
        paths: dict[int, list[tuple[int, bool]]] = {self._root: []}
        for number in reversed(range(len(self._nodes))):
            path = paths.pop(self._num_sources + number)
            paths[self._nodes[number].heavier] = [*path, (number, True)]
            paths[self._nodes[number].lighter] = [*path, (number, False)]
        return paths

    def count(self, source: int, rows: int) -> int:
        """Return how many of the first `rows` rows come from a source: one step for each node on the way to it."""
        if source not in self._paths:
            return 0
        for number, is_heavier in self._paths[source]:
            of_heavier = self._of_heavier(number, rows)
            rows = of_heavier if is_heavier else rows - of_heavier
        return rows

    def row_of(self, source: int, index: int) -> int:
        """Return the row of the lane that is row `index` of a source with a weight: the inverse of `count`."""
        for number, is_heavier in reversed(self._paths[source]):
            node, phase = self._nodes[number], self._phases[number]
            if is_heavier:
                index = -((phase - (index + 1) * node.whole) // node.share) - 1
            else:
                index = (index * node.whole + phase) // (node.whole - node.share)
        return index

    def source_of(self, row: int) -> int:
        """Return the source of a row of the lane."""
        at = self._root
        while at >= self._num_sources:
            number = at - self._num_sources
            before, after = self._of_heavier(number, row), self._of_heavier(number, row + 1)
            if after > before:
                at, row = self._nodes[number].heavier, before
            else:
                at, row = self._nodes[number].lighter, row - before
        return at

    def _of_heavier(self, number: int, rows: int) -> int:
        node = self._nodes[number]
        return (rows * node.share + self._phases[number]) // node.whole

    def split(self, start: int, stop: int) -> list[SourceRows]:
        """Return which of the rows [start, stop) of the lane come from which source, in the order of the tree.

        There is no Python for each row, but for each node: ask for thousands of rows at once.

        Args:
            start: First row.
            stop: One past the last row, with fewer than 2**31 rows in all.
        """
        found = []
        todo: list[tuple[int, int, NDArray[np.int64]]] = []
        if start < stop:
            todo.append((self._root, start, np.arange(stop - start, dtype=np.int64)))
        while todo:
            at, first, places = todo.pop()
            if at < self._num_sources:
                found.append(SourceRows(at, first, places))
                continue
            number = at - self._num_sources
            node = self._nodes[number]
            before = self._of_heavier(number, first)
            # Of the rows since the last multiple of `whole`, so that the products fit into 64 bits.
            low = first % node.whole * node.share + self._phases[number]
            steps = np.arange(low, low + (len(places) + 1) * node.share, node.share, dtype=np.int64) // node.whole
            is_heavier = steps[1:] != steps[:-1]
            heavier, lighter = places[is_heavier], places[~is_heavier]
            if len(heavier):
                todo.append((node.heavier, before, heavier))
            if len(lighter):
                todo.append((node.lighter, first - before, lighter))
        return found

    def sources(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the sources of rows [start, stop) of the lane, int64 of shape (stop - start,); see `split`."""
        found = np.empty(stop - start, np.int64)
        for source, _, places in self.split(start, stop):
            found[places] = source
        return found
