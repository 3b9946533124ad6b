"""Checkpoints of a single process: what is saved is restored, and each mistake is told."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from laneway import Checkpoints, SavableLoader, StatefulShardedDataset
from laneway.checkpoint import KeepBest, KeepEvery, KeepLatest, Policy, housekeeping, lock
from laneway.errors import CheckpointError, CheckpointMismatchError, DataFileError
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from laneway.checkpoint.layout import Checkpoint
    from laneway.checkpoint.writing import Snapshot


class Job:
    """A model, its optimizer and its loader."""

    def __init__(self, corpus: Path, *, compiled: bool = False, tied: bool = False) -> None:
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Linear(4, 4))
        if tied:
            model[3].weight = model[2].weight  # type: ignore[index]
        self.model: nn.Module = torch.compile(model, backend="eager") if compiled else model  # type: ignore[assignment]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=100)
        self.loader = SavableLoader(StatefulShardedDataset(corpus, shuffle=True, shard_rows=4, batch_size=4))

    @property
    def objects(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "loader")}

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        loss = self.model(batch["id"].float()[:, None] / 50).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path / "run") as found:
        yield found


def train(corpus: Path, run: Path, num_steps: int | None, *, async_save: bool = False, **options: Any) -> list[float]:
    job = Job(corpus, **options)
    losses = []
    with Checkpoints(run, async_save=async_save) as checkpoints:
        start = checkpoints.resume(**job.objects)
        for step, batch in enumerate(job.loader, start.step + 1 if start else 0):
            # The generators that users call are restored too.
            noise = random.random() + np.random.rand()  # noqa: NPY002
            losses.append(job.step(batch) + noise)
            checkpoints.save(step, **job.objects)
            if step + 1 == num_steps:
                break
    return losses


@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize("options", [{}, {"compiled": True}, {"tied": True}])
def test_a_job_that_resumes_is_bit_equal(
    corpus: Path, tmp_path: Path, options: dict[str, bool], *, async_save: bool
) -> None:
    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002

    seed()
    whole = train(corpus, tmp_path / "whole", None, **options)
    seed()
    first = train(corpus, tmp_path / "run", 5, async_save=async_save, **options)
    random.seed(7)
    assert first + train(corpus, tmp_path / "run", None, async_save=async_save, **options) == whole


def test_a_compiled_model_is_loaded_into_one_that_is_not(corpus: Path, checkpoints: Checkpoints) -> None:
    compiled, plain = Job(corpus, compiled=True), Job(corpus)
    compiled.step(next(iter(compiled.loader)))
    checkpoints.save(0, model=compiled.model)
    checkpoints.resume(model=plain.model)
    assert all(map(torch.equal, compiled.model.parameters(), plain.model.parameters()))


def test_an_empty_folder_starts_from_the_beginning(corpus: Path, checkpoints: Checkpoints) -> None:
    assert checkpoints.resume(**Job(corpus).objects) is None
    assert checkpoints.list() == []
    assert checkpoints.latest is None


def test_user_values_tags_and_metrics_come_back(checkpoints: Checkpoints) -> None:
    user = {"seen": 640, "table": torch.arange(3), "nested": {"names": ["a", "b"], "pair": (1, 2.5)}}
    checkpoints.save(7, user=user, rank_user=[1, 2], metrics={"loss": 0.5}, tag="first")
    found = checkpoints.resume()
    assert found is not None
    assert (found.step, found.tag, found.rank_user, found.metrics) == (7, "first", [1, 2], {"loss": 0.5})
    assert found.user["nested"] == user["nested"]
    assert torch.equal(found.user["table"], torch.arange(3))
    assert checkpoints.load("first").step == 7
    assert checkpoints.verify("first").parts == ()


def test_several_loaders_and_other_objects_are_saved_by_name(corpus: Path, checkpoints: Checkpoints) -> None:
    jobs = [Job(corpus), Job(corpus)]
    for job in jobs:
        next(iter(job.loader))
    average = nn.Linear(2, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    checkpoints.save(0, loader={"train": jobs[0].loader, "extra": jobs[1].loader}, average=average, scaler=scaler)
    loaders, other, new = [Job(corpus).loader for _ in jobs], nn.Linear(2, 2), torch.amp.GradScaler("cpu")
    assert checkpoints.latest is not None
    assert checkpoints.latest.parts == ("average", "loader/extra", "loader/train", "scaler")
    checkpoints.resume(loader={"train": loaders[0], "extra": loaders[1]}, average=other, scaler=new)
    assert torch.equal(other.weight, average.weight)
    assert new.get_scale() == 64.0
    assert [each.batches_delivered for each in loaders] == [1, 1]


def test_an_optimizer_that_has_made_no_step_is_saved_and_restored(corpus: Path, checkpoints: Checkpoints) -> None:
    job, other = Job(corpus), Job(corpus)
    checkpoints.save(0, model=job.model, optimizer=job.optimizer)
    checkpoints.resume(model=other.model, optimizer=other.optimizer)
    batches = [next(iter(each.loader)) for each in (job, other)]
    torch.manual_seed(0)
    expected = job.step(batches[0])
    torch.manual_seed(0)
    assert other.step(batches[1]) == expected


def test_a_model_is_exported_to_a_file_that_torch_loads(corpus: Path, tmp_path: Path, checkpoints: Checkpoints) -> None:
    job = Job(corpus, tied=True)
    checkpoints.save(3, **job.objects, tag="release")
    checkpoints.export("release", tmp_path / "model.pt")
    found = torch.load(tmp_path / "model.pt", weights_only=True)
    expected = job.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    checkpoints.save(4, loader=job.loader)
    with pytest.raises(CheckpointError, match="000002-step-4 holds no model, but 'loader'"):
        checkpoints.export(4, tmp_path / "other.pt")


# -- Mistakes ---------------------------------------------------------------------------------------------------------


def test_a_part_that_is_missing_or_left_out_is_an_error_that_names_it(corpus: Path, checkpoints: Checkpoints) -> None:
    job = Job(corpus)
    checkpoints.save(0, model=job.model, loader=job.loader)
    with pytest.raises(CheckpointMismatchError, match="holds no 'optimizer', but 'loader', 'model'"):
        checkpoints.resume(model=job.model, optimizer=job.optimizer, loader=job.loader)
    with pytest.raises(CheckpointMismatchError, match="also holds 'loader', which would not be restored"):
        checkpoints.resume(model=job.model)
    found = checkpoints.resume(model=job.model, optimizer=job.optimizer, strict=False)
    assert found is not None


def test_a_part_that_can_not_be_restored_is_logged_if_that_is_no_error(
    corpus: Path, checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(corpus)
    checkpoints.save(0, model=job.model, loader={"train": job.loader})
    checkpoints.load(0, model=job.model)
    checkpoints.load(0, model=job.model, loader=job.loader, scheduler=job.scheduler)
    warnings = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert warnings == ["000001-step-0 holds no 'loader', 'scheduler', so this is not restored"]


def test_two_parts_of_one_name_are_an_error(corpus: Path, checkpoints: Checkpoints) -> None:
    job = Job(corpus)
    with pytest.raises(ValueError, match="there is a loader and another object with the name 'loader/a'"):
        checkpoints.save(0, loader={"a": job.loader}, **{"loader/a": job.scheduler})  # type: ignore[arg-type]


def test_a_model_with_other_parameters_is_an_error_and_not_passed_over(corpus: Path, checkpoints: Checkpoints) -> None:
    checkpoints.save(0, model=Job(corpus).model)
    checkpoints.save(1, model=nn.Linear(3, 3))
    with pytest.raises(CheckpointMismatchError) as raised:
        checkpoints.resume(model=nn.Linear(3, 4, bias=False))
    assert str(raised.value) == (
        "000002-step-1 is of another model or optimizer:\n"
        "  it holds model.weight of shape [3, 3], now [4, 3]\n"
        "  it holds model.bias, which would not be restored\n"
        "create both as when it was saved"
    )
    with pytest.raises(CheckpointMismatchError, match=r"it holds no model\.0\.weight\n"):
        checkpoints.load(1, model=Job(corpus).model)


def test_a_part_of_a_model_is_loaded_if_that_is_wanted(checkpoints: Checkpoints) -> None:
    whole, part = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    checkpoints.save(0, model=whole)
    with pytest.raises(CheckpointMismatchError, match=r"it holds model\.bias, .*\n.* or pass strict=False"):
        checkpoints.resume(model=part)
    checkpoints.load(0, model=part)
    assert torch.equal(part.weight, whole.weight)


def test_a_loader_of_other_files_is_an_error_and_not_passed_over(
    corpus: Path, tmp_path: Path, checkpoints: Checkpoints
) -> None:
    job = Job(corpus)
    next(iter(job.loader))
    checkpoints.save(0, loader=job.loader)
    write_corpus(tmp_path / "other", files=((5, 7),))
    with pytest.raises(CheckpointMismatchError, match="files"):
        checkpoints.resume(loader=Job(tmp_path / "other").loader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"user": {"a": [1, {"b": print}]}}, r"user\['a'\]\[1\]\['b'\] in the checkpoint can't be saved"),
        ({"rank_user": object()}, "user in the checkpoint of rank 0 can't be saved"),
        ({"loader": [1]}, "loader must have state_dict.* pass the object itself, not its state"),
        ({"loader": {"laneway": [{}]}}, "pass the object itself, not its state"),
        ({"ema": 3}, "ema must have state_dict"),
        ({"model": 3}, "model must be a torch.nn.Module, not a int"),
    ],
)
def test_what_can_not_be_saved_is_an_error_that_names_it(
    checkpoints: Checkpoints, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        checkpoints.save(0, **arguments)
    assert checkpoints.list() == []


def test_an_optimizer_without_its_model_is_an_error(corpus: Path, checkpoints: Checkpoints) -> None:
    with pytest.raises(ValueError, match="optimizer needs model"):
        checkpoints.save(0, optimizer=Job(corpus).optimizer)


def test_a_step_or_tag_that_does_not_exist_is_an_error_that_names_those_that_do(checkpoints: Checkpoints) -> None:
    checkpoints.save(3)
    checkpoints.save(5, tag="best")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4; the newest are of steps 3, 5 \(best\)"):
        checkpoints.load(4)
    with pytest.raises(CheckpointError, match="no checkpoint with the tag 'worst'"):
        checkpoints.verify("worst")


# -- Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "index.json", "job.pt", "rank-0.pt"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_is_loaded(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, harm: str
) -> None:
    job = Job(corpus)
    with Checkpoints(tmp_path / "run") as checkpoints:
        for step, batch in zip(range(2), job.loader, strict=False):
            job.step(batch)
            checkpoints.save(step, **job.objects)
    path = tmp_path / "run" / "000002-step-1" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data if harm == "flip" else data[:-1])
    if harm == "remove":
        path.unlink()
    caplog.set_level(logging.WARNING, "laneway")
    with Checkpoints(tmp_path / "run") as checkpoints:
        found = checkpoints.resume(**Job(corpus).objects)
    assert found is not None
    assert found.step == 0
    assert "000002-step-1 is passed over: " in caplog.text


@pytest.mark.parametrize(
    ("file", "harm"),
    [("job.pt", "flip"), ("job.pt", "cut"), ("job.pt", "remove"), ("index.json", "flip"), ("index.json", "cut")],
)
def test_if_every_checkpoint_is_damaged_the_job_does_not_start_again_in_silence(
    corpus: Path, tmp_path: Path, file: str, harm: str
) -> None:
    job = Job(corpus)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(0, **job.objects)
    (path,) = (tmp_path / "run").glob(f"*/{file}")
    data = path.read_bytes()
    path.write_bytes(b"x" * len(data) if harm == "flip" else data[:-1])
    if harm == "remove":
        path.unlink()
    with (
        Checkpoints(tmp_path / "run") as checkpoints,
        pytest.raises(CheckpointError, match=r"none of the 1 checkpoints in .* can be loaded"),
    ):
        checkpoints.resume(**job.objects)


def test_a_job_resumes_without_looking_at_older_checkpoints(corpus: Path, tmp_path: Path) -> None:
    job = Job(corpus)
    with Checkpoints(tmp_path / "run") as checkpoints:
        for step in range(5):
            checkpoints.save(step, loader=job.loader)
    with Checkpoints(tmp_path / "run") as checkpoints:
        found = checkpoints.resume(loader=job.loader)
        assert found is not None
        assert found.step == 4
        assert [*checkpoints._folder._known] == ["000005-step-4"]


def test_a_folder_that_can_not_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"save\(0\): .*file/run"):
        Checkpoints(tmp_path / "file" / "run").save(0)


# -- Asynchronous saves -----------------------------------------------------------------------------------------------


class Slow(Checkpoints):
    """Writes when it is told to."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, async_save=True)
        self.go = threading.Event()
        self.error: Exception | None = None
        self._write, self._saver.write = self._saver.write, self._write_later  # type: ignore[method-assign]

    def _write_later(self, snapshot: Snapshot) -> None:
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        self._write(snapshot)


