"""Datasets of Hugging Face by name, and their features decoded as `datasets` decodes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from laneway.arguments import check_flag
from laneway.dataset import StatefulShardedDataset
from laneway.tables.hf_cached import memory_of, recall, remember

if TYPE_CHECKING:
    from datasets import Features


@final
@dataclass(frozen=True)
class DecodeFeatures:
    """Decodes what a dataset of Hugging Face stores: `Image` and `Audio` become what `datasets` delivers for them.

    Pass it as `transform=`, or to `map`. Other columns stay as they are: a `ClassLabel` is a number, whose name
    `dataset.categories` has, and an `Array2D` to `Array5D` is a list, or with `output="torch"` a tensor of its shape.

    Examples:
        >>> from datasets import Features, Value
        >>> DecodeFeatures(Features({"x": Value("int64")}))({"x": 3})
        {'x': 3}
    """

    features: Features
    """The features of the dataset."""
    batched: bool = False
    """Whether it is called on batches, of a dataset with `output="python"`."""

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row, or a batch, with decoded features.

        Args:
            row: The columns as they are stored.

        Raises:
            TypeError: It is a batch, and `batched` is False; or its columns are neither lists nor Python values.
            ImportError: `Image` needs Pillow; `Audio` torchcodec, in a release for the installed PyTorch, and FFmpeg.
        """
        from datasets import Features  # noqa: PLC0415 - only where it is used

        known = Features({name: self.features[name] for name in row if name in self.features})
        given = {name: row[name] for name in known}
        if self.batched and not all(isinstance(column, list) for column in given.values()):
            message = 'DecodeFeatures(batched=True) decodes batches of lists: pass batch_size= and output="python"'
            raise TypeError(message)
        if not self.batched and any(_is_column(known[name], given[name]) for name in known):
            message = "DecodeFeatures decodes single rows: for batches of lists, pass batched=True"
            raise TypeError(message)
        try:
            decoded: dict[str, Any] = known.decode_batch(given) if self.batched else known.decode_example(given)
        except (ImportError, OSError, RuntimeError) as error:
            if "torchcodec" not in str(error):
                raise
            message = (
                f"Audio is decoded by torchcodec, which is not installed or can't be loaded ({error}): install FFmpeg "
                "and the torchcodec of this release of PyTorch, for the same CUDA or CPU; or leave out DecodeFeatures, "
                "and take the bytes as they are stored"
            )
            raise ImportError(message) from error
        return {**row, **decoded}


def _is_column(feature: object, value: object) -> bool:
    """Return whether something is a column of images or sounds rather than one of them."""
    return type(feature).__name__ in {"Image", "Audio"} and not isinstance(value, (dict, type(None)))


def load_hf(
    name_or_path: str | os.PathLike[str],
    config: str | None = None,
    *,
    split: str,
    revision: str | None = None,
    decode: bool = False,
    load_options: Mapping[str, Any] | None = None,
    **options: Any,  # noqa: ANN401 - those of the dataset
) -> StatefulShardedDataset:
    """Return a dataset of the Hub, or of a folder, as `datasets.load_dataset` finds, prepares and caches it.

    The first call prepares the Arrow files of the cache. For a folder, or a commit of the Hub, it also remembers there
    which they are, and their metadata unless `cache_dir` says where, so that later calls begin at once, without
    importing `datasets`.

    Args:
        name_or_path: Such as "allenai/c4", or a folder, or the name of a format with `data_files` in `load_options`.
        config: The configuration of the dataset.
        split: Such as "train", "train[10%:20%]" or "train+test".
        revision: Commit, tag or branch on the Hub. A checkpoint resumes only with the same files: give a commit.
        decode: Whether single rows come with images and audio decoded, as with `datasets`; see `DecodeFeatures`.
        load_options: Other arguments of `datasets.load_dataset`, such as `cache_dir`, `data_files` or `token`.
        **options: Arguments of `StatefulShardedDataset`.

    Raises:
        ValueError: `decode` is set for batches: decode rows, then call `batch`; or there is no such split.
        TypeError: An argument has the wrong type.
        DataFileError: The dataset has no Arrow files in the cache.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": range(10)}), f"{folder}/part-0.parquet")
        >>> dataset = load_hf(folder, split="train[20%:50%]", load_options={"cache_dir": folder + "/cache"})
        >>> [row["x"] for row in dataset]
        [2, 3, 4]
    """
    check_flag("decode", decode)
    if not isinstance(name_or_path, (str, os.PathLike)) or not name_or_path:
        message = f"name_or_path must be the name of a dataset of the Hub, or a folder, not {name_or_path!r}"
        raise TypeError(message)
    for name, value in (("split", split), ("config", config), ("revision", revision)):
        if not isinstance(value, str) and (value is not None or name == "split"):
            message = f"{name} must be a string, not {value!r}"
            raise TypeError(message)
    if load_options is not None and not isinstance(load_options, Mapping):
        message = f"load_options must be a mapping, arguments of datasets.load_dataset, not {load_options!r}"
        raise TypeError(message)
    if decode and options.get("batch_size") is not None:
        message = "decode=True decodes single rows: leave out batch_size, and call batch() on the dataset"
        raise ValueError(message)
    memory = memory_of(str(name_or_path), config, split, revision, load_options or {})
    if memory is not None and options.get("cache_dir") is None:
        # One for each call: splits of the same folder would replace each other's.
        options["cache_dir"] = memory.with_suffix("")
    remembered = None if memory is None or decode else recall(memory)
    if remembered is not None:
        return StatefulShardedDataset(remembered, **options)
    import datasets  # noqa: PLC0415 - takes a second to import

    from laneway.tables.hf_datasets import HfCatalog  # noqa: PLC0415 - as its library

    loaded = datasets.load_dataset(str(name_or_path), config, split=split, revision=revision, **(load_options or {}))
    catalog = HfCatalog(loaded)
    found = None if memory is None else catalog.as_cached()
    if memory is not None and found is not None:
        remember(memory, found)
    # What was found has the rows of each file already.
    dataset = StatefulShardedDataset(found or catalog, **options)
    return dataset.map(DecodeFeatures(loaded.features)) if decode else dataset
