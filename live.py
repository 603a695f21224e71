"""Live pictures: cameras, the window and its keys, recordings, and how much is sharpened when the machine is busy.

`play` takes frames from a source (`Camera` or `Schedule`), and shows them on a screen (`Window` or `VirtualCamera`). A
source gives ``(frame, taken, due)``: a camera's uint8 BGR picture ``(H, W, 3)`` or a file's `video.Frame`, when it was
taken, and when it is to be shown (None: at once), in seconds of `time.perf_counter`; or three times None where none
came, so that a window can answer.

Everything that goes wrong with a camera or a window is a `video.VideoError` whose message says what to do.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import subprocess
import sys
import threading
import time
from array import array
from collections import deque
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import cv2  # before av: see video.py
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from images import Picture, VideoError, quiet_opencv, write_image
from pipeline import write_behind
from utils import bgr_to_planes, to_limited_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoWriter

_PATIENCE = 0.15  # seconds that a live stream's frame may be late: a few intervals
_CLOCK_JUMP = 10  # seconds between two time stamps: the stream began anew
_TICK = 0.1  # seconds without a frame after which a window answers keys all the same
_RETRY = 1.0  # seconds between attempts to open a camera that is gone
_QUEUE = 8  # frames that wait for an encoder: at 1080p, 50 MB

KEYS = (
    ("space", "sharpening on / off"),
    ("+  -", "strength"),
    ("c", "before | after"),
    ("[  ]  mouse", "move the divider"),
    ("p", "save a picture"),
    ("r", "start / stop recording"),
    ("f", "full screen"),
    ("o", "this text on / off"),
    ("h", "help"),
    ("q  Esc", "quit"),
)
_TOGGLES = {  # key -> attribute of `Controls`
    " ": "sharpening",
    "c": "comparing",
    "r": "recording",
    "f": "full_screen",
    "o": "overlay",
    "h": "help",
}
# What cv2.waitKeyEx returns for keys that are no character: X11, Windows, macOS.
_KEY_NAMES = {
    **dict.fromkeys((0xFF51, 0x250000, 0xF702), "left"),
    **dict.fromkeys((0xFF53, 0x270000, 0xF703), "right"),
    **{0xFFAB: "+", 0xFFAD: "-"},  # of the number block
}

log = logging.getLogger(__name__)


# ----------------------------------------------------------------------------------------------------------------------
# Sources


def is_camera(source):
    """Whether `source` is a camera's index or a device path, and no file or URL."""
    return isinstance(source, int) or str(source).startswith(("/dev/video", "/dev/v4l/"))


