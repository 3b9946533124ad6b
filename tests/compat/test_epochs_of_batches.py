"""Epochs of a number of batches: a stream without an end, cut after each so many batches, which goes on exactly."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from torch.utils.data import DataLoader

from laneway import CheckpointMismatchError, LanewayError, Mixture, SavableLoader, merge_states
from tests.compat import staged
from tests.compat.loaders import saved
from tests.compat.staged import make_dataset, plain, run, with_stages
from tests.compat.test_stages import numbered

if TYPE_CHECKING:
    from pathlib import Path

NUM_BATCHES = 7
KINDS = ["flat_map", "best_fit of a column", "chunk of sentences", "rows"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged.write_corpus(tmp_path_factory.mktemp("corpus"))


def stream(corpus: Path, kind: str, num_batches: int | None = NUM_BATCHES, **arguments: Any) -> Mixture:
    """Return a stream without an end, in epochs of so many batches, or without any."""
    rows = make_dataset(corpus, "rows", columns=["id", "text", "input_ids"], **arguments)
    items = rows.repeat(epoch_batches=num_batches)
    items = items.map(only_id) if kind == "rows" else with_stages(items, kind)
    return items.batch(2)


def only_id(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"]}


def whole(corpus: Path, kind: str, num_epochs: int) -> list[Any]:
    """Return the batches of the stream."""
    return [plain(batch) for batch in islice(stream(corpus, kind, None), num_epochs * NUM_BATCHES)]


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_are_the_stream_in_parts(corpus: Path, kind: str) -> None:
    expected = whole(corpus, kind, 3)
    dataset, loader = stream(corpus, kind), SavableLoader(stream(corpus, kind))
    assert len(dataset) == len(loader) == NUM_BATCHES
    found: list[Any] = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        assert loader.epoch == epoch
        batches = run(loader)
        assert len(batches) == NUM_BATCHES
        assert (loader.epoch, loader.batches_delivered) == (epoch, NUM_BATCHES)
        found += batches
        assert run(dataset) == batches
    assert found == expected


@pytest.mark.filterwarnings("ignore:the loaded state is of the last batch")
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_any_batch_resumes_its_epoch_and_the_next_follows(corpus: Path, kind: str) -> None:
    expected = whole(corpus, kind, 4)
    loader, states = SavableLoader(stream(corpus, kind)), []
    for epoch in range(2):
        for number, _ in enumerate(loader, start=1):
            states.append((epoch * NUM_BATCHES + number, (epoch + 1) * NUM_BATCHES, saved(loader.state_dict())))
        states.append(((epoch + 1) * NUM_BATCHES, (epoch + 2) * NUM_BATCHES, saved(loader.state_dict())))
    for done, end, state in states:
        resumed = SavableLoader(stream(corpus, kind))
        resumed.load_state_dict(state)
        assert saved(resumed.state_dict()) == state
        assert run(resumed) == expected[done:end]
        assert run(resumed) == expected[end : end + NUM_BATCHES]


def test_after_the_last_batch_of_an_epoch_either_epoch_can_be_chosen(corpus: Path) -> None:
    expected = whole(corpus, "flat_map", 2)
    loader = SavableLoader(stream(corpus, "flat_map"))
    for _ in zip(range(NUM_BATCHES), loader, strict=False):
        pass
    state = saved(loader.state_dict())
    assert state["laneway"][0]["complete"]
    for epoch, rest in ((0, []), (1, expected[NUM_BATCHES:])):
        resumed = SavableLoader(stream(corpus, "flat_map"))
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        assert run(resumed) == rest


@pytest.mark.parametrize("persistent", [True, False])
def test_epochs_of_real_workers_follow_each_other(corpus: Path, *, persistent: bool) -> None:
    def make() -> SavableLoader:
        return SavableLoader(
            stream(corpus, "chunk of sentences"),
            num_workers=2,
            multiprocessing_context="fork",
            persistent_workers=persistent,
        )

    loader = make()
    first, second = run(loader), run(loader)
    again = make()
    assert run(again) == first
    resumed = make()
    resumed.load_state_dict(saved(again.state_dict()))
    assert run(resumed) == second
    assert (len(first), len(second)) == (NUM_BATCHES, NUM_BATCHES)


def test_ranks_and_workers_change_within_an_epoch_and_between_epochs(corpus: Path) -> None:
    """All ranks deliver what is left of an epoch of the same number of batches; everything comes once."""
    state: dict[str, Any] | None = None
    found: Counter[tuple[int, int, int]] = Counter()
    done = 0
    for world_size, num_workers, num_batches in [(2, 0, 3), (3, 2, 6), (1, 3, 7), (2, 2, 4), (4, 0, 0), (3, 0, 7)]:
        loaders = []
        for rank in range(world_size):
            rows = make_dataset(corpus, "rows", rank=rank, world_size=world_size).repeat(epoch_batches=NUM_BATCHES)
            items = rows.flat_map(numbered, with_context=True).batch(2)
            context = "fork" if num_workers else None
            loaders.append(SavableLoader(items, num_workers=num_workers, multiprocessing_context=context))
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
            epoch, in_epoch = divmod(done, NUM_BATCHES)
            assert loader.epoch == epoch
            assert loader.batches_delivered == in_epoch
            batches = 0
            while batches < num_batches:
                for batch in islice(loader, num_batches - batches):
                    found.update(zip(*(batch[name].tolist() for name in ("epoch", "id", "number")), strict=True))
                    batches += 1
            assert batches == num_batches
        done += num_batches
        state = saved(merge_states([loader.save_state_rank() for loader in loaders]))
    assert max(found.values()) == 1


def test_a_mixture_in_lockstep_has_epochs_too(corpus: Path) -> None:
    """Weights change within an epoch; the state of either rank is that of the job."""

    def make(rank: int, world_size: int, num_batches: int | None = NUM_BATCHES) -> SavableLoader:
        sources = {
            name: make_dataset(corpus, "rows", columns=["id"], seed=seed, rank=rank, world_size=world_size)
            for name, seed in (("a", 1), ("b", 2))
        }
        weights = [(0, {"a": 3, "b": 1}), (40, {"a": 1, "b": 1})]
        return SavableLoader(Mixture(sources, weights, epoch_batches=num_batches).batch(4))

    streams = [[batch["id"].tolist() for batch in islice(make(rank, 2, None), 4 * NUM_BATCHES)] for rank in range(2)]
    for step in (2, 5, 6, 7, 9, 14):
        loaders = [make(rank, 2) for rank in range(2)]
        for loader in loaders:
            taken = 0
            while taken < step:
                taken += len([*islice(loader, step - taken)])
        states = [saved(loader.state_dict()) for loader in loaders]
        assert states[0] == states[1]
        assert states[0]["laneway"][0]["scope"] == "global"
        for rank in range(2):
            resumed = make(rank, 2)
            resumed.load_state_dict(states[1 - rank])
            resumed.set_epoch(step // NUM_BATCHES)
            end = (step // NUM_BATCHES + 1) * NUM_BATCHES
            assert [batch["id"].tolist() for batch in resumed] == streams[rank][step:end]
        alone = make(0, 1)
        alone.load_state_dict(states[0])
        alone.set_epoch(step // NUM_BATCHES)
        assert len(run(alone)) == NUM_BATCHES - step % NUM_BATCHES


# -- Refused ----------------------------------------------------------------------------------------------------------


def test_epochs_can_not_be_left_out(corpus: Path) -> None:
    loader = SavableLoader(stream(corpus, "flat_map"))
    run(loader)
    with pytest.raises(LanewayError, match=r"set_epoch\(3\).*the next pass is of epoch 1"):
        loader.set_epoch(3)
    loader.set_epoch(1)
    assert len(run(loader)) == NUM_BATCHES


def test_another_number_of_batches_is_a_mismatch(corpus: Path) -> None:
    loader = SavableLoader(stream(corpus, "flat_map"))
    next(iter(loader))
    with pytest.raises(CheckpointMismatchError, match="epoch_batches: saved 7, this run has 5"):
        SavableLoader(stream(corpus, "flat_map", 5)).load_state_dict(loader.state_dict())


@pytest.mark.parametrize("persistent", [False, True])
def test_a_plain_dataloader_with_workers_delivers_one_epoch_only(corpus: Path, *, persistent: bool) -> None:
    loader = DataLoader(stream(corpus, "flat_map"), batch_size=None, num_workers=1, persistent_workers=persistent)
    assert len(run(loader)) == NUM_BATCHES
    with pytest.raises(LanewayError, match="use a SavableLoader"):
        next(iter(loader))


def test_what_makes_no_sense_is_refused(corpus: Path) -> None:
    rows = make_dataset(corpus, "rows")
    with pytest.raises(ValueError, match=r"epoch_batches=3 ends each pass, and so would stop"):
        rows.repeat(2, epoch_batches=3)
    with pytest.raises(ValueError, match="epoch_batches must be an int of at least 1"):
        rows.repeat(epoch_batches=0)
    with pytest.raises(ValueError, match=r"counts batches, but single rows are delivered: call batch"):
        next(iter(rows.repeat(epoch_batches=3)))
    mixture = Mixture({"a": rows}, [(0, {"a": 1}), (40, {"a": 2})], epoch_batches=3)
    with pytest.raises(ValueError, match="give the mixture one set of weights"):
        next(iter(mixture.pack(8).batch(2)))


def test_what_needs_a_number_of_batches_says_so(corpus: Path) -> None:
    rows = make_dataset(corpus, "rows", rank=0, world_size=2)
    for items in (rows.pack(8), rows.flat_map(staged.in_sentences)):
        with pytest.raises(ValueError, match=r"repeat\(\) .*repeat\(epoch_batches=n\).*count_lengths\(\)"):
            next(iter(items.batch(2)))
    with pytest.raises(ValueError, match=r"give epoch_batches=, the batches of each rank"):
        next(iter(rows.repeat(2).pack(8).batch(2)))
