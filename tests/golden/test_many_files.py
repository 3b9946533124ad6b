"""Orders of many files, frozen: a release that cuts other windows breaks the checkpoints of datasets of small files."""

from __future__ import annotations

import json

import pytest

from tests.golden.freeze import HERE
from tests.golden.many_files import CASES, orders

VERSIONS = sorted(int(path.stem.removeprefix("many_files_v")) for path in HERE.glob("many_files_v*.json"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_orders_of_many_files_are_frozen(version: int, case: str) -> None:
    frozen = json.loads((HERE / f"many_files_v{version}.json").read_text())
    assert orders(case, version) == frozen[case]


def test_frozen_windows_of_small_files_are_as_large_as_they_may_be() -> None:
    for version in VERSIONS:
        frozen = json.loads((HERE / f"many_files_v{version}.json").read_text())
        for case in ("1020 small files", "900 small files"):
            assert max(max(cut["pieces"]) for cut in frozen[case].values()) == 128
