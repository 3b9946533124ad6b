"""TRL's SFTTrainer over a SavableLoader: as transformers.Trainer, of which it is one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from laneway import SavableLoader
from tests.corpora import write_corpus
from tests.frameworks.training import NUM_EPOCHS, NUM_ROWS, Run, Trained, needs, read_log, rows

if TYPE_CHECKING:
    from pathlib import Path

# The warnings are those of the frameworks about themselves.
pytestmark = [needs("trl"), pytest.mark.filterwarnings("ignore")]


class Stopped(Exception):  # noqa: N818 - it is not an error
    """Training was stopped."""


def tokens(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return sequences of two tokens, each the id of its row."""
    ids = batch["id"][:, None].expand(-1, 2).contiguous()
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def train(run: Run, stop_at: int | None = None) -> None:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    from laneway.integrations.hf import LanewayTrainerMixin

    class Recording(LanewayTrainerMixin, SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
            if run.num_taken == stop_at:
                raise Stopped
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
        save_strategy="steps",
        save_steps=5,
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


def test_training_that_was_stopped_resumes_exactly(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    whole, stopped, after = (
        Run(tmp_path / "corpus", tmp_path / folder, name)
        for folder, name in (("one", "whole"), ("two", "stopped"), ("two", "after"))
    )
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    train(whole)
    with pytest.raises(Stopped):
        train(stopped, stop_at=22)
    train(replace(after, resumes=True))
    expected = read_log(whole, 0)
    assert sorted(rows([Trained(expected, None)])) == sorted([*range(NUM_ROWS)] * NUM_EPOCHS)
    assert read_log(stopped, 0)[:20] + read_log(after, 0) == expected
