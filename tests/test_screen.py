"""The screen as a source."""

import os
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from images import VideoError
from screen import Screen, find_region, is_screen
from tests.conftest import pictures
from tests.test_cli import run_script
from tests.test_inference import ROOT
from utils import bgr_to_planes, to_limited_range
from video import VideoReader

MONITORS = [(-1280, 0, 3200, 1080), (0, 0, 1920, 1080), (-1280, 0, 1280, 720)]
STILL = """
import cv2, sys
cv2.namedWindow("still", cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
cv2.moveWindow("still", 0, 0)
while True:
    cv2.imshow("still", cv2.imread(sys.argv[1]))
    cv2.waitKey(200)
"""


def test_parts_of_the_screen():
    assert is_screen("screen:") and is_screen("screen:2") and not is_screen("screen.mp4") and not is_screen(0)
    assert find_region("2", MONITORS) == MONITORS[2]
    assert find_region("-1280,80,1280x720", MONITORS) == (-1280, 80, 1280, 720)
    for text in ("0", "3", "1900,0,100x100", "0,0,4x400", "banana", ""):
        with pytest.raises(VideoError, match=r"no part of the screen: .* 1 to 2, .* within -1280,0,3200x1080"):
            find_region(text, MONITORS)


@pytest.mark.parametrize(
    ("environment", "message"),
    [({}, "cannot be read"), ({"WAYLAND_DISPLAY": "wayland-0"}, "X11")],
)
def test_without_a_screen_it_says_what_to_do(exported, environment, message):
    result = run_script("--screen", "1", "--checkpoint", exported, **environment)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1) and message in result.stderr


def test_the_screen_is_recorded_sharpened_and_enlarged(sharpener, tmp_path, display, monkeypatch):
    still = np.full((96, 128, 3), (200, 90, 30), np.uint8)
    still[20:60, 30:90] = (20, 160, 240)
    cv2.imwrite(str(tmp_path / "still.png"), still)
    player = subprocess.Popen(
        [sys.executable, "-c", STILL, tmp_path / "still.png"], env=os.environ | {"DISPLAY": display}
    )
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    try:
        with Screen("screen:0,0,128x96") as screen:
            end = time.monotonic() + 30
            for picture, taken, due in screen:
                assert time.monotonic() < end and taken and due is None
                if np.array_equal(picture, still):
                    break
            assert screen.free_place(300, 300) == (128, 0) and screen.free_place(1200, 300) is None
        stats = sharpener.process_video_stream(
            "screen:0,0,128x96", tmp_path / "out.mp4", quality=0, size="2x", on_frame=lambda number, _: number < 4
        )
    finally:
        player.kill()
        player.wait()
    assert (stats["frames"], stats["source_size"], stats["size"]) == (5, (128, 96), (256, 192))
    planes = to_limited_range(*bgr_to_planes(sharpener.sharpen(still, size="2x")))
    with VideoReader(tmp_path / "out.mp4") as reader:
        np.testing.assert_array_equal(pictures(reader)[-1], reader.to_bgr(*planes))


def test_a_rectangle_is_drawn_with_the_mouse(tmp_path, display, monkeypatch):
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    code = "import window, numpy; print(window.draw_rectangle(numpy.full((300, 400, 3), 90, numpy.uint8)))"
    drawing = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    window = ["search", "--sync", "--onlyvisible", "--name", "Draw a rectangle"]
    drag = [*window, "mousemove", "50", "60", "mousedown", "1", "mousemove", "150", "140", "mousemove", "250", "160"]

    def act(*words):
        subprocess.run(["xdotool", *words], env={"DISPLAY": display}, check=True, timeout=60)

    try:
        with Screen("screen:0,0,400x300") as screen:
            for count, (picture, _, _) in enumerate(screen):
                if (picture[155:165, 245:255] == (255, 0, 0)).all(axis=2).any():  # the rectangle's corner
                    break
                if count % 100 == 0:  # a busy window may not hear the mouse
                    act("mouseup", "1", *drag)
        act("mouseup", "1", "sleep", "0.5", "key", "Return")
        output, _ = drawing.communicate(timeout=60)
    except FileNotFoundError:
        pytest.skip("xdotool is not installed")
    finally:
        drawing.kill()
    assert output.strip() == "(50, 60, 200, 100)"


def test_pictures_of_the_screen_that_were_missed_are_counted(display, monkeypatch):
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with Screen("screen:0,0,64x64") as screen:
        begin = time.perf_counter()
        for count, _ in enumerate(screen, 1):
            time.sleep(0.05)
            if count == 20:
                break
        due = (time.perf_counter() - begin) * screen.rate
        assert abs(count + screen.dropped - due) <= 3
