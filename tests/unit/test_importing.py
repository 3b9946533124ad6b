"""`import laneway` stays light."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("s3fs", "botocore", "aiobotocore", "matplotlib")
"""Packages that only some users need, each of which takes a good part of a second to import."""


def test_importing_laneway_imports_no_client_of_an_object_store_and_no_plotting() -> None:
    program = f"import laneway, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == "[]\n"
