"""The camera, the window, and how much is sharpened when the machine is busy."""

import ctypes.util
import functools
import itertools
import logging
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
import live
from images import VideoError
from inference import RealTimeSharpener
from live import Camera, Controls, Keeper, LoadController, Meter, Recorder, Schedule, play
from tests.conftest import CONSTANT, encode, pictures, read_times
from tests.test_cli import ROOT, run_script
from tests.test_inference import noise
from video import VideoReader

# ----------------------------------------------------------------------------------------------------------------------
# Camera


class FakeCapture:
    """A camera of 30 numbered frames, then unplugged; `plugged` says what each attempt to open it finds.

    It stands for the hardware, which tests have none of.
    """

    plugged, size, opened = [True], (64, 48), []

    def __init__(self, source, *_):
        self.source, self.released, self.settings = source, False, {}
        turn = len(FakeCapture.opened)
        self.plugged = source != 7 and (FakeCapture.plugged[turn : turn + 1] or [False])[0]
        self.left = 30 if self.plugged else 0
        FakeCapture.opened.append(self)

    def isOpened(self):
        return self.plugged

    def set(self, name, value):
        self.settings[name] = value
        return True

    def read(self):
        self.left -= 1
        if self.left < 0:
            return False, None
        width, height = self.plugged if isinstance(self.plugged, tuple) else self.size
        return True, np.full((height, width, 3), self.left, np.uint8)

    def get(self, _):
        return 30.0

    def release(self):
        self.released = True


class SlowCapture(FakeCapture):
    """The same at 100 frames a second."""

    def read(self):
        time.sleep(0.01)
        return super().read()


@pytest.fixture
def capture(monkeypatch):
    """Puts `FakeCapture` in place of OpenCV's; its attributes may be changed."""
    monkeypatch.setattr(FakeCapture, "opened", [])
    monkeypatch.setattr(FakeCapture, "plugged", [True])
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(live, "_RETRY", 0.01)
    monkeypatch.setattr(live, "Camera", functools.partial(Camera, patience=0.1))
    monkeypatch.setattr(inference, "Camera", live.Camera)
    yield FakeCapture
    assert all(opened.released for opened in FakeCapture.opened)
    assert not any(thread.name == "camera" for thread in threading.enumerate())


def values(camera):
    return [frame.max() for frame, _, _ in camera if frame is not None]


def test_camera_gives_newest_frame_and_says_when_it_is_gone(capture, caplog):
    with Camera(0, patience=0) as camera:
        assert (camera.size, camera.rate) == ((64, 48), 30)
        camera._thread.join()  # nobody was in time for the frames before
        assert values(camera) == [0] and camera.dropped == 29
        assert "camera 0 gives no more frames" in caplog.text
    with pytest.raises(VideoError, match="camera 7 cannot be opened"):
        Camera(7)


