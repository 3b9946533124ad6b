"""Commands for data: inspect, head, plan, where, verify, and convert, which writes it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from laneway.catalog.progress_bar import progress_bar
from laneway.catalog.signature import SavedManifestError
from laneway.catalog.sources import find_data_files
from laneway.cli.given import progress_wanted, storage_options
from laneway.cli.output import Answer, output_file, pairs, table, wrapped
from laneway.cli.sources import Data, open_data, open_dataset, refuse_code
from laneway.core.weighting import shares_of
from laneway.errors import DataFileError
from laneway.formats import FORMATS
from laneway.manifest import Manifest
from laneway.mixture import Mixture
from laneway.pictures.plot import PlanPictures
from laneway.pictures.sources import draw_sources
from laneway.pictures.svg import STYLE, stacked
from laneway.plans.source_samples import sample_sources
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


def facts_of_data(data: Data) -> dict[str, Any]:
    """Return what a dataset consists of, with advice, as JSON values."""
    manifest = data.manifest
    files = manifest.files
    blocks, memory = files.block_rows[files.block_rows > 0], files.block_memory_bytes[files.block_rows > 0]
    selected = {} if data.selection is None else {"selection": data.selection, "selected_rows": data.num_rows}
    return {
        "source": manifest.root,
        "format": manifest.format,
        "files": files.num_files,
        "rows": manifest.num_rows,
        **selected,
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
    """Say what a dataset consists of, or each source of a mixture, with advice."""
    found = open_data(arguments)
    facts = {name: facts_of_data(data) for name, data in found.items()}
    lines: list[str] = []
    for name, data in found.items():
        lines += [*([""] if lines else []), *([f"source {name}"] if name else [])]
        lines += _lines_of_data(data.manifest, facts[name])
    return Answer(facts.get("", {"sources": facts}), lines)


def _lines_of_data(manifest: Manifest, facts: dict[str, Any]) -> list[str]:
    of_block = facts["rows_per_block"]
    lines = pairs(
        [
            ("source", f"{manifest.root} ({manifest.format})"),
            ("files", facts["files"]),
            ("rows", manifest.num_rows),
            ("selected", f"{facts['selected_rows']:,} rows: {facts['selection']}" if "selection" in facts else None),
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
    # Paths are not wrapped, so that they can be copied.
    fitted = [part for line in lines for part in (wrapped([line]) if line.startswith("selected") else [line])]
    return [*fitted, "", *schema, *advice]


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
        f"keep world_size * num_workers <= {len(rows):,}: with more workers than {plural(unit)}, some are decoded twice"
    )


def head(arguments: argparse.Namespace) -> Answer:
    """Show the first rows; of a user's code, what it delivers first: rows, batches or packs."""
    if arguments.n < 0:
        message = f"-n must be at least 0, not {arguments.n}"
        raise ValueError(message)
    dataset = open_dataset(arguments, output="python").whole
    rows = [*islice(iter(dataset), arguments.n)]
    # A user's functions may return anything.
    rows = [row if isinstance(row, dict) else {"item": row} for row in rows]
    names = [*dict.fromkeys(name for row in rows for name in row)] or dataset.schema.names
    lines = table(names, ([row.get(name, "") for name in names] for row in rows))
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
    dataset = open_dataset(arguments).whole
    found = dataset.plan(arguments.epoch, arguments.world_size, arguments.workers)
    facts = facts_of(found)
    batches, read, memory = facts["batches_per_rank"] or (), facts["bytes_per_rank"] or (), facts["worker_memory_bytes"]
    unit = "rows" if dataset.definition.stages is None else "packs"
    lines = pairs(
        [
            ("epoch", found.epoch),
            (unit, "no end" if found.num_rows is None else found.num_rows),
            ("sources", _named_shares(dataset) if isinstance(dataset, Mixture) else None),
            ("lanes", found.num_lanes),
            ("windows", found.num_windows),
            ("steps", found.num_steps),
            ("batches per rank", span(batches) if batches else None),
            (f"{unit} repeated", found.rows_repeated),
            (f"{unit} left out", found.rows_dropped),
            ("read per rank", span(read, rounded_size) if read else None),
            ("memory per worker", None if memory is None else rounded_size(memory)),
        ]
    )
    if picture is not None:
        if isinstance(dataset, Mixture):
            image = stacked([draw_sources(sample_sources(found))]).image(STYLE)
        else:
            image = PlanPictures(found, block_name(dataset.definition.manifest)).image()
        picture.write_text(image, encoding="utf-8")
        facts["plot"] = arguments.plot
        lines += ["", f"wrote {arguments.plot}"]
    return Answer(facts, lines)


