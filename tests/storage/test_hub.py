"""The Hugging Face Hub: revisions are pinned to commits, few requests, faults, and tokens that don't leak."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem

from laneway import (
    CheckpointMismatchError,
    DataFileError,
    Manifest,
    RetryPolicy,
    SavableLoader,
    StatefulShardedDataset,
)
from laneway.storage.filesystem import Storage
from laneway.storage.hub import HubPath
from laneway.storage.reading import read_range
from tests.storage.hub_server import LARGE_BYTES, TOKEN
from tests.storage.servers import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "org/name"
SHA = "0123456789abcdef0123456789abcdef01234567"
HASTY = RetryPolicy(max_attempts=4, first_delay_s=0.01, deadline_s=3)


@dataclass(frozen=True)
class HubServer:
    """A running server."""

    endpoint: str

    def _do(self, what: str, **more: Any) -> Any:
        data = json.dumps({"do": what, **more}).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.endpoint}/_tests", data, headers, method="POST")
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def commit(self, folder: Path, repo: str = REPO, branch: str = "main", access: str = "public") -> str:
        """Make a commit of the files of a folder, and return its hash."""
        return str(self._do("commit", folder=str(folder), repo=repo, branch=branch, access=access))

    def fail(self, match: str, kind: str, times: int = 1, **more: Any) -> None:
        """Have the next requests fail that match."""
        self._do("faults", faults=[{"match": match, "kind": kind, "times": times, **more}])

    def expire(self) -> None:
        """Have all signatures expire."""
        self._do("expire")

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests since the last call."""
        found: list[dict[str, Any]] = self._do("requests")
        return [each for each in found if "/_tests" not in each["line"]]

    @property
    def options(self) -> dict[str, Any]:
        """Storage options that lead to this server."""
        return {"endpoint": self.endpoint}

    def dataset(self, url: str = f"hf://datasets/{REPO}", **arguments: Any) -> StatefulShardedDataset:
        """Return a dataset of ids."""
        given = {"columns": ["id"], "batch_size": 10, "retries": HASTY, "storage_options": self.options}
        return StatefulShardedDataset(url, **{**given, **arguments})


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    command = [sys.executable, str(Path(__file__).with_name("hub_server.py"))]
    with running_server(command, dict(os.environ)) as (_, info):
        yield HubServer(info["endpoint"])


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """The server without faults, and no token but those that a test gives."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    server._do("faults", faults=[])
    server.requests()
    # The signed URLs that clients remember are those of a test before.
    HfFileSystem.clear_instance_cache()
    return server


def write(folder: Path, starts: tuple[int, ...] = (0, 100, 200), width: int = 40) -> Path:
    """Write files of 100 rows, large enough for the server of content."""
    for number, start in enumerate(starts):
        ids = range(start, start + 100)
        rows = pa.table({"id": pa.array(ids, pa.int64()), "text": [f"{row} " + "x" * width for row in ids]})
        path = folder / "data" / f"train-{number:03}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path, row_group_size=50, use_dictionary=False, compression="none")
        assert path.stat().st_size >= LARGE_BYTES or width < 10
    (folder / "README.md").write_text("about\n")
    return folder


def ids(dataset: Any) -> list[int]:
    return [row for batch in dataset for row in batch["id"].tolist()]


def kinds(requests: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many requests of each kind there were."""
    lines = [each["line"] for each in requests]
    names = [
        "redirected" if line.startswith("content") else re.split("[/?]", line.split("/org/name")[1])[1]
        for line in lines
    ]
    return {name: names.count(name) for name in sorted({*names})}