def test_no_frame_of_a_camera_is_seen_twice(capture, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", SlowCapture)
    with Camera(0, patience=0) as camera:
        seen = values(camera)
        assert seen == sorted(set(seen), reverse=True) and len(seen) + camera.dropped == 30
        assert len(seen) > 10


def test_an_unplugged_camera_is_waited_for(capture, monkeypatch, caplog):
    monkeypatch.setattr(cv2, "VideoCapture", SlowCapture)
    capture.plugged = [True, False, False, True]
    with Camera("/dev/video2", (64, 48), patience=0.5) as camera:
        seen, notes = [], set()
        for frame, _, _ in camera:
            seen += [] if frame is None else [frame.max()]
            notes.add(camera.note)
    assert seen.count(29) == 2  # that of either time
    assert [opened.plugged for opened in capture.opened[:4]] == [True, False, False, True]
    assert {opened.source for opened in capture.opened} == {"/dev/video2"}
    assert [opened.settings for opened in capture.opened[::3]][:2] == [{3: 64, 4: 48}] * 2
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    messages = [message.removeprefix("camera /dev/video2 ") for message in told]
    gone = "is gone: waiting up to 0.5 s for it"
    assert messages == [gone, "is back", gone, "gives no more frames: is it still plugged in?"]
    assert "camera /dev/video2 is gone" in notes


@pytest.mark.parametrize(
    ("size", "rate", "settings", "message"),
    [
        (None, None, {}, "camera 0: gives 64x48 at 30"),
        ((64, 48), 30, {3: 64, 4: 48, 5: 30}, "camera 0: asked for 64x48 at 30 FPS, gives 64x48 at 30"),
        (
            (1920, 1080),
            60,
            {6: cv2.VideoWriter.fourcc(*"MJPG"), 3: 1920, 4: 1080, 5: 60},
            "camera 0: asked for 1920x1080 at 60 FPS, gives 64x48 at 30",
        ),
    ],
)
def test_settings_of_a_camera(capture, caplog, size, rate, settings, message):
    with caplog.at_level("INFO", "live"), Camera(0, size, rate, patience=0):
        assert list(capture.opened[0].settings.items()) == list(settings.items())  # the order matters to drivers
    assert caplog.records[0].getMessage() == message
    assert (caplog.records[0].levelname == "WARNING") == (size == (1920, 1080))


def test_a_camera_that_fails_half_way_is_released(capture, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no more threads")))
    with pytest.raises(RuntimeError, match="no more threads"):
        Camera(0)
    assert capture.opened[0].released


def test_what_is_a_camera():
    assert all(map(live.is_camera, (0, 7, "/dev/video2", "/dev/v4l/by-id/usb-camera")))
    assert not any(map(live.is_camera, ("in.mp4", "rtsp://host/dev/video2", "/dev/shm/in.mp4", Path("in.mp4"))))


@pytest.mark.parametrize("stopped_by", ["Ctrl-C", "unplugging"])
def test_a_stopped_recording_is_kept(sharpener, tmp_path, capture, monkeypatch, caplog, stopped_by):
    monkeypatch.setattr(cv2, "VideoCapture", SlowCapture)
    written, threads = [], set()
    if stopped_by == "Ctrl-C":
        capture.plugged = [True] * 100  # however late the encoder is

    def write(writer, frame, original=live.VideoWriter.write):
        original(writer, frame)
        written.append(frame.pts)
        threads.add(threading.current_thread())
        if stopped_by == "Ctrl-C" and len(written) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(live.VideoWriter, "write", write)
    stats = sharpener.process_video_stream(0, tmp_path / "recorded.mp4")
    assert stats["frames"] == len(written) >= 3 and stats["output"] == tmp_path / "recorded.mp4"
    assert stats["dropped"] >= 0 and 0 < stats["latency_ms"] <= stats["latency_p95_ms"]
    assert threading.main_thread() not in threads
    distinct = itertools.accumulate(written, lambda last, time: max(last + 1, time))  # two may come in a millisecond
    assert read_times(tmp_path / "recorded.mp4") == list(distinct) and written == sorted(written)
    assert ("no more frames" in caplog.text) == (stopped_by == "unplugging")


@pytest.mark.parametrize(("size", "kept"), [((64, 48), True), ((32, 24), False)], ids=["same", "other"])
def test_a_recording_goes_on_with_a_camera_that_is_back(sharpener, tmp_path, capture, monkeypatch, caplog, size, kept):
    monkeypatch.setattr(cv2, "VideoCapture", SlowCapture)
    capture.plugged = [True, False, size]
    stats = sharpener.process_video_stream(0, tmp_path / "recorded.mp4")
    with VideoReader(tmp_path / "recorded.mp4") as reader:
        luma = [frame.y.mean() for frame in reader]
    assert stats["frames"] == len(luma) and stats["size"] == (64, 48)
    assert ("changed to 32x24: the recording ends" in caplog.text) == (not kept)
    assert "is back" in caplog.text and (np.diff(luma) > 2).any() == kept  # it counts down, each time anew


def test_a_recording_stopped_before_its_first_frame_leaves_nothing(sharpener, tmp_path, capture, monkeypatch):
    monkeypatch.setattr(RealTimeSharpener, "sharpen", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        sharpener.process_video_stream(0, tmp_path / "recorded.mp4")
    assert not list(tmp_path.iterdir())


def test_a_failing_encoder_ends_a_recording(sharpener, tmp_path, capture, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(cv2, "VideoCapture", SlowCapture)
    monkeypatch.setattr(live.VideoWriter, "write", fail)
    with pytest.raises(VideoError, match=r"cannot write .*recorded.mp4: No space left on device"):
        sharpener.process_video_stream(0, tmp_path / "recorded.mp4")
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------------------
# Window


@pytest.fixture
def display():
    """Name of a virtual display."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    read_end, write_end = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "640x480x24"],
        pass_fds=[write_end],
        stderr=subprocess.DEVNULL,
    )
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        number = pipe.readline().strip()
    yield f":{number}"
    server.terminate()
    server.wait()


class FakeClock:
    """A `time` whose seconds pass only when they are spent."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


def test_a_file_plays_whole_and_a_live_stream_leaves_out_what_is_late(monkeypatch):
    monkeypatch.setattr(live, "time", clock := FakeClock())

    def play(live, stamps, cost):
        shown = []
        for index, taken, due in Schedule(enumerate(stamps), live):
            assert taken == clock.now
            shown.append((index, round(due - clock.now, 6)))
            clock.now = max(clock.now + cost, due)
        return shown

    stamps = [90_000 + 0.04 * index for index in range(100)]  # such clocks seldom begin at 0
    at_its_rate = play(False, stamps, 0.01)
    assert [index for index, _ in at_its_rate] == list(range(100)) and at_its_rate[0][1] == 0
    assert all(0.029 < wait < 0.041 for _, wait in at_its_rate[1:])
    assert play(True, stamps, 0.01) == [(index, 0) for index in range(100)]  # as fast as they come
    assert [index for index, _ in play(False, stamps, 0.1)] == list(range(100))
    slow = play(True, stamps, 0.1)
    assert 30 < len(slow) < 60 and min(wait for _, wait in slow) >= -0.150001
    # It freezes neither where the clock jumps nor where nothing ever comes in time.
    jumped = play(True, [0, 0.04, 5000, 5000.04, 3, 3.04], 0.01)
    assert [index for index, _ in jumped] == list(range(6)) and max(wait for _, wait in jumped) < 0.1

    def late():
        for index in range(100):
            clock.now += 0.1
            yield index, 0.04 * index

    assert 8 <= len(list(schedule := Schedule(late(), True))) < 30
    assert 70 < schedule.dropped <= 92

    def drifting_and_stalled():
        for index in range(31_000):  # twenty minutes; the sender's clock loses half a second in them
            if index == 30_000:
                clock.now += 15  # what comes in the meantime waits
            clock.now = max(clock.now, 0.04002 * index)
            yield index, 0.04 * index

    clock.now = 0
    shown = [index for index, _, _ in Schedule(drifting_and_stalled(), True)]
    assert shown[:30_000] == list(range(30_000)) and shown[-500:] == list(range(30_500, 31_000))
    assert len(shown) < 30_700


def test_a_video_plays_in_a_window(exported, tmp_path, display):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    result = run_script(source.as_uri(), "--checkpoint", exported, DISPLAY=display)
    assert (result.returncode, result.stderr) == (0, "")
    seconds = re.match(r"20 frames of 64x48 in ([0-9.]+) s", result.stdout)[1]
    assert 0.7 <= float(seconds) < 5  # at its own rate, not as fast as it can


def play_costs(load, costs):
    """Run frames of these costs in milliseconds through a controller; returns the level after each."""
    levels = []
    for cost in costs:
        if load.takes_next() and load.sharpens:
            load.add(cost)
        levels.append(load.level)
    return np.array(levels)


def changes(levels):
    return np.count_nonzero(np.diff(levels, prepend=0))


@pytest.mark.parametrize(
    ("cost", "level"), [(5, 0), (32, 0), (34, 1), (60, 1), (70, 2), (500, 2)], ids=lambda value: str(value)
)
def test_a_constant_load_finds_its_level_and_stays(cost, level):
    levels = play_costs(LoadController(None, 30), [cost] * 10_000)
    assert changes(levels) == level and (levels[100:] == level).all()
    assert (play_costs(LoadController(0, 30), [cost] * 100) == 0).all()  # no limit


def test_a_spike_is_no_load():
    costs = np.where(np.arange(3000) % 10 < 3, 200, 20)
    assert (play_costs(LoadController(None, 30), costs) == 0).all()


@pytest.mark.parametrize(("busy", "lowest"), [(45, 1), (150, 2)])
def test_it_comes_back_when_the_machine_is_free_again(busy, lowest):
    load = LoadController(None, 30)
    assert (play_costs(load, [10] * 300) == 0).all()
    levels = play_costs(load, [busy] * 600)
    assert levels.max() == levels[-1] == lowest
    levels = play_costs(load, [10] * 900)
    assert (levels[:89] == lowest).all()  # not within three seconds
    assert levels[-1] == 0 and changes(levels) == lowest + 1  # the first counts from 0
    assert (np.diff(levels) <= 0).all()


@pytest.mark.parametrize("cost", [0.7, 0.85, 1, 1.5, 2])
@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_near_a_threshold_it_does_not_swing(rng, cost, spread):
    costs = 1000 / 30 * cost * rng.lognormal(0, spread, 10_000)
    assert changes(play_costs(LoadController(None, 30), costs)) <= 6


@pytest.mark.parametrize("busy", [45, 150])
def test_steps_up_in_vain_become_rare(busy):
    # Whenever it is back at the first level, the machine becomes busy; below, it looks free.
    load, levels = LoadController(None, 30), []
    for _ in range(20_000):
        levels.extend(play_costs(load, [busy if load.level == 0 else 10]))
    steps_up = np.flatnonzero(np.diff(levels) < 0)
    assert np.diff(steps_up)[0] < 8 * 30 and (np.diff(steps_up)[5:] > 59 * 30).all()


@pytest.mark.parametrize(("cost", "most"), [(500, 11), (20, 4)])
def test_probes_are_rare(cost, most):
    load = LoadController(None, 30)
    play_costs(load, [500] * 60)
    assert load.bypassed
    probed = []
    for index in range(80 * 30):
        load.takes_next()
        if not load.bypassed:
            break
        if load.sharpens:
            probed.append(index)
            load.add(cost)
    assert 3 <= len(probed) <= most
    assert np.diff(probed).min() >= 30 and np.diff(probed).max() <= 300


def test_every_other_frame_is_left_out():
    load = LoadController(40, 25)
    play_costs(load, [50] * 30)
    assert [load.takes_next() for _ in range(6)] in ([True, False] * 3, [False, True] * 3)
    assert load.frames == {"every frame": 30, "every other frame": 3, "not sharpened": 0}
    assert load.note == "every other frame (this machine is busy)" and LoadController(40, 25).note == ""


@pytest.mark.parametrize("comparing", [False, True])
def test_what_is_shown_is_sharpened_as_the_load_says(comparing):
    frames, load, levels = [(noise(16, 16), index / 30) for index in range(95)], LoadController(1e-4, 30), []
    screen = FakeScreen()
    screen.show = lambda frame, *_: screen.notes.append(load.note)
    screen.controls.comparing = comparing

    def sharpen(frame, strength):
        if strength:
            levels.append(load.level)
        return frame + bool(strength)

    shown = list(play(Schedule(frames, True), sharpen, screen, load, Meter()))
    assert levels == [0] * 30 + [1] * 15 + [2]  # at last to see what it would cost
    assert (load.frames["every frame"], load.frames["every other frame"]) == (30, 15) and load.bypassed
    came, beside = frames[0][0], slice(10 if comparing else 0, None)  # the line between is four pixels wide
    assert all(np.array_equal(picture[:, beside], came[:, beside] + 1) for picture in shown[:45])
    assert all(np.array_equal(picture[:, beside], came[:, beside]) for picture in shown[45:])
    assert all(np.array_equal(picture[:, :6], came[:, :6]) == comparing for picture in shown[:45])


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_is_checked(budget):
    with pytest.raises(ValueError, match="milliseconds from 0"):
        LoadController(budget, 30)
    for absurd in (0, 90_000):  # what some streams say
        assert (play_costs(LoadController(None, absurd), [25] * 100) == 0).all()


class FakeScreen:
    """A screen whose user turns sharpening off after 35 frames."""

    def __init__(self):
        self.controls, self.notes = Controls(), []

    def show(self, frame, milliseconds, note, meter):
        self.notes.append(note)
        self.controls.sharpening = len(self.notes) < 35


def test_a_window_answers_while_the_camera_is_gone(capture):
    screen = FakeScreen()
    screen.idle = lambda note: setattr(screen.controls, "closed", note == "camera 0 is gone")
    with Camera(0, patience=60) as camera:
        shown = list(play(camera, lambda frame, *_: frame, screen, LoadController(0, 30), Meter()))
    assert shown and len(screen.notes) == len(shown)


def test_while_the_user_has_sharpening_off_every_frame_is_shown():
    frames, screen, meter = [(noise(16, 16), 0) for _ in range(65)], FakeScreen(), Meter()
    load = LoadController(1e-4, 30)
    shown = list(play(Schedule(frames, False), lambda frame, strength: frame + (strength > 0), screen, load, meter))
    assert load.frames == {"every frame": 30, "every other frame": 5, "not sharpened": 0}
    busy = f"{LoadController.LEVELS[1]} (this machine is busy)"
    # The fifth of every other frame is the 40th that came; after it, all 25.
    assert screen.notes == [""] * 30 + [busy] * 5 + [""] * 25 and len(shown) == 60
    assert meter.stats["dropped"] == 5


@pytest.mark.parametrize("budget", ["0.001", "0"])
def test_a_window_that_is_over_its_budget_ends_unsharpened_and_says_so(exported, tmp_path, display, budget):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=range(0, 1000, 10))
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import inference, live, cv2, numpy
inference.Controls = lambda *chosen: live.Controls(*chosen, overlay=False)
titles, shown, set_title, show = [], [], cv2.setWindowTitle, cv2.imshow
cv2.setWindowTitle = lambda name, title: (titles.append(title), set_title(name, title))
cv2.imshow = lambda name, frame: (shown.append(frame.copy()), show(name, frame))
code = inference.main({[source.as_uri(), "--budget", budget, "--checkpoint", str(exported)]!r})
print(titles)
numpy.save({str(tmp_path / "shown.npy")!r}, shown)
sys.exit(code)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"DISPLAY": display},
    )
    assert (result.returncode, result.stderr) == (0, "")
    shown = np.load(tmp_path / "shown.npy")
    with VideoReader(source) as reader:
        came = np.array(pictures(reader))
    if budget == "0":
        assert len(shown) == 100 and (shown != came).any(axis=(1, 2, 3)).all()
        assert "busy" not in result.stdout
        return
    # 30 frames, 15 of the next 30, and all the others as they came
    assert "every frame: 30 shown, every other frame: 15 shown, not sharpened: 40 shown" in result.stdout
    assert "85 frames of 64x48" in result.stdout and len(shown) == 85
    assert np.array_equal(shown[45:], came[60:])
    assert (shown[:45] != np.concatenate([came[:30], came[31:60:2]])).any(axis=(1, 2, 3)).all()
    notes = [f"{name} (this machine is busy)" for name in LoadController.LEVELS[1:]]
    assert str([f"Real-time sharpener - {note}" for note in notes]) in result.stdout


def test_a_dead_display_is_an_error_not_an_abort(exported, tmp_path):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    result = run_script(source.as_uri(), "--checkpoint", exported, DISPLAY=":4242")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "no window can be opened" in result.stderr


# ----------------------------------------------------------------------------------------------------------------------
# Keys and what they do


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
        ("p", {}, {"picture": True}),
        ("r", {}, {"recording": True}),
        ("fofh", {}, {"overlay": False, "help": True}),
        ("q", {}, {"closed": True}),
        (["esc"], {}, {"closed": True}),
        (["", "x", "Q"], {}, {}),
    ],
)
def test_keys(keys, chosen, changed):
    assert pressed(keys, **chosen) == pytest.approx(changed)


