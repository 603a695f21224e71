"""Sharpen live: cameras, timed streams, and control of the load on a busy machine.

`play` takes frames from a source (`Camera`, `TimedSource` or `screen.Screen`), sharpens them, and shows them on a
display (`window.Window`, `window.VirtualCamera` or `window.Recorder`).

A source yields ``(frame, taken, due)``: a camera's picture ``(H, W, 3)`` uint8 BGR or a file's `video.Frame`, when it
was taken, and when to show it (None: at once), in seconds of `time.perf_counter`. All three are None if no frame has
come for a moment, so that a window can answer keys.
"""

import contextlib
import logging
import sys
import threading
import time
from collections import deque
from fractions import Fraction

import cv2  # before av: see video.py
import numpy as np

from conversion import divide_pixels
from images import VideoError, quiet_opencv

_MAX_DELAY = 0.15  # seconds that a frame of a live stream may be late: a few intervals
_CLOCK_JUMP = 10  # seconds between two time stamps: the stream began anew
_IDLE_INTERVAL = 0.1  # seconds without a frame after which a source yields None

SHARPEN, SKIP, PASS, PROBE = "sharpen", "skip", "pass", "probe"  # see `LoadController.next_action`

log = logging.getLogger(__name__)


def is_camera(source):
    """Return whether `source` is a camera's index or device path, not a file or URL."""
    return isinstance(source, int) or str(source).startswith(("/dev/video", "/dev/v4l/"))