def test_training_goes_on_while_a_checkpoint_is_written_and_it_holds_the_step_of_its_save(
    corpus: Path, tmp_path: Path
) -> None:
    job = Job(corpus)
    batches = iter(job.loader)
    with Slow(tmp_path / "run") as checkpoints:
        job.step(next(batches))
        expected = [each.detach().clone() for each in job.model.parameters()]
        assert checkpoints.save(0, **job.objects)
        job.step(next(batches))
        assert not checkpoints.save(1, **job.objects, if_busy="skip")
        checkpoints.go.set()
        assert checkpoints.save(2, **job.objects)
    other = Job(corpus)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert [each.step for each in checkpoints.list()] == [0, 2]
        checkpoints.load(0, **other.objects)
    assert all(map(torch.equal, other.model.parameters(), expected))
    assert other.loader.batches_delivered == 1


@pytest.mark.parametrize("call", ["save", "due", "close"])
def test_a_write_that_failed_is_raised_by_the_next_call_and_training_goes_on(tmp_path: Path, call: str) -> None:
    checkpoints = Slow(tmp_path / "run")
    checkpoints.error = OSError("no space")
    checkpoints.save(0)
    checkpoints.go.set()
    while checkpoints._saver.is_busy:
        time.sleep(0.001)
    with pytest.raises(CheckpointError, match="the last checkpoint could not be written: no space"):
        checkpoints.save(1) if call == "save" else checkpoints.due(1) if call == "due" else checkpoints.close()
    checkpoints.error = None
    if call != "close":
        checkpoints.save(2)
        checkpoints.close()
        assert [each.step for each in checkpoints.list()] == [2]