def test_every_key_in_the_help_does_something():
    for keys, _ in live.KEYS:
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
    assert live.key_name(code) == name


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_panel_can_be_read_on_any_picture_and_is_removed_again(value):
    frame = np.full((120, 200, 3), value, np.uint8)
    panel = live.text_panel(("sharpening on", "key\tmeaning"), 14)
    region, below = live.draw_panel(frame, panel, 10, 5)
    height, width = panel.shape[:2]
    assert (frame[:5] == value).all() and (frame[:, 10 + width :] == value).all()
    drawn = frame[5 : 5 + height, 10 : 10 + width]
    assert drawn.max() == 255 and np.median(drawn) <= 0.3 * value + 1
    region[:] = below
    assert (frame == value).all()
    small = np.zeros((4, 3, 3), np.uint8)
    live.draw_panel(small, panel, 10, 5)  # no room at all
    assert not small.any()


def test_the_overlay_says_how_much_is_sharpened():
    controls = live.Controls(1.0, False)
    assert live.state_line(controls) == "sharpening on, strength 1.0"
    controls.press("+")
    assert live.state_line(controls) == "sharpening on, strength 1.1"
    controls.press(" ")
    assert live.state_line(controls) == "sharpening off"


@pytest.mark.parametrize(("divider", "left"), [(0, 0), (0.25, 10), (1, 40)])
def test_the_divider(divider, left):
    before, after = np.full((4, 40, 3), 100, np.uint8), np.full((4, 40, 3), 200, np.uint8)
    joined = live.divide_frames(before, after, divider)
    assert (joined[:, : max(left - 2, 0)] == 100).all() and (joined[:, left + 2 :] == 200).all()
    assert 255 in joined and 0 in joined
    assert (after == 200).all()


