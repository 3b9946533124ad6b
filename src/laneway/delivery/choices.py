"""Messages about the epochs that users choose."""

from __future__ import annotations

from laneway.errors import LanewayError


def warning_of_complete(epoch: int) -> str:
    """Return the warning that a pass resumes from a state of the last batch of an epoch."""
    return (
        f"the loaded state is of the last batch of epoch {epoch}, so this pass delivers nothing, and the next one "
        f"epoch {epoch + 1}: right for a loop that starts at epoch {epoch}, as range(loader.epoch, n) does, and "
        f"set_epoch({epoch}) before it says so; if yours starts at epoch {epoch + 1}, call set_epoch({epoch + 1})"
    )


def warning_of_dropped(epoch: int, of_state: int, *, is_complete: bool) -> str:
    """Return the warning that a loaded state is dropped.

    Args:
        epoch: The epoch that was chosen.
        of_state: That of the state.
        is_complete: Whether the state is of its end.
    """
    where = "the end" if is_complete else "the middle"
    way_out = of_state + 1 if is_complete else of_state
    return (
        f"set_epoch({epoch}) drops the loaded state, which is of {where} of epoch {of_state}; to resume from it, start "
        f"the loop over epochs at {way_out}"
    )


def refused_epoch(epoch: int, following: int | None) -> LanewayError:
    """Return the error for an epoch that can't be chosen.

    Args:
        epoch: The epoch.
        following: That of the next pass, if epochs of a number of batches follow each other; None: there are no epochs.
    """
    if following is None:
        message = (
            f"set_epoch({epoch}) of an endless mixture: it has no epochs, and continues where the last pass "
            "stopped; give it a stop or epoch_batches=, or don't call set_epoch"
        )
    else:
        message = (
            f"set_epoch({epoch}), but epochs of a number of batches follow each other, and the next pass is of epoch "
            f"{following}: start the loop over epochs there"
        )
    return LanewayError(message)
