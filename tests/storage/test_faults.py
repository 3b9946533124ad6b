"""With any fault of the network, an epoch delivers exactly its rows, or ends in a clear error within its deadline."""

from __future__ import annotations

import random
import re
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, get_args

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import DataFileError, LanewayError, RetryPolicy
from tests.compat.loaders import loader_raises, saved
from tests.corpora import KINDS, UNEQUAL_FILES
from tests.storage.beds import THOROUGH, ids
from tests.storage.fault_proxy import Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.storage.beds import Bed

QUICK = RetryPolicy(
    max_attempts=5, first_delay_s=0.01, max_delay_s=0.05, attempt_timeout_s=0.5, deadline_s=2.0,
    connect_timeout_s=0.5, read_timeout_s=0.15,
)  # fmt: skip
RUN_DEADLINE_S = 30.0
"""Several reads of a run may fail in turn, each within the deadline of the policy."""
NUM_RUNS = 240 if THOROUGH else 25
TRANSIENT: tuple[Kind, ...] = (
    "drop", "reset", "500", "503", "short", "ignore range", "stall", "stall at once", "cut", "lost",
)  # fmt: skip
"""Faults that a retry may overcome."""
NUM_ROWS = sum(map(sum, UNEQUAL_FILES))


@pytest.fixture(scope="module")
def urls(moto_bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A corpus of each kind."""
    return {kind: moto_bed.corpus(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def expected_batches() -> dict[tuple[str, int], list[list[int]]]:
    """Batches of runs without faults, by corpus and number of workers."""
    return {}


@pytest.fixture(autouse=True)
def _remove_faults(s3: Bed) -> Iterator[None]:
    yield
    s3.proxy.behave()


def options(bed: Bed) -> dict[str, Any]:
    """Return arguments that leave all retries to the policy, and disable the cache."""
    plain = {**bed.options, "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 1}}}
    return {"storage_options": plain, "retries": QUICK, "cache_dir": False}


def test_these_are_all_kinds_of_faults() -> None:
    assert {*TRANSIENT, "403", "404"} == {*get_args(Kind)}


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_fault_that_occurs_once_is_retried(s3: Bed, urls: dict[str, str], kind: Kind) -> None:
    for corpus in ("parquet", "arrow-file"):
        expected = ids(s3.dataset(urls[corpus]))
        # During the scan, and later while rows are read.
        faults = [Fault(kind, path=r"part-\d+\.", skip=skip, times=1) for skip in (0, 2, 9)]
        s3.proxy.behave(*faults)
        began = monotonic()
        assert ids(s3.dataset(urls[corpus], **options(s3))) == expected
        assert monotonic() - began < RUN_DEADLINE_S
        assert sum(request.fault == kind for request in s3.proxy.requests()) == len(faults)


@pytest.mark.parametrize(("kind", "num_workers"), [*((kind, 0) for kind in TRANSIENT), ("drop", 1), ("stall", 1)])
def test_a_permanent_fault_ends_within_the_deadline_and_leaves_the_state_intact(
    s3: Bed, urls: dict[str, str], kind: Kind, num_workers: int
) -> None:
    url = urls["parquet"]
    expected = ids(s3.dataset(url))
    failing = s3.savable(url, num_workers, prefetch_windows=0, **options(s3))
    batches = iter(failing)
    received = ids(islice(batches, 2))
    s3.proxy.behave(Fault(kind, path=r"part-\d+\."))
    began = monotonic()
    with loader_raises(DataFileError, rf"{re.escape(url)}/part-\d+\.parquet"):
        received.extend(batch["id"].tolist() for batch in batches)
    assert monotonic() - began < 3 * QUICK.deadline_s + 3
    assert received == expected[: len(received)]
    s3.proxy.behave()
    resumed = s3.savable(url, num_workers, **options(s3))
    resumed.load_state_dict(saved(failing.state_dict()))
    assert received + ids(resumed) == expected


@pytest.mark.parametrize(
    ("status", "words"), [("403", "permission denied|Forbidden|Access ?Denied"), ("404", "does not exist")]
)
def test_a_refused_request_fails_immediately_and_names_the_object(
    s3: Bed, urls: dict[str, str], status: Kind, words: str
) -> None:
    url = urls["parquet"]
    dataset = s3.dataset(url, prefetch_windows=0, **options(s3))
    s3.proxy.behave(Fault(status, method="", path=r"part-003\."))
    began = monotonic()
    with pytest.raises(DataFileError, match=rf"{re.escape(url)}/part-003\.parquet .*({words})"):
        list(dataset)
    assert monotonic() - began < 1.0
    refused = [request for request in s3.proxy.requests() if request.fault]
    assert 1 <= len(refused) <= 3, "a check of the object may follow, but no retry"
    with pytest.raises(DataFileError, match=rf"{re.escape(url)}/part-003\.parquet .*({words})"):
        s3.dataset(url, **options(s3))


def test_wrong_keys_fail_immediately(s3: Bed, urls: dict[str, str]) -> None:
    began = monotonic()
    wrong = {**s3.options, "secret": "not-the-secret"}
    with pytest.raises(DataFileError, match=re.escape(urls["parquet"])):
        s3.dataset(urls["parquet"], **{**options(s3), "storage_options": wrong})
    assert monotonic() - began < 2.0


def test_a_failed_listing_is_retried_and_never_incomplete(s3: Bed, urls: dict[str, str]) -> None:
    for kind in ("503", "500", "drop", "stall"):
        s3.proxy.behave(Fault(kind, path="list-type=2", times=1))
        dataset = s3.dataset(urls["parquet"], **options(s3))
        assert dataset.manifest.num_rows == NUM_ROWS, kind


def test_a_slow_link_is_not_a_stalled_one(s3: Bed, urls: dict[str, str]) -> None:
    expected = ids(s3.dataset(urls["parquet"]))
    s3.proxy.behave(latency_s=0.05, bytes_per_s=40_000)
    assert ids(s3.dataset(urls["parquet"], **options(s3))) == expected


def random_faults(draw: random.Random) -> list[Fault]:
    """Return a few random rules."""
    return [
        Fault(
            draw.choice(TRANSIENT),
            path=draw.choice(["", r"part-\d+\.", r"part-00[3-6]\."]),
            skip=draw.choice([0, 0, 3, 9]),
            times=draw.choice([None, 1, 3]),
            probability=draw.choice([0.02, 0.1, 0.3, 1.0]),
        )
        for _ in range(draw.randint(1, 3))
    ]


@pytest.mark.parametrize("seed", range(NUM_RUNS))
def test_every_run_delivers_its_rows_or_ends_in_a_clear_error_in_time(
    s3: Bed, urls: dict[str, str], expected_batches: dict[tuple[str, int], list[list[int]]], seed: int
) -> None:
    draw = random.Random(seed)
    url = urls[draw.choice(KINDS)]
    num_workers = draw.choice([0] * 19 + [2])
    faults = random_faults(draw)

    def create() -> Any:
        if seed % 2:
            return s3.savable(url, num_workers, **options(s3))
        return StatefulDataLoader(s3.dataset(url, **options(s3)), batch_size=None, num_workers=num_workers)

    expected = expected_batches.get((url, num_workers)) or expected_batches.setdefault(
        (url, num_workers), ids(create())
    )
    received: list[list[int]] = []
    loader: Any = None
    failure: LanewayError | None = None
    s3.proxy.behave(*faults, seed=seed, latency_s=draw.choice([0, 0, 0.002]))
    began = monotonic()
    try:
        loader = create()
        received.extend(batch["id"].tolist() for batch in loader)
    except LanewayError as error:
        failure = error.with_traceback(None)
    assert monotonic() - began < RUN_DEADLINE_S
    s3.proxy.behave()
    if failure is None:
        assert received == expected
        return
    assert url in str(failure)
    assert received == expected[: len(received)]
    resumed = create()
    if loader is not None:
        resumed.load_state_dict(saved(loader.state_dict()))
    assert received + ids(resumed) == expected
