"""Cameras, timed streams, the loop, and how much is sharpened when the machine is busy."""

import itertools
import signal
import threading
import time
import typing

import cv2
import numpy as np
import pytest

import live
from images import VideoError
from live import PASS, PROBE, SHARPEN, Camera, LoadController, Meter, TimedSource, play
from tests.conftest import read_times
from tests.test_inference import noise
from video import VideoWriter
from window import Controls

# ----------------------------------------------------------------------------------------------------------------------
# Camera


class FakeCapture:
    """A camera of 30 numbered frames, then unplugged: it stands for the hardware, which tests have none of."""

    opened: typing.ClassVar = []
    frames = 30

    def __init__(self, source, *_):
        self.source, self.released, self.settings = source, False, {}
        self.left = self.frames if source != 7 else 0
        FakeCapture.opened.append(self)

    def set(self, name, value):
        self.settings[name] = value
        return True

    def read(self):
        self.left -= 1
        if self.left < 0:
            return False, None
        return True, np.full((48, 64, 3), self.left % 256, np.uint8)

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
    """Puts `SlowCapture` in place of OpenCV's."""
    monkeypatch.setattr(FakeCapture, "opened", [])
    monkeypatch.setattr(cv2, "VideoCapture", SlowCapture)
    yield FakeCapture
    assert all(opened.released for opened in FakeCapture.opened)
    assert not any(thread.name == "camera" for thread in threading.enumerate())


def test_a_camera_gives_its_newest_frame_and_none_twice(capture, monkeypatch, caplog):
    with Camera(0) as camera:
        assert (camera.size, camera.rate) == ((64, 48), 30)
        seen = [frame.max() for frame, _, _ in camera if frame is not None]
        assert seen == sorted(set(seen), reverse=True) and 10 < len(seen) == 30 - camera.dropped
        assert "camera 0 gives no more frames" in caplog.text
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    with Camera(0) as camera:
        camera._thread.join()  # nobody was in time for the frames before
        assert [frame.max() for frame, _, _ in camera] == [0] and camera.dropped == 29
    with pytest.raises(VideoError, match="camera 7 cannot be opened"):
        Camera(7)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_camera_whose_driver_does_not_know_its_rate(capture, monkeypatch, rate):
    monkeypatch.setattr(capture, "get", lambda *_: rate)
    with Camera(0) as camera:
        assert camera.rate == 30


def test_a_camera_whose_driver_raises_has_ended(capture, monkeypatch):
    def fail(_):
        raise cv2.error("unplugged")

    with Camera(0) as camera:
        monkeypatch.setattr(capture, "read", fail)
        assert sum(frame is not None for frame, _, _ in camera) < 30


def test_settings_of_a_camera(capture, caplog):
    with caplog.at_level("INFO", "live"), Camera(0, (1920, 1080)):
        motion_jpeg = cv2.VideoWriter.fourcc(*"MJPG")
        # The order matters to drivers.
        assert list(capture.opened[0].settings.items()) == [(6, motion_jpeg), (3, 1920), (4, 1080)]
    assert caplog.records[0].getMessage() == "camera 0 gives 64x48 at 30 FPS"


@pytest.mark.parametrize("stopped_by", ["Ctrl-C", "unplugging"])
def test_a_stopped_recording_is_kept(sharpener, tmp_path, capture, monkeypatch, caplog, stopped_by):
    written, threads = [], set()

    def write(writer, frame, original=VideoWriter.write):
        original(writer, frame)
        written.append(frame.pts)
        threads.add(threading.current_thread())
        if stopped_by == "Ctrl-C" and len(written) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(VideoWriter, "write", write)
    if stopped_by == "Ctrl-C":
        monkeypatch.setattr(capture, "frames", 10_000)  # it must come while there are frames
    stats = sharpener.process_video_stream(0, tmp_path / "recorded.mp4")
    assert stats["frames"] == len(written) >= 1 and stats["output"] == tmp_path / "recorded.mp4"
    assert stats["dropped"] >= 0 and 0 < stats["latency_ms"] <= stats["latency_p95_ms"]
    assert threading.main_thread() not in threads
    distinct = list(itertools.accumulate(written, lambda last, time: max(last + 1, time)))  # two in a millisecond
    found = [time - distinct[0] for time in distinct]  # a file begins with its first frame
    assert read_times(tmp_path / "recorded.mp4") == found and written == sorted(written)
    assert ("no more frames" in caplog.text) == (stopped_by == "unplugging")


