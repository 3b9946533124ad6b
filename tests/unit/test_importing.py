"""`import laneway` stays light, and so do the commands that read states from files."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import laneway

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAVY = ("s3fs", "botocore", "aiobotocore", "matplotlib", "pandas", "torch.distributed.checkpoint")
"""What only some users need, each of which takes a good part of a second to import."""


def test_importing_laneway_and_commands_imports_no_client_of_an_object_store_no_plotting_and_no_checkpoints() -> None:
    imports = "import laneway, laneway.cli.data, laneway.cli.saved, laneway.loader"
    assert imported(imports, HEAVY) == []


def test_the_help_of_the_commands_imports_no_torch() -> None:
    help_of_all = "import laneway.cli.arguments as a; a.parser().format_help(); a.commands()"
    assert imported(f"import laneway.cli.main; {help_of_all}", ("torch", "torchdata")) == []
    assert imported("import laneway; laneway.StatefulShardedDataset", ("torch",)) == ["torch"]


def test_attributes_are_listed_once_before_and_after_their_first_use() -> None:
    before = dir(laneway)
    assert laneway.Manifest.__name__ in before
    assert len({*dir(laneway)}) == len(dir(laneway))


def imported(statements: str, modules: Sequence[str]) -> list[str]:
    """Return which of some modules are imported once some statements have run in a process of their own."""
    program = (
        f"{statements}; import json, sys; print(json.dumps([each for each in {modules!r} if each in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    found: list[str] = json.loads(result.stdout)
    return found
