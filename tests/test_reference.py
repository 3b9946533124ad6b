"""docs/reference.md has everything public, and what it names is there: the site takes the rest from the docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import laneway
from laneway import (
    BatchContext,
    Bounds,
    Catalog,
    Checkpoints,
    DecodeFeatures,
    Manifest,
    Mixture,
    RetryPolicy,
    RowContext,
    SavableLoader,
    Shard,
    StatefulShardedDataset,
    TableFiles,
    checkpoint,
    formats,
)
from laneway.checkpoint import Checkpoint, KeepBest, KeepEvery, KeepLatest, Policy, Resumed
from laneway.core.files import FileTable
from laneway.dcp import GatheredState
from laneway.delivery.metrics import LoaderMetrics, StageSeconds, WorkerMetrics
from laneway.delivery.source_progress import SourceProgress
from laneway.formats import BlockMatches, BlockReader, FileScan, Format, PlannedFile, TypeInference
from laneway.inspection.report import AuditedEpoch, AuditReport, Finding
from laneway.inspection.summary import StateDifferences, StateSummary
from laneway.plans.epoch_plan import EpochPlan, RowDelivery
from laneway.reading.column_statistics import ColumnStatistics
from laneway.reading.selection_summary import SelectionStep, SelectionSummary
from tests.test_public_api import ERRORS, MEMBERS, SIGNATURES

ROOT = Path(__file__).resolve().parent.parent
ENTRY = re.compile(r"^::: (?P<name>\S+)\n(?P<options>(?:    .*\n|\n(?=    ))*)", re.MULTILINE)
MEMBER = re.compile(r"[A-Za-z_]\w*")

INTEGRATIONS = {
    "laneway.integrations.dlio.LanewayDataLoader",
    "laneway.integrations.hf.LanewayTrainerMixin",
    "laneway.integrations.lightning.CorrectBatchCount",
}
"""What can be imported only where its framework is installed."""

CLASSES: dict[str, type] = {
    "batch context": BatchContext,
    "audit": AuditReport,
    "audit.epochs": AuditedEpoch,
    "audit.findings": Finding,
    "bounds": Bounds,
    "catalog": Catalog,
    "checkpoint": Checkpoint,
    "checkpoints": Checkpoints,
    "dataset": StatefulShardedDataset,
    "decode features": DecodeFeatures,
    "block matches": BlockMatches,
    "block reader": BlockReader,
    "file scan": FileScan,
    "format": Format,
    "gathered": GatheredState,
    "keep best": KeepBest,
    "keep every": KeepEvery,
    "keep latest": KeepLatest,
    "loader": SavableLoader,
    "manifest": Manifest,
    "manifest.files": FileTable,
    "mixture": Mixture,
    "plan": EpochPlan,
    "plan.where": RowDelivery,
    "planned file": PlannedFile,
    "policy": Policy,
    "resumed": Resumed,
    "retries": RetryPolicy,
    "row context": RowContext,
    "selection": SelectionSummary,
    "selection.steps": SelectionStep,
    "metrics": LoaderMetrics,
    "metrics.workers": WorkerMetrics,
    "metrics.stages": StageSeconds,
    "shard": Shard,
    "source progress": SourceProgress,
    "state differences": StateDifferences,
    "state summary": StateSummary,
    "statistics": ColumnStatistics,
    "table files": TableFiles,
    "type inference": TypeInference,
}
"""Key of `MEMBERS` -> its class."""

NOT_PUBLIC = {
    "checkpoint": {"encode"},
    "keep best": {"kept"},
    "keep every": {"kept"},
    "keep latest": {"kept"},
    "dataset": {"check_rank", "definition", "schedule"},
    "loader": {
        *("checked_state", "common_arguments", "gather_state", "ranks", "restore_together", "sampler"),
        "use_stateful_dataloader",
    },
    "mixture": {"check_rank", "definition", "schedule"},
    "manifest": {
        *("cache_entry", "file_scan", "layout", "layout_starts", "num_bytes", "of", "partitions", "planned"),
        *("readable", "schemas", "selections"),
        *("shared_file", "storage", "versions", "shared_with", "vocabularies", "with_selection", "with_selections"),
        *("table", "with_vocabularies"),
    },
    "metrics.stages": {"of"},
    "retries": {"attempts"},
    "selection": {"of"},
}
"""Key of `MEMBERS` -> what has no underscore, and is for other modules of laneway only."""


def documented(part: int = 0) -> dict[str, set[str]]:
    """Return the qualified names of what is public on the page -> the members that it lists.

    Args:
        part: 0 for what is public; 1 for the types that signatures mention, at the end of the page.
    """
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    entries: dict[str, set[str]] = {}
    for entry in ENTRY.finditer(page.split("\n## Types\n")[part]):
        _, _, members = entry["options"].partition("members:")
        assert entry["name"] not in entries, f"{entry['name']} is on the page twice"
        entries[entry["name"]] = set(MEMBER.findall(members))
    return entries


def qualified(owner: type) -> str:
    """Return the name under which the page lists a class."""
    exporting = [each for each in (laneway, checkpoint, formats) if getattr(each, owner.__name__, None) is owner]
    return f"{exporting[0].__name__ if exporting else owner.__module__}.{owner.__name__}"


def own_classes(owner: type) -> list[type]:
    """Return a class and its bases, as far as they are laneway's."""
    return [each for each in owner.__mro__ if each.__module__.startswith("laneway")]


