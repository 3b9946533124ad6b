"""Lightning's Trainer over a SavableLoader: needed only where it resumes with another number of batches."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback


class CorrectBatchCount(Callback):
    """Makes Lightning end a resumed epoch where its loader does.

    Lightning restores its own count of the batches of an epoch, even if they now have another size or number, as on
    another number of ranks or workers. This sets the count to that of the SavableLoader; if nothing has changed, it
    stays as it is.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401, ARG002 - as Callback has them
        """Correct the count, once the state of the loader was restored."""
        # Not public; a resumed epoch whose counts differ is an error, see laneway.delivery.callers.
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        batches.completed += trainer.train_dataloader.batches_delivered - batches.ready
