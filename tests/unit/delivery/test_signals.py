"""Signals that are held back, and handled afterwards."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from laneway.delivery.signals import holding_back_signals, release_signals
from tests.waiting import wait_until


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
