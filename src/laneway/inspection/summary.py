"""What a saved state holds, as a value to look at, and how two states differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, final

from laneway.core.differences import saved_file_differences, shorten
from laneway.core.line import LineProgress, counts_packs, num_rows_in
from laneway.core.mixture_progress import MIXTURE_SETTINGS
from laneway.core.mixtures import MixturePlan
from laneway.core.progress import ended_cut
from laneway.core.saved_files import decode_files, decode_parts, names_files
from laneway.core.schema import Role, names_of
from laneway.core.weighting import shares_of
from laneway.inspection.collecting import find_step, progress_of
from laneway.wording import counted, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from laneway.core.progress import EarlierCut, Progress
    from laneway.core.schema import SavedState
    from laneway.inspection.collecting import FoundStep

_SETTINGS = [name for name in names_of(Role.IDENTITY) if name != "fingerprint"]
_MAX_LANES = 8
_MAX_STAGES = 200
"""Maximum characters of the text of stages."""


class CutSummary(NamedTuple):
    """A cut of an epoch: how its rows were divided into lanes, and how many came from it."""

    num_lanes: int
    """Number of lanes."""
    turn_rows: int
    """Rows of a turn."""
    world_size: int
    """Ranks that shared the lanes."""
    batch_rows: int
    """Rows of the batch of a rank."""
    num_delivered: int | None
    """Rows that were delivered in this cut; None: the state doesn't say, see `StateSummary.num_delivered`."""


class SourceSummary(NamedTuple):
    """A source of a mixture in its current cut."""

    name: str
    """Its name."""
    weight: float
    """Its weight."""
    share: float
    """Its share of the rows by its weight, in [0, 1]."""
    num_delivered: int | None
    """Its rows that were delivered since the mixture began, of the lanes that are known; with `flat_map` or `pack`,
    also those of which some items or packs are still to come. None: see `StateSummary.num_delivered`."""
    next_epoch: int
    """Its first epoch that had not begun when the cut began."""
    num_left: int
    """Rows that the cut was left of earlier epochs."""
    num_tokens: int | None = None
    """Its tokens that were delivered since the mixture began, in packs of unknown lengths; None: not counted."""


class RankAhead(NamedTuple):
    """A rank that is further ahead than others."""

    rank: int
    """The rank."""
    epoch: int
    """The epoch in which it is."""


