"""An exception that a signal handler raises, at any point of `next()`: nothing is lost or repeated.

A handler runs between two steps of the main thread. Between the store that delivers an item and the return of the
iterator, CPython never runs one; anywhere else, the item counts as not delivered, and the next call returns it.
"""

from __future__ import annotations

import dis
import multiprocessing
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import laneway
from laneway import SavableLoader
from laneway.delivery.iterators import PassIterator
from tests.compat.loaders import saved
from tests.compat.savable import make_dataset, make_savable, row_ids
from tests.corpora import write_corpus
from tests.fuzzing import num_cases
from tests.interruption import InterruptError, Interruption, traced

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

PACKAGE = str(Path(laneway.__file__).parent)


def skip_some(row: dict[str, Any]) -> dict[str, Any]:
    """Fail for a third of the rows."""
    if row["id"] % 3 == 0:
        raise ValueError
    return row


def in_parts(row: dict[str, Any]) -> list[dict[str, int]]:
    """Return up to three items of a row."""
    return [{"id": 10 * row["id"] + number} for number in range(row["id"] % 4)]


def as_document(row: dict[str, Any]) -> dict[str, Any]:
    """Return a document of up to six tokens."""
    return {"input_ids": [10 * row["id"] + number for number in range(row["id"] % 7)]}


