"""Frameworks that read a dataset or a loader, as seen from the call stack: what would lose rows is refused.

Some frameworks share out rows again that a dataset has already shared out among ranks, or drop the batches that were
trained before a resume, and tell neither dataset nor loader. What is known here of their insides is tested with the
real packages in tests/frameworks. No framework is imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from laneway.errors import LanewayError
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_LIGHTNING = ("lightning", "pytorch_lightning")
_FRAMEWORKS = {"accelerate", "keras", "ray", "transformers", *_LIGHTNING}


def _methods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and local variables, with `self`, of the frameworks' methods on the call stack, innermost first."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - frameworks don't say who they are
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        # Not of other functions: until these return, Python would keep all that their variables refer to now.
        if package in _FRAMEWORKS and "self" in frame.f_locals:
            yield frame.f_code.co_name, frame.f_locals
        frame = frame.f_back


def _is_of(value: object, packages: tuple[str, ...], name: str) -> bool:
    """Return whether a value is an instance of a class of a framework, known by name."""
    return any(each.__name__ == name and each.__module__.split(".")[0] in packages for each in type(value).__mro__)


def calling_method(package: str, class_name: str, method: str) -> dict[str, Any] | None:
    """Return the local variables of a framework's method that is on the call stack, or None."""
    for name, found in _methods():
        if name == method and _is_of(found["self"], (package,), class_name):
            return found
    return None


def is_counted_by_fabric() -> bool:
    """Return whether Fabric is choosing the epoch: it passes the number of passes that this process has begun."""
    return calling_method("lightning", "_FabricDataLoader", "__iter__") is not None


def is_looked_at_by_keras() -> bool:
    """Return whether Keras takes a batch only to learn its shape; it begins another pass to train."""
    return calling_method("keras", "Trainer", "_symbolic_build") is not None


def check_readers(dataset: object, *, world_size: int) -> None:
    """Check that nobody on the call stack would share out or drop what a dataset delivers.

    Args:
        dataset: The dataset.
        world_size: Number of ranks of the dataset.

    Raises:
        LanewayError: Somebody would.
    """
    for name, found in _methods():
        reader = found["self"]
        if world_size > 1 and (
            _is_of(reader, ("accelerate",), "DataLoaderDispatcher")
            or _is_of(reader, ("accelerate",), "IterableDatasetShard")
        ):
            message = (
                f"Accelerate would share out the rows of this dataset among its processes ({type(reader).__name__}), "
                f"but the dataset has already shared them out among {world_size} ranks, so rows would be lost: pass "
                "SavableLoader(dataset) to Accelerator.prepare() instead of a DataLoader; for transformers.Trainer, "
                "use laneway.integrations.hf.LanewayTrainerMixin instead of train_dataset= (and of eval_dataset=: "
                "a dataset created with rank=0, world_size=1)"
            )
            raise LanewayError(message)
        if (
            name == "__iter__"
            and _is_of(reader, ("accelerate",), "DataLoaderAdapter")
            and vars(reader).get("skip_batches")
        ):
            message = (
                "Accelerate would read this epoch from its beginning and drop "
                f"{counted(reader.skip_batches, 'batch')}, which are not those that were "
                "trained before if the number of ranks or workers differs: pass "
                "SavableLoader(dataset) to Accelerator.prepare(), save and load it with save_state() and load_state(), "
                "and don't call skip_first_batches(); for transformers.Trainer, use "
                "laneway.integrations.hf.LanewayTrainerMixin instead of train_dataset="
            )
            raise LanewayError(message)
        if name == "_run_epoch" and "train_dataloader" in found and _is_of(reader, ("transformers",), "Trainer"):
            loader = found["train_dataloader"]
            if loader.dataset is dataset and loader.batch_size is not None and loader.num_workers > 1:
                message = (
                    f"each of the {loader.num_workers} workers makes batches of its own rows, so an epoch may have "
                    "more batches than transformers.Trainer expects and trains: pass dataloader_num_workers=1, or use "
                    "laneway.integrations.hf.LanewayTrainerMixin instead of train_dataset="
                )
                raise LanewayError(message)


