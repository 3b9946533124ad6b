"""How a worker ended that did not end by itself: by which signal, and how much memory there was."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from laneway.wording import counted, rounded_size

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS: Final = Path("/sys/fs/cgroup")


class MemoryBefore(NamedTuple):
    """What was known before workers started, to be compared when one has been killed."""

    num_oom_kills: int | None
    """Number of processes that the kernel has killed in this container to free memory; None: it doesn't tell."""
    peak_bytes: int
    """The most memory that a child of this process had that has ended."""

    @classmethod
    def now(cls) -> Self:
        """Return it as it is now."""
        return cls(_num_oom_kills(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def end_of_worker(code: int, memory_bytes: int, before: MemoryBefore) -> str:
    """Return how a worker ended, for an error.

    Args:
        code: Its exit code; minus the signal that has killed it.
        memory_bytes: Its resident memory when it sent its last batch; 0 if it has sent none.
        before: What was known before it started.
    """
    now = MemoryBefore.now()
    facts = []
    if memory_bytes:
        facts.append(f"{rounded_size(memory_bytes)} when it sent its last batch")
    if now.peak_bytes > before.peak_bytes:
        facts.append(f"{rounded_size(now.peak_bytes)} at its peak")
    memory = f"; it used {' and '.join(facts)}" if facts else ""
    if code >= 0:
        return f"ended with exit code {code}{memory}"
    name = signal.Signals(-code).name
    if -code != signal.SIGKILL:
        return f"was killed by signal {name}{memory}"
    available = _available()
    machine = f"; {available} of memory are available now" if available else ""
    return f"was killed by signal {name}, {_reason(before, now)}{memory}{machine}"


def _reason(before: MemoryBefore, now: MemoryBefore) -> str:
    """Return who may have killed a worker."""
    if before.num_oom_kills is None or now.num_oom_kills is None:
        return "as the kernel does when memory runs out"
    num_kills = now.num_oom_kills - before.num_oom_kills
    if num_kills:
        return f"since memory has run out: the kernel has killed {counted(num_kills, 'process')} here"
    return "but not because this container ran out of memory: another process sent the signal, or the machine ran out"


def _num_oom_kills() -> int | None:
    for file in _memory_files("memory.events", "memory.oom_control"):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None


def _memory_files(name: str, old_name: str) -> Iterator[Path]:
    """Yield where the kernel may keep a file about the memory of this container: in version 2 or 1 of cgroups."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from (_CGROUPS / path.lstrip("/") / name, _CGROUPS / name)
        elif "memory" in controllers.split(","):
            yield from (_CGROUPS / "memory" / path.lstrip("/") / old_name, _CGROUPS / "memory" / old_name)


def _available() -> str:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    if not {"MemAvailable", "MemTotal"} <= sizes.keys():
        return ""
    return f"{rounded_size(sizes['MemAvailable'])} of {rounded_size(sizes['MemTotal'])}"
