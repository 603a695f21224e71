"""The camera, the window, and how much is sharpened when the machine is busy."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

import inference
import live
from inference import RealTimeSharpener
from live import Camera, LoadController, scheduled
from tests.test_cli import ROOT, run_script
from tests.test_inference import noise
from tests.test_video import CONSTANT, encode, read_times
from video import VideoError, VideoReader

# ----------------------------------------------------------------------------------------------------------------------
# Camera


class FakeCapture:
    """A camera of 30 numbered frames, then unplugged."""

    def __init__(self, index):
        self.left, self.released = 30 if index == 0 else 0, False

    def isOpened(self):
        return self.left > 0

    def read(self):
        self.left -= 1
        return (True, np.full((48, 64, 3), self.left, np.uint8)) if self.left >= 0 else (False, None)

    def get(self, _):
        return 30.0

    def release(self):
        self.released = True


def test_camera_gives_newest_frame_and_says_when_it_is_gone(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    with Camera(0) as camera:
        assert (camera.size, camera.rate) == ((64, 48), 30)
        camera._thread.join()  # nobody was in time for the frames before
        assert camera.read().max() == 0
        with pytest.raises(VideoError, match="no more frames"):
            camera.read(timeout=0.1)
    assert camera._capture.released
    with pytest.raises(VideoError, match="camera 7 cannot be opened"):
        Camera(7)


class SlowCapture(FakeCapture):
    """The same at 50 frames a second."""

    def read(self):
        time.sleep(0.02)
        return super().read()


@pytest.mark.parametrize("stopped_by", ["Ctrl-C", "unplugging"])
def test_a_stopped_recording_is_kept(sharpener, tmp_path, monkeypatch, caplog, stopped_by):
    monkeypatch.setattr(cv2, "VideoCapture", SlowCapture)
    written = []

    def write(writer, frame, original=inference.VideoWriter.write):
        original(writer, frame)
        written.append(frame.pts)
        if stopped_by == "Ctrl-C" and len(written) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(inference.VideoWriter, "write", write)
    stats = sharpener.process_video_stream(0, tmp_path / "recorded.mp4")
    assert stats["frames"] == len(written) == 3 or stopped_by == "unplugging"
    assert read_times(tmp_path / "recorded.mp4") == written == sorted(set(written))
    assert ("no more frames" in caplog.text) == (stopped_by == "unplugging")


def test_a_recording_stopped_before_its_first_frame_leaves_nothing(sharpener, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(RealTimeSharpener, "sharpen", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
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
        for index, due in scheduled(enumerate(stamps), live):
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

    assert 8 <= len(list(scheduled(late(), True))) < 30

    def drifting_and_stalled():
        for index in range(31_000):  # twenty minutes; the sender's clock loses half a second in them
            if index == 30_000:
                clock.now += 15  # what comes in the meantime waits
            clock.now = max(clock.now, 0.04002 * index)
            yield index, 0.04 * index

    clock.now = 0
    shown = [index for index, _ in scheduled(drifting_and_stalled(), True)]
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
    assert levels[-1] == 0 and changes(levels) == 1 + lowest  # the first counts from 0
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
    play_costs(load, [500] * 45)
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


def test_only_every_other_frame_is_taken_at_the_second_level():
    load = LoadController(40, 25)
    play_costs(load, [50] * 15)
    assert [load.takes_next() for _ in range(6)] in ([True, False] * 3, [False, True] * 3)
    assert load.frames == {"every frame": 15, "every other frame": 3, "not sharpened": 0}
    assert load.note == "every other frame (this machine is busy)" and LoadController(40, 25).note == ""


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_is_checked(budget):
    with pytest.raises(ValueError, match="milliseconds from 0"):
        LoadController(budget, 30)
    for absurd in (0, 90_000):  # what some streams say
        assert (play_costs(LoadController(None, absurd), [25] * 100) == 0).all()


class FakeWindow(contextlib.nullcontext):
    """A window in which the user turns sharpening off after 20 frames."""

    def __init__(self, title, comparing):
        super().__init__(self)
        self.closed, self.sharpening, self.comparing = False, True, comparing
        self.notes = []
        FakeWindow.newest = self

    def show(self, frame, milliseconds, note):
        self.notes.append(note)
        self.sharpening = len(self.notes) < 20


def test_while_the_user_has_sharpening_off_every_frame_is_shown(sharpener, monkeypatch):
    class Recording(list):
        rate = 30

    camera = contextlib.nullcontext(Recording([noise(16, 16)] * 50))
    monkeypatch.setattr(inference, "Camera", lambda _: camera)
    monkeypatch.setattr(inference, "Window", FakeWindow)
    stats = sharpener.process_video_stream(0, frame_budget=1e-4)
    assert stats["levels"] == {"every frame": 15, "every other frame": 5, "not sharpened": 0}
    busy = f"{LoadController.LEVELS[1]} (this machine is busy)"
    # The fifth at the second level is the 24th that came; after it, all 26.
    assert FakeWindow.newest.notes == [""] * 15 + [busy] * 5 + [""] * 26 and stats["frames"] == 46


@pytest.mark.parametrize("budget", ["0.001", "0"])
def test_a_window_that_is_over_its_budget_ends_unsharpened_and_says_so(exported, tmp_path, display, budget):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=range(0, 1000, 10))
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import inference, cv2, numpy
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
        came = np.array([frame for frame, _ in reader.bgr_frames()])
    if budget == "0":
        assert len(shown) == 100 and (shown != came).any(axis=(1, 2, 3)).all()
        assert "busy" not in result.stdout
        return
    # 15 frames, 15 of the next 29, and all the others as they came
    assert "every frame: 15 shown, every other frame: 15 shown, not sharpened: 56 shown" in result.stdout
    assert "86 frames of 64x48" in result.stdout and len(shown) == 86
    assert np.array_equal(shown[30:], came[44:])
    assert (shown[:30] != np.concatenate([came[:15], came[15:44:2]])).any(axis=(1, 2, 3)).all()
    notes = [f"{name} (this machine is busy)" for name in LoadController.LEVELS[1:]]
    assert str([f"Real-time sharpener - {note}" for note in notes]) in result.stdout


def test_a_dead_display_is_an_error_not_an_abort(exported, tmp_path):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    result = run_script(source.as_uri(), "--checkpoint", exported, DISPLAY=":4242")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "no window can be opened" in result.stderr
