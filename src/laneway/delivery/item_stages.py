"""The stages of a dataset or mixture: what is made of the rows of a lane."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

from laneway.delivery.transforms import Expansion, Transforms

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.stages.packs import PackOptions


@final
@dataclass(frozen=True, slots=True)
class Stages:
    """What is made of the rows of a lane."""

    expansion: Expansion = field(default_factory=Expansion)
    """Called on each row, after `transform`."""
    pack: PackOptions | None = None
    """How the items that this returns are packed; None: they are delivered."""
    of_packs: Transforms = field(default_factory=Transforms)
    """Called on each pack."""
    of_batches: Transforms = field(default_factory=Transforms)
    """Called on each batch."""

    @property
    def text(self) -> str:
        """What states hold of them: offsets within rows depend on it, and functions have no names."""
        return " ".join([*["flat_map"] * self.expansion.num_flat, *([self.pack.text] if self.pack else [])])

    @property
    def group_rows(self) -> int:
        """Rows from which items are made at a time."""
        return self.pack.group_rows if self.pack is not None and self.pack.strategy == "best_fit" else 1

    def then(
        self,
        function: Callable[..., Any],
        *,
        takes_context: bool = False,
        is_flat: bool = False,
        of_batches: bool = False,
    ) -> Stages:
        """Return these stages with one more function on what they make.

        Args:
            function: Called with an item, or with a batch.
            takes_context: See `Expansion.then`.
            is_flat: See `Expansion.then`.
            of_batches: Whether it is called with a batch.

        Raises:
            ValueError: It takes a context, and there is none; or it makes several items of a pack.
        """
        if of_batches and not takes_context:
            return replace(self, of_batches=self.of_batches.then(function))
        if self.pack is None and not of_batches:
            expansion = self.expansion.then(function, takes_context=takes_context, is_flat=is_flat)
            return replace(self, expansion=expansion)
        if takes_context or is_flat:
            what = "batch" if of_batches else "pack"
            problem = "flat_map() can't follow pack()" if is_flat else f"a {what} of many rows has no context"
            message = f"{problem}: put the function before {what}(), or use map(fn)"
            raise ValueError(message)
        return replace(self, of_packs=self.of_packs.then(function))
