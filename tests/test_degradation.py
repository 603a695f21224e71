"""Cameras, codecs and calls: measured damage equals the damage asked for."""

import contextlib
import json
import os
import sys

import numpy as np
import pytest
import skimage.data

import degradation
from benchmark.metrics import visible_change
from degradation import DataError, SimulatedCamera
from tests.conftest import same_clips
from utils import bgr_to_planes, luma_metrics

SOFT = {
    "a lens": SimulatedCamera(blur=0.9),
    "a lens out of focus": SimulatedCamera(lens="disc", blur=1.4),
    "a lens that is not round": SimulatedCamera(blur=0.8, stretch=1.5, angle=0.6),
    "a sensor of few pixels": SimulatedCamera(crop=1.6),
    "few pixels and bilinear": SimulatedCamera(crop=2, upscaler="bilinear"),
    "a moving scene": SimulatedCamera(motion=4, angle=0.3),
    "all of it": SimulatedCamera(blur=0.6, stretch=0.7, angle=2, motion=3, crop=1.3, denoise=1, sharpen=0.4),
}


@pytest.fixture
def clip(photo, rng):
    """Three frames of 224x192."""
    return [bgr_to_planes(frame) for frame in degradation.animate(photo, 3, (192, 224), (2, 1), rng)]


# ----------------------------------------------------------------------------------------------------------------------
# Codecs, noise, sizes


