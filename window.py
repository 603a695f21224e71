"""Show live pictures in a window with keys, record them, or offer them as a virtual camera.

`Window`, `Recorder` and `VirtualCamera` are displays: `live.play` calls their ``show(frame, milliseconds, note,
meter)`` and ``idle()``. Errors are `images.VideoError`.
"""

import contextlib
import ctypes
import ctypes.util
import dataclasses
import functools
import logging
import os
import sys
import time
from datetime import datetime
from fractions import Fraction

import cv2  # before av: see video.py
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from images import Picture, VideoError, write_image
from pipeline import write_behind
from scaling import WINDOW, Size, SizeError, parse_size, resize_pixels, target_size
from screen import desktop_size
from utils import bgr_to_planes, to_limited_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoWriter

_QUEUE_LENGTH = 8  # frames that wait for an encoder: 50 MB at 1080p
_SETTLED = 0.3  # seconds without resizing before the network is compiled for the window's size
_SIZES = (None, *map(parse_size, ("1.5x", "2x", "3x")), WINDOW)  # cycled by a key

KEYS = (
    ("space", "sharpening on / off"),
    ("+  -", "strength"),
    ("c", "before | after"),
    ("[  ]  mouse", "move the divider"),
    ("p", "save a picture"),
    ("z", "size: x1.5, x2, x3, the window's"),
    ("f", "full screen"),
    ("o", "this text on / off"),
    ("h", "help"),
    ("q  Esc", "quit"),
)
_TOGGLES = {" ": "sharpening", "c": "comparing", "f": "full_screen", "o": "overlay", "h": "help"}  # of `Controls`

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Controls:
    """The user's choices, which keys and the mouse change.

    Attributes:
        strength: see `inference.RealTimeSharpener`; keys change it within 0-2.
        divider: position between before and after, 0 (left) to 1 (right).
        snapshot: whether a picture is to be saved.
        size: `scaling.Size` to bring pictures to; None for their own.
        window_size: ``(width, height)`` of the picture in the window; None if there is no window yet.
    """

    strength: float = 1.0
    comparing: bool = False
    sharpening: bool = True
    divider: float = 0.5
    overlay: bool = True
    help: bool = False
    full_screen: bool = False
    snapshot: bool = False
    closed: bool = False
    size: Size | None = None
    window_size: tuple | None = None

    def __post_init__(self):
        self._sizes = _SIZES if self.size in _SIZES else (self.size, *_SIZES)

    def press(self, key):
        """Apply a key, see `key_name`; unknown ones do nothing."""
        stronger, moved = {"+": 0.1, "=": 0.1, "-": -0.1}, {"[": -0.02, "]": 0.02}
        if key in _TOGGLES:
            setattr(self, _TOGGLES[key], not getattr(self, _TOGGLES[key]))
        elif key in stronger:
            most = max(2.0, self.strength)  # which may have been asked for
            self.strength = min(max(round(self.strength + stronger[key], 1), 0.0), most)
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

    def target_size(self, *shape):
        """Return the ``(width, height)`` to bring a frame to; for its shape see `scaling.target_size`."""
        size = self.size
        if size == WINDOW:
            size = self.window_size and Size(*self.window_size)
        try:
            return target_size(size, *shape)
        except SizeError:  # too large, but no key may end a call
            return shape[:2]


def key_name(code):
    """Return the key of a code of `cv2.waitKeyEx`: a lower-case character, ``esc``, or "" for any other."""
    low = code & 0xFFFF  # GTK puts the state of shift and the like above
    if low == 27:
        return "esc"
    return chr(low).lower() if 32 <= low < 127 else ""


