"""The screen as a source: a rectangle of it, or a monitor, as pictures for `live.play`.

mss reads the screen on Linux with X11, on Windows and on macOS.
"""

import contextlib
import os
import re
import time

import cv2
import mss
import numpy as np
from mss.exception import ScreenShotError

from images import VideoError
from utils import first_line

_LEAST_SIDE = 16  # pixels of a rectangle


def is_screen(source):
    """Return whether `source` names the screen: ``screen:``, ``screen:2`` or ``screen:100,80,1280x720``."""
    return str(source).startswith("screen:")


class Screen(contextlib.AbstractContextManager):
    """Yields pictures of a part of the screen, at most 30 a second, each taken when it is asked for.

    Args:
        source: ``screen:`` and a monitor's number from 1, a rectangle ``X,Y,WIDTHxHEIGHT`` of the desktop, or nothing.
        draw: function of a picture of the desktop that returns a rectangle ``(x, y, width, height)`` of it if the
            source names none.

    Attributes:
        size, rate, dropped: see `live.Camera`.
        region, desktop: ``(x, y, width, height)`` of the part that is shown, and of all monitors together.

    Raises:
        VideoError: the screen cannot be read, or it has no such part.
    """

    rate = 30

    def __init__(self, source="screen:", draw=None):
        if os.environ.get("WAYLAND_DISPLAY"):  # the screen would come out black
            raise VideoError(
                "Wayland does not let programs read the screen: log in to a session with X11 (Xorg); or let OBS "
                "capture the screen, start its virtual camera, and sharpen that camera"
            )
        self._mss = _call(mss.MSS)
        try:
            monitors = [_rectangle(monitor) for monitor in _call(lambda: self._mss.monitors)]
            self.desktop, self.dropped = monitors[0], 0
            text = str(source).removeprefix("screen:")
            if draw and not text:
                picture = self._grab(self.desktop)
                scale = self.desktop[2] / picture.shape[1]
                x, y, width, height = (round(side * scale) for side in draw(picture))
                text = f"{self.desktop[0] + x},{self.desktop[1] + y},{width}x{height}"
            self.region = find_region(text, monitors)
            self.size = self._grab(self.region).shape[1::-1]  # on some screens a point has several pixels
        except BaseException:
            self._mss.close()
            raise

    def __iter__(self):
        due = time.perf_counter()
        while True:
            now = time.perf_counter()
            time.sleep(max(due - now, 0))
            missed = max(int((now - due) * self.rate), 0)
            self.dropped += missed
            due += (missed + 1) / self.rate
            taken = time.perf_counter()
            yield self._grab(self.region), taken, None

    def __exit__(self, *error):
        self._mss.close()

    def free_place(self, width, height):
        """Return a place ``(x, y)`` for a window of this size beside the region, or None if there is no room."""
        x, y, across, down = self.region
        left, top, *_ = self.desktop
        for place in ((x + across, y), (x - width, y), (x, y + down), (x, y - height), (left, top)):
            window = (*place, width, height)
            if _contains(self.desktop, window) and not _overlap(window, self.region):
                return place
        return None

    def _grab(self, region):
        """Take a picture: ``(H, W, 3)`` uint8 BGR."""
        shot = _call(lambda: self._mss.grab(dict(zip(("left", "top", "width", "height"), region, strict=True))))
        return cv2.cvtColor(np.frombuffer(shot.raw, np.uint8).reshape(shot.height, shot.width, 4), cv2.COLOR_BGRA2BGR)


def find_region(text, monitors):
    """Return the rectangle that a text names, see `Screen`.

    Args:
        monitors: rectangles ``(x, y, width, height)``; the first is that of all monitors together.

    Raises:
        VideoError: it names none, or one off the screen.
    """
    if text.isdecimal() and 1 <= int(text) < len(monitors):
        return monitors[int(text)]
    numbers = re.fullmatch(r"(-?\d{1,6}),(-?\d{1,6}),(\d{1,6})x(\d{1,6})", text)
    region = tuple(map(int, numbers.groups())) if numbers else (0, 0, 0, 0)
    if min(region[2:]) < _LEAST_SIDE or not _contains(monitors[0], region):
        raise VideoError(
            f"{text or 'nothing'} is no part of the screen: write a monitor's number, 1 to {len(monitors) - 1}, or a "
            f'rectangle, such as "100,80,1280x720", of at least {_LEAST_SIDE}x{_LEAST_SIDE} pixels within '
            + "{},{},{}x{}".format(*monitors[0])
        )
    return region


def desktop_size():
    """Return ``(width, height)`` of the first monitor, or None if unknown."""
    with contextlib.suppress(VideoError, IndexError), _call(mss.MSS) as reader:
        return _call(lambda: _rectangle(reader.monitors[1])[2:])


def _call(function):
    """Call mss and turn its errors into `VideoError`."""
    try:
        return function()
    except (ScreenShotError, OSError) as error:
        advice = "run this in a desktop session, X11 on Linux"
        raise VideoError(f"the screen cannot be read ({first_line(error)}): {advice}") from error


def _rectangle(monitor):
    return monitor["left"], monitor["top"], monitor["width"], monitor["height"]


def _overlap(a, b):
    return all(a[axis] < b[axis] + b[axis + 2] and b[axis] < a[axis] + a[axis + 2] for axis in (0, 1))


def _contains(outer, inner):
    return all(
        outer[axis] <= inner[axis] and inner[axis] + inner[axis + 2] <= outer[axis] + outer[axis + 2] for axis in (0, 1)
    )
