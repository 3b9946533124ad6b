"""What torch.distributed.checkpoint saves of a loader where ranks may be at different batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway.core.schema import wrap_state

if TYPE_CHECKING:
    from laneway.loader import SavableLoader


class GatheredState:
    """Saves and loads a loader through torch.distributed.checkpoint by what all ranks say, not by what one may assume.

    A SavableLoader can be given to `torch.distributed.checkpoint.save` as it is where all ranks take equally many
    batches. This one gathers from every rank what it has delivered, so it is right at any moment: near the end of an
    epoch that keeps its remainder, or with ranks at different batches.

    It must be made, saved and loaded by all ranks. It talks over a process group of its own, so `async_save` does not
    get in its way.

    Args:
        loader: The loader.

    Example:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import SavableLoader, StatefulShardedDataset
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": range(10)}), f"{folder}/part-0.parquet")
        >>> loader = SavableLoader(StatefulShardedDataset(folder, batch_size=4))
        >>> next(iter(loader))["x"]
        tensor([0, 1, 2, 3])
        >>> checkpoint = {"loader": GatheredState(loader)}  # with the model, for dcp.save and dcp.load
        >>> checkpoint["loader"].state_dict()["laneway"][0]["positions"]
        [4]
    """

    def __init__(self, loader: SavableLoader) -> None:
        """See the class."""
        self._loader = loader
        self._ranks = loader.ranks().fresh()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the whole job, gathered from all ranks and equal on them.

        Raises:
            LanewayError: On all ranks, what was wrong on one of them.
        """
        state = self._loader.gather_state(self._ranks, None)
        return wrap_state(state or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of the whole job, on all ranks or on none.

        Raises:
            StateFormatError: On all ranks: it is no state, or a damaged one.
            CheckpointMismatchError: On all ranks: it doesn't belong to the dataset of one of them.
        """
        self._loader.restore_together(self._ranks, state_dict)
