"""`import laneway` stays light, and so do the commands that read states from files."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("s3fs", "botocore", "aiobotocore", "matplotlib", "pandas", "torch.distributed.checkpoint")
"""What only some users need, each of which takes a good part of a second to import."""


def test_importing_laneway_and_commands_imports_no_client_of_an_object_store_no_plotting_and_no_checkpoints() -> None:
    imports = "import laneway, laneway.cli.data, laneway.cli.saved, sys"
    program = f"{imports}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == "[]\n"
