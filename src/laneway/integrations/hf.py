"""transformers.Trainer, and trainers derived from it such as TRL's SFTTrainer, over a SavableLoader.

A Trainer resumes by reading an epoch from its beginning and dropping batches. Here the loader resumes instead, and the
Trainer's counts of batches, steps and epochs follow from where the loader is, on any number of ranks.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers import trainer as trainer_module
from transformers.trainer_callback import ExportableState

from laneway.core.schema import parse_state
from laneway.errors import LanewayError

if TYPE_CHECKING:
    from laneway.loader import SavableLoader

_CALLBACK = "LoaderState"


class LoaderState(TrainerCallback, ExportableState):
    """Keeps the state of the loader in `trainer_state.json`, which rank 0 writes with each checkpoint.

    `LanewayTrainerMixin` adds it.
    """

    def __init__(self, loader: SavableLoader | None = None) -> None:
        """Keep the state of `loader`; None: of no loader, as the Trainer makes it when it restores callbacks."""
        self.loader = loader

    def state(self) -> dict[str, Any]:
        """Return what is saved, as plain JSON values."""
        return {"args": {}, "attributes": {"saved": None if self.loader is None else self.loader.state_dict()}}


@dataclass(frozen=True, slots=True)
class _Resumed:
    """Where training resumes, in the steps and batches of the current number of ranks."""

    global_step: int
    """Number of optimizer steps before."""
    epoch: int
    """The epoch that is resumed, or the one that begins."""
    num_batches_left: int
    """Number of batches that each rank will train of it."""
    num_batches_done: int
    """Number of batches of the epoch that count as trained: a multiple of the batches of a step."""


class LanewayTrainerMixin:
    """Makes a Trainer train on a SavableLoader, and resume exactly where its checkpoint was saved.

    Put it before the Trainer: `class MyTrainer(LanewayTrainerMixin, Trainer)`. The state of the loader is part of
    `trainer_state.json`. On another number of ranks or workers, each row of the epoch that was interrupted still comes
    once; the number of steps, the learning rate's schedule and the progress bar follow the new number of batches.

    Args:
        train_loader: The loader of this rank; created before, it takes its rank from `torchrun`. Its batches are passed
            to the model as they are: build them with `transform` or `collate_fn`.
        args: Positional arguments of the Trainer.
        kwargs: Keyword arguments of the Trainer. `train_dataset` is not read; a trainer that insists on one, as
            SFTTrainer does, may be given a sample.

    Raises:
        ValueError: The Trainer would skip or batch rows itself (`ignore_data_skip`, `auto_find_batch_size`).
    """

    def __init__(self, *args: Any, train_loader: SavableLoader, **kwargs: Any) -> None:  # noqa: ANN401 - Trainer's
        kwargs.setdefault("train_dataset", train_loader.dataset)
        self._train_loader = train_loader
        self._resumed: _Resumed | None = None
        super().__init__(*args, **kwargs)
        arguments: Any = vars(self)["args"]
        for name in ("ignore_data_skip", "auto_find_batch_size"):
            if getattr(arguments, name):
                message = f"{name}=True can't be combined with train_loader, which decides which batches come: omit it"
                raise ValueError(message)
        self._trainer.add_callback(LoaderState(train_loader))

    @property
    def _trainer(self) -> Any:  # noqa: ANN401 - the Trainer after this class, which is not typed
        return super()

    @property
    def _per_step(self) -> int:
        arguments: Any = vars(self)["args"]
        return int(arguments.gradient_accumulation_steps)

    # -- What a Trainer lets its subclasses change ---------------------------------------------------------------------

    def get_train_dataloader(self) -> SavableLoader:
        """Return the loader, which needs nothing that a Trainer adds to a DataLoader."""
        return self._train_loader

    def num_examples(self, dataloader: Any) -> int:  # noqa: ANN401 - a DataLoader of any framework
        """Return the number of rows that all ranks read in an epoch."""
        if dataloader is self._train_loader:
            return int(self._train_loader.dataset.manifest.num_rows)
        return int(self._trainer.num_examples(dataloader))

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:  # noqa: ANN401 - Trainer's
        """Return the numbers of epochs and steps; after a resume, those that the current number of ranks makes."""
        epochs, per_epoch, *counts, max_steps = self._trainer.set_initial_training_values(args, dataloader)
        resumed = self._resumed
        if resumed is not None:
            first = math.ceil(resumed.num_batches_left / self._per_step)
            if args.max_steps > 0:
                rest = max(0, max_steps - resumed.global_step - first)
                epochs = resumed.epoch + 1 + math.ceil(rest / per_epoch)
            else:
                cut_off = epochs * per_epoch - max_steps
                later = max(0, epochs - resumed.epoch - 1)
                max_steps = resumed.global_step + max(0, first + later * per_epoch - cut_off)
        return epochs, per_epoch, *counts, max_steps

    # -- What is private to a Trainer; tests/frameworks/test_hf.py fails if it changes ---------------------------------

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,  # noqa: ANN401 - Trainer's
        resume_from_checkpoint: str | None = None,
        **kwargs: Any,  # noqa: ANN401 - Trainer's
    ) -> Any:  # noqa: ANN401 - Trainer's
        self._resumed = None if resume_from_checkpoint is None else self._resume(Path(resume_from_checkpoint))
        return self._trainer._inner_training_loop(batch_size, args, resume_from_checkpoint, **kwargs)  # noqa: SLF001

    def _resume(self, checkpoint: Path) -> _Resumed:
        loader, per_step = self._train_loader, self._per_step
        trained = json.loads((checkpoint / trainer_module.TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        kept = trained["stateful_callbacks"].get(_CALLBACK)
        if kept is None:
            message = (
                f"{checkpoint} holds no state of the loader, since it was not saved with LanewayTrainerMixin: start "
                "the training over, from the model of the checkpoint"
            )
            raise LanewayError(message)
        state = kept["attributes"]["saved"]
        loader.load_state_dict(state)
        saved, global_step = parse_state(state), int(trained["global_step"])
        if saved.is_complete:
            return _Resumed(global_step, saved.fields["epoch"] + 1, len(loader), 0)
        done = loader.batches_delivered
        return _Resumed(global_step, saved.fields["epoch"], len(loader) - done, done - done % per_step)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:  # noqa: ANN401 - Trainer's
        progress = self._trainer._init_training_state(*args, **kwargs)  # noqa: SLF001 - as above
        # A Trainer that restores callbacks has replaced ours by one without a loader.
        self._trainer.remove_callback(LoaderState)
        self._trainer.add_callback(LoaderState(self._train_loader))
        if self._resumed is None:
            return int(progress[0]), int(progress[1])
        return self._resumed.epoch, self._resumed.num_batches_done

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:  # noqa: ANN401 - Trainer's
        resumed = self._resumed
        if resumed is None or epoch != resumed.epoch:
            self._trainer._run_epoch(epoch=epoch, **kwargs)  # noqa: SLF001 - as above
            return
        # Steps must consist of whole groups of batches, so this epoch may be a few batches shorter or longer.
        num_batches = resumed.num_batches_done + resumed.num_batches_left
        kwargs["steps_in_epoch"] = num_batches
        kwargs["num_update_steps_per_epoch"] = math.ceil(num_batches / self._per_step)
        skip = trainer_module.skip_first_batches
        trainer_module.skip_first_batches = lambda loader, _: loader
        try:
            self._trainer._run_epoch(epoch=epoch, **kwargs)  # noqa: SLF001 - as above
        finally:
            trainer_module.skip_first_batches = skip
