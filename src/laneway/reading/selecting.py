"""Planning a selection: how many rows of each block the steps select, as far as possible without reading the block."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np
import pyarrow as pa

from laneway.catalog.progress_bar import progress_bar
from laneway.core.selection import Selection, compact
from laneway.reading import pruning
from laneway.reading.block_runs import block_runs, num_reading_threads
from laneway.reading.counts_cache import Counts, CountsCache
from laneway.reading.deletes import not_deleted
from laneway.reading.expressions import Filter
from laneway.reading.reader import RowReader
from laneway.reading.steps import Part, Run, Slice, select

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from laneway.catalog.caching import CacheDir
    from laneway.catalog.contents import ManifestContents
    from laneway.reading.steps import Step
    from laneway.storage.filesystem import Storage


@final
@dataclass(frozen=True, eq=False)
class RowSelection:
    """The rows that belong to a dataset: how many of each block, and how to find them."""

    steps: tuple[Step, ...]
    """In this order."""
    schema: pa.Schema
    """The columns that they look at."""
    planned: tuple[Counts, ...]
    """What was counted for each step: the rows that it leaves."""
    rows: Selection
    """Selected rows of each block."""

    @property
    def known(self) -> list[Selection]:
        """What was counted for each step, as far as the texts of the steps say what they select."""
        found = []
        for stop in range(1, len(self.steps) + 1):
            steps = self.steps[:stop]
            if all(step.is_named for step in steps):
                found.append(Selection(_text_of(steps), self.planned[stop - 1].block_rows))
        return found


def rows_of(manifest: ManifestContents) -> RowSelection | None:
    """Return the rows of the files that belong to their table; None: all."""
    step = not_deleted(manifest)
    if step is None:
        return None
    counts = Counts(compact(step.counts(manifest.files)), 0, 0, 0)
    return RowSelection((step,), pa.schema([]), (counts,), Selection(step.text, counts.block_rows))


class Planner:
    """Counts the rows of selections of one manifest."""

    def __init__(
        self, manifest: ManifestContents, storage: Storage, cache_dir: CacheDir = None, *, progress: bool | None = None
    ) -> None:
        """Prepare to count.

        Args:
            manifest: The files.
            storage: Where they are.
            cache_dir: Where counts are cached; see `Manifest.scan`.
            progress: True shows a progress bar, False does not, None does if counting takes longer than 2 s.
        """
        self._manifest = manifest
        self._storage = storage
        self._cache = CountsCache(manifest, storage, cache_dir)
        self._progress = progress
        self._all = rows_of(manifest)

    def extend(self, selection: RowSelection | None, steps: Sequence[Step], schema: pa.Schema) -> list[RowSelection]:
        """Return the selection with each of some steps after its own. What is read is read once for all of them.

        Args:
            selection: The rows that the steps choose from; None: all, without those that a table has deleted.
            steps: The steps.
            schema: The columns that they look at.

        Raises:
            DataFileError: A file can't be read, or a step can't be computed for its rows.
        """
        selection = self._all if selection is None else selection
        before = () if selection is None else selection.steps
        planned = () if selection is None else selection.planned
        fields = {each.name: each for each in (*(() if selection is None else selection.schema), *schema)}
        columns = pa.schema(list(fields.values()))
        texts = [_text_of((*before, step)) for step in steps]
        is_named = [all(each.is_named for each in (*before, step)) for step in steps]
        found = [self._known(text) if named else None for text, named in zip(texts, is_named, strict=True)]
        missing = [index for index, counts in enumerate(found) if counts is None]
        for index, counts in zip(missing, self._count(selection, [steps[i] for i in missing], columns), strict=True):
            found[index] = counts
            if is_named[index]:
                self._remember(texts[index], counts)
        return [
            RowSelection((*before, step), columns, (*planned, counts), Selection(text, counts.block_rows))
            for step, text, counts in zip(steps, texts, found, strict=True)
            if counts is not None
        ]

    def text_of(self, step: Step) -> str:
        """Return the text of the selection that a step makes of all rows."""
        return _text_of((*(() if self._all is None else self._all.steps), step))

    def known(self, step: Step) -> Counts | None:
        """Return the counts of a step of all rows, if they are known already."""
        return self._known(self.text_of(step)) if step.is_named else None

    def count_part(self, step: Step, schema: pa.Schema, blocks: slice) -> Counts:
        """Return the counts of a step of all rows in some blocks, so that ranks can share the work.

        Args:
            step: The step.
            schema: The columns that it looks at.
            blocks: The blocks, which are those of whole files; `core.selection.part_of_blocks` divides them.

        Raises:
            DataFileError: A file can't be read, or the step can't be computed for its rows.
        """
        (counts,) = self._count(self._all, [step], schema, blocks)
        return counts._replace(block_rows=counts.block_rows[blocks])

    def join(self, step: Step, parts: Sequence[Counts]) -> Counts:
        """Return the counts of all blocks from those of consecutive parts, and cache them."""
        totals = np.sum([counts[1:] for counts in parts], axis=0).tolist()
        counts = Counts(np.concatenate([counts.block_rows for counts in parts]), *totals)
        self._remember(self.text_of(step), counts)
        return counts

    def _remember(self, text: str, counts: Counts) -> None:
        if counts.by_statistics + counts.by_rows:
            self._cache.write(text, counts)

    def _known(self, text: str) -> Counts | None:
        planned = next((each for each in self._manifest.selections if each.text == text), None)
        return Counts(planned.block_rows, 0, 0, 0) if planned is not None else self._cache.read(text)

    def _count(
        self, selection: RowSelection | None, steps: Sequence[Step], columns: pa.Schema, blocks: slice | None = None
    ) -> list[Counts]:
        """Return the counts of each step, without those of the cache; of other blocks than `blocks`, zero."""
        files = self._manifest.files
        left = files.block_rows if selection is None else selection.rows.block_rows
        if blocks is not None:
            mine = np.zeros_like(left)
            mine[blocks] = left[blocks]
            left = mine
        before = () if selection is None else selection.steps
        counting = _Counting(self._manifest, self._storage, before, left, columns, self._progress)
        found = []
        with ThreadPoolExecutor(num_reading_threads(is_remote=not self._storage.is_local)) as pool:
            try:
                found = [counting.decide(step, pool) for step in steps]
                runs = [*counting.runs(np.logical_or.reduce([each.block_rows < 0 for each in found]))] if found else []
                with progress_bar(len(runs), "counting rows", " reads", progress=self._progress) as bar:
                    counted = pool.map(lambda run: counting.read(steps, *run), runs)
                    for (file_index, first, stop), counts in zip(runs, counted, strict=True):
                        bar.update()
                        base = int(files.block_starts[file_index])
                        for each, rows in zip(found, counts, strict=True):
                            part = each.block_rows[base + first : base + stop]
                            part[part < 0] = rows[part < 0]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                counting.close()
        return [counts._replace(block_rows=compact(counts.block_rows)) for counts in found]


@dataclass(frozen=True, eq=False)
class _Counting:
    """Counts what some steps select."""

    manifest: ManifestContents
    """The files."""
    storage: Storage
    """Where they are."""
    before: tuple[Step, ...]
    """The steps before these."""
    left: NDArray[np.integer]
    """The rows of each block that they leave, shape (num_blocks,)."""
    columns: pa.Schema
    """The columns that all steps look at."""
    progress: bool | None
    """Whether to show progress bars; None: only of work that takes longer than 2 s."""
    readers: dict[tuple[str, ...], RowReader] = field(default_factory=dict)
    """Readers of some of these columns."""

    def decide(self, step: Step, pool: ThreadPoolExecutor) -> Counts:
        """Return what is known without reading rows; the counts of blocks that must be read are negative."""
        left = self.left
        if isinstance(step, Slice):
            return Counts(step.counts(left), 0, 0, 0)
        has_rows = left > 0
        of_file = self._by_files(step)
        outcome = np.repeat(of_file, np.diff(self.manifest.files.block_starts))
        outcome[~has_rows] = pruning.NONE
        by_keys = int(np.count_nonzero((outcome != pruning.UNKNOWN) & has_rows))
        by_statistics = 0
        if isinstance(step, Filter):
            by_statistics = self._by_statistics(step, outcome, pool)
        is_unknown = outcome == pruning.UNKNOWN
        counts = np.where(outcome == pruning.ALL, left, 0)
        counts[is_unknown] = -1
        if not step.columns:
            self._by_place(step, counts)
        return Counts(counts, by_keys, by_statistics, int(np.count_nonzero(counts < 0)))

    def _by_files(self, step: Step) -> NDArray[np.int8]:
        manifest = self.manifest
        if isinstance(step, Part) and step.by == "file":
            return np.array([step.has_file(path) for path in manifest.files.paths], np.int8)
        if isinstance(step, (Filter, Part)) and pruning.keys_only(manifest, step):
            return pruning.by_keys(manifest, step, pa.schema([self.columns.field(name) for name in step.columns]))
        if isinstance(step, Filter):
            return pruning.by_known_keys(manifest, step)
        return np.full(manifest.files.num_files, pruning.UNKNOWN, np.int8)

    def _by_statistics(self, step: Filter, outcome: NDArray[np.int8], pool: ThreadPoolExecutor) -> int:
        """Set the outcome of blocks of which statistics tell enough, and return how many these are."""
        starts = self.manifest.files.block_starts
        unknown = np.flatnonzero(outcome == pruning.UNKNOWN)
        files = np.unique(np.searchsorted(starts, unknown, side="right") - 1).tolist()
        reader = self._reader(step.columns)
        found = pool.map(lambda file_index: pruning.by_statistics(reader, file_index, step), files)
        with progress_bar(len(files), "reading statistics", " files", progress=self.progress) as bar:
            for file_index, of_blocks in zip(files, found, strict=True):
                bar.update()
                if of_blocks is not None:
                    part = outcome[starts[file_index] : starts[file_index + 1]]
                    is_unknown = part == pruning.UNKNOWN
                    part[is_unknown] = of_blocks[is_unknown]
        return len(unknown) - int(np.count_nonzero(outcome == pruning.UNKNOWN))

    def _by_place(self, step: Step, counts: NDArray[np.int64]) -> None:
        """Count the rows of a step that looks at no column, in blocks of which all rows are left."""
        files = self.manifest.files
        for file_index, first, stop in self.runs((counts < 0) & (self.left == files.block_rows)):
            run = Run.of(self.manifest, file_index, first, stop)
            blocks = slice(run.first_block, run.first_block + stop - first)
            counts[blocks] = run.count_by_block(select((step,), pa.table({}), run))

    def runs(self, is_unknown: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
        """Return what is to be read at once: blocks of which all rows are left, or blocks of which some are."""
        files = self.manifest.files
        return block_runs(files, self.columns, is_unknown, self.left == files.block_rows)

    def _reader(self, names: tuple[str, ...]) -> RowReader:
        """Return the reader of some columns, which all threads share."""
        if names not in self.readers:
            schema = pa.schema([self.columns.field(name) for name in names])
            self.readers.setdefault(names, RowReader(self.manifest, self.storage, schema))
        return self.readers[names]

    def close(self) -> None:
        """Close the files."""
        for reader in self.readers.values():
            reader.close()

    def read(self, steps: Sequence[Step], file_index: int, first: int, stop: int) -> list[NDArray[np.int64]]:
        """Read blocks of a file, and return how many rows of each of them each step selects."""
        run = Run.of(self.manifest, file_index, first, stop)
        blocks = slice(run.first_block, run.first_block + stop - first)
        is_whole = np.array_equal(self.left[blocks], self.manifest.files.block_rows[blocks])
        before = () if is_whole else self.before
        names = dict.fromkeys(name for step in (*before, *steps) for name in step.columns)
        rows = self._reader(tuple(names)).read(file_index, run.first_row, run.first_row + run.num_rows)
        left = select(before, rows, run)
        return [run.count_by_block(select((step,), rows, run, left)) for step in steps]


def _text_of(steps: Sequence[Step]) -> str:
    return " | ".join(step.text for step in steps)
