"""Stateful iterable datasets for PyTorch: stop after any batch and resume exactly there, on any number of machines."""

from typing import TYPE_CHECKING, Any

from laneway.catalog.manifest import Manifest
from laneway.convert.batches import NullInColumnError
from laneway.core.merge import merge_states
from laneway.core.shards import Shard
from laneway.dataset import StatefulShardedDataset
from laneway.delivery.context import BatchContext, RowContext
from laneway.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CollectiveError,
    ColumnConversionError,
    DataFileError,
    LanewayError,
    ManifestCacheWarning,
    SchemaMismatchError,
    StateFormatError,
    StateUnavailableError,
)
from laneway.loader import SavableLoader
from laneway.storage.retries import RetryPolicy

if TYPE_CHECKING:
    from laneway.checkpoint import Checkpoints

__all__ = [
    "BatchContext",
    "CheckpointError",
    "CheckpointMismatchError",
    "Checkpoints",
    "CollectiveError",
    "ColumnConversionError",
    "DataFileError",
    "LanewayError",
    "Manifest",
    "ManifestCacheWarning",
    "NullInColumnError",
    "RetryPolicy",
    "RowContext",
    "SavableLoader",
    "SchemaMismatchError",
    "Shard",
    "StateFormatError",
    "StateUnavailableError",
    "StatefulShardedDataset",
    "merge_states",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attribute
    # torch.distributed.checkpoint takes most of a second to import.
    if name == "Checkpoints":
        from laneway.checkpoint import Checkpoints  # noqa: PLC0415

        return Checkpoints
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
