"""The arguments of loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import SavableLoader, StatefulShardedDataset
from laneway.core.options import LaneOptions
from laneway.delivery.loader_arguments import LoaderArguments, check_has_no_state
from laneway.delivery.transforms import Transforms
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path

    from laneway.delivery.definition import Definition

DEFAULTS: dict[str, Any] = {"num_workers": 0, "pin_memory": False, "timeout": 0, "worker_init_fn": None}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 48 rows."""
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


def definition_of(corpus: Path, **arguments: Any) -> Definition:
    return StatefulShardedDataset(corpus, **arguments).definition


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (LoaderArguments({**DEFAULTS, "num_workers": "2"}, None, None), "num_workers must be an int"),
        (LoaderArguments({**DEFAULTS, "num_workers": True}, None, None), "num_workers must be an int"),
        (LoaderArguments({**DEFAULTS, "worker_init_fn": 3}, None, None), "worker_init_fn"),
        (LoaderArguments(DEFAULTS, None, "stack"), "collate_fn"),  # type: ignore[arg-type]  # what a user might pass
    ],
)
def test_arguments_of_the_wrong_type_are_refused_by_name(options: LoaderArguments, problem: str) -> None:
    LoaderArguments(DEFAULTS, 3, len).checked()
    with pytest.raises(TypeError, match=problem):
        options.checked()


@pytest.mark.parametrize("num_workers", [-1, 1025, 2**70])
def test_a_number_of_workers_out_of_its_range_is_refused(num_workers: int) -> None:
    assert LoaderArguments({**DEFAULTS, "num_workers": 1024}, None, None).checked().keywords["num_workers"] == 1024
    with pytest.raises(ValueError, match="num_workers must be an int of at"):
        LoaderArguments({**DEFAULTS, "num_workers": num_workers}, None, None).checked()


@pytest.mark.parametrize("prefetch_factor", [0, -1, 1.5, 2**70])
def test_a_number_of_parcels_to_prefetch_that_is_out_of_its_range_is_refused(prefetch_factor: float) -> None:
    given = {**DEFAULTS, "num_workers": 1, "prefetch_factor": prefetch_factor}
    with pytest.raises(ValueError, match="prefetch_factor must be an int of at"):
        LoaderArguments(given, None, None).checked()


def test_a_number_of_workers_of_numpy_becomes_a_built_in_int() -> None:
    """Sums of an np.uint8 wrap around."""
    found = LoaderArguments({**DEFAULTS, "num_workers": np.uint8(200)}, None, None).checked().keywords["num_workers"]
    assert (found, type(found)) == (200, int)


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        (
            {"shuffle": True},
            "SavableLoader takes no shuffle: pass shuffle=True, and a seed, to the StatefulShardedDataset",
        ),
        ({"shuffle": False}, "takes no shuffle: "),
        ({"drop_last": True}, "takes no drop_last: pass drop_last and batch_size to the StatefulShardedDataset"),
        ({"generator": torch.Generator()}, "takes no generator: pass shuffle=True, and a seed, to the Stateful"),
        ({"sampler": [0]}, "takes no sampler: the StatefulShardedDataset decides the order"),
        ({"batch_sampler": [[0]]}, "takes no batch_sampler: the StatefulShardedDataset decides the order"),
        ({"in_order": False}, r"takes no in_order: pass a DataLoader\(dataset, in_order=False\)"),
        ({"pin_memory_device": ""}, "unexpected keyword argument 'pin_memory_device'"),
    ],
)
def test_an_argument_of_a_dataloader_that_belongs_elsewhere_is_refused_with_the_way_out(
    corpus: Path, arguments: dict[str, Any], way_out: str
) -> None:
    with pytest.raises(TypeError, match=way_out):
        SavableLoader(StatefulShardedDataset(corpus), **arguments)


def test_arguments_by_position_are_refused_with_the_way_out(corpus: Path) -> None:
    make: Any = SavableLoader
    with pytest.raises(TypeError, match="pass the other arguments by name, and batch_size to the S"):
        make(StatefulShardedDataset(corpus), 32)
    with pytest.raises(TypeError, match="dataset"):
        make()


