"""The arguments of a DataLoader that a SavableLoader accepts, passed directly or read from a user's own loader."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

from torch.utils.data import default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway.arguments import check_callable, check_count, check_int, plain_int
from laneway.delivery.item_maker import unchanged
from laneway.delivery.workers import MAX_WORKERS
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.data import DataLoader

    from laneway.delivery.definition import Definition


_MAX_PREFETCH: Final = 1 << 16
"""Maximum number of parcels that each worker prefetches: PyTorch asks for them one by one."""


class LoaderArguments(NamedTuple):
    """The DataLoader arguments of a SavableLoader."""

    keywords: dict[str, Any]
    """Arguments of DataLoader, other than the following."""
    batch_size: int | None
    """Rows of a batch; None: the items of the dataset are not batched."""
    collate_fn: Callable[[Any], Any] | None
    """Builds a batch from a list of rows, or is called on each item; None: the default."""

    def checked(self) -> LoaderArguments:
        """Return these arguments, which a user passed, with built-in ints as numbers.

        Raises:
            TypeError: One of them has the wrong type.
            ValueError: A number is out of its range.
        """
        num_workers = plain_int(self.keywords["num_workers"])
        if num_workers is None:
            message = f"num_workers must be an int of at least 0, not {self.keywords['num_workers']!r}"
            raise TypeError(message)
        check_int("num_workers", num_workers, minimum=0, maximum=MAX_WORKERS)
        check_callable("collate_fn", self.collate_fn)
        check_callable("worker_init_fn", self.keywords["worker_init_fn"])
        keywords = {**self.keywords, "num_workers": num_workers}
        if num_workers:
            keywords["prefetch_factor"] = check_count("prefetch_factor", keywords.get("prefetch_factor"), _MAX_PREFETCH)
        return self._replace(keywords=keywords)

    def of_loader(self, loader: DataLoader[Any]) -> LoaderArguments:
        """Return the arguments of a loader that a user passed instead of a dataset.

        Raises:
            ValueError: Arguments were passed as well, or states could not be exact with those of the loader.
            TypeError: The loader is a SavableLoader.
        """
        arguments = {**self.keywords, "batch_size": self.batch_size, "collate_fn": self.collate_fn}
        given = [name for name, value in arguments.items() if value]
        if given:
            message = f"{', '.join(given)} can't be passed together with a DataLoader: pass it to the DataLoader"
            raise ValueError(message)
        check_has_no_state(loader)
        if loader.drop_last:
            message = (
                "drop_last=True of a DataLoader makes states inexact: pass batch_size and drop_last to the dataset"
            )
            raise ValueError(message)
        keywords = {name: getattr(loader, name) for name in _KEYWORDS}
        return LoaderArguments(keywords, loader.batch_size, loader.collate_fn)

    def of_dataloader(self) -> dict[str, Any]:
        """Return the arguments of a DataLoader over the same dataset, which frameworks read from its attributes."""
        collate_fn = self.collate_fn or (default_collate if self.batch_size else unchanged)
        return {**self.keywords, "batch_size": self.batch_size, "collate_fn": collate_fn}

    def apply_to(self, definition: Definition) -> Definition:
        """Return a definition that builds batches as the loader would.

        Raises:
            ValueError: Dataset and loader both build batches, or the batch size does not fit the dataset's turns.
        """
        if self.batch_size is None:
            if self.collate_fn is None:
                return definition
            return definition.mapped(self.collate_fn)
        options = definition.options
        if options.batch_size is not None:
            message = (
                f"the dataset already yields batches of {counted(options.batch_size, 'row')}, and the loader would "
                f"batch them again (its batch_size is {self.batch_size}): pass batch_size to the dataset only, and "
                "None to the loader (the default of a DataLoader is 1)"
            )
            raise ValueError(message)
        batch_size = check_count("batch_size", self.batch_size)
        if options.turn_rows and (batch_size or 0) % options.turn_rows:
            message = f"batch_size {batch_size} must be a multiple of the dataset's turn_rows {options.turn_rows}"
            raise ValueError(message)
        options = replace(options, batch_size=batch_size)
        return replace(definition, options=options, collate_fn=self.collate_fn or default_collate)


_ELSEWHERE: Final = {
    "shuffle": "pass shuffle=True, and a seed, to the StatefulShardedDataset",
    "drop_last": "pass drop_last and batch_size to the StatefulShardedDataset",
    "generator": "pass shuffle=True, and a seed, to the StatefulShardedDataset",
    "sampler": "the StatefulShardedDataset decides the order: see its shuffle, seed, filter, split and slice",
    "batch_sampler": "the StatefulShardedDataset decides the order: see its shuffle, seed, batch_size and drop_last",
    "in_order": "pass a DataLoader(dataset, in_order=False) instead of the dataset",
}
"""Argument of a DataLoader that a SavableLoader doesn't take -> what to pass instead."""

Self_ = TypeVar("Self_")
Arguments = ParamSpec("Arguments")


def naming_the_way_out(
    init: Callable[Concatenate[Self_, Arguments], None],
) -> Callable[Concatenate[Self_, Arguments], None]:
    """Have the `__init__` of a loader say where to pass what a DataLoader would take.

    Raises:
        TypeError: An argument of a DataLoader is one of the dataset's here, or is passed by position.
    """

    @wraps(init)
    def checked(self: Self_, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        for name, way_out in _ELSEWHERE.items():
            if kwargs.get(name) is not None:
                message = f"SavableLoader takes no {name}: {way_out}"
                raise TypeError(message)
        if len(args) > 1:
            message = (
                "SavableLoader takes only the dataset by position: pass the other arguments by name, and batch_size to "
                "the StatefulShardedDataset"
            )
            raise TypeError(message)
        init(self, *args, **kwargs)

    return checked


_KEYWORDS = (
    *("num_workers", "pin_memory", "prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout"),
    *("worker_init_fn", "generator", "in_order"),
)


def check_has_no_state(loader: DataLoader[Any]) -> None:
    """Check that a user's loader has no state of its own, since a SavableLoader would not resume from it.

    Raises:
        ValueError: A state was loaded into it.
    """
    if isinstance(loader, StatefulDataLoader) and loader.next_iter_state is not None:
        message = (
            "a state was loaded into the StatefulDataLoader itself: load a state of the SavableLoader into the "
            "SavableLoader, and create a new StatefulDataLoader"
        )
        raise ValueError(message)