# -- When to save -----------------------------------------------------------------------------------------------------


def test_it_is_due_after_every_so_many_steps(checkpoints: Checkpoints) -> None:
    assert [step for step in range(10) if checkpoints.due(step, every_steps=3)] == [3, 6, 9]


def test_it_is_due_after_some_time(checkpoints: Checkpoints) -> None:
    steps = iter(range(10**9))
    assert not checkpoints.due(next(steps), every_s=0.2)
    begin = time.monotonic()
    while not checkpoints.due(next(steps), every_s=0.2):
        assert time.monotonic() < begin + 30
    checkpoints.save(next(steps))
    assert not checkpoints.due(next(steps), every_s=1000)


def test_it_is_due_once_after_a_signal_and_the_handler_of_the_user_is_called(tmp_path: Path) -> None:
    called = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: called.append(number))
    try:
        with Checkpoints(tmp_path, signals=["SIGUSR1"]) as checkpoints:
            os.kill(os.getpid(), signal.SIGUSR1)
            due = [checkpoints.due(step) for step in range(50)]
            assert sum(due) == 1
            assert checkpoints.is_stopping
            assert list(checkpoints.watch(range(5))) == []
            assert called == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) not in {signal.SIG_DFL, None}
        os.kill(os.getpid(), signal.SIGUSR1)
        assert len(called) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


