"""What a loader has to save and restore its state: that of this rank, or of the whole job."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from laneway.core.apart import merge_gathered, state_of_rank
from laneway.core.schema import parse_state, sealed, wrap_state
from laneway.delivery.loader_state import (
    check_lockstep,
    check_same_arguments,
    check_same_state,
    digest_of,
    job_state,
    parse_job_state,
    parse_rank_state,
    rank_state,
    resume_point,
)
from laneway.ranks import Ranks

if TYPE_CHECKING:
    from laneway.core.mixture_identity import MixtureIdentity
    from laneway.core.plan import Identity
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.loader_state import ResumePoint
    from laneway.delivery.runner import PassRunner
    from laneway.delivery.schedule import EpochSchedule

    State = dict[str, Any]


class StateLoader:
    """The part of a loader that saves and restores states."""

    _runner: PassRunner
    _schedule: EpochSchedule
    _place: WorkerPlace
    _ranks: Ranks | None

    @property
    @abstractmethod
    def epoch(self) -> int:
        """The epoch that the loader describes."""

    @property
    @abstractmethod
    def batches_delivered(self) -> int:
        """Batches of it that were delivered."""

    # -- States of the whole job, without communication ---------------------------------------------------------------

    def state_dict(self, *, check: bool = False) -> State:
        """Return the state of the whole job, if all ranks have taken as many batches as this one, as plain JSON values.

        It is the same on every rank, so one rank can save it for all; nothing is communicated. Near the end of an epoch
        that keeps its remainder, ranks deliver different numbers of batches, so this can't be assumed: then it is the
        state of this rank, marked as such, and other ranks refuse it.

        Args:
            check: Whether to compare with all other ranks, which must all make this call then: for loops in which ranks
                might take different numbers of batches, as when each packs its own.

        Raises:
            LanewayError: With `check`, on all ranks: they have taken different numbers of batches, or mix with
                different weights or `stop`.
            CollectiveError: With `check`: a rank could not be reached.
        """
        state = job_state(self._runner)
        if check:
            self.ranks().compare(
                "state_dict(check=True)",
                lambda: (self.common_arguments(), digest_of(state), self.epoch, self.batches_delivered),
                check_lockstep,
            )
        return wrap_state(state)

    def load_state_dict(self, state_dict: State) -> None:
        """Resume the next pass from a state of the whole job, or of this rank; a refused state changes nothing.

        Args:
            state_dict: A result of `state_dict`, `save_state_global` or `merge_states`, from any number of ranks and
                workers, or of `save_state_rank` from this rank.

        Raises:
            StateFormatError: The value is not a state, or it is damaged.
            CheckpointMismatchError: The state belongs to other files, another order or another rank; the message lists
                all differences. Or some items of a row were delivered, and the present ranks and workers can't share
                the lanes of the state.
            ValueError: A source of a mixture was removed while its rows are in items that are half delivered.
        """
        self.checked_state(state_dict).restore()

    def checked_state(self, state_dict: State) -> ResumePoint:
        """Check a state as `load_state_dict` does, and return what resumes the next pass from it."""
        return resume_point(self._runner, parse_state(state_of_rank(state_dict, self._place)))

    # -- States of one rank -------------------------------------------------------------------------------------------

    def save_state_rank(self) -> State:
        """Return the state of this rank, as plain JSON values; nothing is communicated.

        `restore_state_rank` accepts it on the same rank with the same world size. `merge_states` merges the states of
        all ranks, saved at the same step, into the state of the whole job.
        """
        return rank_state(self._runner)

    def restore_state_rank(self, state: State) -> None:
        """Resume the next pass from a state of this rank; nothing is communicated.

        Args:
            state: A result of `save_state_rank` from this rank, with the same world size.

        Raises:
            StateFormatError: The value is not a state, or it is damaged.
            CheckpointMismatchError: The state is of another rank, of another world size, or of the whole job.
        """
        resume_point(self._runner, parse_rank_state(state, self._place)).restore()

    # -- States of the whole job, gathered from all ranks -------------------------------------------------------------

    def save_state_global(self, dst_rank: int = 0) -> State | None:
        """Gather the progress of all ranks into the state of the whole job, as plain JSON values.

        Must be called by all ranks. They may have taken different numbers of batches. If they are in different epochs,
        the state resumes only on the same number of ranks.

        Args:
            dst_rank: Data-parallel rank that receives the state.

        Returns:
            The state on `dst_rank`, None on all other ranks.

        Raises:
            CollectiveError: A rank could not be reached.
            LanewayError: A rank failed, or ranks mix with different weights or `stop`; the same error is raised on
                all ranks.
        """
        return self.gather_state(self.ranks(), f"save_state_global(dst_rank={dst_rank!r})", dst_rank)

    def restore_state_global(self, state: State | None, src_rank: int | None = 0) -> None:
        """Resume the next pass from a state of the whole job, on all ranks or on none.

        Must be called by all ranks. The number of ranks and of workers may differ from when the state was saved.

        Args:
            state: A result of `save_state_global`, `state_dict` or `merge_states`; used on `src_rank` only.
            src_rank: Data-parallel rank that sends the state to the others. None: every rank passes the whole state.

        Raises:
            StateFormatError: The value is not a state, or it is damaged; raised on all ranks.
            CheckpointMismatchError: The state does not belong to the dataset of a rank, it is that of a single rank, or
                ranks passed different states, or it holds another number of ranks in different epochs; raised on all
                ranks.
            LanewayError: Ranks differ in weights, batch size, lanes or workers, so they would not read each row exactly
                once; raised on all ranks.
            CollectiveError: A rank could not be reached.
        """
        ranks = self.ranks()
        call = f"restore_state_global(src_rank={src_rank!r})"
        if src_rank is not None:
            state = ranks.broadcast(call, lambda: parse_job_state(state, self._place).whole, src_rank)
        self.restore_together(ranks, call, state, is_sent=src_rank is not None)

    def gather_state(self, ranks: Ranks, call: str, dst_rank: int | None) -> State | None:
        """Gather the state of the whole job over `ranks`, on one of them or on all; see `save_state_global`."""

        # The file table may be large, and is the same on all ranks, or else their fingerprints differ.
        def part() -> tuple[dict[str, str], State]:
            ranks.check(self._place.rank, self._place.world_size)
            return self.common_arguments(), sealed({**self.save_state_rank(), "files": ""})

        parts = ranks.gather(call, part, 0 if dst_rank is None else dst_rank)

        def merged() -> State | None:
            if not parts:
                return None
            check_same_arguments([arguments for arguments, _ in parts])
            return merge_gathered([state for _, state in parts])

        call = f"{call}: merge"
        state = ranks.agree(call, merged) if dst_rank is not None else ranks.broadcast(call, merged, src_rank=0)
        return None if state is None else sealed({**state, "files": self._identity.encoded_files})

    def restore_together(self, ranks: Ranks, call: str, state: object, *, is_sent: bool) -> None:
        """Resume the next pass from a state that every rank of `ranks` has; see `restore_state_global`.

        Args:
            ranks: All of them must call it.
            call: What they do, for errors.
            state: The state.
            is_sent: Whether one rank has sent it to all; otherwise they compare what they were given.
        """
        checked: list[ResumePoint] = []

        def check() -> tuple[dict[str, str], str]:
            ranks.check(self._place.rank, self._place.world_size)
            saved, whole = parse_job_state(state, self._place)
            checked.append(resume_point(self._runner, saved))
            return checked[0].common_arguments(), "" if is_sent else digest_of(whole)

        ranks.compare(f"{call}: check", check, check_same_state)
        checked[0].restore()

    def common_arguments(self) -> dict[str, str]:
        """Return what ranks must have in common and states don't hold: the weights and `stop` of a mixture."""
        return self._runner.source.definition.common_arguments()

    def ranks(self) -> Ranks:
        """Return the ranks of the job, able to communicate: those in `process_group`, or in the whole world."""
        return self._ranks or Ranks.of(None, self._place.rank, self._place.world_size)

    @property
    def _identity(self) -> Identity | MixtureIdentity:
        return self._runner.source.definition.identity
