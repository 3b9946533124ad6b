"""What the demos share: jobs of torchrun, one of which loses a rank, the logs of their ranks, and how claims are shown.

Each rank of a job logs to `log_path`, in lines of JSON: first its `pid`, then a line for each step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def log_path(run: Path, rank: int, world_size: int) -> Path:
    """Return the file to which a rank logs."""
    return run / f"rank-{rank}-of-{world_size}.jsonl"


def read_lines(run: Path, world_size: int) -> list[list[dict[str, Any]]]:
    """Return what each rank has logged, line by line, in the order of ranks."""
    texts = [log_path(run, rank, world_size).read_text() for rank in range(world_size)]
    # A rank that was killed during a write leaves an incomplete line.
    return [[*map(json.loads, text[: text.rfind("\n") + 1].splitlines())] for text in texts]


@dataclass(frozen=True)
class Job:
    """A script that torchrun starts on each rank; what they write to stderr goes to a file."""

    script: str
    """The script."""
    run: Path
    """Directory for logs."""
    world_size: int
    """Number of ranks."""
    arguments: tuple[str, ...]
    """Arguments of the script."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More environment variables."""

    def kill_a_rank(self, step: int) -> None:
        """Start, send SIGKILL to the last rank once it has logged `step` steps, and wait until torchrun exits."""
        rank = self.world_size - 1
        log = log_path(self.run, rank, self.world_size)
        with self._torchrun() as torchrun:
            while not log.exists() or log.read_bytes().count(b"\n") <= step:
                if torchrun.poll() is not None:
                    self._fail(f"torchrun ended on its own, with status {torchrun.returncode}")
                time.sleep(0.01)
            os.kill(read_lines(self.run, self.world_size)[rank][0]["pid"], signal.SIGKILL)
            torchrun.wait()

    def finish(self) -> None:
        """Start, and wait for torchrun, which must succeed."""
        with self._torchrun() as torchrun:
            if torchrun.wait() != 0:
                self._fail(f"torchrun failed with status {torchrun.returncode}")

    @property
    def _errors(self) -> Path:
        return self.run / f"torchrun-{self.world_size}.log"

    @contextmanager
    def _torchrun(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start torchrun; it and its ranks are terminated at the end, if they are still running."""
        ranks = f"--nproc-per-node={self.world_size}"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        with self._errors.open("wb") as errors:
            torchrun = subprocess.Popen([*launcher, self.script, *self.arguments], stderr=errors, env=environment)
        try:
            yield torchrun
        finally:
            torchrun.terminate()
            torchrun.wait()

    def _fail(self, reason: str) -> NoReturn:
        """Print what torchrun and its ranks wrote to stderr, and exit."""
        print(self._errors.read_text(), file=sys.stderr)
        raise SystemExit(reason)


def show_claims(claims: Mapping[str, bool]) -> bool:
    """Print whether each claim holds, and return whether all do."""
    for claim, holds in claims.items():
        print(f"  {'yes' if holds else 'NO '}   {claim}")
    return all(claims.values())