@pytest.mark.parametrize("codec", degradation.CODECS)
def test_codecs_are_real_and_get_worse_with_qp(photo, codec):
    clip = [bgr_to_planes(f) for f in degradation.animate(photo, 6, (128, 128), (2, 1), np.random.default_rng(1))]
    quality = []
    for qp in degradation.CODECS[codec].quantisers:
        decoded = degradation.codec_roundtrip(clip, codec, qp)
        assert len(decoded) == len(clip) and decoded[0][1].shape == (2, 64, 64)
        quality.append(luma_metrics(decoded[-1][0], clip[-1][0])[0])
        assert same_clips(decoded, degradation.codec_roundtrip(clip, codec, qp))
    assert 34 < quality[0] < 60 and 18 < quality[1] < quality[0] - 5


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the priorities of threads")
@pytest.mark.parametrize("codec", degradation.CODECS)
def test_encoders_leave_priorities_as_they_are(photo, codec):
    """SVT-AV1 takes the highest real-time priority when it is run by root."""
    for size in (64, 8):
        with contextlib.suppress(DataError):  # some take no frames of 8x8
            degradation.encode_clip([bgr_to_planes(photo[:size, :size])], codec, 30)
        assert {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")} == {os.SCHED_OTHER}


@pytest.mark.parametrize("codec", degradation.CODECS)
def test_rate_control_is_real(photo, codec):
    """The stream is nearly as large as was asked for; more bits look better; the same again, byte for byte."""
    clip = [bgr_to_planes(f) for f in degradation.animate(photo, 30, (192, 224), (1, 1), np.random.default_rng(1))]
    quality = []
    for kbps in (150, 600):
        packets = degradation.encode_clip(clip, codec, kbps=kbps)
        assert packets == degradation.encode_clip(clip, codec, kbps=kbps)
        assert 0.3 * kbps < sum(map(len, packets)) * 8 / 1000 / (30 / 25) < 1.7 * kbps
        decoded = degradation.decode_clip(packets, codec)
        assert len(decoded) == 30
        quality.append(luma_metrics(decoded[-1][0], clip[-1][0])[0])
    assert quality[0] + 2 < quality[1]


@pytest.mark.parametrize("kernel", ["area", "bilinear", "bicubic", "lanczos"])
def test_shrinking_does_not_alias(kernel):
    """The finest checkerboard becomes flat grey."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.ptp(degradation.resize(board, (16, 16), kernel)[4:-4, 4:-4].astype(int)) <= 2


# ----------------------------------------------------------------------------------------------------------------------
# The camera


def spread(kernel, angle):
    """Means and variances of a kernel's weights along `angle` and perpendicular to it."""
    assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1 and (kernel >= 0).all()
    assert kernel.dtype == np.float32 and kernel.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    down, across = np.indices(kernel.shape) - kernel.shape[0] // 2
    axes = across * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - across * np.sin(angle)
    means = [float((kernel * axis).sum()) for axis in axes]
    return means, [float((kernel * (axis - mean) ** 2).sum()) for axis, mean in zip(axes, means, strict=True)]


@pytest.mark.parametrize("lens", ["gaussian", "disc"])
@pytest.mark.parametrize(("sigma", "stretch", "angle"), [(0.6, 1, 0), (0.8, 1.5, 0.6), (1.2, 0.7, 2)])
def test_a_lens_spreads_light_as_far_as_it_says(lens, sigma, stretch, angle):
    """The pixel's own area adds a variance of 1/12 square pixel in each direction."""
    kernel = degradation.blur_kernel(lens, sigma, stretch, angle)
    means, (along, beside) = spread(kernel, angle)
    assert means == pytest.approx([0, 0], abs=1e-5)
    assert along == pytest.approx((stretch * sigma) ** 2 + 1 / 12, rel=0.08)
    assert beside == pytest.approx(sigma**2 + 1 / 12, rel=0.08)


@pytest.mark.parametrize("angle", [0, 0.3, 2])
@pytest.mark.parametrize("length", [3, 4, 6.5])
def test_motion_draws_a_line_of_its_length(length, angle):
    kernel = degradation.motion_kernel(length, angle)
    means, (along, beside) = spread(kernel, angle)
    assert means == pytest.approx([0, 0], abs=1e-5)
    # A point between pixels is shared by them, which spreads it by up to a quarter of a square pixel.
    assert length**2 / 12 <= along <= 1.2 * length**2 / 12 + 0.25 and beside <= 0.25


def test_the_default_camera_changes_no_bit_and_draws_no_number(clip, rng):
    before = rng.bit_generator.state
    assert degradation.blur_kernel("gaussian", 0) is None and degradation.motion_kernel(0, 1) is None
    assert same_clips(SimulatedCamera()(clip, rng), clip) and rng.bit_generator.state == before


@pytest.mark.parametrize("name", SOFT)
def test_soft_cameras_lose_edges_and_keep_sizes(clip, rng, name):
    seen = SOFT[name](clip, rng)
    assert [(y.shape, uv.shape, y.dtype) for y, uv in seen] == [((192, 224), (2, 96, 112), np.uint8)] * 3
    assert SOFT[name].is_soft and max(visible_change(seen, clip)["edges"]) < 0.95


def blurred_square(camera):
    """Change in mean and variance along the rows that a camera makes to a bright square, for luma and chroma."""
    y, uv = np.zeros((128, 128), np.uint8), np.zeros((2, 64, 64), np.uint8)
    y[48:80, 48:80], uv[:, 24:40, 24:40] = 200, 200
    ((soft, soft_uv),) = camera([(y, uv)], np.random.default_rng(0))
    found = []
    for before, after in ((y, soft), (uv[0], soft_uv[0])):
        places, moments = np.arange(before.shape[1]), []
        for plane in (before, after):
            weights = plane.sum(axis=0, dtype=float) / plane.sum(dtype=float)
            mean = (weights * places).sum()
            moments.append((mean, (weights * (places - mean) ** 2).sum()))
        found.append(np.subtract(*reversed(moments)))
    return found


@pytest.mark.parametrize("sigma", [1.6, 2.4])
def test_colours_are_blurred_as_far_as_luma_and_do_not_move(sigma):
    """Chroma has half the resolution, so the same blur has a quarter of the variance."""
    (shift, luma), (chroma_shift, chroma) = blurred_square(SimulatedCamera(blur=sigma))
    assert luma == pytest.approx(sigma**2 + 1 / 12, rel=0.06) and 4 * chroma == pytest.approx(luma, rel=0.2)
    assert (shift, chroma_shift) == pytest.approx((0, 0), abs=0.05)


def test_the_sensors_noise_is_as_strong_as_it_says_and_smeared_by_the_denoiser(rng):
    flat = [(np.full((200, 240), 128, np.uint8), np.full((2, 100, 120), 128, np.uint8))] * 2
    noisy, denoised = (SimulatedCamera(noise=5, denoise=denoise)(flat, rng) for denoise in (0, 1))
    for plane in noisy[0]:
        assert plane.std() == pytest.approx(5, rel=0.05) and plane.mean() == pytest.approx(128, abs=0.2)
    assert denoised[0][0].std() < 0.6 * noisy[0][0].std()
    assert np.corrcoef(noisy[0][0].ravel(), noisy[1][0].ravel())[0, 1] < 0.05  # each frame has its own


@pytest.mark.parametrize("soft", [True, False])
def test_cameras_are_drawn_as_asked_for_and_differ(rng, soft):
    cameras = [degradation.draw_camera(rng, soft) for _ in range(200)]
    assert all(camera.is_soft == soft for camera in cameras)
    assert not SimulatedCamera(blur=0.39, crop=1.1, motion=1.9, noise=8).is_soft
    assert 0.2 < np.mean([camera.noise > 0 for camera in cameras]) < 0.6
    assert 0.15 < np.mean([camera.sharpen > 0 for camera in cameras]) < 0.4
    if soft:
        assert {camera.lens for camera in cameras} == {"gaussian", "disc"}
        for name in ("crop", "blur", "motion"):
            assert len({getattr(camera, name) for camera in cameras}) > 10, name


# ----------------------------------------------------------------------------------------------------------------------
# Calls


@pytest.fixture(scope="module")
def calls():
    """Triples of a crisp frame, what a call made of it, and its description."""
    photo = np.ascontiguousarray(skimage.data.astronaut()[:300, 80:380, ::-1])
    made = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        clip = [bgr_to_planes(frame) for frame in degradation.animate(photo, 4, (256, 256), (1, 0.5), rng)]
        made.append((clip[-1], *degradation.degrade_call(clip, rng)))
    return made


def test_calls_are_damaged_in_every_way_and_say_how(calls):
    descriptions = [description for _, _, description in calls]
    for truth, damaged, description in calls:
        assert [plane.shape for plane in damaged] == [(256, 256), (2, 128, 128)]
        assert damaged[0].dtype == damaged[1].dtype == np.uint8
        assert 15 < luma_metrics(damaged[0], truth[0])[0] < 60
        assert ("codec" in description) == (("qp" in description) != ("kbps" in description))
        assert ("down" in description) == (description["scale"] > 1)
        assert json.loads(json.dumps(description)) == description
    assert {description["scale"] for description in descriptions} >= {1, 1.5, 2, 3}
    assert 0.25 < np.mean([description["scale"] == 1 for description in descriptions]) < 0.65
    assert len({description.get("codec") for description in descriptions}) == len(degradation.CODECS) + 1
    for key in ("qp", "kbps", "jpeg"):
        assert 2 <= sum(key in description for description in descriptions) < len(calls) - 2


def test_cameras_and_calls_repeat_with_their_generator_and_leave_the_clip_as_it_was(clip):
    camera = SimulatedCamera(blur=0.5, crop=1.3, noise=3, denoise=0.5, sharpen=0.5)
    one, again, other = (camera(clip, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert same_clips(one, again) and not same_clips(one, other)
    large = [degradation.resample_planes(*planes, (256, 256)) for planes in clip]
    before = [(y.copy(), uv.copy()) for y, uv in large]
    one, again, other = (degradation.degrade_call(large, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert same_clips([one[0]], [again[0]]) and one[1] == again[1]
    assert not same_clips([one[0]], [other[0]]) and one[1] != other[1]
    assert same_clips(large, before)
