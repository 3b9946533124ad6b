"""A SavableLoader draws nothing from global random generators, so that a resumed run trains with the same numbers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import SavableLoader
from tests.compat.loaders import FORKSERVER
from tests.compat.savable import make_dataset
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path

WAYS: list[dict[str, Any]] = [
    {"num_workers": 0},
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
    {"num_workers": 1, "multiprocessing_context": FORKSERVER},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    return tmp_path


def with_a_random_number(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "random": torch.rand(2)}


@pytest.mark.parametrize("options", WAYS)
def test_no_global_generator_moves(corpus: Path, options: dict[str, Any]) -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    loader = SavableLoader(make_dataset(corpus, batch_size=3), **options)
    before = states()
    for _ in range(2):
        for step, _ in enumerate(loader):
            if step == 5:
                loader.load_state_dict(loader.state_dict())
                break
        assert len(list(loader)) > 0
    assert states() == before


@pytest.mark.parametrize("at", [0, 1, 7])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_draws_what_the_uninterrupted_run_draws(corpus: Path, num_workers: int, at: int) -> None:
    def loader() -> SavableLoader:
        return SavableLoader(make_dataset(corpus, batch_size=3), num_workers=num_workers)

    torch.manual_seed(5)
    first, draws, checkpoint = loader(), [], None
    for step, _ in enumerate(first):
        if step == at:
            checkpoint = first.state_dict(), torch.get_rng_state()
        draws.append(torch.rand(1).item())
    assert checkpoint is not None
    for when in ("before the loop", "after the first batch"):
        resumed, again = loader(), []
        resumed.load_state_dict(checkpoint[0])
        torch.manual_seed(99)
        if when == "before the loop":
            torch.set_rng_state(checkpoint[1])
            # The batch that the state counts was followed by a draw that is still to come.
            again.append(torch.rand(1).item())
        for step, _ in enumerate(resumed):
            if step == 0 and when == "after the first batch":
                torch.set_rng_state(checkpoint[1])
                again.append(torch.rand(1).item())
            again.append(torch.rand(1).item())
        assert again == draws[at:]


def test_the_random_numbers_of_workers_follow_from_seed_epoch_and_rank(corpus: Path) -> None:
    def numbers(rank: int = 0, **arguments: Any) -> list[list[float]]:
        dataset = make_dataset(
            corpus, batch_size=3, transform=with_a_random_number, rank=rank, world_size=2, **arguments
        )
        loader = SavableLoader(dataset, num_workers=2)
        return [[x for batch in loader for x in batch["random"].tolist()] for _ in range(2)]

    once = numbers()
    torch.rand(7)
    assert numbers() == once
    assert len({str(each) for each in (*once, *numbers(rank=1), *numbers(seed=6))}) == 6


def test_a_generator_of_the_user_is_used(corpus: Path) -> None:
    dataset = make_dataset(corpus, batch_size=3)
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    list(SavableLoader(DataLoader(dataset, batch_size=None, num_workers=1, generator=generator)))
    assert not torch.equal(generator.get_state(), before)


def train(loader: Any, checkpoint: dict[str, Any] | None = None, *, save_at: int = -1) -> tuple[list[str], Any]:
    """Train a model with dropout, from a checkpoint or from scratch; return the losses, and a checkpoint."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        loader.load_state_dict(checkpoint["loader"])
        torch.set_rng_state(checkpoint["rng"])
    losses, saved_state = [], None
    for step, batch in enumerate(loader):
        loss = model(batch["x"].float()[:, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item().hex())
        if step == save_at:
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            saved_state = {"model": weights, "loader": loader.state_dict(), "rng": torch.get_rng_state()}
    return losses, saved_state


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["SavableLoader", "StatefulDataLoader"])
def test_losses_with_dropout_are_equal_to_the_bit_after_a_resume_at_any_batch(
    corpus: Path, kind: str, num_workers: int
) -> None:
    def loader() -> Any:
        dataset = make_dataset(corpus, batch_size=5)
        if kind == "SavableLoader":
            return SavableLoader(dataset, num_workers=num_workers)
        return StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers, generator=torch.Generator())

    whole, _ = train(loader())
    for step in range(len(whole)):
        before, checkpoint = train(loader(), save_at=step)
        assert before == whole
        rest, _ = train(loader(), checkpoint)
        assert rest == whole[step + 1 :]