class Camera:
    """A camera whose newest frame is always at hand; a thread drops those that nobody was in time for.

    One that is unplugged is looked for every second; its frames then go on.

    Args:
        source: number of the camera, 0 is the first, or a device path.
        size, rate: ``(width, height)`` and frames per second to ask for; the camera takes what is nearest to them.
        patience: seconds to wait for a camera that is gone.

    Attributes:
        size: ``(width, height)`` in pixels.
        rate: frames per second that the camera promises.
        dropped: frames that nobody was in time for.
        note: what the user should know; usually nothing.

    Raises:
        VideoError: it cannot be opened.
    """

    def __init__(self, source=0, size=None, rate=None, patience=30.0):
        self.source, self._asked, self._patience = source, (size, rate), patience
        self._capture, self.dropped, self.note = None, 0, ""
        try:
            first = self._open()
            if first is None:
                raise VideoError(
                    f"camera {source} cannot be opened: plug it in, close programs that use it, allow access to it, or "
                    "name a file to sharpen"
                )
            self._newest = first, time.perf_counter()
            self._ended, self._stop, self._changed = False, threading.Event(), threading.Condition()
            self._thread = threading.Thread(target=self._drain, name="camera", daemon=True)
            self._thread.start()
        except BaseException:
            self._release()
            raise

    def __iter__(self):
        """Give newest frames until the camera is gone, which ends the iteration with a warning: a recording is kept."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended, _TICK)
                newest, self._newest = self._newest, None
            if newest is not None:
                yield *newest, None
            elif self._ended:
                log.warning("camera %s gives no more frames: is it still plugged in?", self.source)
                return
            else:
                yield None, None, None

    def close(self):
        """Stop the thread and release the camera."""
        self._stop.set()
        self._thread.join()
        self._release()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _open(self):
        """Open the camera with the settings asked for; returns its first frame, or None."""
        size, rate = self._asked
        with quiet_opencv():
            if sys.platform.startswith("linux") and not isinstance(self.source, int):
                self._capture = cv2.VideoCapture(self.source, cv2.CAP_V4L2)  # FFmpeg would take it for a file
            else:
                self._capture = cv2.VideoCapture(self.source)
            if not self._capture.isOpened():
                return None
            if size and size[0] * size[1] > 640 * 480:  # more than USB 2 carries uncompressed
                self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            if size:
                self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
                self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
            if rate:
                self._capture.set(cv2.CAP_PROP_FPS, float(rate))
            arrived, first = self._capture.read()
        if not arrived:
            return None
        self.size = (first.shape[1], first.shape[0])
        self.rate = Fraction(self._capture.get(cv2.CAP_PROP_FPS) or 30).limit_denominator(1001)
        self._report()
        return first

    def _report(self):
        size, rate = self._asked
        asked = "x".join(map(str, size)) if size else ""
        asked += f" at {float(rate):g} FPS" if rate else ""
        given = "{}x{} at {:g}".format(*self.size, round(float(self.rate), 2))
        differs = (size and tuple(size) != self.size) or (rate and abs(self.rate - rate) > 0.5)
        level = logging.WARNING if differs else logging.INFO
        log.log(level, "camera %s: %sgives %s", self.source, f"asked for {asked.strip()}, " if asked else "", given)

    def _release(self):
        if self._capture is not None:
            self._capture.release()

    def _drain(self):
        try:
            while not self._stop.is_set():
                arrived, frame = self._capture.read()
                if not arrived:
                    frame = self._reopen()
                if frame is None:
                    return
                with self._changed:
                    self.dropped += self._newest is not None
                    self._newest = frame, time.perf_counter()
                    self._changed.notify()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _reopen(self):
        """Wait for a camera that is gone; returns its next frame, or None."""
        end = time.perf_counter() + self._patience
        self.note = f"camera {self.source} is gone"
        log.warning("camera %s is gone: waiting up to %g s for it", self.source, self._patience)
        self._release()
        while not self._stop.wait(_RETRY) and time.perf_counter() < end:
            frame = self._open()
            if frame is not None:
                self.note = ""
                log.warning("camera %s is back", self.source)
                return frame
            self._release()
        return None


class Schedule:
    """A file or stream of which every frame has its time, as a source.

    Frames of a live stream are due when they come: what is early shows that those before it were late. Those that are
    more than `_PATIENCE` late are left out, so that it does not lag behind; one a second is given whatever happens. A
    thousandth of the time is forgiven, as the sender's clock may be slower than ours.

    Args:
        frames: iterable of ``(frame, seconds)``, the first of which is due now, and of None where none has come yet.
        live: whether it comes at its own rate, and not as fast as it is read.

    Attributes:
        dropped: frames that were left out.
        note: nothing; see `Camera`.
    """

    note = ""

    def __init__(self, frames, live):
        self._frames, self._live, self.dropped = frames, live, 0

    def __iter__(self):
        begin, previous, given = None, None, -np.inf
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
            if not self._live or now - due <= _PATIENCE or now - given >= 1:
                given = now
                yield frame, now, due
            else:
                self.dropped += 1


# ----------------------------------------------------------------------------------------------------------------------
# The window


@dataclasses.dataclass
class Controls:
    """What the user has chosen. Keys and the mouse change it and do nothing else.

    Attributes:
        strength: see `inference.RealTimeSharpener`; keys change it within 0-2.
        divider: where before and after meet, 0 (left) to 1 (right).
        picture: whether one is to be saved.
    """

    strength: float = 1.0
    comparing: bool = False
    sharpening: bool = True
    divider: float = 0.5
    overlay: bool = True
    help: bool = False
    full_screen: bool = False
    recording: bool = False
    picture: bool = False
    closed: bool = False

    def press(self, key):
        """Take in a key: a character, ``left`` or ``right``; others do nothing."""
        stronger, moved = {"+": 0.1, "=": 0.1, "-": -0.1}, {"left": -0.02, "[": -0.02, "right": 0.02, "]": 0.02}
        if key in _TOGGLES:
            setattr(self, _TOGGLES[key], not getattr(self, _TOGGLES[key]))
        elif key in stronger:
            self.strength = min(max(round(self.strength + stronger[key], 1), 0.0), 2.0)
        elif key in moved and self.comparing:
            self.drag(self.divider + moved[key])
        elif key == "p":
            self.picture = True
        elif key in ("q", "esc"):
            self.closed = True

    def drag(self, position):
        """Move the divider to `position`, 0-1, where there is one."""
        if self.comparing:
            self.divider = min(max(position, 0.0), 1.0)


def key_name(code):
    """The key that `cv2.waitKeyEx` means: a character in lower case, a name, or "" for none."""
    low = code & 0xFFFF  # GTK puts the state of shift and the like above
    if code < 0:
        return ""
    if code in _KEY_NAMES or low in _KEY_NAMES:
        return _KEY_NAMES.get(code) or _KEY_NAMES[low]
    return "esc" if low == 27 else chr(low).lower() if 32 <= low < 127 else ""


class Window:
    """A live window, with numbers and messages over the picture; `KEYS` says what its keys do.

    Args:
        title: of the window.
        controls: the `Controls` that keys and the mouse change.
        engine: where it is computed, for the overlay.

    Raises:
        VideoError: there is no display, or OpenCV was built without windows.
    """

    def __init__(self, title, controls, engine=""):
        os.environ.setdefault("QT_LOGGING_RULES", "*.warning=false")  # Qt complains about fonts that it does not need
        check_display()
        self.title, self.controls, self._engine = title, controls, engine
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.setMouseCallback(title, self._drag)
        self._shown, self._full, self._note = None, False, ""
        self._numbers, self._refreshed = "", -np.inf
        self._message, self._expires = "", -np.inf

    def show(self, frame, milliseconds=1, note="", meter=None):
        """Show a frame, and a note over it and in the title; handle keys for at least `milliseconds`.

        What is drawn over `frame` is removed again, which is faster than a copy.
        """
        if self._shown is None:
            height, width = frame.shape[:2]
            scale = min(1, 1280 / width, 720 / height)  # most screens have room for that
            cv2.resizeWindow(self.title, round(scale * width), round(scale * height))
        self._shown = frame
        covered = [draw_panel(frame, panel, *corner) for panel, corner in self._panels(frame, note, meter)]
        cv2.imshow(self.title, frame)
        for region, below in reversed(covered):
            region[:] = below
        if note != self._note:
            cv2.setWindowTitle(self.title, f"{self.title} - {note}" if note else self.title)
            self._note = note
        self.controls.press(key_name(cv2.waitKeyEx(max(round(milliseconds), 1))))
        if not self._visible():
            self.controls.closed = True
        elif self.controls.full_screen != self._full:
            self._full = self.controls.full_screen
            state = cv2.WINDOW_FULLSCREEN if self._full else cv2.WINDOW_NORMAL
            cv2.setWindowProperty(self.title, cv2.WND_PROP_FULLSCREEN, state)

    def idle(self, note=""):
        """Handle keys where there is no new frame."""
        if self._shown is not None:
            self.show(self._shown.copy(), note=note)  # somebody may be encoding it

    def say(self, message, seconds=4):
        """Show a message for some seconds."""
        self._message, self._expires = message, time.perf_counter() + seconds

    def close(self):
        """Destroy the window; closing it twice does no harm."""
        with contextlib.suppress(cv2.error):  # the user may have closed it already
            cv2.destroyWindow(self.title)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _panels(self, frame, note, meter):
        """Pairs of a panel and its corner ``(left, top)``."""
        now, controls = time.perf_counter(), self.controls
        if meter is not None and now - self._refreshed >= 0.5:  # faster, nobody could read them, and drawing takes time
            self._numbers, self._refreshed = meter.text, now
        size = min(max(round(frame.shape[0] / 45), 11), 48)
        message = self._message if now < self._expires else ""
        state = state_line(controls)
        recording = "recording" if controls.recording else ""
        lines = (state, self._numbers, self._engine, recording, note) if controls.overlay else ()
        lines = tuple(line for line in (*lines, message) if line)
        panels = []
        if lines:
            panels.append((text_panel(lines, size), (size // 2, size // 2)))
        if controls.help:
            panel = text_panel(tuple(f"{key}\t{meaning}" for key, meaning in KEYS), round(1.2 * size))
            top, left = ((frame.shape[axis] - panel.shape[axis]) // 2 for axis in (0, 1))
            panels.append((panel, (max(left, 0), max(top, 0))))
        return panels

    def _visible(self):
        try:
            return cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # Qt's answer where the last window is closed
            return False

    def _drag(self, event, x, y, flags, _):
        if flags & cv2.EVENT_FLAG_LBUTTON and self._shown is not None:
            self.controls.drag(x / self._shown.shape[1])


def state_line(controls):
    """What the overlay says of `Controls`."""
    return f"sharpening on, strength {controls.strength:.1f}" if controls.sharpening else "sharpening off"


@functools.lru_cache(maxsize=8)
def text_panel(lines, size):
    """White text on black, uint8 ``(H, W, 3)``, for `draw_panel`.

    Args:
        lines: tuple of lines; after a tab, text stands in a second column.
        size: of the font in pixels.
    """
    font, step, margin = ImageFont.load_default(size), round(1.35 * size), round(0.5 * size)
    rows = [line.partition("\t") for line in lines]
    second = max((font.getlength(first) for first, tab, _ in rows if tab), default=0) + 2 * size
    width = max(second + font.getlength(rest) if tab else font.getlength(first) for first, tab, rest in rows)
    picture = Image.new("L", (round(width) + 2 * margin, step * len(rows) + 2 * margin))
    draw = ImageDraw.Draw(picture)
    for index, (first, _, rest) in enumerate(rows):
        draw.text((margin, margin + step * index), first, 255, font)
        draw.text((margin + second, margin + step * index), rest, 255, font)
    return cv2.merge([np.asarray(picture)] * 3)


def draw_panel(frame, panel, left, top):
    """Draw a panel's text on darkened pixels of `frame`, in place; returns the region and what it held before."""
    region = frame[top : top + panel.shape[0], left : left + panel.shape[1]]
    below = region.copy()
    if below.size:
        region[:] = cv2.addWeighted(below, 0.3, panel[: below.shape[0], : below.shape[1]], 1, 0)
    return region, below


