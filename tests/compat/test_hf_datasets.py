"""Datasets of Hugging Face as sources: the rows that `datasets` itself delivers, resumed exactly."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from datasets import (
    Array2D,
    Array3D,
    Audio,
    ClassLabel,
    Dataset,
    Features,
    Image,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from PIL import Image as Pictures

from laneway import (
    ColumnConversionError,
    DataFileError,
    DecodeFeatures,
    Manifest,
    SavableLoader,
    StatefulShardedDataset,
    load_hf,
)
from tests.compat.loaders import FORKSERVER, flat, ids, resumed_after_each_batch, rows_while_ranks_change
from tests.corpora import settle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPLIT = "train[10%:20%]+train[50%:]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of Parquet files that `datasets` can load."""
    path = tmp_path_factory.mktemp("source")
    for start in (0, 100, 200):
        rows = pa.table({"id": pa.array(range(start, start + 100)), "text": [f"row {i}" for i in range(100)]})
        pq.write_table(rows, path / f"train-{start:03}.parquet", row_group_size=30)
    return path


@pytest.fixture
def loaded(folder: Path, tmp_path: Path) -> Any:
    """Return a part of it, loaded by `datasets`."""
    datasets.disable_progress_bars()
    return load_dataset(str(folder), split=SPLIT, cache_dir=str(tmp_path / "cache"))


