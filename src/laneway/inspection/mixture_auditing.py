"""Audits checkpoints of a mixture: whether each row of each epoch of each source was delivered exactly once.

As for a single dataset, a run delivers rows in one cut, from where it began to its checkpoints. A schedule of weights
makes it begin further cuts by itself; where these begin follows from the schedule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from laneway.core.intervals import Intervals
from laneway.core.line import ranges_of_line
from laneway.core.mixture_assignment import begun_like, cut_like, resolve_mixture, scheduled_cuts
from laneway.core.mixture_line import MixtureLines
from laneway.core.mixture_progress import mixture_differences
from laneway.core.mixtures import MixturePlan
from laneway.core.progress import current_cut, rows_in_mixture
from laneway.core.turns import WorkerPlace
from laneway.inspection.audited_sources import AuditedSource
from laneway.inspection.collecting import progress_of
from laneway.inspection.report import AuditReport, Finding, RowRange
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from laneway.core.progress import Group, Progress
    from laneway.delivery.mixture_definition import MixtureDefinition
    from laneway.inspection.collecting import Checkpoint
    from laneway.inspection.report import AuditedEpoch, Kind, Unit


class _Problem(NamedTuple):
    """What is wrong with rows, and why."""

    kind: Kind
    reason: str


_SKIPPED = _Problem(
    "not delivered",
    "the run began behind them, and no checkpoint is where it began: they were skipped, or the checkpoint from which "
    "it was resumed, or at which its weights were set, is not given",
)
_BEFORE = _Problem(
    "unknown", "they came before the first checkpoint that is given, or before weights were set without a checkpoint"
)


class MixtureAudit:
    """Goes through checkpoints of a mixture, one after another."""

    def __init__(self, checkpoints: Sequence[Checkpoint], definition: MixtureDefinition) -> None:
        """Audit checkpoints of the mixture of a definition, in their order."""
        self._checkpoints = checkpoints
        self._definition = definition
        self._mixed = definition.mixed
        self._findings: list[Finding] = []
        self._epochs: list[AuditedEpoch] = []
        self._unit: Unit = "pack" if definition.packs_are_known else "row"
        self._sources: dict[str, AuditedSource] = {}
        self._first_epochs: dict[str, int] = {}
        """Name -> the epoch with which a source begins this pass, unless with its first."""

    def report(self) -> AuditReport:
        """Return what was found."""
        before: tuple[Checkpoint, MixtureLines] | None = None
        for checkpoint in self._checkpoints:
            if not checkpoint.fields["mixture"]:
                self._find("other run", checkpoint, "it is of a single dataset, and the first one is of a mixture")
                continue
            progress = progress_of(checkpoint.states)
            problem = self._foreign(checkpoint, progress, before)
            if problem is not None:
                self._find("other run", checkpoint, problem)
                continue
            cut = progress.cut
            if cut is not None and len(cut.positions) < cut.num_lanes:
                reason = f"it has {len(cut.positions)} of {counted(cut.num_lanes, 'lane')}, and not those of all ranks"
                self._find("unknown", checkpoint, reason)
                continue
            now = self._lines(checkpoint, progress)
            self._follow(before, checkpoint, now)
            before = checkpoint, now
        if before is not None:
            self._close(*before, is_last=True)
        return AuditReport(len(self._checkpoints), tuple(self._epochs), tuple(self._findings))

    def _lines(self, checkpoint: Checkpoint, progress: Progress) -> MixtureLines:
        if progress.cut is None:
            place = WorkerPlace(0, checkpoint.states[0].place.world_size)
            progress = resolve_mixture(self._mixed, progress, place).progress
        return MixtureLines(self._mixed, replace(progress, place=None))

    # -- The run ------------------------------------------------------------------------------------------------------

    def _foreign(
        self, checkpoint: Checkpoint, progress: Progress, before: tuple[Checkpoint, MixtureLines] | None
    ) -> str | None:
        """Return how a checkpoint shows that it is of another run; None: it doesn't."""
        lines = mixture_differences(checkpoint.states[0], progress, self._definition.identity, needs_all=True)
        if before is not None and progress.starts and not lines:
            was = before[1].starts
            for source in progress.starts[-1].sources:
                versions = self._mixed.sources[source.name].all_files
                if source.name in was and versions.index(source.files) < versions.index(was[source.name].files):
                    lines.append(f"source {source.name!r}: it has fewer files than at the checkpoint before")
        if all(each.is_complete for each in checkpoint.states) and not self._definition.has_epochs:
            lines.append("it is of the end of a pass, and this mixture has none: give it the stop= of the run")
        return "; ".join(lines) or None

    # -- One checkpoint after another ---------------------------------------------------------------------------------

    def _follow(
        self, before: tuple[Checkpoint, MixtureLines] | None, checkpoint: Checkpoint, now: MixtureLines
    ) -> None:
        """Compare a checkpoint with the one before."""
        if before is not None and (self._definition.is_endless or checkpoint.epoch == before[0].epoch):
            self._compare(*before, checkpoint, now)
            return
        if before is not None:
            last, was = before
            if checkpoint.epoch < last.epoch:
                twice = _Problem("delivered twice", f"the run went back from epoch {last.epoch}")
                start = MixtureLines(self._mixed, begun_like(self._mixed, last.epoch, was.progress))
                for name in {*was.starts} & {*start.starts}:
                    self._compare_source(name, was, start, last, (None, twice))
            self._close(last, was, is_last=False)
            for epoch in range(last.epoch + 1, checkpoint.epoch):
                reason = f"no checkpoint is of epoch {epoch}"
                self._find("unknown", checkpoint, reason, epoch=epoch, num_rows=self._mixed.num_rows or 0)
        self._first_epochs = {}
        if not self._definition.is_endless:
            self._first_epochs = self._mixed.first_epochs(checkpoint.epoch)
        # Passes of a mixture that never ends are parts of one.
        first = 0 if self._definition.is_endless else checkpoint.epoch
        start = MixtureLines(self._mixed, begun_like(self._mixed, first, now.progress))
        if not now.progress.starts[-1].rows_before:
            # The pass is in its first cut, which tells how it began.
            start = now.at_start()
            self._first_epochs = {name: each.next_epoch for name, each in now.starts.items()}
        self._compare(None, start, checkpoint, now)

    def _compare(self, last: Checkpoint | None, was: MixtureLines, checkpoint: Checkpoint, now: MixtureLines) -> None:
        """Compare what had been delivered at two checkpoints of a pass, or at its start and at one of them.

        Args:
            last: The checkpoint before; None: it is the start, where nothing had been delivered.
            was: How far the mixture had come there.
            checkpoint: The checkpoint that tells.
            now: How far it has come since.
        """
        is_same_cut = _is_same_cut(was, now)
        if not is_same_cut:
            was = self._at_start_of(was, now)
        for name in [name for name in self._sources if name not in now.starts]:
            # It was removed: nothing more of it is delivered.
            self._epochs += self._sources.pop(name).epochs(was, is_left=False)
        missing = _BEFORE if last is None else _SKIPPED
        has_them = "" if last is None else f"checkpoint {last.index} has them, and the run went on from before them"
        twice = _Problem("delivered twice", has_them)
        for name in now.starts:
            source = self._sources.setdefault(name, AuditedSource(name, self._first_epochs.get(name, 0), self._unit))
            source.learn(now)
            self._compare_source(name, was, now, checkpoint, (None if is_same_cut else missing, twice))
        if is_same_cut:
            self._compare_groups_in_cut(was, checkpoint, now, twice)
        else:
            self._compare_groups(was, checkpoint, now, (missing, twice))

    def _at_start_of(self, was: MixtureLines, now: MixtureLines) -> MixtureLines:
        """Return from where a run made a new cut: from a checkpoint, or where a schedule of weights has its cut end."""
        way = next((each for each in self._possible_starts(was, now) if _has_begun_from(each[-1], now)), [was])
        for lines in way:
            for name in lines.starts:
                if name in self._sources:
                    self._sources[name].learn(lines)
        return way[-1]

    def _possible_starts(self, was: MixtureLines, now: MixtureLines) -> Iterator[list[MixtureLines]]:
        """Yield the ends of the cuts that a run may have made from a checkpoint on, before that of `now` began."""
        started, mixed = now.progress.starts[-1].rows_before, self._mixed
        settled = was.settled()
        if rows_in_mixture(settled) == started:
            yield [was]
            return
        # It went on in the cut, shared as before or in another way, or made a new one.
        sharing = now.progress.sharing
        batch_rows = sharing.turns_per_batch * current_cut(now.progress).turn_rows
        turns = max(1, batch_rows // current_cut(was.progress).turn_rows)
        resumed = [was.progress, replace(was.progress, sharing=sharing._replace(turns_per_batch=turns))]
        resumed = [each for each in resumed if current_cut(each).num_lanes % each.sharing.job_turns == 0]
        for progress in (*resumed, cut_like(mixed, settled, now.progress)):
            way = []
            for ended, following in scheduled_cuts(mixed, progress, now.progress):
                way.append(MixtureLines(mixed, ended))
                rows = following.starts[-1].rows_before
                if rows == started:
                    yield way
                if rows >= started:
                    break

    def _compare_source(
        self,
        name: str,
        was: MixtureLines,
        now: MixtureLines,
        checkpoint: Checkpoint,
        problems: tuple[_Problem | None, _Problem],
    ) -> None:
        """Compare what had been delivered of a source.

        Args:
            name: The source.
            was: How far the mixture had come.
            now: How far it has come since.
            checkpoint: The checkpoint that tells.
            problems: Of rows that are missing, None in the same cut, where it can't be; and of those that came twice.
        """
        missing, twice = problems
        source = self._sources[name]
        ended: dict[int, int] = {}
        was_next, before = source.first_epoch, dict[int, Intervals]()
        if name in was.starts:
            was_next = was.next_epoch(name)
            before = {epoch: was.epoch(name, epoch).delivered for epoch in was.open_epochs(name)}
        if missing is None and _is_same_cut(was, now):
            now_next = now.next_epoch(name)
            after = {epoch: now.epoch(name, epoch).delivered for epoch in now.open_epochs(name)}
        else:
            # A run delivers in one cut, so it began with what was delivered in those before.
            now_next = now.starts[name].next_epoch
            opened, rests = now.open_epochs(name), now.rests(name)
            after = {epoch: now.epoch(name, epoch).base for epoch in opened if epoch in rests}
            # Those that have ended since: which rows were left of them is forgotten, but not how many.
            ended = {epoch: num_rows for epoch, num_rows in rests.items() if epoch not in opened}
        for epoch in sorted({*before, *after, *ended}):
            whole, nothing = source.whole(epoch), Intervals.empty()
            had = before.get(epoch, whole if epoch < was_next else nothing)
            if epoch in ended:
                num_more = len(whole) - ended[epoch] - len(had)
                problem = twice if num_more < 0 else missing
                if num_more and problem is not None:
                    self._report_number(problem, checkpoint, (name, epoch), abs(num_more))
                continue
            has = after.get(epoch, whole if epoch < now_next else nothing)
            self._report(twice, checkpoint, now, (name, epoch), had - has)
            if missing is not None:
                self._report(missing, checkpoint, now, (name, epoch), has - had)
        known = {*before, *after, *ended}
        if was_next > now_next:
            self._report_epochs(twice, checkpoint, name, _without(now_next, was_next, known))
        elif missing is not None:
            self._report_epochs(missing, checkpoint, name, _without(was_next, now_next, known))

    def _compare_groups(
        self, was: MixtureLines, checkpoint: Checkpoint, now: MixtureLines, problems: tuple[_Problem, _Problem]
    ) -> None:
        """Compare the groups of which stages had delivered some items, but not all, with those that a new cut had.

        `problems` are of items that are missing, and of those that came twice.
        """
        missing, twice = problems
        left = {was.identity_of(each): each for each in was.half_delivered}
        # Of a group of which all has been delivered since, the cut is forgotten.
        ended = {(each.lane, each.row) for each in now.progress.carried if each.cut < 0}
        carried = {now.identity_of(each): each for each in now.progress.carried if each.cut >= 0}
        both = [(old, carried[key]) for key, old in left.items() if key in carried]
        self._report_groups(missing, checkpoint, was, [old for old, new in both if new.offset > old.offset])
        self._report_groups(twice, checkpoint, was, [old for old, new in both if new.offset < old.offset])
        gone = [old for key, old in left.items() if key not in carried and (old.lane, old.row) not in ended]
        # Rows that only one of both had delivered as a whole are compared as rows.
        self._report_groups(twice, checkpoint, was, gone, lambda source, epoch: source.rows_before_cut(now, epoch))
        others = [new for key, new in carried.items() if key not in left]
        self._report_groups(missing, checkpoint, now, others, lambda source, epoch: source.rows_until(was, epoch))

    def _compare_groups_in_cut(
        self, was: MixtureLines, checkpoint: Checkpoint, now: MixtureLines, twice: _Problem
    ) -> None:
        """Find groups of which fewer items have been delivered than at an earlier checkpoint of the same cut."""
        positions = enumerate(zip(was.positions, now.positions, strict=True))
        back = {lane for lane, (old, new) in positions if new.rows == old.rows and new.offset < old.offset}
        current = len(was.progress.starts) - 1
        again = [each for each in was.half_delivered if each.cut == current and each.lane in back]
        self._report_groups(twice, checkpoint, was, again)

    # -- The end ------------------------------------------------------------------------------------------------------

    def _close(self, checkpoint: Checkpoint, now: MixtureLines, *, is_last: bool) -> None:
        """Count the rows of a pass at its last checkpoint."""
        is_complete = all(each.is_complete for each in checkpoint.states) and not self._definition.is_endless
        if not is_last and not is_complete:
            ahead = zip(now.ends.tolist(), now.positions, strict=True)
            num_rows = sum(max(0, end - position.rows) for end, position in ahead)
            reason = "no checkpoint is of the end of their epoch, and a later one is of the next"
            self._find("unknown", checkpoint, reason, num_rows=num_rows)
        for source in self._sources.values():
            self._epochs += source.epochs(now, is_left=is_last and not is_complete)
        self._sources.clear()

    # -- Findings -----------------------------------------------------------------------------------------------------

    def _find(
        self, kind: Kind, checkpoint: Checkpoint, reason: str, *, epoch: int | None = None, num_rows: int = 0
    ) -> None:
        epoch = checkpoint.epoch if epoch is None else epoch
        unit = self._unit
        self._findings.append(Finding(kind, epoch, checkpoint.index, reason, num_rows, unit=unit))

    def _report(
        self, problem: _Problem, checkpoint: Checkpoint, now: MixtureLines, of: tuple[str, int], places: Intervals
    ) -> None:
        """Add a finding about some rows of an epoch of a source."""
        if not len(places):
            return
        (name, epoch), (kind, reason) = of, problem
        self._sources[name].add_faulty(epoch, places)
        pairs = (*zip(places.starts.tolist(), places.stops.tolist(), strict=True),)
        ranges = tuple(self._ranges(now, name, epoch, places))
        found = len(places), pairs, ranges, name, self._unit
        self._findings.append(Finding(kind, epoch, checkpoint.index, reason, *found))

    def _report_number(self, problem: _Problem, checkpoint: Checkpoint, of: tuple[str, int], num_rows: int) -> None:
        """Add a finding about a number of rows of an epoch of a source, of which nobody knows which they are."""
        name, epoch = of
        self._sources[name].num_faulty[epoch] += num_rows
        found = problem.kind, epoch, checkpoint.index, problem.reason, num_rows
        self._findings.append(Finding(*found, source=name, unit=self._unit))

    def _report_epochs(self, problem: _Problem, checkpoint: Checkpoint, name: str, epochs: Iterable[range]) -> None:
        """Add findings about all rows of some epochs of a source."""
        source = self._sources[name]
        for each in [alike for given in epochs for alike in source.alike(given)]:
            kind, reason = problem
            num_rows = source.rows(each.start).num_rows
            source.add_faulty_epochs(each)
            if len(each) > 1:
                reason += f" (all {self._unit}s of epochs {each.start} to {each.stop - 1})"
            found = num_rows * len(each), ((0, num_rows),), (), name, self._unit
            self._findings.append(Finding(kind, each.start, checkpoint.index, reason, *found))

    def _report_groups(
        self,
        problem: _Problem,
        checkpoint: Checkpoint,
        of: MixtureLines,
        groups: Iterable[Group],
        other_than: Callable[[AuditedSource, int], Intervals] = lambda _source, _epoch: Intervals.empty(),
    ) -> None:
        """Add findings about rows in groups of which some items were delivered, other than some rows of each epoch."""
        of_items = problem._replace(reason=f"some of the items that stages make of them: {problem.reason}")
        for group in groups:
            for (name, epoch), places in of.of_group(group).items():
                if name in self._sources:
                    others = other_than(self._sources[name], epoch)
                    self._report(of_items, checkpoint, of, (name, epoch), places - others)

    def _ranges(self, now: MixtureLines, name: str, epoch: int, places: Intervals) -> Iterator[RowRange]:
        """Yield where places of the line of an epoch are in the files, as far as these are known."""
        start = now.starts[name]
        if epoch < start.next_epoch and epoch not in now.rests(name):
            # How it was cut is forgotten.
            return
        plan = MixturePlan(self._mixed.sources, now.progress)
        of_epoch = plan.plan(plan.current, name, epoch)
        paths = of_epoch.identity.files.paths
        for file_index, first, stop in ranges_of_line(of_epoch, places):
            yield RowRange(paths[file_index], first, stop)


def _without(start: int, stop: int, known: set[int]) -> Iterator[range]:
    """Yield range(start, stop) without some numbers, in parts."""
    for each in sorted(number for number in known if start <= number < stop):
        if start < each:
            yield range(start, each)
        start = each + 1
    if start < stop:
        yield range(start, stop)


def _has_begun_from(was: MixtureLines, now: MixtureLines) -> bool:
    """Return whether the current cut of `now` can have begun where `was` is."""
    if {*was.starts} != {*now.starts}:
        return False
    for name, start in now.starts.items():
        rests, opened = now.rests(name), now.open_epochs(name)
        if (was.next_epoch(name), {*was.open_epochs(name)}) != (start.next_epoch, {*rests}):
            return False
        for epoch, num_rows in rests.items():
            before = was.epoch(name, epoch)
            if before.num_rows - len(before.delivered) != num_rows:
                return False
            if epoch in opened and len(before.delivered - now.epoch(name, epoch).base):
                return False
    return True


def _is_same_cut(was: MixtureLines, now: MixtureLines) -> bool:
    """Return whether two checkpoints are of the same cut of a mixture."""
    starts = [replace(each.progress.starts[-1], batches_before=0) for each in (was, now)]
    shapes = [(cut.num_lanes, cut.turn_rows) for cut in (current_cut(each.progress) for each in (was, now))]
    if starts[0] != starts[1] or shapes[0] != shapes[1]:
        return False
    for name in now.starts:
        # A state forgets what earlier cuts delivered of an epoch that has ended since.
        for epoch in {*now.rests(name)} & {*now.open_epochs(name)} & {*was.open_epochs(name)}:
            before, after = was.epoch(name, epoch).base, now.epoch(name, epoch).base
            if len(before - after) or len(after - before):
                return False
    return True
