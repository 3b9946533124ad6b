"""The pictures are up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.mark.parametrize("script", ["draw_epoch.py", "draw_mixture.py", "draw_plan.py"])
def test_the_picture_is_up_to_date(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    drawn = runpy.run_path(str(SCRIPTS / script))
    assert drawn["TARGET"].read_text(encoding="utf-8") == drawn["draw"](), f"run scripts/{script}"