def test_meter():
    meter = Meter()
    assert meter.text == "0 FPS, 0 ms, 0 dropped" and meter.stats["latency_ms"] == 0
    for index in range(100):
        meter.add(index / 25, index)
    meter.dropped = 3
    assert meter.text == "25 FPS, 84 ms, 3 dropped"  # of the last 30
    assert meter.stats == pytest.approx({"dropped": 3, "latency_ms": 49.5, "latency_p95_ms": 94.05})


def test_pictures_and_recordings_are_kept(tmp_path):
    said, controls = [], Controls(picture=True, recording=True)
    sharp, shown = noise(48, 64), noise(48, 64, seed=1)
    with Keeper(said.append, 25, tmp_path) as keeper:
        for _ in range(5):
            keeper.keep(controls, sharp, shown)
            time.sleep(0.002)
        assert not controls.picture and controls.recording
        keeper.keep(controls, noise(24, 32), noise(24, 32))  # another size ends it
        assert not controls.recording
    (picture,), (recording,) = tmp_path.glob("*.png"), tmp_path.glob("*.mp4")
    assert np.array_equal(cv2.imread(str(picture)), sharp)
    assert 1 <= len(read_times(recording)) <= 5
    assert sorted(said) == [f"recorded {recording}", f"saved {picture}"]


