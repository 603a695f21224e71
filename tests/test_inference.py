"""The public interface, with a small random student."""

import dataclasses
import signal
import threading

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inference
from images import Picture, read_image, write_image
from inference import RealTimeSharpener, split_planes
from live import divide_frames
from models import CheckpointError, limit_halo, load_student, steepen
from runtime import DeviceError, TorchEngine, pick_device, pick_precision
from tests.conftest import CONSTANT, VARIABLE, encode, make_student, packets, read_times
from utils import bgr_to_planes, planes_to_bgr, to_full_range
from video import VideoReader, VideoWriter


@pytest.fixture(scope="module")
def identity(exported):
    return RealTimeSharpener(exported, "cpu", strength=0)


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


@pytest.mark.parametrize("strength", [0.7, 1.6])
@pytest.mark.parametrize("full_range", [True, False])
def test_planes_get_the_scaled_residual_rounded_and_luma_the_gain(full_range, strength):
    engine = TorchEngine(make_student(), "cpu", torch.float32)
    y, uv = bgr_to_planes(noise(36, 52))
    luma, chroma = (255, 255) if full_range else (219, 224)
    offset = 0 if full_range else 16
    full_y = torch.from_numpy((y.astype(np.float32) - offset) / luma)
    full_uv = torch.from_numpy((uv.astype(np.float32) - 128) / chroma + np.float32(128 / 255))
    with torch.no_grad():
        dy, duv, gain = (change[0].double() for change in make_student().predict(full_y[None, None], full_uv[None]))
    sharp_y, sharp_uv = engine(y, uv, full_range, strength)
    assert min(dy.abs().max() * luma, duv.abs().max() * chroma) > 2  # the student does something
    exact = np.clip(uv + strength * chroma * duv.numpy(), 0, 255)
    assert np.abs(sharp_uv - exact).max() <= 0.501  # rounded, not truncated
    restored = (torch.from_numpy(y) + strength * luma * dy).round().clamp(0, 255)[None]
    steep = steepen(restored, strength * gain[None])
    assert (steep - restored).abs().max() > 2  # so does the gain
    exact = limit_halo(steep, torch.from_numpy(y)[None, None].double())[0, 0].numpy()
    assert np.percentile(np.abs(sharp_y - exact), 99) <= 2.1  # detail is rounded before it is multiplied


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


@pytest.mark.parametrize("strength", [0.5, 1, 1.8])
def test_strengths_are_the_engines(exported, strength):
    """At any depth; anything besides, such as a mask after the student, would show."""
    sharpener, engine = RealTimeSharpener(exported, "cpu"), TorchEngine(load_student(exported)[0], "cpu")
    y, uv = bgr_to_planes(noise(40, 52))
    for ours, theirs in zip(
        sharpener.sharpen_planes(y, uv, strength=strength), engine(y, uv, False, strength), strict=True
    ):
        assert np.array_equal(ours, theirs)
    change, _ = engine.difference(y, np.full_like(uv, 128), strength)
    sharp = sharpener.sharpen(y, strength=strength)
    assert (
        np.array_equal(sharp, np.clip(y.astype(int) + change - 128, 0, 255))
        and np.abs(sharp - y.astype(int)).mean() > 2
    )
    deep = noise(40, 52, dtype=np.uint16)[..., 0]
    change, _ = engine.difference(np.float32(deep / 65535), np.full(uv.shape, 128 / 255, np.float32), strength)
    expected = np.clip(deep + 65535 * change.astype(float), 0, 65535)
    assert np.abs(sharpener.sharpen(deep, strength=strength) - expected).max() <= 1


@pytest.mark.parametrize("strength", [1.5, 200, 1e9])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7), (5, 1, 3), (2, 2)])
def test_any_size_and_type_beyond_strength_1(exported, strength, shape):
    sharpener = RealTimeSharpener(exported, "cpu", strength)
    for dtype in (np.uint8, np.uint16):
        frame = noise(*shape[:2], dtype=dtype)[..., : 3 if len(shape) == 3 else 1].reshape(shape)
        assert sharpener.sharpen(frame).shape == shape
    y, uv = bgr_to_planes(noise(*shape[:2]))
    sharp = sharpener.sharpen_planes(y, uv)
    assert sharp[0].shape == y.shape and sharp[1].shape == uv.shape


def test_sharpen_keeps_full_colour_resolution(exported):
    faint = RealTimeSharpener(exported, "cpu", strength=1e-3)
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