def test_the_parts_of_a_path() -> None:
    parse = HubPath.parse
    assert parse("datasets/a/b@main/x/y.parquet") == ("dataset", "a/b", "main", "x/y.parquet")
    assert parse("a/b") == ("model", "a/b", None, "")
    assert parse("datasets/a/b@refs/convert/parquet/x.parquet") == (
        "dataset",
        "a/b",
        "refs/convert/parquet",
        "x.parquet",
    )
    assert parse("spaces/a/b@refs%2Fpr%2F1") == ("space", "a/b", "refs/pr/1", "")
    assert parse("buckets/a/b/x") is parse("datasets") is None
    found = parse("datasets/a/b@main/x/*.parquet")
    assert found is not None
    assert found.at(SHA) == f"datasets/a/b@{SHA}/x/*.parquet"
    assert not found.is_fixed
    assert parse(found.at(SHA)) == ("dataset", "a/b", SHA, "x/*.parquet")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_that_is_updated_is_a_named_mismatch_and_the_old_commit_resumes(
    hub: HubServer, tmp_path: Path, num_workers: int
) -> None:
    old = hub.commit(write(tmp_path / "a"))
    url = f"hf://datasets/{REPO}/data/*.parquet"
    loader = SavableLoader(hub.dataset(url, shuffle=True), num_workers=num_workers)
    batches = iter(loader)
    first = [next(batches)["id"].tolist() for _ in range(7)]
    state = loader.state_dict()
    del batches
    expected = ids(SavableLoader(hub.dataset(url, shuffle=True), num_workers=num_workers))
    new = hub.commit(write(tmp_path / "b", (0, 100, 200, 300)))
    assert old != new
    with pytest.raises(CheckpointMismatchError) as caught:
        SavableLoader(hub.dataset(url, shuffle=True)).load_state_dict(state)
    assert f"table: saved 'commit {old} of a repository of the Hugging Face Hub', this run has" in str(caught.value)
    assert new in str(caught.value)
    assert "hf://datasets/org/name@commit" in str(caught.value)
    pinned = url.replace(REPO, f"{REPO}@{old}")
    resumed = SavableLoader(hub.dataset(pinned, shuffle=True), num_workers=num_workers)
    resumed.load_state_dict(state)
    assert [*chain(*first), *ids(resumed)] == expected
    assert sorted(expected) == list(range(300))
    assert len(ids(hub.dataset(url))) == 400


