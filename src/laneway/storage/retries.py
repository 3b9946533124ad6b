"""What is tried again when a storage fails, how often, and for how long."""

from __future__ import annotations

import errno
import random
import re
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    T = TypeVar("T")

_TRANSIENT_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 509, *range(520, 530)})
# What S3 also says with a status of 400.
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
# Clients wrap what happened to a connection in classes of their own; these are aiohttp's, botocore's and http.client's.
_TRANSIENT_NAMES: Final = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ResponseParserError",
        "ResponseStreamingError",
        "ServiceRequestError",
        "ServiceResponseError",
    }
)
# pyarrow and obstore raise one class for everything: what happened is in the text.
_STATUS_IN_TEXT: Final = re.compile(r"(?:HTTP status|HTTP response code|status code:?)\s+(\d{3})", re.IGNORECASE)
_TRANSIENT_TEXT: Final = re.compile(
    r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION|"
    r"error sending request|error decoding response body|operation timed out|connection (?:closed|reset|error)|"
    r"curlCode: \d+|Wrapped reqwest error|HTTP error: ",
    re.IGNORECASE,
)
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
    """What came is no answer, and asking again may bring one: a body that is cut short, a server that is too busy."""


class GaveUpError(Exception):
    """All tries failed; its cause is what the last one raised."""

    def __init__(self, num_attempts: int, elapsed_s: float) -> None:
        """Say how often it was tried."""
        super().__init__(num_attempts, elapsed_s)
        times = "once" if num_attempts == 1 else f"{num_attempts:,} times"
        self.effort = f"tried {times} in {elapsed_s:.1f} s"
        """How often and for how long, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a storage that fails is asked again, and when that ends.

    What may pass (503, 500, 429, a lost connection, a body cut short, a timeout) is tried again, after a delay drawn
    from [0, d) where d doubles from one try to the next; what won't (403, 404) fails at once. A request is bounded by
    the number of tries and by the deadline, whichever comes first. All of it is for one read: of a window's part of
    one data file, of a footer, of a listing.

    Example:
        >>> patient = RetryPolicy(max_attempts=20, deadline_s=600)
    """

    max_attempts: int = 10
    """Tries, the first one included; 1: nothing is tried again."""
    first_delay_s: float = 0.1
    """Longest delay before the second try, in seconds; the longest delay doubles with each."""
    max_delay_s: float = 20.0
    """Longest delay before any try, in seconds."""
    attempt_timeout_s: float = 30.0
    """Seconds after which the first try is given up, whatever has come of it. Each next one gets twice as long, so that
    a slow link is told from a stalled one."""
    deadline_s: float = 120.0
    """Seconds after which nothing is tried or waited for any more."""
    listing_timeout_s: float = 600.0
    """Seconds after which a listing is given up, which is any number of requests."""
    connect_timeout_s: float = 5.0
    """Seconds to wait for a connection. For s3fs that laneway makes; other clients have settings of their own."""
    read_timeout_s: float = 10.0
    """Seconds without a byte after which a connection counts as stalled. For s3fs that laneway makes."""

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


def retried(
    call: Callable[[float], T],
    policy: RetryPolicy,
    *,
    on_retry: Callable[[BaseException, str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    draw: Callable[[], float] = random.random,
) -> T:
    """Return what `call` returns, which is tried again as long as the policy allows.

    Args:
        call: Is given the seconds it has, and raises TimeoutError when they are over.
        policy: How often and for how long.
        on_retry: Is told what went wrong, and what comes next, before each further try.
        clock: Seconds on a clock that never goes back.
        sleep: Waits.
        draw: A number in [0, 1).

    Raises:
        GaveUpError: It failed too often or for too long; the cause is the last error.
        BaseException: What `call` raised and asking again won't change.
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
            pause = draw() * min(delay, policy.max_delay_s)
            elapsed = clock() - began
            # A try that begins at the deadline is no try.
            if attempt == policy.max_attempts or elapsed + pause >= policy.deadline_s:
                raise GaveUpError(attempt, elapsed) from error
            if on_retry is not None:
                on_retry(error, f"try {attempt + 1} of {policy.max_attempts} follows in {pause:.1f} s")
        sleep(pause)
        delay, limit = 2 * delay, 2 * limit
    raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Return whether what failed may go well when it is tried again, as far as the error tells."""
    if isinstance(error, TransientError):
        return True
    if isinstance(error, _PERMANENT):
        return False
    for link in _chain(error):
        if _code(link) in _TRANSIENT_CODES:
            return True
        status = _status(link)
        if status is not None:
            return status in _TRANSIENT_STATUSES
        if _is_about_connection(link) or _TRANSIENT_TEXT.search(str(link)):
            return True
    return False


def _is_about_connection(error: BaseException) -> bool:
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


def _code(error: BaseException) -> str | None:
    """Return what S3 calls an error, as botocore tells it, or None."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of some client tells, or None."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(found, int):
            return found
    for name in ("status", "status_code", "code"):  # aiohttp, azure, gcsfs
        found = getattr(error, name, None)
        if isinstance(found, int) and 400 <= found < 600:  # noqa: PLR2004 - what HTTP calls errors
            return found
    in_text = _STATUS_IN_TEXT.search(str(error))
    return int(in_text[1]) if in_text else None
