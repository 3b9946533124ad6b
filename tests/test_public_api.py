"""The public API, frozen: what docs/reference.md lists, with the signatures that users call."""

from __future__ import annotations

import difflib
import inspect
import pickle
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

import laneway
import laneway.testing
from laneway import (
    Bounds,
    Catalog,
    Checkpoints,
    DecodeFeatures,
    Manifest,
    RetryPolicy,
    SavableLoader,
    StatefulShardedDataset,
    TableFiles,
    audit,
    compare_states,
    dcp,
    describe_state,
    distributed,
)
from laneway.checkpoint import Checkpoint, KeepBest, KeepEvery, KeepLatest, Resumed
from laneway.formats import FORMATS, BlockMatches
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path

ERRORS = {
    "CheckpointError": "LanewayError, RuntimeError",
    "CheckpointMismatchError": "LanewayError, ValueError",
    "CollectiveError": "LanewayError, RuntimeError",
    "ColumnConversionError": "LanewayError, TypeError",
    "DataFileError": "LanewayError, OSError",
    "LanewayError": "",
    "ManifestCacheWarning": "UserWarning, Warning",
    "NullInColumnError": "ColumnConversionError, LanewayError, TypeError",
    "NotReproducibleError": "LanewayError, RuntimeError",
    "WorkerError": "LanewayError, RuntimeError",
    "SchemaMismatchError": "LanewayError, ValueError",
    "StateFormatError": "LanewayError, ValueError",
    "StateUnavailableError": "LanewayError, RuntimeError",
}
"""Error -> the classes, below Exception, that it can be caught as."""

SIGNATURES = {
    "laneway.StatefulShardedDataset": (
        "(source, *, format=None, columns=None, filter=None, schema=None, shuffle=False, seed=0, shard_bytes='8MiB', "
        "shard_rows=None, window_bytes='64MiB', prefetch_windows=1, lanes=None, turn_rows=None, remainder=None, "
        "batch_size=None, drop_last=False, output=None, transform=None, fill_null=None, categories=None, "
        "on_error='raise', filler=None, provenance=False, rank=None, world_size=None, filesystem=None, "
        "storage_options=None, retries=None, cache_dir=None)"
    ),
    "laneway.Mixture": (
        "(sources, weights, *, seed=0, stop=None, epoch_batches=None, weights_of='rows', lanes=None, turn_rows=None, "
        "rank=None, world_size=None)"
    ),
    "laneway.SavableLoader": (
        "(dataset, *, num_workers=0, batch_size=None, collate_fn=None, pin_memory=False, prefetch_factor=None, "
        "persistent_workers=False, multiprocessing_context=None, timeout=0, worker_init_fn=None, shield_workers=False, "
        "process_group=None, progress=None, observer=None, observe_every_s=10.0, stall_warning_s=60.0, "
        "stall_timeout_s=None, sampler=None, batch_sampler=None)"
    ),
    "laneway.Manifest.scan": (
        "(source, *, format=None, filesystem=None, storage_options=None, retries=None, progress=None, cache_dir=None)"
    ),
    "laneway.Manifest.load": "(path, *, root=None, filesystem=None, storage_options=None, retries=None)",
    "laneway.RetryPolicy": (
        "(*, max_attempts=10, first_delay_s=0.1, max_delay_s=20.0, attempt_timeout_s=30.0, deadline_s=120.0, "
        "listing_timeout_s=600.0, connect_timeout_s=5.0, read_timeout_s=10.0)"
    ),
    "laneway.Checkpoints": (
        "(path, *, keep=(), async_save=False, process_group=None, filesystem=None, storage_options=None, retries=None, "
        "signals=(), deadline_s=None, if_locked='error')"
    ),
    "laneway.checkpoint.KeepBest": "(count, metric, mode='min')",
    "laneway.checkpoint.KeepEvery": "(steps)",
    "laneway.checkpoint.KeepLatest": "(count=1)",
    "laneway.Shard": "(path, row_offset, row_length)",
    "laneway.dcp.GatheredState": "(loader)",
    "laneway.distributed.load_once": (
        "(path, *, root=None, filesystem=None, storage_options=None, retries=None, process_group=None)"
    ),
    "laneway.distributed.scan_once": (
        "(source, *, format=None, filesystem=None, storage_options=None, retries=None, progress=None, cache_dir=None, "
        "filter=None, categories=(), process_group=None)"
    ),
    "laneway.audit": "(states, source=None)",
    "laneway.compare_states": "(a, b, *, key=None)",
    "laneway.describe_state": "(state, *, key=None)",
    "laneway.load_hf": (
        "(name_or_path, config=None, *, split, revision=None, decode=False, load_options=None, **options)"
    ),
    "laneway.merge_states": "(states)",
    "laneway.redistribute": "(state, world_size, num_workers=0, *, batch_size=None, source=None, key=None)",
    "laneway.to_parquet": (
        "(source, dest, *, format=None, columns=None, schema=None, row_group_bytes='8MiB', file_bytes='256MiB', "
        "storage_options=None)"
    ),
    "laneway.testing.assert_exact_on_any_topology": (
        "(make_loader, *, chains=((1, 2, 3), (2, 1), (3, 4, 2), (4, 1, 3)), items_per_stop=2, rows=None)"
    ),
    "laneway.testing.assert_resumes_exactly": "(make_loader, *, stops=None, max_items=None)",
    "laneway.testing.check_catalog": "(make_table, rows)",
    "laneway.testing.check_format": "(format, write, directory)",
    "laneway.testing.corpus_schema": "()",
    "laneway.testing.corpus_tables": "(sizes=(5, 1, 7, 3, 3, 4, 2, 9, 13), start=0)",
}
"""What users call by its qualified name -> its parameters."""