def divide_frames(original, sharp, divider=0.5):
    """`original` left of `divider` (0-1) and `sharp` right of it, with a line between that light and dark show.

    Both are ``(H, W)`` or ``(H, W, 3)`` of uint8 or uint16.
    """
    width = sharp.shape[1]
    column = round(divider * width)
    joined = sharp.copy()
    joined[:, :column] = original[:, :column]
    joined[:, max(column - 2, 0) : column + 2] = 0
    joined[:, max(column - 1, 0) : column + 1] = np.iinfo(joined.dtype).max
    return joined


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


# ----------------------------------------------------------------------------------------------------------------------
# The loop


class LoadController:
    """Decides how much of a live window is sharpened, so that it fits a budget. It has no clock: it is told the costs.

    Level 1 leaves every other frame out: half the rate is a small loss in a call, while sharp and soft frames in turn
    would flicker, and the last frame's residual on a picture that moved leaves ghosts. Where that is too much as well,
    level 2 shows all frames as they came. There a frame is sharpened now and then, to see what that costs.

    It steps down where the median of the last costs is beyond the level's budget, and up where for 3 s the median was
    within 90 % of the upper level's. After a step up that did not hold for a minute it waits twice as long, up to a
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
    _HALF, _BYPASS = 1, 2
    _BEGINNING = 15  # frames that do not count: everything is slower at first

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
        return self.level == self._BYPASS

    @property
    def sharpens(self):
        """Whether the frame taken last is to be sharpened, and its cost to be told to `add`."""
        return not self.bypassed or self._probing

    @property
    def note(self):
        """What the user should know; nothing at level 0."""
        return f"{self.LEVELS[self.level]} (this machine is busy)" if self.level else ""

    def takes_next(self):
        """Whether the source's next frame is to be shown; to be asked once for each that comes."""
        self._now += 1
        self._probing = self.level == self._BYPASS and self._now >= self._probe
        taken = self.level != self._HALF or self._now % 2 == 0
        self.frames[self.LEVELS[self.level]] += taken
        return taken

    def add(self, milliseconds):
        """Take in what sharpening and showing a frame took, and change the level where that calls for it."""
        if self._now <= self._BEGINNING:
            return
        costs = self._probes if self._probing else self._costs
        costs.append(milliseconds)
        cost = np.median(costs)
        if not self._probing and len(costs) == costs.maxlen and cost > self._limit(self.level):
            held = self._now - self._raised >= 60 * self._second
            self._patience = 3 * self._second if held else min(2 * self._patience, 60 * self._second)
            self._step(self.level + 1)
        elif self._probing or self.level == self._HALF:  # which sharpens a frame as the level above does
            ample = 0.9 * self._limit(self.level - 1)
            # A probe delays the picture: while they are in vain, they become rare.
            self._pause = min(2 * self._pause, 10 * self._second) if milliseconds > ample else self._second
            self._probe = self._now + self._pause
            if cost > ample:
                self._calm = self._now
            elif self._now - self._calm >= self._patience:
                self._raised = self._now
                self._step(self.level - 1)

    def _limit(self, level):
        """Milliseconds that a frame that is shown may take: where every other is left out, there is time for two."""
        return self._budget * (2 if level == self._HALF else 1)

    def _step(self, level):
        log.info("from %s to %s", self.LEVELS[self.level], self.LEVELS[level])
        self._enter(level)

    def _enter(self, level):
        self.level, self._calm, self._pause = level, self._now, self._second
        self._probe, self._probing = self._now + self._pause, False
        # Medians, as a busy machine has spikes; of few probes, which come one by one.
        self._costs, self._probes = deque(maxlen=15), deque(maxlen=3)


