"""Stateful iterable datasets for PyTorch: stop after any batch and resume exactly there, on any number of machines."""

from laneway.catalog.manifest import Manifest
from laneway.convert.batches import NullInColumnError
from laneway.core.merge import merge_states
from laneway.core.shards import Shard
from laneway.dataset import StatefulShardedDataset
from laneway.delivery.context import BatchContext, RowContext
from laneway.errors import (
    CheckpointMismatchError,
    CollectiveError,
    ColumnConversionError,
    DataFileError,
    LanewayError,
    ManifestCacheWarning,
    NotReproducibleError,
    SchemaMismatchError,
    StateFormatError,
    StateUnavailableError,
)
from laneway.loader import SavableLoader
from laneway.mixture import Mixture
from laneway.storage.retries import RetryPolicy

__all__ = [
    "BatchContext",
    "CheckpointMismatchError",
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
]
__version__ = "0.1.0"
