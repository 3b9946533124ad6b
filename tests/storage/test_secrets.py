"""Keys, secrets and tokens do not leak: no state, file, log, repr, error or environment contains them."""

from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import pytest

from laneway import LanewayError, Manifest, RetryPolicy, SavableLoader
from tests.storage.beds import Bed, ids
from tests.storage.fault_proxy import Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "canary/token+4711=="
HASTY = RetryPolicy(
    max_attempts=2, first_delay_s=0.01, attempt_timeout_s=0.4, deadline_s=1.0, connect_timeout_s=0.3, read_timeout_s=0.2
)


@pytest.fixture(autouse=True)
def _remove_faults(s3: Bed) -> Iterator[None]:
    yield
    s3.proxy.behave()


@pytest.fixture(scope="module")
def given(moto_bed: Bed) -> dict[str, Any]:
    """Storage options with a key, a secret and a token."""
    return {
        **moto_bed.options,
        **moto_bed.server.temporary_keys(),
        "config_kwargs": {"retries": {"max_attempts": 1}},
    }


def secrets_of(options: dict[str, Any]) -> tuple[str, str, str]:
    return options["key"], options["secret"], options["token"]


def leaked(text: str, *secrets: str) -> list[str]:
    """Return the secrets that a text contains, also quoted, or without their first and last characters."""
    return [secret for secret in secrets if secret in text or repr(secret)[1:-1] in text or secret[3:-3] in text]


def test_the_search_for_secrets_finds_them() -> None:
    assert leaked(f"x {TOKEN} y", TOKEN, "another-secret") == [TOKEN]
    assert leaked(json.dumps({"a": [TOKEN]}), TOKEN) == [TOKEN]
    assert leaked(f"key {TOKEN[2:]}", TOKEN) == [TOKEN]


def environment_of_worker(batch: dict[str, Any]) -> dict[str, Any]:
    """Add the environment of the process that created the batch, as the process and other processes see it."""
    process = Path("/proc/self")
    outside = (process / "environ").read_text(errors="replace") + (process / "cmdline").read_text(errors="replace")
    return {**batch, "outside": outside, "environ": str(dict(os.environ))}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_leaves_no_secret_behind(
    s3: Bed, tmp_path: Path, given: dict[str, Any], caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    caplog.set_level(logging.DEBUG, logger="laneway")
    url = s3.corpus(tmp_path / "corpus")
    cache = tmp_path / "cache"
    arguments: dict[str, Any] = {"storage_options": given, "cache_dir": cache}
    dataset = s3.dataset(url, transform=environment_of_worker, **arguments)
    loader = SavableLoader(dataset, num_workers=num_workers)
    batches = list(loader)
    manifest = Manifest.scan(url, **arguments)
    manifest.save(tmp_path / "manifest.json")
    files = [path for path in (*cache.rglob("*"), tmp_path / "manifest.json") if path.is_file()]
    assert len(files) >= 2, "there is a cache to search"
    shown = {
        "states": json.dumps([loader.state_dict(), loader.save_state_rank()]),
        "reprs": f"{dataset!r} {loader!r} {manifest!r} {manifest.storage(storage_options=given)!r} {vars(manifest)}",
        "files": " ".join(str(path) + unpacked(path) for path in files),
        "logs": caplog.text,
        "a worker's environment": " ".join(batch["environ"] + batch["outside"] for batch in batches),
        "our environment": str(dict(os.environ)),
        "a pickled manifest": repr(pickle.dumps(manifest)),
    }
    assert [name for name, text in shown.items() if leaked(text, *secrets_of(given))] == []


def unpacked(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode(errors="replace")


WRONG = ("wrong secret", "no such key", "malformed token", "no server")


@pytest.mark.parametrize(
    ("kind", "phase"),
    [
        *((kind, "reading") for kind in (*get_args(Kind), *WRONG)),
        *((kind, "planning") for kind in ("403", "404", "drop", *WRONG, "no such bucket")),
    ],
)
def test_no_error_reveals_a_secret(
    s3: Bed,
    tmp_path: Path,
    given: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    phase: str,
) -> None:
    caplog.set_level(logging.DEBUG, logger="laneway")
    url = s3.corpus(tmp_path / "corpus", files=((3,),))
    wrongs: dict[str, dict[str, Any]] = {
        "wrong secret": {"secret": "canary-wrong-secret-4711"},
        "no such key": {"key": "CANARYWRONGKEY4711"},
        "malformed token": {"token": TOKEN},
        "no server": {"client_kwargs": {**given["client_kwargs"], "endpoint_url": "http://127.0.0.1:9"}},
    }
    wrong = wrongs.get(kind, {})
    source: Any = "s3://nobody-has-this/corpus" if kind == "no such bucket" else url
    if phase == "reading":
        source = Manifest.scan(url, storage_options=s3.options)
    if kind in get_args(Kind):
        s3.proxy.behave(Fault(cast("Kind", kind), method=""))
    with pytest.raises(LanewayError) as caught:
        list(s3.dataset(source, storage_options={**given, **wrong}, retries=HASTY, cache_dir=False))
    secrets = (*secrets_of(given), *secrets_of({**given, **wrong}))
    shown = {
        "error": str(caught.value) + repr(caught.value),
        "traceback": "".join(traceback.format_exception(caught.value)),
        "logs": caplog.text,
        "output": "".join(capfd.readouterr()),
    }
    assert [name for name, text in shown.items() if leaked(text, *secrets)] == []


def test_an_error_of_a_worker_reveals_no_secret(
    s3: Bed, tmp_path: Path, given: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    url = s3.corpus(tmp_path / "corpus")
    loader = s3.savable(url, num_workers=1, storage_options=given, retries=HASTY)
    s3.proxy.behave(Fault("403", path=r"part-\d+\."))
    with pytest.raises(LanewayError) as caught:
        ids(loader)
    text = "".join(traceback.format_exception(caught.value)) + "".join(capfd.readouterr())
    assert leaked(text, *secrets_of(given)) == []
    traceback.clear_frames(caught.tb)
