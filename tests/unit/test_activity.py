"""What threads are doing, in memory that another process may read."""

from __future__ import annotations

from laneway.activity import NUM_CELLS, STAGE, Activity, Doing, Stage, read_activity


def seen(cells: memoryview) -> list[tuple[Stage, str]]:
    return [(each.stage, each.place) for each in read_activity(cells)[1]]


def test_the_slowest_thread_comes_first_and_ended_ones_are_gone() -> None:
    cells = memoryview(bytearray(8 * NUM_CELLS)).cast("q")
    activity = Activity(cells)
    assert read_activity(cells) == (Stage.START, [])
    first, second = activity.take_slot(), activity.take_slot()
    cells[STAGE] = Stage.WAIT
    activity.begin_part(first, "row group 1 of a.parquet")
    activity.begin_part(second, "row group 2 of b.parquet")
    before = activity.enter(second, Stage.READ)
    assert seen(cells) == [
        (Stage.DECODE, "row group 1 of a.parquet"),
        (Stage.READ, "row group 2 of b.parquet"),
    ]
    activity.leave(second, before)
    assert seen(cells)[1] == (Stage.DECODE, "row group 2 of b.parquet")
    activity.give_back(first)
    stage, threads = read_activity(cells)
    assert (stage, [each.place for each in threads]) == (Stage.WAIT, ["row group 2 of b.parquet"])
    assert isinstance(threads[0], Doing)
    assert threads[0].seconds >= 0


def test_of_a_long_path_the_end_is_kept() -> None:
    activity = Activity()
    slot = activity.take_slot()
    activity.begin_part(slot, "row group 1 of " + "directory/" * 40 + "é/part-0.parquet")
    ((_, place),) = seen(activity.cells)
    assert place.endswith("directory/é/part-0.parquet")
    assert len(place.encode()) == 240


def test_threads_without_a_slot_are_not_shown_and_slots_are_used_again() -> None:
    activity = Activity()
    slots = []
    while (slot := activity.take_slot()) is not None:
        slots.append(slot)
    activity.begin_part(None, "row group 1 of a.parquet")
    before = activity.enter(None, Stage.READ)
    assert seen(activity.cells) == []
    activity.leave(None, before)
    activity.give_back(None)
    activity.give_back(slots[0])
    assert activity.take_slot() == slots[0]
    # Another stream of the same worker starts without any of it.
    Activity(activity.cells)
    assert read_activity(activity.cells) == (Stage.START, [])


def test_every_stage_has_a_text() -> None:
    assert all(each.text and each.past for each in Stage)