@pytest.mark.parametrize("frame", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_wrong_frames_are_refused(sharpener, frame):
    with pytest.raises(ValueError, match="expected a frame"):
        sharpener.sharpen(frame)


def test_wrong_planes_are_refused(sharpener):
    with pytest.raises(ValueError, match=r"uv \(2, 4, 4\)"):
        sharpener.sharpen_planes(np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="float"):
        sharpener.sharpen_planes(np.zeros((8, 8)), np.zeros((2, 4, 4)))


def test_reduced_precision_changes_next_to_nothing():
    frame = [np.float32(plane / 255) for plane in bgr_to_planes(cv2.GaussianBlur(noise(64, 64), (0, 0), 2))]
    chosen = TorchEngine(make_student(), "cpu").difference(*frame)
    exact = TorchEngine(make_student(), "cpu", torch.float32).difference(*frame)
    for a, b in zip(chosen, exact, strict=True):
        assert a.dtype == np.float32
        assert np.abs(a - b).max() <= 0.02 * np.abs(b).max()


@pytest.mark.parametrize("strength", [1, 0.6, 2.5])
def test_differences_are_of_the_kind_of_the_planes(strength):
    """Of bytes in codes around 128, of floats on their scale."""
    engine = TorchEngine(make_student(), "cpu", torch.float32)
    planes = bgr_to_planes(noise(24, 24))
    in_codes = engine.difference(*planes, strength)
    exact = engine.difference(*(np.float32(plane / 255) for plane in planes), strength)
    for a, b in zip(in_codes, exact, strict=True):
        assert a.dtype == np.uint8 and b.dtype == np.float32 and np.abs(b).max() > 0.02  # the student does something
        assert np.abs(a - np.clip(255.0 * b + 128, 0, 255)).max() <= 0.501


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


def test_construction_is_checked(exported, tmp_path, monkeypatch):
    for strength in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="strength"):
            RealTimeSharpener(exported, "cpu", strength)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        RealTimeSharpener(tmp_path / "none.pth")
    # A relative name works from another working directory: it is looked up beside the module.
    monkeypatch.setattr(inference, "RELEASED_STUDENT", exported.parent / "checkpoints" / "best_student_model.pth")
    monkeypatch.chdir(tmp_path)
    assert RealTimeSharpener(exported.name, "cpu").meta == {"note": "random"}


def test_compare_splits_in_the_middle():
    before, after = noise(20, 30, 1), noise(20, 30, 2)
    joined = divide_frames(before, after)
    assert np.array_equal(joined[:, :13], before[:, :13]) and np.array_equal(joined[:, 17:], after[:, 17:])
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
    assert np.abs(sharp.astype(int) - expected).mean() < 1  # codes of video are rounded before the gain, these are not
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
def test_a_failure_at_any_stage_arrives_and_leaves_nothing_but_its_first_frames(
    sharpener, tmp_path, monkeypatch, stage
):
    source = encode(tmp_path / "in.mp4", times=range(0, 4000, 40), audio="aac", size=(128, 96), options={"crf": "5"})
    error = {"sharpening": ZeroDivisionError, "Ctrl-C": KeyboardInterrupt}.get(stage, inference.VideoError)
    done = []

    def after(count, original, action):
        def replacement(*arguments, **options):
            done.append(None)
            if len(done) == count:
                action()
            return original(*arguments, **options)

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
    partial = ["out_partial.mp4"] if stage == "reading" else []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4", *partial]
    if stage == "Ctrl-C":
        assert read_times(tmp_path / "out.mp4") in [[40 * index for index in range(count)] for count in range(1, 6)]
    else:
        assert (tmp_path / "out.mp4").read_bytes() == b"old"
    for name in partial:
        with pytest.raises(error), VideoReader(source, audio=True) as reader:
            for _ in reader:
                done.append(None)
        assert read_times(tmp_path / name) == [40 * index for index in range(len(done))]
        assert len(done) > 10
    assert stage in ("reading", "finishing") or len(done) < 20  # promptly


def test_readme_example_makes_a_playable_avi(sharpener, tmp_path):
    source = encode(tmp_path / "video.mp4", times=CONSTANT, audio="aac", options={"bf": "3"})
    stats = sharpener.process_video_stream(input_source=str(source), output_path=str(tmp_path / "sharpened_video.avi"))
    assert stats["frames"] == 20
    capture = cv2.VideoCapture(str(tmp_path / "sharpened_video.avi"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == 20


def test_compare_leaves_the_left_half(exported, tmp_path):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=CONSTANT[:5])
    sharpener = RealTimeSharpener(exported, "cpu", strength=3)  # most of what it adds to smooth pictures is halo
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
