"""What an audit of checkpoints found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

from laneway.wording import counted

Kind = Literal["not delivered", "delivered twice", "unknown", "other run"]
"""What is wrong: rows that no run is known to have delivered; rows that were delivered twice; rows of which these
checkpoints don't tell; a checkpoint that belongs to another run."""
Unit = Literal["row", "pack"]
"""What is counted: rows, or packs of documents of known lengths."""

_MAX_SHOWN = 5


class RowRange(NamedTuple):
    """Rows [start, stop) of a data file."""

    path: str
    start: int
    stop: int


@final
@dataclass(frozen=True)
class Finding:
    """Something that keeps checkpoints from proving that each row was delivered exactly once."""

    kind: Kind
    """What is wrong."""
    epoch: int
    """The epoch, zero-based."""
    checkpoint: int
    """Index of the checkpoint at which it was noticed, in the order in which they were given."""
    reason: str
    """Why, in words."""
    num_rows: int = 0
    """Number of the rows, or packs; see `unit`."""
    places: tuple[tuple[int, int], ...] = ()
    """Where they are in the line of the epoch: [start, stop) of each range, in order."""
    ranges: tuple[RowRange, ...] = ()
    """Where they are in the files, if `source` was given; at most the first 1,000 ranges. Of packs, the rows that have
    tokens in them."""
    source: str = ""
    """Of a mixture, the name of the source, whose epoch it is; "": no single one."""
    unit: Unit = "row"
    """What `num_rows` and `places` count: rows, or packs of documents of known lengths."""

    def __repr__(self) -> str:
        rows = f"{counted(self.num_rows, self.unit)} " if self.num_rows else ""
        source = f"source {self.source!r}, " if self.source else ""
        lines = [f"checkpoint {self.checkpoint}, {source}epoch {self.epoch}: {rows}{self.kind}: {self.reason}"]
        if self.ranges:
            shown = [f"{path} {start:,} to {stop:,}" for path, start, stop in self.ranges[:_MAX_SHOWN]]
            more = len(self.ranges) - len(shown)
        else:
            shown = [f"{start:,} to {stop:,}" for start, stop in self.places[:_MAX_SHOWN]]
            more = len(self.places) - len(shown)
            shown[:1] = [f"places {shown[0]}"] if shown else []
        if shown:
            lines.append(", ".join(shown) + (f", and {more:,} more" if more else ""))
        return "\n    ".join(lines)


@final
@dataclass(frozen=True)
class AuditedEpoch:
    """What checkpoints prove of one epoch."""

    epoch: int
    """Zero-based."""
    num_rows: int
    """Rows of the epoch, or of the epochs; or packs, as in all numbers below: see `unit`."""
    num_delivered: int
    """Rows that were delivered exactly once, as the checkpoints prove; those that padding repeats are among them."""
    num_left: int
    """Rows that are yet to be delivered after the last checkpoint."""
    num_left_out: int
    """Rows that `without`, `drop_last` or `remainder="drop"` leave out, the end of a mixture, or that of a source which
    was removed."""
    num_repeated: int
    """Rows that `remainder="pad"` has delivered once more, so that ranks deliver equally many; of a mixture, those of
    epochs that have ended are not counted."""
    source: str = ""
    """Of a mixture, the name of the source, whose epoch it is."""
    num_epochs: int = 1
    """Number of epochs, this one and those after it; more than one of a source of a mixture, which have ended."""
    unit: Unit = "row"
    """What is counted: rows, or packs of documents of known lengths."""

    def __repr__(self) -> str:
        parts = [f"{self.num_delivered:,} of {counted(self.num_rows, self.unit)} delivered exactly once"]
        counts = {"left": self.num_left, "left out on purpose": self.num_left_out, "repeated to pad": self.num_repeated}
        parts += [f"{count:,} {what}" for what, count in counts.items() if count]
        source = f"source {self.source!r}, " if self.source else ""
        epochs = f"epoch {self.epoch}"
        if self.num_epochs > 1:
            epochs = f"epochs {self.epoch} to {self.epoch + self.num_epochs - 1}"
        return f"{source}{epochs}: {', '.join(parts)}"


@final
@dataclass(frozen=True)
class AuditReport:
    """What checkpoints of a run prove: that each row was delivered exactly once, or what is missing for that."""

    num_checkpoints: int
    """Number of checkpoints."""
    epochs: tuple[AuditedEpoch, ...]
    """The epochs that they are of, oldest first; of a mixture, those of its sources, source after source."""
    findings: tuple[Finding, ...]
    """What keeps them from proving it; none if they do."""

    @property
    def is_exact(self) -> bool:
        """Whether each row that the run was to deliver before the last checkpoint was delivered exactly once."""
        return not self.findings

    @property
    def unit(self) -> Unit:
        """What is counted in all of its epochs: packs of documents of known lengths, or else rows."""
        return "pack" if self.epochs and all(each.unit == "pack" for each in self.epochs) else "row"

    @property
    def num_left(self) -> int:
        """Rows, or packs, of epochs that have begun, and that are yet to be delivered after the last checkpoint."""
        return sum(each.num_left for each in self.epochs)

    def __repr__(self) -> str:
        verdict = f"each {self.unit} exactly once" if self.is_exact else counted(len(self.findings), "finding")
        lines = [f"{counted(self.num_checkpoints, 'checkpoint')}: {verdict}"]
        lines += [repr(each) for each in (*self.epochs, *self.findings)]
        return "AuditReport(\n  " + ",\n  ".join(lines) + "\n)"
