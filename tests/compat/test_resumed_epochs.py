"""What a resumed loop over epochs delivers, for every order of loading, choosing an epoch and iterating.

This is the table in docs/how-to/epochs.md. The state is of epoch 1, and the loop starts at epoch 1 or 2.
"""

from __future__ import annotations

import warnings
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import SavableLoader, StatefulShardedDataset
from tests.compat.loaders import ids, saved
from tests.compat.savable import make_savable, row_ids
from tests.corpora import write_corpus
from tests.fuzzing import ci_tries

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_BATCHES = 12
PAGE = Path(__file__).parents[2] / "docs/how-to/epochs.md"

DROPS = "drops the loaded state"
OVERRIDES = "was called, but the loaded state is of epoch 1"
EMPTY = "this pass delivers nothing"
ENDED = "has ended, so the next pass"


def make_dataset(path: Path) -> StatefulShardedDataset:
    return StatefulShardedDataset(path, shuffle=True, seed=5, batch_size=4, shard_rows=4)


def stateful(num_workers: int, **options: Any) -> Callable[[Path], Any]:
    return lambda path: StatefulDataLoader(make_dataset(path), batch_size=None, num_workers=num_workers, **options)


def savable(num_workers: int) -> Callable[[Path], Any]:
    return lambda path: SavableLoader(make_dataset(path), num_workers=num_workers)


KINDS: dict[str, Callable[[Path], Any]] = {
    "dataset": make_dataset,
    "SavableLoader": savable(0),
    "SavableLoader, 2 workers": savable(2),
    "StatefulDataLoader": stateful(0),
    "StatefulDataLoader, 1 worker": stateful(1),
    "StatefulDataLoader, 2 workers": stateful(2),
    "StatefulDataLoader, 2 persistent workers": stateful(2, persistent_workers=True),
}

QUICK_KINDS = (
    "dataset",
    "SavableLoader",
    "SavableLoader, 2 workers",
    "StatefulDataLoader",
    "StatefulDataLoader, 2 workers",
)

SAVED_AFTER = {"the first batch": 1, "a middle batch": 6, "the last batch": NUM_BATCHES, "the loop": NUM_BATCHES + 1}


def run(loader: Any, order: str, state: Any) -> tuple[list[list[int]], list[list[int]], set[str]]:
    """Follow the steps of an order; return the batches of the next two passes, and what warnings were about."""
    dataset = loader if isinstance(loader, StatefulShardedDataset) else loader.dataset
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in order.split(", "):
            if step == "load":
                loader.load_state_dict(state)
            else:
                dataset.set_epoch({"set_epoch(k)": 1, "set_epoch(k + 1)": 2}[step])
        passes = ids(loader), ids(loader)
    messages = [str(each.message) for each in caught]
    about = {kind for kind in (DROPS, OVERRIDES, EMPTY, ENDED) if any(kind in message for message in messages)}
    return *passes, about


class Row(NamedTuple):
    """A row of the table."""

    order: str
    """What the script does before it iterates."""
    mid_epoch: str
    """What the next pass delivers after a state that was saved mid-epoch."""
    last_batch: str
    """After a state of the last batch."""
    after_loop: str
    """After a state that was saved once the loop over the epoch had ended."""


TABLE = [
    Row("load", "the rest of k", "nothing*", "k + 1"),
    Row("load, set_epoch(k)", "the rest of k", "nothing", "nothing"),
    Row("set_epoch(k), load", "the rest of k", "nothing", "nothing"),
    Row("load, set_epoch(k + 1)", "k + 1*", "k + 1", "k + 1"),
    Row("set_epoch(k + 1), load", "the rest of k*", "k + 1", "k + 1"),
]
"""The star: with a warning."""