def test_a_failing_encoder_ends_a_recording(sharpener, tmp_path, capture, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(VideoWriter, "write", fail)
    with pytest.raises(VideoError, match=r"cannot write .*recorded.mp4: No space left on device"):
        sharpener.process_video_stream(0, tmp_path / "recorded.mp4")
    assert not list(tmp_path.iterdir())


def test_on_frame_of_a_camera(sharpener, tmp_path, capture):
    seen = []

    def see(number, picture):
        seen.append(picture)
        return number < 2

    stats = sharpener.process_video_stream(0, tmp_path / "out.mp4", compare=True, on_frame=see)
    assert stats["frames"] == len(seen) == len(read_times(tmp_path / "out.mp4")) == 3
    # A camera's frames are of one grey each; the left half stays so, then comes the white line.
    for picture in seen:
        assert picture.shape == (48, 64, 3) and picture[:, :30].std() == 0 and (picture[:, 31:33] == 255).all()
    with pytest.raises(ZeroDivisionError):
        sharpener.process_video_stream(0, tmp_path / "none.mp4", on_frame=lambda *_: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


# ----------------------------------------------------------------------------------------------------------------------
# Timed streams


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
        for index, taken, due in TimedSource(enumerate(stamps), live, 25):
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

    assert 8 <= len(list(source := TimedSource(late(), True, 25))) < 30
    assert 70 < source.dropped <= 92

    def drifting_and_stalled():
        for index in range(31_000):  # twenty minutes; the sender's clock loses half a second in them
            if index == 30_000:
                clock.now += 15  # what comes in the meantime waits
            clock.now = max(clock.now, 0.04002 * index)
            yield index, 0.04 * index

    clock.now = 0
    shown = [index for index, _, _ in TimedSource(drifting_and_stalled(), True, 25)]
    assert shown[:30_000] == list(range(30_000)) and shown[-500:] == list(range(30_500, 31_000))
    assert len(shown) < 30_700


# ----------------------------------------------------------------------------------------------------------------------
# Load


def play_costs(load, costs):
    """Run frames of these costs in milliseconds through a controller; returns the level after each."""
    levels = []
    for cost in costs:
        if load.next_action() in (SHARPEN, PROBE):
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
    assert load.note == "not sharpened (this machine is busy)"
    probed = []
    for index in range(80 * 30):
        action = load.next_action()
        if action not in (PASS, PROBE):
            break
        if action == PROBE:
            probed.append(index)
            load.add(cost)
    assert 3 <= len(probed) <= most
    assert np.diff(probed).min() >= 30 and np.diff(probed).max() <= 300


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_is_checked(budget):
    with pytest.raises(ValueError, match="milliseconds from 0"):
        LoadController(budget, 30)
    for absurd in (0, 90_000):  # what some streams say
        assert (play_costs(LoadController(None, absurd), [25] * 100) == 0).all()


def test_meter():
    meter = Meter()
    assert meter.text.startswith("0 FPS, 0 ms, 0 dropped") and meter.stats["latency_ms"] == 0
    for index in range(100):
        meter.add(index / 25, index)
    meter.dropped, meter.sizes = 3, ((640, 360), (1920, 1080))
    assert meter.text == "25 FPS, 84 ms, 3 dropped, 640x360 to 1920x1080"  # of the last 30
    assert meter.stats == pytest.approx({"dropped": 3, "latency_ms": 49.5, "latency_p95_ms": 94.05})


# ----------------------------------------------------------------------------------------------------------------------
# The loop


class Display:
    """A display that notes what it is told, and whose user does something after each frame."""

    def __init__(self, act=lambda display: None):
        self.notes, self._act = [], act

    def show(self, frame, milliseconds, note, meter):
        self.notes.append(note)
        self._act(self)


@pytest.mark.parametrize("comparing", [False, True])
def test_what_is_shown_is_sharpened_as_the_load_says(comparing):
    frames, load, levels = [(noise(16, 16), index / 30) for index in range(95)], LoadController(1e-4, 30), []

    def sharpen(frame, strength):
        if strength:
            levels.append(load.level)
        return frame + bool(strength)

    source, controls = TimedSource(frames, True, 30), Controls(comparing=comparing)
    shown = list(play(source, lambda frame: frame, sharpen, Display(), controls, load, Meter()))
    assert levels == [0] * 30 + [1] * 15 + [2]  # at last to see what it would cost
    assert list(load.frames.values()) == [30, 15, 35]
    came, beside = frames[0][0], slice(10 if comparing else 0, None)  # the line between is four pixels wide
    assert all(np.array_equal(picture[:, beside], came[:, beside] + 1) for picture in shown[:45])
    assert all(np.array_equal(picture[:, beside], came[:, beside]) for picture in shown[45:])
    assert all(np.array_equal(picture[:, :6], came[:, :6]) == comparing for picture in shown[:45])


def test_while_the_user_has_sharpening_off_every_frame_is_shown():
    frames, controls, meter, load = [(noise(16, 16), 0)] * 65, Controls(), Meter(), LoadController(1e-4, 30)
    display = Display(lambda display: setattr(controls, "sharpening", len(display.notes) < 35))
    source = TimedSource(frames, False, 30)
    shown = list(play(source, lambda frame: frame, lambda frame, strength: frame, display, controls, load, meter))
    assert load.frames == {"every frame": 30, "every other frame": 5, "not sharpened": 0}
    busy = f"{LoadController.LEVELS[1]} (this machine is busy)"
    # The fifth of every other frame is the 40th that came; after it, all 25.
    assert display.notes == [""] * 30 + [busy] * 5 + [""] * 25 and len(shown) == 60
    assert meter.stats["dropped"] == 5