def as_ids(pack: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens of a pack, by the name that tests read."""
    return {"id": pack["input_ids"]}


KINDS: dict[str, Callable[[Path], Any]] = {
    "dataset of batches": lambda path: make_dataset(path, batch_size=3),
    "dataset of rows": make_dataset,
    "dataset of transformed rows": lambda path: make_dataset(path, transform=dict, lanes=2, turn_rows=4),
    "dataset of rows, some skipped": lambda path: make_dataset(path, transform=skip_some, on_error="skip"),
    "dataset of items": lambda path: make_dataset(path, lanes=2).flat_map(in_parts),
    "dataset of chunks": lambda path: make_dataset(path).map(as_document).pack(4, strategy="chunk").map(as_ids),
    "dataset of packs": lambda path: make_dataset(path).map(as_document).pack(6, group_rows=9).map(as_ids),
    "loader of batches of items": lambda path: SavableLoader(make_dataset(path, lanes=2).flat_map(in_parts).batch(3)),
    "loader of batches": make_savable,
    "loader of rows": lambda path: make_savable(path, "rows in turns"),
    "loader with a progress bar": lambda path: make_savable(path, progress="bar"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 48 rows."""
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


def steps_after_deliveries() -> list[dis.Instruction]:
    """Return the bytecodes from each store that delivers an item, or the end, up to its return."""
    found, is_delivered = [], False
    for step in dis.get_instructions(PassIterator.__next__):
        if is_delivered:
            found.append(step)
        stores = step.opname == "STORE_ATTR" and step.argval in {"taken", "is_over"}
        is_delivered = stores or (is_delivered and step.opname not in {"RETURN_VALUE", "RAISE_VARARGS"})
    return found


def test_after_an_item_is_delivered_an_iterator_only_returns_it() -> None:
    steps = [step.opname for step in steps_after_deliveries()]
    assert {*steps} <= {"LOAD_FAST", "LOAD_GLOBAL", "RETURN_VALUE", "RAISE_VARARGS"}
    assert (steps.count("RETURN_VALUE"), steps.count("RAISE_VARARGS")) == (2, 1)


def interrupted_after(num_steps: int) -> AbstractContextManager[None]:
    """Raise an InterruptError at a place, counted from now."""
    return traced(Interruption(num_steps, PACKAGE))


def num_steps_of(work: Callable[[], object]) -> int:
    """Return the number of places where `work` can be interrupted."""
    counting = Interruption(-1, PACKAGE)
    with traced(counting):
        work()
    return -1 - counting.steps_left


@pytest.mark.parametrize("kind", KINDS)
def test_an_interruption_anywhere_loses_and_repeats_nothing(corpus: Path, kind: str) -> None:
    make = KINDS[kind]
    expected = row_ids(make(corpus))
    whole = make(corpus)
    num_steps = num_steps_of(lambda: list(whole))
    rng = random.Random(kind)
    num_raised = 0
    for _ in range(num_cases(30)):
        source, resumed = make(corpus), make(corpus)
        received: list[list[int]] = []
        items = iter(source)
        with interrupted_after(rng.randrange(1, num_steps)):
            try:
                for item in items:
                    received += row_ids([item])
            except InterruptError:
                num_raised += 1
            else:
                continue
        resumed.load_state_dict(saved(source.state_dict()))
        assert received + row_ids(resumed) == expected
        assert received + row_ids(items) == expected, "the same iterator continues"
        assert source.epoch == 0
    assert num_raised > num_cases(30) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_pass_after_an_interruption_is_the_same_epoch_only_if_nothing_was_received(
    corpus: Path, kind: str
) -> None:
    make = KINDS[kind]
    source = make(corpus)
    epochs = [row_ids(source), row_ids(source)]
    items = iter(make(corpus))
    num_steps = num_steps_of(lambda: next(items)) - 5
    for step in random.Random(kind).sample(range(1, num_steps), min(num_cases(20), num_steps - 1)):
        source = make(corpus)
        with interrupted_after(step), pytest.raises(InterruptError):
            list(source)
        assert row_ids(source) == epochs[0]
        assert row_ids(source) == epochs[1]


MIN_ALARMS = 4
"""Alarms without which a test of them says too little."""


class Alarms:
    """Raises an error from the handler of a timer, at random times, while it is armed."""

    def __init__(self) -> None:
        """Start unarmed."""
        self._rng = random.Random(7)
        self.is_armed = False
        self.num_raised = 0

    def __call__(self, *_: object) -> None:
        """Handle the signal."""
        if self.is_armed:
            self.is_armed = False
            self.num_raised += 1
            raise InterruptError

    def arm(self, max_delay_s: float) -> None:
        """Raise once, after a random time."""
        self.is_armed = True
        signal.setitimer(signal.ITIMER_REAL, self._rng.uniform(1e-5, max_delay_s))


def train_under_alarms(corpus: Path, way: Any, num_workers: int, answers: multiprocessing.Queue[Any]) -> None:
    """Interrupt passes until there were enough alarms; answer with their number and what was wrong."""
    alarms = Alarms()
    signal.signal(signal.SIGALRM, alarms)
    # A spawned process would spawn its workers, too, and none would start before the next alarm.
    multiprocessing.set_start_method("fork", force=True)
    # The error is raised in finalizers and in the hooks of fork, too, which can only report it.
    sys.unraisablehook = lambda _: None
    expected = row_ids(make_savable(corpus, way, num_workers=num_workers))
    deadline = time.monotonic() + num_cases(30) / 10

    def go_on() -> bool:
        """Return whether there were too few alarms: on a slow machine, they take longer."""
        is_early = time.monotonic() < deadline or alarms.num_raised < MIN_ALARMS
        return alarms.num_raised < num_cases(30) and is_early

    wrong = []
    while go_on():
        items = iter(make_savable(corpus, way, num_workers=num_workers))
        received: list[Any] = []
        is_over = False
        while not is_over:
            try:
                # On a busy machine, workers may take longer to start than any alarm: in the end, they have the time.
                is_interrupted = go_on()
                if is_interrupted:
                    alarms.arm(0.1 if num_workers else 0.02)
                for item in items:
                    # Nothing that could be interrupted between the delivery and this.
                    received.append(item)  # noqa: PERF402
                is_over = True
            except BaseException:
                # Interrupted, the threading module may raise a RuntimeError instead.
                if alarms.is_armed or not is_interrupted:
                    raise
            finally:
                # Not a method: an alarm may be raised where a function begins.
                alarms.is_armed = False
        if row_ids(received) != expected:
            wrong.append(row_ids(received))
    signal.setitimer(signal.ITIMER_REAL, 0)
    answers.put((alarms.num_raised, wrong))


@pytest.mark.parametrize(("way", "num_workers"), [("batches", 0), ("rows in turns", 0), ("batches", 2)])
def test_alarms_at_random_times_lose_and_repeat_nothing(corpus: Path, way: Any, num_workers: int) -> None:
    # In a process of its own: an alarm inside of a library, such as logging, can leave a lock of it locked for ever.
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=train_under_alarms, args=(corpus, way, num_workers, answers))
    process.start()
    num_raised, wrong = answers.get(timeout=600)
    process.join()
    assert process.exitcode == 0
    assert wrong == []
    assert num_raised >= MIN_ALARMS
