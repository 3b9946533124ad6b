"""How a worker has ended, in words."""

from __future__ import annotations

import signal

from laneway.delivery.worker_ends import MemoryBefore, end_of_worker


def test_the_signal_and_the_memory_are_named() -> None:
    now = MemoryBefore.now()
    killed = end_of_worker(-signal.SIGKILL, 300 << 20, now)
    assert killed.startswith("was killed by signal SIGKILL, ")
    assert "it used 300 MiB when it sent its last batch" in killed
    assert "at its peak" not in killed
    assert end_of_worker(-signal.SIGSEGV, 0, now) == "was killed by signal SIGSEGV"
    assert end_of_worker(3, 1 << 30, now) == "ended with exit code 3; it used 1 GiB when it sent its last batch"


def test_the_kernel_is_blamed_only_if_it_has_killed_or_does_not_tell() -> None:
    now = MemoryBefore.now()
    assert "as the kernel does when memory runs out" in end_of_worker(-9, 0, now._replace(num_oom_kills=None))
    if now.num_oom_kills is not None:
        assert "but not because this container ran out of memory" in end_of_worker(-9, 0, now)
        before = now._replace(num_oom_kills=now.num_oom_kills - 2)
        assert "since memory has run out: the kernel has killed 2 processes here" in end_of_worker(-9, 0, before)
