"""What a pass has delivered; passes of streams and of loaders are tested with them."""

from __future__ import annotations

from laneway.core.cursor import Cursor, LaneRange
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import LanePosition, Progress, current_cut
from laneway.core.turns import WorkerPlace
from laneway.delivery.passes import Delivery, RowsDelivery
from tests.laws.simulation import PLAIN, file_table, open_epoch


def cursor_of(options: LaneOptions) -> Cursor:
    """Return the cursor of a single worker at the start of an epoch of 8 rows."""
    return open_epoch(Identity(file_table([[8]]), PLAIN), Progress(0), WorkerPlace(), options)


def test_a_batch_counts_once_it_is_taken() -> None:
    cursor = cursor_of(LaneOptions(2, 4, 4))
    delivery = Delivery(0, [(0, LanePosition(4))], before=7)
    delivery.count(cursor)
    assert (current_cut(cursor.progress()).rows().tolist(), delivery.num_delivered) == ([0, 0], 7)
    delivery.taken = 1
    delivery.count(cursor)
    assert (current_cut(cursor.progress()).rows().tolist(), delivery.num_delivered) == ([4, 0], 8)
    Delivery(taken=1).count(cursor)
    assert current_cut(cursor.progress()).rows().tolist() == [4, 0]


def test_rows_count_as_far_as_they_are_taken() -> None:
    cursor = cursor_of(LaneOptions(2, 4, None))
    cursor.deliver_rows(0, LaneRange(0, 0, 1))
    delivery = RowsDelivery(0, LaneRange(0, 1, 4), ["b", "c", "d"], is_ready=True)
    assert delivery.num_ready == 3
    for taken, turn in ((0, 0), (2, 0), (3, 1)):
        delivery.taken = taken
        delivery.count(cursor)
        assert (current_cut(cursor.progress()).rows().tolist(), cursor.next_turn) == ([1 + taken, 0], turn)
    assert RowsDelivery(0, LaneRange(0, 1, 4), ["b", "c", "d"], is_ready=False).num_ready == 0
