"""Which failures are retried, and for how long, on a simulated clock."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from laneway.storage.retries import GaveUpError, RetryPolicy, TransientError, is_transient, retry

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """A clock that only advances when something waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def run(self, call: Callable[[float], Any], policy: RetryPolicy, draw: float = 0.5) -> Any:
        return retry(call, policy, clock=lambda: self.now, sleep=self.sleep, draw=lambda: draw)


class Flaky:
    """Fails a number of times, each time after some seconds."""

    def __init__(self, clock: Clock, times: int, *, takes_s: float = 0.0, error: Exception | None = None) -> None:
        self.clock, self.times, self.takes_s = clock, times, takes_s
        self.error = error or TransientError("busy")
        self.limits: list[float] = []

    def __call__(self, limit_s: float) -> str:
        self.limits.append(limit_s)
        self.clock.now += min(self.takes_s, limit_s)
        if len(self.limits) <= self.times:
            raise self.error
        return "data"


class ClientError(Exception):
    """Has the attributes of botocore's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"An error occurred ({status}) when calling the GetObject operation")
        self.response = {"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}


class ClientPayloadError(Exception):
    """Has the name of aiohttp's."""


def test_a_transient_failure_is_retried_after_delays_that_double_up_to_the_limit() -> None:
    clock = Clock()
    policy = RetryPolicy(max_attempts=7, first_delay_s=1, max_delay_s=5, deadline_s=1000)
    assert clock.run(Flaky(clock, 6), policy, draw=1.0) == "data"
    assert clock.waits == [1, 2, 4, 5, 5, 5]
    clock = Clock()
    assert clock.run(Flaky(clock, 3), policy, draw=0.25) == "data"
    assert clock.waits == [0.25, 0.5, 1.0]


class AnswerError(Exception):
    """Has the attributes of errors of httpx."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(f"{status} for url")
        self.response = SimpleNamespace(status_code=status, headers=headers)


BUSY = ClientError(503)
BUSY.response["ResponseMetadata"]["HTTPHeaders"] = {"retry-after": "7"}  # type: ignore[index]  # as botocore has it


@pytest.mark.parametrize(
    ("error", "asked_s"),
    [
        (AnswerError(503, {"Retry-After": "7"}), 7.0),
        (BUSY, 7.0),
        (AnswerError(429, {"RateLimit": '"api";r=0;t=55'}), 55.0),
        (AnswerError(429, {"RateLimit": '"api";r=3;t=55'}), 0.5),
        (AnswerError(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 0.5),
    ],
)
def test_no_attempt_is_sooner_than_the_server_asks(error: Exception, asked_s: float) -> None:
    clock = Clock()
    policy = RetryPolicy(first_delay_s=1.0)
    assert clock.run(Flaky(clock, 1, error=error), policy) == "data"
    assert clock.waits == [asked_s]


def test_a_server_that_asks_for_more_time_than_there_is_ends_the_retries() -> None:
    clock = Clock()
    with pytest.raises(GaveUpError) as caught:
        clock.run(Flaky(clock, 1, error=AnswerError(429, {"Retry-After": "600"})), RetryPolicy())
    assert caught.value.effort == "tried once in 0.0 s; the server asks to wait for 600 s"
    assert clock.waits == []


def test_attempts_are_limited_and_the_last_error_is_the_cause() -> None:
    clock = Clock()
    flaky = Flaky(clock, 99)
    with pytest.raises(GaveUpError) as caught:
        clock.run(flaky, RetryPolicy(max_attempts=3, first_delay_s=1, deadline_s=1000))
    assert caught.value.__cause__ is flaky.error
    assert caught.value.effort == "tried 3 times in 1.5 s"
    assert len(flaky.limits) == 3


def test_the_deadline_ends_the_retries_whatever_number_of_attempts_is_left() -> None:
    clock = Clock()
    flaky = Flaky(clock, 99, takes_s=4)
    with pytest.raises(GaveUpError, match="2"):
        clock.run(flaky, RetryPolicy(max_attempts=99, first_delay_s=1, deadline_s=10), draw=1.0)
    # 4 s, a wait of 1 s, 4 s; another wait of 2 s would end after the deadline.
    assert clock.now == 109.0
    assert flaky.limits == [10, 5]


def test_each_attempt_may_take_twice_as_long_as_the_last_but_not_longer_than_the_deadline() -> None:
    clock = Clock()
    flaky = Flaky(clock, 3, takes_s=1e9)
    policy = RetryPolicy(attempt_timeout_s=10, first_delay_s=0, deadline_s=100)
    with pytest.raises(GaveUpError):
        clock.run(Flaky(Clock(), 99), RetryPolicy(max_attempts=1))
    assert clock.run(flaky, policy) == "data"
    assert flaky.limits == [10, 20, 40, 30]


def test_a_permanent_failure_is_not_retried() -> None:
    for error in (FileNotFoundError("gone"), PermissionError("no"), ClientError(403), ClientError(404), KeyError("a")):
        clock = Clock()
        flaky = Flaky(clock, 1, error=error)
        with pytest.raises(type(error)):
            clock.run(flaky, RetryPolicy())
        assert len(flaky.limits) == 1
        assert not clock.waits


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_a_transient_failure_however_the_client_reports_it(status: int) -> None:
    translated = OSError(errno.EIO, "Please reduce your request rate")
    translated.__cause__ = ClientError(status)
    assert is_transient(ClientError(status))
    assert is_transient(translated)
    # pyarrow, obstore
    assert is_transient(OSError(f"When reading 'a' in bucket 'b': AWS Error UNKNOWN (HTTP status {status}) during Get"))
    assert is_transient(Exception(f"Generic S3 error: ... Server returned non-2xx status code: {status} Busy: <Error>"))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"),
        TimeoutError("late"),
        OSError(errno.ECONNREFUSED, "refused"),
        ClientPayloadError("not enough data"),
        OSError("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate."),
        OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 56, Failure when receiving data"),
        Exception("Generic S3 error: HTTP error: error decoding response body"),
    ],
)
def test_a_lost_connection_is_a_transient_failure(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        ClientError(400),
        ClientError(403),
        ClientError(501),
        NotImplementedError("ranges"),
        ValueError("bad path"),
        OSError(errno.ENOSPC, "no space"),
        OSError("AWS Error ACCESS_DENIED during GetObject operation"),
        OSError("AWS Error NO_SUCH_BUCKET during GetObject operation: (HTTP status 404)"),
    ],
)
def test_other_errors_are_permanent(error: Exception) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", 2.5),
        ("max_attempts", True),
        ("deadline_s", 0),
        ("deadline_s", float("inf")),
        ("attempt_timeout_s", -1),
        ("first_delay_s", float("nan")),
        ("read_timeout_s", "10"),
    ],
)
def test_a_policy_without_limits_is_rejected(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        RetryPolicy(**{name: value})


def test_each_retry_is_reported_with_its_reason_and_a_success_is_not() -> None:
    clock, reports = Clock(), list[str]()
    flaky = Flaky(clock, 2)
    retry(
        flaky,
        RetryPolicy(max_attempts=5),
        on_retry=lambda error, next_step: reports.append(f"{error}; {next_step}"),
        clock=lambda: clock.now,
        sleep=clock.sleep,
        draw=lambda: 0.5,
    )
    assert reports == ["busy; attempt 2 of 5 follows in 0.1 s", "busy; attempt 3 of 5 follows in 0.1 s"]
