"""What the conformance kits have in common: a promise that doesn't hold is an error that names it."""

from __future__ import annotations


def require(condition: bool, promise: str) -> None:  # noqa: FBT001 - what is required
    """Raise an error if a promise is broken.

    Raises:
        AssertionError: The condition is false.
    """
    if not condition:
        raise AssertionError(promise)
