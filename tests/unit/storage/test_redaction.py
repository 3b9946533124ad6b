"""Messages show the location of a storage, and no credentials."""

from __future__ import annotations

import pytest

from laneway.storage.redaction import redact, reveals_secret

OPTIONS = {
    "key": "AKIA-canary",
    "client_kwargs": {"endpoint_url": "https://user:canary@storage.example.org", "aws_secret_access_key": "canary+/="},
    "tokens": ["canary-token"],
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no AKIA-canary", "no ***"),
        ("canary+/= and canary-token", "*** and ***"),
        ("https://user:canary@storage.example.org/b", "https://storage.example.org/b"),
        ("https://host/b?X-Amz-Signature=canary x", "https://host/b x"),
        ("<StringToSign>canary</StringToSign>", "<StringToSign>***</StringToSign>"),
        ("could not connect to https://storage.example.org", "could not connect to https://storage.example.org"),
    ],
)
def test_a_message_shows_the_location_and_no_credentials(text: str, shown: str) -> None:
    assert redact(text, OPTIONS) == shown


def test_the_context_of_an_error_counts_too() -> None:
    error = ValueError("fine")
    assert not reveals_secret(error, OPTIONS)
    error.__context__ = OSError("with canary-token")
    assert reveals_secret(error, OPTIONS)
