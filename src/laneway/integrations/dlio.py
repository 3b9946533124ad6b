"""A data loader for DLIO, the benchmark on which MLPerf Storage is built: its configuration names it.

DLIO emulates accelerators, and measures how well they are fed. Its own readers of Parquet drop what they have read;
this loader delivers decoded tensors, as a training loop would get them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlio_benchmark.common.enumerations import DataLoaderType, DatasetType, Shuffle, StorageType
from dlio_benchmark.data_loader.base_data_loader import BaseDataLoader

from laneway.dataset import StatefulShardedDataset
from laneway.loader import SavableLoader

if TYPE_CHECKING:
    from collections.abc import Iterator


class LanewayDataLoader(BaseDataLoader):
    """Feeds DLIO from a SavableLoader.

    In the configuration: `reader.data_loader_classname: laneway.integrations.dlio.LanewayDataLoader`, and
    `reader.data_loader_sampler: iterative`. `reader.read_threads` is the number of workers of each rank; rows are
    shuffled if `sample_shuffle` or `file_shuffle` is on, and of the columns of `dataset.parquet`, those with
    `read: false` are not read.
    """

    def __init__(self, format_type: Any, dataset_type: Any, epoch_number: int) -> None:  # noqa: ANN401 - enums of DLIO
        """Prepare to read; DLIO makes one for the training data, and one for the validation data.

        Args:
            format_type: The format of the files, which laneway detects itself.
            dataset_type: Which data to read.
            epoch_number: The first epoch, counted from 1.
        """
        super().__init__(format_type, dataset_type, epoch_number, DataLoaderType.PYTORCH)
        self._loader: SavableLoader | None = None

    def read(self) -> None:
        """Open the data, once.

        Raises:
            ValueError: The data is not on a local filesystem.
        """
        args, is_train = self._args, self.dataset_type is DatasetType.TRAIN
        if args.storage_type is not StorageType.LOCAL_FS:
            message = f"storage_type is {args.storage_type}, and this data loader reads local files only: use local_fs"
            raise ValueError(message)
        # Not every release of DLIO knows columns.
        columns = [each["name"] for each in getattr(args, "parquet_columns", []) if each.get("read", True)]
        dataset = StatefulShardedDataset(
            Path(args.data_folder) / f"{self.dataset_type}",
            columns=columns or None,
            batch_size=self.batch_size,
            shuffle=is_train and (args.sample_shuffle, args.file_shuffle) != (Shuffle.OFF, Shuffle.OFF),
            seed=args.seed,
            drop_last=True,
            rank=args.my_rank,
            world_size=args.comm_size,
        )
        self._loader = SavableLoader(dataset, num_workers=args.read_threads)

    def next(self) -> Iterator[Any]:
        """Yield the batches of an epoch, of which DLIO takes as many as its configuration says there are.

        Raises:
            RuntimeError: The data was not opened.
        """
        super().next()
        if self._loader is None:
            message = "call read() before next()"
            raise RuntimeError(message)
        self._loader.set_epoch(self.epoch_number - 1)
        yield from self._loader
        self.epoch_number += 1

    def finalize(self) -> None:
        """Do nothing: DLIO calls it after each epoch, not only at the end."""
