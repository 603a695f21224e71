import os
import shutil
import signal
import subprocess
import threading
from fractions import Fraction

import cv2  # noqa: F401 - before av: see video.py

# isort: split
import av
import numpy as np
import pytest
import skimage.data
import torch
from browser import chromium

import runtime
from degradation import animate
from export import export
from inference import RealTimeSharpener
from models import Student, save_student
from utils import bgr_to_planes, to_limited_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoReader, VideoWriter, plane_pixels

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_of_compiled_networks(tmp_path_factory):
    """Keeps the user's own cache out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_cache_folder", lambda: tmp_path_factory.getbasetemp() / "openvino")
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def photo():
    """A part of a photo, `(256, 256, 3)` BGR."""
    return np.ascontiguousarray(skimage.data.astronaut()[:256, 100:356, ::-1])


def same_clips(one, two):
    """Whether two clips of planes are equal, bit for bit."""
    return all(np.array_equal(a, b) for planes in zip(one, two, strict=True) for a, b in zip(*planes, strict=True))


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine turn milliseconds into seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def student():
    """A small student whose weights are random: its residual is visible, about one part in a hundred."""
    torch.manual_seed(0)
    student = Student(channels=8, blocks=1).eval()
    torch.nn.init.normal_(student.tail.weight, std=0.02)
    return student


@pytest.fixture
def checkpoint(student, tmp_path):
    path = tmp_path / "student.pth"
    save_student(path, student, meta={"teacher": "none"})
    return path


def make_student(channels=8, blocks=1):
    """A random student that changes noise by some 20 levels."""
    torch.manual_seed(0)
    student = Student(channels, blocks).eval()
    torch.nn.init.normal_(student.tail.weight)
    with torch.no_grad():
        dy, *_ = student.predict(torch.rand(1, 1, 64, 64), torch.rand(1, 2, 32, 32))
        student.tail.weight *= 0.15 / dy.std()
    return student


def write_video(path, count=34, size=(128, 96), velocity=(1, 0.5)):
    """Write a pan over a photo as a video file, nearly without loss, and return its path as a string."""
    photo = np.ascontiguousarray(skimage.data.astronaut()[..., ::-1])
    frames = animate(photo, count, size[::-1], velocity, np.random.default_rng(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, VideoFormat(*size, Fraction(25), **BT601_LIMITED), quality=8) as writer:
        for frame in frames:
            writer.write(Frame(*to_limited_range(*bgr_to_planes(frame))))
    return str(path)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Checkpoint of a student that changes a lot, with its int8 network beside it."""
    path = tmp_path_factory.mktemp("student") / "student.pth"
    save_student(path, make_student(), {"note": "random"})
    export(path, frames=2, steps=2, progress=False)
    return path


