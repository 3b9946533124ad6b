"""Weights of what is mixed, rows or packs, from the weights that a user gives: of rows, or of tokens."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from laneway.core.mixing import exact_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.core.weighting import Weighting
    from laneway.delivery.dataset_definition import DatasetDefinition

WeightsOf = Literal["rows", "tokens"]
"""What weights are shares of."""


def item_weighting(given: Weighting, weights_of: WeightsOf, sources: Mapping[str, DatasetDefinition]) -> Weighting:
    """Return the weights of rows, or of packs of known lengths, with which rows or tokens have the given ones.

    Args:
        given: The weights that a user gave.
        weights_of: What they are shares of, over whole epochs of the sources.
        sources: Name -> source.

    Raises:
        ValueError: Lengths of a source with a weight are not known, or it has no tokens or packs.
    """
    read = {name for phase in given.phases for name, weight in phase.weights.items() if weight}
    units = {name: _units_of_item(name, source, weights_of) for name, source in sources.items() if name in read}
    if len(sources) == 1 or {*units.values()} <= {1}:
        return given
    phases = tuple(phase._replace(weights=_divided(phase.weights, units)) for phase in given.phases)
    return replace(given, phases=phases)


def _divided(weights: Mapping[str, float], units: Mapping[str, Fraction]) -> dict[str, float]:
    exact = dict(zip(weights, exact_weights([*weights.values()]), strict=True))
    found = {name: float(weight / units[name]) if weight else 0 for name, weight in exact.items()}
    exact_weights([*found.values()])
    return found


def _units_of_item(name: str, source: DatasetDefinition, weights_of: WeightsOf) -> Fraction:
    """Return how many rows or tokens a row or pack of a source has on average, in an epoch.

    Raises:
        ValueError: They are not known, or there are none.
    """
    identity, lengths = source.identity, source.lengths
    if weights_of != "tokens" and identity.packs is None:
        return Fraction(1)
    if lengths is None:
        message = f'weights_of="tokens" needs the lengths of source {name!r}: call its count_lengths() before'
        raise ValueError(message)
    num_items = identity.num_items(0)
    if not lengths.num_tokens or not num_items:
        message = f"source {name!r} has no tokens: give it a weight of 0, or leave it out of the mixture"
        raise ValueError(message)
    return Fraction(lengths.num_tokens if weights_of == "tokens" else len(lengths.rows), num_items)
