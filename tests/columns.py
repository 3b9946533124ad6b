"""Columns of the types whose arrays are easily cut or copied wrongly, five rows each."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_compute: Any = pc
_nested: Any = pa.list_(pa.list_(pa.int32(), 2), 1)
COLUMNS: list[Any] = [
    pa.array(["a", None, "c", "d" * 40, "e"], pa.string_view()),
    pa.array([b"a", None, b"c", b"d" * 40, b"e"], pa.binary_view()),
    _compute.run_end_encode(pa.array(["a", "a", None, "b", "b"])),
    pa.array(["a", None, "c", "a", "e"]).dictionary_encode(),
    pa.array([[1], None, [2, 3], [], [4]], pa.list_view(pa.int32())),
    pa.array([[1], None, [2, 3], [], [4]], pa.large_list(pa.int32())),
    pa.array([[[i, i + 1]] for i in range(5)], _nested),
    pa.array([{"x": [[i, i + 1]]} for i in range(5)], pa.struct({"x": _nested})),
    pa.array([[[[i, i + 1]]] for i in range(5)], pa.list_(_nested)),
    pa.array([[("k", i)] for i in range(5)], pa.map_(pa.string(), pa.int32())),
    pa.array(["a", "b", "c", "d", "e"], pa.large_string()),
    pa.array([1, None, 3, 4, 5], pa.int8()),
]
