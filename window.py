"""Show live pictures in a window with keys, record them, or offer them as a virtual camera.

`Window`, `Recorder` and `VirtualCamera` are screens: they have ``show(frame, milliseconds, note, meter)`` and
``idle(note)``, which `live.play` calls. Errors are `images.VideoError`, whose message says what to do.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import subprocess
import sys
import time
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import cv2  # before av: see video.py
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from images import Picture, VideoError, write_image
from pipeline import write_behind
from scaling import WINDOW, Size, SizeError, parse_size, target_size
from screen import LEAST_SIDE, desktop_size
from utils import bgr_to_planes, to_limited_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoWriter

_QUEUE_LENGTH = 8  # frames that wait for an encoder: at 1080p, 50 MB
_SETTLED = 0.3  # seconds for which a window must have kept its size: each size costs a compilation
_SIZES = (None, *map(parse_size, ("1.5x", "2x", "3x")), WINDOW)  # through which a key goes

KEYS = (
    ("space", "sharpening on / off"),
    ("+  -", "strength"),
    ("c", "before | after"),
    ("[  ]  mouse", "move the divider"),
    ("p", "save a picture"),
    ("r", "start / stop recording"),
    ("z", "size: x1.5, x2, x3, the window's"),
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
# Codes of cv2.waitKeyEx for keys that are no character: X11, Windows, macOS.
_KEY_NAMES = {
    **dict.fromkeys((0xFF51, 0x250000, 0xF702), "left"),
    **dict.fromkeys((0xFF53, 0x270000, 0xF703), "right"),
    **{0xFFAB: "+", 0xFFAD: "-"},  # of the number block
}

log = logging.getLogger(__name__)


# ----------------------------------------------------------------------------------------------------------------------
# The window


@dataclasses.dataclass
class Controls:
    """What the user has chosen. Keys and the mouse change it and do nothing else.

    Attributes:
        strength: see `inference.RealTimeSharpener`; keys change it within 0-2.
        divider: position at which before and after meet, 0 (left) to 1 (right).
        snapshot: whether a picture is to be saved.
        size: `scaling.Size` to bring pictures to; None for their own.
        window_size: ``(width, height)`` that the window has for the picture; None if there is no window yet.
    """

    strength: float = 1.0
    comparing: bool = False
    sharpening: bool = True
    divider: float = 0.5
    overlay: bool = True
    help: bool = False
    full_screen: bool = False
    recording: bool = False
    snapshot: bool = False
    closed: bool = False
    size: Size | None = None
    window_size: tuple | None = None

    def __post_init__(self):
        self._sizes = _SIZES if self.size in _SIZES else (self.size, *_SIZES)

    def press(self, key):
        """Apply a key: a character, ``left`` or ``right``; unknown ones do nothing."""
        stronger, moved = {"+": 0.1, "=": 0.1, "-": -0.1}, {"left": -0.02, "[": -0.02, "right": 0.02, "]": 0.02}
        if key in _TOGGLES:
            setattr(self, _TOGGLES[key], not getattr(self, _TOGGLES[key]))
        elif key in stronger:
            self.strength = min(max(round(self.strength + stronger[key], 1), 0.0), 2.0)
        elif key in moved:
            self.drag(self.divider + moved[key])
        elif key == "p":
            self.snapshot = True
        elif key == "z":
            self.size = self._sizes[(self._sizes.index(self.size) + 1) % len(self._sizes)]
        elif key in ("q", "esc"):
            self.closed = True

    def drag(self, position):
        """Move the divider to `position`, 0-1, if there is one."""
        if self.comparing:
            self.divider = min(max(position, 0.0), 1.0)

    def target_size(self, width, height, turned=False):
        """Return the ``(width, height)`` to bring a frame to, its own if `size` is too large: no key may end a call."""
        size = self.size
        if size == WINDOW:
            size = self.window_size and Size(*self.window_size)
        try:
            return target_size(size, width, height, turned=turned)
        except SizeError:
            return width, height


def key_name(code):
    """Return the key that a code of `cv2.waitKeyEx` means: a lower-case character, a name, or "" for none."""
    low = code & 0xFFFF  # GTK puts the state of shift and the like above
    if code in _KEY_NAMES or low in _KEY_NAMES:
        return _KEY_NAMES.get(code) or _KEY_NAMES[low]
    return "esc" if low == 27 else chr(low).lower() if 32 <= low < 127 else ""


class Window:
    """A live window, with numbers and messages over the picture; `KEYS` lists its keys.

    Args:
        title: of the window.
        controls: the `Controls` that keys and the mouse change.
        engine: description of the engine, for the overlay.
        place: function of the window's width and height that returns where it goes, ``(x, y)``, or None for anywhere.

    Raises:
        VideoError: there is no display, or OpenCV was built without windows.
    """

    def __init__(self, title, controls, engine="", place=None):
        self.title, self.controls, self._engine, self._place = title, controls, engine, place
        check_display()
        self._last_size, self._resized = None, -np.inf
        self._shown, self._full_screen = None, False
        self._numbers, self._refreshed = "", -np.inf
        self._message, self._expires = "", -np.inf

    def show(self, frame, milliseconds=1, note="", meter=None):
        """Show a uint8 BGR frame ``(H, W, 3)`` and handle keys for at least `milliseconds`.

        Args:
            note: text for the overlay.
            meter: `live.Meter`, whose numbers the overlay shows.
        """
        if self._shown is None:  # not before, as the screen may be the source: its first picture is without a window
            _open_window(self.title)
            cv2.setMouseCallback(self.title, self._drag)
        if self._shown is None or (self._shown.shape != frame.shape and self.controls.size != WINDOW):
            self._fit_window(*frame.shape[1::-1])
        self._shown = frame
        picture = frame.copy()  # somebody may be encoding the frame
        self._draw_overlay(picture, note, meter)
        cv2.imshow(self.title, picture)
        self.controls.press(key_name(cv2.waitKeyEx(max(round(milliseconds), 1))))
        if not _is_visible(self.title):
            self.controls.closed = True
        elif self.controls.full_screen != self._full_screen:
            self._full_screen = self.controls.full_screen
            state = cv2.WINDOW_FULLSCREEN if self._full_screen else cv2.WINDOW_NORMAL
            cv2.setWindowProperty(self.title, cv2.WND_PROP_FULLSCREEN, state)
        self._watch_size()

    def idle(self, note=""):
        """Handle keys while there is no new frame."""
        if self._shown is not None:
            self.show(self._shown, note=note)

    def say(self, message, seconds=4):
        """Show a message for some seconds."""
        self._message, self._expires = message, time.perf_counter() + seconds

    def __enter__(self):
        return self

    def __exit__(self, *error):
        _close_window(self.title)

    @property
    def rectangle(self):
        """Where its picture lies on the desktop: ``(x, y, width, height)``; None if it is not shown."""
        with contextlib.suppress(cv2.error):
            x, y, width, height = cv2.getWindowImageRect(self.title)
            return (x, y, width, height) if self._shown is not None and width > 0 else None

    def _fit_window(self, width, height):
        """Give the window a picture's size, as far as the screen has room; at first, put it where it goes."""
        room = (1280, 720) if self.controls.size in (None, WINDOW) else _window_room()
        scale = min(1, room[0] / width, room[1] / height)
        size = round(scale * width), round(scale * height)
        cv2.resizeWindow(self.title, *size)
        if self._shown is None and self._place and (place := self._place(*size)):
            cv2.moveWindow(self.title, *place)

    def _watch_size(self):
        """Note the size that the window has for the picture, when it has settled."""
        rectangle, now = self.rectangle, time.perf_counter()
        size = rectangle and rectangle[2:]
        if size is None or size != self._last_size:
            self._last_size, self._resized = size, now
        elif now - self._resized >= _SETTLED and _differ(size, self.controls.window_size):
            self.controls.window_size = size

    def _draw_overlay(self, picture, note, meter):
        now, controls = time.perf_counter(), self.controls
        if meter is not None and now - self._refreshed >= 0.5:  # faster, nobody could read them, and drawing takes time
            self._numbers, self._refreshed = meter.text, now
        font_size = min(max(round(picture.shape[0] / 45), 11), 48)
        lines = []
        if controls.overlay:
            state = f"sharpening on, strength {controls.strength:.1f}" if controls.sharpening else "sharpening off"
            lines = [state, self._numbers, self._engine, "recording" if controls.recording else "", note]
        if now < self._expires:
            lines.append(self._message)
        lines = tuple(filter(None, lines))
        if lines:
            draw_panel(picture, text_panel(lines, font_size), font_size // 2, font_size // 2)
        if controls.help:
            panel = text_panel(tuple(f"{key}:  {meaning}" for key, meaning in KEYS), round(1.2 * font_size))
            top, left = ((picture.shape[axis] - panel.shape[axis]) // 2 for axis in (0, 1))
            draw_panel(picture, panel, max(left, 0), max(top, 0))

    def _drag(self, event, x, y, flags, _):
        if flags & cv2.EVENT_FLAG_LBUTTON and self._shown is not None:
            self.controls.drag(x / self._shown.shape[1])


@functools.lru_cache(maxsize=8)
def text_panel(lines, font_size):
    """Return white text on black, uint8 ``(H, W, 3)``, for `draw_panel`; `lines` is a tuple, `font_size` in pixels."""
    font, step, margin = ImageFont.load_default(font_size), round(1.35 * font_size), round(0.5 * font_size)
    width = max(font.getlength(line) for line in lines)
    picture = Image.new("L", (round(width) + 2 * margin, step * len(lines) + 2 * margin))
    draw = ImageDraw.Draw(picture)
    for index, line in enumerate(lines):
        draw.text((margin, margin + step * index), line, 255, font)
    return cv2.merge([np.asarray(picture)] * 3)


def draw_panel(picture, panel, left, top):
    """Darken `picture` where the panel lies and draw the panel's text, in place."""
    region = picture[top : top + panel.shape[0], left : left + panel.shape[1]]
    if region.size:
        region[:] = cv2.addWeighted(region, 0.3, panel[: region.shape[0], : region.shape[1]], 1, 0)


def draw_rectangle(picture):
    """Show a picture and let the user draw a rectangle on it with the mouse; return its ``(x, y, width, height)``.

    Raises:
        VideoError: there is no display, or the user draws none.
    """
    check_display()
    title, corners, drawn = "Draw a rectangle", [], []

    def follow(event, x, y, *_):
        if event == cv2.EVENT_LBUTTONDOWN:
            corners[:] = [(x, y), (x, y)]
        elif corners:
            corners[1] = (x, y)
            if event == cv2.EVENT_LBUTTONUP:
                (left, top), (right, bottom) = (map(function, *corners) for function in (min, max))
                corners.clear()
                if min(right - left, bottom - top) >= LEAST_SIDE:  # else it was a click
                    drawn.append((left, top, right - left, bottom - top))

    _open_window(title)
    try:
        height, width = picture.shape[:2]
        scale = min(1, *(room / side for room, side in zip(_window_room(), (width, height), strict=True)))
        cv2.resizeWindow(title, round(scale * width), round(scale * height))
        cv2.setMouseCallback(title, follow)
        panel = text_panel(("Draw a rectangle with the mouse: what it holds is sharpened. Esc: quit",), 24)
        while not drawn:
            shown = picture.copy()
            draw_panel(shown, panel, 12, 12)
            if corners:
                cv2.rectangle(shown, *corners, (255, 255, 255), 3)
                cv2.rectangle(shown, *corners, (0, 0, 0), 1)
            cv2.imshow(title, shown)
            if key_name(cv2.waitKeyEx(20)) in ("q", "esc") or not _is_visible(title):
                raise VideoError('no rectangle was drawn: name it, as in --screen "100,80,1280x720"')
    finally:
        _close_window(title)
    return drawn[0]


def _open_window(title):
    os.environ.setdefault("QT_LOGGING_RULES", "*.warning=false")  # Qt complains about fonts that it does not need
    cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)


def _close_window(title):
    with contextlib.suppress(cv2.error):  # the user may have closed it already
        cv2.destroyWindow(title)
        cv2.waitKey(1)  # macOS closes it only then


def _is_visible(title):
    try:
        return cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # Qt's answer if the last window is closed
        return False


@functools.cache
def _window_room():
    """The ``(width, height)`` that a window may have, its frame and the desktop's bars taken off."""
    width, height = desktop_size() or (1400, 850)
    return 0.92 * width, 0.86 * height


def _differ(size, other):
    """Whether a window's size is another one, not only rounded otherwise."""
    return other is None or any(abs(side - old) > 2 for side, old in zip(size, other, strict=True))


def check_display():
    """Raise `VideoError` if no window can be opened.

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
# Snapshots and recordings


class Recorder(contextlib.ExitStack):
    """Encodes live pictures to a file, in a thread of its own; their time stamps are when they were shown.

    Ctrl-C within the block ends it, and keeps the recording if there is one. Another error leaves no file. Pictures of
    another size, of a camera that was unplugged and came back, are scaled to the first one's.

    Args:
        path: see `video.VideoWriter`.
        size: ``(width, height)``.
        rate: frames per second, about.
        codec, quality: see `video.VideoWriter`.

    Attributes:
        frames: number of frames encoded.

    Raises:
        VideoError: the file cannot be written.
    """

    def __init__(self, path, size, rate, codec=None, quality=None):
        super().__init__()
        # Milliseconds as time base, as cameras slow down in the dark.
        video_format = VideoFormat(*size, rate, Fraction(1, 1000), **BT601_LIMITED)
        self.path, self.size, self.frames, self._added = path, size, 0, 0
        self._begin = time.perf_counter()
        self._writer = self.enter_context(VideoWriter(path, video_format, None, quality, codec))
        self._write = self.enter_context(write_behind(self._encode, _QUEUE_LENGTH))

    def __exit__(self, kind, error, traceback):
        if kind is KeyboardInterrupt and self._added:
            self.close()
            return True
        return super().__exit__(kind, error, traceback)

    @property
    def full(self):
        """Whether a further picture would wait for the encoder."""
        return self._added - self.frames >= _QUEUE_LENGTH

    def show(self, frame, milliseconds=0, note="", meter=None):
        """Encode a uint8 BGR frame ``(H, W, 3)``, which must not change any more."""
        self._added += 1
        try:
            self._write((_resize(frame, self.size), round(1000 * (time.perf_counter() - self._begin))))
        except Exception as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def idle(self, note=""):
        """Do nothing."""

    def _encode(self, item):
        picture, pts = item
        self._writer.write(Frame(*to_limited_range(*bgr_to_planes(picture)), pts))
        self.frames += 1


class CaptureSaver(contextlib.ExitStack):
    """Saves snapshots and recordings that the user requests by key, in threads of their own.

    Args:
        say: function that tells the user a message.
        rate: of the source, in frames per second.
        folder: where files go to.
    """

    def __init__(self, say, rate, folder="."):
        super().__init__()
        self._say, self._rate, self._folder, self._recorder = say, rate, Path(folder), None
        self._write_later = self.enter_context(write_behind(self._write_snapshot))
        self.callback(self._stop_recording)

    def save(self, controls, sharpened, shown):
        """Save `sharpened` if a snapshot is requested, and record `shown` while a recording is."""
        if controls.snapshot:
            controls.snapshot = False
            self._write_later((self._path(".png"), sharpened))
        if not controls.recording:
            self._stop_recording()
            return
        try:
            self._recorder = self._recorder or Recorder(self._path(".mp4"), shown.shape[1::-1], self._rate)
            if not self._recorder.full:  # the live picture does not wait
                self._recorder.show(shown)
        except VideoError as error:
            controls.recording, self._recorder = False, None
            self._tell(str(error))

    def _stop_recording(self):
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            try:
                recorder.close()
                self._tell(f"recorded {recorder.path}")
            except VideoError as error:
                self._tell(str(error))

    def _write_snapshot(self, item):
        path, picture = item
        try:
            write_image(path, Picture(picture))
            self._tell(f"saved {path}")
        except VideoError as error:
            self._tell(str(error))

    def _tell(self, message):
        log.info("%s", message)
        self._say(message)

    def _path(self, suffix):
        now = datetime.now().isoformat("_", "milliseconds").replace(":", "-").replace(".", "-")
        return self._folder / f"sharpened_{now}{suffix}"


# ----------------------------------------------------------------------------------------------------------------------
# The virtual camera


class VirtualCamera:
    """Offers pictures to other programs as a camera, with pyvirtualcam, until Ctrl-C; its size is the first picture's.

    pyvirtualcam is under the GNU GPL 2 and no part of this project: it is only loaded if the user has installed it.

    Args:
        rate: frames per second to announce.

    Raises:
        VideoError: pyvirtualcam or a virtual camera is missing; the message says how to get it.
    """

    def __init__(self, rate):
        try:
            import pyvirtualcam
        except ImportError as error:
            raise VideoError(
                "a virtual camera needs pyvirtualcam, which is separate software under the GNU GPL 2: "
                "pip install pyvirtualcam"
            ) from error
        self._library, self._rate, self._camera = pyvirtualcam, float(rate), None

    def show(self, frame, milliseconds=0, note="", meter=None):
        """Send a uint8 BGR frame ``(H, W, 3)`` after `milliseconds`."""
        if self._camera is None:
            self._camera = self._open(*frame.shape[1::-1])
        time.sleep(milliseconds / 1000)
        self._camera.send(_resize(frame, (self._camera.width, self._camera.height)))

    def idle(self, note=""):
        """Do nothing: programs keep seeing the last frame."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self._camera is not None:
            self._camera.close()
        return kind is KeyboardInterrupt

    def _open(self, width, height):
        try:
            camera = self._library.Camera(
                width=width + width % 2,  # the formats that programs ask for halve the chroma
                height=height + height % 2,
                fps=self._rate,
                fmt=self._library.PixelFormat.BGR,
            )
        except RuntimeError as error:
            raise VideoError(
                "there is no virtual camera: on Windows and macOS install OBS Studio, start its virtual camera, "
                "and stop it again; on Linux install v4l2loopback (package v4l2loopback-dkms), then: sudo modprobe "
                'v4l2loopback devices=1 exclusive_caps=1 card_label="Sharpened"'
            ) from error
        log.info("virtual camera %s: %dx%d; Ctrl-C ends it", camera.device, camera.width, camera.height)
        return camera


def _resize(frame, size):
    """Scale a frame to `size`: it may have an odd one, or another camera was plugged in."""
    return frame if frame.shape[1::-1] == size else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
