"""The picture in the README is up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "draw_epoch.py"


def test_the_picture_is_up_to_date() -> None:
    drawn = runpy.run_path(str(SCRIPT))
    assert drawn["TARGET"].read_text(encoding="utf-8") == drawn["draw"](), "run scripts/draw_epoch.py"
