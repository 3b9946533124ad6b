"""Commands for data: inspect, head, plan, where, verify, and convert, which writes it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from laneway.catalog.progress_bar import progress_bar
from laneway.cli.output import Answer, output_file, pairs, table, wrapped
from laneway.cli.sources import open_dataset, open_manifest, progress_wanted, storage_options
from laneway.errors import DataFileError
from laneway.formats import FORMATS
from laneway.manifest import Manifest
from laneway.pictures.plot import PlanPictures
from laneway.reading.reader import RowReader
from laneway.rewriting import to_parquet
from laneway.wording import counted, plural, rounded_size, span

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from laneway.plans.epoch_plan import EpochPlan

_MIB = 1 << 20
_LARGE_BLOCK, _SMALL_BLOCK, _SMALL_FILE, _LARGE_ROW = 128 * _MIB, _MIB // 4, 8 * _MIB, _MIB
_MANY_FILES = 1_000
_WINDOW_BLOCKS = 8
"""Row groups whose rows a window should mix."""


def block_name(manifest: Manifest) -> str:
    """Return what the format of the data calls the parts of a file that are read as a whole."""
    return FORMATS[manifest.format].block_name


def facts_of_data(manifest: Manifest) -> dict[str, Any]:
    """Return what a dataset consists of, with advice, as JSON values."""
    files = manifest.files
    blocks, memory = files.block_rows[files.block_rows > 0], files.block_memory_bytes[files.block_rows > 0]
    return {
        "source": manifest.root,
        "format": manifest.format,
        "files": files.num_files,
        "rows": manifest.num_rows,
        "bytes": int(files.sizes.sum()),
        "decoded_bytes": int(memory.sum()),
        "blocks": len(blocks),
        "rows_per_block": [int(blocks.min()), int(np.median(blocks)), int(blocks.max())] if len(blocks) else None,
        "largest_block_bytes": int(memory.max(initial=0)),
        "schema": {field.name: str(field.type) for field in manifest.schema},
        "partitions": [field.name for field in manifest.partitions.fields],
        "fingerprint": manifest.fingerprint,
        "advice": [*_advice(manifest)],
    }


def inspect(arguments: argparse.Namespace) -> Answer:
    """Say what a dataset consists of, with advice."""
    manifest = open_manifest(arguments)
    facts = facts_of_data(manifest)
    of_block = facts["rows_per_block"]
    lines = pairs(
        [
            ("source", f"{manifest.root} ({manifest.format})"),
            ("files", facts["files"]),
            ("rows", manifest.num_rows),
            ("size", f"{rounded_size(facts['bytes'])}, about {rounded_size(facts['decoded_bytes'])} decoded"),
            (
                plural(block_name(manifest)),
                None
                if of_block is None
                else f"{facts['blocks']:,}, of {span(of_block)} rows, up to "
                f"{rounded_size(facts['largest_block_bytes'])} decoded",
            ),
            ("partitions", ", ".join(facts["partitions"]) or None),
            ("fingerprint", manifest.fingerprint),
        ]
    )
    schema = table(["column", "type"], facts["schema"].items())
    advice = ["", "advice", *wrapped(f"- {each}" for each in facts["advice"])] if facts["advice"] else []
    return Answer(facts, [*lines, "", *schema, *advice])


def _advice(manifest: Manifest) -> Iterator[str]:
    files, unit = manifest.files, block_name(manifest)
    has_rows = files.block_rows > 0
    if not has_rows.any():
        yield "there are no rows"
        return
    memory, rows = files.block_memory_bytes[has_rows], files.block_rows[has_rows]
    largest, mean, row_bytes = int(memory.max()), float(memory.mean()), float(memory.sum() / rows.sum())
    if largest > _LARGE_BLOCK:
        wanted = max(1, int(32 * _MIB / row_bytes))
        yield (
            f"the largest {unit} takes {rounded_size(largest)} decoded, and is decoded as a whole, even for one row: "
            f"write {plural(unit)} of about {wanted:,} rows (32 MiB)"
        )
    elif mean < _SMALL_BLOCK and len(rows) > _MANY_FILES:
        yield (
            f"there are {counted(len(rows), unit)} of {rounded_size(mean)} on average, and each costs a request and "
            f"some metadata: write {plural(unit)} of about {max(1, int(16 * _MIB / row_bytes)):,} rows (16 MiB)"
        )
    if files.num_files > _MANY_FILES and files.sizes.mean() < _SMALL_FILE:
        yield (
            f"there are {files.num_files:,} files of {rounded_size(float(files.sizes.mean()))} on average, and each is "
            "listed and opened: merge them into files of 100 MiB or more, or start from a saved Manifest"
        )
    if row_bytes > _LARGE_ROW:
        yield (
            f"a row takes {rounded_size(row_bytes)} decoded, so a batch of 64 is {rounded_size(64 * row_bytes)}: use "
            "small batches, and columns= to leave out what you don't need"
        )
    window = 64 * _MIB
    if _WINDOW_BLOCKS * largest > window:
        better = -(-_WINDOW_BLOCKS * largest // (64 * _MIB)) * 64
        yield (
            f"a window of 64 MiB, the default, mixes rows of {counted(max(1, window // largest), unit)} only: to "
            f'shuffle, use window_bytes="{better}MiB" for {_WINDOW_BLOCKS}, if there is memory for {better * 2:,} MiB '
            "per worker"
        )
    yield (
        f"{counted(len(rows), unit)} can be shared by at most as many workers without decoding one twice: "
        f"world_size * num_workers <= {len(rows):,}"
    )


def head(arguments: argparse.Namespace) -> Answer:
    """Show the first rows."""
    dataset = open_dataset(arguments, output="python")
    rows = [*islice(iter(dataset), arguments.n)]
    names = dataset.schema.names
    lines = table(names, ([row[name] for name in names] for row in rows))
    return Answer({"columns": names, "rows": rows}, lines)


def facts_of(plan: EpochPlan) -> dict[str, Any]:
    """Return what a plan says, as JSON values."""
    names = [
        *("epoch", "world_size", "num_workers", "batch_size", "next_step", "num_rows", "num_lanes", "num_windows"),
        *("num_steps", "batches_per_rank", "rows_repeated", "rows_dropped", "bytes_per_rank", "worker_memory_bytes"),
    ]
    return {name: getattr(plan, name) for name in names}


def plan(arguments: argparse.Namespace) -> Answer:
    """Say what each rank of a job does in an epoch, and draw it."""
    picture = None if arguments.plot is None else output_file("--plot", arguments.plot, ".svg")
    dataset = open_dataset(arguments)
    found = dataset.plan(arguments.epoch, arguments.world_size, arguments.workers)
    facts = facts_of(found)
    batches, read = facts["batches_per_rank"] or (), facts["bytes_per_rank"] or ()
    lines = pairs(
        [
            ("epoch", found.epoch),
            ("rows", found.num_rows),
            ("lanes", found.num_lanes),
            ("windows", found.num_windows),
            ("steps", found.num_steps),
            ("batches per rank", span(batches) if batches else None),
            ("rows repeated", found.rows_repeated),
            ("rows left out", found.rows_dropped),
            ("read per rank", span(read, rounded_size) if read else None),
            ("memory per worker", rounded_size(facts["worker_memory_bytes"] or 0)),
        ]
    )
    if picture is not None:
        picture.write_text(PlanPictures(found, block_name(dataset.definition.manifest)).image(), encoding="utf-8")
        facts["plot"] = arguments.plot
        lines += ["", f"wrote {arguments.plot}"]
    return Answer(facts, lines)


def verify(arguments: argparse.Namespace) -> Answer:
    """Read all row groups, or what the format calls them, and name those that are damaged."""
    manifest = open_manifest(arguments)
    storage = manifest.storage(storage_options=storage_options(arguments))
    reader = RowReader(manifest, storage, manifest.schema)
    files = manifest.files

    def problem_with(block: int) -> dict[str, Any] | None:
        file_index = int(np.searchsorted(files.block_starts, block, side="right")) - 1
        first = files.row_starts[file_index]
        start, stop = (int(files.block_row_starts[i] - first) for i in (block, block + 1))
        try:
            reader.read(file_index, start, stop)
        except DataFileError as error:
            own = block - int(files.block_starts[file_index])
            return {"path": files.paths[file_index], "block": own, "start": start, "stop": stop, "problem": str(error)}
        return None

    unit = block_name(manifest)
    blocks, shown = np.flatnonzero(files.block_rows > 0).tolist(), progress_wanted()
    with ThreadPoolExecutor(4) as threads, progress_bar(len(blocks), "reading", unit, progress=shown) as bar:
        damaged = []
        for found in threads.map(problem_with, blocks):
            bar.update(1)
            damaged += [] if found is None else [found]
    reader.close()
    facts = {"files": files.num_files, "blocks": len(blocks), "rows": manifest.num_rows, "damaged": damaged}
    whole = f"{counted(files.num_files, 'file')}, {counted(len(blocks), unit)}, {counted(manifest.num_rows, 'row')}"
    lines = [f"{whole}: {'no damage' if not damaged else f'{len(damaged):,} damaged'}"]
    lines += [
        f"{each['path']}, {unit} {each['block']} (rows {each['start']:,} to {each['stop']:,}): {each['problem']}"
        for each in damaged
    ]
    return Answer(facts, lines, exit_code=1 if damaged else 0)


def convert(arguments: argparse.Namespace) -> Answer:
    """Rewrite data as Parquet files whose row groups are sized for training."""
    options = storage_options(arguments)
    source = Manifest.load(arguments.source, storage_options=options) if arguments.manifest else arguments.source
    sizes = {name: getattr(arguments, name) for name in ("row_group_bytes", "file_bytes")}
    given = {name: size for name, size in sizes.items() if size is not None}
    found = to_parquet(
        source, arguments.dest, format=arguments.format, columns=arguments.columns, storage_options=options, **given
    )
    facts: dict[str, Any] = {
        "dest": found.root,
        "files": found.files.num_files,
        "rows": found.num_rows,
        "bytes": int(found.files.sizes.sum()),
        "row_groups": len(found.files.block_rows),
        "schema": {field.name: str(field.type) for field in found.schema},
    }
    lines = pairs([*((name, facts[name]) for name in ("dest", "files", "rows", "row_groups"))])
    lines += pairs([("size", rounded_size(facts["bytes"]))])
    return Answer(facts, lines)
