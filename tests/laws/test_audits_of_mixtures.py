"""Law: an audit accepts the checkpoints of every right run of a mixture, and finds whatever was wrong with one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from laneway import Mixture, audit
from laneway.core.mixtures import MixturePlan
from laneway.core.plan import Identity
from laneway.core.progress import LanePosition, Progress, current_cut, next_epoch
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from tests.fuzzing import num_cases
from tests.laws.mixture_simulation import MixtureJob, SourceRow
from tests.laws.planted_faults import check_every_fault_is_found
from tests.laws.simulation import PLAIN, file_table
from tests.planned import dataset_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway import StatefulShardedDataset
    from laneway.inspection.report import AuditReport

State = Any
WEIGHTS = [1, 1, 3, 0.2, 7]


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a simulated run."""

    state: State
    run: int
    """Which of the runs saved it."""
    progress: Progress
    world_size: int
    num_delivered: int
    """Rows that were delivered until then, in all passes."""


@dataclass
class Run:
    """A mixture that is trained on, and its sources."""

    random: Random
    is_simple: bool = False
    """Whether it never ends, nothing but its ranks and workers changes, and each row comes once."""
    sources: dict[str, StatefulShardedDataset] = field(default_factory=dict)
    """All that it ever had."""
    weights: dict[str, float] = field(default_factory=dict)
    """Those of the sources that it has."""
    delivered: set[tuple[int, SourceRow]] = field(default_factory=set)
    """The pass, and the row. Epochs of one pass may come again in the next one."""
    saved: list[Saved] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draw sources, and how passes end."""
        random = self.random
        for name in "abc"[: random.randrange(1, 4)]:
            self.add_source(name)
        self.stop: Any = None if self.is_simple else random.choice([None, None, random.randrange(1, 200)])
        if random.random() < 0.2 and not self.is_simple:
            self.stop = random.choice(["first_exhausted", "all_exhausted"])
        self.epoch_batches = random.randrange(1, 9) if self.stop is None and random.random() < 0.3 else None
        self.schedule: list[tuple[int, dict[str, float]]] | None = None
        if random.random() < 0.4 and self.stop != "all_exhausted" and not self.is_simple:
            starts = sorted({random.randrange(1, 150) for _ in range(random.randrange(1, 4))})
            self.schedule = [(0, self.weights), *((start, self.random_weights()) for start in starts)]
        self.progress = Progress(0)

    def add_source(self, name: str) -> None:
        self.sources[name] = dataset_of(random_identity(self.random, pads=not self.is_simple), rank=0, world_size=1)
        self.weights[name] = self.random.choice(WEIGHTS)

    def random_weights(self) -> dict[str, float]:
        return {name: self.random.choice(WEIGHTS) for name in self.weights}

    def mixture(self, *, of_all: bool = False) -> Mixture:
        """Return the mixture as the next run has it; or with all the sources that it ever had."""
        names = self.sources if of_all else self.weights
        weights: Any = {name: self.weights.get(name, 0) for name in names}
        if self.schedule is not None:
            weights = [(start, {name: of.get(name, 0) for name in names}) for start, of in self.schedule]
        sources = {name: self.sources[name] for name in names}
        more = {"stop": self.stop, "epoch_batches": self.epoch_batches, "rank": 0, "world_size": 1}
        return Mixture(sources, weights, lanes=self.random.choice([None, None, 12]), **more)

    def change(self) -> None:
        """Perhaps change weights, sources or files, as a run does that is resumed."""
        random = self.random
        if self.is_simple or self.schedule is not None or self.stop is not None:
            return
        if random.random() < 0.4:
            self.weights = self.random_weights()
        if random.random() < 0.2 and "new" not in self.sources:
            self.add_source("new")
        elif random.random() < 0.2 and len(self.weights) > 1:
            del self.weights[random.choice([*self.weights])]
        if random.random() < 0.2:
            name = random.choice([*self.weights])
            self.sources[name] = extended(random, self.sources[name])

    def run(self, number: int, *, change: bool = True) -> None:
        """Train for a while on some ranks, and save some checkpoints."""
        random = self.random
        if change and number:
            self.change()
        batch = random.randrange(1, 5)
        definition = self.mixture().batch(batch).definition
        world_size, num_workers = random.randrange(1, 5), random.randrange(1, 4)
        job = MixtureJob(definition.mixed, world_size, num_workers, self.progress)
        for _ in range(random.randrange(1, 4)):
            for step in job.take(random.choice([0, 1, 2, 3, 5, 9])):
                number_of_pass = 0 if self.stop is None else self.progress.epoch
                self.delivered |= {(number_of_pass, row) for batch_rows in step for row in batch_rows}
            self.progress = job.whole_progress()
            state = state_of(random, definition.identity, self.progress, world_size, complete=job.is_at_end)
            self.saved.append(Saved(state, number, self.progress, world_size, len(self.delivered)))
            if job.is_at_end:
                goes_on = self.stop is None
                self.progress = next_epoch(self.progress) if goes_on else Progress(self.progress.epoch + 1)
                job = MixtureJob(definition.mixed, world_size, num_workers, self.progress)
        if job.progress.cut is None and not job.batches_taken:
            # The next pass has not begun.
            return
        self.progress = job.whole_progress()

    def audit(self, kept: list[Saved]) -> AuditReport:
        return audit([each.state for each in kept], self.mixture(of_all=True))


def random_identity(random: Random, *, pads: bool) -> Identity:
    blocks = [[random.randrange(9) for _ in range(random.randrange(5))] for _ in range(random.randrange(1, 4))]
    settings = replace(
        PLAIN,
        seed=random.randrange(2**63),
        shuffle=random.random() < 0.7,
        shard_rows=random.randrange(1, 12),
        window_bytes=random.randrange(1, 300),
        remainder=random.choice(["keep", "keep", "pad", "drop"]) if pads else "keep",
    )
    # With remainder="drop", each lane needs a row.
    return Identity(file_table([*blocks, [50, 7]]), settings)


def extended(random: Random, dataset: StatefulShardedDataset) -> StatefulShardedDataset:
    identity = dataset.definition.identity
    starts = identity.files.block_starts
    rows = identity.files.block_row_starts
    counts = [[int(rows[i + 1] - rows[i]) for i in range(a, b)] for a, b in pairwise(starts.tolist())]
    grown = Identity(file_table([*counts, [random.randrange(1, 9)]]), identity.settings)
    return dataset.extend(dataset_of(grown, rank=0, world_size=1))


def state_of(random: Random, identity: Any, progress: Progress, world_size: int, *, complete: bool) -> State:
    """Return the state of the whole job, perhaps without cuts that it needs no more, or one for each rank."""
    sources = identity.sources
    if random.random() < 0.5:
        progress = MixturePlan(sources, progress).without_finished_cuts()
    cut = current_cut(progress)
    state: Any = write_state(identity, progress, WorkerPlace(0, world_size), complete=complete)
    if random.random() < 0.3 and progress.sharing.world_size == world_size > 1:
        state = []
        for rank in range(world_size):
            turns = progress.sharing.turns_per_batch
            lanes = {lane: each for lane, each in cut.positions.items() if lane // turns % world_size == rank}
            place = WorkerPlace(rank, world_size)
            own = replace(progress, cut=replace(cut, positions=lanes), place=place)
            state.append(write_state(identity, own, place, complete=complete))
    return json.loads(json.dumps(state))


def needed(random: Random, saved: list[Saved]) -> list[Saved]:
    """Leave out checkpoints that are not needed: a run begins with the last one of the run before."""
    return [
        each
        for each, after in zip(saved, [*saved[1:], None], strict=True)
        if after is None
        or after.run != each.run
        or after.progress.epoch != each.progress.epoch
        or random.random() < 0.5
    ]


CASES = range(num_cases(40))


@pytest.mark.parametrize("first", range(0, len(CASES), 20))
def test_every_right_run_is_accepted(first: int) -> None:
    for case in CASES[first : first + 20]:
        random = Random(case)
        run = Run(random)
        for number in range(4):
            run.run(number)
        report = run.audit(needed(random, run.saved))
        assert report.is_exact, (case, report)
        found = Counter[str]()
        for epoch in report.epochs:
            assert epoch.num_delivered + epoch.num_left + epoch.num_left_out == epoch.num_rows, (case, report)
            found[epoch.source] += epoch.num_delivered
        expected = Counter(row.source for _, row in run.delivered)
        for name, source in run.sources.items():
            # A lane that is empty is padded with a row of another one, which may not have come to it.
            is_padded = source.definition.identity.settings.remainder == "pad"
            assert found[name] <= expected[name] if is_padded else found[name] == expected[name], (case, report)


def moved(random: Random, run: Run, *, ahead: bool) -> Progress | None:
    """Return progress in which a row of a lane is passed over, or taken back; None: there is none."""
    progress = run.progress
    cut = current_cut(progress)
    can = [lane for lane, each in cut.positions.items() if ahead or each.rows]
    if not can:
        return None
    lane = random.choice(can)
    at = LanePosition(cut.positions[lane].rows + (1 if ahead else -1))
    return replace(progress, cut=replace(cut, positions={**cut.positions, lane: at}))


def resumed_wrongly(random: Random, *, ahead: bool) -> Run | None:
    """Return a run that was resumed one row too late, or too early, in a new cut."""
    run = Run(random, is_simple=True)
    run.run(0)
    run.run(1)
    before = run.saved[-1]
    progress = moved(random, run, ahead=ahead)
    if progress is None:
        return None
    run.progress = progress
    run.run(2)
    after = run.saved[-1]
    return run if after.progress.starts[-1] != before.progress.starts[-1] else None


def with_a_gap(random: Random) -> Run | None:
    """Return a run without a checkpoint from which it was resumed in a new cut."""
    run = Run(random, is_simple=True)
    for number in range(4):
        run.run(number)
    saved = run.saved
    can = [
        index
        for index in range(1, len(saved) - 1)
        if saved[index + 1].progress.starts[-1].rows_before == saved[index].num_delivered
        and [each.num_delivered for each in saved].count(saved[index].num_delivered) == 1
    ]
    if not can:
        return None
    del saved[random.choice(can)]
    return run


def going_back(random: Random) -> Run | None:
    """Return a run that was resumed from an earlier checkpoint than the last one that is given, in a new cut.

    In the same cut, it delivers the same rows again, and its checkpoints look like those of one run.
    """
    run = Run(random, is_simple=True)
    for number in range(3):
        run.run(number)
    earlier, last = random.choice(run.saved), run.saved[-1]
    if earlier.num_delivered == last.num_delivered:
        return None
    run.progress = earlier.progress
    run.run(3)
    return run if run.saved[-1].progress.starts[-1] != last.progress.starts[-1] else None


def with_another_run(random: Random) -> Run | None:
    """Return a run, a checkpoint of which is replaced by that of a run with other files, or of another seed."""
    run, other = Run(random, is_simple=True), Run(random, is_simple=True)
    if {*other.sources} != {*run.sources}:
        return None
    for number in range(3):
        run.run(number)
        other.run(number)
    run.saved[random.randrange(len(run.saved))] = random.choice(other.saved)
    return run


FAULTS: dict[str, tuple[Callable[[Random], Run | None], str]] = {
    "a row dropped": (lambda random: resumed_wrongly(random, ahead=True), "not delivered"),
    "a row repeated": (lambda random: resumed_wrongly(random, ahead=False), "delivered twice"),
    "a gap between checkpoints": (with_a_gap, "not delivered"),
    "a run that went back": (going_back, "delivered twice"),
    "a state of another run": (with_another_run, "other run"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(fault: str) -> None:
    plant, kind = FAULTS[fault]

    def report_of(random: Random) -> AuditReport | None:
        run = plant(random)
        return None if run is None else run.audit(run.saved)

    check_every_fault_is_found(fault, report_of, kind, len(CASES) // 5)
