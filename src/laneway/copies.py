"""Changed copies of a dataset: shuffled, sharded and mapped."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from laneway.arguments import check_flag, check_seed
from laneway.core.turns import WorkerPlace
from laneway.distributed import data_parallel_rank
from laneway.selectable import SelectableDataset

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.core.plan import Identity


class ChangeableDataset(SelectableDataset):
    """A dataset of which there can be changed copies."""

    def shuffle(self, seed: int = 0) -> Self:
        """Return a copy that is shuffled, at the start of epoch 0.

        Args:
            seed: Any int in [0, 2**63).

        Raises:
            ValueError: `seed` is out of its range.
        """
        identity: Identity = self.definition.identity
        self._check_has_no_gaps("shuffle")
        settings = replace(identity.settings, shuffle=True, seed=check_seed(seed))
        return self._changed(replace(self.definition, identity=replace(identity, settings=settings)))

    def shard(self, num_shards: int, index: int) -> Self:
        """Return a copy that delivers part `index` of `num_shards`, at the start of epoch 0.

        This sets the rank and world size: which rows a part has depends on the number of parts, on the epoch and on how
        far the other parts have come. To hold out rows, use `split`.

        Args:
            num_shards: Number of parts, >= 1: the world size of the copy.
            index: Part of the copy, in [0, num_shards): its rank.

        Raises:
            ValueError: An argument is out of its range.
        """
        sharded = self._changed(replace(self.definition, place=WorkerPlace(*data_parallel_rank(index, num_shards))))
        sharded._asks_rank = False  # noqa: SLF001 - a copy of this object
        return sharded

    def map(self, fn: Callable[..., Any], *, with_context: bool = False) -> Self:
        """Return a copy that also calls `fn` on each row or batch; its next pass starts where that of this one would.

        Args:
            fn: Called in the worker with the result of `transform`, if there is one.
            with_context: Whether `fn` is also passed where its rows come from, and seeds that are the same after any
                resume: a `RowContext` for a row, a `BatchContext` for a batch.
        """
        if not callable(fn):
            message = f"fn must be callable, not {fn!r}"
            raise TypeError(message)
        check_flag("with_context", with_context)
        changed = copy.copy(self)
        transform = self.definition.transform.then(fn, takes_context=with_context)
        changed.definition = replace(self.definition, transform=transform)
        return changed

    def __copy__(self) -> Self:
        """Return a copy with passes of its own; its next pass starts where that of this one would."""
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self), schedule=self.schedule.copy())
        return copied
