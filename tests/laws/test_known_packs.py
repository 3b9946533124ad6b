"""Laws: packs of documents of known lengths are counted in advance, and are a line that is cut like one of rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from laneway.core.options import LaneOptions
from laneway.core.pack_line import KnownPacks, have_known_packs, stages_of_known_packs
from laneway.core.progress import Progress, current_cut
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.delivery.item_stages import Stages
from laneway.stages.packing import best_fit, chunk
from laneway.stages.packs import PackOptions
from tests.laws.simulation import Job, identities, jobs_of, load

if TYPE_CHECKING:
    from laneway.core.lanes import Remainder
    from laneway.core.pack_line import PackedDocuments
    from laneway.core.plan import Identity

documents = st.lists(st.integers(0, 12), max_size=30)
options = st.builds(
    PackOptions,
    length=st.integers(1, 7),
    column=st.just("ids"),
    strategy=st.just("best_fit"),
    separator=st.sampled_from([None, 1]),
    overflow=st.sampled_from(["split", "truncate", "drop"]),
    mask=st.none(),
    pad_value=st.just(0),
    group_rows=st.integers(1, 6),
) | st.builds(
    PackOptions,
    length=st.integers(1, 7),
    column=st.just("ids"),
    strategy=st.just("chunk"),
    separator=st.sampled_from([None, 1]),
    overflow=st.just("split"),
    mask=st.none(),
    pad_value=st.just(0),
    group_rows=st.just(9),
)


@st.composite
def packed(draw: st.DrawFn, *, remainder: Remainder) -> Identity:
    """Draw files with documents of known lengths, and how they are packed."""
    identity = draw(identities(remainder=remainder))
    num_rows = identity.files.num_rows
    lengths = draw(st.lists(st.integers(0, 9), min_size=num_rows, max_size=num_rows))
    packing = draw(options)
    known = KnownPacks(np.array(lengths, np.int32), packing)
    return replace(identity, settings=replace(identity.settings, stages=packing.text), packs=known)


def tokens_in(found: PackedDocuments, first_row: int) -> list[tuple[int, int, int]]:
    """Return (pack, row, token) of each token of packs."""
    columns = (found.pack, found.document + first_row, found.start, found.stop)
    documents = zip(*(each.tolist() for each in columns), strict=True)
    return [(pack, row, token) for pack, row, start, stop in documents for token in range(start, stop)]


@given(documents, options)
def test_pieces_say_from_which_rows_each_pack_is_made(lengths: list[int], packing: PackOptions) -> None:
    known = np.array(lengths, np.int64)
    places, separator = packing.places(known), packing.separator is not None
    # Packs, each as its (row, first token, tokens).
    expected: list[list[tuple[int, int, int]]] = []
    if packing.strategy == "chunk":
        widths = known + (known > 0) * separator
        line = [(row, token) for row, width in enumerate(widths.tolist()) for token in range(width)]
        assert places.num_packs == -(-len(line) // packing.length)
        assert len(chunk(known, packing.length, separator=separator)) == len(line) // packing.length
        expected += [
            [(row, token, 1) for row, token in line[start : start + packing.length]]
            for start in range(0, len(line), packing.length)
        ]
    else:
        for start in range(0, len(lengths), packing.group_rows):
            group = known[start : start + packing.group_rows]
            packs = best_fit(group, packing.length, separator=separator, overflow=packing.overflow)
            pieces = [*zip((packs.document + start).tolist(), packs.start.tolist(), packs.tokens.tolist(), strict=True)]
            bounds = packs.first_pieces.tolist()
            expected += [pieces[low:high] for low, high in pairwise(bounds)]
        assert places.num_packs == len(expected)
    for start in range(len(expected)):
        for stop in range(start + 1, len(expected) + 1):
            piece = places.piece(start, stop)
            rows = [row for pack in expected[start:stop] for row, _, _ in pack]
            found = packing.documents(piece, known[piece.start : piece.stop])
            assert tokens_in(found, piece.start) == [
                (index, row, token)
                for index, pack in enumerate(expected[start:stop])
                for row, first, tokens in pack
                for token in range(first, first + tokens)
                if token < known[row]
            ]
            assert (piece.first, piece.num_packs) == (start, stop - start)
            assert piece.start <= min(rows)
            assert max(rows) < piece.stop <= len(lengths)
            if packing.strategy == "chunk":
                assert (piece.start, piece.tokens_before) == expected[start][0][:2]
                assert piece.packs_before == 0
                assert not known[max(rows) + 1 : piece.stop].any()
            else:
                assert piece.start % packing.group_rows == piece.tokens_before == 0
                of_group = [pack for pack in expected[:start] if pack[0][0] >= piece.start]
                assert piece.packs_before == len(of_group)


runs = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 8))


@given(packed(remainder="keep"), st.lists(runs, min_size=1, max_size=5))
@settings(max_examples=60)
def test_each_pack_comes_once_when_the_world_changes_size(
    identity: Identity, chain: list[tuple[int, int, int, int]]
) -> None:
    progress, packs = Progress(2), Counter[int]()
    for job, steps in jobs_of(identity, chain, progress):
        packs.update(pack for step in job.run(steps) for pack in step)
        progress = job.whole_progress()
        state = write_state(identity, progress, WorkerPlace(0, job.world_size), complete=job.is_at_end)
        assert load(state, identity) == progress
        assert not state["positions"] or not state["offsets"]
    packs.update(pack for step in Job(identity, 1, 1, LaneOptions(None, None, 3), progress).run() for pack in step)
    assert packs == Counter(range(identity.num_items(2)))


@given(packed(remainder="pad"), st.lists(runs, min_size=1, max_size=4))
def test_ranks_deliver_equally_many_packs(identity: Identity, chain: list[tuple[int, int, int, int]]) -> None:
    packs = set[int]()
    for job, steps in jobs_of(identity, [*chain, (3, 2, 2, 10**6)], Progress(0)):
        for batches in job.take(steps):
            assert len({len(batch) for batch in batches}) == 1
            packs.update(pack for batch in batches for pack in batch)
    assert packs == {*range(identity.num_items(0))}


@given(packed(remainder="keep"), st.lists(runs, min_size=1, max_size=3))
def test_completed_shards_are_those_whose_packs_were_all_delivered(
    identity: Identity, chain: list[tuple[int, int, int, int]]
) -> None:
    delivered = set[int]()
    for job, steps in jobs_of(identity, chain, Progress(0)):
        delivered.update(pack for step in job.run(steps) for pack in step)
        plan = job.plan
        line = plan.line
        assert line is not None
        unfinished = {
            row
            for pack in {*range(line.places.num_packs)} - delivered
            for piece in [line.places.piece(pack, pack + 1)]
            for row in range(piece.start, piece.stop)
        }
        # A group is finished as a whole.
        rows = {*plan.rows_in_files()[[*unfinished]].tolist()} if unfinished else set()
        shards, files = identity.shards, identity.files
        first = files.block_row_starts[files.block_starts[:-1]][shards.file_index] + shards.row_offset
        expected = [
            index
            for index, (start, length) in enumerate(zip(first.tolist(), shards.row_length.tolist(), strict=True))
            if not rows & {*range(start, start + length)}
        ]
        assert plan.completed_shards(current_cut(job.whole_progress()).rows()).tolist() == expected


@given(options, st.integers(0, 2), st.text(max_size=12) | st.just("ids') lengths=0a"))
@settings(max_examples=30)
def test_states_tell_packs_of_known_lengths_from_others(packing: PackOptions, num_flat: int, column: str) -> None:
    stages = Stages(pack=replace(packing, column=column))
    for _ in range(num_flat):
        stages = replace(stages, expansion=stages.expansion.then(list, is_flat=True))
    assert have_known_packs(stages_of_known_packs(stages.text, "0a1b"))
    assert have_known_packs(stages_of_known_packs(stages.text))
    assert not have_known_packs(stages.text)
    assert not have_known_packs(replace(stages, pack=None).text)
    assert not have_known_packs(None)
