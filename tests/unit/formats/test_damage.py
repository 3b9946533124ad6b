"""Damaged data files: reading one gives its rows or a DataFileError, and never a crash, a hang or another error."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.fuzzing import num_cases
from tests.unit.formats.damage import KINDS, MAX_SECONDS_PER_CASE, Kind

if TYPE_CHECKING:
    from pathlib import Path


def _results(kind: Kind, cases: int, directory: Path) -> dict[int, str]:
    """Return the result of each case; a process that dies counts as the result of the case that it was reading."""
    results: dict[int, str] = {}
    while len(results) < cases:
        command = [
            sys.executable,
            "-m",
            "tests.unit.formats.damage",
            kind,
            str(len(results)),
            str(cases),
            str(directory),
        ]
        limit_s = 60 + MAX_SECONDS_PER_CASE * (cases - len(results))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
        lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
        results |= {int(number): result for event, number, result in lines if event == "end"}
        if done.returncode != 0:
            began = [(int(number), name) for event, number, name in lines if event == "begin"]
            assert began, done.stderr
            results[began[-1][0]] = f"other: killed by {-done.returncode} while reading {began[-1][1]}"
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_all_its_rows_or_a_data_file_error(tmp_path: Path, kind: Kind) -> None:
    # Most bits of a value may be flipped without a trace: of a file that is read, only the number of rows is certain.
    # It is all rows, except for a stream that is cut between two messages, which is a shorter stream.
    results = _results(kind, num_cases(200), tmp_path)
    others = {number: result for number, result in results.items() if result not in {"rows", "error"}}
    assert not others
    counts = Counter(results.values())
    sys.stdout.write(f"{kind}: {dict(counts)}\n")
    assert counts["rows"] > 0
    assert counts["error"] > 0
