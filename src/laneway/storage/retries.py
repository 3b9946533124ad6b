"""Retries: which storage errors are transient, how often a request is retried, and for how long."""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    T = TypeVar("T")

_TRANSIENT_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 509, *range(520, 530)})
# Error codes that S3 may also send with status 400.
_TRANSIENT_CODES: Final = frozenset(
    {"RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException", "RequestThrottled"}
)
_LOST_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ETIMEDOUT,
    }
)
# Connection errors of aiohttp, botocore, http.client and httpx, which have exception classes of their own.
_TRANSIENT_NAMES: Final = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "NetworkError",
        "RemoteProtocolError",
        "ResponseParserError",
        "ResponseStreamingError",
        "ServiceRequestError",
        "ServiceResponseError",
        "TimeoutException",
    }
)
# pyarrow and obstore raise one exception class for everything: only the message tells errors apart.
_STATUS_IN_MESSAGE: Final = re.compile(r"(?:HTTP status|HTTP response code|status code:?)\s+(\d{3})", re.IGNORECASE)
_TRANSIENT_MESSAGE: Final = re.compile(
    r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION|"
    r"error sending request|error decoding response body|operation timed out|connection (?:closed|reset|error)|"
    r"curlCode: \d+|Wrapped reqwest error|HTTP error: ",
    re.IGNORECASE,
)
# No request is left in a window, which ends in so many seconds.
_EXHAUSTED: Final = re.compile(r";\s*r=0\s*;\s*t=(\d+)")
_PERMANENT: Final = (
    FileNotFoundError,
    IsADirectoryError,
    LookupError,
    NotADirectoryError,
    NotImplementedError,
    PermissionError,
    TypeError,
)


class TransientError(Exception):
    """A failure that a retry may fix, such as a truncated body or a busy server."""


class GaveUpError(Exception):
    """All attempts failed; the cause is the error of the last one."""

    def __init__(self, num_attempts: int, elapsed_s: float, asked_delay_s: float = 0.0) -> None:
        """Record the number of attempts, the time they took, and how long the server asks to wait for the next one."""
        super().__init__(num_attempts, elapsed_s, asked_delay_s)
        times = "once" if num_attempts == 1 else f"{num_attempts:,} times"
        self.effort = f"tried {times} in {elapsed_s:.1f} s"
        if asked_delay_s:
            self.effort += f"; the server asks to wait for {asked_delay_s:.0f} s"
        """Number of attempts and elapsed time, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and for how long, a failed storage request is retried.

    Transient failures (status 503, 500 or 429, a lost connection, a truncated body, a timeout) are retried, after a
    delay drawn from [0, d), where d doubles with each attempt, or after the one that the server asks for
    (`Retry-After`), if that is longer. Permanent ones (403, 404) fail immediately. Retries end
    at the maximum number of attempts or at the deadline, whichever comes first. The limits apply to one read: a
    window's part of one data file, a footer, a listing.

    Examples:
        >>> patient = RetryPolicy(max_attempts=20, deadline_s=600)
    """

    max_attempts: int = 10
    """Maximum number of attempts, including the first; 1 disables retries."""
    first_delay_s: float = 0.1
    """Upper bound of the delay before the second attempt, in seconds; it doubles with each further attempt."""
    max_delay_s: float = 20.0
    """Upper bound of any delay, in seconds."""
    attempt_timeout_s: float = 30.0
    """Time limit of the first attempt, in seconds. It doubles with each further attempt, so that a slow link can
    still complete a request that a stalled one can't."""
    deadline_s: float = 120.0
    """Seconds after which no attempt and no delay continues."""
    listing_timeout_s: float = 600.0
    """Time limit of one attempt to list files, in seconds: a listing may consist of many requests."""
    connect_timeout_s: float = 5.0
    """Seconds to wait for a connection. Only for s3fs created by laneway; other clients have their own settings."""
    read_timeout_s: float = 10.0
    """Seconds without data after which a connection counts as stalled. Only for s3fs created by laneway."""

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            message = f"max_attempts must be an int of at least 1, not {self.max_attempts!r}"
            raise ValueError(message)
        for name in (field.name for field in fields(self) if field.name.endswith("_s")):
            seconds = getattr(self, name)
            is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
            if not is_number or not 0 <= seconds < float("inf") or (seconds == 0 and "delay" not in name):
                message = f"{name} must be a finite number of seconds above 0, not {seconds!r}"
                raise ValueError(message)


