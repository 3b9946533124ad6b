"""The README's picture shows what the library does today."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "draw_epoch.py"


def test_the_picture_is_what_the_library_draws_now() -> None:
    drawn = runpy.run_path(str(SCRIPT))
    assert drawn["TARGET"].read_text(encoding="utf-8") == drawn["draw"](), "run scripts/draw_epoch.py"
