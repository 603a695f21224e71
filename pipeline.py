"""Threads that let decoding, what is done with a frame, and encoding overlap.

Items are handed over in order, and an error reaches the thread that waits. Nothing here locks the objects that are
used: a reader or writer may change threads, but only one thread at a time may use it.
"""

import contextlib
import queue
import threading

_END = object()


@contextlib.contextmanager
def read_ahead(items, depth=2, tick=None, patience=2.0):
    """Iterate over `items` in a thread, at most `depth` of them ahead; gives an iterator over the same items::

        with VideoReader("call.mp4") as reader, read_ahead(reader) as frames:
            for frame in frames:
                ...

    What iterating over `items` raises, the iterator raises in its place. The thread alone uses `items`; when the block
    ends, the thread has ended, and so has the iterator.

    Args:
        tick: seconds after which the iterator gives None if there is no item; None waits.
        patience: seconds to wait for the thread at the end. If it still waits for its next item then, as for a dead
            server, it is left to itself and ends with that item.
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

    worker = Worker(produce, "read ahead")
    with contextlib.closing(consume()) as ahead:  # else iterating on would wait for ever
        try:
            yield ahead
        finally:
            leaving.set()
            slots.release()  # for a thread that waits for room
            with contextlib.suppress(Exception):  # an item that nobody asked for
                worker.wait(patience)


@contextlib.contextmanager
def write_behind(write, depth=2):
    """Call `write` in a thread, at most `depth` items behind; gives a function to call with an item instead.

    What `write` raises, that function raises when it is called next, and the end of the block does; items that still
    wait are then dropped. They are also dropped if Ctrl-C ends the block; if another exception does, they are written.
    The thread alone calls `write`; when the block ends, the thread has ended.
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
    """Call functions at the same time, the first here and each other in a thread of its own, and wait for all.

    Threads are started anew each time, which takes 0.1 ms: those of a pool would be missing after a fork and refused
    when the main thread has ended.
    """
    with contextlib.ExitStack() as stack:
        for task in tasks[1:]:
            stack.callback(Worker(task, "in parallel").wait)
        tasks[0]()


class Worker:
    """Does `work` in a thread, which Ctrl-C cannot break off and whose end can be waited for through Ctrl-C.

    With `threading.Thread.join` it cannot: up to Python 3.12 a thread counts as ended when Ctrl-C interrupts that.
    """

    def __init__(self, work, name):
        self._work, self.ended, self._failure = work, threading.Event(), None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wait(self, patience=None, on_interrupt=lambda: None):
        """Wait for the end, at most `patience` seconds, and raise what `work` raised.

        Ctrl-C calls `on_interrupt`, and is raised when the wait is over, unless `work` raised something.
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
