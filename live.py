"""Live pictures: the camera, the window, and how much is sharpened when the machine is busy.

Everything that goes wrong with a camera or a window is a `video.VideoError` whose message says what to do.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from fractions import Fraction

import cv2  # before av: see video.py
import numpy as np

from video import VideoError, quiet_opencv

_PATIENCE = 0.15  # seconds that a live stream's frame may be late: a few intervals
_CLOCK_JUMP = 10  # seconds between two time stamps: the stream began anew

log = logging.getLogger(__name__)


class Camera:
    """A camera whose newest frame is always at hand; a thread drops those that nobody was in time for.

    Args:
        index: number of the camera, 0 is the first.

    Attributes:
        size: ``(width, height)`` in pixels.
        rate: frames per second that the camera promises.

    Raises:
        VideoError: it cannot be opened.
    """

    def __init__(self, index=0):
        with quiet_opencv():
            self._capture = cv2.VideoCapture(index)
            opened, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not opened:
            self._capture.release()
            raise VideoError(
                f"camera {index} cannot be opened: plug it in, close programs that use it, allow access to it, or name "
                "a file to sharpen"
            )
        self.index = index
        self.size = (first.shape[1], first.shape[0])
        self.rate = Fraction(self._capture.get(cv2.CAP_PROP_FPS) or 30).limit_denominator(1001)
        self._newest, self._running = first, True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._drain, name="camera", daemon=True)
        self._thread.start()

    def read(self, timeout=5.0):
        """Wait for a frame that was not read before; ``(H, W, 3)`` uint8 BGR.

        Raises:
            VideoError: none came within `timeout` seconds, or the camera is gone.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or not self._running, timeout)
            frame, self._newest = self._newest, None
        if frame is None:
            raise VideoError(f"camera {self.index} gives no more frames: is it still plugged in?")
        return frame

    def __iter__(self):
        """Give newest frames until the camera is gone, which ends the iteration with a warning: a recording is kept."""
        while True:
            try:
                frame = self.read()
            except VideoError as error:
                log.warning("%s", error)
                return
            yield frame

    def close(self):
        """Stop the thread and release the camera."""
        self._running = False
        self._thread.join()
        self._capture.release()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _drain(self):
        while self._running:
            arrived, frame = self._capture.read()
            with self._changed:
                self._running = self._running and arrived
                self._newest = frame if arrived else self._newest
                self._changed.notify()


