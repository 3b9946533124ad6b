"""Formats that installed packages add as entry points."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from laneway.formats import FORMATS, format_of_suffix
from laneway.formats.arrow import ArrowFormat
from laneway.formats.parquet import ParquetFormat
from laneway.formats.registry import Formats

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from laneway.formats import Format

class Fixed(Format):
    name = "fixed"
    suffixes = (".fixed",)
    block_name = "block"

def broken():
    raise RuntimeError("no such codec")

class Other(Fixed):
    name = "parquet"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory of sys.path for packages."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def add(site: Path, entry_points: str) -> None:
    """Write a distribution with entry points, as pip would install it."""
    (site / "laneway_fixed.py").write_text(MODULE)
    info = site / "laneway_fixed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: laneway-fixed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[laneway.formats]\n{entry_points}\n")


def test_a_format_of_an_entry_point_is_found_by_name_and_suffix(install: Path) -> None:
    add(install, "fixed = laneway_fixed:Fixed")
    formats = Formats((ParquetFormat(),))
    assert formats.of_suffix("a.parquet") is formats["parquet"]
    assert "laneway_fixed" not in sys.modules
    found = formats.of_suffix("data.v1/a.FIXED")
    assert found is not None
    assert found is formats["fixed"]
    assert (found.name, found.tail_bytes, found.is_mapped, found.inference, found.scans_all) == (
        *("fixed", 0, False, None, False),
    )
    assert not found.recognises(b"PAR1")
    assert list(formats) == ["parquet", "fixed"]
    assert formats.of_suffix("a.unknown") is None


@pytest.mark.parametrize(
    ("entry_points", "problem"),
    [
        ("fixed = laneway_fixed:broken", "can't be loaded: RuntimeError: no such codec"),
        ("fixed = laneway_missing:Fixed", "can't be loaded: ModuleNotFoundError"),
        ("other = laneway_fixed:Fixed", "is a format named 'fixed': name the entry point like it"),
        ("parquet = laneway_fixed:Other", "is left out: there is a format of the name or suffix 'parquet' already"),
        ("number = builtins:int", "can't be loaded: AttributeError"),
    ],
)
def test_an_entry_point_that_is_no_format_is_left_out_with_a_warning(
    install: Path, entry_points: str, problem: str
) -> None:
    add(install, entry_points)
    formats = Formats((ParquetFormat(), ArrowFormat()))
    with pytest.warns(UserWarning, match=f"the entry point .* of laneway.formats {problem}"):
        assert list(formats) == ["parquet", "arrow"]
    assert isinstance(formats["parquet"], ParquetFormat)


def test_suffixes_may_have_two_parts() -> None:
    assert format_of_suffix("a/b.v2/part.0.jsonl.gz") is FORMATS["jsonl"]
    assert format_of_suffix("part.CSV") is FORMATS["csv"]
    assert format_of_suffix("part.gz") is None
    assert format_of_suffix("part") is None
