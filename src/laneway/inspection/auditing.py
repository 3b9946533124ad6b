"""Audits checkpoints: whether they prove that each row of an epoch was delivered exactly once.

A run delivers rows in one cut, from where it began to its checkpoints. So rows count as delivered if a run is known to
have begun where another one has a checkpoint, or with the epoch, and to have a checkpoint after them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from laneway.core.differences import file_differences, identity_differences
from laneway.core.gaps import parse_gaps
from laneway.core.intervals import Intervals
from laneway.core.line import LineProgress, counts_packs, num_rows_in, ranges_of_line
from laneway.core.plan import Identity, Settings
from laneway.core.saved_files import decode_files, names_files
from laneway.core.schema import Role, names_of
from laneway.core.state import identity_fields
from laneway.inspection.collecting import Checkpoint, check_kind, states_of_step
from laneway.inspection.mixture_auditing import MixtureAudit
from laneway.inspection.report import AuditedEpoch, AuditReport, Finding, RowRange
from laneway.manifest import Manifest
from laneway.mixture import Mixture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.described import DescribedDataset
    from laneway.inspection.report import Kind, Unit

_NOT_COMPARED = {"without", "remainder", "fingerprint"}
"""Rows may be taken out later, and what a remainder means depends on the number of ranks. Files are compared apart."""
_SETTINGS = [name for name in names_of(Role.IDENTITY) if name not in _NOT_COMPARED]


def audit(
    states: Sequence[Any], source: DescribedDataset | Mixture | Manifest | str | os.PathLike[str] | None = None
) -> AuditReport:
    """Return whether checkpoints of a run prove that each row was delivered exactly once, and what is missing if not.

    A run may have been resumed on other numbers of ranks and workers, as often as it was. Its checkpoints prove what
    they cover: give all from which it was resumed, in this order, and the last one; others between them do no harm.
    Leave out those that a run abandoned when it went back to an earlier one. An epoch is proved to its end by a
    checkpoint that was saved after its last batch.

    Args:
        states: The checkpoints: for each, the state of the whole job, or a list of the states of its ranks or of all
            their workers, or anything that these are nested in, such as the checkpoint of a trainer.
        source: The dataset, or without filters its `Manifest` or its path, so that rows are named by file. None: by
            their place in the line of the epoch. For checkpoints of a mixture, the `Mixture`, with all sources that it
            had, and with its weights if it has a schedule of them: its states don't say how many rows a source has.

    Raises:
        StateFormatError: A checkpoint holds no state, or a damaged one.
        CheckpointMismatchError: States that are given as one checkpoint are of different steps or runs.
        TypeError: `states` is not a sequence.
        ValueError: There are no checkpoints, or the number of rows is not known without `source`, or that is a dataset
            and the checkpoints are of a mixture, or the other way round.
        DataFileError: `source` is a path, and can't be read.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import StatefulShardedDataset, audit
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": range(10)}), f"{folder}/part-0.parquet")
        >>> dataset = StatefulShardedDataset(folder, batch_size=2)
        >>> states = [dataset.state_dict() for batch in dataset]
        >>> audit(states[:3])
        AuditReport(
          3 checkpoints: each row exactly once,
          epoch 0: 6 of 10 rows delivered exactly once, 4 left
        )
    """
    if isinstance(states, (str, bytes)) or not isinstance(states, Sequence):
        message = f"states must be a list of checkpoints, not {type(states).__name__}"
        raise TypeError(message)
    if not states:
        message = "there is nothing to audit: pass the checkpoints of a run, in their order"
        raise ValueError(message)
    checkpoints = [Checkpoint(index, states_of_step(each, f"checkpoint {index}")) for index, each in enumerate(states)]
    check_kind(source, checkpoints[0].fields, "checkpoint 0")
    if isinstance(source, Mixture):
        return MixtureAudit(checkpoints, source.definition).report()
    return _Audit(checkpoints, _identity_of(source, checkpoints[0].fields)).report()


def _identity_of(
    source: DescribedDataset | Manifest | str | os.PathLike[str] | None, fields: Mapping[str, Any]
) -> Identity | None:
    """Return the files and settings of a run; None: they are not known."""
    if source is None:
        return None
    if isinstance(source, (Manifest, str, os.PathLike)):
        if fields["selection"] is not None:
            message = f"the rows are selected by {fields['selection']}: pass the dataset with these filters as source"
            raise ValueError(message)
        if counts_packs(fields):
            message = "the rows are packed by the lengths of all documents: pass the dataset with pack() as source"
            raise ValueError(message)
        manifest = source if isinstance(source, Manifest) else Manifest.scan(source)
        settings = Settings(**{name: fields[name] for name in Settings.__dataclass_fields__})
        return Identity(manifest.files, settings)
    identity: Identity = source.definition.identity
    return identity


class _Audit:
    """Goes through checkpoints, one after another."""

    def __init__(self, checkpoints: Sequence[Checkpoint], identity: Identity | None) -> None:
        self._checkpoints = checkpoints
        self._identity = identity
        self._findings: list[Finding] = []
        self._epochs: dict[int, AuditedEpoch] = {}
        self._faulty: dict[int, Intervals] = {}
        """Epoch -> places that are in findings."""

    def report(self) -> AuditReport:
        """Return what was found."""
        before: tuple[Checkpoint, LineProgress] | None = None
        for checkpoint in self._checkpoints:
            problem = self._foreign(checkpoint, None if before is None else before[0])
            if problem is not None:
                self._findings.append(Finding("other run", checkpoint.epoch, checkpoint.index, problem))
                continue
            now = LineProgress.of(checkpoint.states, self._line_of(checkpoint))
            self._follow(before, checkpoint, now)
            before = checkpoint, now
        if before is not None:
            self._close(*before, is_last=True)
        return AuditReport(len(self._checkpoints), tuple(self._epochs.values()), tuple(self._findings))

    # -- The run ------------------------------------------------------------------------------------------------------

    def _foreign(self, checkpoint: Checkpoint, before: Checkpoint | None) -> str | None:
        """Return how a checkpoint shows that it is of another run; None: it doesn't."""
        fields, identity = checkpoint.fields, self._identity
        lines: list[str] = []
        if fields["mixture"]:
            return "it is of a mixture, and the first one is of a single dataset"
        if identity is not None:
            present = identity_fields(identity, fields["order_version"])
            lines = identity_differences(_SETTINGS, fields, present)
            if fields["fingerprint"] != present["fingerprint"] and not self._is_followed_by_more(checkpoint):
                has_table = bool(fields["files"])
                lines.append(file_differences(fields["files"], identity.files) if has_table else "files: others")
        if before is not None and not lines:
            lines = _differences(before.fields, fields)
        return "; ".join(lines) or None

    def _is_followed_by_more(self, checkpoint: Checkpoint) -> bool:
        """Return whether files were added since the epoch of a checkpoint."""
        later = [each for each in self._checkpoints if each.epoch > checkpoint.epoch]
        return any(_has_more_files(checkpoint.fields, each.fields) for each in later)

    def _line_of(self, checkpoint: Checkpoint) -> int | Identity:
        """Return the rows of an epoch, or the identity of the files, if they are known."""
        fields, identity = checkpoint.fields, self._identity
        if identity is not None and fields["fingerprint"] == identity.fingerprint_in(fields["order_version"]):
            return identity
        alike = (each.fields for each in self._checkpoints if each.fields["fingerprint"] == fields["fingerprint"])
        found = next((rows for rows in map(num_rows_in, alike) if rows is not None), None)
        if found is None:
            unit, why = "rows", "it is that of a worker"
            if counts_packs(fields):
                unit, why = "packs", "these depend on the lengths of all documents"
            elif fields["selection"] is not None:
                why = "its rows are selected"
            message = f"checkpoint {checkpoint.index} doesn't say how many {unit} there are, as {why}: pass source="
            raise ValueError(message)
        return found

    # -- One checkpoint after another ---------------------------------------------------------------------------------

    def _follow(
        self, before: tuple[Checkpoint, LineProgress] | None, checkpoint: Checkpoint, now: LineProgress
    ) -> None:
        """Compare a checkpoint with the one before."""
        if before is None:
            self._report("unknown", checkpoint, now, now.base, "they came before the first checkpoint that is given")
            return
        last, was = before
        if checkpoint.epoch < last.epoch:
            reason = f"the run went back from epoch {last.epoch}"
            self._report("delivered twice", last, was, was.delivered, reason)
        if checkpoint.epoch != last.epoch:
            self._close(last, was, is_last=False)
            for epoch in range(last.epoch + 1, checkpoint.epoch):
                reason = f"no checkpoint is of epoch {epoch}"
                unit = _unit_of(checkpoint)
                self._findings.append(Finding("unknown", epoch, checkpoint.index, reason, now.num_rows, unit=unit))
        self._compare(last, was if checkpoint.epoch == last.epoch else None, checkpoint, now)

    def _compare(self, last: Checkpoint, was: LineProgress | None, checkpoint: Checkpoint, now: LineProgress) -> None:
        """Compare what had been delivered at two checkpoints of an epoch; None: the epoch begins."""
        before = Intervals.empty() if was is None else was.delivered
        is_same_cut = was is not None and _is_same_cut(was, now)
        # In the same cut, the run went on. In a new one, it began where the last checkpoint was.
        later = now.delivered if is_same_cut else now.base
        twice = (before - later) - now.unknown
        reason = f"checkpoint {last.index} has them, and the run went on from before them"
        self._report("delivered twice", checkpoint, now, twice, reason)
        unknown = Intervals.empty() if was is None else was.unknown
        missing = Intervals.empty() if is_same_cut else (now.base - before) - unknown
        reason = (
            "the run began behind them, and no checkpoint is where it began: they were skipped, or the checkpoint from "
            "which it was resumed is not given"
        )
        self._report("not delivered", checkpoint, now, missing, reason)

    def _close(self, checkpoint: Checkpoint, now: LineProgress, *, is_last: bool) -> None:
        """Count the rows of an epoch at its last checkpoint."""
        self._report("unknown", checkpoint, now, now.unknown, "they are in lanes of ranks whose state is not given")
        if not is_last and not now.is_complete:
            reason = "no checkpoint is of the end of their epoch, and a later one is of the next"
            self._report("unknown", checkpoint, now, now.ahead, reason)
        faulty = self._faulty.get(checkpoint.epoch, Intervals.empty())
        known = len(now.delivered | now.ahead | now.unknown)
        self._epochs[checkpoint.epoch] = AuditedEpoch(
            epoch=checkpoint.epoch,
            num_rows=now.num_rows,
            num_delivered=len(now.delivered - faulty),
            num_left=len(now.ahead - faulty) if is_last else 0,
            num_left_out=now.num_rows - known,
            num_repeated=now.num_repeated,
            unit=_unit_of(checkpoint),
        )

    def _report(self, kind: Kind, checkpoint: Checkpoint, now: LineProgress, places: Intervals, reason: str) -> None:
        if not len(places):
            return
        epoch = checkpoint.epoch
        self._faulty[epoch] = self._faulty.get(epoch, Intervals.empty()) | places
        pairs = (*zip(places.starts.tolist(), places.stops.tolist(), strict=True),)
        ranges = tuple(self._ranges(checkpoint, now, places))
        unit = _unit_of(checkpoint)
        self._findings.append(Finding(kind, epoch, checkpoint.index, reason, len(places), pairs, ranges, unit=unit))

    def _ranges(self, checkpoint: Checkpoint, now: LineProgress, places: Intervals) -> Iterator[RowRange]:
        """Yield where places of the line are in the files, as far as these are known."""
        identity, fields = self._identity, checkpoint.fields
        if identity is None or now.progress.cut is None:
            return
        if fields["fingerprint"] != identity.fingerprint_in(fields["order_version"]):
            return
        for file_index, start, stop in ranges_of_line(identity.plan(now.progress), places):
            yield RowRange(identity.files.paths[file_index], start, stop)