FUNCTIONS = {"audit", "compare_states", "describe_state", "load_hf", "merge_states", "redistribute", "to_parquet"}
"""What is exported and neither a class nor an error."""

MEMBERS = {
    "bounds": {"greatest": "attribute", "has_nulls": "attribute", "is_null": "attribute", "least": "attribute"},
    "catalog": {
        "bounds": "(name)",
        "deleted_rows": "(indices)",
        "files": "()",
        "format": "attribute",
        "output": "attribute",
        "rename": "(schema)",
        "root": "attribute",
        "schema": "attribute",
        "storage_options": "attribute",
        "version": "attribute",
    },
    "block matches": {"has_nulls": "attribute", "possible": "attribute"},
    "block reader": {
        "close": "()",
        "matches": "(conditions, schema, known)",
        "read": "(first, stop, columns)",
    },
    "checkpoint": {
        "files": "attribute",
        "metrics": "attribute",
        "name": "attribute",
        "num_bytes": "attribute",
        "number": "attribute",
        "parts": "attribute",
        "saved_s": "attribute",
        "step": "attribute",
        "tag": "attribute",
        "world_size": "attribute",
    },
    "checkpoints": {
        "close": "()",
        "delete": "(which)",
        "due": "(step, *, every_steps=None, every_s=None)",
        "export": "(which, path)",
        "is_stopping": "attribute",
        "latest": "attribute",
        "list": "()",
        "load": (
            "(which, *, model=None, optimizer=None, scheduler=None, loader=None, rng=False, strict=False, "
            "verify='read', **others)"
        ),
        "resume": (
            "(*, model=None, optimizer=None, scheduler=None, loader=None, rng=True, strict=True, verify='read', "
            "**others)"
        ),
        "save": (
            "(step, *, model=None, optimizer=None, scheduler=None, loader=None, user=None, rank_user=None, "
            "metrics=None, tag=None, if_busy='wait', **others)"
        ),
        "verify": "(which)",
        "wait": "()",
        "watch": "(batches)",
    },
    "policy": {"kept": "(checkpoints)"},
    "audit": {"epochs": "attribute", "findings": "attribute", "is_exact": "attribute", "num_checkpoints": "attribute"}
    | {"num_left": "attribute", "unit": "attribute"},
    "audit.epochs": {
        **dict.fromkeys(["epoch", "num_delivered", "num_epochs", "num_left", "num_left_out"], "attribute"),
        **dict.fromkeys(["num_repeated", "num_rows", "source", "unit"], "attribute"),
    },
    "audit.findings": dict.fromkeys(
        ["checkpoint", "epoch", "kind", "num_rows", "places", "ranges", "reason", "source", "unit"], "attribute"
    ),
    "plan": {
        **dict.fromkeys(["batch_size", "batches_per_rank", "bytes_per_rank", "epoch", "next_step"], "attribute"),
        **dict.fromkeys(["num_lanes", "num_rows", "num_steps", "num_windows", "num_workers"], "attribute"),
        **dict.fromkeys(["rows_dropped", "rows_repeated", "worker_memory_bytes", "world_size"], "attribute"),
        "rows_of": "(step)",
        "where": "(path, row, *, source=None, epoch=None)",
    },
    "plan.where": dict.fromkeys(["batch_index", "rank", "step", "worker"], "attribute"),
    "state differences": dict.fromkeys(["files", "is_same_order", "progress", "settings"], "attribute"),
    "state summary": dict.fromkeys(
        [
            *("cuts", "epoch", "fingerprint", "is_complete", "num_cuts", "num_delivered", "num_files", "num_rows"),
            *("num_steps", "num_workers", "positions", "ranks", "scope", "settings", "share", "sources", "version"),
            *("ahead", "world_size"),
        ],
        "attribute",
    ),
    "resumed": dict.fromkeys(("metrics", "rank_user", "step", "tag", "user"), "attribute"),
    "keep best": dict.fromkeys(("count", "metric", "mode"), "attribute"),
    "keep every": {"steps": "attribute"},
    "keep latest": {"count": "attribute"},
    "dataset": {
        "__iter__": "()",
        "__len__": "()",
        "batch": "(batch_size, *, drop_last=False)",
        "categories": "attribute",
        "completed_shards": "()",
        "count_lengths": "(of, *, column='input_ids', version=None, num_workers=None, progress=None)",
        "epoch": "attribute",
        "extend": "(grown)",
        "filter": "(condition, *, columns=None, version=None)",
        "flat_map": "(fn, *, with_context=False)",
        "load_state_dict": "(state_dict)",
        "manifest": "attribute",
        "map": "(fn, *, with_context=False)",
        "pack": (
            "(length, *, column='input_ids', strategy='best_fit', separator=None, overflow='split', "
            "mask='document_ids', pad_value=0, group_rows=None, lengths=None)"
        ),
        "plan": "(epoch=None, world_size=None, num_workers=None, *, state=None)",
        "read": "(path, rows, *, epoch=None)",
        "repeat": "(epochs=None, *, epoch_batches=None)",
        "schema": "attribute",
        "selection": "attribute",
        "set_epoch": "(epoch)",
        "shard": "(num_shards, index)",
        "shards": "attribute",
        "shuffle": "(seed=0)",
        "skip": "(rows)",
        "slice": "(start, stop=None)",
        "split": "(shares, *, seed=0, by='row')",
        "state_dict": "()",
        "statistics": "(columns=None, *, max_distinct=10000, progress=None)",
        "take": "(rows)",
        "without": "(rows)",
    },
    "loader": {
        "__iter__": "()",
        "__len__": "()",
        "batches_delivered": "attribute",
        "dataset": "attribute",
        "epoch": "attribute",
        "load_state_dict": "(state_dict)",
        "metrics": "()",
        "num_workers": "attribute",
        "restore_state_global": "(state, src_rank=0)",
        "restore_state_rank": "(state)",
        "save_state_global": "(dst_rank=0)",
        "save_state_rank": "()",
        "set_epoch": "(epoch)",
        "set_weights": "(weights)",
        "sources": "attribute",
        "start": "()",
        "state_dict": "(*, check=False)",
    },
    "file scan": dict.fromkeys(
        ["block_bytes", "block_memory_bytes", "block_rows", "digest", "layout", "schema"], "attribute"
    ),
    "format": {
        **dict.fromkeys(
            [
                "block_name",
                "inference",
                "is_mapped",
                "name",
                "reads_by_itself",
                "scans_all",
                "skips_columns",
                "skips_rows",
                "suffixes",
                "tail_bytes",
            ],
            "attribute",
        ),
        "open": "(storage, planned, schema)",
        "recognises": "(head)",
        "scan": "(storage, path, size, tail=None, version='')",
    },
    "gathered": {"load_state_dict": "(state_dict)", "state_dict": "()"},
    "manifest": {
        "files": "attribute",
        "fingerprint": "attribute",
        "format": "attribute",
        "num_rows": "attribute",
        "root": "attribute",
        "save": "(path, *, filesystem=None, storage_options=None, retries=None)",
        "schema": "attribute",
        "select": "(condition, *, filesystem=None, storage_options=None, retries=None, progress=None, cache_dir=None)",
    },
    "manifest.files": {"paths": "attribute", "rows": "attribute", "sizes": "attribute"},
    "mixture": {
        "__iter__": "()",
        "__len__": "()",
        "add": "(sources, weights)",
        "batch": "(batch_size, *, drop_last=False)",
        "epoch": "attribute",
        "flat_map": "(fn, *, with_context=False)",
        "load_state_dict": "(state_dict)",
        "map": "(fn, *, with_context=False)",
        "pack": (
            "(length, *, column='input_ids', strategy='best_fit', separator=None, overflow='split', "
            "mask='document_ids', pad_value=0, group_rows=None, lengths=None)"
        ),
        "plan": "(epoch=None, world_size=None, num_workers=None, *, state=None)",
        "schema": "attribute",
        "set_epoch": "(epoch)",
        "shard": "(num_shards, index)",
        "state_dict": "()",
        "weights": "attribute",
    },
    "planned file": dict.fromkeys(
        ["block_rows", "digest", "is_closed", "layout", "path", "schema", "size", "version"], "attribute"
    ),
    "retries": dict.fromkeys(
        [
            *("attempt_timeout_s", "connect_timeout_s", "deadline_s", "first_delay_s", "listing_timeout_s"),
            *("max_attempts", "max_delay_s", "read_timeout_s"),
        ],
        "attribute",
    ),
    "selection": dict.fromkeys(
        [
            *("num_empty_blocks", "num_partial_blocks", "num_rows", "num_rows_in_files", "num_whole_blocks"),
            "steps",
        ],
        "attribute",
    ),
    "selection.steps": dict.fromkeys(
        ["blocks_by_keys", "blocks_by_rows", "blocks_by_statistics", "num_rows", "text"], "attribute"
    ),
    "shard": {"path": "attribute", "row_length": "attribute", "row_offset": "attribute"},
    "source progress": dict.fromkeys(["actual_share", "epoch", "rows", "target_share", "tokens"], "attribute"),
    "metrics": {
        **dict.fromkeys(
            [
                *("batches", "batches_per_s", "bytes_per_s", "bytes_read", "epoch", "epoch_batches", "epoch_total"),
                *("hidden_rows", "memory_bytes", "progress", "queue_depth", "retries", "rows", "rows_per_s", "seconds"),
                *("stages", "waited_s", "waited_share", "workers"),
            ],
            "attribute",
        ),
        "as_dict": "()",
        "since": "(earlier)",
    },
    "metrics.workers": dict.fromkeys(
        ["batches", "bytes_read", "hidden_rows", "memory_bytes", "retries", "rows", "stages", "worker"], "attribute"
    ),
    "metrics.stages": dict.fromkeys(["convert", "decode", "order", "read", "send", "transform", "wait"], "attribute"),
    "statistics": dict.fromkeys(["count", "distinct", "max", "mean", "min", "nans", "nulls", "std"], "attribute"),
    "type inference": {"join": "(first, second)", "parsed": "(inferred, delivered)"},
}
"""An object -> its public members: the parameters of a method, or "attribute"."""


