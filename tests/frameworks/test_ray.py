"""Ray Train: a SavableLoader in each worker of a TorchTrainer, and its state in the checkpoints that Ray reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laneway import LanewayError, SavableLoader, StatefulShardedDataset
from tests.corpora import write_corpus
from tests.frameworks.training import needs

# The warnings are those of Ray about itself.
pytestmark = [needs("ray"), pytest.mark.filterwarnings("ignore")]

SAVE_AT = 5


def train(config: dict[str, Any]) -> None:
    """Train an epoch on one worker of Ray, from a checkpoint if there is one; the first attempt fails."""
    import tempfile

    import ray.train.torch
    from ray.train import Checkpoint, get_checkpoint, get_context, report

    rank = get_context().get_world_rank()
    dataset = StatefulShardedDataset(config["corpus"], columns=["id"], shuffle=True, shard_rows=4, batch_size=3)
    loader, checkpoint = SavableLoader(dataset, num_workers=0), get_checkpoint()
    if "checkpoint" in config:
        checkpoint = Checkpoint(config["checkpoint"])
    if checkpoint is None:
        with pytest.raises(LanewayError, match="takes one batch more than the training loop"):
            next(iter(ray.train.torch.prepare_data_loader(loader)))
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            loader.load_state_dict(json.loads(Path(folder, "loader.json").read_text()))
    attempt = config.get("name") or ("second" if checkpoint else "first")
    for num_batches, batch in enumerate(loader, start=1):
        with Path(config["folder"], f"{attempt}-{rank}.jsonl").open("a") as log:
            log.write(json.dumps(batch["id"].tolist()) + "\n")
        if checkpoint is None and num_batches == SAVE_AT:
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "loader.json").write_text(json.dumps(loader.state_dict()))
                report({}, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)
        if checkpoint is None and num_batches == SAVE_AT + 1:
            message = "the worker fails"
            raise RuntimeError(message)


def test_workers_that_failed_resume_exactly_and_so_do_more_of_them(tmp_path: Path) -> None:
    ray: Any = pytest.importorskip("ray")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    num_rows = write_corpus(tmp_path / "corpus")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        config = {"corpus": str(tmp_path / "corpus"), "folder": str(tmp_path)}
        result = TorchTrainer(
            train,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=1)),
        ).fit()
        TorchTrainer(
            train,
            train_loop_config={**config, "name": "more", "checkpoint": result.checkpoint.path},
            scaling_config=ScalingConfig(num_workers=3),
            run_config=RunConfig(storage_path=str(tmp_path)),
        ).fit()
    finally:
        ray.shutdown()
    before = [row for rank in range(2) for batch in read(tmp_path / f"first-{rank}.jsonl")[:SAVE_AT] for row in batch]
    after = [row for rank in range(2) for batch in read(tmp_path / f"second-{rank}.jsonl") for row in batch]
    assert sorted(before + after) == list(range(num_rows))
    more = [row for rank in range(3) for batch in read(tmp_path / f"more-{rank}.jsonl") for row in batch]
    assert {*before, *more} == {*range(num_rows)}
    # One row of each rank may be repeated as padding.
    assert len(before + more) <= num_rows + 3


def read(log: Path) -> list[list[int]]:
    return [json.loads(line) for line in log.read_text().splitlines()]
