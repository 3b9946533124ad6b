"""Law: an audit accepts the checkpoints of every right run, and finds whatever was wrong with one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from laneway import audit
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import LanePosition, Progress, current_cut
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from tests.fuzzing import num_cases
from tests.laws.planted_faults import check_every_fault_is_found
from tests.laws.simulation import PLAIN, Job, file_table
from tests.planned import dataset_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.core.files import FileTable
    from laneway.inspection.report import AuditReport

State = dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a simulated run."""

    state: State
    run: int
    """Which of the runs saved it."""
    progress: Progress
    num_delivered: int
    num_cuts: int


def random_identity(random: Random) -> Identity:
    blocks = [[random.randrange(9) for _ in range(random.randrange(5))] for _ in range(random.randrange(1, 6))]
    settings = replace(
        PLAIN,
        seed=random.randrange(2**63),
        shuffle=random.random() < 0.7,
        shard_rows=random.randrange(1, 12),
        window_bytes=random.randrange(1, 300),
        remainder=random.choice(["keep", "pad", "drop"]),
    )
    return Identity(file_table([*blocks, [12, 7]]), settings)


def random_job(random: Random, identity: Identity, progress: Progress) -> Job:
    options = LaneOptions(random.choice([None, None, 12]), None, random.randrange(1, 4))
    return Job(identity, random.randrange(1, 5), random.randrange(1, 4), options, progress)


def save(job: Job, run: int, random: Random) -> Saved:
    """Return a checkpoint of a job: one state, or one for each rank, and perhaps what these are nested in."""
    progress, identity = job.whole_progress(), job.identity
    cut = current_cut(progress)
    complete = job.is_at_end
    state: Any = write_state(identity, progress, WorkerPlace(0, job.world_size), complete=complete)
    if random.random() < 0.3 and progress.sharing.world_size == job.world_size:
        state = []
        for rank in range(job.world_size):
            lanes = {
                lane: each
                for lane, each in cut.positions.items()
                if lane // job.turns_per_batch % job.world_size == rank
            }
            place = WorkerPlace(rank, job.world_size)
            own = replace(progress, cut=replace(cut, positions=lanes), place=place if job.world_size > 1 else None)
            at_end = all(job.cursors[rank, worker].is_at_end for worker in range(job.num_workers))
            state.append(write_state(identity, own, place, complete=at_end))
    if random.random() < 0.3:
        state = {"model": [1, 2], "loader": {"laneway": [state]} if isinstance(state, dict) else state}
    return Saved(json.loads(json.dumps(state)), run, progress, int(cut.rows().sum()), len(progress.earlier))


def random_run(random: Random, identity: Identity, *, num_runs: int = 4) -> list[Saved]:
    """Return the checkpoints of a run that is resumed a few times, each time from the last one."""
    progress, found = Progress(0), list[Saved]()
    for run in range(num_runs):
        job = random_job(random, identity, progress)
        for _ in range(random.randrange(1, 4)):
            job.run(random.randrange(4))
            found.append(save(job, run, random))
        progress = found[-1].progress
    return found


def source_of(random: Random, identity: Identity) -> Any:
    return random.choice([None, dataset_of(identity)])


def states_of(saved: list[Saved]) -> list[State]:
    return [each.state for each in saved]


CASES = range(num_cases(60))


@pytest.mark.parametrize("first", range(0, len(CASES), 20))
def test_every_right_run_is_accepted(first: int) -> None:
    for case in CASES[first : first + 20]:
        random = Random(case)
        identity = random_identity(random)
        saved = random_run(random, identity)
        # Of the checkpoints of a run, only the last one is needed: the next run began with it.
        kept = [
            each
            for each, after in zip(saved, [*saved[1:], None], strict=True)
            if after is None or after.run != each.run or random.random() < 0.5
        ]
        report = audit(states_of(kept), source_of(random, identity))
        assert report.is_exact, (case, report)
        (epoch,) = report.epochs
        assert epoch.num_delivered + epoch.num_left + epoch.num_left_out == epoch.num_rows == identity.files.num_rows
        if identity.settings.remainder == "keep":
            assert epoch.num_left_out == 0


