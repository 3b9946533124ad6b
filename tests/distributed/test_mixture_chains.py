"""Mixtures on real ranks with real workers through chains of changes and kills: each row, or token, of an epoch once.

Each leg of a chain has ranks, workers, batches, weights and sources of its own; files are added to sources; ranks are
killed, before the leg was saved or after it. LANEWAY_FUZZ_CASES is the number of chains.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from laneway import Mixture, SavableLoader, StatefulShardedDataset
from tests.distributed.ranks import RankGroup, restore, save
from tests.fuzzing import num_cases

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from laneway import RowContext
    from tests.distributed.ranks import RunRanks

NAMES = "abcd"
WEIGHTS = [0, 1, 3, 0.2, 1.006, 1e-3]
LENGTH = 8
MAX_WAITING_PACKS = 100
"""More than the packs of the groups that six lanes can have left."""
STRATEGIES = (None, "chunk", "best_fit")
"""How a chain is packed; None: not at all."""


class Token(NamedTuple):
    """A token that was delivered, or of a chain that is not packed a row: its first token."""

    source: int
    life: int
    """How many times the source was removed and added again."""
    epoch: int
    row: int
    place: int

    def encode(self) -> int:
        found = 0
        for value in self:
            found = found * 10_000 + value
        return found

    @classmethod
    def decode(cls, code: int) -> Token:
        values = []
        for _ in cls._fields:
            code, value = divmod(code, 10_000)
            values.append(value)
        return cls(*reversed(values))


def num_tokens(row: int) -> int:
    """Return the length of the document of a row: some are longer than a pack, some are empty, but not the first."""
    return (row * 7 + 5) % 12


@dataclass(frozen=True)
class Leg:
    """What the ranks do between two changes."""

    index: int
    """The leg is the index-th of its chain."""
    strategy: Any
    """One of `STRATEGIES`."""
    sizes: dict[str, list[int]]
    """Source -> rows with which it began, and after each time that files were added."""
    lives: dict[str, int]
    """Source -> how many times it was removed before."""
    weights: dict[str, float]
    """Of the sources that are there."""
    world_size: int
    num_workers: int
    batch_size: int
    num_batches: int
    way: str
    """How the state is saved."""
    resumes: tuple[str, str] | None
    """From which folder, and how it was saved; None: from the start."""
    later_weights: dict[str, float] | None = None
    """Weights that are set on the way."""
    deaths: frozenset[int] = frozenset()
    """Ranks that are killed after they have taken some more batches."""
    is_saved: bool = True
    """Whether it is saved before that."""
    until: dict[str, int] = field(default_factory=dict)
    """Source -> epoch that it must have finished before the leg ends; then `num_batches` is not used."""


def write_files(folder: Path, name: str, version: int, first: int, num_rows: int) -> None:
    (folder / name).mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"row": range(first, first + num_rows)}), folder / name / f"{version}.parquet", row_group_size=3
    )


@dataclass(frozen=True)
class Tokens:
    """Makes the document of a row."""

    lives: dict[str, int]
    is_packed: bool

    def __call__(self, row: dict[str, Any], context: RowContext) -> dict[str, Any]:
        name, number = context.source or "", int(row["row"])
        first = Token(NAMES.index(name), self.lives[name], context.epoch, number, 0)
        if not self.is_packed:
            return {"code": first.encode()}
        return {"input_ids": [first._replace(place=place).encode() for place in range(num_tokens(number))]}


def loader_of(folder: Path, leg: Leg) -> SavableLoader:
    sources = {}
    for name in leg.weights:
        versions = [
            StatefulShardedDataset(
                folder / name / f"[0-{version}].parquet",
                seed=NAMES.index(name),
                shuffle=name in "bd",
                shard_rows=4,
                window_bytes=100,
            )
            for version in range(len(leg.sizes[name]))
        ]
        source = versions[0]
        for version in versions[1:]:
            source = source.extend(version)
        sources[name] = source
    rows: Any = Mixture(sources, leg.weights).map(Tokens(leg.lives, leg.strategy is not None), with_context=True)
    if leg.strategy is not None:
        rows = rows.pack(LENGTH, strategy=leg.strategy, group_rows=5 if leg.strategy == "best_fit" else None)
    return SavableLoader(rows.batch(leg.batch_size), num_workers=leg.num_workers)


def codes_of(batches: Iterable[dict[str, Any]]) -> list[int]:
    found = []
    for batch in batches:
        codes = batch["code"] if "code" in batch else batch["input_ids"][batch["document_ids"] > 0]
        found += codes.tolist()
    return found


def run_leg(rank: int, folder: Path, leg: Leg) -> dict[str, int] | None:
    """Run a leg on a rank, and leave the tokens that count in a file; return the epoch of each source at its end."""
    loader = loader_of(folder, leg)
    if leg.resumes is not None:
        restore(loader, leg.resumes[1], folder / leg.resumes[0])
    batches = iter(loader)
    # Ranks need not be in step, unless one of them speaks for all.
    is_even = leg.way in {"state_dict", "dcp"} or leg.later_weights is not None
    received = codes_of(islice(batches, leg.num_batches + (0 if is_even else rank % 2)))
    if leg.later_weights is not None:
        loader.set_weights(leg.later_weights)
        received += codes_of(islice(batches, leg.num_batches))
    while any(loader.sources[name].epoch <= epoch for name, epoch in leg.until.items()):
        received += codes_of(islice(batches, 1))
    ended = {name: source.epoch for name, source in loader.sources.items()} if leg.until else None
    if leg.until and leg.strategy is not None:
        # A group that is half delivered, or waits, counts as delivered: its packs are yet to come.
        received += codes_of(islice(batches, MAX_WAITING_PACKS // leg.batch_size))
    if leg.is_saved:
        (folder / f"{leg.index}-{rank}.json").write_text(json.dumps(received))
        save(loader, leg.way, folder / f"state {leg.index}")
    if leg.deaths:
        codes_of(islice(batches, 2))
        dist.barrier()
    if rank in leg.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return ended


class Chain:
    """One chain of legs, and what they deliver."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.generator = random.Random(seed)
        self.strategy = STRATEGIES[seed % len(STRATEGIES)]
        self.sizes: dict[str, list[int]] = {}
        self.lives = dict.fromkeys(NAMES, 0)
        self.names: list[str] = []
        self.delivered = Counter[Token]()
        self.resumes: tuple[str, str] | None = None

    def grow(self, name: str) -> None:
        """Write the first files of a source, or more of them."""
        sizes = self.sizes.setdefault(name, [])
        num_rows, first = self.generator.randint(1, 20), sizes[-1] if sizes else 0
        write_files(self.folder, name, len(sizes), first, num_rows)
        sizes.append(first + num_rows)

    def change(self) -> None:
        """Add and remove sources, and add files."""
        generator = self.generator
        for name in NAMES:
            if name not in self.names and (not self.names or generator.random() < 0.4):
                self.names.append(name)
                if name not in self.sizes:
                    self.grow(name)
            elif name in self.names and len(self.names) > 1 and self.resumes is not None:
                # A source whose rows are in half-delivered packs can't be removed.
                if self.strategy is None and generator.random() < 0.15:
                    self.names.remove(name)
                    self.lives[name] += 1
                elif generator.random() < 0.2 and len(self.sizes[name]) < 3:
                    self.grow(name)

    def weights(self) -> dict[str, float]:
        weights = {name: float(self.generator.choice(WEIGHTS)) for name in self.names}
        return weights if any(weights.values()) else dict.fromkeys(self.names, 1.0)

    def leg(self, index: int) -> Leg:
        generator = self.generator
        world_size = generator.randint(1, 3)
        # How far the packs of a rank have come depends on its documents: no rank speaks for all.
        ways = ["global", "global from every rank", *(["state_dict", "dcp"] if self.strategy is None else [])]
        return Leg(
            index,
            self.strategy,
            {name: [*sizes] for name, sizes in self.sizes.items()},
            {**self.lives},
            self.weights(),
            world_size,
            generator.randint(0, 2),
            generator.randint(1, 6),
            generator.randint(0, 4),
            generator.choice(ways),
            self.resumes,
            later_weights=self.weights() if self.strategy is None and generator.random() < 0.3 else None,
        )

    def run(self, run_ranks: RunRanks, leg: Leg) -> Any:
        """Run a leg, and count what it delivered before it was saved."""
        if leg.deaths:
            with RankGroup(leg.world_size) as group:
                group.run(run_leg, self.folder, leg, deaths=leg.deaths)
            found = None
        else:
            found = run_ranks(run_leg, leg.world_size, self.folder, leg)[0]
        if leg.is_saved:
            self.resumes = (f"state {leg.index}", leg.way)
            for rank in range(leg.world_size):
                codes = json.loads((self.folder / f"{leg.index}-{rank}.json").read_text())
                self.delivered.update(map(Token.decode, codes))
        return found

    def expected(self, num_rows: int) -> set[tuple[int, int]]:
        """Return (row, place) of all tokens of the first rows of a source."""
        return {(row, place) for row in range(num_rows) for place in range(num_tokens(row) if self.strategy else 1)}

    def check(self, ended: dict[str, int]) -> None:
        """Check what was delivered, given the epoch of each source at the end."""
        assert max(self.delivered.values()) == 1
        for name, epoch in ended.items():
            of_epochs: dict[int, set[tuple[int, int]]] = {}
            for token in self.delivered:
                if token[:2] == (NAMES.index(name), self.lives[name]):
                    of_epochs.setdefault(token.epoch, set()).add((token.row, token.place))
            versions = [self.expected(size) for size in self.sizes[name]]
            # An epoch has the files with which it began, so later ones have as many or more.
            found = [versions.index(of_epochs.get(each, set())) for each in range(epoch)]
            assert found == sorted(found)


@pytest.mark.parametrize("seed", range(num_cases(3)))
def test_each_row_comes_once_through_any_chain_of_changes_and_kills(
    run_ranks: RunRanks, tmp_path: Path, seed: int
) -> None:
    chain = Chain(tmp_path, seed)
    num_legs = chain.generator.randint(3, 5)
    for index in range(num_legs):
        chain.change()
        leg = chain.leg(index)
        if index == 1:
            deaths = chain.generator.sample(range(leg.world_size), chain.generator.randint(1, leg.world_size))
            leg = replace(leg, deaths=frozenset(deaths), is_saved=chain.generator.random() < 0.5)
        chain.run(run_ranks, leg)
    begun = {
        name: max(
            (token.epoch for token in chain.delivered if token[:2] == (NAMES.index(name), chain.lives[name])),
            default=0,
        )
        for name in chain.names
    }
    last = replace(
        chain.leg(num_legs), world_size=1, weights=dict.fromkeys(chain.names, 1.0), later_weights=None, until=begun
    )
    chain.check(chain.run(run_ranks, last))
