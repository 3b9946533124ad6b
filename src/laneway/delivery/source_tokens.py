"""How many tokens the sources of a mixture have delivered, by the lengths of their documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from laneway.core.mixtures import remainder_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.mixtures import MixturePlan
    from laneway.core.plan import Plan
    from laneway.delivery.mixture_definition import MixtureDefinition
    from laneway.reading.lengths import Lengths


def tokens_of(definition: MixtureDefinition, plan: MixturePlan, name: str) -> int | None:
    """Return the tokens of the documents that a source has delivered since the mixture began.

    A group of which some packs were delivered counts with all its documents.

    Args:
        definition: The mixture.
        plan: The mixture in its current cut, all of whose lanes are known.
        name: Name of the source.

    Returns:
        The number, or None if it is not known: without the lengths of all rows; if files were added, as epochs had
        other rows before; or if rows may have come twice, or been left out, by `remainder`.
    """
    source = definition.sources[name]
    lengths, identity = source.lengths, source.identity
    if lengths is None or source.former or remainder_of(identity) != "keep":
        return None
    progress, unfinished = plan.progress, plan.unfinished(name)
    next_epoch = plan.begun(plan.current, name)[1]
    first = 0 if definition.is_endless else definition.mixed.first_epochs(progress.epoch)[name]
    num_epochs = next_epoch - (first if first <= next_epoch else 0)
    if not identity.epochs_vary:
        rows = num_epochs * identity.num_items(0) - sum(each.rows_left for each in unfinished)
        if rows != plan.rows_of(name):
            # It was added in a later pass.
            return None
    left = 0
    for each in unfinished:
        of_epoch = plan.plan(plan.current, name, each.rest.epoch)
        left += _tokens_left(of_epoch, each.delivered, lengths)
    return num_epochs * lengths.num_tokens - left


def _tokens_left(plan: Plan, delivered: NDArray[np.int64], lengths: Lengths) -> int:
    """Return the tokens of the rows of an epoch that are left after some rows or packs of each lane."""
    left = plan.lanes.undelivered(delivered)
    if plan.line is not None:
        return plan.line.tokens_untouched(zip(left.start.tolist(), left.stop.tolist(), strict=True))
    of_line = lengths.rows[plan.rows_in_files()]
    before = np.concatenate([[0], np.cumsum(plan.windows.rows)])[left.window]
    edges = np.zeros(len(of_line) + 1, np.int64)
    np.add.at(edges, before + left.start, 1)
    np.add.at(edges, before + left.stop, -1)
    return int(of_line[np.cumsum(edges)[:-1] > 0].sum(dtype=np.int64))