def doubled(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with one more column."""
    return {"twice": 2 * row["id"]}


CHANGES: dict[str, Callable[[Any], Any]] = {
    "loaded": lambda dataset: dataset,
    "sliced": lambda dataset: dataset.select(range(7, 150)),
    "filtered": lambda dataset: dataset.filter(lambda row: row["id"] % 3 == 0),
    "filtered and sliced": lambda dataset: dataset.filter(lambda row: row["id"] % 3 == 0).select(range(5, 20)),
    "split": lambda dataset: dataset.train_test_split(0.3, shuffle=False)["test"],
    "a shard": lambda dataset: dataset.shard(3, 1),
    "mapped": lambda dataset: dataset.map(doubled),
    "renamed": lambda dataset: dataset.rename_column("id", "number"),
    "swapped": lambda dataset: dataset.rename_columns({"id": "text", "text": "id"}),
    "without a column": lambda dataset: dataset.remove_columns("text"),
    "cast": lambda dataset: dataset.cast_column("id", Value("int32")),
    "of columns": lambda dataset: dataset.select_columns(["text"]),
    "formatted": lambda dataset: dataset.with_format(None, columns=["id"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_rows_are_those_of_the_dataset_in_its_order(loaded: Any, name: str) -> None:
    dataset = CHANGES[name](loaded)
    found = StatefulShardedDataset(dataset)
    assert list(found) == [*dataset]
    assert found.schema.names == dataset.format["columns"]
    assert len(found) == len(dataset)
    assert list(found.skip(3).take(5)) == [*dataset.skip(3).take(5)]


@pytest.mark.parametrize("name", ["shuffled", "reversed", "reversed files"])
def test_another_order_than_that_of_the_files_is_a_warning(loaded: Any, tmp_path: Path, name: str) -> None:
    loaded.save_to_disk(tmp_path / "a", num_shards=1)
    loaded.select(range(10)).save_to_disk(tmp_path / "b", num_shards=1)
    dataset = {
        "shuffled": lambda: loaded.shuffle(seed=1),
        "reversed": lambda: loaded.select(range(len(loaded) - 1, -1, -1)),
        "reversed files": lambda: concatenate_datasets(
            [load_from_disk(tmp_path / "b"), load_from_disk(tmp_path / "a")]
        ),
    }[name]()
    with pytest.warns(UserWarning, match="the rows of the dataset are not in the order of its files"):
        found = StatefulShardedDataset(dataset)
    assert sorted(map(repr, found)) == sorted(map(repr, dataset))


def test_files_in_order_are_no_warning(loaded: Any, tmp_path: Path) -> None:
    loaded.save_to_disk(tmp_path / "saved", num_shards=3)
    saved = load_from_disk(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(StatefulShardedDataset(saved)) == [*loaded] == list(StatefulShardedDataset(tmp_path / "saved"))
        # The caches of later steps are written beside the data.
        chosen = saved.filter(lambda row: row["id"] > 200).map(doubled)
        assert len(list((tmp_path / "saved").glob("cache-*.arrow"))) >= 2
        assert list(StatefulShardedDataset(chosen)) == [*chosen]
        by_path = StatefulShardedDataset(str(tmp_path / "saved"))
        assert list(by_path) == [*loaded]
        same = StatefulShardedDataset(saved)
        same.load_state_dict(StatefulShardedDataset(str(tmp_path / "saved")).state_dict())


@pytest.mark.parametrize(("text", "problem"), [("{", "can't be read"), ("[]", "holds no JSON object")])
def test_a_list_of_splits_that_is_damaged_is_an_error_that_names_it(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(text)
    with pytest.raises(DataFileError, match=f"dataset_dict.json {problem}"):
        StatefulShardedDataset(tmp_path)


def test_splits_that_were_saved_together_are_given_one_by_one(loaded: Any, tmp_path: Path) -> None:
    splits = loaded.train_test_split(0.5, shuffle=False)
    splits.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataFileError, match="has the splits train, test of a DatasetDict: give the folder of one"):
        StatefulShardedDataset(tmp_path / "saved")
    assert list(StatefulShardedDataset(tmp_path / "saved" / "test")) == [*splits["test"]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.add_column("new", list(range(len(d)))), DataFileError, "has columns that are only in memory"),
        (lambda _: Dataset.from_dict({"id": [1, 2]}), DataFileError, "has 2 rows only in memory"),
        (lambda d: d.select([1, 1, 2]), DataFileError, r"has row 31 of .*\.arrow twice \(1 such row\)"),
        (lambda d: d.with_transform(lambda batch: batch), ValueError, "the format of the dataset is a function"),
        (lambda d: d.with_format("pandas"), ValueError, "the format of the dataset is of type 'pandas'"),
        (
            lambda d: concatenate_datasets([d, d.rename_column("id", "x").rename_column("x", "id").remove_columns([])]),
            DataFileError,
            "were renamed or left out differently",
        ),
        (lambda d: d.filter(lambda _: False), DataFileError, "has no rows"),
    ],
)
def test_what_has_no_equal_is_refused(
    loaded: Any, change: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        StatefulShardedDataset(change(loaded))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.to_iterable_dataset(), "source is a datasets.IterableDataset, .* without streaming=True"),
        (
            lambda d: d.train_test_split(0.5),
            r"a DatasetDict of the splits train, test: give one, such as source\['train'\]",
        ),
        (lambda d: d.features, "source is a datasets.Features"),
    ],
)
def test_what_is_no_dataset_is_explained(loaded: Any, change: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        StatefulShardedDataset(change(loaded))
    with pytest.raises(TypeError, match=message):
        Manifest.scan(change(loaded))


def test_the_format_decides_what_columns_are_delivered_as(loaded: Any) -> None:
    tensors = loaded.with_format("torch", columns=["id"])
    assert [row["id"] for row in StatefulShardedDataset(tensors).take(2)] == [row["id"] for row in tensors.take(2)]
    assert isinstance(next(iter(StatefulShardedDataset(tensors)))["id"], torch.Tensor)
    arrays = StatefulShardedDataset(loaded.with_format("numpy"), batch_size=4)
    assert isinstance(next(iter(arrays))["id"], np.ndarray)
    assert next(iter(StatefulShardedDataset(tensors, output="python")))["id"] == 30


def make(dataset: Any, *, num_workers: int = 0, context: Any = None, **options: Any) -> SavableLoader:
    """Return a loader of shuffled batches of seven rows."""
    arguments = {"shard_rows": 9, "window_bytes": 600, "seed": 5, "batch_size": 7, "shuffle": True, "columns": ["id"]}
    source = StatefulShardedDataset(dataset, **{**arguments, **options})
    return SavableLoader(source, num_workers=num_workers, multiprocessing_context=context)


def test_a_shuffled_and_filtered_dataset_is_resumed_exactly(loaded: Any) -> None:
    chosen = loaded.filter(lambda row: row["id"] % 2 == 0).shuffle(seed=3)
    expected = sorted(chosen["id"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sorted(flat(resumed_after_each_batch(lambda: make(chosen)))) == expected
        rows = rows_while_ranks_change(lambda rank, size: make(chosen, rank=rank, world_size=size, remainder="keep"))
        assert rows == expected
        alone = flat(ids(make(chosen, lanes=2)))
        assert flat(ids(make(chosen, lanes=2, num_workers=2, context=FORKSERVER))) == alone


def test_filters_splits_and_saved_manifests(loaded: Any, tmp_path: Path) -> None:
    expected = [row["id"] for row in loaded if row["id"] > 200]
    for dataset in (
        StatefulShardedDataset(loaded, filter=pc.field("id") > 200),
        StatefulShardedDataset(loaded).filter(pc.field("id") > 200),
    ):
        assert [row["id"] for row in dataset] == expected
    train, val = StatefulShardedDataset(loaded).split({"train": 0.5, "val": 0.5})
    assert sorted(row["id"] for part in (train, val) for row in part) == loaded["id"][:]
    Manifest.scan(loaded).save(tmp_path / "manifest")
    assert list(StatefulShardedDataset(Manifest.load(tmp_path / "manifest"))) == [*loaded]


def test_what_was_counted_is_cached_and_not_taken_for_that_of_a_folder_that_was_saved_again(tmp_path: Path) -> None:
    source, cache = tmp_path / "saved", tmp_path / "cache"

    def found() -> tuple[list[int], Any]:
        """Return the ids of the rows that have a value of 5, and the values as lengths."""
        selected = StatefulShardedDataset(source, filter=pc.field("value") == 5, cache_dir=cache)
        lengths = StatefulShardedDataset(source, cache_dir=cache).count_lengths("value").definition.lengths
        return [row["id"] for row in selected], None if lengths is None else lengths.rows.tolist()

    for seconds, values in enumerate(([5, 5, 8], [5, 8, 8]), 1):
        Dataset.from_dict({"id": [0, 1, 2], "value": values}).save_to_disk(source)
        settle(source, seconds)
        expected = [row for row, value in enumerate(values) if value == 5]
        assert found() == found() == (expected, values)
        kinds = Counter(path.name.partition("-")[0] for path in cache.iterdir())
        assert kinds == {"_manifest": 1, "_selection": seconds, "_lengths": seconds}


def test_load_hf_reads_what_load_dataset_cached(folder: Path, loaded: Any, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path / "cache")}
    dataset = load_hf(folder, split=SPLIT, load_options=options, batch_size=50)
    assert [row for batch in dataset for row in batch["id"].tolist()] == loaded["id"][:]
    with pytest.raises(ValueError, match="decode=True decodes single rows"):
        load_hf(folder, split="train", load_options=options, decode=True, batch_size=3)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name_or_path": 3}, "name_or_path must be the name of a dataset of the Hub, or a folder, not 3"),
        ({"name_or_path": ""}, "name_or_path must be the name of a dataset of the Hub, or a folder, not ''"),
        ({"split": None}, "split must be a string, not None"),
        ({"config": 1}, "config must be a string, not 1"),
        ({"revision": 0.5}, "revision must be a string, not 0.5"),
        ({"load_options": "token"}, "load_options must be a mapping"),
        ({"decode": 1}, "decode must be True or False, not 1"),
    ],
)
def test_wrong_arguments_of_load_hf_are_refused_before_anything_is_requested(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], problem: str
) -> None:
    def request(*_: object, **__: object) -> None:
        pytest.fail("load_dataset was called")

    monkeypatch.setattr(datasets, "load_dataset", request)
    given: dict[str, Any] = {"name_or_path": "allenai/c4", "split": "train", **arguments}
    with pytest.raises(TypeError, match=problem):
        load_hf(**given)


def test_load_hf_remembers_what_it_found_until_a_file_changes(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    options = {"cache_dir": str(tmp_path / "cache")}
    expected = load_dataset(str(source), split=SPLIT, **options)
    first = load_hf(source, split=SPLIT, load_options=options)
    assert len(list((tmp_path / "cache").glob("laneway-*.json"))) == 1
    code = (
        "import sys, laneway\n"
        f"dataset = laneway.load_hf({str(source)!r}, split={SPLIT!r}, load_options={options!r})\n"
        "print([row['id'] for row in dataset], 'datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{expected['id'][:]} False"
    again = load_hf(source, split=SPLIT, load_options=options)
    assert again.state_dict() == first.state_dict()
    assert list(again) == list(first) == [*expected]
    # Another file in the folder, and Arrow files that are gone.
    pq.write_table(pa.table({"id": pa.array([1000]), "text": ["new"]}), source / "train-999.parquet")
    assert len(load_hf(source, split="train", load_options=options)) == 301
    shutil.rmtree(tmp_path / "cache")
    assert len(load_hf(source, split="train", load_options=options)) == 301
    for path in (tmp_path / "cache").glob("laneway-*.json"):
        path.write_text("{")
    assert len(load_hf(source, split="train", load_options=options)) == 301


def test_load_hf_remembers_the_metadata_of_each_split(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"cache_dir": str(tmp_path / "cache")}
    splits = ("train[:50%]", "train[50%:]")
    load_hf(folder, split="train", load_options=options)
    settle(tmp_path / "cache", 5)
    expected = [list(load_hf(folder, split=split, load_options=options)) for split in splits]

    def fail(*_: object) -> None:
        message = "the messages of a file are searched again"
        raise AssertionError(message)

    monkeypatch.setattr("laneway.formats.arrow.find_messages", fail)
    assert [list(load_hf(folder, split=split, load_options=options)) for split in splits] == expected
    with pytest.raises(AssertionError, match="searched again"):
        load_hf(folder, split=splits[0], load_options=options, cache_dir=False)


def picture(value: int) -> dict[str, Any]:
    """Return an image as `datasets` stores it."""
    data = io.BytesIO()
    Pictures.new("L", (4, 3), value).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def test_features_are_decoded_on_request_as_datasets_does(tmp_path: Path) -> None:
    features = Features(
        {
            "id": Value("int64"),
            "image": Image(),
            "label": ClassLabel(names=["cat", "dog"]),
            "grid": Array2D((2, 2), "int32"),
        }
    )
    rows = {
        "id": [0, 1, 2],
        "image": [picture(0), picture(100), None],
        "label": [0, 1, 0],
        "grid": [[[1, 2], [3, 4]]] * 3,
    }
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    saved = load_from_disk(tmp_path / "saved")
    stored = list(StatefulShardedDataset(saved))
    assert [row["image"] for row in stored] == rows["image"]
    assert [row["grid"] for row in stored] == rows["grid"]
    decoded = list(StatefulShardedDataset(saved, transform=DecodeFeatures(saved.features)))
    for row, expected in zip(decoded, saved, strict=True):
        assert {**row, "image": None} == {**expected, "image": None}
        assert (row["image"] is None) == (expected["image"] is None)
        assert row["image"] is None or row["image"].tobytes() == expected["image"].tobytes()
    partly = StatefulShardedDataset(saved, columns=["id", "image.bytes"], transform=DecodeFeatures(saved.features))
    assert next(iter(partly)) == {"id": 0, "image.bytes": picture(0)["bytes"]}


ARRAYS = Features(
    {
        "grid": Array2D((2, 3), "int32"),
        "cube": Array3D((2, 2, 2), "float32"),
        "open": Array2D((None, 3), "int16"),
        "inside": {"grid": Array2D((1, 2), "float64")},
        "label": ClassLabel(names=["cat", "dog"]),
        "several": List(Array2D((2, 2), "int8")),
    }
)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of arrays that was saved."""
    path = tmp_path_factory.mktemp("arrays") / "saved"
    generator = np.random.default_rng(0)

    def numbers(*shape: int) -> Any:
        return generator.integers(0, 100, shape).tolist()

    rows = [
        {
            "grid": numbers(2, 3),
            "cube": numbers(2, 2, 2),
            "open": numbers(1 + row % 3, 3),
            "inside": {"grid": numbers(1, 2)},
            "label": row % 2,
            "several": numbers(row % 2, 2, 2),
        }
        for row in range(9)
    ]
    Dataset.from_list(rows, features=ARRAYS).save_to_disk(path, num_shards=2)
    return path


@pytest.mark.parametrize("kind", ["object", "folder"])
def test_arrays_have_their_shapes(arrays: Path, kind: str) -> None:
    saved = load_from_disk(arrays)
    dataset = StatefulShardedDataset(saved if kind == "object" else arrays, output="torch")
    for row, expected in zip(dataset, saved, strict=True):
        for name in ("grid", "cube", "open"):
            assert row[name].tolist() == expected[name]
        assert row["inside"] == expected["inside"]
    assert (row["grid"].dtype, row["cube"].dtype, row["open"].dtype) == (torch.int32, torch.float32, torch.int16)
    batch = next(iter(dataset.batch(4)))
    assert (batch["grid"].shape, batch["cube"].shape) == ((4, 2, 3), (4, 2, 2, 2))
    assert [each.shape for each in batch["open"]] == [(1, 3), (2, 3), (3, 3), (1, 3)]
    assert list(StatefulShardedDataset(saved)) == [*saved] == list(StatefulShardedDataset(arrays))
    assert dataset.categories == {"label": ["cat", "dog"]}
    assert StatefulShardedDataset(saved, columns=["grid"]).categories == {}


def test_arrays_have_their_shapes_without_the_library_that_wrote_them(arrays: Path) -> None:
    code = (
        "import sys, laneway\n"
        f"dataset = laneway.StatefulShardedDataset({str(arrays)!r}, batch_size=2, output='numpy')\n"
        "batch = next(iter(dataset))\n"
        "print(batch['grid'].shape, batch['cube'].shape, dataset.categories, 'datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 2, 3) (2, 2, 2, 2) {'label': ['cat', 'dog']} False"


def test_missing_arrays_are_missing_in_python_and_an_error_in_tensors(tmp_path: Path) -> None:
    features = Features({"id": Value("int64"), "grid": Array2D((2, 2), "int32")})
    Dataset.from_dict({"id": [0, 1], "grid": [[[1, 2], [3, 4]], None]}, features=features).save_to_disk(tmp_path / "a")
    saved = load_from_disk(tmp_path / "a")
    assert [row["grid"] for row in StatefulShardedDataset(saved)] == [[[1, 2], [3, 4]], None]
    with pytest.raises(ColumnConversionError, match="grid"):
        list(StatefulShardedDataset(saved, output="torch"))


def test_batches_are_decoded_on_request(tmp_path: Path) -> None:
    features = Features({"id": Value("int64"), "image": Image()})
    rows = {"id": [0, 1, 2], "image": [picture(0), None, picture(200)]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    saved = load_from_disk(tmp_path / "saved")
    decode = DecodeFeatures(saved.features, batched=True)
    batches = list(StatefulShardedDataset(saved, batch_size=2, output="python", transform=decode))
    found = [image for batch in batches for image in batch["image"]]
    assert found[1] is None
    assert [found[index].tobytes() for index in (0, 2)] == [saved[index]["image"].tobytes() for index in (0, 2)]
    for wrong, output, message in (
        (DecodeFeatures(saved.features), "python", "decodes single rows"),
        (decode, None, "decodes batches of lists"),
    ):
        dataset = StatefulShardedDataset(saved, batch_size=2, output=output, transform=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=message):
            next(iter(dataset))


@pytest.mark.parametrize("is_installed", [False, True])
def test_sound_without_a_decoder_that_can_be_loaded_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_installed: bool
) -> None:
    features = Features({"sound": Audio()})
    table = pa.table({"sound": [{"bytes": b"RIFF", "path": None}]})
    Dataset(table.cast(features.arrow_schema)).save_to_disk(tmp_path / "saved")
    saved = load_from_disk(tmp_path / "saved")
    assert next(iter(StatefulShardedDataset(saved)))["sound"]["bytes"] == b"RIFF"
    # As its wheel for CUDA raises it where PyTorch is the one for CPUs.
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise OSError('Could not load torchcodec/core.so')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", is_installed)
    with pytest.raises(ImportError, match="decoded by torchcodec, which is not installed or can't be loaded"):
        next(iter(StatefulShardedDataset(saved, transform=DecodeFeatures(saved.features))))


def test_files_that_are_gone_are_named(loaded: Any) -> None:
    path = loaded.cache_files[0]["filename"]
    shutil.move(path, path + ".gone")
    with pytest.raises(DataFileError, match=r"\.arrow does not exist"):
        StatefulShardedDataset(loaded)
