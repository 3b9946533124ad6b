"""One rank scans for all."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist

from laneway import Manifest, StatefulShardedDataset
from laneway.catalog import offers, sharing
from laneway.catalog.encoding import encode
from laneway.distributed import load_once, scan_once
from tests.corpora import write_corpus
from tests.distributed.ranks import RunRanks, flat, ids, refusal
from tests.mapping import is_mapped

if TYPE_CHECKING:
    from pathlib import Path


def scan_where_only_rank_0_finds_files(rank: int, corpus: Path) -> dict[str, Any]:
    manifest = scan_once(corpus if rank == 0 else corpus / "gone", cache_dir=False)
    rows = StatefulShardedDataset(manifest, batch_size=4, remainder="keep")
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair = scan_once(corpus if rank % 2 == 0 else "gone", process_group=pairs[rank // 2])
    return {
        "fingerprints": (manifest.fingerprint, pair.fingerprint),
        "versions": manifest.versions,
        "rows": flat(ids(rows)),
        "missing": refusal(scan_once, corpus / "gone"),
        "damaged": refusal(scan_once, corpus.parent / "damaged"),
        "after": scan_once(corpus).num_rows,
    }


def test_rank_0_scans_and_all_ranks_have_the_manifest_or_its_error(run_ranks: RunRanks, tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path / "d")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.parquet").write_bytes(b"PAR1")
    expected = Manifest.scan(tmp_path / "d")
    results = run_ranks(scan_where_only_rank_0_finds_files, 4, tmp_path / "d")
    assert [result["fingerprints"] for result in results] == [(expected.fingerprint,) * 2] * 4
    # Not `expected.versions`: a file that was just written has none yet.
    assert [result["versions"] for result in results] == [results[0]["versions"]] * 4
    assert sorted(row for result in results for row in result["rows"]) == list(range(num_rows))
    for name, message in (("missing", "gone does not exist"), ("damaged", "a.parquet is not a Parquet file")):
        (error,) = {result[name] for result in results}
        assert error[0] == "DataFileError"
        assert error[1].startswith("on rank 0: ")
        assert message in error[1]
    assert [result["after"] for result in results] == [num_rows] * 4


def share_a_large_manifest(rank: int, corpus: Path, excluded: int | None) -> dict[str, Any]:
    directory = corpus.parent / "temporary"
    directory.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(directory))
        for module in (offers, sharing):
            patch.setattr(module, "MIN_SHARED_BYTES", 1)
        if rank == excluded:
            patch.setattr(offers, "map_descriptor", refuse)
        found = [
            scan_once(corpus),
            scan_once(corpus, cache_dir=corpus.parent / "cache"),
            scan_once(corpus, cache_dir=corpus.parent / "cache"),
            load_once(corpus.parent / "m"),
            load_once(corpus.parent / "m", root=corpus),
        ]
    return {
        "encoded": [encode(manifest) for manifest in found],
        "mapped": [is_mapped(manifest.files.block_rows) for manifest in found],
        "left": [path.name for path in directory.iterdir()],
        "missing": refusal(load_once, corpus.parent / "gone"),
    }


def refuse(descriptor: int) -> None:
    os.close(descriptor)
    raise OSError


@pytest.mark.parametrize("excluded", [None, 1, 0])
def test_ranks_that_can_open_the_file_of_a_large_manifest_map_it(
    run_ranks: RunRanks, tmp_path: Path, excluded: int | None
) -> None:
    write_corpus(tmp_path / "d")
    for path in (tmp_path / "d").iterdir():
        os.utime(path, (1, 1))
    expected = Manifest.scan(tmp_path / "d")
    expected.save(tmp_path / "m")
    results = run_ranks(share_a_large_manifest, 2, tmp_path / "d", excluded)
    for rank, result in enumerate(results):
        assert result["encoded"] == [encode(expected)] * 5
        # A rank that read the file itself has mapped it anyway.
        assert all(result["mapped"]) == (rank != excluded)
        assert result["left"] == []
        assert result["missing"][1].startswith("on rank 0: ")


def test_a_single_process_scans_on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path)
    assert "RANK" not in os.environ
    manifest = Manifest.scan(tmp_path)
    assert scan_once(tmp_path).fingerprint == manifest.fingerprint
    manifest.save(tmp_path / "_m")
    assert load_once(tmp_path / "_m").fingerprint == manifest.fingerprint
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"this is rank 1 of 4, .* call init_process_group\(\) before scan_once\(\)"):
        scan_once(tmp_path)
    with pytest.raises(ValueError, match=r"this is rank 1 of 4, .* call init_process_group\(\) before load_once\(\)"):
        load_once(tmp_path / "_m")
