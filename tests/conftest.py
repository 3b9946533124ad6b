"""Setup of all tests."""

from __future__ import annotations

import gc
import multiprocessing
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from laneway.delivery.workers import end_workers

if TYPE_CHECKING:
    from collections.abc import Iterator

# No deadline: the duration of an example depends more on the machine than on the code.
settings.register_profile("laneway", deadline=None, print_blob=True, max_examples=30)
# For a longer search: pytest tests/laws --hypothesis-profile=thorough
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=2000)
settings.load_profile("laneway")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the manifests of tests out of the user's cache directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _workers_end_with_their_module() -> Iterator[None]:
    """End the workers of loaders that are still referred to, by a raised error for example.

    Otherwise a test in another module would count them, or receive the error that ends one of them.
    """
    yield
    if multiprocessing.active_children():
        gc.collect()
    if multiprocessing.active_children():
        for found in gc.get_objects():
            # Of its own type: others say that they are of any class, and import what they stand for.
            if issubclass(type(found), _MultiProcessingDataLoaderIter):
                end_workers(found)