class Camera(contextlib.AbstractContextManager):
    """Yields the newest frame of a camera; a thread reads them and drops those that come too fast.

    Args:
        source: index of the camera from 0, or a device path.
        size: ``(width, height)`` to ask for; the camera takes the nearest that it has.

    Attributes:
        size: ``(width, height)`` in pixels.
        rate: frames per second that the camera promises.
        dropped: number of dropped frames.

    Raises:
        VideoError: the camera cannot be opened.
    """

    def __init__(self, source=0, size=None):
        self.source, self.dropped = source, 0
        self._newest = self._open(size), time.perf_counter()
        self._ended, self._stop, self._changed = False, threading.Event(), threading.Condition()
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()

    def __iter__(self):
        """Yield newest frames until the camera is unplugged, which is no error."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended, _IDLE_INTERVAL)
                newest, self._newest = self._newest, None
            if newest is not None:
                yield *newest, None
            elif self._ended:
                log.warning("camera %s gives no more frames: is it still plugged in?", self.source)
                return
            else:
                yield None, None, None

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()
        self._capture.release()

    def _open(self, size):
        """Open the camera; return its first frame."""
        by_path = sys.platform.startswith("linux") and not isinstance(self.source, int)  # FFmpeg takes it for a file
        with quiet_opencv():
            self._capture = cv2.VideoCapture(self.source, cv2.CAP_V4L2 if by_path else cv2.CAP_ANY)
            if size and size[0] * size[1] > 640 * 480:  # more than USB 2 carries uncompressed
                self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            if size:
                self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
                self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
            arrived, first = self._capture.read()
        if not arrived:
            self._capture.release()
            advice = "plug it in, close programs that use it, allow access to it, or name a file to sharpen"
            raise VideoError(f"camera {self.source} cannot be opened: {advice}")
        self.size = (first.shape[1], first.shape[0])
        self.rate = Fraction(_plausible(self._capture.get(cv2.CAP_PROP_FPS))).limit_denominator(1001)
        log.info("camera %s gives %dx%d at %g FPS", self.source, *self.size, float(self.rate))
        return first

    def _read(self):
        """Keep the newest frame until the camera is closed or unplugged; runs in the thread."""
        with contextlib.suppress(cv2.error):  # some drivers raise it when a camera is unplugged
            while not self._stop.is_set():
                arrived, frame = self._capture.read()
                if not arrived:
                    break
                with self._changed:
                    self.dropped += self._newest is not None
                    self._newest = frame, time.perf_counter()
                    self._changed.notify()
        with self._changed:
            self._ended = True
            self._changed.notify()


class TimedSource:
    """Yields the frames of a file or stream with the times to show them.

    A file plays whole, at its own rate. Frames of a live stream are due when they come; a frame that comes early shows
    that those before it were late. Frames more than `_MAX_DELAY` late are left out, but for one a second, so that the
    picture does not lag behind. The schedule yields a thousandth of the time, as the sender's clock may be slower.

    Args:
        frames: iterable of ``(frame, seconds)``, the first of which is due now, and of None if no frame has come.
        live: whether frames come at their own rate, not as fast as they are read.

    Attributes:
        rate, size, dropped: see `Camera`; size may be None.
    """

    def __init__(self, frames, live, rate, size=None):
        self._frames, self._live, self.rate, self.size, self.dropped = frames, live, rate, size, 0

    def __iter__(self):
        begin, previous, last_yielded = None, None, -np.inf
        for item in self._frames:
            if item is None:
                yield None, None, None
                continue
            (frame, seconds), now = item, time.perf_counter()
            if begin is None or (self._live and abs(seconds - previous) > _CLOCK_JUMP):
                begin = now - seconds
            elif self._live:
                begin = min(begin + (seconds - previous) / 1000, now - seconds)
            previous, due = seconds, begin + seconds
            if not self._live or now - due <= _MAX_DELAY or now - last_yielded >= 1:
                last_yielded = now
                yield frame, now, due
            else:
                self.dropped += 1


def play(source, enlarge, sharpen, display, controls, load, meter):
    """Show the frames of a source until it ends or the user closes the display; yield each picture shown.

    Args:
        source, display: see the module.
        enlarge: function that brings a frame to the wanted size.
        sharpen: function of an enlarged frame and a strength that returns ``(H, W, 3)`` uint8 BGR; at 0 unsharpened.
        controls, load, meter: a `window.Controls`, a `LoadController` and a `Meter`.
    """
    skipped = 0
    for frame, taken, due in source:
        if controls.closed:
            return
        if frame is None:
            display.idle()
            continue
        action = load.next_action() if controls.sharpening else PASS
        if action == SKIP:
            skipped += 1
            continue

        begin = time.perf_counter()
        frame = enlarge(frame)
        after = None if action == PASS else sharpen(frame, controls.strength)
        before = sharpen(frame, 0) if action != SHARPEN or controls.comparing else None
        if action != SHARPEN:  # a probe only measures the cost
            after = before
        shown = divide_pixels(before, after, controls.divider) if controls.comparing else after

        ready = time.perf_counter()
        wait = 0 if due is None else max(due - ready, 0)
        meter.dropped, meter.sizes = source.dropped + skipped, (source.size, shown.shape[1::-1])
        display.show(shown, 1000 * wait, load.note if controls.sharpening else "", meter)
        now = time.perf_counter()
        drawing = max(now - ready - wait, 0)  # the display draws while it waits, and a key ends the wait
        meter.add(now, 1000 * (ready - taken + drawing))
        if action != PASS:
            load.add(1000 * (ready - begin + drawing))
        yield shown


class LoadController:
    """Decides which live frames are sharpened, to fit a budget. It has no clock: it is told the costs.

    There are three levels. "Every other frame" leaves out half of the frames: half the rate is a small loss in a call,
    while sharp and soft frames in turn would flicker. If that is too slow, too, all frames are shown "not sharpened",
    and a probe now and then (a frame is sharpened, but shown as it came) measures the cost.

    The level goes down if the median of the last costs exceeds its budget, and up if for 3 s the median was within 90 %
    of the upper level's. After a step up that did not hold for a minute, the next one waits twice as long, up to a
    minute, so that the level does not swing.

    Args:
        budget: milliseconds that a frame of the source may take; None for the source's interval, 0 for no limit.
        rate: frames per second of the source; 30 if it is absurd. Seconds are counted in its frames.

    Attributes:
        level: index into `LEVELS`.
        frames: dict from the name of each level to the number of frames shown at it while the user had sharpening on.

    Raises:
        ValueError: the budget is not a number from 0.
    """

    LEVELS = ("every frame", "every other frame", "not sharpened")
    _HALF, _BYPASS = 1, 2
    _WARM_UP = 15  # frames that do not count: everything is slower at first

    def __init__(self, budget, rate):
        if budget is not None and not budget >= 0:
            raise ValueError(f"the budget must be a number of milliseconds from 0, got {budget}")
        self._second = float(_plausible(rate))
        self._budget = 1000 / self._second if budget is None else budget or np.inf
        self._now, self._raised, self._patience = 0, -np.inf, 3 * self._second  # times in frames that came
        self.frames = dict.fromkeys(self.LEVELS, 0)
        self._enter(0)

    @property
    def note(self):
        """The level in words for the user; empty at level 0."""
        return f"{self.LEVELS[self.level]} (this machine is busy)" if self.level else ""

    def next_action(self):
        """Count the source's next frame, and return what to do with it.

        That is `SHARPEN`, `SKIP` (leave it out), `PASS` (show it as it came) or `PROBE` (likewise, but sharpen it,
        too). After `SHARPEN` and `PROBE`, tell the cost to `add`.
        """
        self._now += 1
        self._probing = self.level == self._BYPASS and self._now >= self._next_probe
        if self.level == self._HALF and self._now % 2:
            return SKIP
        self.frames[self.LEVELS[self.level]] += 1
        if self.level != self._BYPASS:
            return SHARPEN
        return PROBE if self._probing else PASS

    def add(self, milliseconds):
        """Take in the cost of sharpening and showing a frame, and change the level if necessary."""
        if self._now <= self._WARM_UP:
            return
        costs = self._probes if self._probing else self._costs
        costs.append(milliseconds)
        cost = np.median(costs)
        if not self._probing and len(costs) == costs.maxlen and cost > self._limit(self.level):
            held = self._now - self._raised >= 60 * self._second
            self._patience = 3 * self._second if held else min(2 * self._patience, 60 * self._second)
            self._enter(self.level + 1)
        elif self._probing or self.level == self._HALF:  # a frame then costs what it would at the level above
            ample = 0.9 * self._limit(self.level - 1)
            # A probe delays the picture: probes in vain become rare.
            self._pause = min(2 * self._pause, 10 * self._second) if milliseconds > ample else self._second
            self._next_probe = self._now + self._pause
            if cost > ample:
                self._calm = self._now
            elif self._now - self._calm >= self._patience:
                self._raised = self._now
                self._enter(self.level - 1)

    def _limit(self, level):
        """Milliseconds that a shown frame may take; at every other frame, there is time for two."""
        return self._budget * (2 if level == self._HALF else 1)

    def _enter(self, level):
        self.level, self._calm, self._pause = level, self._now, self._second
        self._next_probe, self._probing = self._now + self._pause, False
        self._costs, self._probes = deque(maxlen=15), deque(maxlen=3)  # for medians: a busy machine has spikes


class Meter:
    """Measures what the user sees.

    Attributes:
        dropped: frames of the source that were not shown.
        sizes: ``(width, height)`` of the source's frames and of those shown, if known.
    """

    def __init__(self):
        self.dropped, self.sizes = 0, ()
        self._times, self._latencies = deque(maxlen=31), deque(maxlen=10_000)

    def add(self, seconds, milliseconds):
        """Take in when a frame was shown, and its latency: how long after it came, without the wait for its time."""
        self._times.append(seconds)
        self._latencies.append(milliseconds)

    @property
    def text(self):
        """Rate, latency and sizes of the last frames, for the window."""
        span = self._times[-1] - self._times[0] if self._times else 0
        rate = (len(self._times) - 1) / span if span else 0
        latency = np.mean([*self._latencies][-30:] or 0)
        return f"{rate:.0f} FPS, {latency:.0f} ms, {self.dropped} dropped, {size_text(*self.sizes)}"

    @property
    def stats(self):
        """dict: ``dropped`` frames; ``latency_ms``, ``latency_p95_ms``: mean, 95th percentile of the newest 10,000."""
        latencies = self._latencies or [0]
        mean, high = float(np.mean(latencies)), float(np.percentile(latencies, 95))
        return {"dropped": self.dropped, "latency_ms": mean, "latency_p95_ms": high}


def _plausible(rate):
    """Return a source's frames per second, or 30 if absurd: drivers that do not know it say 0, -1 or nan."""
    return rate if 1 <= rate <= 240 else 30


def size_text(*sizes):
    """Return sizes as ``640x360 to 1920x1080``, each once."""
    return " to ".join("{}x{}".format(*size) for size in dict.fromkeys(sizes) if size)
