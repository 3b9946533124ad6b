"""Files of text, whatever is in them: the right rows, or one error that names the file and the line."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway import DataFileError, Manifest, SavableLoader, SchemaMismatchError, StatefulShardedDataset
from laneway.formats.delimited import DelimitedParser
from laneway.formats.text import Checksum, checksum
from laneway.testing import corpus_tables
from tests.corpora import schema_of
from tests.fuzzing import num_cases
from tests.writers import WRITERS

if TYPE_CHECKING:
    from pathlib import Path

MANY_LINES = b"".join(b'{"a":%d,"pad":"%s"}\n' % (number, b"x" * 110) for number in range(30_000))
"""3.7 MiB: several blocks, of which only a part is looked at to infer types."""


def rows(directory: Path, data: bytes, name: str = "part.jsonl", **options: Any) -> list[Any]:
    """Return the rows of a file with this content."""
    (directory / name).write_bytes(data)
    return list(StatefulShardedDataset(directory / name, output="python", **options))


JSON_ROWS = {
    "no newline at the end": (b'{"a":1}\n{"a":2}', [{"a": 1}, {"a": 2}]),
    "CRLF, a BOM, spaces and empty lines": (
        b'\xef\xbb\xbf{"a":1}\r\n\r\n  {"a":2} \t\r\n   \n' + b" " * 40 + b'{"a":3}' + b" " * 40 + b"\n",
        [{"a": 1}, {"a": 2}, {"a": 3}],
    ),
    "nested": (b'{"a":{"b":[{"c":1},{"d":"x"}]}}\n', [{"a": {"b": [{"c": 1, "d": None}, {"c": None, "d": "x"}]}}]),
    "fields that come later": (b'{"a":1}\n{"b":"x"}\n', [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
    "whole numbers and others": (b'{"a":1}\n{"a":2.5}\n{"a":null}\n', [{"a": 1.0}, {"a": 2.5}, {"a": None}]),
    "dates stay text": (b'{"a":"2024-01-02"}\n', [{"a": "2024-01-02"}]),
    "braces in strings": (b'{"a":"}\\n{"}\n{"a":"\\u00e9"}\n', [{"a": "}\n{"}, {"a": "é"}]),
    "empty": (b"", []),
    "only empty lines": (b"\n \n", []),
}


@pytest.mark.parametrize("case", JSON_ROWS)
def test_json_lines_are_read_as_they_are(tmp_path: Path, case: str) -> None:
    data, expected = JSON_ROWS[case]
    assert rows(tmp_path, data) == expected


JSON_ERRORS = {
    "line 2 is no JSON object, but '{\"a\":2': each line must be one": b'{"a":1}\n{"a":2\n{"a":3}\n',
    "line 1 is no JSON object, but '\\[1, 2]'": b"[1, 2]\n",
    "line 3 has 2 JSON objects": b'{"a":1}\n\n{"a":2}{"a":4}\n',
    "line 2 is malformed: Column\\(/a\\) was specified twice": b'{"a":1}\n{"a":1,"a":2}\n',
    "line 2 is malformed: Missing a comma": b'{"a":1}\n{"a":1 x}\n',
    "line 2 is not UTF-8": b'{"a":"x"}\n{"a":"\xff"}\n',
    "it is UTF-16": '{"a":1}\n'.encode("utf-16"),
}


@pytest.mark.parametrize("problem", JSON_ERRORS)
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, problem: str) -> None:
    with pytest.raises(DataFileError, match=f"part.jsonl (can't be read: )?{problem}"):
        rows(tmp_path, JSON_ERRORS[problem])


BAD_LATE_LINES = {
    "line 30,001 .*couldn't parse:1.5; give their types with schema=": b'{"a":1.5}\n',
    "line 30,001 has the field 'b', which no line has from which": b'{"a":1,"b":2}\n',
    "line 30,001 has 2 JSON objects": b'{"a":1} {"a":2}\n',
    "line 30,001 is malformed: Missing a comma": b'{"a":1 x}\n',
}


@pytest.mark.parametrize("problem", BAD_LATE_LINES)
def test_a_line_that_the_scan_has_not_looked_at_is_named_when_it_is_read(tmp_path: Path, problem: str) -> None:
    (tmp_path / "part.jsonl").write_bytes(MANY_LINES + BAD_LATE_LINES[problem] + MANY_LINES)
    dataset = StatefulShardedDataset(tmp_path, batch_size=1_000)
    assert len(dataset) == 61
    with pytest.raises(DataFileError, match=f"part.jsonl {problem}"):
        list(dataset)


def test_values_that_are_nested_too_deeply_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"part.jsonl can't be read: values are nested too deeply"):
        rows(tmp_path, b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"\n")


def test_a_field_that_was_not_selected_may_come_late(tmp_path: Path) -> None:
    (tmp_path / "part.jsonl").write_bytes(MANY_LINES + b'{"a":1,"b":{"c":2}}\n' + MANY_LINES)
    found = [row["a"] for row in StatefulShardedDataset(tmp_path, columns=["a"], output="python")]
    assert found == [*range(30_000), 1, *range(30_000)]
    schema = schema_of(a=pa.int64(), b=pa.struct([("c", pa.int8())]))
    with pytest.warns(UserWarning, match="no row that was looked at has the column 'b' of schema="):
        dataset = StatefulShardedDataset(tmp_path, schema=schema, output="arrow", batch_size=700_000)
    (table,) = dataset
    assert table["b"].drop_null().to_pylist() == [{"c": 2}]


CONFLICTS = {
    "number to string": b'{"b":2}\n\n{"a":2,"b":2}\n{"a":"x","b":3}\n',
    "number to object": b'{"b":2,"a":[1]}\n\n{"b":2}\n{"a":[1,{}],"b":3}\n',
}


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_a_column_of_several_types_is_named_at_once_and_can_be_left_out(tmp_path: Path, conflict: str) -> None:
    with pytest.warns(UserWarning, match=f"part.jsonl line 4: Column.*/a.* changed from {conflict}; reading this"):
        found = rows(tmp_path, CONFLICTS[conflict], columns=["b"])
    assert found == [{"b": 2}, {"b": 2}, {"b": 3}]
    with (
        pytest.warns(UserWarning, match="line 4"),
        pytest.raises(DataFileError, match=f"part.jsonl line 4 .*{conflict}"),
    ):
        rows(tmp_path, CONFLICTS[conflict])


def test_files_whose_types_have_nothing_in_common_are_an_error_that_names_both(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"x":1,"y":1}\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"x":2.5,"z":[]}\n')
    (tmp_path / "c.jsonl").write_bytes(b'{"y":"text","z":[{"q":true}]}\n')
    with pytest.raises(SchemaMismatchError, match=r"'y' is int64 in a.jsonl and string in c.jsonl: correct"):
        StatefulShardedDataset(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, columns=["x", "z"], output="python")
    assert list(dataset) == [{"x": 1.0, "z": None}, {"x": 2.5, "z": []}, {"x": None, "z": [{"q": True}]}]


def test_a_given_schema_is_what_values_are_parsed_into(tmp_path: Path) -> None:
    types = schema_of(
        n=pa.uint64(), s=pa.large_string(), d=pa.date32(), t=pa.timestamp("us"), f=pa.float16(), i=pa.string()
    )
    line = b'{"n":18446744073709551615,"s":"x","d":"2024-01-02","t":"2024-01-02 03:04:05","f":0.5,"i":7,"other":[]}\n'
    (tmp_path / "part.jsonl").write_bytes(line)
    (table,) = StatefulShardedDataset(tmp_path, schema=types, output="arrow", batch_size=1)
    assert table.schema.types == types.types
    row = table.to_pylist()[0]
    assert (row["n"], row["s"], str(row["d"]), str(row["t"]), float(row["f"]), row["i"]) == (
        *(2**64 - 1, "x", "2024-01-02", "2024-01-02 03:04:05", 0.5, "7"),
    )


def test_a_line_of_a_hundred_megabytes_is_a_row(tmp_path: Path) -> None:
    long = b'{"a":-1,"b":"' + b"x" * 100_000_000 + b'"}\n'
    (tmp_path / "part.jsonl").write_bytes(MANY_LINES + long + b'{"a":5}\n')
    dataset = StatefulShardedDataset(tmp_path, columns=["a"], output="python")
    found = [row["a"] for row in dataset]
    assert found == [*range(30_000), -1, 5]
    assert dataset.manifest.files.block_bytes.max() > 100_000_000


def gzip_members(data: bytes, size: int) -> bytes:
    return b"".join(gzip.compress(data[start : start + size]) for start in range(0, len(data), size))


def zstd_frames(data: bytes, size: int) -> bytes:
    skippable = (0x184D2A5E).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"end"
    frames = [pa.compress(data[start : start + size], "zstd", asbytes=True) for start in range(0, len(data), size)]
    return b"".join(frames) + skippable


@pytest.mark.parametrize("size", [70_000, 700_000, 10_000_000])
@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip_members), (".zst", zstd_frames)])
def test_lines_that_cross_compressed_frames_are_read(tmp_path: Path, suffix: str, compress: Any, size: int) -> None:
    (tmp_path / f"part.jsonl{suffix}").write_bytes(compress(MANY_LINES, size) + (b"\0" * 5 if suffix == ".gz" else b""))
    dataset = StatefulShardedDataset(tmp_path, output="python", seed=1, shuffle=True)
    num_blocks = len(dataset.manifest.files.block_rows)
    assert num_blocks == {70_000: 4, 700_000: 3, 10_000_000: 1}[size]
    assert sorted(row["a"] for row in dataset) == list(range(30_000))


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip_members), (".zst", zstd_frames)])
def test_a_byte_order_mark_in_which_a_compressed_frame_ends_is_no_text(
    tmp_path: Path, suffix: str, compress: Any
) -> None:
    data = compress(b'\xef\xbb\xbf{"a":1}\n{"a":2}\n', 1)
    assert rows(tmp_path, data, f"part.jsonl{suffix}") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip_members), (".zst", zstd_frames)])
def test_compressed_files_that_are_damaged_are_an_error(tmp_path: Path, suffix: str, compress: Any) -> None:
    data = compress(MANY_LINES[:200_000], 70_000)
    name = f"part.jsonl{suffix}"
    for cut in (*range(1, 200, 13), len(data) // 2, len(data) - 30):
        with pytest.raises(DataFileError, match=f"{name} "):
            rows(tmp_path, data[:cut], name)
    with pytest.raises(DataFileError, match=f"{name} "):
        rows(tmp_path, data[:5000] + b"\x55" * 50 + data[5050:], name)


@pytest.mark.parametrize("start", [b"\x1f", b"(", b"(\xb5", b"(\xb5/"])
def test_a_compressed_file_of_which_only_the_first_bytes_are_there_is_an_error(tmp_path: Path, start: bytes) -> None:
    # As text, they could name a column.
    with pytest.raises(DataFileError, match=r"part.csv.gz can't be read: the (gzip|zstd) data ends too early"):
        rows(tmp_path, start, "part.csv.gz")


def test_a_large_frame_is_a_warning_that_says_what_it_costs(tmp_path: Path) -> None:
    lines = (b'{"a":"' + b"x" * 990 + b'"}\n') * 70_000
    (tmp_path / "part.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    with pytest.warns(
        UserWarning, match="part.jsonl.gz has a gzip member of 66 MiB of text, which is decompressed and"
    ):
        manifest = Manifest.scan(tmp_path)
    assert manifest.files.block_rows.tolist() == [70_000]


CSV_ROWS = {
    "quoted newlines, delimiters and quotes": (
        b'a,b\n1,"x\ny"\n2,"q""r,"\n3,""\n',
        [{"a": 1, "b": "x\ny"}, {"a": 2, "b": 'q"r,'}, {"a": 3, "b": ""}],
    ),
    "CRLF, a BOM, empty lines, no newline at the end": (
        b'\xef\xbb\xbfa,b\r\n1,x\r\n\r\n2,"y\r\nz"',
        [{"a": 1, "b": "x"}, {"a": 2, "b": "y\r\nz"}],
    ),
    "CR": (b"a,b\r1,x\r2,y\r", [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    "quotes inside of fields": (
        b'a,b\n1,5" pipe\n2,6" x\n3,"x"y"\n',
        [{"a": 1, "b": '5" pipe'}, {"a": 2, "b": '6" x'}, {"a": 3, "b": 'xy"'}],
    ),
    "quotes inside of a field, and a quoted one where the file ends": (
        b'a,b\n1, "x"\n2,"y\n"',
        [{"a": 1, "b": ' "x"'}, {"a": 2, "b": "y\n"}],
    ),
    "a quoted header": (b'"a\nb","c,d"\n1,2\n', [{"a\nb": 1, "c,d": 2}]),
    "numbers and text": (b"a\n1\nx\n", [{"a": "1"}, {"a": "x"}]),
    "numbers that are missing": (b"a,b\n1,\n,2.5\n", [{"a": 1, "b": None}, {"a": None, "b": 2.5}]),
    "no rows": (b"a,b\n", []),
    "empty": (b"", []),
}


@pytest.mark.parametrize("case", CSV_ROWS)
def test_csv_is_read_as_pyarrow_reads_it(tmp_path: Path, case: str) -> None:
    data, expected = CSV_ROWS[case]
    assert rows(tmp_path, data, "part.csv") == expected


CSV_ERRORS = {
    "line 4 is malformed: Expected 2 columns, got 1": b'a,b\n1,"x\ny"\n2\n',
    "line 3 has a quoted field that is not closed": b'a,b\n1,x\n2,"y\n3,z\n',
    "line 2 is not UTF-8": b"a,b\n1,x\xff\n",
    "line 1 is no header \\(it has the column 'a' twice: rename one\\)": b"a,a\n1,2\n",
}


@pytest.mark.parametrize("problem", CSV_ERRORS)
def test_a_row_of_csv_that_is_malformed_is_named(tmp_path: Path, problem: str) -> None:
    with pytest.raises(DataFileError, match=f"part.csv {problem}"):
        rows(tmp_path, CSV_ERRORS[problem], "part.csv")


def test_a_field_that_is_no_number_is_named_when_it_is_read(tmp_path: Path) -> None:
    many = b"".join(b"%d,%s\n" % (number, b"word " * 24) for number in range(30_000))
    (tmp_path / "part.csv").write_bytes(b"a,b\n" + many + b"x,word\n" + many)
    dataset = StatefulShardedDataset(tmp_path, batch_size=10_000)
    with pytest.raises(
        DataFileError, match=r"part.csv line 30,002 doesn't fit the columns: column 'a': CSV conversion error"
    ):
        list(dataset)
    with_text = StatefulShardedDataset(tmp_path, schema=schema_of(a=pa.string()), output="python")
    assert [row["a"] for row in with_text][30_000] == "x"


def test_columns_of_csv_are_found_by_name_in_each_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,x\n")
    (tmp_path / "b.csv").write_bytes(b"more,id\n0.5,2\n")
    expected = [{"id": 1, "text": "x", "more": None}, {"id": 2, "text": None, "more": 0.5}]
    assert list(StatefulShardedDataset(tmp_path, output="python")) == expected
    only = [row["id"] for row in StatefulShardedDataset(tmp_path, columns=["id"], output="python")]
    assert only == [1, 2]


CELLS = st.lists(st.sampled_from(["", "a", '"', ",", "\n", "\r", "\r\n", '""', "é", "1", 'x"y', " "]), max_size=4).map(
    "".join
)


@given(table=st.lists(st.tuples(CELLS, CELLS), max_size=12), newline=st.sampled_from(["\n", "\r\n", "\r"]))
def test_rows_of_quoted_csv_end_where_they_were_written(table: list[tuple[str, str]], newline: str) -> None:
    written = ['"' + '","'.join(cell.replace('"', '""') for cell in row) + '"' + newline for row in table]
    data = "".join(written).encode()
    parser = DelimitedParser(",")
    ends = [len("".join(written[: index + 1]).encode()) for index in range(len(written))]
    found = parser.find_rows(data, is_end=True)
    assert found.ends.tolist() == ends
    # Whatever has been read so far, no row ends where none does.
    for cut in range(len(data)):
        assert {*parser.find_rows(data[:cut], is_end=False).ends.tolist()} <= {*ends}


@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 60_000), max_size=6), where=st.integers(0))
def test_a_checksum_depends_on_the_text_alone(data: bytes, cuts: list[int], where: int) -> None:
    text = random.Random(data).randbytes(20_000 + len(data))
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    found = Checksum()
    for start, stop in pairwise(bounds):
        found.update(memoryview(text)[start:stop])
    assert found.value == checksum(text)
    changed = bytearray(text)
    changed[where % len(text)] ^= 1 << where % 8
    assert checksum(changed) != checksum(text)
    assert checksum(text + b"\0") != checksum(text)


def test_a_file_that_changed_since_it_was_planned_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    path.write_bytes(MANY_LINES)
    manifest = Manifest.scan(tmp_path)
    changed = MANY_LINES.replace(b'{"a":25001,', b'{"a":25002,')
    assert len(changed) == len(MANY_LINES)
    path.write_bytes(changed)
    os.utime(path, (10**9, 10**9))
    dataset = StatefulShardedDataset(manifest, batch_size=1000)
    with pytest.raises(DataFileError, match=r"part.jsonl changed since it was planned: block 3, from line [\d,]+ on"):
        list(dataset)
    path.write_bytes(MANY_LINES[:-9])
    with pytest.raises(DataFileError, match=r"part.jsonl changed since it was planned: it had 3,"):
        list(StatefulShardedDataset(manifest, batch_size=1000))


def test_the_index_is_cached_and_saved_like_a_footer(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b"):
        (data / f"{name}.jsonl").write_bytes(b'{"x":1}\n')
        os.utime(data / f"{name}.jsonl", (10**9, 10**9))
    first = Manifest.scan(data, cache_dir=tmp_path / "cache")
    # Its bytes are gone: what is known of it comes from the cache.
    (data / "b.jsonl").write_bytes(b"broken \n")
    os.utime(data / "b.jsonl", (10**9, 10**9))
    assert Manifest.scan(data, cache_dir=tmp_path / "cache").fingerprint == first.fingerprint
    (data / "c.jsonl").write_bytes(b'{"x":0.5}\n')
    grown = Manifest.scan(data, cache_dir=tmp_path / "cache")
    assert grown.schema == schema_of(x=pa.float64())
    first.save(tmp_path / "manifest.gz")
    assert Manifest.load(tmp_path / "manifest.gz").schema == first.schema == schema_of(x=pa.int64())


def test_workers_and_shuffling_deliver_each_row_of_many_blocks_once(tmp_path: Path) -> None:
    for part in range(3):
        lines = (json.dumps({"id": part * 8_000 + row, "text": "é" * (row % 90)}) + "\n" for row in range(8_000))
        (tmp_path / f"part-{part}.jsonl").write_text("".join(lines))
    dataset = StatefulShardedDataset(tmp_path, shuffle=True, seed=3, batch_size=100, columns=["id"], shard_bytes="1MiB")
    loader = SavableLoader(dataset, num_workers=2)
    found: list[int] = []
    for _, batch in zip(range(101), loader, strict=False):
        found += batch["id"].tolist()
    resumed = SavableLoader(dataset, num_workers=1)
    resumed.load_state_dict(loader.state_dict())
    found += [row for batch in resumed for row in batch["id"].tolist()]
    assert sorted(found) == list(range(24_000))
    assert found[:100] != list(range(100))


def test_partitions_filters_and_paths_into_structs_work_on_lines(tmp_path: Path) -> None:
    for lang in ("en", "fr"):
        (tmp_path / f"lang={lang}").mkdir()
        lines = [json.dumps({"id": number, "meta": {"score": number / 4}}) for number in range(20)]
        (tmp_path / f"lang={lang}" / "part.ndjson").write_text("\n".join(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = StatefulShardedDataset(
            tmp_path, filter=[("lang", "==", "fr"), ("id", ">", 16)], columns=["lang", "meta.score"], output="python"
        )
        assert list(dataset) == [{"lang": "fr", "meta.score": score} for score in (4.25, 4.5, 4.75)]


INSERTED = [b'"', b"\n", b"\r", b"\0", b"{", b"}", b",", b"\\", b"\xff", b" " * 50, b"\r\n\r\n"]


def damage(data: bytes, source: random.Random) -> bytes:
    """Return a text that is cut, or in which bits are flipped, or something is inserted or missing."""
    found, where = bytearray(data), source.randrange(len(data))
    match source.randrange(4):
        case 0:
            return data[:where]
        case 1:
            for _ in range(source.choice([1, 2, 5])):
                found[source.randrange(len(found))] ^= 1 << source.randrange(8)
        case 2:
            found[where:where] = source.choice(INSERTED)
        case _:
            del found[where : where + source.randrange(1, 40)]
    return bytes(found)


@pytest.mark.filterwarnings("ignore:.*reading this column will fail")
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_a_damaged_text_gives_rows_or_an_error_that_names_a_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"part.{kind}"
    WRITERS[kind][1](path, corpus_tables((20, 30, 10)))
    data, source = path.read_bytes(), random.Random(5)
    errors = []
    for _ in range(num_cases(60)):
        try:
            rows(tmp_path, damage(data, source), path.name)
        except DataFileError as error:
            errors.append(str(error))
    assert 0 < len(errors) < num_cases(60)
    assert [each for each in errors if not re.search(rf"part.{kind} line [\d,]+ ", each)] == []
