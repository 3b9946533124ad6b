"""How far the sources of a mixture have come: what a user sees of them while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, final

from laneway.core.mixtures import MixturePlan
from laneway.core.progress import rows_in_mixture
from laneway.core.weighting import shares_of
from laneway.delivery.mixture_definition import MixtureDefinition
from laneway.delivery.runner import INTO_NEW_LOADERS, not_in_lockstep
from laneway.delivery.source_tokens import tokens_of
from laneway.errors import LanewayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from laneway.core.progress import Progress
    from laneway.delivery.runner import PassRunner


@final
@dataclass(frozen=True)
class SourceProgress:
    """How far a source of a mixture has come, over all ranks."""

    epoch: int
    """The oldest epoch of which rows are left, zero-based."""
    rows: int
    """Rows that were delivered, since the mixture began; with `remainder="pad"`, those that came twice too. With
    `pack`, a group of which some packs were delivered counts with all its rows, and with `flat_map` so does a row. If
    packs of known lengths are mixed, these packs."""
    target_share: float
    """Its share of the rows, or of packs of known lengths, by its present weight, in [0, 1]."""
    actual_share: float
    """Its share of those delivered since weights, ranks or workers last changed, in [0, 1]; NaN: none were."""
    _count_tokens: Callable[[], int | None] = field(repr=False, compare=False)

    @cached_property
    def tokens(self) -> int | None:
        """Tokens that were delivered, since the mixture began, without separators and padding.

        With `pack`, unless packs of known lengths are mixed, those in the packs that were delivered. None: they were
        not counted, as the state of an older release was loaded.

        Otherwise, tokens of the documents that were delivered, by their lengths; a group of which some packs were
        delivered counts with all its documents. None: `count_lengths` of the source was not called before, files were
        added to it, or its `remainder` is "pad" or "drop". They are added up when they are asked for, in about 0.1 s
        for a million rows of the source.
        """
        return self._count_tokens()


def source_progress(definition: MixtureDefinition, progress: Progress) -> dict[str, SourceProgress]:
    """Return name -> how far each source has come.

    Args:
        definition: The mixture.
        progress: Progress of the whole job, in a cut.
    """
    plan = MixturePlan(definition.mixed.sources, progress)
    start = progress.starts[-1]
    shares = shares_of({source.name: source.weight for source in start.sources})
    counts = {source.name: plan.rows_in_cut(source.name) for source in start.sources}
    delivered = sum(counts.values())
    found = {}
    for source in start.sources:
        begun, next_epoch = plan.begun(plan.current, source.name)
        left = [each.rest.epoch for each in begun if each.rows_left and not each.is_complete]
        actual = counts[source.name] / delivered if delivered else float("nan")
        epoch, rows = min(left, default=next_epoch), plan.rows_of(source.name)
        count_tokens = partial(tokens_of, definition, plan, source.name)
        if definition.mixed.counts_tokens:
            count_tokens = partial(progress.tokens.get, source.name)
        found[source.name] = SourceProgress(epoch, rows, shares[source.name], actual, count_tokens)
    return found


def whole_progress(runner: PassRunner, then: str) -> Progress:
    """Return the progress of the whole job, as this rank knows it.

    Args:
        runner: Runs the passes of this rank.
        then: What to do with a gathered state, if this rank doesn't know it.

    Raises:
        LanewayError: It can't be inferred.
    """
    running = runner.described
    found = runner.schedule.next_progress if running is None else running.whole_progress()
    if found is None or found.place is not None:
        raise not_in_lockstep(then)
    return found


def sources_of(runner: PassRunner) -> dict[str, SourceProgress]:
    """Return name -> how far each source of a mixture has come; nothing for a single dataset.

    Raises:
        LanewayError: The progress of the whole job can't be inferred.
    """
    definition = runner.source.definition
    if not isinstance(definition, MixtureDefinition):
        return {}
    progress = whole_progress(runner, "and describe_state() of the result")
    if runner.described is None:
        # A state that was loaded may be of other sources and weights than the next pass.
        progress = definition.resolve(progress, runner.place).progress
    return source_progress(definition, progress)


def rows_of_job(runner: PassRunner) -> int:
    """Return the rows of a mixture that the whole job has delivered.

    Raises:
        LanewayError: They can't be inferred.
    """
    return rows_in_mixture(whole_progress(runner, INTO_NEW_LOADERS))


def check_same_rows(ranks: Sequence[tuple[int, int]]) -> None:
    """Check that all ranks have taken the same number of batches.

    Args:
        ranks: For each rank, the rows of the whole job as it knows them, and its number of batches.

    Raises:
        LanewayError: They have not.
    """
    for rank, (rows, num_batches) in enumerate(ranks):
        if rows != ranks[0][0]:
            message = (
                f"ranks must change the weights after the same number of batches: rank 0 has taken {ranks[0][1]:,}, "
                f"rank {rank} has taken {num_batches:,}"
            )
            raise LanewayError(message)
