"""The window and its keys, and the virtual camera."""

import ctypes.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import ImageGrab

import inference
import window
from runtime import steady
from scaling import WINDOW, parse_size
from tests.conftest import CONSTANT, encode, pictures
from tests.test_cli import run_script
from tests.test_inference import ROOT
from video import VideoReader
from window import Controls

# ----------------------------------------------------------------------------------------------------------------------
# Keys and the overlay


def pressed(keys, **chosen):
    """Attributes of `Controls` that keys change from what was `chosen`."""
    controls, before = Controls(**chosen), Controls(**chosen)
    for key in keys:
        controls.press(key)
    return {name: value for name, value in vars(controls).items() if value != getattr(before, name)}


@pytest.mark.parametrize(
    ("keys", "chosen", "changed"),
    [
        (" ", {}, {"sharpening": False}),
        ("  ", {}, {}),
        ("c", {}, {"comparing": True}),
        ("+++", {}, {"strength": 1.3}),
        ("=" * 30, {}, {"strength": 2.0}),
        ("-" * 30, {}, {"strength": 0.0}),
        ("+-", {"strength": 5.0}, {"strength": 4.9}),
        ("[", {}, {}),  # there is no divider
        ("[[]", {"comparing": True}, {"divider": 0.48}),
        ("]" * 99, {"comparing": True}, {"divider": 1.0}),
        ("p", {}, {"snapshot": True}),
        ("fofh", {}, {"overlay": False, "help": True}),
        ("q", {}, {"closed": True}),
        (["esc"], {}, {"closed": True}),
        (["", "x", "Q"], {}, {}),
        ("z", {}, {"size": parse_size("1.5x")}),
        ("zzzzz", {}, {}),  # all sizes, the window's the last
        ("z", {"size": parse_size("1080p")}, {"size": None}),
        ("zzzzz", {"size": parse_size("1080p")}, {"size": WINDOW}),
    ],
)
def test_keys(keys, chosen, changed):
    assert pressed(keys, **chosen) == pytest.approx(changed)


def test_a_size_that_would_be_too_large_leaves_the_picture_as_it_is():
    assert Controls(size=parse_size("3x")).target_size(6016, 3384) == (6016, 3384)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (ord("C"), "c"),
        (0x100000 | ord("q"), "q"),  # GTK with number lock
        (27, "esc"),
        (0xFF51, ""),  # left on X11: its lower byte is Q
        (0x250000, ""),  # left on Windows
        (65505, ""),  # shift alone
        (-1, ""),
        (0, ""),
    ],
)
def test_names_of_keys(code, name):
    assert window.key_name(code) == name


# ----------------------------------------------------------------------------------------------------------------------
# A real window and real keys


def test_a_video_plays_in_a_window(exported, tmp_path, display):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    result = run_script(source.as_uri(), "--checkpoint", exported, DISPLAY=display)
    assert (result.returncode, result.stderr) == (0, "")
    seconds = re.match(r"20 frames of 64x48 in ([0-9.]+) s", result.stdout)[1]
    assert 0.7 <= float(seconds) < 5  # at its own rate, not as fast as it can


def test_a_window_that_is_over_its_budget_says_so(exported, tmp_path, display):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=range(0, 1000, 10))
    result = run_script(source.as_uri(), "--budget", "0.001", "--checkpoint", exported, DISPLAY=display)
    assert (result.returncode, result.stderr) == (0, "")
    # 30 frames, 15 of the next 30, and all the others as they came
    assert "every frame: 30 shown, every other frame: 15 shown, not sharpened: 40 shown" in result.stdout
    assert "85 frames of 64x48" in result.stdout
    result = run_script(source.as_uri(), "--budget", "0", "--checkpoint", exported, DISPLAY=display)
    assert "100 frames of 64x48" in result.stdout and "busy" not in result.stdout