def _named_shares(mixture: Mixture) -> str:
    """Return the shares of the sources of a mixture, and how a schedule changes them."""
    first, *others = mixture.definition.given.phases
    shown = ", ".join(f"{name} {share:.4g}" for name, share in shares_of(first.weights).items())
    return f"{shown}; {counted(len(others), 'change')} of weights" if others else shown


def verify(arguments: argparse.Namespace) -> Answer:
    """Read all row groups, or what the format calls them, and name those that are damaged, and damaged files."""
    unreadable: list[dict[str, Any]] = []
    try:
        opened = open_data(arguments)
    except DataFileError as error:
        opened, unreadable = _readable(arguments, error)
    found = {name: _damage(data) for name, data in opened.items()}
    for facts in found.values():
        facts["files"] += len(unreadable)
        facts["damaged"] = [*unreadable, *facts["damaged"]]
    lines = [
        f"source {name}: {line}" if name else line
        for name, facts in found.items()
        for line in _lines_of_damage(facts, block_name(opened[name].manifest))
    ]
    exit_code = 1 if any(facts["damaged"] for facts in found.values()) else 0
    return Answer(found.get("", {"sources": found}), lines, exit_code)


def _readable(arguments: argparse.Namespace, error: DataFileError) -> tuple[dict[str, Data], list[dict[str, Any]]]:
    """Return the data files whose metadata can be read, and what is wrong with the others.

    Args:
        arguments: The arguments of the command.
        error: Why the metadata of all of them can't be read; raised if it is not the damage of some files.
    """
    try:
        found = find_data_files(arguments.source, format=arguments.format, storage_options=storage_options(arguments))
    except (DataFileError, ValueError):
        raise error from None
    storage, options = found.storage, {"filesystem": found.storage.filesystem, "format": found.format.name}

    def problem_with(path: str) -> str | None:
        try:
            Manifest.scan(storage.join(path), **options, cache_dir=False, progress=False)
        except DataFileError as problem:
            return str(problem)
        return None

    with ThreadPoolExecutor(4) as threads:
        problems = dict(zip(found.paths, threads.map(problem_with, found.paths), strict=True))
    good = [storage.join(path) for path, problem in problems.items() if problem is None]
    if not good or len(good) == len(problems):
        raise error
    manifest = Manifest.scan(good, **options, cache_dir=False, progress=False)
    no_block = {"block": None, "start": None, "stop": None}
    damaged = [{"path": path, **no_block, "problem": problem} for path, problem in problems.items() if problem]
    return {"": Data(manifest, manifest.storage(filesystem=storage.filesystem))}, damaged


def _damage(data: Data) -> dict[str, Any]:
    """Return which row groups of a dataset can't be read, with what there is, as JSON values."""
    manifest = data.manifest
    reader = RowReader(manifest, data.storage, manifest.schema)
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
    return {
        "files": files.num_files,
        "blocks": len(blocks),
        "rows": manifest.num_rows,
        "damaged": damaged,
    }


def _lines_of_damage(facts: dict[str, Any], unit: str) -> list[str]:
    damaged = facts["damaged"]
    whole = f"{counted(facts['files'], 'file')}, {counted(facts['blocks'], unit)}, {counted(facts['rows'], 'row')}"
    lines = [f"{whole}: {'no damage' if not damaged else f'{len(damaged):,} damaged'}"]
    for each in damaged:
        # The problem of a file names it.
        where = "" if each["block"] is None else f"{each['path']}, {unit} {each['block']} "
        rows = f"(rows {each['start']:,} to {each['stop']:,}): " if where else ""
        lines.append(f"{where}{rows}{each['problem']}")
    return lines


def convert(arguments: argparse.Namespace) -> Answer:
    """Rewrite data as Parquet files whose row groups are sized for training."""
    refuse_code(arguments, "convert rewrites whole files: give their path")
    options = storage_options(arguments)
    sizes = {name: getattr(arguments, name) for name in ("row_group_bytes", "file_bytes")}
    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    given |= {"format": arguments.format, "columns": arguments.columns, "storage_options": options}
    try:
        found = to_parquet(arguments.source, arguments.dest, **given)
    except SavedManifestError:
        found = to_parquet(Manifest.load(arguments.source, storage_options=options), arguments.dest, **given)
    facts: dict[str, Any] = {
        "dest": found.root,
        "files": found.files.num_files,
        "rows": found.num_rows,
        "bytes": int(found.files.sizes.sum()),
        "row_groups": len(found.files.block_rows),
        "schema": {field.name: str(field.type) for field in found.schema},
    }
    lines = pairs(
        [
            ("dest", found.root),
            ("files", facts["files"]),
            ("rows", facts["rows"]),
            ("row groups", facts["row_groups"]),
            ("size", rounded_size(facts["bytes"])),
        ]
    )
    return Answer(facts, lines)