@final
@dataclass(frozen=True, repr=False)
class StateSummary:
    """What a state holds."""

    scope: str
    """Whose progress it is: "global" for the whole job, "rank" or "worker"."""
    ranks: tuple[int, ...]
    """The ranks whose lanes it holds, if it is not of the whole job."""
    world_size: int
    """Number of ranks that saved it."""
    num_workers: int
    """Workers of each rank; 1 where the main process counts for them."""
    epoch: int
    """The epoch, zero-based; of a mixture, how many times it has ended."""
    is_complete: bool
    """Whether the epoch was delivered to its end."""
    num_rows: int | None
    """Rows of the epoch; None: the state doesn't say."""
    num_delivered: int | None
    """Rows that were delivered in the epoch, or in the mixture since it began; with `flat_map` or `pack`, those whose
    items or packs were all delivered. None: the state doesn't say, as the epoch is complete and `num_rows` unknown."""
    num_steps: int
    """Global batches that were taken in the current cut."""
    positions: tuple[int | None, ...]
    """Rows that were delivered from each lane of the current cut; None: unknown. Empty if `num_delivered` is None."""
    cuts: tuple[CutSummary, ...]
    """The cuts of the epoch that the state holds, oldest first; the last one is the current one."""
    sources: tuple[SourceSummary, ...]
    """The sources of a mixture."""
    num_files: int | None
    """Number of data files; None: the state doesn't say."""
    fingerprint: str
    """The identity of the rows."""
    settings: tuple[tuple[str, Any], ...]
    """Name and value of each setting that decides the order."""
    version: int
    """Version of the format."""
    ahead: tuple[RankAhead, ...] = ()
    """The ranks that are in a later epoch than the others, or have begun a later cut of a mixture; all else is said of
    the others."""
    _has_parts: bool = field(default=False, repr=False)
    """Whether some items or packs of the rows that follow were delivered too."""
    _item: str = field(default="row", repr=False)
    """What lanes count: rows, or packs of documents of known lengths."""

    @property
    def share(self) -> float | None:
        """The share of the epoch that was delivered, in [0, 1]; None: unknown."""
        return self.num_delivered / self.num_rows if self.num_delivered is not None and self.num_rows else None

    @property
    def num_cuts(self) -> int:
        """Number of the cuts."""
        return len(self.cuts)

    @property
    def _whole(self) -> str:
        """What is counted, where some rows are delivered in part."""
        return " delivered in full" if self._has_parts else ""

    def __repr__(self) -> str:
        whose = {"global": "the whole job", "rank": "some ranks", "worker": "some workers"}[self.scope]
        ranks = f" ({', '.join(map(str, self.ranks))})" if self.ranks else ""
        lines = [f"of {whose}{ranks}, saved by {counted(self.world_size, 'rank')}, format version {self.version}"]
        lines += self._ahead_lines()
        lines.append(f"epoch {self.epoch}: {', '.join(self._progress())}")
        lines += [self._cut_line(index, cut) for index, cut in enumerate(self.cuts)]
        if self.positions:
            shown = ["?" if rows is None else f"{rows:,}" for rows in self.positions[:_MAX_LANES]]
            more = f", ... ({len(self.positions):,} lanes)" if len(self.positions) > _MAX_LANES else ""
            parts = "; of the next ones, some items or packs" if self._has_parts else ""
            lines.append(f"{self._item}s of each lane{self._whole}: {', '.join(shown)}{more}{parts}")
        lines += map(self._source_line, self.sources)
        files = "" if self.num_files is None else f"{counted(self.num_files, 'file')}, "
        lines.append(f"{files}fingerprint {self.fingerprint[:8]}")
        shown = [f"{name}={_shown(name, value)}" for name, value in self.settings if value is not None]
        lines.append(", ".join(shown))
        return "StateSummary(\n  " + ",\n  ".join(lines) + "\n)"

    def _progress(self) -> Iterator[str]:
        if self.num_delivered is not None:
            of_all = f" of {self.num_rows:,}" if self.num_rows is not None else ""
            share = f" ({self.share:.1%})" if self.share is not None else ""
            yield f"{self.num_delivered:,}{of_all} {self._item}s{self._whole or ' delivered'}{share}"
        if self.is_complete:
            yield "complete"

    def _ahead_lines(self) -> Iterator[str]:
        for epoch in sorted({each.epoch for each in self.ahead}):
            ranks = [str(each.rank) for each in self.ahead if each.epoch == epoch]
            more = f", ... ({len(ranks):,} ranks)" if len(ranks) > _MAX_LANES else ""
            where = f"epoch {epoch}" if epoch > self.epoch else f"a later cut of epoch {epoch}"
            yield f"ahead of them, in {where}: rank{'s' * (len(ranks) > 1)} {', '.join(ranks[:_MAX_LANES])}{more}"

    def _cut_line(self, index: int, cut: CutSummary) -> str:
        which = "current cut" if index == self.num_cuts - 1 else f"earlier cut {index}"
        batches = f"{counted(cut.world_size, 'rank')} with batches of {cut.batch_rows:,}"
        whole = self._whole or " delivered"
        delivered = "" if cut.num_delivered is None else f", {counted(cut.num_delivered, self._item)}{whole}"
        return f"{which}: {counted(cut.num_lanes, 'lane')}, {batches}{delivered}"

    def _source_line(self, source: SourceSummary) -> str:
        counts = [(source.num_delivered, self._item), (source.num_tokens, "token")]
        known = " and ".join(counted(number, what) for number, what in counts if number is not None)
        delivered = f", {known} delivered" if known else ""
        left = f"{counted(source.num_left, self._item)} left of earlier epochs, then " if source.num_left else ""
        return (
            f"source {source.name!r}: weight {source.weight:g} ({100 * source.share:.4g}% of the {self._item}s)"
            f"{delivered}; this cut begins with {left}epoch {source.next_epoch}"
        )


