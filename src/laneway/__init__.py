"""Stateful iterable datasets for PyTorch: stop after any batch and resume exactly there, on any number of machines."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from laneway.checkpoint import Checkpoints
    from laneway.core.merge import merge_states
    from laneway.core.shards import Shard
    from laneway.dataset import StatefulShardedDataset
    from laneway.delivery.context import BatchContext, RowContext
    from laneway.inspection.auditing import audit
    from laneway.inspection.redistribution import redistribute
    from laneway.inspection.summary import compare_states, describe_state
    from laneway.integrations.hf_datasets import DecodeFeatures, load_hf
    from laneway.loader import SavableLoader
    from laneway.manifest import Manifest
    from laneway.mixture import Mixture
    from laneway.rewriting import to_parquet
    from laneway.storage.retries import RetryPolicy
    from laneway.tables.base import Bounds, Catalog, TableFiles

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

_MODULES = {
    "BatchContext": "laneway.delivery.context",
    "Bounds": "laneway.tables.base",
    "Catalog": "laneway.tables.base",
    "Checkpoints": "laneway.checkpoint",
    "DecodeFeatures": "laneway.integrations.hf_datasets",
    "Manifest": "laneway.manifest",
    "Mixture": "laneway.mixture",
    "RetryPolicy": "laneway.storage.retries",
    "RowContext": "laneway.delivery.context",
    "SavableLoader": "laneway.loader",
    "Shard": "laneway.core.shards",
    "StatefulShardedDataset": "laneway.dataset",
    "TableFiles": "laneway.tables.base",
    "audit": "laneway.inspection.auditing",
    "compare_states": "laneway.inspection.summary",
    "describe_state": "laneway.inspection.summary",
    "load_hf": "laneway.integrations.hf_datasets",
    "merge_states": "laneway.core.merge",
    "redistribute": "laneway.inspection.redistribution",
    "to_parquet": "laneway.rewriting",
}
"""Name -> module, imported on first use: torch takes more than a second, and `laneway --help` doesn't need it."""

# Tracebacks say where an exception can be imported from. The other classes name the module that has their source.
for _name in __all__:
    if isinstance(_found := globals().get(_name), type) and issubclass(_found, Exception):
        _found.__module__ = __name__


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attribute
    if name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    found = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*{*globals(), *_MODULES}]