class OneFile(Catalog):
    """The smallest catalog, as a user writes it."""

    root = "."
    schema = pa.schema([("x", pa.int64())])
    version = output = "arrow"
    storage_options = MappingProxyType[str, Any]({})

    def files(self) -> TableFiles:
        """Return the file."""
        return TableFiles(paths=["part-0.parquet"], sizes=[1])


def signature(function: Any) -> str:
    """Return the names, kinds and defaults of the parameters of a function or class."""
    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]))


def resolve(qualified_name: str) -> Any:
    """Return the object behind `laneway.a.b`, by attributes only, as users write it after their imports."""
    found: Any = laneway
    for name in qualified_name.split(".")[1:]:
        found = getattr(found, name)
    return found


def check(found: dict[str, str], frozen: dict[str, str]) -> None:
    """Fail with a diff where the API is not as it was frozen."""
    was, now = ([f"{name}: {value}" for name, value in sorted(each.items())] for each in (frozen, found))
    diff = "\n".join(difflib.unified_diff(was, now, "frozen", "found", lineterm="", n=0))
    assert not diff, f"the public API has changed:\n{diff}"


def test_the_modules_export_what_they_did() -> None:
    classes = {
        "BatchContext",
        "Bounds",
        "Catalog",
        "Checkpoints",
        "DecodeFeatures",
        "Manifest",
        "Mixture",
        "RetryPolicy",
        "RowContext",
        "SavableLoader",
        "Shard",
    }
    classes |= {"StatefulShardedDataset", "TableFiles"}
    assert laneway.__all__ == sorted({*ERRORS, *classes, *FUNCTIONS})
    for module, names in ((dcp, ["GatheredState"]), (laneway, laneway.__all__)):
        assert [name for name in names if not hasattr(module, name)] == []
    defined = [name for name, value in vars(dcp).items() if getattr(value, "__module__", "") == dcp.__name__]
    assert [name for name in defined if not name.startswith("_")] == ["GatheredState"]
    assert {"load_once", "scan_once"} <= set(vars(distributed))