def close_like_a_window_manager(display, window):
    """Send the message that a click on a window's cross sends: ICCCM 4.2.8.1, as an XClientMessageEvent."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype, x11.XInternAtom.restype = ctypes.c_void_p, ctypes.c_ulong
    connection = ctypes.c_void_p(x11.XOpenDisplay(display.encode()))
    protocols, delete = (x11.XInternAtom(connection, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))
    # type (ClientMessage), serial, whether it was sent, display, window, message type, format, data; 24 longs in all
    event = (ctypes.c_long * 24)(33, 0, 0, 0, window, protocols, 32, delete)
    x11.XSendEvent(connection, ctypes.c_ulong(window), 0, 0, event)
    x11.XCloseDisplay(connection)


def test_keys_in_a_real_window(exported, tmp_path, display):
    if shutil.which("xdotool") is None or ctypes.util.find_library("X11") is None:
        pytest.skip("xdotool or libX11 is not installed")
    source = encode(tmp_path / "in.mkv", times=range(0, 60_000, 40), size=(320, 240), options={"preset": "ultrafast"})
    folder = tmp_path / "kept"
    folder.mkdir()
    program = subprocess.Popen(
        [sys.executable, ROOT / "inference.py", source.as_uri(), "--checkpoint", exported, "--budget", "0"],
        **{"cwd": folder, "env": os.environ | {"DISPLAY": display}, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )

    def do(*arguments):
        command = ["xdotool", *arguments]
        environment = {"DISPLAY": display}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=30).stdout

    def screen():
        return np.asarray(ImageGrab.grab(xdisplay=display).convert("RGB"))[:240, :320].astype(int)

    def wait_for(condition):
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end and program.poll() is None
            time.sleep(0.1)

    def divider():
        """Column of the divider on the screen; None where there is none."""
        lower = screen()[120:]
        light, dark = (lower > 250).all(axis=(0, 2)), (lower < 5).all(axis=(0, 2))
        columns = 1 + np.flatnonzero(light[1:] & dark[:-1])
        return None if len(columns) == 0 else columns[0]

    def shows_help(picture):
        """Whether the middle is darker than the lower left corner."""
        return np.median(picture[60:180, 110:210]) < 0.6 * np.median(picture[180:, :50])

    try:
        window = do("search", "--sync", "--onlyvisible", "--name", "Real-time sharpener")
        do("mousemove", "160", "200")
        wait_for(lambda: (screen()[5:20, 5:100] > 240).any())  # the overlay's text
        assert divider() is None
        do("key", "c")
        wait_for(lambda: divider() in range(157, 162))
        do("key", "--repeat", "5", "--delay", "100", "bracketleft")
        wait_for(lambda: divider() in range(125, 131))
        do("mousemove", "128", "200", "mousedown", "1", "mousemove", "200", "200", "mousemove", "240", "200")
        do("mouseup", "1")
        wait_for(lambda: divider() in range(237, 242))
        do("key", "--delay", "150", "c", "o")
        wait_for(lambda: divider() is None and not (screen()[5:20, 5:100] > 250).any())
        do("key", "h")
        wait_for(lambda: shows_help(screen()))
        do("key", "p")
        wait_for(lambda: len(list(folder.glob("*.png"))) == 1)
        do("key", "--repeat", "10", "--delay", "100", "minus")
        time.sleep(0.5)
        do("key", "--delay", "150", "p", "o")
        wait_for(lambda: len(list(folder.glob("*.png"))) == 2)
        wait_for(lambda: (screen()[5:20, 5:100] > 250).any())
        close_like_a_window_manager(display, int(window.split()[0]))
        output, errors = program.communicate(timeout=60)
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 0 and re.fullmatch(r"(saved sharpened_[\d_-]+\.png\n){2}", errors)
    assert re.search(r"\d+ frames of 320x240 in .*\n0 frames dropped; added latency [0-9.]+ ms, 95 % within", output)
    sharp, soft = (cv2.imread(str(path)) for path in sorted(folder.glob("*.png")))
    with VideoReader(source) as reader:
        came = pictures(reader)
    assert any(np.array_equal(soft, frame) for frame in came)  # strength 0, without the help over it
    assert not any(np.array_equal(sharp, frame) for frame in came)


# ----------------------------------------------------------------------------------------------------------------------
# Virtual camera


class FakeVirtualCamera:
    """What `pyvirtualcam.Camera` promises, as it needs a driver: a stand-in for the way of the frames only."""

    newest = None

    def __init__(self, width, height, fps, fmt):
        self.width, self.height, self.fps, self.fmt, self.device = width, height, fps, fmt, "/dev/video9"
        self.sent, self.closed = [], False
        FakeVirtualCamera.newest = self

    def send(self, frame):
        assert frame.dtype == np.uint8 and frame.shape == (self.height, self.width, 3)
        self.sent.append(frame.copy())
        if len(self.sent) == 5:
            signal.raise_signal(signal.SIGINT)

    def close(self):
        self.closed = True


@pytest.mark.parametrize(("size", "compare"), [((64, 48), False), ((64, 48), True), ((63, 47), False)])
def test_a_virtual_camera_gets_sharpened_frames_until_ctrl_c(sharpener, tmp_path, monkeypatch, size, compare):
    library = types.SimpleNamespace(Camera=FakeVirtualCamera, PixelFormat=types.SimpleNamespace(BGR="bgr"))
    monkeypatch.setitem(sys.modules, "pyvirtualcam", library)
    pixels = {"codec": "ffv1", "pixel_format": "yuv420p" if size == (64, 48) else "gray"}
    source = encode(tmp_path / "in.mkv", times=CONSTANT, size=size, **pixels)
    stats = sharpener.process_video_stream(str(source), virtual_camera=True, compare=compare)
    camera = FakeVirtualCamera.newest
    assert (camera.width, camera.height, camera.fps, camera.fmt) == (64, 48, 25, "bgr") and camera.closed
    assert stats["size"] in (size, (0, 0)) and len(camera.sent) == 5 and stats["frames"] in (4, 5)
    if size == (64, 48):
        with VideoReader(source) as reader:
            steadied, sharp = None, []
            for frame in reader:
                steadied = steady(frame.y, steadied)
                sharp.append(reader.to_bgr(*sharpener.sharpen_planes(steadied, frame.uv)))
            beside = slice(40 if compare else 0, None)  # of the line in the middle
            assert np.array_equal(np.stack(camera.sent)[:, :, beside], np.stack(sharp[:5])[:, :, beside])


def test_without_pyvirtualcam_or_a_device_it_says_what_to_do(exported, tmp_path, monkeypatch, capsys):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    command = [str(source), "--virtual-camera", "--checkpoint", str(exported), "--device", "cpu"]
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    assert inference.main(command) == 2
    message = capsys.readouterr().err
    assert "pip install pyvirtualcam" in message and "GNU GPL" in message and len(message.splitlines()) == 1

    missing = RuntimeError("'v4l2loopback' backend: No v4l2 loopback device found")
    library = types.SimpleNamespace(Camera=Mock(side_effect=missing), PixelFormat=types.SimpleNamespace(BGR="bgr"))
    monkeypatch.setitem(sys.modules, "pyvirtualcam", library)
    assert inference.main(command) == 2
    message = capsys.readouterr().err
    assert "there is no virtual camera" in message and "modprobe" in message and len(message.splitlines()) == 1
    assert inference.main([*command, "-o", "out.mp4"]) == 2
    assert "leave out -o" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]
