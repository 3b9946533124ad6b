"""transformers.Trainer over a SavableLoader: training that was killed resumes exactly, on more ranks too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.corpora import write_corpus
from tests.frameworks.training import (
    BATCH_ROWS,
    NUM_EPOCHS,
    NUM_ROWS,
    Run,
    check_killed_and_resumed,
    check_resumed_on_more_ranks,
)

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate")


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