def test_arguments_given_together_with_a_loader_are_all_named(corpus: Path) -> None:
    loader = DataLoader(StatefulShardedDataset(corpus))
    given = LoaderArguments({**DEFAULTS, "num_workers": 2, "timeout": 1}, 3, len)
    with pytest.raises(ValueError, match="num_workers, timeout, batch_size, collate_fn can't be passed together with"):
        given.of_loader(loader)


def test_without_a_batch_size_the_definition_is_unchanged(corpus: Path) -> None:
    for definition in (definition_of(corpus), definition_of(corpus, batch_size=4)):
        assert LoaderArguments(DEFAULTS, None, None).apply_to(definition) is definition


def test_without_a_batch_size_collate_fn_is_called_on_each_item_after_the_transform(corpus: Path) -> None:
    definition = definition_of(corpus, batch_size=4, transform=list)
    applied = LoaderArguments(DEFAULTS, None, len).apply_to(definition)
    assert applied.transform({"a": 1, "b": 2}) == 2
    assert applied.collate_fn is None
    assert LoaderArguments(DEFAULTS, None, len).apply_to(definition_of(corpus)).transform == Transforms().then(len)


def test_a_batch_size_makes_batches_of_the_rows_of_the_dataset(corpus: Path) -> None:
    definition = definition_of(corpus, turn_rows=3, lanes=2)
    applied = LoaderArguments(DEFAULTS, 6, None).apply_to(definition)
    assert applied.options == LaneOptions(2, 3, 6)
    assert applied.collate_fn is default_collate
    assert not applied.transform
    assert LoaderArguments(DEFAULTS, 6, len).apply_to(definition).collate_fn is len


def test_a_batch_size_that_does_not_fit_the_dataset_is_refused(corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"the dataset already yields batches of 4 rows, .* \(its batch_size is 8\)"):
        LoaderArguments(DEFAULTS, 8, None).apply_to(definition_of(corpus, batch_size=4))
    with pytest.raises(ValueError, match="batch_size 8 must be a multiple of the dataset's turn_rows 3"):
        LoaderArguments(DEFAULTS, 8, None).apply_to(definition_of(corpus, turn_rows=3))
    for batch_size in (0, -1, 2.0):
        with pytest.raises(ValueError, match="batch_size must be an int of at least 1"):
            LoaderArguments(DEFAULTS, batch_size, None).apply_to(definition_of(corpus))  # type: ignore[arg-type]


@pytest.mark.parametrize("loader_type", [DataLoader, StatefulDataLoader])
def test_the_arguments_of_a_users_loader_are_used(corpus: Path, loader_type: Any) -> None:
    given = {"num_workers": 1, "timeout": 9, "prefetch_factor": 3, "persistent_workers": True, "in_order": False}
    loader = loader_type(StatefulShardedDataset(corpus), batch_size=7, collate_fn=len, **given)
    found = LoaderArguments(DEFAULTS, None, None).of_loader(loader)
    assert (found.batch_size, found.collate_fn) == (7, len)
    assert given.items() <= found.keywords.items()
    DataLoader(StatefulShardedDataset(corpus), **found.keywords)
    with pytest.raises(ValueError, match="drop_last=True of a DataLoader makes states inexact"):
        LoaderArguments(DEFAULTS, None, None).of_loader(
            loader_type(StatefulShardedDataset(corpus), batch_size=7, drop_last=True)
        )


def test_a_loader_into_which_a_state_was_loaded_is_refused(corpus: Path) -> None:
    loader = StatefulDataLoader(StatefulShardedDataset(corpus, batch_size=4), batch_size=None)
    check_has_no_state(loader)
    next(iter(loader))
    state = loader.state_dict()
    check_has_no_state(DataLoader(StatefulShardedDataset(corpus)))
    loader.load_state_dict(state)
    with pytest.raises(ValueError, match="a state was loaded into the StatefulDataLoader itself"):
        check_has_no_state(loader)
