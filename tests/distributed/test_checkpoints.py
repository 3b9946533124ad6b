"""Checkpoints of several ranks: saved together, resumed on other numbers of ranks and by other ways to shard."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from laneway import Checkpoints, SavableLoader, StatefulShardedDataset
from laneway.checkpoint import KeepLatest
from laneway.errors import CheckpointError, CheckpointMismatchError, LanewayError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from laneway.checkpoint.writing import Snapshot
    from tests.distributed.ranks import RunRanks

WIDTH = 8
NUM_STEPS = 4


class Job:
    """The objects of a small training job on one rank."""

    def __init__(self, corpus: Path, wrapper: str, num_workers: int = 0, *, batch_size: int = 2) -> None:
        torch.manual_seed(3)
        model: nn.Module = nn.Sequential(nn.Linear(1, WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, 1))
        if wrapper == "ddp":
            model = DistributedDataParallel(model)
        if wrapper == "fsdp":
            fully_shard(model)
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        dataset = StatefulShardedDataset(corpus, shuffle=True, seed=5, shard_rows=4, batch_size=batch_size)
        self.loader = SavableLoader(dataset, num_workers=num_workers)
        # Dropout differs from rank to rank.
        torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)

    @property
    def objects(self) -> dict[str, Any]:
        names = ("model", "optimizer", "scheduler", "loader")
        return {name: getattr(self, name) for name in names}

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        loss = (self.model(batch["id"].float()[:, None] / 50) - 1).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def weights(self) -> list[float]:
        parameters = [each.full_tensor() if hasattr(each, "full_tensor") else each for each in self.model.parameters()]
        return torch.cat([each.detach().flatten() for each in parameters]).tolist()


Run = tuple[list[int], list[float], list[float]]
"""Row ids, losses and final weights of a rank."""


def train(
    rank: int,
    corpus: Path,
    run: Path,
    wrapper: str,
    num_steps: int | None,
    num_workers: int = 0,
    *,
    async_save: bool = False,
) -> Run:
    """Train `num_steps` steps, or to the end of the epoch, and save after each."""
    job = Job(corpus, wrapper, num_workers)
    rows, losses = [], []
    with Checkpoints(run, keep=[KeepLatest(2)], async_save=async_save) as checkpoints:
        start = checkpoints.resume(**job.objects)
        if start is not None:
            assert start.user == {"saved after": start.step}
        for step, batch in enumerate(job.loader, start.step + 1 if start else 0):
            rows += batch["id"].tolist()
            losses.append(job.step(batch))
            user = {"saved after": step}
            assert checkpoints.save(step, **job.objects, user=user, rank_user={"rank": rank}, metrics={"loss": 1.0})
            if step + 1 == num_steps:
                break
    return rows, losses, job.weights()


def both(first: Run, second: Run) -> Run:
    return first[0] + second[0], first[1] + second[1], second[2]


@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_a_job_that_resumes_on_as_many_ranks_is_bit_equal(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path, wrapper: str, *, async_save: bool
) -> None:
    whole = run_ranks(_train, 2, corpus, tmp_path / "whole", wrapper, None, async_save)
    first = run_ranks(_train, 2, corpus, tmp_path / "run", wrapper, NUM_STEPS, async_save)
    second = run_ranks(_train, 2, corpus, tmp_path / "run", wrapper, None, async_save)
    assert [both(*runs) for runs in zip(first, second, strict=True)] == whole


def _train(rank: int, corpus: Path, run: Path, wrapper: str, num_steps: int | None, async_save: bool) -> Run:
    return train(rank, corpus, run, wrapper, num_steps, num_workers=2 if async_save else 0, async_save=async_save)


@pytest.mark.parametrize(
    ("wrapper", "world_size", "then"), [("fsdp", 4, "fsdp"), ("fsdp", 3, "ddp"), ("ddp", 4, "fsdp")]
)
def test_a_job_resumes_on_other_ranks_with_its_rows_and_its_weights(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path, wrapper: str, world_size: int, then: str
) -> None:
    first = run_ranks(train, 2, corpus, tmp_path, wrapper, NUM_STEPS)
    resumed = run_ranks(weights_after_resume, world_size, corpus, tmp_path, then)
    assert all(each == pytest.approx(first[0][2], abs=0) for each in resumed)
    second = run_ranks(train, world_size, corpus, tmp_path, then, None)
    rows = [row for run in [*first, *second] for row in run[0]]
    assert {*rows} == {*range(48)}
    assert len(rows) <= 48 + world_size


def weights_after_resume(_rank: int, corpus: Path, run: Path, wrapper: str) -> list[float]:
    job = Job(corpus, wrapper)
    with Checkpoints(run) as checkpoints:
        start = checkpoints.resume(**job.objects)
        assert start is not None
        assert start.rank_user == [{"rank": rank} for rank in range(2)]
    return job.weights()


class Unusual(nn.Module):
    """Layers that share their weights, and one that is not used in the first steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.later = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Leave out the layer that is used later."""
        found: torch.Tensor = self.second(self.first(values))
        return found


def unusual_job(wrapper: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(dist.get_world_size())
    model: nn.Module = Unusual()
    if wrapper == "fsdp":
        fully_shard(model)
    if wrapper == "ddp":
        model = DistributedDataParallel(model, find_unused_parameters=True)
    compiled: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    return compiled, torch.optim.AdamW(compiled.parameters())


@pytest.mark.parametrize(("wrapper", "then"), [("fsdp", "fsdp"), ("ddp", "fsdp"), ("fsdp", "ddp")])
def test_compiled_tied_and_unused_layers_are_restored_on_more_ranks(
    run_ranks: RunRanks, tmp_path: Path, wrapper: str, then: str
) -> None:
    saved = run_ranks(save_unusual, 2, tmp_path, wrapper)
    assert run_ranks(load_unusual, 4, tmp_path, then) == [saved[0]] * 4


def save_unusual(_rank: int, run: Path, wrapper: str) -> dict[str, Any]:
    model, optimizer = unusual_job(wrapper)
    with Checkpoints(run) as checkpoints:
        checkpoints.save(0, model=model, optimizer=optimizer)
        assert not optimizer.state
        model(torch.ones(2, WIDTH)).sum().backward()
        optimizer.step()
        checkpoints.save(1, model=model, optimizer=optimizer)
    return whole_states(model, optimizer)


def load_unusual(_rank: int, run: Path, wrapper: str) -> dict[str, Any]:
    model, optimizer = unusual_job(wrapper)
    with Checkpoints(run) as checkpoints:
        checkpoints.load(0, model=model, optimizer=optimizer)
        assert not optimizer.state
        checkpoints.resume(model=model, optimizer=optimizer)
    return whole_states(model, optimizer)


def whole_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the parameters and the states of the optimizer under plain names."""
    found = {}
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("_orig_mod.").removeprefix("module.")
        for key, value in {"": parameter, **optimizer.state.get(parameter, {})}.items():
            found[f"{plain} {key}"] = value.full_tensor() if isinstance(value, DTensor) else value
    return {name: value.tolist() for name, value in found.items()}


