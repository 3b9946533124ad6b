"""States of models and optimizers: saving changes nothing, what is saved is restored, a refusal changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn, optim

from laneway import Checkpoints, SavableLoader, StatefulShardedDataset
from laneway.checkpoint import files, reading, sharded, verified
from laneway.checkpoint.verified import VerifiedFile
from laneway.errors import CheckpointError, CheckpointMismatchError
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from laneway.checkpoint.folder import CheckpointFolder
    from laneway.checkpoint.layout import FileRecord

FIRST_WITH_B = 3
"""The first step that uses all layers."""
NUM_STEPS = 5


class Model(nn.Module):
    """A layer that is used, one that is used later, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.c.requires_grad_(requires_grad=False)

    def train_step(self, optimizers: Iterable[optim.Optimizer], step: int) -> None:
        torch.manual_seed(step)
        found = self.a(torch.rand(4, 3))
        found = self.b(found) if step >= FIRST_WITH_B else found
        self.c(found).square().mean().backward()
        for each in optimizers:
            each.step()
            each.zero_grad()


MakeOptimizers = Callable[[Model], list[optim.Optimizer]]


def with_groups(model: Model) -> list[optim.Optimizer]:
    groups: list[dict[str, Any]] = [
        {"params": model.a.parameters()},
        {"params": [*model.b.parameters(), *model.c.parameters()], "lr": 0.2},
    ]
    return [optim.AdamW(groups, 0.1)]


MAKERS: dict[str, MakeOptimizers] = {
    "SGD": lambda model: [optim.SGD(model.parameters(), 0.1)],
    "momentum": lambda model: [optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)],
    "AdamW": lambda model: [optim.AdamW(model.parameters(), torch.tensor(0.1), amsgrad=True)],
    "Adafactor": lambda model: [optim.Adafactor(model.parameters(), 0.1)],
    "groups": with_groups,
    "two": lambda model: [optim.AdamW(model.a.parameters(), 0.1), optim.SGD(model.b.parameters(), 0.1, momentum=0.9)],
    "two without states": lambda model: [optim.SGD(model.a.parameters(), 0.1), optim.SGD(model.b.parameters(), 0.2)],
}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path / "run") as found:
        yield found


def trained(steps: range, model: Model, optimizers: list[optim.Optimizer]) -> list[torch.Tensor]:
    for step in steps:
        model.train_step(optimizers, step)
    return [each.detach() for each in model.parameters()]


@pytest.mark.parametrize("saved_before", [0, 1, FIRST_WITH_B + 1])
@pytest.mark.parametrize("name", MAKERS)
def test_a_save_at_any_step_changes_nothing_and_a_job_that_resumes_is_bit_equal(
    checkpoints: Checkpoints, name: str, saved_before: int
) -> None:
    make = MAKERS[name]
    model = Model()
    whole = trained(range(NUM_STEPS), model, make(model))
    model = Model()
    optimizers = make(model)
    trained(range(saved_before), model, optimizers)
    checkpoints.save(saved_before, model=model, optimizer=optimizers)
    saved = copy.deepcopy((model, [each.state_dict() for each in optimizers]))
    after = trained(range(saved_before, NUM_STEPS), model, optimizers)
    assert all(map(torch.equal, after, whole))
    # The job itself goes back; then another process resumes.
    for each in ((model, optimizers), (other := Model(), make(other))):
        checkpoints.resume(model=each[0], optimizer=each[1])
        assert str([one.state_dict() for one in each[1]]) == str(saved[1])
        after = trained(range(saved_before, NUM_STEPS), *each)
        assert all(map(torch.equal, after, whole))


def test_a_job_that_has_used_few_of_its_parameters_goes_back_to_when_it_had_used_all(checkpoints: Checkpoints) -> None:
    model = Model()
    optimizer = optim.AdamW(model.parameters(), 0.1)
    for step in range(NUM_STEPS):
        model.train_step([optimizer], step)
    checkpoints.save(0, model=model, optimizer=optimizer)
    other = Model()
    new = optim.AdamW(other.parameters(), 0.1)
    other.train_step([new], 0)
    gradient = other.a.weight.grad = torch.ones(3, 3)
    checkpoints.load(0, model=other, optimizer=new)
    assert str(new.state_dict()) == str(optimizer.state_dict())
    assert other.a.weight.grad is gradient


def test_a_model_is_loaded_without_the_optimizer_that_was_saved_with_it(checkpoints: Checkpoints) -> None:
    model, other = Model(), Model()
    optimizer = optim.AdamW(model.parameters())
    model.train_step([optimizer], 0)
    checkpoints.save(0, model=model, optimizer=optimizer)
    checkpoints.load(0, model=other)
    assert all(map(torch.equal, other.parameters(), model.parameters()))
    with pytest.raises(CheckpointMismatchError, match="also holds 'optimizer'"):
        checkpoints.resume(model=other)


