"""Plans of packs of documents of known lengths: which tokens each pack of a step has, compared with what comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import Mixture, SavableLoader, StatefulShardedDataset
from laneway.core.progress import Progress
from laneway.core.turns import WorkerPlace
from laneway.metering import Meter
from laneway.plans.cut_rows import DocumentPlace, SourceDocumentPlace

if TYPE_CHECKING:
    from pathlib import Path

    from laneway.planned import PlannedDataset
    from laneway.plans.epoch_plan import EpochPlan

LENGTHS = [(5, 0, 12, 1, 7, 3, 14), (8, 2, 2, 30, 1), (4, 6, 9, 16, 0, 0, 11, 2)]
"""Tokens of each document of each file."""
SEPARATOR, PACKED = 7, 8
SMALL: dict[str, Any] = {"shuffle": True, "seed": 3, "shard_rows": 3, "window_bytes": 300}
PACKINGS: list[dict[str, Any]] = [
    {"strategy": "chunk"},
    {"strategy": "chunk", "separator": SEPARATOR},
    *({"group_rows": 4, "overflow": overflow} for overflow in ("split", "truncate", "drop")),
    {"group_rows": 5, "separator": SEPARATOR},
]


def token(source: int, file: int, row: int, index: int) -> int:
    """Return a token that says where it is from."""
    return source * 10**7 + file * 10**6 + row * 10**3 + index + 10


def write(folder: Path, source: int) -> Path:
    folder.mkdir()
    for file, lengths in enumerate(LENGTHS):
        rows = [[token(source, file, row, index) for index in range(n)] for row, n in enumerate(lengths)]
        table = pa.table({"input_ids": pa.array(rows, pa.list_(pa.int64()))})
        pq.write_table(table, folder / f"{file}.parquet", row_group_size=3)
    return folder


def documents(folder: Path, **options: Any) -> StatefulShardedDataset:
    return StatefulShardedDataset(folder, **SMALL, **options).count_lengths("input_ids")


def delivered(batch: dict[str, Any]) -> list[list[int]]:
    """Return the tokens of each pack of a batch, without separators."""
    ids, of_documents = batch["input_ids"].tolist(), batch["document_ids"].tolist()
    packs = (zip(*pack, strict=True) for pack in zip(ids, of_documents, strict=True))
    return [[each for each, document in pack if document and each != SEPARATOR] for pack in packs]


def planned(plan: EpochPlan, step: int, rank: int, num_packs: int) -> list[list[int]]:
    """Return the tokens that the plan of a step has in each pack of a rank, and check that each row is found."""
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    for place in plan.rows_of(step)[rank]:
        assert isinstance(place, (DocumentPlace, SourceDocumentPlace))
        of_source: dict[str, Any] = {}
        if isinstance(place, SourceDocumentPlace):
            of_source = {"source": place.source, "epoch": place.epoch}
        file, source = int(place.path[0]), "ab".index(of_source.get("source", "a"))
        packs[place.pack] += [token(source, file, place.row, index) for index in range(place.start, place.stop)]
        found = plan.where(place.path, place.row, **of_source)
        assert (step, rank, place.pack) in [(each.step, each.rank, each.batch_index) for each in found]
    return packs


def check(dataset: PlannedDataset, state: Any, num_steps: int | None = None) -> Any:
    """Compare steps that a rank takes with its plan, from a state on, and return the state after them."""
    place, loader = dataset.definition.place, SavableLoader(dataset)
    plan = dataset.plan(world_size=place.world_size, state=state)
    if state is not None:
        loader.load_state_dict(state)
    step = plan.next_step
    for batch in loader:
        packs = delivered(batch)
        assert planned(plan, step, place.rank, len(packs)) == packs
        step += 1
        if num_steps is not None and step - plan.next_step == num_steps:
            return loader.state_dict()
    assert step == plan.num_steps
    return loader.state_dict()


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_a_plan_tells_the_documents_of_each_pack_also_after_other_ranks(tmp_path: Path, packing: Any) -> None:
    folder = write(tmp_path / "a", 0)

    def dataset(rank: int, world_size: int) -> StatefulShardedDataset:
        rows = StatefulShardedDataset(folder, rank=rank, world_size=world_size, remainder="keep", **SMALL)
        return rows.skip(2).count_lengths("input_ids").pack(PACKED, **packing).batch(2)

    check(dataset(1, 2), None)
    state = check(dataset(0, 2), None, 1)
    state = check(dataset(1, 3), state, 1)
    check(dataset(0, 1), state)
    plan = dataset(0, 1).plan(world_size=1, state=state)
    places = [each for step in range(plan.num_steps or 0) for rank in plan.rows_of(step) for each in rank]
    covered = [(*each[:2], index) for each in places for index in range(each.start, each.stop)]  # type: ignore[union-attr]  # of packs
    assert len(covered) == len({*covered})
    if packing.get("overflow", "split") == "split":
        assert len(covered) == sum(map(sum, LENGTHS)) - 5
        times = [(each.path, each.row) for each in places].count(("1.parquet", 3))
        assert len(plan.where("1.parquet", 3)) == times >= 4
        assert not plan.where("2.parquet", 4)


@pytest.mark.parametrize("packing", PACKINGS[1:3], ids=str)
def test_a_plan_tells_the_documents_of_packs_of_a_mixture(tmp_path: Path, packing: Any) -> None:
    folders = [write(tmp_path / name, source) for source, name in enumerate("ab")]

    def mixture(rank: int, world_size: int) -> Mixture:
        sources = {name: documents(folder) for name, folder in zip("ab", folders, strict=True)}
        mixed = Mixture(sources, {"a": 3, "b": 1}, rank=rank, world_size=world_size)
        return mixed.pack(PACKED, **packing).batch(3)

    state = check(mixture(0, 2), None, 12)
    state = check(mixture(2, 3), state, 3)
    check(mixture(0, 1), state, 5)


def test_a_plan_names_the_worker_of_a_pack_also_after_turns_without_packs(tmp_path: Path) -> None:
    sources = {name: documents(write(tmp_path / name, source)) for source, name in enumerate("ab")}
    mixture = Mixture(sources, {"a": 9, "b": 1}, stop="first_exhausted", lanes=8, turn_rows=1, rank=0, world_size=1)
    dataset, num_workers = mixture.pack(PACKED, **PACKINGS[1]).batch(4), 2
    plan, definition = dataset.plan(num_workers=num_workers), dataset.definition
    expected: list[list[Any]] = [[] for _ in range(num_workers)]
    rotation = []
    for step in range(plan.num_steps or 0):
        place = plan.rows_of(step)[0][0]
        assert isinstance(place, SourceDocumentPlace)
        found = plan.where(place.path, place.row, source=place.source, epoch=place.epoch)
        (worker,) = {each.worker for each in found if each.step == step}
        expected[worker or 0].append(place)
        rotation.append(worker)
    for worker in range(num_workers):
        stream = definition.open_batches(
            definition.resolve(Progress(0), WorkerPlace(0, 1, worker, num_workers)), Meter()
        )
        firsts = []
        while (tagged := stream.next_tagged()) is not None:
            firsts.append(delivered(tagged.batch)[0][0])
        stream.release()
        assert firsts == [
            token("ab".index(each.source), int(each.path[0]), each.row, each.start) for each in expected[worker]
        ]
    # A worker whose turn has no packs is passed over.
    assert rotation == [0, 1, 0, 1, 0, 1, 1]


def test_numbers_of_a_plan_are_those_of_packs(tmp_path: Path) -> None:
    rows = documents(write(tmp_path / "a", 0), rank=0, world_size=1)
    packed = rows.pack(PACKED, strategy="chunk")
    plan, alone = packed.batch(2).plan(0, 3), packed.plan(0, 1).bytes_per_rank
    assert (plan.num_rows, plan.rows_repeated, plan.batches_per_rank) == (17, 1, (3, 3, 3))
    assert "17 packs, batches of 2" in repr(plan)
    assert alone == rows.plan(0, 1).bytes_per_rank
    # Ranks share windows, and each reads them as a whole.
    assert sum(alone or ()) < sum(plan.bytes_per_rank or ()) < 3 * sum(alone or ())


def test_packs_of_unknown_lengths_are_not_planned_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    dataset = StatefulShardedDataset(write(tmp_path / "a", 0))
    for unknown in (dataset, Mixture({"a": dataset}, {"a": 1}), dataset.count_lengths("input_ids")):
        with pytest.raises(ValueError, match=r"lengths of the documents are not known: call count_lengths\(\)"):
            unknown.pack(PACKED, lengths=False).plan()
    with pytest.raises(ValueError, match=r"flat_map\(\) makes of a row depends on the data: call plan\(\) on what"):
        dataset.flat_map(lambda row: [row]).pack(PACKED).plan()
