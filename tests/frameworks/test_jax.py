"""JAX: batches as arrays, from workers that a fork server starts, since JAX warns of fork beside its threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laneway import SavableLoader, StatefulShardedDataset
from tests.corpora import write_corpus
from tests.frameworks.training import needs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs("jax")


def make_loader(corpus: Path) -> SavableLoader:
    dataset = StatefulShardedDataset(
        corpus, columns=["id", "x"], shuffle=True, shard_rows=4, batch_size=3, output="numpy"
    )
    return SavableLoader(dataset, num_workers=2, multiprocessing_context="forkserver")


def test_workers_of_a_fork_server_read_beside_jax_and_training_resumes(tmp_path: Path) -> None:
    import jax

    num_rows = write_corpus(tmp_path)
    step = jax.jit(lambda weight, x: weight - 0.001 * (weight * x).mean())

    def train(loader: SavableLoader, num_batches: int) -> list[int]:
        """Train on a number of batches, or to the end of the epoch; return their row ids."""
        weight, seen, batches = jax.numpy.zeros(()), list[int](), iter(loader)
        for _, batch in zip(range(num_batches), batches, strict=False):
            weight = step(weight, jax.numpy.asarray(batch["x"]))
            seen += jax.numpy.asarray(batch["id"]).tolist()
        return seen

    loader = make_loader(tmp_path)
    before = train(loader, 5)
    resumed = make_loader(tmp_path)
    resumed.load_state_dict(loader.state_dict())
    assert sorted(before + train(resumed, len(resumed))) == list(range(num_rows))
