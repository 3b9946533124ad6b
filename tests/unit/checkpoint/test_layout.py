"""The index of a checkpoint."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.checkpoint.layout import BLOCK_BYTES, VERSION, Checkpoint, FileRecord, decode_index, parse_name
from laneway.errors import CheckpointError

CHECKPOINT = Checkpoint(
    number=12,
    step=5_000,
    tag="best",
    metrics={"loss": 0.25},
    world_size=2,
    parts=("loader", "model"),
    saved_s=1.5,
    files={
        "job.pt": FileRecord(10, (7,)),
        "__0_0.distcp": FileRecord(BLOCK_BYTES + 1, (1, 2)),
        "empty": FileRecord(0, ()),
    },
)


def test_an_index_is_decoded_to_what_was_encoded() -> None:
    assert decode_index(CHECKPOINT.encode(), CHECKPOINT.name) == CHECKPOINT


def test_a_name_is_parsed() -> None:
    assert CHECKPOINT.name == "000012-step-5000"
    assert parse_name(CHECKPOINT.name) == (12, 5_000)
    assert parse_name("logs") is None


def test_an_index_of_a_newer_release_says_so() -> None:
    fields = {**json.loads(CHECKPOINT.encode()), "version": VERSION + 1}
    with pytest.raises(CheckpointError, match=f"has version {VERSION + 1}, and this release reads versions up to"):
        decode_index(json.dumps(fields).encode(), CHECKPOINT.name)


@pytest.mark.parametrize("file", ["../../etc/passwd", ".."])
def test_a_file_outside_of_the_folder_is_an_error(file: str) -> None:
    fields = json.loads(CHECKPOINT.encode())
    fields["files"] = {file: [1, [0]]}
    with pytest.raises(CheckpointError, match="is damaged"):
        decode_index(json.dumps(fields).encode(), CHECKPOINT.name)


@given(st.data())
def test_a_damaged_index_is_an_error_or_an_index(data: st.DataObject) -> None:
    fields = json.loads(CHECKPOINT.encode())
    name = data.draw(st.sampled_from(sorted(fields)))
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )
    fields[name] = data.draw(anything)
    with suppress(CheckpointError):
        decode_index(json.dumps(fields).encode(), CHECKPOINT.name)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_index_are_an_error(noise: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode_index(noise, CHECKPOINT.name)
