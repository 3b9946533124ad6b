"""Progress, as values."""

from __future__ import annotations

import pytest

from laneway.core.progress import CutProgress, LanePosition, Progress, current_cut, fresh_cut


def test_an_unknown_lane_counts_as_not_started() -> None:
    cut = CutProgress(4, 2, 6, {3: LanePosition(5, 1), 1: LanePosition(2)})
    assert cut.rows().tolist() == [0, 2, 0, 5]
    assert cut.all_positions() == (LanePosition(), LanePosition(2), LanePosition(), LanePosition(5, 1))


def test_a_fresh_cut_knows_every_lane() -> None:
    assert fresh_cut(2, 3) == CutProgress(2, 3, 0, {0: LanePosition(0, 0), 1: LanePosition(0, 0)})


def test_an_epoch_without_a_cut_has_no_present_cut() -> None:
    cut = fresh_cut(1, 1)
    assert current_cut(Progress(7, cut=cut)) is cut
    with pytest.raises(ValueError, match="epoch 7 has not been cut"):
        current_cut(Progress(7))
