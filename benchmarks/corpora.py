"""The three corpora of the benchmarks: generated once, deterministically, as Parquet and Arrow files.

- text: `id` and a string of 200 to 2,000 characters of words
- tokens: `id` and a fixed-size list of 1,024 int32
- tabular: `id`, 40 float32 and an int8 label

Parquet is compressed with zstd, Arrow (IPC file format) is uncompressed; row groups and record batches have the same
rows. Run `python -m benchmarks.corpora DIRECTORY [--short]` to generate them before a benchmark.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable

CorpusName = Literal["text", "tokens", "tabular"]
FileFormat = Literal["parquet", "arrow"]
Size = Literal["short", "full"]

ROWS: dict[Size, dict[CorpusName, int]] = {
    "short": {"text": 40_000, "tokens": 12_000, "tabular": 200_000},
    "full": {"text": 400_000, "tokens": 96_000, "tabular": 400_000},
}
BLOCK_ROWS: dict[CorpusName, int] = {"text": 10_000, "tokens": 2_000, "tabular": 25_000}
"""Rows of a row group, or of a record batch; the last one of a file may have fewer."""
NUM_FILES = 4
SEED = 20_240
TOKENS_PER_ROW = 1_024
NUM_FLOATS = 40
NUM_WORDS, NUM_TOKEN_IDS, NUM_LABELS = 8_192, 50_257, 10


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus on disk."""

    name: CorpusName
    num_rows: int
    directory: Path
    """Contains one directory per file format."""

    def folder(self, file_format: FileFormat) -> Path:
        """Return the directory that contains only the files of this format."""
        return self.directory / file_format

    def files(self, file_format: FileFormat) -> list[str]:
        """Return the paths of the files, in order."""
        return [str(path) for path in sorted(self.folder(file_format).iterdir())]


def make_corpus(name: CorpusName, directory: Path, size: Size = "short") -> Corpus:
    """Return a corpus, and generate it if it doesn't exist.

    Args:
        name: Name of the corpus.
        directory: Directory of all corpora, each in its own subdirectory; created if it is missing.
        size: "short" for a quick run, "full" for results.
    """
    num_rows = ROWS[size][name]
    corpus = Corpus(name, num_rows, directory / f"{name}-{num_rows}")
    if not corpus.directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        # Renamed when complete, so an interrupted run leaves no partial corpus.
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory))
        try:
            _write(Corpus(name, num_rows, unfinished))
            unfinished.rename(corpus.directory)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return corpus


def _write(corpus: Corpus) -> None:
    corpus.folder("parquet").mkdir()
    corpus.folder("arrow").mkdir()
    bounds = np.linspace(0, corpus.num_rows, NUM_FILES + 1).astype(np.int64).tolist()
    block_rows = BLOCK_ROWS[corpus.name]
    for index, (start, stop) in enumerate(pairwise(bounds)):
        columns = _COLUMNS[corpus.name](np.random.default_rng([SEED, index]), stop - start)
        table = pa.table({"id": pa.array(np.arange(start, stop)), **columns})
        path = corpus.folder("parquet") / f"part-{index}.parquet"
        pq.write_table(table, path, row_group_size=block_rows, compression="zstd")
        with pa.ipc.new_file(str(corpus.folder("arrow") / f"part-{index}.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=block_rows)


def _text(generator: np.random.Generator, num_rows: int) -> dict[str, pa.Array[Any]]:
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
    words = [generator.choice(letters, length).tobytes() for length in generator.integers(2, 11, NUM_WORDS)]
    sizes = generator.integers(200, 2_001, num_rows)
    offsets = np.zeros(num_rows + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    # Squared, so that some words are frequent, as in natural text. A word with its space has at least three characters.
    drawn = (generator.random(int(offsets[-1]) // 3 + 1) ** 2 * NUM_WORDS).astype(np.int64)
    characters = b" ".join([words[index] for index in drawn.tolist()])
    strings = pa.Array.from_buffers(
        pa.string(), num_rows, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(characters)]
    )
    return {"text": strings}


def _tokens(generator: np.random.Generator, num_rows: int) -> dict[str, pa.Array[Any]]:
    values = pa.array(generator.integers(0, NUM_TOKEN_IDS, num_rows * TOKENS_PER_ROW, np.int32))
    return {"tokens": pa.FixedSizeListArray.from_arrays(values, TOKENS_PER_ROW)}


def _tabular(generator: np.random.Generator, num_rows: int) -> dict[str, pa.Array[Any]]:
    floats = {f"x{i:02}": pa.array(generator.standard_normal(num_rows, np.float32)) for i in range(NUM_FLOATS)}
    return {**floats, "label": pa.array(generator.integers(0, NUM_LABELS, num_rows, np.int8))}


_COLUMNS: dict[CorpusName, Callable[[np.random.Generator, int], dict[str, pa.Array[Any]]]] = {
    "text": _text,
    "tokens": _tokens,
    "tabular": _tabular,
}


def main() -> None:
    """Generate all corpora."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="directory of the corpora")
    parser.add_argument("--short", action="store_true", help="generate the small corpora")
    arguments = parser.parse_args()
    for name in get_args(CorpusName):
        print(make_corpus(name, arguments.directory, "short" if arguments.short else "full").directory)


if __name__ == "__main__":
    main()