def _shown(name: str, value: object) -> str:
    if name == "stages" and isinstance(value, str):
        return value if len(value) <= _MAX_STAGES else f"{value[: _MAX_STAGES - 3]}..."
    return size(value) if name.endswith("_bytes") and isinstance(value, int) else shorten(value)


def describe_state(state: Any, *, key: str | None = None) -> StateSummary:  # noqa: ANN401 - any form of a state
    """Return what a state holds, as a value whose repr is for reading.

    Args:
        state: The state of the whole job, or a list of the states of ranks or workers at the same step, or anything
            that they are nested in, such as the checkpoint of a trainer.
        key: Which of several loaders: the key under which its state is; None: there is only one.

    Raises:
        StateFormatError: There is no state, or it is damaged.
        CheckpointMismatchError: The states are of different runs or steps.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import StatefulShardedDataset, describe_state
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": range(10)}), f"{folder}/part-0.parquet")
        >>> dataset = StatefulShardedDataset(folder, batch_size=4)
        >>> _ = next(iter(dataset))
        >>> summary = describe_state(dataset.state_dict())
        >>> summary.epoch, summary.num_delivered, summary.num_rows
        (0, 4, 10)
    """
    return _summary(find_step(state, "this value", key))


def _summary(found: FoundStep) -> StateSummary:
    """Return what the states of one step hold."""
    saved = found.states
    fields, num_rows = saved[0].fields, None
    if not fields["mixture"]:
        num_rows = next((rows for rows in (num_rows_in(each.fields) for each in saved) if rows is not None), None)
    line = None if num_rows is None else LineProgress.of(saved, num_rows)
    progress = progress_of(saved) if line is None else line.progress
    cuts = () if progress.cut is None else tuple(map(_cut_summary, (*progress.earlier, ended_cut(progress))))
    positions, sources = _positions(progress), _sources(progress)
    num_delivered: int | None = _num_delivered(progress, cuts) if line is None else len(line.delivered)
    if line is None and _is_at_its_end(saved[0]):
        # The last turns may be short, by how much is not known.
        num_delivered, positions = None, ()
        cuts = (*cuts[:-1], cuts[-1]._replace(num_delivered=None))
        sources = tuple(each._replace(num_delivered=None) for each in sources)
    is_complete = all(each.is_complete for each in saved) if line is None else line.is_complete
    return StateSummary(
        scope=fields["scope"],
        ranks=() if fields["scope"] == "global" else tuple(sorted({each.place.rank for each in saved})),
        world_size=fields["world_size"],
        num_workers=fields["num_workers"],
        epoch=fields["epoch"],
        is_complete=is_complete,
        num_rows=num_rows,
        num_delivered=num_delivered,
        num_steps=max(each.fields["next_turn"] for each in saved) // (progress.sharing.job_turns if cuts else 1),
        positions=positions,
        cuts=cuts,
        sources=sources,
        num_files=_num_files(fields["files"]),
        fingerprint=fields["fingerprint"],
        settings=tuple((name, fields[name]) for name in (MIXTURE_SETTINGS if fields["mixture"] else _SETTINGS)),
        version=saved[0].original["version"],
        # Each once, of which there may be a state for each worker.
        ahead=tuple(dict.fromkeys(RankAhead(each.fields["rank"], each.fields["epoch"]) for each in found.ahead)),
        _has_parts=progress.cut is not None and any(each.offset for each in progress.cut.positions.values()),
        _item="pack" if counts_packs(fields) else "row",
    )


def _is_at_its_end(saved: SavedState) -> bool:
    """Return whether the state of a job has ended an epoch, and its positions follow from how many rows that has."""
    fields = saved.fields
    is_complete = saved.is_global and saved.is_complete and fields["lanes"] is not None
    return is_complete and fields["positions"] is None and fields["epoch_batches"] is None


def _num_delivered(progress: Progress, cuts: Sequence[CutSummary]) -> int:
    cut_rows = [cut.num_delivered or 0 for cut in cuts]
    return progress.starts[-1].rows_before + sum(cut_rows[-1:]) if progress.starts else sum(cut_rows)


def _cut_summary(cut: EarlierCut) -> CutSummary:
    world_size, turns_per_batch, _ = cut.sharing
    return CutSummary(cut.num_lanes, cut.turn_rows, world_size, turns_per_batch * cut.turn_rows, int(cut.rows().sum()))


