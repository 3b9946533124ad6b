"""Tables on S3: read with the credentials of their catalogs, of which nothing is left behind."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from laneway import DataFileError, Manifest, SavableLoader, StatefulShardedDataset
from tests.compat.loaders import FORKSERVER
from tests.storage.beds import BUCKET

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed

ROWS = pa.table({"id": range(200)})


def secrets_of(options: dict[str, Any]) -> list[str]:
    """Return what must not be left behind."""
    return [options["key"], options["secret"]]


def delta_options(bed: Bed) -> dict[str, str]:
    """Return the options of deltalake for the server."""
    options = bed.options
    return {
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
        "AWS_ENDPOINT_URL": bed.proxy.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_S3_ALLOW_UNSAFE_RENAME": "true",
    }


def check(source: Any, bed: Bed, tmp_path: Path, num_workers: int = 0, **options: Any) -> None:
    """Read a table, and look for secrets in all that is kept."""
    dataset = StatefulShardedDataset(source, filter=pc.field("id") >= 150, batch_size=10, cache_dir=False, **options)
    context = FORKSERVER if num_workers else None
    loader = SavableLoader(dataset, num_workers=num_workers, multiprocessing_context=context)
    assert sorted(row for batch in loader for row in batch["id"].tolist()) == [*range(150, 200)]
    dataset.manifest.save(tmp_path / "manifest")
    manifest = Manifest.load(tmp_path / "manifest", root=dataset.manifest.root, storage_options=bed.options)
    kept = [repr(dataset), repr(loader.state_dict()), repr(dataset.manifest), repr(pickle.dumps(manifest))]
    kept.append(repr((tmp_path / "manifest").read_bytes()))
    for secret in secrets_of(bed.options):
        assert not any(secret in text for text in kept)


def test_a_delta_table_is_read_with_its_own_options(moto_bed: Bed, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/delta-{tmp_path.name}"
    options = delta_options(moto_bed)
    write_deltalake(url, ROWS.slice(0, 100), storage_options=options)
    write_deltalake(url, ROWS.slice(100), mode="append", storage_options=options)
    check(DeltaTable(url, storage_options=options), moto_bed, tmp_path, num_workers=1)
    check(f"delta://{url}@1", moto_bed, tmp_path, storage_options=moto_bed.options)
    assert len(StatefulShardedDataset(f"delta://{url}@0", storage_options=moto_bed.options)) == 100
    with pytest.raises(DataFileError) as caught:
        StatefulShardedDataset(f"delta://{url}-missing", storage_options=moto_bed.options)
    assert not any(secret in str(caught.value) for secret in secrets_of(moto_bed.options))


def test_a_lance_dataset_is_read_with_its_own_options(moto_bed: Bed, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/lance-{tmp_path.name}"
    options = {key: value for key, value in delta_options(moto_bed).items() if "RENAME" not in key}
    lance.write_dataset(ROWS, url, max_rows_per_file=60, storage_options=options)
    lance.dataset(url, storage_options=options).delete("id = 3")
    check(lance.dataset(url, storage_options=options), moto_bed, tmp_path, num_workers=1)
    check(f"lance://{url}@2", moto_bed, tmp_path, storage_options=moto_bed.options)
    assert len(StatefulShardedDataset(f"lance://{url}", storage_options=moto_bed.options)) == 199
    with pytest.raises(DataFileError) as caught:
        StatefulShardedDataset(f"lance://{url}-missing", storage_options=moto_bed.options)
    assert not any(secret in str(caught.value) for secret in secrets_of(moto_bed.options))


def test_an_iceberg_table_is_read_with_the_options_of_its_catalog(moto_bed: Bed, tmp_path: Path) -> None:
    options = moto_bed.options
    catalog = SqlCatalog(
        "test",
        **{
            "uri": f"sqlite:///{tmp_path}/catalog.db",
            "warehouse": f"s3://{BUCKET}/iceberg-{tmp_path.name}",
            "s3.endpoint": moto_bed.proxy.endpoint,
            "s3.access-key-id": options["key"],
            "s3.secret-access-key": options["secret"],
            "s3.region": "us-east-1",
        },
    )
    catalog.create_namespace("ns")
    table = catalog.create_table("ns.t", ROWS.schema)
    table.append(ROWS.slice(0, 100))
    table.append(ROWS.slice(100))
    table.delete("id = 3")
    check(table, moto_bed, tmp_path)
    assert len(StatefulShardedDataset(table)) == 199