def test_the_picture_does_not_wait_for_those_to_be_saved(tmp_path, monkeypatch):
    said, controls, release, save = [], Controls(), threading.Event(), live.write_image

    def slowly(path, picture):
        assert release.wait(20)
        save(path, picture)

    monkeypatch.setattr(live, "write_image", slowly)
    with Keeper(said.append, 25, tmp_path) as keeper:
        for _ in range(10):  # the key is held down
            controls.press("p")
            keeper.keep(controls, noise(16, 16), noise(16, 16))
            time.sleep(0.002)
        release.set()
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert sum("not saved" in message for message in said) == 8


def test_what_cannot_be_kept_is_said(tmp_path):
    said, controls = [], Controls(picture=True, recording=True)
    (tmp_path / "file").touch()
    with Keeper(said.append, 25, tmp_path / "file") as keeper:  # which is no folder
        keeper.keep(controls, noise(16, 16), noise(16, 16))
        assert not controls.recording
    assert len(said) == 2 and all("sharpened_" in message for message in said)


def test_a_recorder_that_is_behind_says_so(tmp_path, monkeypatch):
    waiting = threading.Event()
    monkeypatch.setattr(live.VideoWriter, "write", lambda *_: waiting.wait())
    with pytest.raises(VideoError, match="no frame"), Recorder(tmp_path / "out.mp4", (16, 16), 25) as recorder:
        for _ in range(live._QUEUE):
            assert not recorder.full
            recorder.add(noise(16, 16))
        assert recorder.full
        waiting.set()