class Meter:
    """Measures what the user sees.

    Attributes:
        dropped: frames of the source that were not shown.
    """

    def __init__(self):
        self.dropped = 0
        self._times, self._latencies = deque(maxlen=31), array("f")

    def add(self, seconds, milliseconds):
        """Take in when a frame was shown, and how much later than it came, not counting the wait for its time."""
        self._times.append(seconds)
        self._latencies.append(milliseconds)

    @property
    def text(self):
        """Rate and latency of the last frames."""
        span = self._times[-1] - self._times[0] if self._times else 0
        rate = (len(self._times) - 1) / span if span else 0
        latency = np.mean(self._latencies[-30:]) if self._latencies else 0
        return f"{rate:.0f} FPS, {latency:.0f} ms, {self.dropped} dropped"

    @property
    def stats(self):
        """dict: ``dropped`` frames, and ``latency_ms`` and ``latency_p95_ms``, mean and 95th percentile."""
        latencies = self._latencies or [0]
        mean, high = float(np.mean(latencies)), float(np.percentile(latencies, 95))
        return {"dropped": self.dropped, "latency_ms": mean, "latency_p95_ms": high}


def play(source, sharpen, screen, load, meter, keeper=None):
    """Show what a source gives until it ends or the user closes the screen; yields each picture shown.

    Args:
        source: `Camera` or `Schedule`.
        sharpen: function of a frame and a strength; gives a uint8 BGR picture. At strength 0 that shows the frame as
            it came.
        screen: `Window` or `VirtualCamera`.
        load: `LoadController`.
        meter: `Meter`.
        keeper: `Keeper`, or None.
    """
    controls, left_out = screen.controls, 0
    for frame, taken, due in source:
        if frame is None:
            screen.idle(source.note)
        elif controls.sharpening and not load.takes_next():
            left_out += 1
        else:
            begin, timed = time.perf_counter(), controls.sharpening and load.sharpens
            plain = not timed or load.bypassed
            sharp = sharpen(frame, controls.strength) if timed else None
            came = sharpen(frame, 0) if plain or controls.comparing else None
            sharp = came if plain else sharp
            shown = divide_frames(came, sharp, controls.divider) if controls.comparing else sharp
            meter.dropped = source.dropped + left_out
            ready = time.perf_counter()
            wait = 0 if due is None else max(due - ready, 0)  # a file plays at its own rate
            screen.show(shown, 1000 * wait, load.note if controls.sharpening else "", meter)
            now = time.perf_counter()
            drawing = max(now - ready - wait, 0)  # it draws while it waits, and a key ends the wait
            meter.add(now, 1000 * (ready - taken + drawing))
            if timed:
                load.add(1000 * (ready - begin + drawing))
            if keeper is not None:
                if controls.picture and plain:
                    sharp = sharpen(frame, controls.strength)
                keeper.keep(controls, sharp, shown)
            yield shown
        if controls.closed:
            return


