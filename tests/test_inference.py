"""The public interface and the command line, with a small random student."""

import contextlib
import dataclasses
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inference
from export import export
from inference import LoadController, RealTimeSharpener, main, split_frames, split_planes
from models import CheckpointError, Student, save_student
from runtime import DeviceError, TorchEngine, pick_device, pick_precision
from tests.test_video import CONSTANT, VARIABLE, FakeCapture, broken_file, encode, packets, read_times
from utils import bgr_to_planes, planes_to_bgr, to_full_range
from video import Picture, VideoReader, VideoWriter, read_image, write_image

ROOT = Path(__file__).resolve().parent.parent


def make_student(channels=8, blocks=1):
    """A random student that changes noise by some 20 levels."""
    torch.manual_seed(0)
    student = Student(channels, blocks).eval()
    torch.nn.init.normal_(student.tail.weight)
    with torch.no_grad():
        dy, _ = student.residual(torch.rand(1, 1, 64, 64), torch.rand(1, 2, 32, 32))
        student.tail.weight *= 0.15 / dy.std()
    return student


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "student.pth"
    save_student(path, make_student(), {"note": "random"})
    export(path, frames=2, steps=2, progress=False)
    return path


@pytest.fixture(scope="module")
def sharpener(checkpoint):
    return RealTimeSharpener(checkpoint, "cpu")


@pytest.fixture(scope="module")
def identity(checkpoint):
    return RealTimeSharpener(checkpoint, "cpu", strength=0)


def noise(height, width, seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype=dtype, endpoint=True)


# ----------------------------------------------------------------------------------------------------------------------
# Frames and planes


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_size_and_strength_0_is_the_identity(height, width, full_range):
    student = make_student()
    sharp, same = object.__new__(RealTimeSharpener), object.__new__(RealTimeSharpener)
    sharp.engine = same.engine = TorchEngine(student, "cpu")
    sharp.strength, same.strength = 1.0, 0.0
    frame = noise(height, width)
    y, uv = bgr_to_planes(frame)
    assert np.array_equal(same.sharpen(frame), frame)
    assert all(np.array_equal(a, b) for a, b in zip(same.sharpen_planes(y, uv, full_range), (y, uv), strict=True))
    assert sharp.sharpen(frame).shape == frame.shape
    assert [plane.shape for plane in sharp.sharpen_planes(y, uv, full_range)] == [y.shape, uv.shape]


@pytest.mark.parametrize("full_range", [True, False])
def test_planes_get_the_scaled_residual_rounded(full_range):
    engine = TorchEngine(make_student(), "cpu", torch.float32)
    y, uv = bgr_to_planes(noise(36, 52))
    luma, chroma = (255, 255) if full_range else (219, 224)
    offset = 0 if full_range else 16
    full_y = torch.from_numpy((y.astype(np.float32) - offset) / luma)
    full_uv = torch.from_numpy((uv.astype(np.float32) - 128) / chroma + np.float32(128 / 255))
    with torch.no_grad():
        dy, duv = make_student().residual(full_y[None, None], full_uv[None])
    for got, plane, residual, codes in zip(
        engine(y, uv, full_range, 0.7), (y, uv), (dy[0, 0], duv[0]), (luma, chroma), strict=True
    ):
        exact = plane + 0.7 * codes * residual.double().numpy()
        assert residual.abs().max() * codes > 2  # the student does something
        assert np.abs(got - np.clip(exact, 0, 255)).max() <= 0.501  # rounded, not truncated


def test_limited_range_is_stretched_before_the_student():
    engine = TorchEngine(make_student(), "cpu")
    rng = np.random.default_rng(0)
    y = rng.integers(16, 236, (32, 48), dtype=np.uint8)
    uv = rng.integers(16, 241, (2, 16, 24), dtype=np.uint8)
    limited = engine(y, uv, full_range=False)
    stretched = to_full_range(y, uv)
    full = engine(*stretched, full_range=True)
    for before, after, wide_before, wide_after, scale in zip(
        (y, uv), limited, stretched, full, (255 / 219, 255 / 224), strict=True
    ):
        inside = (wide_after > 0) & (wide_after < 255)
        change = (scale * (after.astype(float) - before))[inside]
        expected = (wide_after.astype(float) - wide_before)[inside]
        assert inside.mean() > 0.5
        assert np.abs(change - expected).mean() < 0.2 * np.abs(expected).mean()