def test_errors_can_be_caught_as_what_they_were() -> None:
    bases = {name: getattr(laneway, name).__mro__[1:] for name in ERRORS}
    too_wide = {object, BaseException, Exception}
    found = {name: ", ".join(base.__name__ for base in bases[name] if base not in too_wide) for name in ERRORS}
    check(found, ERRORS)


def test_tracebacks_name_errors_as_they_are_imported() -> None:
    found = [getattr(laneway, name) for name in ERRORS]
    assert {each.__module__ for each in found} == {"laneway"}
    assert pickle.loads(pickle.dumps(found)) == found


def test_the_source_of_public_classes_is_found() -> None:
    classes = [getattr(laneway, name) for name in laneway.__all__ if name not in {*ERRORS, *FUNCTIONS}]
    assert [each for each in classes if f"class {each.__name__}" not in inspect.getsource(each)] == []


def test_functions_and_constructors_take_what_they_did() -> None:
    check({name: signature(resolve(name)) for name in SIGNATURES}, SIGNATURES)


@pytest.mark.parametrize("owner", MEMBERS)
def test_public_members_are_what_they_were(tmp_path: Path, owner: str) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path).take(1.0)
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(0)
    checkpoints.close()
    state = StatefulShardedDataset(tmp_path).state_dict()
    write_corpus(tmp_path / "_other", files=((2,),))
    report = audit([state, StatefulShardedDataset(tmp_path, seed=1).state_dict()])
    manifest = Manifest.scan(tmp_path)
    storage = manifest.storage()
    planned = manifest.planned(storage, 0)
    text_format = FORMATS["jsonl"]
    owners: dict[str, Any] = {
        "audit": report,
        "audit.epochs": report.epochs[0],
        "audit.findings": report.findings[0],
        "plan": StatefulShardedDataset(tmp_path, batch_size=2).plan(),
        "plan.where": dataset.plan().where("part-000.parquet", 0)[0],
        "state differences": compare_states(state, StatefulShardedDataset(tmp_path / "_other").state_dict()),
        "state summary": describe_state(state),
        "bounds": Bounds(pa.array([1]), pa.array([1]), np.zeros(1, bool), np.zeros(1, bool)),
        "catalog": OneFile(),
        "decode features": DecodeFeatures({}),
        "table files": TableFiles(paths=["part-0.parquet"], sizes=[1]),
        "block matches": BlockMatches([], np.zeros(0, bool)),
        "block reader": FORMATS["parquet"].open(storage, planned, manifest.schema),
        "file scan": manifest.file_scan(0),
        "format": text_format,
        "planned file": planned,
        "type inference": text_format.inference,
        "dataset": dataset,
        "loader": SavableLoader(dataset),
        "checkpoint": Checkpoint(number=1, step=0, tag="first"),
        "checkpoints": checkpoints,
        "keep best": KeepBest(1, "loss"),
        "keep every": KeepEvery(1),
        "keep latest": KeepLatest(),
        "policy": KeepLatest(),
        "resumed": Resumed(0, "first", {}, 0, {}),
        "gathered": dcp.GatheredState(SavableLoader(dataset)),
        "manifest": manifest,
        "manifest.files": manifest.files,
        "mixture": dataset.repeat(),
        "retries": RetryPolicy(),
        "selection": dataset.selection,
        "selection.steps": dataset.selection.steps[0] if dataset.selection else None,
        "shard": dataset.shards[0],
        "source progress": SavableLoader(dataset.count_lengths("id").repeat()).sources["rows"],
        "statistics": next(iter(dataset.statistics().values())),
    }
    loader = SavableLoader(dataset)
    next(iter(loader))
    owners["metrics"] = loader.metrics()
    owners["metrics.workers"] = loader.metrics().workers[0]
    owners["metrics.stages"] = loader.metrics().stages
    found = {}
    for name in MEMBERS[owner]:
        member = getattr(owners[owner], name, None)
        is_attribute = not inspect.isroutine(member)
        found[name] = "missing" if member is None else "attribute" if is_attribute else signature(member)
    check(found, MEMBERS[owner])