# ----------------------------------------------------------------------------------------------------------------------
# Where pictures go to


class Recorder:
    """Encodes live pictures to a file, in a thread of its own; their time stamps are when they were added.

    Ctrl-C within the block ends it, and keeps the recording if there is one. Another error leaves no file.

    Args:
        path: see `video.VideoWriter`.
        size: ``(width, height)``.
        rate: frames per second, about.
        codec, quality: see `video.VideoWriter`.

    Attributes:
        frames: how many are encoded.

    Raises:
        VideoError: the file cannot be written.
    """

    def __init__(self, path, size, rate, codec=None, quality=None):
        # Milliseconds as time base, as cameras slow down in the dark.
        video_format = VideoFormat(*size, rate, Fraction(1, 1000), **BT601_LIMITED)
        self.path, self.size, self.frames, self._added = path, size, 0, 0
        self._begin = time.perf_counter()
        with contextlib.ExitStack() as stack:
            self._writer = stack.enter_context(VideoWriter(path, video_format, None, quality, codec))
            self._write = stack.enter_context(write_behind(self._encode, _QUEUE))
            self._stack = stack.pop_all()

    @property
    def full(self):
        """Whether adding a picture would wait for the encoder."""
        return self._added - self.frames >= _QUEUE

    def add(self, picture):
        """Encode a uint8 BGR picture ``(H, W, 3)``, which must not change any more."""
        self._added += 1
        try:
            self._write((picture, round(1000 * (time.perf_counter() - self._begin))))
        except Exception as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise

    def close(self):
        """Wait for the encoder and complete the file."""
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is KeyboardInterrupt and self._added:
            self.close()
            return True
        return self._stack.__exit__(kind, error, traceback)

    def _encode(self, item):
        picture, pts = item
        self._writer.write(Frame(*to_limited_range(*bgr_to_planes(picture)), pts))
        self.frames += 1