def test_bgr_and_planes_agree(sharpener):
    # Smooth colour and grey noise: conversion to planes and back loses next to nothing, so both ways must agree.
    color = cv2.resize(noise(4, 5) // 4 + 64, (80, 64), interpolation=cv2.INTER_CUBIC)
    frame = color + noise(64, 80)[..., :1] // 4
    through_planes = planes_to_bgr(*sharpener.sharpen_planes(*bgr_to_planes(frame), full_range=True))
    sharp = sharpener.sharpen(frame).astype(int)
    assert np.abs(sharp - frame).mean() > 2
    assert np.abs(sharp - through_planes).mean() < 0.5 * np.abs(sharp - frame).mean()


def test_sharpen_keeps_full_colour_resolution(checkpoint):
    faint = RealTimeSharpener(checkpoint, "cpu", strength=1e-3)
    frame = noise(40, 40)  # a colour for each pixel, which halved chroma could not hold
    assert np.abs(faint.sharpen(frame).astype(int) - frame).max() <= 1


def test_inputs_are_not_changed_and_may_be_read_only_views(sharpener):
    frame = noise(32, 32)[:, ::-1]
    frame.flags.writeable = False
    before = frame.copy()
    assert np.array_equal(sharpener.sharpen(frame), sharpener.sharpen(before))
    assert np.array_equal(frame, before)
    y, uv = bgr_to_planes(before)
    y.flags.writeable = uv.flags.writeable = False
    sharpener.sharpen_planes(y[:, ::-1], uv[..., ::-1])


@pytest.mark.parametrize("frame", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))])
def test_wrong_frames_are_refused(sharpener, frame):
    with pytest.raises(ValueError, match="expected a frame"):
        sharpener.sharpen(frame)


def test_wrong_planes_are_refused(sharpener):
    with pytest.raises(ValueError, match=r"uv \(2, 4, 4\)"):
        sharpener.sharpen_planes(np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="float"):
        sharpener.sharpen_planes(np.zeros((8, 8)), np.zeros((2, 4, 4)))


def test_reduced_precision_changes_next_to_nothing():
    frame = bgr_to_planes(cv2.GaussianBlur(noise(64, 64), (0, 0), 2))
    chosen = TorchEngine(make_student(), "cpu").residual(*frame)
    exact = TorchEngine(make_student(), "cpu", torch.float32).residual(*frame)
    for a, b in zip(chosen, exact, strict=True):
        assert a.dtype == np.float32
        assert np.abs(a - b).max() <= 0.02 * np.abs(b).max()


def test_residual_takes_tensors_and_bytes():
    engine = TorchEngine(make_student(), "cpu")
    y, uv = bgr_to_planes(noise(24, 24))
    from_bytes = engine.residual(y, uv)
    from_floats = engine.residual(torch.from_numpy(y) / 255, torch.from_numpy(uv) / 255)
    for a, b in zip(from_bytes, from_floats, strict=True):
        assert isinstance(a, np.ndarray) and isinstance(b, torch.Tensor)
        assert np.array_equal(a, b.numpy())


