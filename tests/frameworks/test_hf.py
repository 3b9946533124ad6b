"""transformers.Trainer over a SavableLoader: training that was killed resumes exactly, on more ranks too."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from laneway import LanewayError
from tests.corpora import write_corpus
from tests.frameworks.training import (
    BATCH_ROWS,
    NUM_EPOCHS,
    NUM_ROWS,
    Run,
    Trained,
    check_killed_and_resumed,
    check_resumed_on_more_ranks,
    needs,
    read_log,
    rows,
    run_all,
)

if TYPE_CHECKING:
    from pathlib import Path

# The warnings are those of transformers, accelerate and torch about themselves.
pytestmark = [needs("transformers", "accelerate"), pytest.mark.filterwarnings("ignore")]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, id: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: A002 - a column's name
        return {"loss": self.linear(x.float()[:, None]).pow(2).mean() + 0 * id.sum()}


def arguments(run: Run, **options: Any) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(run.folder / "hf"),
        use_cpu=True,
        num_train_epochs=NUM_EPOCHS,
        gradient_accumulation_steps=run.per_step,
        save_strategy="steps" if run.save_at else "no",
        save_steps=(run.save_at or 1) // run.per_step,
        logging_strategy="steps",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        **options,
    )


def train(run: Run) -> dict[str, Any]:
    from transformers import Trainer

    from laneway.integrations.hf import LanewayTrainerMixin

    class Recording(LanewayTrainerMixin, Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
            run.record(inputs["id"])
            return Trainer.training_step(self, model, inputs, *args)

    trainer = Recording(Model(), arguments(run), train_loader=run.loader())
    checkpoint = run.folder / f"hf/checkpoint-{(run.save_at or 0) // run.per_step}"
    if run.resumes:
        (checkpoint,) = (run.folder / "hf").glob("checkpoint-*")
    trainer.train(resume_from_checkpoint=str(checkpoint) if run.resumes else None)
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "steps": trainer.state.global_step,
        "max_steps": trainer.state.max_steps,
        "epochs": [entry["epoch"] for entry in history],
        "rates": [entry["learning_rate"] for entry in history],
        "losses": [entry["loss"] for entry in history],
    }


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_training_resumes_exactly_with_whole_steps(tmp_path: Path, world_size: int) -> None:
    assert write_corpus(tmp_path / "corpus") == NUM_ROWS
    per_epoch = NUM_ROWS // BATCH_ROWS // world_size
    run = Run(
        tmp_path / "corpus",
        tmp_path,
        "",
        save_at=per_epoch + 4,
        die_at=per_epoch + 6,
        per_step=2,
        world_size=world_size,
    )
    whole, after = check_killed_and_resumed(train, run)
    for one, two in zip(whole, after, strict=True):
        assert two.result == one.result
        assert two.result["steps"] == two.result["max_steps"] == NUM_EPOCHS * math.ceil(per_epoch / 2)
        assert two.result["epochs"][-1] == NUM_EPOCHS
    if world_size == 2:
        (more, *_) = check_resumed_on_more_ranks(train, run, 3)
        assert more.result["steps"] == more.result["max_steps"]
        assert more.result["epochs"][-1] == NUM_EPOCHS
        assert more.result["epochs"] == sorted(more.result["epochs"])


def test_the_learning_rate_reaches_its_end_on_another_number_of_ranks(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    run = Run(tmp_path / "corpus", tmp_path, "killed", save_at=6, die_at=7, num_workers=0, world_size=2)
    run_all(train, run)
    single = replace(run, name="one", save_at=None, die_at=None, resumes=True, world_size=1)
    (one,) = run_all(train, single)
    # Rank 0 had trained 6 of 8 batches in 6 steps; what is left of the epoch, 12 rows, makes 4 batches of one rank.
    assert one.result["steps"] == one.result["max_steps"] == 6 + 4 + 2 * NUM_ROWS // BATCH_ROWS
    assert len(one.batches) == 4 + 2 * NUM_ROWS // BATCH_ROWS
    assert 0 <= one.result["rates"][-1] < one.result["rates"][0] / 10


def plain(run: Run, loader: Any = None, **options: Any) -> None:
    """Train with a Trainer that knows nothing of laneway, on a loader or on the dataset itself."""
    from transformers import Trainer

    class Plain(Trainer):
        def get_train_dataloader(self) -> Any:
            return loader or Trainer.get_train_dataloader(self)

        def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
            run.record(inputs["id"])
            return Trainer.training_step(self, model, inputs, *args)

    dataset = run.dataset(batch_size=None, output="torch")
    trainer = Plain(Model(), arguments(run, per_device_train_batch_size=BATCH_ROWS, **options), train_dataset=dataset)
    trainer.train(resume_from_checkpoint=run.resumes)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("has_loader", [True, False])
def test_a_plain_trainer_does_not_resume_in_mid_epoch(tmp_path: Path, skips: bool, has_loader: bool) -> None:
    write_corpus(tmp_path / "corpus")
    run = Run(tmp_path / "corpus", tmp_path, "plain", save_at=5, num_workers=0)
    plain(run, run.loader() if has_loader else None, max_steps=5)
    with pytest.raises(LanewayError, match=r"use laneway\.integrations\.hf\.LanewayTrainerMixin"):
        plain(replace(run, resumes=True), run.loader() if has_loader else None, ignore_data_skip=not skips)


def test_a_dataset_of_ranks_is_refused_as_train_dataset(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    for rank in run_all(plain_refusal, Run(tmp_path / "corpus", tmp_path, "", world_size=2)):
        assert "already shared them out among 2 ranks" in rank.result


def plain_refusal(run: Run) -> str:
    with pytest.raises(LanewayError) as refused:
        plain(run)
    return str(refused.value)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_rows_that_several_workers_batch_are_refused(tmp_path: Path, num_workers: int) -> None:
    # Two workers with 13 rows each make 10 batches, and a Trainer expects ceil(26 / 3) = 9.
    write_corpus(tmp_path / "corpus", files=((10,), (10,), (6,)))
    run = Run(tmp_path / "corpus", tmp_path, "workers")
    if num_workers > 1:
        with pytest.raises(LanewayError, match="each of the 2 workers makes batches of its own rows"):
            plain(run, dataloader_num_workers=num_workers)
        return
    plain(run, dataloader_num_workers=num_workers)
    assert Counter(rows([Trained(read_log(run, 0), None)])) == dict.fromkeys(range(26), NUM_EPOCHS)


def test_what_the_mixin_overrides_is_what_a_trainer_calls() -> None:
    from transformers import Trainer, trainer

    called = {
        "_inner_training_loop": ["batch_size", "args", "resume_from_checkpoint"],
        "set_initial_training_values": ["args", "dataloader"],
        "_run_epoch": ["epoch", "steps_in_epoch", "num_update_steps_per_epoch", "steps_trained_in_current_epoch"],
        "_init_training_state": ["max_steps", "resume_from_checkpoint"],
    }
    for name, parameters in called.items():
        assert set(parameters) <= set(inspect.signature(getattr(Trainer, name)).parameters)
    for name in ("skip_first_batches", "TRAINER_STATE_NAME"):
        assert name in vars(trainer)


def test_a_checkpoint_without_the_loader_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    run = Run(tmp_path / "corpus", tmp_path, "without", save_at=5, num_workers=0)
    plain(run, max_steps=5)
    with pytest.raises(LanewayError, match="holds no state of the loader"):
        train(replace(run, resumes=True))
