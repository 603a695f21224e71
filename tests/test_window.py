"""The window and its keys, snapshots and recordings, and the virtual camera."""

import ctypes.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ImageGrab

import inference
import window
from images import VideoError
from live import LoadController
from scaling import WINDOW, parse_size
from tests.conftest import CONSTANT, encode, pictures, read_times
from tests.test_cli import run_script
from tests.test_inference import ROOT, noise
from video import VideoReader, VideoWriter
from window import CaptureSaver, Controls, Recorder

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
        ("[", {}, {}),  # there is no divider
        (["left", "left", "]"], {"comparing": True}, {"divider": 0.48}),
        (["right"] * 99, {"comparing": True}, {"divider": 1.0}),
        ("p", {}, {"snapshot": True}),
        ("r", {}, {"recording": True}),
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


def test_every_key_in_the_help_does_something():
    for keys, _ in window.KEYS:
        for key in keys.replace("mouse", "").split():
            assert pressed([{"space": " ", "Esc": "esc"}.get(key, key)], comparing=True)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (ord("C"), "c"),
        (0x100000 | ord("q"), "q"),  # GTK with number lock
        (27, "esc"),
        (65361, "left"),
        (2555904, "right"),
        (63234, "left"),
        (65451, "+"),
        (65505, ""),  # shift alone
        (65362, ""),  # up
        (-1, ""),
        (0, ""),
    ],
)
def test_names_of_keys(code, name):
    assert window.key_name(code) == name


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_panel_can_be_read_on_any_picture(value):
    picture = np.full((120, 200, 3), value, np.uint8)
    panel = window.text_panel(("sharpening on", "key: meaning"), 14)
    window.draw_panel(picture, panel, 10, 5)
    height, width = panel.shape[:2]
    assert (picture[:5] == value).all() and (picture[:, 10 + width :] == value).all()
    drawn = picture[5 : 5 + height, 10 : 10 + width]
    assert drawn.max() == 255 and np.median(drawn) <= 0.3 * value + 1
    small = np.zeros((4, 3, 3), np.uint8)
    window.draw_panel(small, panel, 10, 5)  # no room at all
    assert not small.any()


# ----------------------------------------------------------------------------------------------------------------------
# Snapshots and recordings


def test_snapshots_and_recordings_are_saved(tmp_path):
    said, controls = [], Controls(snapshot=True, recording=True)
    sharp, shown = noise(48, 64), noise(48, 64, seed=1)
    with CaptureSaver(said.append, 25, tmp_path) as saver:
        for _ in range(5):
            saver.save(controls, sharp, shown)
            time.sleep(0.002)
        saver.save(controls, sharp, noise(24, 32))  # scaled
        assert not controls.snapshot
        controls.press("r")
        saver.save(controls, sharp, shown)
    (snapshot,), (recording,) = tmp_path.glob("*.png"), tmp_path.glob("*.mp4")
    assert np.array_equal(cv2.imread(str(snapshot)), sharp)
    assert 1 <= len(read_times(recording)) <= 6
    assert sorted(said) == [f"recorded {recording}", f"saved {snapshot}"]


def test_what_cannot_be_saved_is_said(tmp_path):
    said, controls = [], Controls(snapshot=True, recording=True)
    (tmp_path / "file").touch()
    with CaptureSaver(said.append, 25, tmp_path / "file") as saver:  # which is no folder
        saver.save(controls, noise(16, 16), noise(16, 16))
        assert not controls.recording
    assert len(said) == 2 and all("sharpened_" in message for message in said)


def test_a_recorder_that_is_behind_says_so(tmp_path, monkeypatch):
    waiting = threading.Event()
    monkeypatch.setattr(VideoWriter, "write", lambda *_: waiting.wait())
    with pytest.raises(VideoError, match="no frame"), Recorder(tmp_path / "out.mp4", (16, 16), 25) as recorder:
        for _ in range(window._QUEUE_LENGTH):
            assert not recorder.full
            recorder.show(noise(16, 16))
        assert recorder.full
        waiting.set()


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


