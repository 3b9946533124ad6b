"""What a loader of a mixture has besides: how far its sources have come, and other weights while it runs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from laneway.delivery.mixture_definition import MixtureDefinition
from laneway.delivery.source_progress import check_same_rows, rows_of_job, sources_of
from laneway.errors import LanewayError
from laneway.mixture_weights import check_weighting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from laneway.core.turns import WorkerPlace
    from laneway.delivery.runner import PassRunner
    from laneway.delivery.source_progress import SourceProgress
    from laneway.ranks import Ranks


class MixtureLoader:
    """The part of a loader that is for mixtures."""

    _runner: PassRunner
    _place: WorkerPlace

    @abstractmethod
    def ranks(self) -> Ranks:
        """Return the ranks of the job, able to communicate."""

    @property
    def sources(self) -> dict[str, SourceProgress]:
        """Name of each source of a mixture -> how far it has come, over all ranks; empty for a single dataset.

        After a state was loaded, they are the sources and weights of the next pass.

        Raises:
            LanewayError: Ranks have not taken the same number of batches, or there are several ranks and stages.
            ValueError: A source was removed while its rows are in items that are half delivered.
        """
        return sources_of(self._runner)

    def set_weights(self, weights: Mapping[str, float] | Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Give the sources of a mixture other weights, from the next batch on.

        Must be called by all ranks, after the same number of batches. Batches that workers have prefetched are dropped,
        and their rows come later. With `pack` or `flat_map`, a group of rows or a row that is half delivered comes
        first. The new weights are part of the state; but a run that resumes from it uses those of its own mixture.

        Args:
            weights: Name -> weight of each source; or a schedule, which counts rows from the start of the mixture, and
                replaces the present one.

        Raises:
            ValueError: A weight is negative, or names are not those of the sources; raised on all ranks.
            LanewayError: The dataset is no mixture, ranks have not taken the same number of batches, or there are
                several ranks, and stages, so that no rank knows how far the others have come; raised on all ranks.
            CollectiveError: Ranks gave other weights, or a rank could not be reached.
        """
        definition = self._runner.source.definition
        if not isinstance(definition, MixtureDefinition):
            message = "set_weights is for a loader over a Mixture, and this one reads a single dataset"
            raise LanewayError(message)
        ranks, call = self.ranks(), f"set_weights({weights!r})"
        changed: list[MixtureDefinition] = []

        def check() -> tuple[int, int]:
            ranks.check(self._place.rank, self._place.world_size)
            given = check_weighting(weights, definition.sources, definition.given.stop)
            changed.append(definition.with_weighting(replace(given, num_epochs=definition.given.num_epochs)))
            changed[0].check_weighting()
            return rows_of_job(self._runner), self._runner.num_received()

        ranks.compare(call, check, check_same_rows)
        self._runner.change(changed[0])
