"""Copies of a dataset with stages, which make items of its rows: some of each row, or packs of documents."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from laneway.arguments import check_flag, check_function
from laneway.delivery.item_stages import Stages
from laneway.errors import SchemaMismatchError
from laneway.planned import PlannedDataset
from laneway.stages.packs import GROUP_ROWS, PackOptions
from laneway.stages.tokens import check_token_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.stages.packing import Overflow
    from laneway.stages.packs import Mask, Strategy


class StageableDataset(PlannedDataset):
    """A dataset of which there can be copies with stages."""

    def flat_map(self, fn: Callable[..., Any], *, with_context: bool = False) -> Self:
        """Return a copy in which a row becomes none, one or several items, at the start of epoch 0.

        A state counts the items of a row that were delivered. When it is resumed, `fn` is called on that row again, so
        it must return the same for the same row; randomness comes from the context.

        Args:
            fn: Called in the worker with a row, or with the result of `transform` or `map`. It returns a list of items
                or yields them; None or nothing drops the row.
            with_context: Whether `fn` is also passed where its row comes from, and a seed: a `RowContext`.

        Raises:
            TypeError: `fn` can't be called.
            ValueError: The dataset delivers batches or packs, `remainder` is "pad" or "drop", or `on_error` "mask".

        Examples:
            >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
            >>> from laneway import StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"text": ["a b", "", "c"]}), f"{folder}/part-0.parquet")
            >>> list(StatefulShardedDataset(folder).flat_map(lambda row: row["text"].split()))
            ['a', 'b', 'c']
        """
        check_function(fn)
        check_flag("with_context", with_context)
        self._check_takes_rows("flat_map")
        stages = self.definition.stages or Stages()
        return self._changed(self.definition.with_stages(stages.then(fn, takes_context=with_context, is_flat=True)))

    def pack(
        self,
        length: int,
        *,
        column: str = "input_ids",
        strategy: Strategy = "best_fit",
        separator: int | None = None,
        overflow: Overflow = "split",
        mask: Mask | None = "document_ids",
        pad_value: int = 0,
        group_rows: int | None = None,
        lengths: str | Literal[False] | None = None,
    ) -> Self:
        """Return a copy that packs documents of tokens into sequences of one length, at the start of epoch 0.

        A document is the list of ints that a row, or an item of `flat_map`, has in a column. A pack is a dict of int64
        tensors of shape (length,), and a batch of packs of tensors of shape (packs, length): `input_ids`;
        `position_ids`, which count from 0 in each document; `document_ids`, which number the documents of a pack from
        1, with 0 for padding. With `output="numpy"`, these are arrays.

        A state holds no tokens: rows that are half delivered are read and packed again. So the functions before must
        return the same for the same row; randomness comes from the context.

        Args:
            length: Tokens of a pack, separators and padding included.
            column: Name of the column that holds documents: of the files, or of what the functions before return. A
                column of the files is packed without a Python object for each row, and is the only one that is read.
            strategy: "best_fit": documents stay whole if they fit into a pack, and each goes into the fullest pack
                with enough room, among those of `group_rows` rows. "chunk": documents are laid end to end and cut.
            separator: Token to put after each document; None: none. A document that fills a pack has none.
            overflow: With "best_fit", what becomes of a document that is longer than a pack: "split" into several
                pieces, "truncate" to its start, "drop", or an "error".
            mask: "document_ids"; "cu_seqlens": these, and the int32 array of that name, in which the documents of all
                packs of a batch begin and end if the packs are laid end to end, padding being one of them; None: only
                `input_ids`.
            pad_value: Token of padding.
            group_rows: With "best_fit", rows whose documents are packed together, in memory. None: 2,048. More rows
                need less padding; a pass that resumes packs one group again.
            lengths: A column of the files that holds the number of tokens of each row, or its list of tokens: packs
                are counted by it, as after `count_lengths`. None: they are counted if `count_lengths` was called, for
                each source of a mixture. False: they are not. Packs of a mixture that are counted consist of documents
                of one source each, and are what is mixed.

        Raises:
            ValueError: An argument is out of its range; the dataset delivers batches or packs already; `remainder` is
                "pad" or "drop", or `on_error` "mask".
            SchemaMismatchError: No function comes before, and the files have no such column.
            ColumnConversionError: The column of the files does not hold lists of ints.

        Examples:
            >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
            >>> from laneway import StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"input_ids": [[1, 2, 3], [4, 5], [6]]}), f"{folder}/part-0.parquet")
            >>> for pack in StatefulShardedDataset(folder).pack(4, separator=9):
            ...     print(pack["input_ids"].tolist(), pack["document_ids"].tolist())
            [1, 2, 3, 9] [1, 1, 1, 1]
            [4, 5, 9, 0] [1, 1, 1, 0]
            [6, 9, 0, 0] [1, 1, 0, 0]
        """
        options = PackOptions(
            length,
            column,
            strategy,
            separator,
            overflow,
            mask,
            pad_value,
            GROUP_ROWS if group_rows is None else group_rows,
        )
        self._check_takes_rows("pack")
        counted = self if lengths is None or lengths is False else self._with_lengths(lengths)
        definition = counted.definition
        stages = definition.stages or Stages()
        if not definition.has_functions and not stages.expansion.steps:
            names = definition.columns.names_in_files
            if column not in names:
                message = (
                    f"there is no column {column!r} to pack: the dataset delivers {', '.join(names)}. Call map() with "
                    f"a function that returns lists of tokens as {column!r} before pack(), or pass column="
                )
                raise SchemaMismatchError(message)
            check_token_type(column, definition.columns.schema.field(column).type)
        return counted._changed(  # noqa: SLF001 - a copy of this object
            definition.with_stages(replace(stages, pack=options), counts_packs=lengths is not False)
        )

    @abstractmethod
    def _with_lengths(self, column: str) -> Self:
        """Return a copy that knows how many tokens each row has, by a column."""

    def _check_takes_rows(self, method: str) -> None:
        """Check that what is delivered are rows, or items of `flat_map`.

        Raises:
            ValueError: It isn't.
        """
        definition = self.definition
        if definition.options.batch_size is not None:
            message = (
                f"{method}() takes rows, but the dataset delivers batches of {definition.options.batch_size:,}: omit "
                "batch_size, and call batch() last"
            )
            raise ValueError(message)
        if definition.stages is not None and definition.stages.pack is not None:
            message = f"{method}() can't follow pack(): a pack stays whole, and map() changes it"
            raise ValueError(message)
