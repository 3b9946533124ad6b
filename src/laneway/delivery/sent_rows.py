"""Rows of several batches, which cross from a worker to the main process as they are in memory.

They are copied once: into the buffer that crosses. The main process converts them batch by batch, as it would without
workers, so numbers become views of the buffer, and strings never travel as objects.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from multiprocessing.reduction import ForkingPickler
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import pyarrow as pa

from laneway.convert.open_rows import OpenRows
from laneway.delivery.sending import SentItems, error_to_send, from_one_buffer, in_one_buffer, to_send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from laneway.convert.batches import BatchConverter
    from laneway.metering import Meter


class OpenBatch(NamedTuple):
    """The rows of a batch that is not converted yet."""

    parts: list[OpenRows]
    """The rows, at least one part."""


@final
class SentBatches:
    """Batches that are sent to another process as a list, those that are not converted yet as `OpenRows`."""

    def __init__(
        self, items: list[Any], converter: BatchConverter, convert: Callable[[OpenRows], Any], meter: Meter
    ) -> None:
        """Send batches.

        Args:
            items: The batches, as `OpenBatch` or in any form.
            converter: Joins their rows.
            convert: Converts them.
            meter: Measures how they are sent.
        """
        self.items = items
        self.converter = converter
        self.convert = convert
        self.meter = meter


def _reduce(sent: SentBatches) -> tuple[Any, ...]:
    items, began = sent.items, perf_counter()
    if items and all(type(item) is OpenBatch for item in items):
        try:
            reduced = _opened, _as_rows(sent.converter, items)
        except Exception:  # noqa: BLE001, S110 - such as of strings that are too long for one array: converted instead
            pass
        else:
            sent.meter.send_s += perf_counter() - began
            return reduced
    return _unchanged, (SentItems([_made(item, sent) for item in items], sent.meter),)


ForkingPickler.register(SentBatches, _reduce)


def _made(item: Any, sent: SentBatches) -> Any:  # noqa: ANN401 - a batch in any form
    """Return a batch that has been converted, or the error: a queue would drop that, and the receiver wait forever."""
    if type(item) is not OpenBatch:
        return item
    try:
        return to_send(sent.convert(sent.converter.joined(item.parts)))
    except Exception:  # noqa: BLE001 - raised in the main process
        return error_to_send("in a DataLoader worker process")


def _unchanged(items: list[Any]) -> list[Any]:
    return items


def _as_rows(converter: BatchConverter, batches: Sequence[OpenBatch]) -> tuple[Any, ...]:
    """Return the rows of each batch, the schema of the columns that stay Arrow, and all columns in one buffer."""
    num_rows = [sum(part.num_rows for part in batch.parts) for batch in batches]
    numbers, rest, start, stop = converter.joined([part for batch in batches for part in batch.parts])
    columns: dict[str | None, Any] = {name: values[start:stop] for name, values in numbers.items()}
    if rest is not None:
        serialized: Any = rest.slice(start, stop - start).serialize()
        columns[None] = np.frombuffer(serialized, np.uint8)
    return num_rows, None if rest is None else rest.schema, *in_one_buffer([columns])


def _opened(num_rows: list[int], schema: pa.Schema | None, *buffer: Any) -> list[OpenRows]:  # noqa: ANN401
    """Return the rows of each batch from the result of `_as_rows`."""
    (columns,) = from_one_buffer(*buffer)
    rest = None if schema is None else pa.ipc.read_record_batch(pa.py_buffer(columns.pop(None)), schema)
    return [OpenRows(columns, rest, start, stop) for start, stop in pairwise(accumulate(num_rows, initial=0))]
