"""JAX: batches as arrays, from workers that a fork server starts, since JAX warns of fork beside its threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway import SavableLoader, StatefulShardedDataset
from tests.corpora import write_corpus
from tests.frameworks.training import needs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs("jax")


def make_loader(corpus: Path, **place: Any) -> SavableLoader:
    dataset = StatefulShardedDataset(
        corpus, columns=["id", "x"], shuffle=True, shard_rows=4, batch_size=3, output="numpy", **place
    )
    return SavableLoader(dataset, num_workers=2, multiprocessing_context="forkserver")


def test_workers_of_a_fork_server_read_beside_jax_and_training_resumes(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)
    whole = train(make_loader(tmp_path), 99)
    assert sorted(whole) == list(range(num_rows))
    loader = make_loader(tmp_path)
    before = train(loader, 5)
    resumed = make_loader(tmp_path)
    resumed.load_state_dict(loader.state_dict())
    assert before + train(resumed, 99) == whole


def test_the_state_of_one_process_resumes_on_another_number(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)
    ranks = [make_loader(tmp_path, rank=rank, world_size=2) for rank in range(2)]
    seen = [row for loader in ranks for row in train(loader, 3)]
    state = ranks[0].state_dict()
    for rank in range(3):
        loader = make_loader(tmp_path, rank=rank, world_size=3)
        loader.load_state_dict(state)
        seen += train(loader, 99)
    assert {*seen} == {*range(num_rows)}
    assert len(seen) <= num_rows + 3


def train(loader: SavableLoader, num_batches: int) -> list[int]:
    """Train on a number of batches, or to the end of the epoch; return their row ids."""
    import jax

    step = jax.jit(lambda weight, x: weight - 0.001 * (weight * x).mean())
    weight, seen = jax.numpy.zeros(()), list[int]()
    for _, batch in zip(range(num_batches), iter(loader), strict=False):
        weight = step(weight, jax.numpy.asarray(batch["x"]))
        seen += jax.numpy.asarray(batch["id"]).tolist()
    return seen
