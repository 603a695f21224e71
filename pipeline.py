"""Threads, so that reading, sharpening and writing overlap.

Items keep their order, and errors are raised in the thread that waits. Nothing locks the objects that are used: a
reader or writer may move between threads, but only one at a time may use it.
"""

import contextlib
import queue
import threading

_END = object()


@contextlib.contextmanager
def read_ahead(items, depth=2, tick=None, patience=2.0):
    """Iterate over `items` in a thread, at most `depth` of them ahead; yield an iterator over the same items::

        with VideoReader("call.mp4") as reader, read_ahead(reader) as frames:
            for frame in frames:
                ...

    An error of `items` is raised in its place. Only the thread uses `items`. Thread and iterator end with the block.

    Args:
        tick: seconds after which the iterator yields None if there is no item; None waits.
        patience: seconds to wait for the thread at the end. If it is still stuck in its next item, as with a dead
            server, it is abandoned and ends with that item.
    """
    waiting, slots, leaving = queue.SimpleQueue(), threading.Semaphore(depth), threading.Event()

    def produce():
        try:
            for item in items:
                slots.acquire()
                if leaving.is_set():
                    return
                waiting.put(item)
        finally:
            waiting.put(_END)

    def consume():
        while True:
            try:
                item = waiting.get(timeout=tick)
            except queue.Empty:
                yield None
                continue
            if item is _END:
                break
            slots.release()
            yield item
        worker.wait()

    worker, ahead = Worker(produce, "read ahead"), consume()
    try:
        yield ahead
    finally:
        leaving.set()
        slots.release()  # the thread may be waiting for room
        with contextlib.suppress(Exception):  # of an item that nobody asked for
            worker.wait(patience)
        ahead.close()  # else iterating on would wait for ever


@contextlib.contextmanager
def write_behind(write, depth=2):
    """Call `write` in a thread, at most `depth` items behind; yield a function to call with an item instead.

    An error of `write` is raised by the next call and by the end of the block; waiting items are then dropped. They are
    also dropped if Ctrl-C ends the block, but written if another exception does. The thread ends with the block.
    """
    waiting, slots, dropping = queue.SimpleQueue(), threading.Semaphore(depth), threading.Event()

    def consume():
        while (item := waiting.get()) is not _END and not dropping.is_set():
            slots.release()
            write(item)

    def enqueue(item):
        while not (worker.ended.is_set() or slots.acquire(timeout=0.1)):
            pass  # there is no room yet
        if worker.ended.is_set():
            worker.wait()
        waiting.put(item)

    worker = Worker(consume, "write behind")
    try:
        yield enqueue
    except KeyboardInterrupt:
        dropping.set()
        raise
    finally:
        waiting.put(_END)
        worker.wait(on_interrupt=dropping.set)


def in_parallel(tasks):
    """Call functions at the same time, the first here and each other in a thread of its own, and wait for all."""
    # No pool, though starting a thread takes 0.1 ms: its threads would be lost after a fork and refused at the end.
    with contextlib.ExitStack() as stack:
        for task in tasks[1:]:
            stack.callback(Worker(task, "in parallel").wait)
        tasks[0]()


class Worker:
    """Does `work` in a thread. Ctrl-C interrupts neither the work nor the wait for its end.

    `threading.Thread.join` would not do: up to Python 3.12, a thread counts as ended if Ctrl-C interrupts that.
    """

    def __init__(self, work, name):
        self._work, self.ended, self._failure = work, threading.Event(), None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wait(self, patience=None, on_interrupt=lambda: None):
        """Wait for the end, at most `patience` seconds, and raise what `work` raised.

        Ctrl-C calls `on_interrupt` at once and is raised after the wait, unless `work` raised something.
        """
        try:
            ended = self.ended.wait(patience)
        except KeyboardInterrupt:
            on_interrupt()
            self.wait(patience, on_interrupt)
            raise
        if ended:
            self._thread.join()
            if self._failure:
                raise self._failure

    def _run(self):
        try:
            self._work()
        except BaseException as error:  # raised again by `wait`
            self._failure = error
        finally:
            self.ended.set()
