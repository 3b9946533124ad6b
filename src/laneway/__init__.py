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
    WorkerError,
)
from laneway.inspection.auditing import audit
from laneway.inspection.redistribution import redistribute
from laneway.inspection.summary import compare_states, describe_state
from laneway.loader import SavableLoader
from laneway.manifest import Manifest
from laneway.mixture import Mixture
from laneway.rewriting import to_parquet
from laneway.storage.retries import RetryPolicy
from laneway.tables.base import Bounds, Catalog, TableFiles

if TYPE_CHECKING:
    from laneway.checkpoint import Checkpoints
    from laneway.integrations.hf_datasets import DecodeFeatures, load_hf

__all__ = [
    "BatchContext",
    "Bounds",
    "Catalog",
    "CheckpointError",
    "CheckpointMismatchError",
    "Checkpoints",
    "CollectiveError",
    "ColumnConversionError",
    "DataFileError",
    "DecodeFeatures",
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
    "TableFiles",
    "WorkerError",
    "audit",
    "compare_states",
    "describe_state",
    "load_hf",
    "merge_states",
    "redistribute",
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
    if name in {"DecodeFeatures", "load_hf"}:
        from laneway.integrations import hf_datasets  # noqa: PLC0415

        return getattr(hf_datasets, name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
