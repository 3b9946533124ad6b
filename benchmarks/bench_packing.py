"""How fast are documents packed, and how much padding do packs need?

Writes Parquet files of documents, lists of int32 of log-normal lengths with a mean of 640 tokens, and others of text.
Batches of 8 packs of 2,048 tokens, in whole passes, in file order and in one process, are compared with pyarrow and
numpy alone, which read row groups and concatenate and reshape their tokens to int64 tensors: no masks, no shuffling, no
resuming. Tokenising on the fly in two workers is compared with the tokenizer alone in as many processes. All in
interleaved rounds; each figure is the median of the ratios of the rounds. HF datasets, litdata, grain, lancedb and
energon are compared if they are installed, once, and each beside a pass of pyarrow and numpy.

Run `python benchmarks/bench_packing.py [--short]`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from laneway import Manifest, SavableLoader, StatefulShardedDataset
from laneway.stages.packing import best_fit
from laneway.stages.packs import Strategy

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from benchmarks.machine import warm_memory
    from benchmarks.mixing_peers import PACKING_PEERS, PackingPeer
    from laneway.stages.packs import Mask
else:
    from machine import warm_memory
    from mixing_peers import PACKING_PEERS

# The stubs of pyarrow accept fewer types here.
_lists: Any = pa.ListArray.from_arrays

NUM_FILES, BLOCK_ROWS = 4, 2_000
MEAN_TOKENS, SIGMA, VOCABULARY = 640, 1.0, 50_257
LENGTH, PACKS = 2_048, 8
ROUNDS = 7
NUM_WORKERS = 2


def lengths_of(num_documents: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return log-normal lengths of documents."""
    lengths = generator.lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, num_documents)
    return np.maximum(lengths.astype(np.int64), 1)


