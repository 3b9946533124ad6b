"""Changed copies of a dataset: shuffled, and with more files."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Self

from laneway.arguments import check_seed
from laneway.core.plan import Settings
from laneway.countable import CountableDataset

if TYPE_CHECKING:
    from laneway.core.plan import Identity


class ChangeableDataset(CountableDataset):
    """A dataset of which there can be changed copies."""

    def shuffle(self, seed: int = 0) -> Self:
        """Return a copy that is shuffled, at the start of epoch 0.

        Args:
            seed: Any int in [0, 2**63).

        Raises:
            ValueError: `seed` is out of its range.
        """
        identity: Identity = self.definition.identity
        self._check_has_no_gaps("shuffle")
        settings = replace(identity.settings, shuffle=True, seed=check_seed(seed))
        return self._changed(replace(self.definition, identity=replace(identity, settings=settings)))

    def extend(self, grown: Self) -> Self:
        """Return a copy with more files, for a mixture that has begun with these: its next epoch has all of them.

        A mixture that resumes finishes the epochs that had begun with the files that they began with. Keep those in a
        saved `Manifest`.

        Args:
            grown: The dataset with more files, created as this one was, with the same filters and functions.

        Raises:
            ValueError: A setting differs, or a file of this dataset is gone or was changed.
            TypeError: `grown` is not a dataset.

        Examples:
            >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
            >>> from laneway import Manifest, StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"x": range(10)}), f"{folder}/part-0.parquet")
            >>> begun_with = Manifest.scan(folder)
            >>> pq.write_table(pa.table({"x": range(10, 15)}), f"{folder}/part-1.parquet")
            >>> web = StatefulShardedDataset(begun_with).extend(StatefulShardedDataset(folder))
            >>> len(web)
            15
        """
        if not isinstance(grown, ChangeableDataset):
            message = f"grown must be a StatefulShardedDataset with more files, not {grown!r}"
            raise TypeError(message)
        before, after = self.definition, grown.definition
        lines = [
            f"{field.name} is {old!r} before, and {new!r} now"
            for field in fields(Settings)
            for old, new in [[getattr(each.identity.settings, field.name) for each in (before, after)]]
            # A table that has more files has another version.
            if old != new and field.name != "table"
        ]
        facts = [_facts_of(each.identity) for each in (before, after)]
        changed = [path for path, fact in facts[0].items() if facts[1].get(path) != fact]
        if changed:
            what = "was changed" if changed[0] in facts[1] else "is gone"
            lines.append(f"{changed[0]} {what}")
        if lines:
            message = f"this dataset can't be extended by the other one: {'; '.join(lines)}"
            raise ValueError(message)
        return self._changed(replace(after, place=before.place, former=(*before.former, before)))


def _facts_of(identity: Identity) -> dict[str, tuple[int, int, str]]:
    """Return path -> size, rows and digest of each file."""
    files = identity.files
    facts = zip(files.sizes.tolist(), files.rows.tolist(), files.digests, strict=True)
    return dict(zip(files.paths, facts, strict=True))