def test_settings_that_the_saved_optimizer_did_not_have_stay(checkpoints: Checkpoints) -> None:
    model = Model()
    checkpoints.save(0, model=model, optimizer=optim.SGD(model.parameters(), 0.1))
    other = Model()
    optimizer = optim.SGD(other.parameters(), 0.3)
    optim.lr_scheduler.ConstantLR(optimizer, 0.5)
    checkpoints.load(0, model=other, optimizer=optimizer)
    assert optimizer.param_groups[0]["initial_lr"] == 0.3
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_load_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, model=nn.Linear(2, 2))
    opened: list[str] = []

    class Counting(VerifiedFile):
        def __init__(
            self, folder: CheckpointFolder, name: str, file: str, record: FileRecord, *, verify: bool = True
        ) -> None:
            opened.append(file)
            super().__init__(folder, name, file, record, verify=verify)

    for module in (files, reading, verified):
        monkeypatch.setattr(module, "VerifiedFile", Counting)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.resume(model=nn.Linear(2, 2))
    assert sorted(opened) == [".metadata", "__0_0.distcp", "job.pt", "rank-0.pt"]


# -- Refusals ---------------------------------------------------------------------------------------------------------


class Job:
    """A job whose objects have changed since they were made."""

    def __init__(self, corpus: Path) -> None:
        self.model = Model()
        nn.init.constant_(self.model.a.weight, 7)
        self.optimizer = optim.AdamW(self.model.parameters())
        self.scheduler: Any = optim.lr_scheduler.StepLR(self.optimizer, 3)
        self.loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=4))
        next(iter(self.loader))

    @property
    def objects(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "loader")}

    def states(self) -> str:
        return str({name: each.state_dict() for name, each in self.objects.items()})


class Refusing:
    """An object that accepts no state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        message = f"not {state_dict}"
        raise ValueError(message)


@pytest.mark.parametrize("case", ["files", "model", "left out", "amsgrad", "groups", "part", "object"])
def test_a_checkpoint_that_is_refused_changes_nothing(tmp_path: Path, checkpoints: Checkpoints, case: str) -> None:
    write_corpus(tmp_path / "corpus")
    saved, job = Job(tmp_path / "corpus"), Job(tmp_path / "corpus")
    saved.model.train_step([saved.optimizer], 0)
    saved.scheduler.step()
    others: dict[str, Any] = {}
    if case == "files":
        write_corpus(tmp_path / "other", files=((5, 7),))
        job = Job(tmp_path / "other")
    elif case == "model":
        job.model.c = nn.Linear(3, 4)
    elif case == "left out":
        del job.model.c
        job.optimizer = optim.AdamW(job.model.parameters())
    elif case == "amsgrad":
        job.optimizer.param_groups[0]["amsgrad"] = True
        job.model.train_step([job.optimizer], 0)
    elif case == "groups":
        saved.optimizer = with_groups(saved.model)[0]  # type: ignore[assignment]
    elif case == "object":
        others = {"refusing": Refusing()}
    if case == "model":
        job.optimizer = optim.AdamW(job.model.parameters())
    checkpoints.save(0, **saved.objects, **others)
    if case == "part":
        others = {"ema": nn.Linear(1, 1)}
    before = job.states()
    with pytest.raises((CheckpointMismatchError, ValueError)) as raised:
        checkpoints.resume(**job.objects, **others)
    assert job.states() == before, raised.value
    for each in job.model.parameters():
        assert each.grad is None


def test_a_damaged_checkpoint_leaves_an_optimizer_without_a_state_without_one(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    model = Model()
    optimizer = optim.AdamW(model.parameters())
    model.train_step([optimizer], 0)
    checkpoints.save(0, model=model, optimizer=optimizer)
    (file,) = (tmp_path / "run").glob("*/__0_0.distcp")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    other = Model()
    new = optim.AdamW(other.parameters())
    with pytest.raises(CheckpointError, match="can be loaded"):
        checkpoints.resume(model=other, optimizer=new)
    assert not new.state


def test_only_some_of_many_differences_are_listed(checkpoints: Checkpoints) -> None:
    checkpoints.save(0, model=nn.Sequential(*(nn.Linear(1, 1) for _ in range(10))))
    with pytest.raises(CheckpointMismatchError) as raised:
        checkpoints.resume(model=nn.Linear(1, 1))
    lines = str(raised.value).splitlines()
    assert len(lines) == 1 + sharded.MAX_LISTED + 1 + 1
    assert lines[-2] == "  it differs 12 more times"


@pytest.mark.parametrize("what", ["user", "object"])
@pytest.mark.parametrize("async_save", [False, True])
def test_a_save_that_is_refused_leaves_nothing(tmp_path: Path, what: str, *, async_save: bool) -> None:
    class WithoutState(Refusing):
        def state_dict(self) -> dict[str, Any]:
            raise NotImplementedError

    arguments: dict[str, Any] = {"user": {"a": print}} if what == "user" else {"refusing": WithoutState()}
    with Checkpoints(tmp_path, async_save=async_save) as checkpoints:
        checkpoints.save(0)
        with pytest.raises((TypeError, NotImplementedError)):
            checkpoints.save(1, model=nn.Linear(1, 1), **arguments)
        assert sorted(each.name for each in tmp_path.iterdir()) == ["000001-step-0", "writer.json"]
        checkpoints.save(2)
        checkpoints.wait()
        assert [each.step for each in checkpoints.list()] == [0, 2]
