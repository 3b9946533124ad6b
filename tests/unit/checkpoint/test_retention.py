"""Which checkpoints are kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.checkpoint.layout import Checkpoint
from laneway.checkpoint.retention import KeepBest, KeepEvery, KeepLatest, Policy, to_delete


def run(steps: list[int], losses: list[float] | None = None) -> list[Checkpoint]:
    values = losses or [0.0] * len(steps)
    return [
        Checkpoint(number, step, metrics={"loss": loss})
        for number, (step, loss) in enumerate(zip(steps, values, strict=True), 1)
    ]


def kept(checkpoints: list[Checkpoint], *policies: Policy, resumed_from: int | None = None) -> list[int]:
    gone = {each.number for each in to_delete(checkpoints, policies, resumed_from)}
    return [each.step for each in checkpoints if each.number not in gone]


def test_without_a_policy_everything_is_kept() -> None:
    assert kept(run([1, 2, 3])) == [1, 2, 3]


def test_the_latest_are_kept() -> None:
    assert kept(run([1, 2, 3, 4]), KeepLatest(2)) == [3, 4]


def test_the_first_of_each_span_is_kept() -> None:
    assert kept(run([50, 90, 110, 150, 210, 250, 290]), KeepEvery(100)) == [110, 210, 290]


def test_the_best_are_kept_besides_the_newest() -> None:
    checkpoints = run([1, 2, 3, 4, 5], [3.0, 1.0, math.nan, 2.0, 9.0])
    assert kept(checkpoints, KeepBest(2, "loss")) == [2, 4, 5]
    assert kept(checkpoints, KeepBest(1, "loss", "max")) == [5]
    assert kept(checkpoints, KeepBest(1, "accuracy", "max")) == [5]


def test_what_one_policy_keeps_is_kept() -> None:
    checkpoints = run([100, 150, 200, 250], [1.0, 0.5, 3.0, 4.0])
    assert kept(checkpoints, KeepLatest(1), KeepEvery(100), KeepBest(1, "loss")) == [100, 150, 200, 250]


def test_a_tag_is_kept() -> None:
    tagged = Checkpoint(1, 10, tag="release")
    assert kept([tagged, Checkpoint(2, 20), Checkpoint(3, 30)], KeepLatest(1)) == [10, 30]


def test_nothing_is_deleted_before_there_is_a_checkpoint_newer_than_the_one_that_was_resumed_from() -> None:
    checkpoints = run([1, 2, 3])
    assert kept(checkpoints, KeepLatest(1), resumed_from=3) == [1, 2, 3]
    assert kept(checkpoints, KeepLatest(1), resumed_from=2) == [3]


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 4), st.integers(1, 20))
def test_deleting_again_and_again_keeps_what_deleting_once_keeps(steps: list[int], count: int, span: int) -> None:
    policies = (KeepLatest(count), KeepEvery(span))
    at_once = kept(run(steps), *policies)
    left: list[Checkpoint] = []
    for checkpoint in run(steps):
        left.append(checkpoint)
        gone = to_delete(left, policies, None)
        left = [each for each in left if each not in gone]
    assert [each.step for each in left] == at_once


@pytest.mark.parametrize("make", [lambda: KeepLatest(0), lambda: KeepEvery(0), lambda: KeepBest(0, "loss")])
def test_a_count_below_one_is_an_error(make: object) -> None:
    with pytest.raises(ValueError, match="must be an int of at least 1"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("metric", [None, 3, ["loss"]])
def test_a_metric_without_a_name_is_an_error(metric: Any) -> None:
    with pytest.raises(TypeError, match="metric must be the name of a metric, not"):
        KeepBest(1, metric)