def test_devices_and_precisions(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    for name in ("cuda", "mps", "toaster"):
        with pytest.raises(DeviceError, match="use auto, cpu"):
            pick_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    for capabilities, expected in (({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert pick_precision(torch.device("cpu"))[0] == expected
    assert pick_precision(torch.device("cuda"))[0] == torch.float16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    y, uv = bgr_to_planes(noise(48, 80))
    results = [TorchEngine(make_student(), device)(y, uv) for device in ("cpu", "cuda")]
    for a, b in zip(*results, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2


def test_construction_is_checked(checkpoint, tmp_path, monkeypatch):
    for strength in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="strength"):
            RealTimeSharpener(checkpoint, "cpu", strength)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        RealTimeSharpener(tmp_path / "none.pth")
    # A relative name works from another working directory: it is looked up beside the module.
    monkeypatch.setattr(inference, "RELEASED_STUDENT", checkpoint.parent / "checkpoints" / "best_student_model.pth")
    monkeypatch.chdir(tmp_path)
    assert RealTimeSharpener(checkpoint.name, "cpu").meta == {"note": "random"}


def test_compare_splits_in_the_middle():
    before, after = noise(20, 30, 1), noise(20, 30, 2)
    joined = split_frames(before, after)
    assert np.array_equal(joined[:, :14], before[:, :14]) and np.array_equal(joined[:, 16:], after[:, 16:])
    assert (joined[:, 14:16] == 255).all()
    y, uv = split_planes(bgr_to_planes(before), bgr_to_planes(after))
    assert np.array_equal(y[:, :14], bgr_to_planes(before)[0][:, :14])
    assert np.array_equal(uv[..., 8:], bgr_to_planes(after)[1][..., 8:])


# ----------------------------------------------------------------------------------------------------------------------
# Images


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (15, 15), (33, 47)])
def test_images_of_any_size(sharpener, tmp_path, size):
    write_image(tmp_path / "in.png", Picture(noise(*size)))
    sharpener.sharpen_image(tmp_path / "in.png", tmp_path / "out.png")
    assert np.array_equal(read_image(tmp_path / "out.png").pixels, sharpener.sharpen(noise(*size)))


def test_grey_stays_grey_and_follows_luma(sharpener, tmp_path):
    grey = noise(32, 40)[..., 0].copy()
    write_image(tmp_path / "in.png", Picture(grey))
    sharpener.sharpen_image(tmp_path / "in.png", tmp_path / "out.png")
    sharp = read_image(tmp_path / "out.png").pixels
    neutral = np.full((2, 16, 20), 128, np.uint8)
    expected, _ = sharpener.sharpen_planes(grey, neutral, full_range=True)
    assert sharp.shape == grey.shape
    assert np.abs(sharp.astype(int) - expected).max() <= 1
    assert np.abs(sharp.astype(int) - grey).max() > 2


def test_alpha_is_left_alone(sharpener, tmp_path):
    alpha = noise(32, 40, 1)[..., 0].copy()
    write_image(tmp_path / "in.png", Picture(noise(32, 40), alpha))
    sharpener.sharpen_image(tmp_path / "in.png", tmp_path / "out.png")
    picture = read_image(tmp_path / "out.png")
    assert np.array_equal(picture.alpha, alpha)
    assert np.array_equal(picture.pixels, sharpener.sharpen(noise(32, 40)))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_get_the_same_change_at_their_precision(sharpener, identity, tmp_path, suffix):
    deep = cv2.GaussianBlur(noise(40, 40, dtype=np.uint16), (0, 0), 1)
    write_image(tmp_path / f"in{suffix}", Picture(deep))
    identity.sharpen_image(tmp_path / f"in{suffix}", tmp_path / f"same{suffix}")
    assert np.array_equal(read_image(tmp_path / f"same{suffix}").pixels, deep)
    sharpener.sharpen_image(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}")
    sharp = read_image(tmp_path / f"out{suffix}").pixels
    assert sharp.dtype == np.uint16
    assert len(np.unique(sharp)) > 1000  # more than 8 bits can tell
    shallow = np.rint(deep / 257).astype(np.uint8)
    change = (sharp.astype(float) - deep) / 257
    expected = sharpener.sharpen(shallow).astype(float) - shallow
    assert np.abs(change - expected).mean() < 0.3 * np.abs(expected).mean()


# ----------------------------------------------------------------------------------------------------------------------
# Video


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE], ids=["constant", "variable"])
def test_video_keeps_frames_times_and_audio(sharpener, tmp_path, times):
    source = encode(tmp_path / "in.mp4", times=times, audio="aac", options={"bf": "3"})
    stats = sharpener.process_video_stream(source, tmp_path / "out.mp4")
    assert read_times(tmp_path / "out.mp4") == times
    assert packets(tmp_path / "out.mp4", "audio") == packets(source, "audio")
    assert (stats["frames"], stats["size"]) == (len(times), (64, 48))
    assert stats["fps"] == pytest.approx(stats["frames"] / stats["seconds"])
    with VideoReader(source) as before, VideoReader(tmp_path / "out.mp4") as after:
        errors, changes = [], []
        for frame, sharp in zip(before, after, strict=True):
            expected, _ = sharpener.sharpen_planes(frame.y, frame.uv)
            errors.append(np.abs(sharp.y.astype(int) - expected).mean())
            changes.append(np.abs(sharp.y.astype(int) - frame.y).mean())
    assert np.mean(errors) < 0.75 * np.mean(changes)  # nearer to the sharpened frame, up to the encoder's losses


