"""The examples that `make demo` does not run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_tabular_example_trains_on_every_wanted_row_and_evaluates_the_others() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "tabular.py"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every wanted row was trained on or evaluated, none both" in done.stdout
