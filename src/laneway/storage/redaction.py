"""Redaction of messages: credentials in storage options and URLs also turn up in the messages of errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_USERINFO = re.compile(r"(?<=://)/?[^/\s]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")
# Parts of a refused request that servers repeat: the key id and the signed string.
_SIGNED = re.compile(
    r"<(AWSAccessKeyId|StringToSign\w*|SignatureProvided|CanonicalRequest\w*)>.*?</\1>", re.DOTALL | re.IGNORECASE
)
# Tokens of Hugging Face, which come from a file or the environment, and the header that carries any token.
_TOKEN = re.compile(r"\bhf_(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{30,}|(?<=Bearer )[^\s'\"]+")
_MIN_SECRET_LENGTH = 4
_PUBLIC_OPTIONS = frozenset({"endpoint", "endpoint_override", "endpoint_url", "region", "region_name"})
"""Options that are never secret and stay visible; credentials inside such a URL are still removed."""


def redact(text: str, *options: object) -> str:
    """Remove strings from storage options, userinfo and queries of URLs, tokens and signatures from a message."""
    for secret in _find_secrets(options):
        text = text.replace(secret, "***")
    text = _TOKEN.sub("***", text)
    return _SIGNED.sub(r"<\1>***</\1>", _QUERY.sub(r"\1", _USERINFO.sub("", text)))


def reveals_secret(error: BaseException, *options: object) -> bool:
    """Return whether a traceback of an error, with its causes and contexts, would reveal a secret."""
    chain: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is not None and link not in chain:
            chain.append(link)
            pending += [link.__cause__, link.__context__]
    return any(redact(text, *options) != text for link in chain for text in (str(link), repr(link)))


def _find_secrets(options: object) -> Iterator[str]:
    """Yield every string value in nested storage options that is long enough to be a secret."""
    if isinstance(options, str):
        if len(options) >= _MIN_SECRET_LENGTH:
            yield options
    elif isinstance(options, dict):
        for key, value in options.items():
            if key not in _PUBLIC_OPTIONS:
                yield from _find_secrets(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _find_secrets(value)