@pytest.mark.parametrize("compare", [False, True])
def test_a_video_is_what_frame_after_frame_gives(sharpener, tmp_path, compare):
    # At 64x48 not even two equal runs of x264 agree.
    source = encode(tmp_path / "in.mp4", times=VARIABLE, size=(128, 96), audio="aac", options={"bf": "3"})
    with (
        VideoReader(source, audio=True) as reader,
        VideoWriter(tmp_path / "plain.mp4", reader.format, reader) as writer,
    ):
        for frame in reader:
            y, uv = sharpener.sharpen_planes(frame.y, frame.uv)
            if compare:
                y, uv = split_planes((frame.y, frame.uv), (y, uv))
            writer.write(dataclasses.replace(frame, y=y, uv=uv))
    sharpener.process_video_stream(source, tmp_path / "out.mp4", compare)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
    with VideoReader(tmp_path / "out.mp4") as out, VideoReader(tmp_path / "plain.mp4") as plain:
        for a, b in zip(out, plain, strict=True):
            assert a.pts == b.pts and np.array_equal(a.y, b.y) and np.array_equal(a.uv, b.uv)


@pytest.mark.parametrize("stage", ["reading", "sharpening", "Ctrl-C", "writing", "finishing"])
def test_a_failure_at_any_stage_arrives_and_leaves_nothing(sharpener, tmp_path, monkeypatch, stage):
    source = encode(tmp_path / "in.mp4", times=range(0, 4000, 40), audio="aac", size=(128, 96), options={"crf": "5"})
    error = {"sharpening": ZeroDivisionError, "Ctrl-C": KeyboardInterrupt}.get(stage, inference.VideoError)
    done = []

    def after(count, original, action):
        def replacement(*arguments):
            done.append(None)
            if len(done) == count:
                action()
            return original(*arguments)

        return replacement

    def fill_disk():
        raise OSError(28, "No space left on device")

    if stage == "reading":
        data = bytearray(source.read_bytes())
        middle = len(data) // 3
        data[middle : 2 * middle] = np.random.default_rng(0).integers(0, 256, middle, dtype=np.uint8).tobytes()
        source.write_bytes(data)
    elif stage in ("sharpening", "Ctrl-C"):
        action = (lambda: 1 / 0) if stage == "sharpening" else (lambda: signal.raise_signal(signal.SIGINT))
        sharpen_planes = after(5, RealTimeSharpener.sharpen_planes, action)
        monkeypatch.setattr(RealTimeSharpener, "sharpen_planes", sharpen_planes)
    else:
        write = after(5 if stage == "writing" else 100, VideoWriter.write, fill_disk)
        monkeypatch.setattr(VideoWriter, "write", write)
    threads = set(threading.enumerate())
    (tmp_path / "out.mp4").write_bytes(b"old")
    message = {"reading": "damaged", "writing": "out.mp4: No space", "finishing": "out.mp4: No space"}.get(stage)
    with pytest.raises(error, match=message):
        sharpener.process_video_stream(source, tmp_path / "out.mp4")
    assert set(threading.enumerate()) == threads
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert stage in ("reading", "finishing") or len(done) < 20  # promptly