# -- Pipeline parallelism ---------------------------------------------------------------------------------------------


class Stage(nn.Module):
    """Some of the layers of a model, under the names that they have in it."""

    def __init__(self, layers: range) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(layer): nn.Linear(WIDTH, WIDTH) for layer in layers})

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Pass values through the layers."""
        for layer in self.layers.values():
            values = layer(values)
        return values


NUM_LAYERS = 4
DECAYS, RATES = (0.1, 0.0), (1e-2, 3e-2)
"""Weight decay of weights and biases; learning rates of the stages."""


def stage_job(layers: range, seed: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Stage(layers)
    weights = [each for each in model.parameters() if each.ndim == 2]
    biases = [each for each in model.parameters() if each.ndim == 1]
    groups = [{"params": each, "weight_decay": decay} for each, decay in zip((weights, biases), DECAYS, strict=True)]
    return model, torch.optim.AdamW(groups, lr=lr)


def layers_of(rank: int) -> range:
    return range(rank * 2, rank * 2 + 2)


def save_stage(rank: int, run: Path, rates: tuple[float, float], *, async_save: bool = False) -> dict[str, Any]:
    model, optimizer = stage_job(layers_of(rank), rank, rates[rank])
    with Checkpoints(run, async_save=async_save) as checkpoints:
        for step in range(2):
            model(torch.ones(2, WIDTH)).sum().backward()
            optimizer.step()
            checkpoints.save(step, model=model, optimizer=optimizer)
    return whole_states(model, optimizer) | rates_by_name(model, optimizer)


def save_stage_asynchronously(rank: int, run: Path, rates: tuple[float, float]) -> dict[str, Any]:
    return save_stage(rank, run, rates, async_save=True)


def resume_stage(rank: int, run: Path) -> dict[str, Any]:
    # Other weights and settings than those that were saved.
    model, optimizer = stage_job(layers_of(rank), 10 + rank, 1.0)
    with Checkpoints(run) as checkpoints:
        checkpoints.resume(model=model, optimizer=optimizer)
    return whole_states(model, optimizer) | rates_by_name(model, optimizer)


def rates_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]} settings": [group["lr"], group["weight_decay"]]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("save", [save_stage, save_stage_asynchronously])
def test_stages_of_a_pipeline_are_restored_each_with_its_layers_and_its_settings(
    run_ranks: RunRanks, tmp_path: Path, save: Callable[..., dict[str, Any]]
) -> None:
    saved = run_ranks(save, 2, tmp_path, RATES)
    assert run_ranks(resume_stage, 2, tmp_path) == saved


def test_stages_of_a_pipeline_are_restored_in_one_process_unless_it_has_one_setting_where_they_had_two(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    saved = run_ranks(save_stage, 2, tmp_path / "alike", (0.01, 0.01))
    model, optimizer = stage_job(range(NUM_LAYERS), 20, 1.0)
    with Checkpoints(tmp_path / "alike") as checkpoints:
        checkpoints.resume(model=model, optimizer=optimizer)
        assert whole_states(model, optimizer) | rates_by_name(model, optimizer) == saved[0] | saved[1]
        # The other way: one process saves, stages resume.
        checkpoints.save(9, model=model, optimizer=optimizer)
    assert run_ranks(resume_stage, 2, tmp_path / "alike") == saved
    run_ranks(save_stage, 2, tmp_path / "different", RATES)
    before = whole_states(model, optimizer)
    with (
        Checkpoints(tmp_path / "different") as checkpoints,
        pytest.raises(CheckpointMismatchError, match=r"now in one group of the optimizer, with the lr 0\.01 and 0\.03"),
    ):
        checkpoints.resume(model=model, optimizer=optimizer)
    assert whole_states(model, optimizer) == before


def test_a_stage_of_a_pipeline_whose_layers_nobody_saved_is_told_what_is_missing(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(save_stage, 2, tmp_path, RATES[:1] * 2)
    messages = run_ranks(resume_later_stage, 2, tmp_path)
    assert all("holds no model.layers.4.weight" in message for message in messages), messages
    assert all("holds no settings of the optimizer for layers.4.weight" in message for message in messages), messages


def resume_later_stage(rank: int, run: Path) -> str:
    model, optimizer = stage_job(range(rank * 3, rank * 3 + 3), 0, 1.0)
    later = torch.optim.AdamW([{"params": [model.get_parameter("layers.4.weight")]}]) if rank else optimizer
    with Checkpoints(run) as checkpoints, pytest.raises(CheckpointMismatchError) as raised:
        checkpoints.resume(model=model, optimizer=later)
    return str(raised.value)


def test_a_model_in_the_older_fsdp_is_restored_with_and_without_states_of_its_optimizer(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(save_and_load_older_fsdp, 2, tmp_path)


def save_and_load_older_fsdp(_rank: int, run: Path) -> None:
    def job(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = FullyShardedDataParallel(nn.Linear(4, 4), use_orig_params=True, device_id=torch.device("cpu"))
        return model, torch.optim.AdamW(model.parameters())

    with Checkpoints(run) as checkpoints, warnings.catch_warnings():
        # It is deprecated, and so is what it calls; many use it.
        warnings.simplefilter("ignore")
        model, optimizer = job(0)
        checkpoints.save(0, model=model, optimizer=optimizer)
        assert not optimizer.state
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        checkpoints.save(1, model=model, optimizer=optimizer)
        other, new = job(1)
        checkpoints.load(0, model=other, optimizer=new)
        assert not new.state
        checkpoints.resume(model=other, optimizer=new)
    assert all(map(torch.equal, other.parameters(), model.parameters()))
    assert str(new.state_dict()) == str(optimizer.state_dict())


def test_a_checkpoint_of_two_ranks_is_loaded_by_a_single_process(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path
) -> None:
    first = run_ranks(train, 2, corpus, tmp_path, "fsdp", NUM_STEPS)
    job = Job(corpus, "none")
    with Checkpoints(tmp_path) as checkpoints:
        start = checkpoints.resume(**job.objects)
    assert start is not None
    assert start.step == NUM_STEPS - 1
    assert job.weights() == first[0][2]
    rows = [row for run in first for row in run[0]] + [row for batch in job.loader for row in batch["id"].tolist()]
    assert sorted(rows) == list(range(48))


def test_ranks_that_save_different_steps_are_told_so(run_ranks: RunRanks, corpus: Path, tmp_path: Path) -> None:
    messages = run_ranks(save_different_steps, 2, corpus, tmp_path)
    assert messages == ["all ranks must make the same call: rank 0 called save(0), rank 1 called save(1)"] * 2


def save_different_steps(rank: int, corpus: Path, run: Path) -> str:
    job = Job(corpus, "none")
    with Checkpoints(run) as checkpoints, pytest.raises(Exception, match="same call") as raised:
        checkpoints.save(rank, loader=job.loader)
    return str(raised.value)


def test_a_value_of_one_rank_that_cannot_be_saved_is_an_error_on_all(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path
) -> None:
    for message in run_ranks(save_a_function, 2, corpus, tmp_path):
        assert message.startswith(
            "on rank 1: user in the checkpoint of rank 1 can't be saved, it is a builtin_function_or_method"
        )
    assert not [*tmp_path.glob("*-step-*/index.json")]


def save_a_function(rank: int, corpus: Path, run: Path) -> str:
    job = Job(corpus, "ddp")
    with Checkpoints(run) as checkpoints, pytest.raises(TypeError) as raised:
        checkpoints.save(0, **job.objects, rank_user=print if rank else None)
    return str(raised.value)


def test_a_signal_that_one_rank_gets_has_all_ranks_save_the_same_step_once(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path
) -> None:
    for found in run_ranks(stopped_at_several_times, 2, corpus, tmp_path):
        assert found == {"before the first batch": [0], "after step 3": [2, 3], "in the save of step 2": [2, 3]}


def stopped_at_several_times(rank: int, corpus: Path, run: Path) -> dict[str, list[int]]:
    whens = ("before the first batch", "after step 3", "in the save of step 2")
    return {when: train_until_told_to_stop(rank, corpus, run / when, when) for when in whens}


def train_until_told_to_stop(rank: int, corpus: Path, run: Path, when: str) -> list[int]:
    """Return the steps that this rank has saved."""

    def tell_to_stop() -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    job = Job(corpus, "ddp")
    saved = []
    with Checkpoints(run, signals=["SIGTERM"], async_save=True) as checkpoints:
        write = checkpoints._saver.write

        def write_and_be_told(snapshot: Snapshot) -> None:
            tell_to_stop()
            write(snapshot)

        if when == "in the save of step 2":
            checkpoints._saver.write = write_and_be_told  # type: ignore[method-assign]
        checkpoints.resume(**job.objects)
        if when == "before the first batch":
            tell_to_stop()
        for step, batch in enumerate(job.loader):
            job.step(batch)
            if when == "after step 3" and step == 3:
                tell_to_stop()
            # Ranks ask each other at every step while steps are slow.
            checkpoints._polls._until_next = 1
            if checkpoints.due(step, every_steps=2 if step < 3 else 100):
                checkpoints.save(step, **job.objects)
                checkpoints.wait()
                saved.append(step)
            if checkpoints.is_stopping:
                break
        assert [each.step for each in checkpoints.list()] == saved
    return saved


def test_a_damaged_byte_has_all_ranks_resume_from_the_checkpoint_before(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path
) -> None:
    run_ranks(train, 2, corpus, tmp_path, "fsdp", NUM_STEPS)
    newest = max(tmp_path.glob("*-step-*"))
    damage(newest / "__1_0.distcp")
    assert run_ranks(step_after_resume, 2, corpus, tmp_path) == [NUM_STEPS - 2] * 2


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    # Among the numbers of the first tensor: nothing but a checksum can tell.
    place = data.index(b"data/0") + 80
    data[place] ^= 4
    file.write_bytes(data)


def step_after_resume(_rank: int, corpus: Path, run: Path) -> int:
    job = Job(corpus, "fsdp")
    with Checkpoints(run) as checkpoints:
        start = checkpoints.resume(**job.objects)
    assert start is not None
    return int(start.step)


def test_a_loader_that_ranks_save_for_themselves_can_not_change_their_number(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(save_own_states, 2, tmp_path)
    assert run_ranks(load_own_states, 2, tmp_path) == [{"rank": 0}, {"rank": 1}]
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointMismatchError, match="by each rank for itself"):
        checkpoints.resume(loader=Own())


class Own:
    """A loader of somebody else."""

    state: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return {"rank": dist.get_rank()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict


def save_own_states(_rank: int, run: Path) -> None:
    with Checkpoints(run) as checkpoints:
        checkpoints.save(0, loader=Own())


def load_own_states(_rank: int, run: Path) -> dict[str, Any]:
    loader = Own()
    with Checkpoints(run) as checkpoints:
        checkpoints.resume(loader=loader)
    return loader.state


def test_a_full_disk_on_one_rank_is_an_error_on_all_and_the_checkpoint_before_stays(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path
) -> None:
    for message in run_ranks(save_on_a_full_disk, 2, corpus, tmp_path):
        assert "on rank 1" in message
        assert "No space left on device" in message
    assert run_ranks(step_after_resume, 2, corpus, tmp_path) == [0, 0]


def save_on_a_full_disk(rank: int, corpus: Path, run: Path) -> str:
    job = Job(corpus, "fsdp")
    with Checkpoints(run) as checkpoints:
        checkpoints.save(0, **job.objects)
        if rank == 1:
            # /dev/full refuses every byte.
            folder = checkpoints._folder
            path = folder.path
            folder.path = lambda name, file="": "/dev/full" if file.endswith(".distcp") else path(name, file)  # type: ignore[method-assign]
        with pytest.raises(CheckpointError) as raised:
            checkpoints.save(1, **job.objects)
    return str(raised.value)


def test_a_signal_in_an_evaluation_ends_it_on_all_ranks_after_the_same_batch(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path
) -> None:
    (first, latest), (second, other) = run_ranks(evaluate_until_told_to_stop, 2, corpus, tmp_path)
    assert first == second
    # Ranks ask each other after at most 16 batches.
    assert 3 <= first <= 3 + 16
    assert latest == other == 0


def evaluate_until_told_to_stop(rank: int, corpus: Path, run: Path) -> tuple[int, int]:
    job = Job(corpus, "ddp")
    num_evaluated = 0
    with Checkpoints(run, signals=["SIGUSR1"]) as checkpoints:
        job.step(next(iter(job.loader)))
        for num_evaluated, _ in enumerate(checkpoints.watch(range(1_000)), 1):
            if num_evaluated == 3 and rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
        assert checkpoints.is_stopping
        checkpoints.save(0, **job.objects)
        assert not checkpoints.due(0, every_steps=100)
        latest = checkpoints.list()[-1].step
    return num_evaluated, latest


def test_a_write_that_failed_is_raised_by_the_same_call_of_all_ranks_and_training_goes_on(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    for call in ("save", "due"):
        first, second = run_ranks(_train_on_after_a_failure, 2, tmp_path / call, call)
        assert first == second
        assert "the last checkpoint could not be written: [Errno 28] no space" in first[1]
        assert first[2] == [50]


def _train_on_after_a_failure(rank: int, run: Path, call: str) -> tuple[int, str, list[int]]:
    """Return the step at which the failure of the first save was raised, its text, and the steps that were saved."""
    is_over = threading.Event()
    with Checkpoints(run, async_save=True) as checkpoints:
        write = checkpoints._saver.write

        def fail(_: Snapshot) -> None:
            assert rank == 0 or is_over.wait(30)
            raise OSError(errno.ENOSPC, "no space")

        checkpoints._saver.write = fail  # type: ignore[assignment,method-assign]
        checkpoints.save(0)
        while rank == 0 and checkpoints._saver.is_busy:
            time.sleep(0.001)
        # Rank 0 knows of it before the other one.
        threading.Timer(0.2, is_over.set).start()
        for step in range(1, 50):
            try:
                checkpoints.save(step) if call == "save" else checkpoints.due(step)
            except CheckpointError as error:
                found = str(error)
                break
        checkpoints._saver.write = write  # type: ignore[method-assign]
        checkpoints.save(50)
        checkpoints.wait()
        return step, found, [each.step for each in checkpoints.list()]


def test_a_state_that_one_rank_can_not_give_is_an_error_of_all_and_later_saves_work(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path
) -> None:
    assert run_ranks(_save_after_a_failure, 2, corpus, tmp_path / "run") == [[2], [2]]


class WithoutStateOnRank1:
    """A scheduler that fails on a rank."""

    def state_dict(self) -> dict[str, Any]:
        if dist.get_rank() == 1:
            raise NotImplementedError
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""


def _save_after_a_failure(_rank: int, corpus: Path, run: Path) -> list[int]:
    job = Job(corpus, "ddp")
    with Checkpoints(run) as checkpoints:
        with pytest.raises(LanewayError, match="on rank 1"):
            checkpoints.save(1, **{**job.objects, "scheduler": WithoutStateOnRank1()})
        checkpoints.save(2, **job.objects)
        return [each.step for each in checkpoints.list()]


def test_a_part_that_was_never_saved_is_left_alone_on_other_ranks_unless_it_is_wanted(
    run_ranks: RunRanks, corpus: Path, tmp_path: Path
) -> None:
    run_ranks(_save_a_model, 2, corpus, tmp_path)
    job = Job(corpus, "none")
    before = job.scheduler.state_dict()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.load(3, **job.objects).step == 3
        with pytest.raises(CheckpointMismatchError, match="holds no 'loader', 'optimizer', 'scheduler', but 'model'"):
            checkpoints.load(3, **job.objects, strict=True)
    assert job.scheduler.state_dict() == before


def _save_a_model(_rank: int, corpus: Path, run: Path) -> None:
    with Checkpoints(run) as checkpoints:
        checkpoints.save(3, model=Job(corpus, "ddp").model)
