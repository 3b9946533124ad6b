"""DLIO takes the loader by its name, and each rank gets its own rows: with the real benchmark, and MPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# MPI starts when DLIO is imported, and ends with the process: only the ranks import it.
ROOT = Path(__file__).resolve().parents[2]
NUM_FILES, FILE_ROWS, BATCH_ROWS, RANKS, EPOCHS = 2, 24, 4, 2, 2
RECORDING = """
import json, os
from laneway.integrations.dlio import LanewayDataLoader

class Recording(LanewayDataLoader):
    def next(self):
        epoch = self.epoch_number
        for batch in super().next():
            with open(f"rank-{self._args.my_rank}.jsonl", "a") as file:
                file.write(json.dumps([epoch, sorted(batch), batch["id"].tolist()]) + "\\n")
            yield batch
"""
WORKLOAD = f"""
model: {{name: small}}
framework: pytorch
workflow: {{generate_data: False, train: True, checkpoint: False}}
dataset:
  data_folder: data
  format: parquet
  num_files_train: {NUM_FILES}
  num_samples_per_file: {FILE_ROWS}
  parquet: {{columns: [{{name: id}}, {{name: values}}, {{name: unread, read: false}}]}}
reader:
  data_loader: pytorch
  data_loader_classname: recording.Recording
  data_loader_sampler: iterative
  batch_size: {BATCH_ROWS}
  read_threads: 1
  sample_shuffle: seed
train: {{epochs: {EPOCHS}, computation_time: 0.001}}
"""


def has_dlio() -> bool:
    """Return whether DLIO is installed, of a release that knows Parquet."""
    if find_spec("dlio_benchmark") is None:
        return False
    code = "from dlio_benchmark.common.enumerations import FormatType; FormatType.PARQUET"
    return (
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not has_dlio(), reason="needs DLIO, as MLPerf Storage has it")
def test_each_rank_of_dlio_gets_its_own_rows_of_each_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "valid").mkdir()
    for index in range(NUM_FILES):
        ids = range(index * FILE_ROWS, (index + 1) * FILE_ROWS)
        table = pa.table({"id": ids, "values": [[float(i)] * 3 for i in ids], "unread": ids})
        fixed = table.set_column(1, "values", table["values"].cast(pa.list_(pa.float32(), 3)))
        pq.write_table(fixed, folder / f"img_{index}_of_{NUM_FILES}.parquet", row_group_size=8)
    (tmp_path / "recording.py").write_text(RECORDING, encoding="utf-8")
    (tmp_path / "configuration" / "workload").mkdir(parents=True)
    (tmp_path / "configuration" / "workload" / "small.yaml").write_text(WORKLOAD, encoding="utf-8")
    # It would empty the page cache of the machine.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sudo").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "bin" / "sudo").chmod(0o755)
    programs = Path(sys.executable).parent
    command = [
        *(str(programs / "mpiexec"), "-n", str(RANKS), sys.executable, "-W", "ignore", "-m", "dlio_benchmark.main"),
        *("--config-dir", str(tmp_path / "configuration"), "workload=small"),
    ]
    paths = [str(tmp_path), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[METRIC] Training Accelerator Utilization" in done.stdout + done.stderr
    ranks = [
        [json.loads(line) for line in (tmp_path / f"rank-{rank}.jsonl").read_text(encoding="utf-8").splitlines()]
        for rank in range(RANKS)
    ]
    orders = []
    for epoch in range(1, EPOCHS + 1):
        batches = [[ids for number, _, ids in of_rank if number == epoch] for of_rank in ranks]
        assert [len(of_rank) for of_rank in batches] == [NUM_FILES * FILE_ROWS // BATCH_ROWS // RANKS] * RANKS
        orders.append([i for of_rank in batches for ids in of_rank for i in ids])
        assert sorted(orders[-1]) == list(range(NUM_FILES * FILE_ROWS))
    assert orders[0] != orders[1]
    assert {tuple(columns) for of_rank in ranks for _, columns, _ in of_rank} == {("id", "values")}