def test_readme_example_makes_a_playable_avi(sharpener, tmp_path):
    source = encode(tmp_path / "video.mp4", times=CONSTANT, audio="aac", options={"bf": "3"})
    stats = sharpener.process_video_stream(input_source=str(source), output_path=str(tmp_path / "sharpened_video.avi"))
    assert stats["frames"] == 20
    capture = cv2.VideoCapture(str(tmp_path / "sharpened_video.avi"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == 20


def test_compare_leaves_the_left_half(sharpener, tmp_path):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=CONSTANT[:5])
    sharpener.process_video_stream(source, tmp_path / "out.mp4", compare=True)
    with VideoReader(source) as before, VideoReader(tmp_path / "out.mp4") as after:
        difference = np.mean([np.abs(b.y.astype(int) - a.y) for b, a in zip(before, after, strict=True)], axis=0)
    assert difference[:, :30].mean() < 2 < difference[:, 34:].mean()
    assert difference[:, 31:33].mean() > 50  # the dividing line


def test_input_is_not_overwritten(sharpener, tmp_path):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    content = source.read_bytes()
    with pytest.raises(inference.VideoError, match="the input itself"):
        sharpener.process_video_stream(source, source)
    assert source.read_bytes() == content


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
# Command line


def run_script(*arguments, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, ROOT / "inference.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean | environment,
        cwd=Path(arguments[0]).parent if arguments and Path(arguments[0]).parent.is_dir() else ROOT,
    )


def test_script_sharpens_a_video_beside_the_input(checkpoint, tmp_path):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    result = run_script(source, "--checkpoint", checkpoint)
    assert (result.returncode, result.stderr) == (0, "")
    assert "20 frames of 64x48" in result.stdout
    assert read_times(tmp_path / "in_sharpened.mp4") == CONSTANT


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("text", "cannot be read as a video"),
        ("truncated", "cannot be read as a video"),
        ("checkpoint", "holds code, which is refused"),
        ("camera", "camera 0 cannot be opened"),
        ("display", "no display"),
    ],
)
def test_bad_input_ends_in_one_line(checkpoint, tmp_path, kind, message):
    bait = tmp_path / "executed"
    if kind == "checkpoint":

        class Bait:
            def __reduce__(self):
                return os.mkdir, (str(bait),)

        checkpoint = tmp_path / "evil.pth"
        checkpoint.write_bytes(pickle.dumps({"model": Bait()}))
    if kind in ("checkpoint", "display"):
        source = encode(tmp_path / "good.mp4", times=CONSTANT)
    else:
        source = "0" if kind == "camera" else broken_file(tmp_path, kind)
    if kind == "camera" and Path("/dev/video0").exists():
        pytest.skip("this machine has a camera")
    if kind == "display":
        source = source.as_uri()
    before = sorted(tmp_path.iterdir())
    output = [] if kind == "display" else ["-o", tmp_path / "out.mp4"]
    result = run_script(source, "--checkpoint", checkpoint, *output)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr, result.stderr
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before
    assert not bait.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child")
def test_control_c_exits_with_130_and_leaves_nothing(checkpoint, tmp_path):
    source = encode(
        tmp_path / "long.mp4", times=range(0, 160_000, 40), size=(320, 240), options={"preset": "ultrafast"}
    )
    command = [sys.executable, ROOT / "inference.py", source, "--checkpoint", checkpoint]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "")
    assert list(tmp_path.iterdir()) == [source]