WHEN = [("before the first batch", [0]), ("in a save", [2, 3]), ("later", [2, 5])]
"""When a signal comes, and the steps that are saved."""


@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize(("when", "expected"), WHEN)
def test_a_signal_at_any_time_leads_to_one_checkpoint_of_the_next_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, expected: list[int], *, async_save: bool
) -> None:
    def tell_to_stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    job, before = Job(corpus), signal.getsignal(signal.SIGTERM)
    with Checkpoints(tmp_path / "run", signals=["SIGTERM"], async_save=async_save) as checkpoints:
        checkpoints.resume(**job.objects)
        if when == "before the first batch":
            tell_to_stop()
        publish = checkpoints._folder.publish

        def told_while_it_is_written(checkpoint: Checkpoint) -> None:
            tell_to_stop()
            publish(checkpoint)

        for step, batch in enumerate(job.loader):
            job.step(batch)
            if when == "in a save" and step == 2:
                monkeypatch.setattr(checkpoints._folder, "publish", told_while_it_is_written)
            if when == "later" and step == 5:
                tell_to_stop()
            # As if steps took a second.
            checkpoints._polls._until_next = 1
            if checkpoints.due(step, every_steps=2 if step == 2 else 1000):
                checkpoints.save(step, **job.objects)
            if when == "in a save" and step == 2:
                checkpoints.wait()
                monkeypatch.undo()
            if checkpoints.is_stopping:
                break
    assert [each.step for each in checkpoints.list()] == expected
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_is_due_before_the_deadline(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, deadline_s=10.0) as checkpoints:
        assert checkpoints.due(0)
        assert checkpoints.is_stopping
    with Checkpoints(tmp_path, deadline_s=1000.0) as checkpoints:
        assert not checkpoints.due(0)


