"""Options of storages, as libraries take them that read by Rust's object_store, such as those of Delta and Lance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_S3_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "aws_access_key_id": ("key",),
    "aws_secret_access_key": ("secret",),
    "aws_session_token": ("token",),
    "aws_endpoint_url": ("endpoint_url",),
    "aws_region": ("client_kwargs", "region_name"),
}
"""Options of object_store -> where s3fs has them."""


def for_s3fs(options: Mapping[str, str] | None) -> dict[str, Any] | None:
    """Return the options of object_store as s3fs takes them; None: there are none."""
    found: dict[str, Any] = {}
    for name, value in (options or {}).items():
        lower = name.lower()
        lower = lower if lower.startswith("aws_") else f"aws_{lower}"
        lower = {"aws_endpoint": "aws_endpoint_url", "aws_default_region": "aws_region"}.get(lower, lower)
        if lower in _S3_OPTIONS:
            *parents, last = _S3_OPTIONS[lower]
            inner = found
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        elif lower == "aws_skip_signature":
            found["anon"] = value.lower() in {"1", "true"}
    return found or None


def for_object_store(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of s3fs as object_store takes them."""
    found: dict[str, str] = {}
    client = options.get("client_kwargs") or {}
    flat = {**options, "endpoint_url": options.get("endpoint_url") or client.get("endpoint_url")}
    for name, path in _S3_OPTIONS.items():
        value: Any = flat
        for step in path:
            value = (value or {}).get(step)
        if value is not None:
            found[name] = str(value)
    if str(found.get("aws_endpoint_url", "")).startswith("http://"):
        found["aws_allow_http"] = "true"
    if options.get("anon"):
        found["aws_skip_signature"] = "true"
    return found
