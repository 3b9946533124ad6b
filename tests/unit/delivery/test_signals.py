"""Signals that are held back, and handled afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from laneway.delivery.signals import holding_back_signals, release_signals
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_a_handler_waits_until_signals_are_not_held_back_though_another_thread_receives_the_signal() -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: called.append(number))
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    assert other.ident is not None
    try:
        with holding_back_signals():
            held_back = signal.getsignal(signal.SIGUSR1)
            signal.pthread_kill(other.ident, signal.SIGUSR1)
            time.sleep(0.05)
            assert called == []
        wait_until(lambda: called == [signal.SIGUSR1], lambda: "the handler is called")
        assert signal.getsignal(signal.SIGUSR1) is not held_back
    finally:
        stop.set()
        other.join()
        signal.signal(signal.SIGUSR1, before)


def test_each_signal_that_was_held_back_is_handled_even_if_the_handler_of_another_raises() -> None:
    called: list[int] = []

    def handle(number: int, _: object) -> None:
        called.append(number)
        raise KeyboardInterrupt

    def raise_both() -> None:
        with holding_back_signals():
            for number in before:
                signal.raise_signal(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with pytest.raises(KeyboardInterrupt):
            raise_both()
        assert sorted(called) == sorted(before)
        assert all(signal.getsignal(number) is handle for number in before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_forked_process_gets_its_handlers_back() -> None:
    def handle(*_: object) -> None:
        """Do nothing."""

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with holding_back_signals():
            child = os.fork()
            if child == 0:
                is_replaced = signal.getsignal(signal.SIGUSR1) is not handle
                release_signals(shielded=False)
                os._exit(7 if is_replaced and signal.getsignal(signal.SIGUSR1) is handle else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    finally:
        signal.signal(signal.SIGUSR1, before)


SERVER = """
import multiprocessing, signal, sys
import pyarrow as pa
import pyarrow.parquet as pq
from laneway import SavableLoader, StatefulShardedDataset

def held_back(queue):
    queue.put(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, set()))))

if __name__ == "__main__":
    pq.write_table(pa.table({"id": range(8)}), sys.argv[1])
    dataset = StatefulShardedDataset(sys.argv[1], batch_size=4)
    assert len([*SavableLoader(dataset, num_workers=1, multiprocessing_context="forkserver")]) == 2
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    process = context.Process(target=held_back, args=(queue,))
    process.start()
    print(queue.get(timeout=60))
    process.join()
"""


def test_processes_of_the_fork_server_hold_no_signal_back_because_workers_did(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SERVER)
    command = [sys.executable, "script.py", "data.parquet"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout == "[]\n"
