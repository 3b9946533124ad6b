"""Mixtures, packs and epochs of batches whose states are frozen: small ones, over the committed files."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from laneway import Mixture, SavableLoader, StatefulShardedDataset
from tests.compat.loaders import saved

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).parent / "corpus"
NUM_FROZEN = 12
"""Batches after a state that are frozen, or all that there are."""


def rows_of(first: int, stop: int, **options: Any) -> StatefulShardedDataset:
    """Return the rows of some of the files."""
    files = [str(CORPUS / f"part-{number:03d}.parquet") for number in range(first, stop)]
    return StatefulShardedDataset(files, shuffle=True, seed=4, shard_rows=5, window_bytes=500, **options)


def document(row: dict[str, Any]) -> dict[str, Any]:
    """Return a document of 0 to 10 tokens, by which its row is known."""
    return {"input_ids": [row["id"] + 1] * (row["id"] * 7 % 11)}


def documents() -> StatefulShardedDataset:
    """Return the documents of all files."""
    return rows_of(0, 7).map(document)


def mixture(**options: Any) -> Mixture:
    """Return a mixture of two sources."""
    return Mixture({"a": rows_of(0, 5), "b": rows_of(5, 7)}, {"a": 0.75, "b": 0.25}, **options)


class Case(NamedTuple):
    """A stream, which is taken from in two runs."""

    make: Callable[[], Any]
    """Returns it without batches."""
    batch_sizes: tuple[int, int] = (2, 2)
    """Those of the first run and of the second one; if they differ, lanes may be cut again."""
    num_batches: tuple[int, int] = (3, 2)
    """Batches of both runs."""


CASES = {
    "mixture": Case(mixture, (4, 6)),
    "mixture_with_an_end": Case(lambda: mixture(stop="all_exhausted"), (4, 4)),
    "mixture_with_epochs": Case(lambda: mixture(epoch_batches=4), (4, 6), (3, 3)),
    "best_fit": Case(lambda: documents().pack(8, group_rows=9)),
    "best_fit_repeated": Case(lambda: documents().repeat().pack(8, group_rows=9), (2, 3), (1, 1)),
    "best_fit_of_known_lengths": Case(
        lambda: rows_of(0, 7).count_lengths(document, num_workers=0).map(document).pack(8, group_rows=9), (2, 3)
    ),
    "chunk": Case(lambda: documents().pack(8, strategy="chunk", separator=99)),
    "chunk_of_a_mixture": Case(lambda: mixture(lanes=4).map(document).pack(8, strategy="chunk"), (4, 3), (2, 1)),
    "flat_map": Case(lambda: documents().flat_map(lambda row: [{"id": token} for token in row["input_ids"]])),
}


def loader(name: str, run: int) -> SavableLoader:
    """Return a loader of a case, as in its first or second run, without workers."""
    case = CASES[name]
    return SavableLoader(case.make().batch(case.batch_sizes[run]))


def values(batches: Any) -> list[Any]:
    """Return batches as lists."""
    return [batch["input_ids" if "input_ids" in batch else "id"].tolist() for batch in batches]


def state_and_rest(name: str) -> dict[str, Any]:
    """Return a state of the second run of a case, and what follows it."""
    first, second = loader(name, 0), loader(name, 1)
    for _ in islice(first, CASES[name].num_batches[0]):
        pass
    second.load_state_dict(saved(first.state_dict()))
    taken = 0
    while taken < CASES[name].num_batches[1]:
        taken += len([*islice(second, CASES[name].num_batches[1] - taken)])
    state = saved(second.state_dict())
    return {"state": state, "rest": rest(name, state)}


def rest(name: str, state: dict[str, Any]) -> list[Any]:
    """Return what follows a state, as far as it is frozen."""
    resumed = loader(name, 1)
    resumed.load_state_dict(state)
    return values(islice(resumed, NUM_FROZEN))