def test_a_dead_display_is_an_error_not_an_abort(exported, tmp_path):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    result = run_script(source.as_uri(), "--checkpoint", exported, DISPLAY=":4242")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "no window can be opened" in result.stderr


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
        do("key", "--repeat", "5", "--delay", "100", "Left")
        wait_for(lambda: divider() in range(125, 131))
        do("mousemove", "128", "200", "mousedown", "1", "mousemove", "200", "200", "mousemove", "240", "200")
        do("mouseup", "1")
        wait_for(lambda: divider() in range(237, 242))
        do("key", "--delay", "150", "c", "o")
        wait_for(lambda: divider() is None and not (screen()[5:20, 5:100] > 250).any())
        do("key", "h")
        wait_for(lambda: shows_help(screen()))
        do("key", "r")
        wait_for(lambda: list(folder.glob("*")))
        time.sleep(0.5)
        do("key", "r")
        wait_for(lambda: list(folder.glob("sharpened_*.mp4")))
        # A snapshot is sharpened all the same, and frames as they came take the overlay too.
        do("key", "--delay", "150", "space", "p", "o")
        wait_for(lambda: len(list(folder.glob("*.png"))) == 1)
        wait_for(lambda: (screen()[5:20, 5:100] > 250).any())
        do("key", "--repeat", "10", "--delay", "100", "minus")
        time.sleep(0.5)
        do("key", "p")
        wait_for(lambda: len(list(folder.glob("*.png"))) == 2)
        close_like_a_window_manager(display, int(window.split()[0]))
        output, errors = program.communicate(timeout=15)
    finally:
        program.kill()
        program.wait()
    assert (program.returncode, errors) == (0, "")
    assert re.search(r"\d+ frames of 320x240 in .*\n0 frames dropped; added latency [0-9.]+ ms, 95 % within", output)
    (recording,) = folder.glob("*.mp4")
    assert len(read_times(recording)) >= 5
    with VideoReader(recording) as reader:  # what is shown, without the help over it
        assert not any(shows_help(frame) for frame in pictures(reader))
    sharp, soft = (cv2.imread(str(path)) for path in sorted(folder.glob("*.png")))
    with VideoReader(source) as reader:
        came = pictures(reader)
    assert any(np.array_equal(soft, frame) for frame in came)  # strength 0
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


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
@pytest.mark.parametrize("budget", [None, 1e-4])
def test_a_virtual_camera_gets_sharpened_frames_until_ctrl_c(sharpener, tmp_path, monkeypatch, capsys, size, budget):
    library = types.SimpleNamespace(Camera=FakeVirtualCamera, PixelFormat=types.SimpleNamespace(BGR="bgr"))
    monkeypatch.setitem(sys.modules, "pyvirtualcam", library)
    pixels = {"codec": "ffv1", "pixel_format": "yuv420p" if size == (64, 48) else "gray"}
    source = encode(tmp_path / "in.mkv", times=CONSTANT, size=size, **pixels)
    stats = sharpener.process_video_stream(str(source), frame_budget=budget, virtual_camera=True)
    camera = FakeVirtualCamera.newest
    assert (camera.width, camera.height, camera.fps, camera.fmt) == (64, 48, 25, "bgr") and camera.closed
    assert stats["size"] in (size, (0, 0)) and len(camera.sent) == 5 and stats["frames"] in (4, 5)
    assert list(stats["levels"]) == list(LoadController.LEVELS)
    if size == (64, 48):
        with VideoReader(source) as reader:
            sharp = [reader.to_bgr(*sharpener.sharpen_planes(frame.y, frame.uv)) for frame in reader]
        assert np.array_equal(camera.sent, sharp[:5])


def test_without_pyvirtualcam_or_a_device_it_says_what_to_do(exported, tmp_path, monkeypatch, capsys):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    command = [str(source), "--virtual-camera", "--checkpoint", str(exported), "--device", "cpu"]
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    assert inference.main(command) == 2
    message = capsys.readouterr().err
    assert "pip install pyvirtualcam" in message and "GNU GPL" in message and len(message.splitlines()) == 1

    class Missing:
        def __init__(self, **_):
            raise RuntimeError("'v4l2loopback' backend: No v4l2 loopback device found")

    library = types.SimpleNamespace(Camera=Missing, PixelFormat=types.SimpleNamespace(BGR="bgr"))
    monkeypatch.setitem(sys.modules, "pyvirtualcam", library)
    assert inference.main(command) == 2
    message = capsys.readouterr().err
    assert "there is no virtual camera" in message and "modprobe" in message and len(message.splitlines()) == 1
    assert inference.main([*command, "-o", "out.mp4"]) == 2
    assert "leave out -o" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.skipif(not sys.platform.startswith("linux") or Path("/dev/video0").exists(), reason="needs no camera")
def test_the_real_pyvirtualcam_without_a_device():
    pytest.importorskip("pyvirtualcam", reason="pyvirtualcam (GNU GPL 2) is not installed")
    with window.VirtualCamera(25) as camera, pytest.raises(VideoError, match="modprobe v4l2loopback"):
        camera.show(noise(48, 64))
