"""The weights of a mixture, as a user gives them, checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args

from laneway.arguments import check_int, plain_int
from laneway.core.consistency import MAX_COUNT
from laneway.core.mixing import exact_weights
from laneway.core.weighting import Phase, Stop, Weighting

if TYPE_CHECKING:
    from laneway.delivery.dataset_definition import DatasetDefinition

Weights = Mapping[str, float]
"""Name of a source -> its weight, a number >= 0."""


def check_weighting(weights: object, sources: Mapping[str, DatasetDefinition], stop: object) -> Weighting:
    """Check the weights and the end of a mixture, and return them.

    Args:
        weights: What a user gave.
        sources: Name -> source.
        stop: When a pass ends.

    Raises:
        ValueError: Names differ, a weight or a row is out of its range, or a source with a weight has no rows.
        TypeError: Something has the wrong type.
    """
    schedule = [(0, weights)] if isinstance(weights, Mapping) else weights
    if isinstance(schedule, (str, bytes)) or not isinstance(schedule, Sequence) or not schedule:
        message = f"weights must be a mapping from names to numbers, or a sequence of (rows, mapping), not {weights!r}"
        raise TypeError(message)
    phases: list[Phase] = []
    for each in schedule:
        if not isinstance(each, (tuple, list)) or len(each) != 2 or not isinstance(each[1], Mapping):  # noqa: PLR2004 - a pair
            message = (
                "weights must be a mapping from names to numbers, or a sequence of (rows, mapping): an item of this "
                f"sequence is {each!r}"
            )
            raise TypeError(message)
        start, checked = plain_int(each[0]), _check_weights(each[1], sources)
        if start is None or (start != 0 if not phases else start <= phases[-1].start):
            message = f"weights must start at row 0, and at later rows from there on, not at {each[0]!r}"
            raise ValueError(message)
        check_int("the row at which weights change", start, minimum=0, maximum=MAX_COUNT)
        if not phases or phases[-1].weights != checked:
            phases.append(Phase(start, checked))
    for name, source in sources.items():
        if not source.identity.selected.num_rows and any(phase.weights[name] for phase in phases):
            message = f"source {name!r} has no rows: give it a weight of 0, or leave it out of the mixture"
            raise ValueError(message)
    rows = {name: source.identity.selected.num_rows for name, source in sources.items()}
    weighting = Weighting(tuple(phases), _check_stop(stop))
    weighting.rows_in_all(rows)
    return weighting


def _check_weights(weights: Mapping[Any, Any], sources: Mapping[str, DatasetDefinition]) -> dict[str, float]:
    lacking = [name for name in sources if name not in weights]
    unknown = [name for name in weights if name not in sources]
    if lacking or unknown:
        problems = [f"{name!r} has no weight" for name in lacking[:1]]
        problems += [f"{name!r} is not a source" for name in unknown[:1]]
        message = (
            f"weights must name each source once, and {' and '.join(problems)}: the sources are "
            f"{', '.join(map(repr, sources))}; a source that is not read has weight 0"
        )
        raise ValueError(message)
    # In the order of the sources: it breaks ties.
    ordered = {name: _check_weight(name, weights[name]) for name in sources}
    exact_weights([*ordered.values()])
    return ordered


def _check_weight(name: str, weight: object) -> float:
    """Return a weight as a built-in number, which a state can hold.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, or not finite.
    """
    if isinstance(weight, bool) or not isinstance(weight, Real):
        message = f"the weight of source {name!r} must be a number, not {weight!r}"
        raise TypeError(message)
    whole = plain_int(weight)  # type: ignore[arg-type]  # that is what it checks
    found = float(weight) if whole is None else whole
    if not 0 <= found <= sys.float_info.max:
        message = f"the weight of source {name!r} must be a finite number >= 0, not {weight!r:.100}"
        raise ValueError(message)
    return found


def _check_stop(stop: object) -> int | Stop | None:
    if stop is None or stop in get_args(Stop):
        return stop  # type: ignore[return-value]  # checked
    number = plain_int(stop)  # type: ignore[arg-type]  # that is what it checks
    if number is None or not 0 < number < 2**40:
        message = f"stop must be a number of rows, one of {', '.join(map(repr, get_args(Stop)))}, or None, not {stop!r}"
        raise ValueError(message)
    return number
