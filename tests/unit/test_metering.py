"""Counts, and seconds of stages, of the threads of a process."""

from __future__ import annotations

import threading
import time

from laneway.metering import Counts, Meter, current_meter, memory_in_use


def test_counts_are_the_same_after_they_were_sent() -> None:
    meter = Meter()
    meter.batches, meter.rows, meter.hidden_rows, meter.send_s = 3, 24, 1, 0.25
    meter.count_bytes(1 << 40)
    meter.count_retry()
    found = Counts.unpack(meter.pack())
    assert found == meter.counts()
    assert (found.batches, found.rows, found.bytes_read, found.retries, found.hidden_rows) == (3, 24, 1 << 40, 1, 1)
    assert found.plus(Counts(batches=2, memory_bytes=5)) == found._replace(batches=5, memory_bytes=5)


def test_reads_within_decoding_are_not_counted_twice() -> None:
    meter = Meter()
    with meter.on_this_thread(), meter.decoding("row group 0 of a.parquet"):
        with meter.reading():
            time.sleep(0.05)
        time.sleep(0.01)
    counts = meter.counts()
    assert counts.read_s >= 0.05
    assert counts.decode_s >= 0.01
    began = time.perf_counter()
    with meter.decoding("row group 1 of a.parquet"), meter.reading():
        time.sleep(0.05)
    elapsed = time.perf_counter() - began
    later = meter.counts()
    assert later.read_s - counts.read_s + later.decode_s - counts.decode_s <= elapsed


def test_a_meter_is_that_of_the_threads_that_use_it() -> None:
    meter, other, found = Meter(), Meter(), []
    assert current_meter() is None
    with meter.on_this_thread():
        with other.on_this_thread():
            assert current_meter() is other
        assert current_meter() is meter
        thread = threading.Thread(target=lambda: found.append(current_meter()))
        thread.start()
        thread.join()
    assert found == [None]
    assert current_meter() is None


def test_threads_lose_no_counts() -> None:
    meter = Meter()

    def count() -> None:
        for _ in range(5_000):
            meter.count_bytes(1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert meter.counts().bytes_read == 20_000


def test_memory_of_a_process_that_is_gone_is_zero() -> None:
    assert memory_in_use() > 1 << 20
    assert memory_in_use(2**22 + 1) == 0