class Keeper:
    """Saves what the user asks for by key, pictures and recordings, in threads of their own.

    Args:
        say: function that tells the user a message.
        rate: of the source, in frames per second.
        folder: where files go to; the current one.
    """

    def __init__(self, say, rate, folder="."):
        self._say, self._rate, self._folder, self._recorder = say, rate, Path(folder), None

    def __enter__(self):
        self._saving, self._unsaved = write_behind(self._save), threading.Semaphore(2)
        self._write = self._saving.__enter__()
        return self

    def __exit__(self, *error):
        try:
            self._stop()
        finally:
            self._saving.__exit__(*error)

    def keep(self, controls, sharp, shown):
        """Save `sharp` if a picture is asked for, and record `shown` while a recording is."""
        if controls.picture:
            controls.picture = False
            if self._unsaved.acquire(blocking=False):
                self._write((self._path(".png"), sharp))
            else:  # the live picture does not wait
                self._tell("not saved: those before are still being written")
        size = shown.shape[1::-1]
        if self._recorder and not (controls.recording and size == self._recorder.size):
            controls.recording = False
            self._stop()
        if not controls.recording:
            return
        try:
            if self._recorder is None:
                self._recorder = Recorder(self._path(".mp4"), size, self._rate)
            if not self._recorder.full:  # the picture does not wait
                self._recorder.add(shown)
        except VideoError as error:
            controls.recording, self._recorder = False, None
            self._tell(str(error))

    def _stop(self):
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            try:
                recorder.close()
                self._tell(f"recorded {recorder.path}")
            except VideoError as error:
                self._tell(str(error))

    def _save(self, item):
        path, picture = item
        try:
            write_image(path, Picture(picture))
            self._tell(f"saved {path}")
        except (VideoError, OSError) as error:
            self._tell(str(error))
        finally:
            self._unsaved.release()

    def _tell(self, message):
        log.info("%s", message)
        self._say(message)

    def _path(self, suffix):
        now = datetime.now().isoformat("_", "milliseconds").replace(":", "-").replace(".", "-")
        return self._folder / f"sharpened_{now}{suffix}"


