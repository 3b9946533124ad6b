"""States of mixtures and packs, frozen: those of each version still load, and the same batches follow."""

from __future__ import annotations

import json

import pytest

from laneway.core.schema import FORMAT_VERSION
from tests.golden.freeze import HERE
from tests.golden.streams import CASES, loader, rest

FROZEN = {
    (path.stem, name): content
    for path in sorted(HERE.glob("streams_v*.json"))
    for name, content in json.loads(path.read_text()).items()
}


@pytest.mark.parametrize(("version", "name"), FROZEN)
def test_states_of_every_version_still_load_and_go_on_the_same(version: str, name: str) -> None:
    frozen = FROZEN[version, name]
    restored = loader(name, 1)
    restored.load_state_dict(frozen["state"])
    assert restored.state_dict() == frozen["state"]
    assert frozen["rest"]
    assert rest(name, frozen["state"]) == frozen["rest"]


def test_there_is_something_frozen() -> None:
    assert {name for version, name in FROZEN if version == f"streams_v{FORMAT_VERSION}"} == {*CASES}
