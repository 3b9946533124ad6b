"""TRL's SFTTrainer over a SavableLoader: as transformers.Trainer, of which it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from laneway import SavableLoader
from tests.corpora import write_corpus
from tests.frameworks.training import (
    BATCH_ROWS,
    NUM_EPOCHS,
    NUM_ROWS,
    Run,
    check_killed_and_resumed,
    check_resumed_on_more_ranks,
    needs,
)

if TYPE_CHECKING:
    from pathlib import Path

# The warnings are those of the frameworks about themselves.
pytestmark = [needs("trl"), pytest.mark.filterwarnings("ignore")]


def tokens(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return sequences of two tokens, each the id of its row."""
    ids = batch["id"][:, None].expand(-1, 2).contiguous()
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def train(run: Run) -> None:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    from laneway.integrations.hf import LanewayTrainerMixin

    class Recording(LanewayTrainerMixin, SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
            run.record(inputs["input_ids"][:, 0])
            return SFTTrainer.training_step(self, model, inputs, *args)

    config = LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, use_cache=False
    )
    vocabulary = {f"t{index}": index for index in range(64)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")), eos_token="t1", pad_token="t2"
    )
    arguments = SFTConfig(
        output_dir=str(run.folder / "trl"),
        use_cpu=True,
        bf16=False,
        num_train_epochs=NUM_EPOCHS,
        save_strategy="steps" if run.save_at else "no",
        save_steps=run.save_at or 1,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = Recording(
        LlamaForCausalLM(config),
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"input_ids": [0, 0], "labels": [0, 0]}]),
        train_loader=SavableLoader(run.dataset(), num_workers=run.num_workers, collate_fn=tokens),
    )
    trainer.train(resume_from_checkpoint=run.resumes)


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_training_resumes_exactly(tmp_path: Path, world_size: int) -> None:
    write_corpus(tmp_path / "corpus")
    save_at = NUM_ROWS // BATCH_ROWS // world_size + 4
    run = Run(tmp_path / "corpus", tmp_path, "", save_at=save_at, die_at=save_at + 2, world_size=world_size)
    check_killed_and_resumed(train, run)
    if world_size == 2:
        check_resumed_on_more_ranks(train, run, 3)