class VirtualCamera:
    """Offers pictures to other programs as a camera, with pyvirtualcam; its size is that of the first.

    pyvirtualcam is under the GNU GPL 2 and no part of this project: it is only loaded where the user has installed it.

    Args:
        rate: frames per second to announce.
        controls: `Controls`; nobody changes them here.

    Raises:
        VideoError: pyvirtualcam or a virtual camera is missing; the message says how to get it.
    """

    def __init__(self, rate, controls):
        try:
            import pyvirtualcam
        except ImportError as error:
            raise VideoError(
                "a virtual camera needs pyvirtualcam, which is separate software under the GNU GPL 2: "
                "pip install pyvirtualcam"
            ) from error
        self._library, self._rate, self._camera = pyvirtualcam, float(rate), None
        self.controls = controls

    def show(self, frame, milliseconds=0, note="", meter=None):
        """Send a uint8 BGR frame ``(H, W, 3)`` after `milliseconds`."""
        if self._camera is None:
            self._camera = self._open(frame.shape[1], frame.shape[0])
        size = self._camera.width, self._camera.height
        if frame.shape[1::-1] != size:  # of odd size, or another camera was plugged in
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        if milliseconds > 0:
            time.sleep(milliseconds / 1000)
        self._camera.send(frame)

    def idle(self, note=""):
        """Programs keep seeing the last frame."""

    def close(self):
        """Withdraw the camera."""
        if self._camera is not None:
            self._camera.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _open(self, width, height):
        try:
            camera = self._library.Camera(
                width=width + width % 2,  # the formats that programs ask for halve the chroma
                height=height + height % 2,
                fps=self._rate,
                fmt=self._library.PixelFormat.BGR,
            )
        except RuntimeError as error:
            raise VideoError(f"there is no virtual camera: {_virtual_camera_advice()}") from error
        log.info("virtual camera %s: %dx%d; Ctrl-C ends it", camera.device, camera.width, camera.height)
        return camera


def _virtual_camera_advice():
    if sys.platform.startswith("linux"):
        return (
            "install v4l2loopback (package v4l2loopback-dkms), then: sudo modprobe v4l2loopback devices=1 "
            'exclusive_caps=1 card_label="Sharpened"'
        )
    if sys.platform == "darwin":
        return "install OBS Studio, start its virtual camera once and stop it again"
    return "install OBS Studio, and close OBS if its virtual camera is running"
