"""Saving a loader with torch.distributed.checkpoint when ranks may be at different batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway.core.schema import wrap_state

if TYPE_CHECKING:
    from laneway.loader import SavableLoader


class GatheredState:
    """Replaces a SavableLoader in the state dict of torch.distributed.checkpoint, and gathers from all ranks.

    While all ranks take the same number of batches, a SavableLoader can be passed to
    `torch.distributed.checkpoint.save` directly. GatheredState gathers the progress of every rank, so it is correct at
    any time: also near the end of an epoch with `remainder="keep"`, or with ranks at different batches.

    All ranks must create, save and load it. It communicates over the store of the process group, so it does not
    conflict with `async_save`.

    Args:
        loader: The loader to save and restore.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import SavableLoader, StatefulShardedDataset
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": range(10)}), f"{folder}/part-0.parquet")
        >>> loader = SavableLoader(StatefulShardedDataset(folder, batch_size=4))
        >>> next(iter(loader))["x"]
        tensor([0, 1, 2, 3])
        >>> checkpoint = {"loader": GatheredState(loader)}  # with the model, for dcp.save and dcp.load
        >>> checkpoint["loader"].state_dict()["laneway"][0]["next_turn"]
        1
    """

    def __init__(self, loader: SavableLoader) -> None:
        self._loader = loader
        self._ranks = loader.ranks().with_own_exchange("GatheredState()")

    def state_dict(self) -> dict[str, Any]:
        """Gather the state of the whole job from all ranks, and return it on all of them.

        Raises:
            LanewayError: A rank failed; the same error is raised on all ranks.
            CollectiveError: A rank could not be reached.
        """
        state = self._loader.gather_state(self._ranks, "GatheredState.state_dict()", None)
        return wrap_state(state or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a state of the whole job, on all ranks or on none.

        Raises:
            StateFormatError: The value is not a state, or it is damaged; raised on all ranks.
            CheckpointMismatchError: The state does not belong to the dataset of a rank; raised on all ranks.
            CollectiveError: A rank could not be reached.
        """
        self._loader.restore_together(self._ranks, "GatheredState.load_state_dict()", state_dict, is_sent=False)
