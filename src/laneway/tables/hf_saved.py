"""Folders that `Dataset.save_to_disk` wrote, without `datasets`: they may also hold the caches of later steps."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa

from laneway.errors import DataFileError
from laneway.tables.base import Catalog, TableFiles
from laneway.tables.hf_features import columns_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.convert.columns import Output

OUTPUTS: Final[Mapping[str | None, Output | None]] = {
    None: None,
    "arrow": "arrow",
    "numpy": "numpy",
    "python": "python",
    "torch": "torch",
}
"""Type of the format of a dataset -> what its columns are delivered as."""


@final
class SavedCatalog(Catalog):
    """A dataset of Hugging Face that was saved to a local folder."""

    format = "arrow"

    def __init__(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Take what the folder says of its files.

        Args:
            folder: The folder.
            state: Its `state.json`.
        """
        self._folder = folder
        self._names = [each["filename"] for each in state["_data_files"]]
        self._columns = state.get("_format_columns")
        # What can't be delivered as that is delivered as by default.
        self.output = OUTPUTS.get(state.get("_format_type"))

    @property
    def root(self) -> str:
        """See Catalog."""
        return str(self._folder)

    @cached_property
    def schema(self) -> pa.Schema:
        """See Catalog."""
        path = self._folder / self._names[0]
        try:
            with pa.memory_map(str(path)) as source:
                stored = pa.ipc.open_stream(source).schema
        except (OSError, pa.ArrowException) as error:
            message = f"{path} can't be read: {error}"
            raise DataFileError(message) from error
        info = _values_in(self._folder / "dataset_info.json")
        names = stored.names if self._columns is None else self._columns
        return columns_of(stored, names, info.get("features") or {})

    def files(self) -> TableFiles:
        """See Catalog."""
        missing = [name for name in self._names if not (self._folder / name).is_file()]
        if missing:
            message = f"{self._folder / missing[0]} does not exist, but state.json lists it: save the dataset again"
            raise DataFileError(message)
        return TableFiles(paths=self._names, sizes=[(self._folder / name).stat().st_size for name in self._names])


def saved_dataset(source: str | os.PathLike[str]) -> SavedCatalog | None:
    """Return the dataset that was saved to a local folder; None: the source is something else.

    Raises:
        DataFileError: It is a folder of several splits, or what it says of them is damaged.
    """
    folder = Path(source)
    # Path.is_dir() raises for a name that is too long.
    if "://" in os.fspath(source) or not os.path.isdir(source):  # noqa: PTH112 - see above
        return None
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = ", ".join(map(str, _values_in(splits).get("splits") or []))
        message = f"{folder} has the splits {names} of a DatasetDict: give the folder of one, such as {folder}/train"
        raise DataFileError(message)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        is_saved = bool(state["_data_files"]) and (folder / "dataset_info.json").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return SavedCatalog(folder.absolute(), state) if is_saved else None


def _values_in(path: Path) -> dict[str, Any]:
    """Return the values in a JSON file.

    Raises:
        DataFileError: It is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path} can't be read: {error}"
        raise DataFileError(message) from error
    if not isinstance(found, dict):
        message = f"{path} holds no JSON object: save the dataset again"
        raise DataFileError(message)
    return found
