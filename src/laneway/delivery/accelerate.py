"""What Hugging Face Accelerate expects of a loader that it has prepared, and does not prepare itself.

`Accelerator.prepare` leaves a loader with `_is_accelerate_prepared` as it is. Its own loaders put batches on a device,
and say which one is the last, so that gradients that are still accumulated are used. Accelerate is imported only then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laneway.delivery.callers import calling_method
from laneway.errors import LanewayError

if TYPE_CHECKING:
    import torch

    from laneway.delivery.passes import Taken


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an Accelerator puts the batches of a loader."""

    device: torch.device | None
    """The device; None: batches stay where they are."""
    non_blocking: bool
    """Whether copies don't wait for the device."""


def placement_of_caller() -> Placement | None:
    """Return what the Accelerator wants that prepares a loader right now, or None if none does."""
    method = calling_method("accelerate", "Accelerator", "prepare_data_loader")
    if method is None:
        return None
    accelerator, wanted = method["self"], method["device_placement"]
    is_placed = accelerator.device_placement if wanted is None else wanted
    return Placement(accelerator.device if is_placed else None, accelerator.non_blocking)


def check_checkpoint_of_caller(loader: object) -> None:
    """Check that a checkpoint which an Accelerator loads right now, if it does, holds a state of a loader.

    Accelerate passes over a loader whose state is not in the checkpoint, and the loader would begin its epoch again. It
    finds states by the order in which loaders were prepared.

    Raises:
        LanewayError: It holds none.
    """
    method = calling_method("accelerate", "Accelerator", "load_state")
    if method is None:
        return
    loaders = method["self"]._dataloaders  # noqa: SLF001 - tests/frameworks fails if it changes
    for index, prepared in enumerate(loaders):
        name = f"dl_state_dict_{index}.bin" if index else "dl_state_dict.bin"
        if prepared is loader and not Path(method["input_dir"], name).exists():
            message = (
                f"this SavableLoader is number {index + 1} of {len(loaders)} that the Accelerator has prepared, but "
                f"{method['input_dir']} has no {name}, so the loader would begin its epoch again: prepare the same "
                "loaders as before save_state(), each once, with a new Accelerator or after free_memory(); a loader "
                "that is to start over is prepared after load_state()"
            )
            raise LanewayError(message)


class AcceleratedPass:
    """A pass as Accelerate sees it, through its GradientState, which keeps no reference to it."""

    remainder = -1
    """Number of rows of the last batches that are no repetitions; -1: not known, `gather_for_metrics` keeps all."""

    def __init__(self, placement: Placement) -> None:
        """Prepare a pass."""
        self._placement = placement
        self.end_of_dataloader = False
        """Whether the batch that was delivered last is the last of the pass."""

    def begin(self) -> None:
        """Tell Accelerate that the pass is the innermost one that is running."""
        from accelerate.state import GradientState  # noqa: PLC0415 - only users of Accelerate have it

        GradientState()._add_dataloader(self)  # noqa: SLF001 - as its loaders do; tests/frameworks fails if it changes

    def end(self) -> None:
        """Tell Accelerate that the pass is over."""
        from accelerate.state import GradientState  # noqa: PLC0415 - as above

        GradientState()._remove_dataloader(self)  # noqa: SLF001 - as above

    def place(self, taken: Taken, *, is_last: bool) -> Taken:
        """Return an item on its device, right before it is delivered."""
        self.end_of_dataloader = is_last
        return taken if self._placement.device is None else taken._replace(item=self._send(taken.item))

    def _send(self, item: Any) -> Any:  # noqa: ANN401 - a user's transform may return anything
        from accelerate.utils import send_to_device  # noqa: PLC0415 - as above

        return send_to_device(item, self._placement.device, non_blocking=self._placement.non_blocking)