class Window(contextlib.AbstractContextManager):
    """A live window, with numbers and messages over the picture; `KEYS` lists its keys.

    Args:
        controls: the `Controls` that keys and the mouse change.
        engine: description of the engine, for the overlay.
        place: function of the window's width and height that returns its place ``(x, y)``, or None for anywhere.

    Raises:
        VideoError: there is no display, or OpenCV was built without windows.
    """

    title = "Real-time sharpener"

    def __init__(self, controls, engine="", place=None):
        self.controls, self._engine, self._place = controls, engine, place
        _check_display()
        self._shown, self._full_screen = None, False
        self._last_size, self._resized = None, -np.inf
        self._numbers, self._refreshed = "", -np.inf
        self._message, self._expires = "", -np.inf

    def show(self, frame, milliseconds=1, note="", meter=None):
        """Show a uint8 BGR frame ``(H, W, 3)``, with a note and numbers, and handle keys for some milliseconds."""
        if self._shown is None:  # opened late, so that the first picture of the screen is without the window
            _open_window(self.title)
            cv2.setMouseCallback(self.title, self._drag)
        if self._shown is None or (self._shown.shape != frame.shape and self.controls.size != WINDOW):
            self._fit_window(*frame.shape[1::-1])
        self._shown = frame
        picture = frame.copy()  # the caller keeps the frame
        self._draw_overlay(picture, note, meter)
        cv2.imshow(self.title, picture)
        self.controls.press(key_name(cv2.waitKeyEx(max(round(milliseconds), 1))))
        if not _is_visible(self.title):
            self.controls.closed = True
        elif self.controls.full_screen != self._full_screen:
            self._full_screen = self.controls.full_screen
            state = cv2.WINDOW_FULLSCREEN if self._full_screen else cv2.WINDOW_NORMAL
            cv2.setWindowProperty(self.title, cv2.WND_PROP_FULLSCREEN, state)
        if self.controls.snapshot:
            self._save(frame)
        self._watch_size()

    def idle(self):
        """Handle keys while there is no new frame."""
        if self._shown is not None:
            self.show(self._shown)

    def __exit__(self, *error):
        _close_window(self.title)

    def _fit_window(self, width, height):
        """Give the window a picture's size, as far as the screen has room, and at first its place."""
        size = _shrunk(width, height, (1280, 720) if self.controls.size in (None, WINDOW) else _window_room())
        cv2.resizeWindow(self.title, *size)
        if self._shown is None and self._place and (place := self._place(*size)):
            cv2.moveWindow(self.title, *place)

    def _save(self, frame):
        """Write the picture to the working directory, and show that for some seconds."""
        path, self.controls.snapshot = f"sharpened_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}.png", False
        try:
            write_image(path, Picture(frame))
            self._message = f"saved {path}"
        except VideoError as error:
            self._message = str(error)
        log.info("%s", self._message)
        self._expires = time.perf_counter() + 4

    def _watch_size(self):
        """Note the size of the picture in the window, when it has settled and differs by more than rounding."""
        size, noted, now = None, self.controls.window_size or (0, 0), time.perf_counter()
        with contextlib.suppress(cv2.error):  # the window is closed
            size = cv2.getWindowImageRect(self.title)[2:]
        if size != self._last_size:
            self._last_size, self._resized = size, now
        elif size and min(size) > 0 and now - self._resized >= _SETTLED and np.abs(np.subtract(size, noted)).max() > 2:
            self.controls.window_size = size

    def _draw_overlay(self, picture, note, meter):
        now, controls = time.perf_counter(), self.controls
        if meter is not None and now - self._refreshed >= 0.5:  # to be readable
            self._numbers, self._refreshed = meter.text, now
        font_size = min(max(round(picture.shape[0] / 45), 11), 48)
        state = f"sharpening on, strength {controls.strength:.1f}" if controls.sharpening else "sharpening off"
        lines = [state, self._numbers, self._engine, note] if controls.overlay else []
        if now < self._expires:
            lines.append(self._message)
        if lines := tuple(filter(None, lines)):
            _draw_panel(picture, _text_panel(lines, font_size), font_size // 2, font_size // 2)
        if controls.help:
            panel = _text_panel(tuple(f"{key}:  {meaning}" for key, meaning in KEYS), round(1.2 * font_size))
            top, left = ((picture.shape[axis] - panel.shape[axis]) // 2 for axis in (0, 1))
            _draw_panel(picture, panel, max(left, 0), max(top, 0))

    def _drag(self, event, x, y, flags, _):
        if flags & cv2.EVENT_FLAG_LBUTTON and self._shown is not None:
            self.controls.drag(x / self._shown.shape[1])


@functools.lru_cache(maxsize=8)
def _text_panel(lines, font_size):
    """Return a tuple of lines as white text on black, uint8 ``(H, W, 3)``; `font_size` is in pixels."""
    font, step, margin = ImageFont.load_default(font_size), round(1.35 * font_size), round(0.5 * font_size)
    width = max(font.getlength(line) for line in lines)
    picture = Image.new("L", (round(width) + 2 * margin, step * len(lines) + 2 * margin))
    draw = ImageDraw.Draw(picture)
    for index, line in enumerate(lines):
        draw.text((margin, margin + step * index), line, 255, font)
    return cv2.merge([np.asarray(picture)] * 3)


def _draw_panel(picture, panel, left, top):
    """Darken `picture` under the panel and draw its text, in place."""
    region = picture[top : top + panel.shape[0], left : left + panel.shape[1]]
    if region.size:
        region[:] = cv2.addWeighted(region, 0.3, panel[: region.shape[0], : region.shape[1]], 1, 0)


def draw_rectangle(picture):
    """Show a picture on which the user draws a rectangle with the mouse; return its ``(x, y, width, height)``.

    Raises:
        VideoError: there is no display, or the user draws none.
    """
    _check_display()
    title = "Draw a rectangle with the mouse, then press Enter (Esc: quit)"
    _open_window(title)
    cv2.resizeWindow(title, *_shrunk(*picture.shape[1::-1], _window_room()))
    rectangle = cv2.selectROI(title, picture, showCrosshair=False, printNotice=False)
    _close_window(title)
    if not any(rectangle):
        raise VideoError('no rectangle was drawn: name it, as in --screen "100,80,1280x720"')
    return rectangle


def _check_display():
    """Raise `VideoError` if no display answers: OpenCV's Qt would abort the whole process."""
    if not sys.platform.startswith("linux") or os.environ.get("WAYLAND_DISPLAY"):
        return
    display = os.environ.get("DISPLAY")
    if display and (library := ctypes.util.find_library("X11")):
        x11 = ctypes.CDLL(library)
        x11.XOpenDisplay.restype, x11.XCloseDisplay.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        display = x11.XOpenDisplay(None)
        if display:
            x11.XCloseDisplay(display)
    if not display:
        raise VideoError("there is no display to open a window on: name an output file with -o instead")


def _open_window(title):
    os.environ.setdefault("QT_LOGGING_RULES", "*.warning=false")  # about fonts that Qt does not need
    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    except cv2.error as error:
        advice = "install opencv-python, or name an output file with -o instead"
        raise VideoError(f"no window can be opened, as OpenCV is a headless build: {advice}") from error


def _close_window(title):
    with contextlib.suppress(cv2.error):  # the user may have closed it already
        cv2.destroyWindow(title)
        cv2.waitKey(1)  # macOS closes it only then


def _is_visible(title):
    try:
        return cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # Qt, if the last window is closed
        return False


@functools.cache
def _window_room():
    """Return the ``(width, height)`` that a window may have beside its frame and the desktop's bars."""
    width, height = desktop_size() or (1400, 850)
    return 0.92 * width, 0.86 * height


def _shrunk(width, height, room):
    """Return the ``(width, height)`` of a picture, scaled down to fit into the room."""
    scale = min(1, room[0] / width, room[1] / height)
    return round(scale * width), round(scale * height)


class Recorder(contextlib.ExitStack):
    """Encodes live pictures to a file in a thread, stamped with the times at which they were shown.

    Ctrl-C within the block ends it and keeps the recording, if there is one. For errors see `video.VideoWriter`.

    Args:
        path, codec, quality: see `video.VideoWriter`.
        size: ``(width, height)`` of the pictures.
        rate: approximate frames per second.

    Attributes:
        frames: number of frames encoded.

    Raises:
        VideoError: the file cannot be written.
    """

    def __init__(self, path, size, rate, codec=None, quality=None):
        super().__init__()
        video_format = VideoFormat(*size, rate, Fraction(1, 1000), **BT601_LIMITED)  # ms: cameras slow down in the dark
        self.frames, self._begin = 0, None
        self._writer = self.enter_context(VideoWriter(path, video_format, None, quality, codec))
        self._write = self.enter_context(write_behind(self._encode, _QUEUE_LENGTH))

    def __exit__(self, kind, error, traceback):
        if kind is KeyboardInterrupt and self._begin:
            self.close()
            return True
        return super().__exit__(kind, error, traceback)

    def show(self, frame, milliseconds=0, note="", meter=None):
        """Encode a uint8 BGR frame ``(H, W, 3)``, which must not change afterwards."""
        now = time.perf_counter()
        self._begin = self._begin or now
        self._write((frame, round(1000 * (now - self._begin))))

    def idle(self):
        """Do nothing."""

    def _encode(self, item):
        picture, pts = item
        self._writer.write(Frame(*to_limited_range(*bgr_to_planes(picture)), pts))
        self.frames += 1


class VirtualCamera(contextlib.AbstractContextManager):
    """Offers pictures to other programs as a camera of `rate` frames per second, until Ctrl-C.

    pyvirtualcam, which is under the GNU GPL 2, is only loaded if the user has installed it.

    Raises:
        VideoError: pyvirtualcam or a virtual camera is missing.
    """

    def __init__(self, rate):
        try:
            import pyvirtualcam
        except ImportError as error:
            advice = "which is under the GNU GPL 2: pip install pyvirtualcam"
            raise VideoError(f"a virtual camera needs pyvirtualcam, {advice}") from error
        self._library, self._rate, self._camera = pyvirtualcam, float(rate), None

    def show(self, frame, milliseconds=0, note="", meter=None):
        """Send a uint8 BGR frame ``(H, W, 3)`` after `milliseconds`."""
        if self._camera is None:
            self._camera = self._open(*frame.shape[1::-1])
        time.sleep(milliseconds / 1000)
        size = self._camera.width, self._camera.height  # even, and that of the first picture
        self._camera.send(resize_pixels(frame, size))

    def idle(self):
        """Do nothing: other programs keep the last frame."""

    def __exit__(self, kind, error, traceback):
        if self._camera is not None:
            self._camera.close()
        return kind is KeyboardInterrupt

    def _open(self, width, height):
        try:
            size = {"width": width + width % 2, "height": height + height % 2}  # programs ask for halved chroma
            camera = self._library.Camera(**size, fps=self._rate, fmt=self._library.PixelFormat.BGR)
        except RuntimeError as error:
            raise VideoError(
                "there is no virtual camera: on Windows and macOS install OBS Studio, start its virtual camera, "
                "and stop it again; on Linux install v4l2loopback (package v4l2loopback-dkms), then: sudo modprobe "
                'v4l2loopback devices=1 exclusive_caps=1 card_label="Sharpened"'
            ) from error
        log.info("virtual camera %s: %dx%d; Ctrl-C ends it", camera.device, camera.width, camera.height)
        return camera
