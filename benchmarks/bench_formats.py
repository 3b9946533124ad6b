"""What does it cost to read JSON Lines, CSV and ORC, beside pyarrow alone?

Writes files of text, of numbers and of tokens. For each, in turns in one process:

- *read*: the shards of the dataset, read and checked one by one, beside pyarrow parsing the same blocks (or stripes)
  into the same types.
- *pass*: a whole pass of the dataset in batches, beside the same parse.
- *index*: a scan of the file, beside the same parse. For ORC it reads the footer. For gzip, it finds restart points.

A figure is the median over the rounds of CPU seconds of this process; a ratio above 1 means that laneway is faster.
Run `python benchmarks/bench_formats.py [--mb N] [--rounds N]`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.orc

from laneway import Manifest, StatefulShardedDataset
from laneway.formats.text_index import FILE_START, FILE_STOP
from laneway.reading.projection import select_columns
from laneway.reading.reader import RowReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH_ROWS: Final = 256
_WORDS = [f"{number:x}" for number in random.Random(0).sample(range(1 << 24), 2000)]
_read_json: Any = pyarrow.json.read_json
_read_csv: Any = pyarrow.csv.read_csv
_open_orc: Any = pyarrow.orc.ORCFile


def text_rows(generator: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rows of text, without end."""
    number = 0
    while True:
        yield {"id": number, "text": " ".join(generator.choices(_WORDS, k=120)), "lang": "en"}
        number += 1


def foreign_rows(generator: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rows of text that isn't ASCII."""
    for row in text_rows(generator):
        yield {**row, "text": row["text"].translate({ord("a"): "é", ord("0"): "雪"})}


def number_rows(generator: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rows of twenty numbers."""
    while True:
        yield {f"f{column}": round(generator.random(), 5) for column in range(20)}


def token_rows(generator: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rows of lists of ints."""
    number = 0
    while True:
        yield {"id": number, "tokens": [generator.randrange(50_257) for _ in range(512)]}
        number += 1


def quoted_rows(generator: random.Random) -> Iterator[dict[str, Any]]:
    """Yield rows whose text has to be quoted."""
    for row in text_rows(generator):
        yield {**row, "text": f'"{row["text"][:400]}",\n{row["text"][400:]}'}


CORPORA: Final = {
    "jsonl, text": (".jsonl", text_rows),
    "jsonl, text, not ASCII": (".jsonl", foreign_rows),
    "jsonl, numbers": (".jsonl", number_rows),
    "jsonl, tokens": (".jsonl", token_rows),
    "jsonl, text, gzip": (".jsonl.gz", text_rows),
    "csv, text": (".csv", text_rows),
    "csv, quoted text": (".csv", quoted_rows),
    "csv, numbers": (".csv", number_rows),
    "orc, text": (".orc", text_rows),
    "orc, numbers": (".orc", number_rows),
    "orc, tokens": (".orc", token_rows),
}


def write(path: Path, rows: Iterator[dict[str, Any]], num_bytes: int) -> None:
    """Write about so many bytes of text, or the same rows as ORC."""
    found, size = [], 0
    while size < num_bytes:
        found.append(next(rows))
        size += len(json.dumps(found[-1], ensure_ascii=False).encode())
    if path.suffixes[0] == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.Table.from_pylist(found), path)
    else:
        pyarrow.orc.write_table(pa.Table.from_pylist(found), path, stripe_size=8 << 20, compression="ZSTD")


def pyarrow_alone(path: Path, manifest: Manifest) -> Callable[[], None]:
    """Return what parses the blocks of a file with pyarrow."""
    if path.suffix == ".orc":

        def read_stripes() -> None:
            file = _open_orc(path)
            for index in range(file.nstripes):
                file.read_stripe(index)

        return read_stripes
    if path.suffix == ".gz":
        given = pyarrow.json.ParseOptions(explicit_schema=manifest.schema)
        reading_options = pyarrow.json.ReadOptions(use_threads=False, block_size=1 << 20)
        # pyarrow decompresses it, as a stream.
        return lambda: _read_json(path, reading_options, given)
    schema = manifest.schema
    ranges = manifest.layout[:, [FILE_START, FILE_STOP]].tolist()

    def parse_blocks() -> None:
        with path.open("rb") as file:
            for start, stop in ranges:
                file.seek(start)
                data = pa.BufferReader(file.read(stop - start))
                size = stop - start + 1
                if path.suffix == ".jsonl":
                    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
                    _read_json(data, pyarrow.json.ReadOptions(use_threads=False, block_size=size), options)
                else:
                    reading: Any = pyarrow.csv.ReadOptions
                    _read_csv(
                        data,
                        reading(use_threads=False, block_size=size, column_names=schema.names),
                        convert_options=pyarrow.csv.ConvertOptions(column_types=schema),
                    )

    return parse_blocks


def contenders(path: Path) -> dict[str, Callable[[], object]]:
    """Return what is timed for a file."""
    manifest = Manifest.scan(path)
    reader = RowReader(manifest, manifest.storage(), select_columns(manifest), is_closed=True)
    # As a dataset reads them: a shard at a time.
    bounds = [*(shard.row_offset for shard in StatefulShardedDataset(manifest).shards), manifest.num_rows]

    def read() -> None:
        for start, stop in pairwise(bounds):
            reader.read(0, start, stop)

    def whole_pass() -> None:
        for _ in StatefulShardedDataset(manifest, batch_size=BATCH_ROWS, output="arrow"):
            pass

    return {
        "pyarrow": pyarrow_alone(path, manifest),
        "read": read,
        "pass": whole_pass,
        "index": lambda: Manifest.scan(path),
    }


def main() -> None:
    """Print the ratios."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--mb", type=int, default=64, help="MB of text of each corpus")
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    print(f"{'':24}{'pyarrow':>12}{'read':>8}{'pass':>8}{'index':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, rows) in CORPORA.items():
            path = Path(folder) / f"data{suffix}"
            write(path, rows(random.Random(1)), given.mb * 10**6)
            timed = contenders(path)
            seconds: dict[str, list[float]] = {each: [] for each in timed}
            for _ in range(given.rounds):
                for each, run in timed.items():
                    began = time.process_time()
                    run()
                    seconds[each].append(time.process_time() - began)
            found = {each: median(values) for each, values in seconds.items()}
            mb_per_s = path.stat().st_size / 1e6 / found["pyarrow"]
            ratios = [
                median(map(lambda one, other: one / other, seconds["pyarrow"], seconds[each]))
                for each in ("read", "pass")
            ]
            index = median(map(lambda one, other: one / other, seconds["index"], seconds["pyarrow"]))
            print(f"{name:24}{mb_per_s:7.0f} MB/s{ratios[0]:8.2f}{ratios[1]:8.2f}{index:8.2f} of it")


if __name__ == "__main__":
    main()
