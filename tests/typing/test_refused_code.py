"""Mistakes that mypy finds before a job starts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

MISTAKES = """
from laneway import Manifest, RetryPolicy, SavableLoader, StatefulShardedDataset, merge_states
from laneway.dcp import GatheredState
from laneway.distributed import scan_once

StatefulShardedDataset()  # call-arg
StatefulShardedDataset(7)  # arg-type
StatefulShardedDataset("d", "parquet")  # call-arg
StatefulShardedDataset("d", batch_sise=4)  # call-arg
StatefulShardedDataset("d", format=1)  # arg-type
StatefulShardedDataset("d", batch_size="4")  # arg-type
StatefulShardedDataset("d", remainder="pads")  # arg-type
StatefulShardedDataset("d", output="jax")  # arg-type
StatefulShardedDataset("d", transform=4)  # arg-type
StatefulShardedDataset("d", retries=3)  # arg-type
dataset = StatefulShardedDataset("d")
dataset.epoch = 3  # misc
dataset.set_epoch("1")  # arg-type
dataset.load_state_dict(None)  # arg-type
dataset.load_state_dict([])  # arg-type
dataset.shard(2)  # call-arg
dataset.shards[0].row_offset = 3  # misc
loader = SavableLoader(dataset)
SavableLoader("d")  # arg-type
SavableLoader(dataset, shuffle=True)  # call-arg
loader.load_state_dict(loader.save_state_global())  # arg-type
loader.restore_state_global()  # call-arg
loader.state_dict().epoch  # attr-defined
next(loader)  # call-overload
merge_states(loader.state_dict())  # arg-type
GatheredState(dataset)  # arg-type
Manifest.scan("d", batch_size=4)  # call-arg
RetryPolicy(3)  # call-arg
RetryPolicy().max_attempts = 3  # misc
scan_once("d").no_such_member  # attr-defined
"""
"""Each line that ends in a comment is an error, of the code that the comment names."""


def test_mistakes_are_type_errors_where_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "mistakes.py"
    path.write_text(MISTAKES)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-pretty", str(path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    lines = MISTAKES.splitlines()
    errors = re.findall(r"mistakes\.py:(\d+): error: .*\[([a-z-]+)\]$", finished.stdout, re.MULTILINE)
    found = [f"{lines[int(line) - 1].partition('  # ')[0]}  # {code}" for line, code in errors]
    assert found == [line for line in lines if "  # " in line], finished.stdout
