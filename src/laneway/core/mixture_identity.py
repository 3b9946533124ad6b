"""The identity of a mixture: the files and settings of its sources, by which states are recognised."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from laneway.core.mixture_state import encode_mixture, encode_tokens
from laneway.core.mixtures import MixturePlan, digest_of
from laneway.core.progress import LanePosition, current_cut, rows_in_step
from laneway.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from laneway.core.mixtures import Source
    from laneway.core.plan import Settings
    from laneway.core.progress import Progress

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class MixtureIdentity:
    """The sources and settings that the states of a mixture belong to. Weights may change from run to run."""

    sources: Mapping[str, Source]
    """Name -> source."""
    settings: Settings
    """The settings of the mixture itself; those that its sources have of their own have no effect."""
    _derived: dict[object, Any] = field(default_factory=dict, init=False, repr=False)

    encoded_files = ""
    """States don't hold the files of sources, only digests."""

    @property
    def counts_items(self) -> bool:
        """Whether lanes count the items that are delivered, and not the rows of which stages make them."""
        return self.settings.stages is None or all(each.identity.packs is not None for each in self.sources.values())

    def derived(self, key: object, compute: Callable[[], T]) -> T:
        """Return a value that follows from sources and settings, which is computed once."""
        if key not in self._derived:
            self._derived[key] = compute()
        found: T = self._derived[key]
        return found

    def fingerprint_in(self, order_version: int) -> str:
        """Return the identity of the rows of all sources, in an order."""
        digests = sorted((name, digest_of(source.identity).hex()) for name, source in self.sources.items())
        text = json.dumps([order_version, digests])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def encode(self, progress: Progress) -> list[Any]:
        """Return the field of a state that holds how the cuts of a mixture began."""
        return encode_mixture(progress)

    def encode_tokens(self, progress: Progress) -> list[int]:
        """Return the field of a state that holds the tokens of sources, which may be empty."""
        return encode_tokens(progress)

    def without_finished_cuts(self, progress: Progress, next_turn: int, part_rows: int) -> Progress:
        """Return the progress of a job in lockstep without the earlier cuts of which nothing is left.

        Args:
            progress: Progress of any of the ranks.
            next_turn: The next turn of the job.
            part_rows: Rows that each rank has taken of it.
        """
        if not progress.earlier:
            return progress
        cut = current_cut(progress)
        rows = rows_in_step(cut.num_lanes, cut.turn_rows, progress.sharing, next_turn, part_rows)
        positions = dict(enumerate(map(LanePosition, rows.tolist())))
        whole = replace(progress, cut=replace(cut, next_turn=next_turn, positions=positions), place=None)
        kept = MixturePlan(self.sources, whole).without_finished_cuts()
        return replace(progress, earlier=kept.earlier, starts=kept.starts, carried=kept.carried)


def not_a_mixture(encoded: Sequence[Any]) -> CheckpointMismatchError:
    """Return the error for the state of a mixture that is loaded into something else.

    Args:
        encoded: Its field `mixture`.
    """
    names = ", ".join(map(str, encoded[0][:8])) if encoded and isinstance(encoded[0], list) else ""
    message = (
        f"this checkpoint is of a mixture of {names}, not of a single dataset: load it into a Mixture, or its loader"
    )
    return CheckpointMismatchError(message)