def write(folder: Path, num_documents: int) -> None:
    """Write documents of tokens."""
    generator = np.random.default_rng(0)
    for index in range(NUM_FILES):
        lengths = lengths_of(num_documents // NUM_FILES, generator)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        # Like the words of a language, a few tokens are most of all.
        tokens = (VOCABULARY * generator.random(offsets[-1], np.float32) ** 3).astype(np.int32)
        documents = _lists(pa.array(offsets), pa.array(tokens))
        table = pa.table({"input_ids": documents})
        pq.write_table(table, folder / f"part-{index}.parquet", row_group_size=BLOCK_ROWS, compression="zstd")


def write_text(folder: Path, num_documents: int) -> None:
    """Write documents of words."""
    generator = np.random.default_rng(1)
    words = np.array(
        [
            "".join(chr(97 + letter) for letter in generator.integers(0, 26, size))
            for size in generator.integers(2, 10, 4_096)
        ]
    )
    texts = [
        " ".join(words[(len(words) * generator.random(length) ** 3).astype(int)])
        for length in lengths_of(num_documents, generator) // 2 + 1
    ]
    for index in range(NUM_FILES):
        table = pa.table({"text": texts[index::NUM_FILES]})
        pq.write_table(table, folder / f"part-{index}.parquet", row_group_size=BLOCK_ROWS // 4)


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Return how long something takes, in seconds, and the number of tokens that it returns."""
    start = time.perf_counter()
    num_tokens = work()
    return time.perf_counter() - start, num_tokens


def raw_batches(folder: Path) -> Iterator[torch.Tensor]:
    """Yield batches of chunks made with pyarrow and numpy alone."""
    rest = np.zeros(0, np.int64)
    for path in sorted(folder.iterdir()):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            column: Any = file.read_row_group(group, columns=["input_ids"])["input_ids"].chunk(0)
            tokens = np.concatenate([rest, column.flatten().to_numpy()])
            whole = len(tokens) // (PACKS * LENGTH) * PACKS * LENGTH
            batches = torch.from_numpy(tokens[:whole].reshape(-1, PACKS, LENGTH))
            yield from batches
            rest = tokens[whole:]


def raw(folder: Path) -> int:
    """Return the number of tokens in the batches of `raw_batches`."""
    return sum(batch.numel() for batch in raw_batches(folder))


def read(source: StatefulShardedDataset) -> int:
    """Return the number of tokens in the batches of a pass, with padding."""
    return sum(batch["input_ids"].numel() for batch in source)


def read_peer(peer: PackingPeer, paths: list[Path], kept: Path) -> int:
    """Return the number of tokens in the packs of another library, with padding."""
    batches = peer.open(paths, LENGTH, PACKS, kept)
    return sum(np.asarray(batch["input_ids"] if isinstance(batch, dict) else batch).size for batch in batches)


def padding_of(peer: PackingPeer, paths: list[Path], kept: Path) -> int:
    """Return the number of tokens in the packs of another library that are padding."""
    if peer.padding is None:
        return 0
    key, value = peer.padding
    batches = peer.open(paths, LENGTH, PACKS, kept)
    return sum(int((np.asarray(batch[key]) == value).sum()) for batch in batches)


def compare_peers(folder: Path, baseline: Callable[[], int]) -> None:
    """Print how fast others pack, how much padding their packs have, and how many tokens they leave out."""
    paths = sorted(folder.iterdir())
    columns: list[Any] = [pq.ParquetFile(path).read()["input_ids"] for path in paths]
    num_all = sum(len(chunk.flatten()) for column in columns for chunk in column.chunks)
    print("\nothers, beside pyarrow and numpy                      M tokens/s   of these   padding   left out")
    with tempfile.TemporaryDirectory() as directory:
        kept = Path(directory)
        for name, peer in PACKING_PEERS.items():
            if not peer.is_installed:
                continue
            # The first one waits for what is converted.
            next(iter(peer.open(paths, LENGTH, PACKS, kept)))
            seconds, num_tokens = timed(partial(read_peer, peer, paths, kept))
            seconds_of_baseline, num_of_baseline = timed(baseline)
            num_padding = padding_of(peer, paths, kept)
            speed = num_tokens / seconds
            share = speed * seconds_of_baseline / num_of_baseline
            # A separator after each document counts too.
            left_out = max(0.0, 1 - (num_tokens - num_padding) / num_all)
            print(f"{name:52} {speed / 1e6:10.1f}   {share:8.2f}   {num_padding / num_tokens:7.2%}   {left_out:8.2%}")


def ratios(contenders: dict[str, Callable[[], int]], baseline: str) -> dict[str, tuple[float, float]]:
    """Return for each: tokens per second, and this as a share of the baseline's; medians over the rounds."""
    for work in contenders.values():
        work()
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS):
        names = [*contenders]
        for name in names if number % 2 else reversed(names):
            seconds, num_tokens = timed(contenders[name])
            speeds[name].append(num_tokens / seconds)
    of_baseline = speeds[baseline]
    return {
        name: (median(found), median(one / other for one, other in zip(found, of_baseline, strict=True)))
        for name, found in speeds.items()
    }


def show(title: str, found: dict[str, tuple[float, float]]) -> None:
    """Print a table of speeds."""
    print(f"\n{title:52} M tokens/s   of the first")
    for name, (speed, share) in found.items():
        print(f"{name:52} {speed / 1e6:10.1f}   {share:10.2f}")


def padding(dataset: StatefulShardedDataset) -> float:
    """Return the share of padding in the packs of a pass."""
    num_padding = num_tokens = 0
    for batch in dataset:
        num_padding += int((batch["document_ids"] == 0).sum())
        num_tokens += batch["document_ids"].numel()
    return num_padding / num_tokens


def first_fit_padding(lengths: NDArray[np.int64], num_open: int = 8) -> float:
    """Return the share of padding if each document goes into the first of some open packs that has room."""
    rooms, num_packs, total = [LENGTH] * num_open, num_open, 0
    for document in lengths.tolist():
        for start in range(0, document, LENGTH):
            piece = min(document - start, LENGTH)
            total += piece
            fitting = next((index for index, room in enumerate(rooms) if piece <= room), None)
            if fitting is None:
                fitting = rooms.index(min(rooms))
                rooms[fitting], num_packs = LENGTH, num_packs + 1
            rooms[fitting] -= piece
    return 1 - total / (num_packs * LENGTH)


# -- Tokenising on the fly ---------------------------------------------------------------------------------------------

_tokenizers: list[Tokenizer] = []
"""The tokenizer, which workers inherit."""


def tokenise(row: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens of a row's text."""
    return {"input_ids": _tokenizers[0].encode(row["text"]).ids}


def tokenise_files(folder: str, part: int) -> int:
    """Return the number of tokens in some files: the tokenizer alone, in a process of its own."""
    num_tokens = 0
    for path in sorted(Path(folder).iterdir())[part::NUM_WORKERS]:
        for text in pq.ParquetFile(path).read()["text"].to_pylist():
            num_tokens += len(_tokenizers[0].encode(text).ids)
    return num_tokens


def tokenizer_alone(folder: Path) -> int:
    """Return the number of tokens in all files, from as many processes as workers."""
    with multiprocessing.get_context("fork").Pool(NUM_WORKERS) as pool:
        return sum(pool.starmap(tokenise_files, [(str(folder), part) for part in range(NUM_WORKERS)]))


def on_the_fly(dataset: StatefulShardedDataset) -> int:
    """Return the number of tokens in the packs of a pass with workers."""
    loader = SavableLoader(dataset, num_workers=NUM_WORKERS, multiprocessing_context="fork")
    return sum(int((batch["document_ids"] > 0).sum()) for batch in loader)


def train(folder: Path) -> Tokenizer:
    """Return a byte-pair tokenizer, trained on a part of the text."""
    texts = pq.ParquetFile(next(folder.iterdir())).read_row_group(0)["text"].to_pylist()
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1_500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts[:400], trainer)
    return made


def main() -> None:
    """Print the tables."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a quarter of the documents")
    is_short = parser.parse_args().short
    num_documents, num_texts = (24_000, 4_000) if is_short else (96_000, 16_000)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory, "tokens")
        folder.mkdir()
        write(folder, num_documents)
        warm_memory()
        rows = StatefulShardedDataset(Manifest.scan(folder))

        def packed(strategy: Strategy, mask: Mask | None = "document_ids") -> StatefulShardedDataset:
            return rows.pack(LENGTH, strategy=strategy, mask=mask).batch(PACKS)

        contenders: dict[str, Callable[[], int]] = {
            "pyarrow and numpy: concatenate and reshape": partial(raw, folder),
            "chunk, input_ids only": partial(read, packed("chunk", None)),
            "chunk, with position_ids and document_ids": partial(read, packed("chunk")),
            "best_fit, input_ids only": partial(read, packed("best_fit", None)),
            "best_fit, with position_ids and document_ids": partial(read, packed("best_fit")),
        }
        found = ratios(contenders, next(iter(contenders)))
        show(f"{num_documents:,} documents, {PACKS} x {LENGTH:,}", found)
        fitted, chunked = found["best_fit, input_ids only"], found["chunk, input_ids only"]
        print(f"best_fit of chunk: {fitted[0] / chunked[0]:.2f}")
        compare_peers(folder, partial(raw, folder))
        shuffled = packed("best_fit").shuffle(0)
        lengths = lengths_of(num_documents, np.random.default_rng(2))
        print("\npadding")
        print(f"best_fit, shuffled files {padding(shuffled):36.3%}")
        print(f"first-fit over 8 open packs {first_fit_padding(lengths):33.3%}")
        for group_rows in (512, 1_024, 2_048, 4_096, 8_192):
            of_groups = [best_fit(each, LENGTH) for each in np.array_split(lengths, num_documents // group_rows)]
            share = sum(each.num_padding for each in of_groups) / (sum(map(len, of_groups)) * LENGTH)
            print(f"best_fit of groups of {group_rows:,} rows {share:{30 - len(f'{group_rows:,}')}.3%}")
        texts = Path(directory, "text")
        texts.mkdir()
        write_text(texts, num_texts)
        _tokenizers.append(train(texts))
        dataset = StatefulShardedDataset(texts).map(tokenise)
        tokenisers: dict[str, Callable[[], int]] = {"the tokenizer alone": partial(tokenizer_alone, texts)}
        for strategy in get_args(Strategy):
            batches = dataset.pack(LENGTH, strategy=strategy).batch(PACKS)
            tokenisers[f"map(tokenise).pack({strategy!r})"] = partial(on_the_fly, batches)
        show(f"{num_texts:,} texts, {NUM_WORKERS} processes", ratios(tokenisers, "the tokenizer alone"))


if __name__ == "__main__":
    main()