# -- Keeping and deleting ---------------------------------------------------------------------------------------------


def test_policies_keep_what_they_say_over_a_run(tmp_path: Path) -> None:
    policies: list[Policy] = [KeepLatest(1), KeepEvery(10), KeepBest(1, "loss")]
    with Checkpoints(tmp_path, keep=policies) as checkpoints:
        for step in range(0, 30, 4):
            checkpoints.save(step, metrics={"loss": abs(step - 16)}, tag="kept" if step == 4 else None)
        assert [each.step for each in checkpoints.list()] == [4, 12, 16, 20, 28]


def test_what_a_killed_job_left_is_deleted_when_it_is_old(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0)
    left, young = tmp_path / "000002-step-1", tmp_path / "000003-step-1"
    for folder in (left, young):
        folder.mkdir()
        (folder / "job.pt").write_text("half")
    old = time.time() - 2 * housekeeping.LEFT_OVER_S
    os.utime(left / "job.pt", (old, old))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.resume()
        checkpoints.save(2)
        assert checkpoints.latest is not None
        assert checkpoints.latest.name == "000004-step-2"
    assert not left.exists()
    assert young.exists()


def test_a_deletion_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpoints(tmp_path, keep=[KeepLatest(1)]) as checkpoints:
        checkpoints.save(0)
        delete = checkpoints._folder.delete

        def refused(name: str) -> None:
            message = f"{name} can't be deleted"
            raise DataFileError(message)

        monkeypatch.setattr(checkpoints._folder, "delete", refused)
        caplog.set_level(logging.WARNING, "laneway")
        checkpoints.save(1)
        assert "000001-step-0 could not be deleted, which will be tried again" in caplog.text
        monkeypatch.setattr(checkpoints._folder, "delete", delete)
        checkpoints.save(2)
        assert [each.step for each in checkpoints.list()] == [2]


def test_a_checkpoint_is_deleted_by_hand(tmp_path: Path, checkpoints: Checkpoints) -> None:
    checkpoints.save(0)
    checkpoints.save(1)
    checkpoints.delete(0)
    assert [each.step for each in checkpoints.list()] == [1]
    assert not [*(tmp_path / "run").glob("*-step-0")]


def test_a_run_that_goes_back_to_an_earlier_step_resumes_from_what_it_saved_last(checkpoints: Checkpoints) -> None:
    checkpoints.save(100)
    checkpoints.save(50)
    found = checkpoints.resume()
    assert found is not None
    assert found.step == 50


