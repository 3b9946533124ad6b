"""Datasets that a user's Python code makes, named as `train.py:dataset` or `package.module:dataset`.

Code is imported only if it is named like that, and no file or folder has this name.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laneway.dataset import StatefulShardedDataset
from laneway.mixture import Mixture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_CODE = re.compile(rf"(?:(?!.*://)[^=]+\.py|{_NAME}):{_NAME}")


def names_code(text: str) -> bool:
    """Return whether a source is a name in Python code, rather than a path or URL."""
    return _CODE.fullmatch(text) is not None and not Path(text).exists()


def load_dataset(text: str) -> StatefulShardedDataset | Mixture:
    """Import code, and return the dataset or mixture that it has under a name, or that a function of this name returns.

    Args:
        text: The module and the name; see `names_code`.

    Raises:
        ValueError: There is no such module or name, its code fails, or what it names is no dataset.
    """
    module_name, _, name = text.rpartition(":")
    module = _import_file(Path(module_name)) if module_name.endswith(".py") else _import_module(module_name, text)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):  # what users may name
            message = f"{module_name} has no {name!r}{_others(module, module_name)}"
            raise ValueError(message)
        found = getattr(found, part)
    kind = f"is {_kind(found)}"
    if callable(found) and not isinstance(found, type):
        with _failing_as(f"{text}() fails"):
            found = found()
        kind = f"returns {_kind(found)}"
    if not isinstance(found, (StatefulShardedDataset, Mixture)):
        message = f"{text} {kind}: name a StatefulShardedDataset, a Mixture, or a function that returns one"
        raise ValueError(message)  # noqa: TRY004 - an argument of a command
    return found


def _import_file(path: Path) -> ModuleType:
    """Import a file as a script would be: what is beside it can be imported, too."""
    if not path.is_file():
        message = f"{path} does not exist: name a Python file, as {path.name}:dataset, or a module of a package"
        raise ValueError(message)
    path = path.resolve()
    before = sys.modules.get(path.stem)
    if before is not None and getattr(before, "__file__", None) != str(path):
        message = f"{path.name} has the name of a module that is in use, {path.stem}: rename the file"
        raise ValueError(message)
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        message = f"{path} can't be imported: name a Python file"
        raise ValueError(message)
    module = module_from_spec(spec)
    _search(path.parent)
    # Classes and functions are pickled by the name of their module.
    sys.modules[path.stem] = module
    try:
        with _failing_as(f"{path.name} can't be imported"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _import_module(name: str, text: str) -> ModuleType:
    """Import a module, of the current directory or installed."""
    _search(Path.cwd())
    try:
        with _failing_as(f"{name} can't be imported"):
            return import_module(name)
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            message = f"there is neither a file {text!r} nor a module {cause.name!r}, here or installed"
            raise ValueError(message) from None
        raise


def _search(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@contextmanager
def _failing_as(what: str) -> Iterator[None]:
    """Raise what a user's code raises as a ValueError that says where.

    Raises:
        ValueError: It raises something.
    """
    try:
        yield
    except SystemExit as error:
        message = f'{what}: it exits. Put what a script runs under if __name__ == "__main__":'
        raise ValueError(message) from error
    except Exception as error:
        own = str(Path(__file__).parents[1])
        all_frames = traceback.extract_tb(error.__traceback__)
        frames = [frame for frame in all_frames if not frame.filename.startswith((own, "<"))]
        where = f" ({os.path.relpath(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
        message = f"{what}: {type(error).__name__}: {error}{where}"
        raise ValueError(message) from error


def _others(module: ModuleType, module_name: str) -> str:
    """Return which datasets a module has, for an error."""
    found = [name for name, value in vars(module).items() if isinstance(value, (StatefulShardedDataset, Mixture))]
    return f": it has {', '.join(f'{module_name}:{name}' for name in found[:8])}" if found else ""


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"a{'n' if name[:1] in 'AEIOUaeiou' else ''} {name}"