def _unit_of(checkpoint: Checkpoint) -> Unit:
    return "pack" if counts_packs(checkpoint.fields) else "row"


def _is_same_cut(was: LineProgress, now: LineProgress) -> bool:
    """Return whether two checkpoints of an epoch are of the same cut of it."""
    cuts = was.progress.cut, now.progress.cut
    if cuts[0] is None or cuts[1] is None or len(was.progress.earlier) != len(now.progress.earlier):
        return False
    shapes = [(cut.num_lanes, cut.turn_rows) for cut in cuts if cut]
    return shapes[0] == shapes[1] and not len(was.base - now.base) and not len(now.base - was.base)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in what a state differs from the one before, as those of one run can't."""
    lines = [line.replace("this run has", "this one has") for line in identity_differences(_SETTINGS, before, now)]
    is_same_order = before["order_version"] == now["order_version"]
    if before["epoch"] == now["epoch"] and not is_same_order:
        lines.append(f"order_version: saved {before['order_version']}, this one has {now['order_version']}")
    if is_same_order and before["fingerprint"] != now["fingerprint"]:
        has_more = before["epoch"] < now["epoch"] and _has_more_files(before, now)
        if not has_more:
            prints = before["fingerprint"][:8], now["fingerprint"][:8]
            lines.append(f"files: saved those with fingerprint {prints[0]}, this one has {prints[1]}")
    if not {*parse_gaps(before["without"])} <= {*parse_gaps(now["without"])}:
        lines.append(f"without: saved {before['without']!r}, this one has {now['without']!r}")
    return lines


def _has_more_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether the files of a state are those of an earlier one and more."""
    tables = before["files"], now["files"]
    if not all(tables) or not all(map(names_files, tables)):
        return False
    files = [*map(decode_files, tables)]
    return files[0].items() <= files[1].items()