def test_a_second_job_on_the_same_folder_is_refused_until_the_first_one_ends(
    tmp_path: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 0.5)
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    checkpoints.save(0)
    second = Checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match=f"process {os.getpid()} on .* writes checkpoints to"):
        second.save(1)
    with pytest.raises(CheckpointError, match="writes checkpoints to"):
        second.resume()
    assert [each.step for each in second.list()] == [0]
    checkpoints.close()
    waiting = Checkpoints(tmp_path / "run", if_locked="wait")
    waiting.save(1)
    waiting.close()
    second.save(2)
    second.close()
    assert [each.step for each in second.list()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": KeepLatest(3)}, r"keep must be a list of policies such as \[KeepLatest\(3\)\], not KeepLatest"),
        ({"keep": ["latest"]}, r"keep must be a list of policies .*, not \['latest'\]"),
        ({"signals": "SIGTERM"}, r"signals must be a list such as \['SIGTERM'\], not 'SIGTERM'"),
        ({"signals": 15}, r"signals must be a list such as \[15\], not 15"),
        ({"deadline_s": "soon"}, "deadline_s must be a finite number of seconds above 0, not 'soon'"),
        ({"deadline_s": -1, "signals": ["SIGTERM"]}, "deadline_s must be a finite number of seconds above 0, not -1"),
        ({"path": 3}, "a path or URL must be a string or a path, not 3"),
        ({"process_group": "world"}, "process_group must be a process group or a DeviceMesh .*, not 'world'"),
        ({"signals": ["SIGFOO"]}, r"there is no signal 'SIGFOO': give names such as 'SIGTERM'"),
        ({"signals": [4711]}, r"there is no signal 4711"),
        ({"signals": ["SIGTERM", "SIGKILL"]}, r"SIGKILL can't be handled by any process .*: give SIGTERM or SIGUSR1"),
    ],
)
def test_a_wrong_argument_is_an_error_that_shows_a_right_one(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises((TypeError, ValueError), match=message):
        Checkpoints(**{"path": tmp_path, **arguments})
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tag": 3}, "tag must be a string, not 3"),
        ({"tag": ""}, "tag must not be empty"),
        ({"metrics": {"loss": "low"}}, r"metrics\['loss'\] must be a number, not 'low'"),
        ({"metrics": {"loss": 10**400}}, r"metrics\['loss'\] must be a number, not 1000"),
        ({"metrics": [0.5]}, r"metrics must be a dict from names to numbers, not \[0.5\]"),
        ({"user": 5}, "user must be a dict from names to values, not 5"),
        ({"user": [("seen", 5)]}, "user must be a dict from names to values, not "),
        ({"model": nn.Linear(1, 1), "optimizer": 3}, "optimizer must be a torch.optim.Optimizer, or several of them"),
    ],
)
def test_a_wrong_argument_of_save_is_an_error_that_names_it(
    checkpoints: Checkpoints, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        checkpoints.save(0, **arguments)
    assert checkpoints.list() == []


def test_signals_of_which_one_can_not_be_handled_leave_the_handlers_of_the_user(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="SIGKILL can't be handled"):
        Checkpoints(tmp_path, signals=["SIGTERM", "SIGKILL"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_optimizer_of_another_model_is_an_error_before_anything_is_written(
    corpus: Path, checkpoints: Checkpoints
) -> None:
    job, other = Job(corpus), Job(corpus)
    message = r"parameter 0 of group 0 of the AdamW, of shape \[4, 1\], is none of the model: create the optimizer"
    with pytest.raises(ValueError, match=message):
        checkpoints.save(0, model=job.model, optimizer=other.optimizer)
    with pytest.raises(ValueError, match=message):
        checkpoints.resume(model=job.model, optimizer=[job.optimizer, other.optimizer])
    assert checkpoints.list() == []


@pytest.mark.parametrize("every_s", [-1, 0, "30"])
def test_a_time_that_is_none_is_an_error(checkpoints: Checkpoints, every_s: Any) -> None:
    with pytest.raises(ValueError, match=f"every_s must be a finite number of seconds above 0, not {every_s!r}"):
        checkpoints.due(1, every_s=every_s)


@pytest.mark.parametrize("which", [None, True, 1.0, [1]])
def test_a_checkpoint_is_named_by_a_step_or_a_tag_and_by_nothing_else(checkpoints: Checkpoints, which: Any) -> None:
    checkpoints.save(1, user={"a": 1})
    for call in (checkpoints.load, checkpoints.verify, checkpoints.delete):
        with pytest.raises(TypeError, match="a checkpoint is named by its step, an int, or its tag, a string, not by"):
            call(which)
    assert [each.step for each in checkpoints.list()] == [1]


@pytest.mark.parametrize("async_save", [False, True])
def test_what_was_closed_can_be_read_but_not_saved_to(tmp_path: Path, *, async_save: bool) -> None:
    with Checkpoints(tmp_path, async_save=async_save) as checkpoints:
        checkpoints.save(0, user={"a": 1})
    for call in (checkpoints.resume, lambda: checkpoints.save(1)):
        with pytest.raises(CheckpointError, match="were closed: create others"):
            call()
    assert checkpoints.load(0).user == {"a": 1}
    with pytest.raises(ValueError, match="verify must be one of"):
        checkpoints.load(0, verify="none")  # type: ignore[arg-type]
