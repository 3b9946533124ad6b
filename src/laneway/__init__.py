"""Stateful iterable datasets for PyTorch: stop after any batch and resume exactly there, on any number of machines."""

from typing import TYPE_CHECKING, Any

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
    NotReproducibleError,
    NullInColumnError,
    SchemaMismatchError,
    StateFormatError,
    StateUnavailableError,
)
from laneway.loader import SavableLoader
from laneway.manifest import Manifest
from laneway.mixture import Mixture
from laneway.rewriting import to_parquet
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
    "Mixture",
    "NotReproducibleError",
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
    "to_parquet",
]
__version__ = "0.1.0"

# Tracebacks say where an exception can be imported from. The other classes name the module that has their source.
for _name in __all__:
    if isinstance(_found := globals().get(_name), type) and issubclass(_found, Exception):
        _found.__module__ = __name__


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attribute
    # torch.distributed.checkpoint takes most of a second to import.
    if name == "Checkpoints":
        from laneway.checkpoint import Checkpoints  # noqa: PLC0415

        return Checkpoints
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