class Window:
    """A live window. Keys: q or Esc closes it, space turns sharpening on and off, c splits before and after.

    Attributes:
        closed, sharpening, comparing: what the user has chosen.

    Raises:
        VideoError: there is no display, or OpenCV was built without windows.
    """

    def __init__(self, title, comparing=False):
        os.environ.setdefault("QT_LOGGING_RULES", "*.warning=false")  # Qt complains about fonts that it does not need
        check_display()
        self.title = title
        self.closed, self.sharpening, self.comparing = False, True, comparing
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        self._sized, self._note = False, ""

    def show(self, frame, milliseconds=1, note=""):
        """Show a uint8 BGR frame ``(H, W, 3)`` and a note in the title; handle keys for at least `milliseconds`."""
        if not self._sized:
            height, width = frame.shape[:2]
            scale = min(1, 1280 / width, 720 / height)  # most screens have room for that
            cv2.resizeWindow(self.title, round(scale * width), round(scale * height))
            self._sized = True
        cv2.imshow(self.title, frame)
        if note != self._note:
            cv2.setWindowTitle(self.title, f"{self.title} - {note}" if note else self.title)
            self._note = note
        key = cv2.waitKey(max(round(milliseconds), 1)) & 0xFF
        if key in (ord("q"), 27) or cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1:
            self.closed = True
        elif key == ord(" "):
            self.sharpening = not self.sharpening
        elif key == ord("c"):
            self.comparing = not self.comparing

    def close(self):
        """Destroy the window; closing it twice does no harm."""
        with contextlib.suppress(cv2.error):  # the user may have closed it already
            cv2.destroyWindow(self.title)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def check_display():
    """Raise `VideoError` where no window can be opened.

    OpenCV's Qt aborts the whole process when it finds no display, and hangs it when PyAV was loaded before OpenCV, so a
    child process tries first, with the same order of imports.
    """
    advice = "name an output file with -o instead"
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise VideoError(f"there is no display to open a window on: {advice}")
    order = ", ".join(name for name in sys.modules if name in ("av", "cv2"))
    attempt = f"import {order}; cv2.namedWindow('display check'); cv2.destroyAllWindows()"
    try:
        subprocess.run([sys.executable, "-c", attempt], check=True, capture_output=True, timeout=15)
    except subprocess.CalledProcessError as error:
        raise VideoError(
            "no window can be opened: the display does not answer, or OpenCV is a headless build (install "
            f"opencv-python); or {advice}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise VideoError(f"opening a window hangs: import cv2 before av in your program, or {advice}") from error


class LoadController:
    """Decides how much of a live window is sharpened, so that it fits a budget. It has no clock: it is told the costs.

    Level 1 leaves every other frame out: half the rate is a small loss in a call, while sharp and soft frames in turn
    would flicker, and the last frame's residual on a picture that moved leaves ghosts. Where that is too much as well,
    level 2 shows all frames as they came, and has one sharpened now and then only to see what it costs.

    It steps down where the median of the last costs is beyond the level's budget, and up where for 3 s the median was
    within 75 % of the upper level's. After a step up that did not hold for a minute it waits twice as long, up to a
    minute, so that it does not swing.

    Args:
        budget: milliseconds that a frame of the source may take; None for the source's interval, 0 for no limit.
        rate: frames per second of the source; taken for 30 where it is absurd. Seconds are counted in its frames.

    Attributes:
        level: index into `LEVELS`.
        frames: dict from level's name to the number of frames shown at it (while the user had sharpening on).

    Raises:
        ValueError: the budget is not a number from 0.
    """

    LEVELS = ("every frame", "every other frame", "not sharpened")

    def __init__(self, budget, rate):
        if budget is not None and not budget >= 0:
            raise ValueError(f"the budget must be a number of milliseconds from 0, got {budget}")
        self._second = float(rate) if 1 <= rate <= 240 else 30.0
        self._budget = 1000 / self._second if budget is None else budget or np.inf
        self._now, self._raised, self._patience = 0, -np.inf, 3 * self._second  # times in frames that came
        self.frames = dict.fromkeys(self.LEVELS, 0)
        self._enter(0)

    @property
    def bypassed(self):
        """Whether frames are shown as they came, even those that are sharpened."""
        return self.level == 2

    @property
    def sharpens(self):
        """Whether the frame taken last is to be sharpened, and its cost to be told to `add`."""
        return not self.bypassed or self._now >= self._probe

    @property
    def note(self):
        """What the user should know; nothing at level 0."""
        return f"{self.LEVELS[self.level]} (this machine is busy)" if self.level else ""

    def takes_next(self):
        """Whether the source's next frame is to be shown; to be asked once for each that comes."""
        self._now += 1
        taken = self.level != 1 or self._now % 2 == 0
        self.frames[self.LEVELS[self.level]] += taken
        return taken

    def add(self, milliseconds):
        """Take in what sharpening and showing a frame took, and change the level where that calls for it."""
        self._costs.append(milliseconds)
        cost, full = np.median(self._costs), len(self._costs) == self._costs.maxlen
        # Sharpening one frame costs the same at any level, and at level 1 there is time for two.
        if not self.bypassed and full and cost > self._budget * (self.level + 1):
            held = self._now - self._raised >= 60 * self._second
            self._patience = 3 * self._second if held else min(2 * self._patience, 60 * self._second)
            self._step(self.level + 1)
        elif self.level:
            ample = 0.75 * self._budget * self.level
            # A probe delays the picture: while they are in vain, they become rare.
            self._pause = min(2 * self._pause, 10 * self._second) if milliseconds > ample else self._second
            self._probe = self._now + self._pause
            if cost > ample:
                self._calm = self._now
            elif self._now - self._calm >= self._patience:
                self._raised = self._now
                self._step(self.level - 1)

    def _step(self, level):
        log.info("from %s to %s", self.LEVELS[self.level], self.LEVELS[level])
        self._enter(level)

    def _enter(self, level):
        self.level, self._calm, self._pause = level, self._now, self._second
        self._probe = self._now + self._pause
        # Medians, as a busy machine has spikes; of few probes, which come one by one.
        self._costs = deque(maxlen=3 if self.bypassed else 15)


def scheduled(frames, live):
    """Turn the time stamps of ``(frame, seconds)`` into times of `time.perf_counter`, the first being now.

    Frames of a live stream are due when they come: what is early shows that those before it were late. Those that are
    more than `_PATIENCE` late are left out, so that it does not lag behind; one a second is given whatever happens. A
    thousandth of the time is forgiven, as the sender's clock may be slower than ours.
    """
    begin, previous, given = None, None, -np.inf
    for frame, seconds in frames:
        now = time.perf_counter()
        if begin is None or (live and abs(seconds - previous) > _CLOCK_JUMP):
            begin = now - seconds
        elif live:
            begin = min(begin + (seconds - previous) / 1000, now - seconds)
        previous, due = seconds, begin + seconds
        if not live or now - due <= _PATIENCE or now - given >= 1:
            given = now
            yield frame, due