def moved(random: Random, progress: Progress, identity: Identity, *, ahead: bool) -> Progress | None:
    """Return progress in which a row of a lane is passed over, or taken back; None: there is none."""
    cut, rows = current_cut(progress), identity.plan(progress).lanes.rows
    can = [
        lane
        for lane, each in cut.positions.items()
        if (each.rows < rows[lane] if ahead else 0 < each.rows <= rows[lane])
    ]
    if not can:
        return None
    lane = random.choice(can)
    at = LanePosition(cut.positions[lane].rows + (1 if ahead else -1))
    return replace(progress, cut=replace(cut, positions={**cut.positions, lane: at}))


def resumed_wrongly(random: Random, identity: Identity, *, ahead: bool) -> list[Saved] | None:
    """Return the checkpoints of a run that was resumed one row too late, or too early, on other workers."""
    saved = random_run(random, identity, num_runs=2)
    progress = moved(random, saved[-1].progress, identity, ahead=ahead)
    if progress is None:
        return None
    job = random_job(random, identity, progress)
    job.run(random.randrange(3))
    after = save(job, 9, random)
    return [*saved, after] if after.num_cuts > saved[-1].num_cuts else None


def with_a_gap(random: Random, identity: Identity) -> list[Saved] | None:
    """Return the checkpoints of a run without one from which it was resumed in a new cut."""
    saved = random_run(random, identity)
    can = [
        index
        for index in range(1, len(saved) - 1)
        if saved[index + 1].num_cuts > saved[index].num_cuts
        and (saved[index].num_delivered, saved[index].num_cuts)
        != (saved[index - 1].num_delivered, saved[index - 1].num_cuts)
        and saved[index].num_delivered
    ]
    if not can:
        return None
    left_out = random.choice(can)
    return [each for index, each in enumerate(saved) if index != left_out]


def with_another_run(random: Random, identity: Identity) -> list[Saved] | None:
    """Return the checkpoints of a run, one of which is replaced by that of a run with another seed, or other files."""
    saved = random_run(random, identity)
    if random.random() < 0.5:
        other = Identity(identity.files, replace(identity.settings, seed=identity.settings.seed ^ 1))
    else:
        files: FileTable = identity.files
        other = Identity(replace(files, sizes=files.sizes + 1), identity.settings)
    saved[random.randrange(len(saved))] = random.choice(random_run(random, other))
    return saved


FAULTS: dict[str, tuple[Callable[[Random, Identity], list[Saved] | None], str]] = {
    "a row dropped": (lambda random, identity: resumed_wrongly(random, identity, ahead=True), "not delivered"),
    "a row repeated": (lambda random, identity: resumed_wrongly(random, identity, ahead=False), "delivered twice"),
    "a gap between checkpoints": (with_a_gap, "not delivered"),
    "a state of another run": (with_another_run, "other run"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(fault: str) -> None:
    plant, kind = FAULTS[fault]

    def report_of(random: Random) -> AuditReport | None:
        identity = random_identity(random)
        saved = plant(random, identity)
        return None if saved is None else audit(states_of(saved), source_of(random, identity))

    check_every_fault_is_found(fault, report_of, kind, len(CASES) // 4)


def test_the_rows_of_a_fault_are_named_by_file() -> None:
    random = Random(1)
    identity = Identity(file_table([[9, 3], [12]]), replace(PLAIN, shuffle=True, remainder="keep"))
    job = Job(identity, 1, 1, LaneOptions(2, None, 3), Progress(0))
    before = [row for step in job.run(2) for row in step]
    first = save(job, 0, random)
    lost = [row for step in job.run(1) for row in step]
    after = Job(identity, 3, 1, LaneOptions(None, None, 2), job.whole_progress())
    after.run(1)
    report = audit([first.state, save(after, 1, random).state], dataset_of(identity))
    (finding,) = report.findings
    starts = dict(zip(identity.files.paths, (0, 12), strict=True))
    named = [starts[path] + row for path, start, stop in finding.ranges for row in range(start, stop)]
    assert (sorted(lost), finding.kind) == (named, "not delivered")
    assert not {*before} & {*named}
