"""Reading ahead and writing behind: order, depth, errors and Ctrl-C."""

import os
import signal
import sys
import threading
import time

import pytest

from pipeline import read_ahead, write_behind

posix = pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process there")


def slowly(items, seconds):
    for item in items:
        time.sleep(seconds)
        yield item


@pytest.mark.parametrize("slow", ["reading", "middle", "writing", None])
def test_items_keep_their_order_and_number(threads, slow):
    written = []

    def write(item):
        time.sleep(0.003 * (slow == "writing"))
        written.append(item)

    with read_ahead(slowly(range(60), 0.003) if slow == "reading" else range(60)) as items, write_behind(write) as put:
        assert len(set(threading.enumerate()) - threads) == 2
        for item in items:
            time.sleep(0.003 * (slow == "middle"))
            put(item)
    assert written == list(range(60))


@pytest.mark.parametrize("depth", [1, 4])
def test_reading_is_ahead_by_no_more_than_the_depth(threads, depth):
    read = []
    with read_ahead((read.append(item) or item for item in range(40)), depth) as items:
        for count, _ in enumerate(items, start=1):
            most, deadline = min(count + depth + 1, 40), time.monotonic() + 10
            while len(read) < most and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(read) == most  # `depth` wait, and one in the thread's hand


@pytest.mark.parametrize("depth", [1, 4])
def test_writing_is_behind_by_no_more_than_the_depth(threads, depth):
    written, gate = [], threading.Semaphore(0)

    def write(item):
        assert gate.acquire(timeout=10)
        written.append(item)

    with write_behind(write, depth) as put:
        for item in range(depth + 1):  # nothing waits for the writer: it holds one item, the others are kept
            put(item)
        last = threading.Thread(target=put, args=[depth + 1])
        last.start()
        last.join(0.1)
        assert last.is_alive() and not written  # one more has to wait
        gate.release(depth + 2)
        last.join()
    assert written == list(range(depth + 2))


def test_what_reading_raises_comes_after_the_items_before_it(threads):
    def items():
        yield from range(3)
        raise OSError("damaged")

    seen = []
    with pytest.raises(OSError, match="damaged"), read_ahead(items()) as ahead:
        for item in ahead:
            seen.append(item)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(("fails", "count"), [(2, 10**6), (9, 10)], ids=["early", "last"])
def test_what_writing_raises_comes_back_and_ends_it(threads, fails, count):
    written, given = [], []

    def write(item):
        if item == fails:
            raise OSError(28, "No space left on device")
        written.append(item)

    with pytest.raises(OSError, match="No space"), write_behind(write) as put:
        for item in range(count):
            put(item)
            given.append(item)
    assert written == list(range(fails)) and len(given) <= fails + 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_the_block_raises_ends_both_threads(threads, error):
    written = []

    def write(item):
        time.sleep(0.3)
        written.append(item)

    endless = iter(lambda: 0, 1)
    with pytest.raises(error), read_ahead(endless) as items, write_behind(write, 4) as put:
        for count, item in enumerate(items):
            put(item)
            if count == 4:
                raise error
    assert len(written) <= 1 if error is KeyboardInterrupt else len(written) == 5  # Ctrl-C drops what waits


def press_ctrl_c(*times):
    """Interrupt the main thread after so many seconds each."""
    for seconds in times:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


@posix
def test_a_further_interrupt_does_not_leave_the_thread_behind(threads):
    done = []

    def work(item):
        time.sleep(0.6)
        done.append(item)

    with pytest.raises(KeyboardInterrupt), write_behind(work) as put:
        put("written")
        press_ctrl_c(0.2, 0.4)
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert done == ["written"]
    with pytest.raises(KeyboardInterrupt), read_ahead(work(item) for item in ["read"]):
        press_ctrl_c(0.2, 0.4)
        raise KeyboardInterrupt
    assert done == ["written", "read"]


def test_a_thread_that_waits_for_an_item_is_left_after_a_while(threads):
    begin, release = time.monotonic(), threading.Event()
    with read_ahead((release.wait(20) for _ in range(1)), tick=0.05, patience=0.2) as items:
        assert [next(items) for _ in range(3)] == [None] * 3
    assert time.monotonic() - begin < 10
    release.set()
    for thread in set(threading.enumerate()) - threads:
        thread.join()


def test_leaving_early_ends_the_thread_and_the_iterator(threads):
    with read_ahead(iter(lambda: 0, 1)) as items:
        assert next(items) == 0
    assert not list(items)
    with read_ahead(range(2)):
        pass