def retry(
    call: Callable[[float], T],
    policy: RetryPolicy,
    *,
    on_retry: Callable[[BaseException, str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    draw: Callable[[], float] = random.random,
) -> T:
    """Call a function until it succeeds, as often as the policy allows, and return its result.

    Args:
        call: Takes its time limit in seconds, and raises TimeoutError when that is exceeded.
        policy: Limits of the retries.
        on_retry: Called before each retry, with the error and a description of the next step.
        clock: Monotonic clock, in seconds.
        sleep: Sleeps for a number of seconds.
        draw: Returns a random number in [0, 1).

    Raises:
        GaveUpError: The policy allows no further attempt; the cause is the last error.
        BaseException: `call` raised an error that is not transient.
    """
    began = clock()
    delay, limit = policy.first_delay_s, policy.attempt_timeout_s
    for attempt in range(1, policy.max_attempts + 1):
        left = policy.deadline_s - (clock() - began)
        try:
            return call(min(limit, left))
        except Exception as error:
            if not is_transient(error):
                raise
            asked = _asked_delay_s(error)
            pause = max(draw() * min(delay, policy.max_delay_s), asked)
            elapsed = clock() - began
            # An attempt that starts at the deadline has no time to succeed.
            if attempt == policy.max_attempts or elapsed + pause >= policy.deadline_s:
                raise GaveUpError(attempt, elapsed, asked) from error
            if on_retry is not None:
                on_retry(error, f"attempt {attempt + 1} of {policy.max_attempts} follows in {pause:.1f} s")
        sleep(pause)
        delay, limit = 2 * delay, 2 * limit
    raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed after this error."""
    if isinstance(error, TransientError):
        return True
    if isinstance(error, _PERMANENT) or type(error).__name__ == "OfflineModeIsEnabled":  # of huggingface_hub
        return False
    for link in _chain(error):
        if _code(link) in _TRANSIENT_CODES:
            return True
        status = _status(link)
        if status is not None:
            return status in _TRANSIENT_STATUSES
        if _is_connection_error(link) or _TRANSIENT_MESSAGE.search(str(link)):
            return True
    return False


def _is_connection_error(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in _LOST_CONNECTION:
        return True
    return any(base.__name__ in _TRANSIENT_NAMES for base in type(error).__mro__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or link.__context__


def _asked_delay_s(error: BaseException) -> float:
    """Return how many seconds the server asks to wait before the next attempt; 0.0: it doesn't say."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            headers: Any = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        else:
            headers = getattr(link, "headers", None) or getattr(response, "headers", None)
        if isinstance(headers, Mapping):
            found = {str(name).lower(): str(value) for name, value in headers.items()}
            limit = _EXHAUSTED.search(found.get("ratelimit", ""))
            asked = found.get("retry-after", limit[1] if limit else "")
            if asked.isdigit():
                return float(asked)
    return 0.0


def _code(error: BaseException) -> str | None:
    """Return the S3 error code of a botocore exception, or None."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an exception of any client, or None."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(found, int):
            return found
    for name in ("status", "status_code", "code"):  # aiohttp, azure, gcsfs; httpx
        found = getattr(error, name, None) or getattr(response, name, None)
        if isinstance(found, int) and 400 <= found < 600:  # noqa: PLR2004 - the statuses of HTTP errors
            return found
    match = _STATUS_IN_MESSAGE.search(str(error))
    return int(match[1]) if match else None
