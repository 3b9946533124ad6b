"""Setup of all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# No deadline: the duration of an example depends more on the machine than on the code.
settings.register_profile("laneway", deadline=None, print_blob=True)
# For a longer search: pytest tests/laws --hypothesis-profile=thorough
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=2000)
settings.load_profile("laneway")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the manifests of tests out of the user's cache directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
