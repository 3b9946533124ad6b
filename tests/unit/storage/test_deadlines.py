"""Calls with a time limit."""

from __future__ import annotations

import threading

import pytest

from laneway.storage.deadlines import call_within, run_within


def test_results_and_errors_come_back_in_the_order_of_the_calls() -> None:
    def fail() -> int:
        raise KeyError

    results = run_within([*(lambda number=number: number for number in range(40)), fail], 60)
    assert results[:-1] == list(range(40))
    assert isinstance(results[-1], KeyError)
    assert run_within([], 60) == []


def test_a_call_that_exceeds_the_limit_is_a_timeout_and_does_not_delay_the_others() -> None:
    finish = threading.Event()
    try:
        late, done = run_within([finish.wait, lambda: True], 0.2)
        assert isinstance(late, TimeoutError)
        assert done is True
        with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
            call_within(finish.wait, 0.1)
    finally:
        finish.set()
