"""Ranks that pack documents: gathered states go on with other ranks, and every token of an epoch comes once."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from laneway import Mixture, SavableLoader, StatefulShardedDataset

if TYPE_CHECKING:
    from pathlib import Path

    from laneway import RowContext
    from tests.distributed.ranks import RunRanks

SIZES = [3, 0, 9, 1, 20, 5, 8, 2, 0, 7, 16, 4, 6, 11, 2, 5]
LENGTH = 8
EPOCH = 1_000
"""Tokens of later epochs are larger by this."""


def write_documents(folder: Path) -> None:
    """Write documents whose tokens are 1, 2, 3, ..."""
    first, documents = 1, []
    for size in SIZES:
        documents.append([*range(first, first + size)])
        first += size
    folder.mkdir()
    table = pa.table({"input_ids": pa.array(documents, pa.list_(pa.int32()))})
    pq.write_table(table, folder / "part-0.parquet", row_group_size=4)


def of_epoch(row: dict[str, Any], context: RowContext) -> dict[str, Any]:
    """Return a row whose tokens differ from epoch to epoch."""
    return {"input_ids": [token + EPOCH * context.epoch for token in row["input_ids"]]}


def pack_some(rank: int, folder: Path, leg: int, num_batches: int) -> list[int]:
    """Take some batches of packs, between loading and saving a gathered state; return the tokens."""
    strategy: Any = "chunk" if "chunk" in folder.name else "best_fit"
    rows = StatefulShardedDataset(folder, shuffle=True, seed=5, shard_rows=4, window_bytes=200)
    packs = rows.repeat().map(of_epoch, with_context=True).pack(LENGTH, strategy=strategy)
    loader = SavableLoader(packs.batch(1 + leg % 2), num_workers=leg % 2)
    path = folder.parent / f"{folder.name}.state"
    if leg:
        loader.restore_state_global(torch.load(path, weights_only=True) if rank == 0 else None)
    found: list[int] = []
    for batch in islice(loader, num_batches):
        found += batch["input_ids"][batch["document_ids"] > 0].tolist()
    own = loader.state_dict()["laneway"][0]
    assert own["scope"] == ("global" if loader.dataset.definition.place.world_size == 1 else "rank")
    state = loader.save_state_global()
    if rank == 0:
        torch.save(state, path)
    return found


def test_gathered_states_of_packs_go_on_with_any_number_of_ranks(run_ranks: RunRanks, tmp_path: Path) -> None:
    for name in ("chunk", "best_fit"):
        folder = tmp_path / name
        write_documents(folder)
        found = Counter[int]()
        for leg, (world_size, num_batches) in enumerate([(2, 3), (3, 2), (2, 4), (3, 3)]):
            for tokens in run_ranks(pack_some, world_size, folder, leg, num_batches):
                found.update(tokens)
        assert max(found.values()) == 1
        assert {token % EPOCH for token in found} <= {*range(1, 1 + sum(SIZES))}
        assert sum(found.values()) > sum(SIZES)


def pack_epoch(rank: int, folder: Path, leg: int, num_batches: int | None) -> tuple[int, list[int]]:
    """Take some batches of packs of known lengths, from the state that rank 1 saved alone; return the tokens."""
    strategy: Any = "chunk" if "chunk" in folder.name else "best_fit"
    rows = StatefulShardedDataset(folder, shuffle=True, seed=5, shard_rows=4, window_bytes=200)
    packs = rows.pack(LENGTH, strategy=strategy, group_rows=4, lengths="input_ids")
    loader = SavableLoader(packs.batch(1 + leg % 2), num_workers=leg % 2)
    path = folder.parent / f"{folder.name}.state"
    if leg:
        loader.load_state_dict(torch.load(path, weights_only=True))
    batches = [*islice(loader, num_batches)]
    state = loader.state_dict(check=True)
    if rank == loader.dataset.definition.place.world_size - 1:
        torch.save(state, path)
    tokens = [token for batch in batches for token in batch["input_ids"][batch["document_ids"] > 0].tolist()]
    return len(batches), tokens


def test_the_state_of_one_rank_is_that_of_the_job_if_lengths_are_known(run_ranks: RunRanks, tmp_path: Path) -> None:
    for name in ("known_chunk", "known_best_fit"):
        folder = tmp_path / name
        write_documents(folder)
        found = Counter[int]()
        for leg, (world_size, num_batches) in enumerate([(2, 2), (3, 1), (2, 1), (1, None)]):
            of_ranks = run_ranks(pack_epoch, world_size, folder, leg, num_batches)
            assert len({number for number, _ in of_ranks}) == 1
            for _, tokens in of_ranks:
                found.update(tokens)
        assert found == Counter(range(1, 1 + sum(SIZES)))


def pack_epochs(rank: int, folder: Path, leg: int, num_batches: int) -> tuple[list[int], list[int]]:
    """Take some batches of an epoch of five, or the rest of one, and the next epoch; return numbers and tokens."""
    rows = StatefulShardedDataset(folder, shuffle=True, seed=5, shard_rows=4, window_bytes=200)
    packs = rows.repeat(epoch_batches=5).map(of_epoch, with_context=True).pack(LENGTH, strategy="chunk")
    loader = SavableLoader(packs.batch(1), num_workers=rank % 2)
    path = folder.parent / "epochs.state"
    if leg:
        loader.restore_state_global(torch.load(path, weights_only=True) if rank == 0 else None)
    epochs = [[*islice(loader, num_batches)]]
    if leg:
        loader.set_epoch(1)
        epochs.append([*loader])
    state = loader.save_state_global()
    if rank == 0:
        torch.save(state, path)
    batches = [batch for epoch in epochs for batch in epoch]
    tokens = [token for batch in batches for token in batch["input_ids"][batch["document_ids"] > 0].tolist()]
    return [*map(len, epochs)], tokens


def test_epochs_of_batches_are_equal_on_all_ranks(run_ranks: RunRanks, tmp_path: Path) -> None:
    write_documents(tmp_path / "documents")
    first = run_ranks(pack_epochs, 2, tmp_path / "documents", 0, 2)
    second = run_ranks(pack_epochs, 3, tmp_path / "documents", 1, 5)
    assert [numbers for numbers, _ in first] == [[2]] * 2
    assert [numbers for numbers, _ in second] == [[3, 5]] * 3
    found = Counter(token for _, tokens in (*first, *second) for token in tokens)
    assert max(found.values()) == 1


def pack_mixture(rank: int, folder: Path, leg: int) -> tuple[list[int], tuple[int, ...]]:
    """Mix packs of known lengths, from the state of the last rank alone; return tokens, and packs of each source."""
    sources = {
        name: StatefulShardedDataset(folder, shuffle=True, seed=seed, shard_rows=4).count_lengths("input_ids")
        for seed, name in enumerate("ab")
    }
    mixture = Mixture(sources, {"a": 1, "b": 1 + leg})
    loader = SavableLoader(mixture.pack(LENGTH, group_rows=4).batch(1 + leg % 2), num_workers=leg % 2)
    path = folder.parent / "mixture.state"
    if leg:
        loader.load_state_dict(torch.load(path, weights_only=True))
    batches = [*islice(loader, 2)]
    loader.set_weights({"a": 2, "b": 1})
    batches += [*islice(loader, 3)]
    state = loader.state_dict(check=True)
    if rank == loader.dataset.definition.place.world_size - 1:
        torch.save(state, path)
    tokens = [token for batch in batches for token in batch["input_ids"][batch["document_ids"] > 0].tolist()]
    return tokens, tuple(source.rows for source in loader.sources.values())


def test_packs_of_known_lengths_are_mixed_in_lockstep(run_ranks: RunRanks, tmp_path: Path) -> None:
    write_documents(tmp_path / "documents")
    found, num_packs = Counter[int](), 0
    for leg, world_size in enumerate([2, 3, 2]):
        of_ranks = run_ranks(pack_mixture, world_size, tmp_path / "documents", leg)
        num_packs += world_size * 5 * (1 + leg % 2)
        (sources,) = {rows for _, rows in of_ranks}
        assert sum(sources) == num_packs
        for tokens, _ in of_ranks:
            found.update(tokens)
    # Each source delivers whole epochs, one after another.
    assert {*found} == {*range(1, 1 + sum(SIZES))}
    assert max(found.values()) - min(found.values()) <= 2
