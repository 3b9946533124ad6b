"""How many cases the fuzzers try."""

from __future__ import annotations

import os


def num_cases(default: int) -> int:
    """Return the number of cases: `default`, or LANEWAY_FUZZ_CASES of the environment."""
    return int(os.environ.get("LANEWAY_FUZZ_CASES", default))