def described(owner: type) -> set[str]:
    """Return the members of a class that a docstring describes."""
    names = set()
    for each in own_classes(owner):
        definition = ast.parse(inspect.getsource(each)).body[0]
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, [*definition.body[1:], None], strict=True):
            if isinstance(statement, ast.FunctionDef) and ast.get_docstring(statement):
                names.add(statement.name)
            target = getattr(statement, "target", None)
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(target, ast.Name) and is_text:
                names.add(target.id)
    return names


def test_everything_public_is_in_the_reference() -> None:
    exported = {f"laneway.{name}" for name in laneway.__all__}
    functions = {name for name in SIGNATURES if name.rsplit(".", 1)[-1][0].islower()}
    methods = {name for name in functions if name.startswith("laneway.Manifest.")}
    classes = {qualified(owner) for owner in CLASSES.values()}
    assert (
        set(documented())
        == exported | {f"laneway.{name}" for name in ERRORS} | functions - methods | classes | INTEGRATIONS
    )


@pytest.mark.parametrize("key", MEMBERS)
def test_every_public_member_is_in_the_reference(key: str) -> None:
    owner = CLASSES[key]
    constructors = {name.rsplit(".", 1)[1] for name in SIGNATURES if name.startswith(f"laneway.{owner.__name__}.")}
    assert documented()[qualified(owner)] == set(MEMBERS[key]) | constructors


@pytest.mark.parametrize("key", sorted(CLASSES.keys() - {"manifest.files"}))
def test_a_new_member_is_public_or_said_not_to_be(key: str) -> None:
    names = {name for each in own_classes(CLASSES[key]) for name in [*vars(each), *each.__annotations__]}
    unknown = {name for name in names if not name.startswith("_")} - documented()[qualified(CLASSES[key])]
    assert unknown <= NOT_PUBLIC.get(key, set()), "add them to MEMBERS and docs/reference.md, or to NOT_PUBLIC"


@pytest.mark.parametrize("key", CLASSES)
def test_the_site_finds_a_docstring_for_every_member(key: str) -> None:
    # A member that it does not find, such as an attribute without a docstring, is left out without a word.
    missing = documented()[qualified(CLASSES[key])] - described(CLASSES[key])
    assert not missing


@pytest.mark.parametrize("name", sorted(documented().keys() - INTEGRATIONS))
def test_every_entry_is_there_and_has_a_docstring(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    found: Any = getattr(importlib.import_module(module), attribute)
    assert inspect.getdoc(found)


@pytest.mark.parametrize("name", sorted({*documented(1), *INTEGRATIONS}))
def test_what_can_not_be_imported_is_defined(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    source = (ROOT / "src" / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert re.search(rf"^ *(class )?{attribute}\b[^\n]*[=:]", source, re.MULTILINE)
