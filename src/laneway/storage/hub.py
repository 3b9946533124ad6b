"""Files of the Hugging Face Hub: which commit a revision is, and ranges of their bytes."""

from __future__ import annotations

import re
import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final
from urllib.parse import quote, unquote, urlsplit

from laneway.storage.ranges import ShortBodyError, check_content_range, check_data, check_length

if TYPE_CHECKING:
    from laneway.storage.ranges import Request

_PATH: Final = re.compile(
    r"(?P<kind>(?:datasets|spaces|models)/)?(?P<repo>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/convert/\w+|refs/pr/\d+|[^/]+))?(?P<file>/.*)?"
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_BUCKETS: Final = "buckets/"
_MAX_TARGETS: Final = 4_096  # files whose place on a server of content is remembered
_NO_ACCESS, _NO_RANGE, _NO_FILE, _FIRST_ERROR = (400, 401, 403), 416, (404, 410), 400


class HubPath(NamedTuple):
    """A path of a repository, as its filesystem understands it."""

    kind: str
    """"dataset", "space" or "model"."""
    repo: str
    """Such as "allenai/c4"."""
    revision: str | None
    """A branch, a tag or a commit; None: the default branch."""
    file: str
    """Path in the repository, "" for its root."""

    @classmethod
    def parse(cls, path: str) -> HubPath | None:
        """Return the parts of a path; None: it is not in a repository."""
        found = None if path.startswith(_BUCKETS) else _PATH.fullmatch(path)
        if found is None:
            return None
        kind, revision = (found["kind"] or "models/")[:-2], found["revision"]
        return cls(kind, found["repo"], revision and unquote(revision), (found["file"] or "").strip("/"))

    @property
    def is_fixed(self) -> bool:
        """Whether the revision is a commit, so that the file never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> str:
        """Return the path of the same file at a commit."""
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{prefix}{self.repo}@{commit}/{self.file}".rstrip("/")


def is_hub(filesystem: object) -> bool:
    """Return whether a filesystem is that of the Hub."""
    # Never imported here: users of other filesystems should not wait for it.
    module: Any = sys.modules.get("huggingface_hub.hf_file_system")
    return module is not None and isinstance(filesystem, module.HfFileSystem)


def is_fixed(filesystem: object, path: str) -> bool:
    """Return whether a path is one of a commit on the Hub: what is there never changes."""
    found = HubPath.parse(path) if is_hub(filesystem) else None
    return found is not None and found.is_fixed


def commit_of(filesystem: Any, path: HubPath) -> str:  # noqa: ANN401 - a filesystem of huggingface_hub, not a dependency
    """Return the commit that the revision of a path is now, by one request.

    Raises:
        PermissionError: There is no such repository or revision, or no access to it; the message says so.
        huggingface_hub.errors.HfHubHTTPError: Any other answer of the Hub.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - loaded already, together with its filesystem
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT  # noqa: PLC0415
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError  # noqa: PLC0415

    api = HfApi(endpoint=filesystem.endpoint, token=filesystem.token)
    options: dict[str, Any] = {"repo_type": path.kind, "revision": path.revision, "expand": ["sha"]}
    try:
        found = api.repo_info(path.repo, timeout=HF_HUB_ETAG_TIMEOUT, **options)
    except RevisionNotFoundError as error:
        message = f"the {path.kind} {path.repo} has no branch, tag or commit {path.revision!r}"
        raise PermissionError(message) from error
    except RepositoryNotFoundError as error:
        raise PermissionError(_no_access(filesystem, path, error)) from error
    return str(found.sha)


def _no_access(filesystem: Any, path: HubPath, error: Exception) -> str:  # noqa: ANN401 - as above
    from huggingface_hub.errors import GatedRepoError  # noqa: PLC0415 - loaded already

    prefix = "" if path.kind == "model" else f"{path.kind}s/"
    log_in = 'log in with `hf auth login`, or pass storage_options={"token": ...}'
    if isinstance(error, GatedRepoError):
        return (
            f"the {path.kind} {path.repo} is gated: accept its conditions on {filesystem.endpoint}/{prefix}{path.repo}"
            f", and {log_in} with the token of that account"
        )
    return f"there is no {path.kind} {path.repo} on {filesystem.endpoint}, or it is private: {log_in}"


@final
class HubReader:
    """Reads ranges of files of the Hub by one request each, from any number of threads.

    Large files are on a server of content: the Hub redirects there, to a URL that is signed for a while. It is
    remembered for files of a commit, so that the Hub is asked once for each file rather than for each range.
    """

    def __init__(self, filesystem: Any) -> None:  # noqa: ANN401 - as above
        """Read with the token of a filesystem."""
        self._filesystem = filesystem
        self._targets: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, request: Request) -> bytes:
        """Return the bytes of a range.

        Raises:
            FileNotFoundError, PermissionError: The Hub says so.
            ShortBodyError: The response is not this range.
            huggingface_hub.errors.HfHubHTTPError: Any other answer.
        """
        place = HubPath.parse(request.path)
        with self._lock:
            target = self._targets.get(request.path)
        if target is not None:
            try:
                return self._get(target, request, place)[0]
            except (FileNotFoundError, PermissionError):
                # Its signature has expired.
                with self._lock:
                    self._targets.pop(request.path, None)
        url = self._url(request.path, place)
        data, target = self._get(url, request, place)
        if target != url and place is not None and place.is_fixed:
            with self._lock:
                self._targets[request.path] = target
                if len(self._targets) > _MAX_TARGETS:
                    self._targets.popitem(last=False)
        return data

    def _url(self, path: str, place: HubPath | None) -> str:
        from huggingface_hub import hf_hub_url  # noqa: PLC0415 - loaded already

        endpoint = self._filesystem.endpoint
        if place is not None:
            return str(
                hf_hub_url(place.repo, place.file, repo_type=place.kind, revision=place.revision, endpoint=endpoint)
            )
        _, owner, name, file = [*path.split("/", 3), "", "", ""][:4]
        return f"{endpoint}/{_BUCKETS}{owner}/{name}/resolve/{quote(file)}"

    def _get(self, url: str, request: Request, place: HubPath | None) -> tuple[bytes, str]:
        """Return the bytes of a range of a URL, and the URL that it redirects to."""
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT  # noqa: PLC0415 - loaded already
        from huggingface_hub.utils import build_hf_headers, get_session  # noqa: PLC0415

        # Compressed, a response has another length than its range.
        headers = {"range": f"bytes={request.start}-{request.stop - 1}", "accept-encoding": "identity"}
        if urlsplit(url)[:2] == urlsplit(self._filesystem.endpoint)[:2]:
            # A redirect to another server leaves the token out.
            headers |= build_hf_headers(token=self._filesystem.token)
        options: dict[str, Any] = {"headers": headers, "timeout": HF_HUB_DOWNLOAD_TIMEOUT, "follow_redirects": True}
        with get_session().stream("GET", url, **options) as response:
            if response.status_code >= _FIRST_ERROR:
                response.read()
                self._raise(response, request, place)
            # Before the body is read: a server that ignores the range sends the whole file, however long.
            check_content_range(request, response.status_code, response.headers.get("content-range"))
            length = response.headers.get("content-length")
            check_length(request, None if length is None else int(length))
            data: bytes = response.read()
            check_data(data, request)
            return data, str(response.url)

    def _raise(self, response: Any, request: Request, place: HubPath | None) -> None:  # noqa: ANN401 - of httpx
        """Raise the error of a response."""
        from huggingface_hub.errors import RepositoryNotFoundError  # noqa: PLC0415 - loaded already
        from huggingface_hub.utils import hf_raise_for_status  # noqa: PLC0415

        try:
            hf_raise_for_status(response)
        except Exception as error:
            text = " ".join(str(error).split())
            if place is not None and isinstance(error, RepositoryNotFoundError):
                raise PermissionError(_no_access(self._filesystem, place, error)) from error
            if response.status_code in _NO_FILE:
                raise FileNotFoundError(text) from error
            if response.status_code in _NO_ACCESS:
                raise PermissionError(text) from error
            if response.status_code == _NO_RANGE:
                message = f"{request.text}, which it doesn't have"
                raise ShortBodyError(message) from error
            raise
