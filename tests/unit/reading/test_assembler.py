"""Rows are put in order, whatever their type and chunks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from laneway.convert.batches import BatchConverter
from laneway.reading.assembler import Order, WindowAssembler

_PAIR: Any = pa.list_(pa.int32(), 2)


def test_tables_may_come_in_any_order_and_in_any_chunks() -> None:
    schema = pa.schema([("id", pa.int64()), ("key", pa.int32()), ("text", pa.string()), ("pair", _PAIR)])
    for name, type_ in [("coded", pa.int16()), ("coded pair", _PAIR)]:
        schema = schema.append(pa.field(name, pa.dictionary(pa.int32(), type_)))
    ids = np.arange(30)

    def piece(start: int, stop: int) -> pa.Table:
        chunked: Any = pa.chunked_array
        part = ids[start:stop]
        columns = [
            chunked([part[:3], part[3:]]),
            pa.repeat(pa.scalar(7, pa.int32()), stop - start),
            chunked([part[:5].astype(str), part[5:].astype(str)], pa.string()),
            pa.array([[i, -i] for i in part.tolist()], _PAIR),
            pa.DictionaryArray.from_arrays(pa.array(part % 3, pa.int32()), pa.array([7, 8, 9], pa.int16())),
            pa.DictionaryArray.from_arrays(pa.array(part % 2, pa.int32()), pa.array([[0, 1], [2, 3]], _PAIR)),
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    converter = BatchConverter(schema, "numpy")
    order = np.random.default_rng(0).permutation(30)
    for wanted in (order, order[7:20], order[:1]):
        assembler = WindowAssembler(converter.vectorized, Order(len(wanted), partial(np.copy, wanted)), 30, "a.parquet")
        assert [assembler.put(cut[0], piece(*cut)) for cut in [(22, 30), (0, 10), (10, 22)]] == [False, False, True]
        rows = assembler.finish()
        batch: Any = converter.to_batch(rows)
        assert [*batch] == schema.names
        assert batch["id"].tolist() == wanted.tolist()
        assert batch["pair"].tolist() == [[i, -i] for i in wanted]
        assert batch["coded"].tolist() == [7 + i % 3 for i in wanted]
        assert batch["coded pair"].tolist() == [[0, 1] if i % 2 == 0 else [2, 3] for i in wanted]
        assert batch["text"].tolist() == [str(i) for i in wanted]
        assert batch["key"].tolist() == [7] * len(wanted)