# ----------------------------------------------------------------------------------------------------------------------
# A real window and real keys


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
        do("key", "c", "o")
        wait_for(lambda: divider() is None and not (screen()[5:20, 5:100] > 250).any())
        do("key", "h")
        wait_for(lambda: shows_help(screen()))
        do("key", "r")
        wait_for(lambda: list(folder.glob("*")))
        time.sleep(0.5)
        do("key", "r")
        wait_for(lambda: list(folder.glob("sharpened_*.mp4")))
        do("key", "space", "p", "o")  # a picture is sharpened all the same; frames as they came take the overlay too
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
    for platform, advice in (("linux", "modprobe v4l2loopback"), ("darwin", "OBS"), ("win32", "OBS")):
        monkeypatch.setattr(live.sys, "platform", platform)
        assert inference.main(command) == 2
        message = capsys.readouterr().err
        assert "there is no virtual camera" in message and advice in message and len(message.splitlines()) == 1
    assert inference.main([*command, "-o", "out.mp4"]) == 2
    assert "leave out -o" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.skipif(not sys.platform.startswith("linux") or Path("/dev/video0").exists(), reason="needs no camera")
def test_the_real_pyvirtualcam_without_a_device():
    pytest.importorskip("pyvirtualcam", reason="pyvirtualcam (GNU GPL 2) is not installed")
    with live.VirtualCamera(25, Controls()) as camera, pytest.raises(VideoError, match="modprobe v4l2loopback"):
        camera.show(noise(48, 64))


@pytest.mark.parametrize("text", ["1280", "0x720", "axb", "1280x720x3"])
def test_a_camera_size_is_checked(text, capsys):
    with pytest.raises(SystemExit):
        inference.main(["--camera-size", text])
    assert "such as 1280x720" in capsys.readouterr().err
