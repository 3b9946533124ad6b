"""What CI tries, and what only `make test-thorough` tries."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from _pytest.mark import ParameterSet


def num_cases(default: int) -> int:
    """Return the number of cases: `default`, or LANEWAY_FUZZ_CASES of the environment."""
    return int(os.environ.get("LANEWAY_FUZZ_CASES", default))


def thorough(*values: Any) -> ParameterSet:
    """Return values of a parametrized test that CI leaves out, since others exercise nearly the same code."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def ci_tries(chosen: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return the values of a parametrized test, of which CI tries only the chosen ones."""
    return [value if value in chosen else thorough(value) for value in values]