def test_existing_output_needs_overwrite(checkpoint, tmp_path, capsys):
    write_image(tmp_path / "in.png", Picture(noise(20, 20)))
    (tmp_path / "out.png").write_text("mine")
    arguments = [str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--checkpoint", str(checkpoint)]
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.png").read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert read_image(tmp_path / "out.png").pixels.shape == (20, 20, 3)


def test_strength_0_from_the_command_line(checkpoint, tmp_path):
    write_image(tmp_path / "in.png", Picture(noise(20, 20)))
    assert main([str(tmp_path / "in.png"), "--strength", "0", "--checkpoint", str(checkpoint)]) == 0
    assert np.array_equal(read_image(tmp_path / "in_sharpened.png").pixels, noise(20, 20))


def test_a_folder_is_mirrored_and_bad_files_are_listed(checkpoint, tmp_path, capsys):
    folder = tmp_path / "holiday"
    (folder / "deeper").mkdir(parents=True)
    write_image(folder / "one.png", Picture(noise(20, 24)))
    write_image(folder / "deeper" / "two.jpg", Picture(noise(20, 24)))
    encode(folder / "deeper" / "clip.mp4", times=CONSTANT)
    (folder / "broken.mp4").write_text("not a video")
    (folder / "broken.png").touch()
    (folder / "notes.txt").write_text("not for us")
    assert main([str(folder), "--checkpoint", str(checkpoint)]) == 2
    output = tmp_path / "holiday_sharpened"
    names = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    assert names == sorted(["one.png", os.path.join("deeper", "two.jpg"), os.path.join("deeper", "clip.mp4")])
    captured = capsys.readouterr()
    assert "3 files written" in captured.out
    assert len(captured.err.splitlines()) == 2
    assert "broken.mp4" in captured.err and "broken.png is empty" in captured.err


def test_a_folder_inside_itself_is_not_sharpened_twice(checkpoint, tmp_path):
    write_image(tmp_path / "one.png", Picture(noise(20, 24)))
    arguments = [str(tmp_path), "-o", str(tmp_path / "sharp"), "--checkpoint", str(checkpoint), "--overwrite"]
    assert main(arguments) == main(arguments) == 0
    assert [path.name for path in (tmp_path / "sharp").iterdir()] == ["one.png"]


def test_an_empty_folder_is_an_error(checkpoint, tmp_path, capsys):
    assert main([str(tmp_path), "--checkpoint", str(checkpoint)]) == 2
    assert "holds no image or video" in capsys.readouterr().err


def test_demo_needs_nothing(sharpener, tmp_path, capsys):
    inference.run_demo(sharpener, tmp_path, seconds=0.4)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"person.mp4", "text.mp4", "nature.mp4", "comparison.png"}
    assert read_image(tmp_path / "comparison.png").pixels.shape == (900, 1200, 3)
    with av.open(str(tmp_path / "person.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 10
    assert "->" in capsys.readouterr().out


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
    monkeypatch.setattr(inference, "time", clock := FakeClock())

    def play(live, stamps, cost):
        shown = []
        for index, due in inference._scheduled(enumerate(stamps), live):
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

    assert 8 <= len(list(inference._scheduled(late(), True))) < 30

    def drifting_and_stalled():
        for index in range(31_000):  # twenty minutes; the sender's clock loses half a second in them
            if index == 30_000:
                clock.now += 15  # what comes in the meantime waits
            clock.now = max(clock.now, 0.04002 * index)
            yield index, 0.04 * index

    clock.now = 0
    shown = [index for index, _ in inference._scheduled(drifting_and_stalled(), True)]
    assert shown[:30_000] == list(range(30_000)) and shown[-500:] == list(range(30_500, 31_000))
    assert len(shown) < 30_700


def test_a_video_plays_in_a_window(checkpoint, tmp_path, display):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    result = run_script(source.as_uri(), "--checkpoint", checkpoint, DISPLAY=display)
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
def test_a_window_that_is_over_its_budget_ends_unsharpened_and_says_so(checkpoint, tmp_path, display, budget):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=range(0, 1000, 10))
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import inference, cv2, numpy
titles, shown, set_title, show = [], [], cv2.setWindowTitle, cv2.imshow
cv2.setWindowTitle = lambda name, title: (titles.append(title), set_title(name, title))
cv2.imshow = lambda name, frame: (shown.append(frame.copy()), show(name, frame))
code = inference.main({[source.as_uri(), "--budget", budget, "--checkpoint", str(checkpoint)]!r})
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


def test_a_dead_display_is_an_error_not_an_abort(checkpoint, tmp_path):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    result = run_script(source.as_uri(), "--checkpoint", checkpoint, DISPLAY=":4242")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "no window can be opened" in result.stderr