def _positions(progress: Progress) -> tuple[int | None, ...]:
    cut = progress.cut
    if cut is None:
        return ()
    return tuple(cut.positions[lane].rows if lane in cut.positions else None for lane in range(cut.num_lanes))


def _sources(progress: Progress) -> tuple[SourceSummary, ...]:
    if not progress.starts:
        return ()
    sources = progress.starts[-1].sources
    plan = MixturePlan({}, progress)
    shares = shares_of({each.name: each.weight for each in sources})
    return tuple(
        SourceSummary(
            each.name,
            each.weight,
            shares[each.name],
            plan.rows_of(each.name),
            each.next_epoch,
            sum(rest.num_rows for rest in each.rests),
            progress.tokens.get(each.name),
        )
        for each in sources
    )


def _num_files(encoded: str) -> int | None:
    if not encoded:
        return None
    return len(decode_files(encoded)) if names_files(encoded) else decode_parts(encoded).num_files


@final
@dataclass(frozen=True, repr=False)
class StateDifferences:
    """How two states differ."""

    settings: tuple[tuple[str, Any, Any], ...]
    """Name of each field of the identity that differs, and both values: the states belong to different orders."""
    progress: tuple[tuple[str, Any, Any], ...]
    """Name of each attribute of their summaries that differs, and both values."""
    files: str | None
    """How the data files differ, if both states name them; None: they don't differ."""

    @property
    def is_same_order(self) -> bool:
        """Whether both belong to the same rows in the same order, so that one may continue the other."""
        return not self.settings

    def __bool__(self) -> bool:
        """Return whether they differ."""
        return bool(self.settings or self.progress)

    def __repr__(self) -> str:
        if not self:
            return "StateDifferences(none)"
        lines = [f"{name}: {_shown(name, old)} and {_shown(name, new)}" for name, old, new in self.settings]
        lines += [] if self.files is None else [self.files]
        lines += [f"{name}: {_shown(name, old)} and {_shown(name, new)}" for name, old, new in self.progress]
        return "StateDifferences(\n  " + ",\n  ".join(lines) + "\n)"


_COMPARED = (
    *("scope", "world_size", "num_workers", "epoch", "is_complete", "num_rows", "num_delivered", "num_steps"),
    *("num_cuts", "positions", "ahead"),
)


def compare_states(a: Any, b: Any, *, key: str | None = None) -> StateDifferences:  # noqa: ANN401 - any form of a state
    """Return how two states differ: in what they belong to, and in how far they are.

    Args:
        a: A state in any form that `describe_state` takes.
        b: Another one.
        key: Which of several loaders; see `describe_state`.

    Raises:
        StateFormatError: There is no state, or it is damaged.
        CheckpointMismatchError: States that are given as one are of different runs or steps.
    """
    both = [find_step(each, "this value", key) for each in (a, b)]
    fields, found = [each.states[0].fields for each in both], [*map(_summary, both)]
    tables = [each["files"] for each in fields]
    is_named = all(tables) and all(map(names_files, tables)) and tables[0] != tables[1]
    return StateDifferences(
        tuple(
            (name, *values)
            for name in ("fingerprint", *_SETTINGS)
            if (values := tuple(each[name] for each in fields))[0] != values[1]
        ),
        (
            *(
                (name, *values)
                for name in _COMPARED
                if (values := tuple(getattr(each, name) for each in found))[0] != values[1]
            ),
            *_source_differences(*found),
        ),
        saved_file_differences(*map(decode_files, tables)) if is_named else None,
    )


def _source_differences(a: StateSummary, b: StateSummary) -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs between the sources of two mixtures, source by source."""
    before, now = ({each.name: each for each in summary.sources} for summary in (a, b))
    for name in dict.fromkeys([*before, *now]):
        if name not in before or name not in now:
            there = ["there" if name in each else "not there" for each in (before, now)]
            yield f"source {name!r}", there[0], there[1]
            continue
        old, new = before[name]._asdict(), now[name]._asdict()
        for key in old:
            if old[key] != new[key]:
                yield f"source {name!r}, {key}", old[key], new[key]
