"""Functions that are called in sequence."""

from __future__ import annotations

import pickle
from typing import Any

from laneway.delivery.context import RowContext
from laneway.delivery.transforms import Transforms


def add_row(value: Any, context: RowContext) -> Any:
    return value + context.row


def test_functions_are_called_in_order_and_can_be_pickled() -> None:
    assert Transforms()(-3) == -3
    both = Transforms().then(abs).then(str)
    assert both(-3) == "3"
    assert pickle.loads(pickle.dumps(both.then(len)))(-30) == 2


def test_only_functions_that_take_a_context_are_passed_one() -> None:
    plain = Transforms().then(abs)
    transforms = plain.then(add_row, takes_context=True).then(str)
    assert [bool(each) for each in (Transforms(), plain)] == [False, True]
    assert [each.takes_context for each in (plain, transforms)] == [False, True]
    assert transforms(-3, RowContext(0, "a.parquet", 40, 7)) == "43"