def test_a_branch_that_moves_while_it_is_read_changes_nothing(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(write(tmp_path / "a"), branch="moving")
    dataset = hub.dataset(f"hf://datasets/{REPO}@moving/data")
    batches = iter(dataset)
    rows = next(batches)["id"].tolist()
    hub.commit(write(tmp_path / "b", (1000, 2000, 3000)), branch="moving")
    assert rows + ids(batches) == list(range(300))
    assert ids(dataset) == list(range(300))
    assert ids(pickle.loads(pickle.dumps(dataset))) == list(range(300))


def test_few_requests(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.commit(write(tmp_path, tuple(range(0, 600, 100)), width=24_000))
    dataset = hub.dataset(f"hf://datasets/{REPO}/data/*.parquet", cache_dir=False)
    # The second question about the repository is that of the filesystem. A footer is one range.
    assert kinds(hub.requests()) == {"expand=sha": 1, "redirected": 6, "resolve": 6, "revision": 1, "tree": 1}
    assert ids(dataset) == list(range(600))
    found = hub.requests()
    # Where files are is known from the footers, so that the Hub is not asked again: a footer and two row groups each.
    assert kinds(found) == {"redirected": 18}
    assert all(re.fullmatch(r"bytes=\d+-\d+", each["range"]) for each in found)
    num_bytes = sum(int(stop) - int(start) + 1 for start, stop in (each["range"][6:].split("-") for each in found))
    total = sum(path.stat().st_size for path in tmp_path.rglob("*.parquet"))
    assert num_bytes < total / 2, "only one of two columns is read"
    # Files that are named one by one are found in one listing.
    HfFileSystem.clear_instance_cache()
    urls: Any = [f"hf://datasets/{REPO}@{commit}/data/train-{number:03}.parquet" for number in range(6)]
    assert len(hub.dataset(urls, cache_dir=False)) == 60
    assert kinds(hub.requests()) == {"redirected": 6, "resolve": 6, "revision": 2, "tree": 1}


def test_metadata_is_cached_for_the_next_start(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(write(tmp_path / "a"))
    url = f"hf://datasets/{REPO}/data"
    first = hub.dataset(url)
    hub.requests()
    again = hub.dataset(url)
    assert "resolve" not in kinds(hub.requests())
    assert again.state_dict() == first.state_dict()
    Manifest.scan(url, storage_options=hub.options).save(tmp_path / "manifest")
    manifest = Manifest.load(tmp_path / "manifest", root=url, storage_options=hub.options)
    assert hub.dataset(manifest).state_dict() == first.state_dict()  # type: ignore[arg-type]  # also a source


def test_a_filesystem_that_is_given(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.commit(write(tmp_path / "a"))
    filesystem = HfFileSystem(endpoint=hub.endpoint)
    given = hub.dataset(f"datasets/{REPO}/data", filesystem=filesystem, storage_options=None)
    assert commit in str(given.definition.identity.settings.table)
    assert given.state_dict() == hub.dataset(f"hf://datasets/{REPO}@{commit}/data").state_dict()
    assert ids(given) == list(range(300))


def test_small_files_which_the_hub_serves_itself_and_other_formats(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"id": {row}}}\n' for row in range(100)))
    hub.commit(tmp_path, repo="org/small", access="private")
    found = hub.dataset("hf://datasets/org/small", storage_options={**hub.options, "token": TOKEN})
    assert ids(found) == list(range(100))
    assert not any(each["line"].startswith("content") for each in hub.requests())


@pytest.mark.parametrize("where", ["hub GET .*/revision/", "hub GET .*/resolve/", "content GET"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("503", {"headers": {"retry-after": "1"}}),
        ("429", {"headers": {"ratelimit": '"api";r=0;t=1', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}}),
        ("cut", {}),
        ("lost", {}),
    ],
)
def test_what_passes_is_retried_no_sooner_than_the_server_asks(
    hub: HubServer, tmp_path: Path, where: str, kind: str, more: dict[str, Any]
) -> None:
    hub.commit(write(tmp_path / "a", (0,)), branch="faulty")
    hub.fail(where, kind, **more)
    dataset = hub.dataset(f"hf://datasets/{REPO}@faulty/data", cache_dir=False, prefetch_windows=0)
    assert ids(dataset) == list(range(100))


def test_a_server_that_stays_busy_is_named_with_the_time_it_asks_for(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(write(tmp_path / "a", (0,)))
    hub.fail("/resolve/", "429", times=99, headers={"retry-after": "600"})
    with pytest.raises(DataFileError, match=r"tried once in .* the server asks to wait for 600 s\): .*429"):
        hub.dataset(cache_dir=False)


def test_a_server_that_ignores_ranges_is_an_error(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(write(tmp_path / "a", (0,), width=2_000))
    hub.fail("content", "ignore range", times=99)
    with pytest.raises(DataFileError, match="received the whole file"):
        hub.dataset(cache_dir=False)


def test_a_signature_that_expires_is_asked_for_again(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(write(tmp_path / "a"))
    dataset = hub.dataset(cache_dir=False)
    batches = iter(dataset)
    rows = next(batches)["id"].tolist()
    hub.expire()
    assert rows + ids(batches) == list(range(300))


def test_a_file_that_is_gone_is_named(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(write(tmp_path / "a"))
    dataset = hub.dataset(cache_dir=False)
    hub.expire()
    hub.fail("hub GET .*/resolve/.*train-001", "404", times=99, code="EntryNotFound")
    with pytest.raises(
        DataFileError, match=r"hf://datasets/org/name@[0-9a-f]{40}/data/train-001.parquet does not exist"
    ):
        ids(dataset)


NO_ACCESS = "there is no dataset {} on http://127.0.0.1:.*, or it is private: log in with `hf auth login`"


@pytest.mark.parametrize(
    ("url", "access", "message"),
    [
        ("hf://datasets/org/absent", "public", NO_ACCESS.format("org/absent")),
        ("hf://datasets/org/closed", "private", NO_ACCESS.format("org/closed")),
        (f"hf://datasets/org/closed@{SHA}", "private", NO_ACCESS.format("org/closed")),
        ("hf://datasets/org/closed", "gated", "org/closed is (gated: accept|restricted)"),
        ("hf://datasets/org/closed/data/train-000.parquet", "gated", "org/closed is (gated: accept|restricted)"),
        ("hf://datasets/org/closed@other", "public", "the dataset org/closed has no branch, tag or commit 'other'"),
        (f"hf://datasets/org/closed@{SHA}", "public", f"org/closed has no branch, tag or commit '{SHA}'"),
        ("hf://datasets/org/closed/absent", "public", "closed@[0-9a-f]{40}/absent does not exist"),
        ("hf://datasets/org/closed/data/absent.parquet", "public", "absent.parquet does not exist"),
    ],
)
def test_what_can_not_be_read_is_explained(hub: HubServer, tmp_path: Path, url: str, access: str, message: str) -> None:
    hub.commit(write(tmp_path / "a"), repo="org/closed", access=access)
    with pytest.raises(DataFileError, match=message) as caught:
        hub.dataset(url)
    assert "Traceback" not in str(caught.value)
    if access != "public" and SHA not in url:
        assert len(ids(hub.dataset(url, storage_options={**hub.options, "token": TOKEN}))) in {100, 300}


def test_no_token_is_left_behind(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(write(tmp_path / "a"), repo="org/closed", access="gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    given: list[dict[str, Any]] = [hub.options, {**hub.options, "token": TOKEN}]
    for options in given:
        HfFileSystem.clear_instance_cache()
        dataset = hub.dataset("hf://datasets/org/closed", storage_options=options, cache_dir=tmp_path / "cache")
        assert len(ids(dataset)) == 300
        sent = hub.requests()
        assert all(each["token"] == f"Bearer {TOKEN}" for each in sent if each["line"].startswith("hub"))
        manifest = Manifest.scan("hf://datasets/org/closed", storage_options=options)
        shown = [json.dumps(dataset.state_dict()), repr(dataset), repr(manifest), str(pickle.dumps(manifest))]
        shown += [path.read_bytes().decode(errors="replace") for path in (tmp_path / "cache").iterdir()]
        for kind in ("403", "500", "404"):
            hub.fail("resolve", kind, times=99, code="Teapot", text="you sent {token} to us")
            hub.expire()
            with pytest.raises(DataFileError) as caught:
                ids(hub.dataset("hf://datasets/org/closed", storage_options=options, cache_dir=False))
            link: BaseException | None = caught.value
            while link is not None:
                shown.append(str(link) + repr(link))
                link = link.__cause__
            hub._do("faults", faults=[])
        assert not [text for text in shown if TOKEN[5:] in text or "X-Signature" in text]


def test_the_endpoint_and_the_token_of_the_environment(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(write(tmp_path / "a"), repo="org/closed", access="private")
    code = (
        "import laneway\n"
        "dataset = laneway.StatefulShardedDataset('hf://datasets/org/closed/data', batch_size=100)\n"
        "print(sum(batch['id'].sum().item() for batch in dataset))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(sum(range(300)))


def test_offline_is_an_error_at_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataFileError, match=r"hf://datasets/org/name can't be read: Cannot reach .*HF_HUB_OFFLINE"):
        hub.dataset()


def test_a_directory_of_the_hub_is_read_by_ranges_but_not_taken_for_a_commit(hub: HubServer, tmp_path: Path) -> None:
    from fsspec.implementations.dirfs import DirFileSystem  # noqa: PLC0415 - only here

    hub.commit(write(tmp_path / "a"))
    inside = DirFileSystem(f"datasets/{REPO}", HfFileSystem(endpoint=hub.endpoint))
    storage = Storage("data", inside)
    assert not storage.client.is_conditional
    data = (tmp_path / "a" / "data" / "train-000.parquet").read_bytes()
    assert read_range(storage, "data/train-000.parquet", 5, 105) == data[5:105]
    assert [each["range"] for each in hub.requests()] == ["bytes=5-104"] * 2