def check_resumes_with_state(dataset: object) -> None:
    """Check that no trainer on the call stack resumes mid-epoch, as `dataset` is about to start with the first row.

    Raises:
        LanewayError: One does, and the dataset is the one it trains on.
    """
    for name, found in _methods():
        trainer = found["self"]
        if _is_of(trainer, _LIGHTNING, "_FitLoop"):
            batches = trainer.epoch_loop.batch_progress
            is_mid_epoch = trainer.restarting and batches.current.ready > 0 and not batches.is_last_batch
            combined = trainer._combined_loader  # noqa: SLF001 - tests/frameworks fails if it changes
            if is_mid_epoch and any(_starts_anew(loader, dataset) for loader in combined.flattened):
                message = (
                    "Lightning resumes in the middle of an epoch, but its checkpoint holds no state of this dataset, "
                    "which would start with the first row: return SavableLoader(dataset) from train_dataloader(), and "
                    "resume from checkpoints that were saved with it"
                )
                raise LanewayError(message)
        elif name == "_run_epoch" and "train_dataloader" in found and _is_of(trainer, ("transformers",), "Trainer"):
            is_resumed = found["resume_from_checkpoint"] is not None and found["epoch"] == found["epochs_trained"]
            is_mid_epoch = is_resumed and trainer.state.global_step % found["num_update_steps_per_epoch"]
            if is_mid_epoch and _starts_anew(found["train_dataloader"], dataset):
                message = (
                    "transformers.Trainer resumes in the middle of an epoch, but its checkpoint holds no state of this "
                    "dataset, which would start with the first row: use laneway.integrations.hf.LanewayTrainerMixin, "
                    "and resume from checkpoints that were saved with it"
                )
                raise LanewayError(message)


def check_not_read_ahead() -> None:
    """Check that nobody on the call stack takes a batch of a loader before the training loop asks for it.

    Raises:
        LanewayError: Somebody does, so a state would count a batch that was not trained.
    """
    if calling_method("ray", "_WrappedDataLoader", "__iter__") is not None:
        message = (
            "Ray's prepare_data_loader() takes one batch more than the training loop, and states would count it as "
            "trained: iterate over the SavableLoader itself, which has the rows of this rank only, and move its "
            "batches with to(ray.train.torch.get_device())"
        )
        raise LanewayError(message)


def check_batch_count(dataset: object, num_delivered: int) -> None:
    """Check that Lightning, if it resumes now, counts as many batches of the epoch as the loader.

    Args:
        dataset: The dataset of the loader.
        num_delivered: Number of batches of the epoch that the loader has delivered.

    Raises:
        LanewayError: It does not, so it would end the epoch too early or too late.
    """
    for _, found in _methods():
        loop = found["self"]
        if _is_of(loop, _LIGHTNING, "_TrainingEpochLoop") and loop.restarting:
            num_counted = loop.batch_progress.current.ready
            combined = loop.trainer.fit_loop._combined_loader  # noqa: SLF001 - as above
            is_trained_on = any(getattr(loader, "dataset", None) is dataset for loader in combined.flattened)
            if is_trained_on and num_counted != num_delivered:
                message = (
                    f"Lightning resumes this epoch after {counted(num_counted, 'batch')}, and the loader "
                    f"after {num_delivered:,}, since the number of ranks, their workers or the batch size has changed: "
                    "add laneway.integrations.lightning.CorrectBatchCount() to the callbacks of the Trainer"
                )
                raise LanewayError(message)


def _starts_anew(loader: object, dataset: object) -> bool:
    """Return whether a framework's loader reads `dataset`, and is not a StatefulDataLoader that has loaded a state."""
    return getattr(loader, "dataset", None) is dataset and getattr(loader, "next_iter_state", None) is None