def test_the_table_is_in_the_docs() -> None:
    lines = [
        f"| {', '.join(f'`{step}`' if '(' in step else step for step in row.order.split(', '))} | {row.mid_epoch} "
        f"| {row.last_batch} | {row.after_loop} |"
        for row in TABLE
    ]
    assert "\n".join(lines) in PAGE.read_text()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 48 rows."""
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


def state_after(corpus: Path, kind: str, num_batches: int) -> tuple[Any, list[list[int]], list[list[list[int]]]]:
    """Return a state of epoch 1, the batches of it that were received, and all epochs from 0 to 3."""
    whole = KINDS[kind](corpus)
    epochs = [ids(whole) for _ in range(4)]
    loader = KINDS[kind](corpus)
    (loader if kind == "dataset" else loader.dataset).set_epoch(1)
    received = ids(loader if num_batches > NUM_BATCHES else islice(loader, num_batches))
    return saved(loader.state_dict()), received, epochs


def test_the_warning_of_an_empty_pass_says_what_each_loop_should_do(corpus: Path) -> None:
    state, _, epochs = state_after(corpus, "SavableLoader", NUM_BATCHES)
    loader = SavableLoader(make_dataset(corpus))
    loader.load_state_dict(state)
    assert loader.epoch == 1
    with pytest.warns(
        UserWarning, match=r"as range\(loader\.epoch, n\) does, and set_epoch\(1\) .* call set_epoch\(2\)$"
    ):
        assert [ids(loader) for _ in range(loader.epoch, 4)] == [[], *epochs[2:]]


@pytest.mark.parametrize("moment", ci_tries(("a middle batch", "the last batch", "the loop"), SAVED_AFTER))
@pytest.mark.parametrize("kind", ci_tries(QUICK_KINDS, KINDS))
def test_a_resumed_loop_skips_and_repeats_no_epoch_without_a_warning(corpus: Path, kind: str, moment: str) -> None:
    num_batches = SAVED_AFTER[moment]
    state, received, epochs = state_after(corpus, kind, num_batches)
    is_late = kind.startswith("StatefulDataLoader")
    has_workers = "worker" in kind and is_late
    for row in TABLE:
        cell = row.mid_epoch if num_batches < NUM_BATCHES else row.last_batch
        cell = row.after_loop if num_batches > NUM_BATCHES else cell
        if is_late and row.order == "load, set_epoch(k + 1)" and num_batches < NUM_BATCHES:
            # A StatefulDataLoader loads its state when it is iterated over.
            cell = TABLE[-1].mid_epoch
        if has_workers and cell == "nothing" and moment == "the loop":
            # It has its workers begin the next epoch in any case.
            cell = "k + 1*"
        first, second, about = run(KINDS[kind](corpus), row.order, state)
        expected = {
            "the rest of k": epochs[1][len(received) :],
            "nothing": [],
            "k + 1": epochs[2],
        }[cell.rstrip("*")]
        what = (row.order, moment, about)
        assert first == expected, what
        assert second == (epochs[3] if expected == epochs[2] else epochs[2]), what
        if not has_workers:
            # Workers warn in their own process.
            assert len(about) == cell.endswith("*"), what


@pytest.mark.parametrize("saved_after", ["the last batch", "the epoch"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loop_from_the_epoch_of_the_loader_trains_each_epoch_once(
    tmp_path: Path, num_workers: int, saved_after: str
) -> None:
    write_corpus(tmp_path)
    loader, resumed = make_savable(tmp_path), make_savable(tmp_path, num_workers=num_workers)
    batches = iter(loader)
    found = [row_ids(next(batches) for _ in range(len(loader)))]
    if saved_after == "the epoch":
        assert next(batches, None) is None
    resumed.load_state_dict(saved(loader.state_dict()))
    with warnings.catch_warnings():
        # After the last batch, the rest of the epoch is empty.
        warnings.filterwarnings("ignore", "the loaded state is of the last batch")
        for epoch in range(resumed.epoch, 3):
            delivered = row_ids(resumed)
            assert resumed.epoch == epoch
            found += [delivered] if delivered else []
    # Each worker has a lane of its own, so the order within an epoch depends on their number.
    assert [sorted(row for batch in each for row in batch) for each in found] == [[*range(48)]] * 3