@pytest.fixture(scope="session")
def sharpener(exported):
    return RealTimeSharpener(exported, "cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with a folder ``clips`` of six videos of 14 frames."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(6):
        write_video(folder / "clips" / f"{number}.mp4", 14, (256, 224), (1, number / 5))
    return folder


@pytest.fixture
def browser(tmp_path):
    """A function that sends a command of the DevTools protocol to a page in Chromium and returns the result."""
    with chromium(tmp_path, "--headless --disable-gpu --window-size=1000,800") as browser:
        browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.open("about:blank")
        yield browser.send


# ----------------------------------------------------------------------------------------------------------------------
# Video files made with PyAV itself

CONSTANT = [40 * index for index in range(20)]  # milliseconds
VARIABLE = [0, 40, 45, 120, 400, 433, 466, 1000, 1001, 1500]
QUARTER_TURN = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # clockwise
MIRROR = (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)


def planes(index, width=64, height=48):
    """A frame that tells its number by its brightness (up to 20 of them), with stripes and a moving bar."""
    y = np.full((height, width), 40 + 8 * index % 160, np.uint8)
    y[:, ::8] += 40
    y[:, 2 * index % width : 2 * index % width + 3] = 220
    uv = np.full((2, (height + 1) // 2, (width + 1) // 2), 128, np.uint8)
    uv[0] += index % 100
    return y, uv


def encode(
    path,
    codec="libx264",
    pixel_format="yuv420p",
    times=CONSTANT,
    size=(64, 48),
    audio=None,
    heard=range(0, 1000, 20),
    options=None,
    draw=planes,
    rate=48000,
    muxing=None,
    unit=Fraction(1, 1000),
    matrix=None,
    aspect=1,
):
    """Write a video with PyAV itself and return its path.

    Args:
        times: of the frames, in milliseconds.
        audio: codec of a track of noise, or None.
        heard: where that has its pieces of 20 ms, in milliseconds.
        draw: function of a number, width and height that gives the planes.
        rate: of the audio.
        muxing: options of the container.
        unit: of the video's time stamps, in seconds.
        matrix: nine integers that turn or mirror the picture.
        aspect: width to height of a pixel.
    """
    heard = list(heard) if audio else []
    with av.open(str(path), "w", options=muxing or {}) as container:
        stream = container.add_stream(codec, rate=25, time_base=unit, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.time_base, stream.codec_context.sample_aspect_ratio = unit, aspect
        if matrix:
            stream.set_display_matrix(matrix)
        sound = container.add_stream(audio, rate=rate, layout="mono") if audio else None
        for index, time in enumerate(times):
            frame, (y, uv) = av.VideoFrame(*size, pixel_format), draw(index, *size)
            for plane, values in zip(frame.planes, (y, *uv), strict=False):
                if pixel_format == "yuv420p":
                    plane_pixels(plane)[...] = values
                else:
                    np.frombuffer(plane, np.uint8)[:] = y[0, -1]
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
            while heard and heard[0] <= time:
                container.mux(sound.encode(noise(heard.pop(0), 20)))
        for start in heard:
            container.mux(sound.encode(noise(start, 20)))
        for track in container.streams:
            container.mux(track.encode(None))
    return path


def noise(start, duration):
    """Audio of so many milliseconds that begins at so many."""
    samples = np.random.default_rng(abs(start)).normal(0, 0.1, (1, 48 * duration)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 48 * start, Fraction(1, 48000)
    return frame


def broken_file(folder, kind):
    """Make a file that is no video, in one of several ways; returns its path."""
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a video\n" * 50)
    elif kind == "sound":
        remux(encode(folder / "both.mp4", times=CONSTANT[:2], audio="aac"), path, "audio")
    elif kind == "truncated":
        data = encode(folder / "whole.mp4").read_bytes()
        path.write_bytes(data[: data.index(b"moov") - 4])
    elif kind == "cut":  # the index comes first, so that FFmpeg would read it up to the cut
        data = remux(encode(folder / "plain.mp4"), folder / "whole.mp4", "video").read_bytes()
        path.write_bytes(data[: len(data) - 200])
    return path


def remux(source, target, kind):
    """Copy the only stream of a kind to an .mp4 whose index comes first; returns its path."""
    with av.open(str(source)) as container, av.open(str(target), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream_from_template(container.streams.get({kind: 0})[0])
        for packet in container.demux(**{kind: 0}):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return target


def copy(source, target, **encoding):
    """Pass a video through reader and writer; returns the times in milliseconds that were read."""
    times = []
    with VideoReader(source, audio=True) as reader, VideoWriter(target, reader.format, reader, **encoding) as writer:
        for frame in reader:
            times.append(milliseconds(frame.pts, reader))
            writer.write(frame)
    return times


def pictures(reader):
    """All frames as upright BGR pictures."""
    return [reader.to_bgr(frame.y, frame.uv) for frame in reader]


def milliseconds(pts, reader):
    return round(1000 * pts * reader.format.time_base)


def read_times(path):
    with VideoReader(path) as reader:
        return [milliseconds(frame.pts, reader) for frame in reader]


def brightness_order(path):
    """The numbers of frames made with `planes`, as they come out."""
    with VideoReader(path) as reader:
        return [round((np.median(frame.y) - 40) / 8) for frame in reader]


def spoil(path, kind, numbers, rng):
    """Replace packets of a kind in a file by noise."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in [packet for packet in container.demux(**{kind: 0}) if packet.size][numbers]:
            data[packet.pos : packet.pos + packet.size] = rng.integers(0, 256, packet.size, np.uint8).tobytes()
    path.write_bytes(data)


def packets(path, kind):
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.pts) for packet in container.demux(**{kind: 0}) if packet.size]


@pytest.fixture
def threads():
    """The threads before a test; afterwards there are no others."""
    before = set(threading.enumerate())
    yield before
    assert set(threading.enumerate()) == before


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
