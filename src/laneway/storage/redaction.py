"""What a message may show: credentials live in storage options and in URLs, and turn up in the texts of errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_USERINFO = re.compile(r"(?<=://)/?[^/\s]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")
# What servers repeat of a request they refuse: the name of a key, and what was signed.
_SIGNED = re.compile(
    r"<(AWSAccessKeyId|StringToSign\w*|SignatureProvided|CanonicalRequest\w*)>.*?</\1>", re.DOTALL | re.IGNORECASE
)
_SHORTEST_SECRET = 4
_PLACES = frozenset({"endpoint", "endpoint_override", "endpoint_url", "region", "region_name"})
"""Options that say where a storage is: users need to see them, and credentials in a URL go all the same."""


def without_secrets(text: str, *options: object) -> str:
    """Return a text without the strings in storage options, without userinfo and query of URLs, and what was signed."""
    for secret in _texts(options):
        text = text.replace(secret, "***")
    return _SIGNED.sub(r"<\1>***</\1>", _QUERY.sub(r"\1", _USERINFO.sub("", text)))


def tells_a_secret(error: BaseException, *options: object) -> bool:
    """Return whether a traceback of an error, which shows what led to it too, would tell a secret."""
    chain: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is not None and link not in chain:
            chain.append(link)
            todo += [link.__cause__, link.__context__]
    return any(without_secrets(text, *options) != text for link in chain for text in (str(link), repr(link)))


def _texts(options: object) -> Iterator[str]:
    """Yield every string that is a value somewhere in storage options and long enough to be a secret."""
    if isinstance(options, str):
        if len(options) >= _SHORTEST_SECRET:
            yield options
    elif isinstance(options, dict):
        for key, value in options.items():
            if key not in _PLACES:
                yield from _texts(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _texts(value)
