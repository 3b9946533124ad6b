"""Copies of a dataset that know how many tokens each row has, so that its packs are counted before they are made."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch.utils.data import DataLoader

from laneway.arguments import check_function, check_int
from laneway.catalog.progress_bar import progress_bar
from laneway.core.options import LaneOptions
from laneway.core.turns import WorkerPlace
from laneway.cores import usable_cores
from laneway.errors import ColumnConversionError
from laneway.reading.expressions import columns_of
from laneway.reading.lengths import MAX_LENGTH, Lengths, LengthsCache, count_column
from laneway.selectable import SelectableDataset

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.delivery.context import RowContext

_BATCH_ROWS = 1024
"""Rows whose lengths are sent at once."""
_WORKER_ROWS = 5_000
"""Rows for which it pays off to start a worker."""


class CountableDataset(SelectableDataset):
    """A dataset of which there can be copies that know the lengths of its rows."""

    def count_lengths(
        self,
        of: str | Callable[[Any], Any],
        *,
        column: str = "input_ids",
        version: str | None = None,
        num_workers: int | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Return a copy that knows how many tokens each row has, at the start of epoch 0.

        If `pack` follows, packs are counted before they are made: `len` is exact, and any number of ranks and
        workers resumes. Unless `remainder="keep"` lets ranks end apart, all deliver equally many batches, and the
        state of any rank is that of the job. A document of another length than was counted is an error when it is
        packed.

        Args:
            of: A column of the files, which holds numbers of tokens, or the lists of tokens; or the function that
                makes a document of a row, as it is given to `map`: it is called once on each row, now.
            column: Name of the list of ints in what the function returns.
            version: Names this version of a function, with what it uses, such as its tokenizer: change it whenever
                that changes. Without it, lengths are not cached.
            num_workers: Processes that call a function; 0: this one; None: one for each core, fewer for few rows.
            progress: True shows a progress bar, False does not, None does if it takes longer than 2 s.

        Raises:
            TypeError: `of` is neither a name nor a function, or the function returns no document.
            ValueError: The dataset has stages, delivers batches, or skips rows for which functions fail.
            SchemaMismatchError: There is no such column.
            ColumnConversionError: The column holds no lengths, or a null.
            DataFileError: A file can't be read.

        Examples:
            >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
            >>> from laneway import StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"text": ["a b c", "d e", "f"]}), f"{folder}/part-0.parquet")
            >>> def tokenise(row):
            ...     return {"input_ids": [ord(word) for word in row["text"].split()]}
            >>> counted = StatefulShardedDataset(folder).count_lengths(tokenise)
            >>> len(counted.map(tokenise).pack(4, strategy="chunk"))
            2
        """
        self._check_takes_rows("count_lengths")
        definition = self.definition
        if definition.stages is not None:
            message = "count_lengths() counts a document for each row: call it before flat_map() and pack()"
            raise ValueError(message)
        if definition.transform.errors is not None:
            message = (
                "count_lengths() needs a document of each row, but on_error= hides rows for which functions fail: "
                "filter these out instead"
            )
            raise ValueError(message)
        if isinstance(of, str):
            (field,) = columns_of(definition.manifest, [of], self._given_schema)
            lengths = count_column(
                definition.manifest,
                definition.storage,
                field,
                definition.selection,
                self._cache_dir,
                progress=progress,
            )
            return self._changed(replace(definition, lengths=lengths))
        check_function(of, "of, unless it is the name of a column,")
        if version is not None and not isinstance(version, str):
            message = f"version must be a string, not {version!r}"
            raise TypeError(message)
        if num_workers is not None:
            check_int("num_workers", num_workers, minimum=0)
        cache = LengthsCache(definition.manifest, definition.storage, definition.selection, self._cache_dir)
        key = None if version is None else ("function", column, version)
        found = None if key is None else cache.read(key)
        if found is None:
            found = self._counted_by(_Counter(of, column), num_workers, progress=progress)
            if key is not None:
                cache.write(key, found)
        return self._changed(replace(definition, lengths=found))

    def _with_lengths(self, column: str) -> Self:
        """Return a copy that knows how many tokens each row has, by a column."""
        if not isinstance(column, str):
            message = f"lengths must be the name of a column, not {column!r}: give a function to count_lengths()"
            raise TypeError(message)
        return self.count_lengths(column)

    def _counted_by(self, counter: _Counter, num_workers: int | None, *, progress: bool | None) -> Lengths:
        """Return the lengths of what a function makes of all rows, those of all ranks."""
        definition, num_rows = self.definition, self.definition.identity.selected.num_rows
        settings = replace(definition.identity.settings, shuffle=False, remainder="keep", without=None)
        alone = replace(
            definition,
            identity=replace(definition.identity, settings=settings),
            options=LaneOptions(lanes=None, turn_rows=None, batch_size=None),
            place=WorkerPlace(),
        )
        counting = self._changed(alone)
        counting._asks_rank = False  # noqa: SLF001 - a copy of this object
        counting = counting.map(counter, with_context=True).batch(_BATCH_ROWS)
        if num_workers is None:
            num_workers = min(usable_cores(), num_rows // _WORKER_ROWS)
        file_of = {path: index for index, path in enumerate(definition.manifest.files.paths)}
        files, rows, lengths = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int32)
        done = 0
        # With a generator of its own, it draws nothing from the global one.
        loader = DataLoader(counting, batch_size=None, num_workers=num_workers, generator=torch.Generator())
        with progress_bar(num_rows, "counting lengths", " rows", progress=progress) as bar:
            for paths, of_rows, of_lengths in loader:
                part = slice(done, done + len(paths))
                files[part], rows[part], lengths[part] = [file_of[path] for path in paths], of_rows, of_lengths
                done += len(paths)
                bar.update(len(paths))
        # Batches of workers come in turns; lengths are in the order of the files.
        return Lengths(lengths[np.lexsort((rows, files))])


@dataclass(frozen=True)
class _Counter:
    """Returns where a row comes from, and the length of its document."""

    function: Callable[[Any], Any]
    column: str

    def __call__(self, row: Any, context: RowContext) -> tuple[str, int, int]:  # noqa: ANN401 - a row in any output
        """Count the tokens of a row.

        Raises:
            TypeError: The function returns no document.
        """
        item = self.function(row)
        document = item.get(self.column) if isinstance(item, dict) else None
        if not isinstance(document, Sized) or isinstance(document, (str, bytes)):
            message = (
                f"the function of count_lengths() must return a dict with a list of ints as {self.column!r}, as for "
                f"map(), not {item!r:.200}"
            )
            raise TypeError(message)
        if len(document) >= MAX_LENGTH:
            message = f"a document of {len(document):,} tokens is too long: it must have fewer than {MAX_LENGTH:,}"
            raise ColumnConversionError(message)
        return context.path, context.row, len(document)
