"""Engines: the int8 network in OpenVINO against the student in PyTorch, and its export."""

import functools
import itertools
import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import chelsea
from skimage.data import grass as grass_picture
from skimage.metrics import peak_signal_noise_ratio as psnr

import models
import runtime
from benchmark.metrics import visible_change
from engines import make_engine
from export import (
    WEIGHT_LIMIT,
    QuantisedHead,
    export,
    main,
)
from models import RELEASED_STUDENT, Student, load_student, local_mean, save_student
from runtime import (
    FAINT,
    FULL_RANGE_SCALE,
    GAIN_STEPS,
    RESIDUAL_STEPS,
    DeviceError,
    OpenVINOEngine,
    apply_change,
    artefact_path,
    detail_shares,
    fold_planes,
    limit_halo,
    pad_planes,
    scale_gain,
    steady,
    steepen,
    unfold_planes,
)
from torch_engine import TorchEngine, pick_device
from utils import bgr_to_planes

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def soft():
    """Planes of a cat that was halved, compressed and enlarged again: 304x448."""
    small = cv2.resize(chelsea()[:300, :448, ::-1], (224, 152), interpolation=cv2.INTER_AREA)
    decoded = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    return bgr_to_planes(cv2.resize(decoded, (448, 304), interpolation=cv2.INTER_LANCZOS4))


@pytest.fixture(scope="module")
def released():
    """The released student in float32, and its int8 network."""
    student, _ = load_student()
    return TorchEngine(student, "cpu", torch.float32), OpenVINOEngine(RELEASED_STUDENT)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small random student, its checkpoint and its int8 network."""
    torch.manual_seed(0)
    student = Student(channels=8, blocks=1).eval()
    torch.nn.init.normal_(student.tail.weight, std=0.05)
    path = tmp_path_factory.mktemp("exported") / "student.pth"
    save_student(path, student, {})
    assert export(path, frames=2, steps=2, progress=False) == artefact_path(path)
    return student, path


def crop(planes, height, width):
    return planes[0][:height, :width], planes[1][:, : (height + 1) // 2, : (width + 1) // 2]


def assert_same(ours, theirs):
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(found, expected)


# ----------------------------------------------------------------------------------------------------------------------
# Folding, steepening, halo


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_folding_is_pixel_unshuffle_and_unfolding_its_inverse(height, width, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 256, (height, width), np.uint8)
    uv = rng.integers(0, 256, (2, (height + 1) // 2, (width + 1) // 2), np.uint8)
    folded = fold_planes(*pad_planes(y, uv))
    rows, columns = (-(-side // 8) * 8 for side in (height, width))
    padded = [np.pad(y, ((0, rows - height), (0, columns - width)), mode="edge")]
    padded += [
        np.pad(plane, ((0, rows // 2 - uv.shape[1]), (0, columns // 2 - uv.shape[2])), mode="edge") for plane in uv
    ]
    planes = zip(padded, (4, 2, 2), strict=True)
    expected = torch.cat([F.pixel_unshuffle(torch.from_numpy(plane)[None], fold) for plane, fold in planes])
    np.testing.assert_array_equal(folded[..., :24], expected.permute(1, 2, 0))
    luma, halves = unfold_planes(folded)
    assert_same([luma, *halves[:2]], padded)
    folded[..., 16:20] = folded[..., 24:28]
    assert_same(halves[2:], unfold_planes(folded)[1][:1])  # the gain as chroma


def test_folded_means_are_the_students(soft):
    y, uv = crop(soft, 61, 83)
    cells = fold_planes(*pad_planes(y, uv))
    folded = torch.from_numpy(cells).permute(2, 0, 1)[None].float()
    found = cells.transpose(2, 0, 1).astype(float)
    for pixels, means, halvings in ((0, 16), (24, 28), 2), ((16, 20), (28, 30), 1), ((20, 24), (30, 32), 1):
        expected = local_mean(folded[:, slice(*pixels)])[0].numpy()
        error = np.abs(found[slice(*means)] - expected[:1]).max(axis=0)
        error[:: len(error) - 1, :: len(error[0]) - 1] -= 1  # at the corners of a frame it is not quite the mean
        # All else that differs is rounding to codes, at each halving and at the end.
        assert error.max() <= 0.5 * (halvings + 1)
        excess = found[slice(*means)].mean(axis=0) - expected[0]
        excess[:: len(excess) - 1, :: len(excess[0]) - 1] = 0
        assert np.abs(excess).max() <= 0.75 and abs(excess.mean()) < 0.1  # channels that are rounded apart agree


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_flat_pictures_have_flat_means(level):
    cells = fold_planes(np.full((16, 16), level, np.uint8), *np.full((2, 8, 8), level, np.uint8))
    for means in (slice(24, 28), slice(28, 30), slice(30, 32)):
        assert np.abs(cells[..., means].mean(axis=-1) - level).max() <= 0.25


@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 83)])
def test_video_is_made_steeper_as_in_training(soft, rng, height, width):
    y, uv = crop(soft, height, width)
    wide = rng.uniform(-2, 4, uv.shape[1:]).astype(np.float32)
    shares = detail_shares(wide)
    planes = [torch.from_numpy(plane)[None, None] for plane in (np.float32(y / 255), wide)]
    expected = models.steepen(*planes)[0, 0].numpy() * 255
    assert np.abs(expected - y).max() > 10
    assert np.abs(steepen(y.astype(np.float32), *shares) - expected).max() < 0.5  # shares of all detail have steps
    assert np.abs(steepen(y, *shares) - expected).max() <= 2  # what is added and what is taken is rounded
    assert (steepen(y, *detail_shares(0 * wide)) == y).all()
    beyond, limit = (steepen(y, *detail_shares(np.full_like(wide, greatest))) for greatest in (9, 5))
    assert (beyond == limit).all() and (limit != y).any()


def test_halo_is_limited_as_in_training(rng):
    y, sharp = (rng.integers(0, 256, (40, 48), np.uint8) for _ in range(2))
    planes = [torch.from_numpy(plane)[None, None].float() for plane in (sharp, y)]
    expected = models.limit_halo(*planes)[0, 0].numpy()
    assert np.abs(limit_halo(sharp, y) - expected).max() <= 0.51
    assert np.abs(limit_halo(*(plane.astype(np.float32) for plane in (sharp, y))) - expected).max() < 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("height", "strength"), [(1, 1), (130, 0.7), (130, 0.3), (523, 2)])
def test_a_change_is_applied_in_stripes_as_in_training(rng, height, strength, dtype):
    y = cv2.resize(rng.integers(0, 256, (height // 3 + 1, 24), np.uint8), (72, height)).astype(dtype)
    uv = rng.integers(0, 256, (2, (height + 1) // 2, 36), np.uint8).astype(dtype)
    change = rng.integers(-90, 90, (-(-height // 8) * 2, 18, 32), np.int8)
    luma, halves = (array.view(np.int8)[..., :height, :].astype(np.float32) for array in unfold_planes(change))
    residuals = [np.sign(x) * np.maximum(np.abs(x) / RESIDUAL_STEPS - FAINT, 0) for x in (luma, halves[:2])]
    residuals = [strength * residuals[0] * 219 / 255, strength * residuals[1][:, : uv.shape[1]] * 224 / 255]
    restored = [np.clip(plane + residual, 0, 255) for plane, residual in zip((y, uv), residuals, strict=True)]
    shares = detail_shares(scale_gain(halves[2, : uv.shape[1]] / GAIN_STEPS, strength))
    expected = limit_halo(steepen(restored[0].astype(np.float32), *shares), y.astype(np.float32))
    found = apply_change(change, y, uv, strength, (219, 224), threads=3)
    assert found[0].dtype == found[1].dtype == dtype
    allowed = 5 if dtype == np.uint8 else 1e-3  # a gain of 3 multiplies what is rounded
    assert np.abs(found[0] - expected).max() <= allowed and np.abs(found[1] - restored[1]).max() <= allowed


def steady_all(frames, **options):
    """The last of some frames after those before it."""
    return functools.reduce(lambda previous, y: steady(y, previous, **options), frames, None).astype(int)


@pytest.mark.parametrize("sigma", [1, 3, 8])
def test_noise_is_averaged_where_the_picture_stands_still(rng, sigma):
    scene = cv2.GaussianBlur(rng.integers(0, 256, (131, 150)).astype(np.float32), (0, 0), 3)
    frames = [rng.normal(scene, sigma).clip(0, 255).astype(np.uint8) for _ in range(10)]
    whole, half, quarter, none = (np.std(steady_all(frames, strength=s) - scene) for s in (1, 0.5, 0.25, 0))
    assert whole == half < 0.62 * sigma < quarter < 0.9 * none
    np.testing.assert_array_equal(steady_all(frames, threads=2), steady_all(frames, threads=1))


def test_what_moves_leaves_no_trail(rng):
    """A noisy square, 20 codes brighter, on a noisy wall."""
    frames = [np.full((96, 160), 100.0) for _ in range(12)]
    for number, frame in enumerate(frames):
        frame[32:64, 8 * number : 8 * number + 32] += 20
    noisy = [rng.normal(frame, 2).astype(np.uint8) for frame in frames]
    errors = [np.abs(cv2.blur(y - frames[-1], (5, 5))).max() for y in (steady_all(noisy), noisy[-1].astype(int))]
    assert errors[0] < errors[1] + 1


def test_what_stands_still_settles_to_within_a_code(rng):
    scene = rng.integers(0, 255, (67, 90), np.uint8)
    flickering = [scene + (rng.random(scene.shape) < 0.5).astype(np.uint8) for _ in range(8)]
    before, last = (steady_all(flickering[:count]) for count in (7, 8))
    np.testing.assert_array_equal(before, last)
    assert set(np.unique(last - scene)) <= {0, 1}


def test_a_pan_over_fine_texture_is_hardly_taken_for_noise():
    """Nothing in it is still or flat, so that all of it counts as noise."""
    grass = cv2.GaussianBlur(grass_picture(), (0, 0), 1.5)
    frames = [grass[:, 3 * number :][:, :400] for number in range(4)]
    assert psnr(frames[-1], steady_all(frames).astype(np.uint8)) > 30


@pytest.mark.parametrize("shape", [(16, 16), (17, 33), (2, 50)])
def test_great_changes_and_other_sizes_are_left_alone(shape):
    dark, bright = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)
    dotted = dark.copy()
    dotted[1, 5] = 255  # one pixel hardly moves its surroundings
    for frame, previous in ((dark, bright), (bright, dark), (dotted, dark), (dark, dotted), (dark, None)):
        np.testing.assert_array_equal(steady(frame, previous), frame)
    assert steady(dark, np.zeros((48, 64), np.uint8)) is dark
    np.testing.assert_array_equal(steady(np.asfortranarray(dotted), dark), dotted)  # columns first in memory


def test_stripes_on_threads_fold_the_whole_picture(rng):
    padded = pad_planes(rng.integers(0, 256, (523, 72), np.uint8), rng.integers(0, 256, (2, 262, 36), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_STRIPE", 1000)
        whole = fold_planes(*padded)
    np.testing.assert_array_equal(fold_planes(*padded, threads=2), whole)


# ----------------------------------------------------------------------------------------------------------------------
# The int8 network


@pytest.mark.parametrize("full_range", [True, False])
@pytest.mark.parametrize("size", [(304, 448), (97, 131)])
def test_released_network_does_what_the_student_does(released, soft, size, full_range):
    planes = crop(soft, *size)
    (y, uv), (int8_y, int8_uv) = (engine(*planes, full_range) for engine in released)
    assert int8_y.shape == y.shape and int8_uv.shape == uv.shape
    for sharp in ((y, uv), (int8_y, int8_uv)):
        assert visible_change([sharp], [planes])["edges"][0] > 1.02, "the student has to do something"
    assert psnr(int8_y, y) > 45 and psnr(int8_uv, uv) > 45


@pytest.mark.parametrize("strength", [1, 1.7])
def test_deep_planes_get_the_networks_change_at_their_depth(released, soft, strength):
    """The network sees 8 bits; detail and halo are those of the deep planes."""
    rng = np.random.default_rng(0)
    planes = [np.float32((plane + rng.uniform(-0.5, 0.5, plane.shape)) / 255) for plane in crop(soft, 64, 64)]
    reference, engine = released
    for ours, theirs in zip(engine.difference(*planes, strength), reference.difference(*planes, strength), strict=True):
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        assert 255 * np.abs(ours - theirs).mean() < 0.6
    assert len(np.unique(engine.difference(*planes, strength)[0])) > 1000, "they are not rounded to 8 bits"


def test_threads_take_turns(released, soft):
    """Frames of several threads are sharpened by one engine as by one engine each."""
    engine, rng, tasks = released[1], np.random.default_rng(0), []
    for size, strength in [((64, 96), 1.0), ((96, 64), 1.0), ((64, 96), 0.5), ((80, 80), 1.0)]:
        frames = [[plane + rng.integers(0, 9, plane.shape, np.uint8) for plane in crop(soft, *size)] for _ in range(20)]
        tasks.append((frames, strength))

    def sharpen(engine, task):
        frames, strength = task
        return [engine(*frame, strength=strength) for frame in frames]

    expected = [sharpen(OpenVINOEngine(RELEASED_STUDENT), task) for task in tasks]
    with ThreadPoolExecutor(len(tasks)) as pool:
        found = list(pool.map(lambda task: sharpen(engine, task), tasks))
    for ours, theirs in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert_same(ours, theirs)


IN_A_CHILD = """
import os, numpy, torch
from inference import RealTimeSharpener
torch.conv2d(torch.ones(1, 8, 256, 256), torch.ones(8, 8, 3, 3))  # in threads, which the child will not have
sharpener = RealTimeSharpener(device="openvino")
sharpener.sharpen(numpy.full((64, 64, 3), 100, numpy.uint8))
if os.fork():
    os.wait()
else:
    for one in (sharpener, RealTimeSharpener(device="openvino")):
        one.sharpen(numpy.full((64, 64, 3), 101, numpy.uint8))
    print("sharpened", flush=True)
    os._exit(0)
"""

AFTER_CTRL_C = """
import signal
from inference import RealTimeSharpener
sharpeners = [RealTimeSharpener(device="openvino") for _ in range(3)]
while sharpeners:
    sharpeners.pop(0)  # OpenVINO's cores want to be dropped the other way round
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("sharpened")
"""


@pytest.mark.parametrize(
    "program",
    [IN_A_CHILD, AFTER_CTRL_C],
    ids=["after a fork", "after Ctrl-C"],
)
def test_threads_and_processes_go_on(program):
    if "fork" in program and sys.platform != "linux":
        pytest.skip("it is on Linux that processes are forked")
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout == "sharpened\n", run.stderr


def test_another_runtime_reads_the_same_network(released, soft):
    y, uv = crop(soft, 96, 128)
    session = onnxruntime.InferenceSession(artefact_path(RELEASED_STUDENT), providers=["CPUExecutionProvider"])
    inputs = {"cells": fold_planes(*pad_planes(y, uv))[None], "stretch": np.ones((1, 1, 1, 1), np.float32)}
    (change,) = session.run(None, inputs)
    theirs, _ = apply_change(change[0], y, uv, 1, FULL_RANGE_SCALE)
    ours, _ = released[1](y, uv, full_range=True)
    # OpenVINO keeps what lies between the int8 layers in bfloat16 where the processor has it.
    assert np.abs(theirs.astype(int) - ours).max() <= 4 and psnr(theirs, ours) > 50


def test_no_processor_overflows(exported):
    """Without VNNI, two products of a uint8 and an int8 are added in 16 bits."""
    for path in (RELEASED_STUDENT, exported[1]):
        constants = map(onnx.numpy_helper.to_array, onnx.load(artefact_path(path)).graph.initializer)
        kernels = [weights.astype(int) for weights in constants if weights.dtype == np.int8 and weights.ndim == 4]
        assert len(kernels) == 2 + 2 * load_student(path)[0].args["blocks"]
        assert all(255 * 2 * np.abs(kernel).max() < 2**15 for kernel in kernels)


def test_means_are_multiplied_by_the_sum_of_the_weights():
    torch.manual_seed(0)
    heads = [load_student()[0].head, torch.nn.Conv2d(24, 8, 1), torch.nn.Conv2d(24, 8, 1)]
    torch.nn.init.constant_(heads[1].weight, -0.3)  # so that the sums are as large as they can be
    for head in heads:
        quantised = QuantisedHead(head, torch.zeros(24), torch.ones(24))
        weights, shares = quantised.weight_integers(), quantised.mean_weights()
        assert shares.abs().max() <= WEIGHT_LIMIT and torch.equal(shares, shares.round())
        for planes, means in ((0, 16), (0, 4)), ((16, 20), (4, 6)), ((20, 24), (6, 8)):
            assert torch.equal(shares[:, slice(*means)].sum(dim=1), -weights[:, slice(*planes)].sum(dim=1))
        error = (weights * quantised.scales()[:, None, None, None] - head.weight).abs().amax(dim=(1, 2, 3))
        assert (error <= 0.501 * quantised.scales()).all()


# ----------------------------------------------------------------------------------------------------------------------
# Export


def test_export_follows_the_student(exported, soft):
    student, path = exported
    planes = crop(soft, 96, 128)
    expected, _ = TorchEngine(student, "cpu").difference(*planes)
    found, _ = OpenVINOEngine(path).difference(*planes)
    changed = np.abs(expected.astype(float) - 128).mean()
    assert changed > 0.5 and np.abs(found.astype(float) - expected).mean() < 0.2 * changed + FAINT


def test_export_distils_on_the_students_own_pairs(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"sources": {"rendered": 1.0}, "pairs": 4, "validation_pairs": 2, "region": 256, "crop": 64}
    config["cache_dir"] = str(tmp_path / "elsewhere")  # belongs to the machine that trained
    save_student("student.pth", exported[0], {"config": config})
    content = Path("student.pth").read_bytes()
    found = export("student.pth", data="data", frames=2, steps=2, progress=False)
    assert found == artefact_path("student.pth") and found.read_bytes() != artefact_path(exported[1]).read_bytes()
    assert [path.parent.name.partition("-")[0] for path in Path("data/cache").glob("*/pairs-*.npy")] == ["training"]
    again = export("student.pth", "again.onnx", data="data", frames=2, steps=2, progress=False)
    assert again.read_bytes() == found.read_bytes() and Path("student.pth").read_bytes() == content


def test_the_students_own_pairs_need_a_configuration(exported, tmp_path, capsys):
    save_student(tmp_path / "student.pth", exported[0], {})
    assert main([str(tmp_path / "student.pth"), "--data", str(tmp_path)]) == 2
    assert "does not say how it was trained: leave out --data" in capsys.readouterr().err
    assert not artefact_path(tmp_path / "student.pth").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Choice of the engine


def test_auto_takes_the_int8_network(exported):
    _, path = exported
    assert make_engine(path).description.startswith("openvino CPU" if _no_gpu() else "torch")
    assert make_engine(path, "cpu").description.startswith("torch cpu")
    assert make_engine(path, "openvino").description == "openvino CPU int8"
    with pytest.raises(DeviceError, match="openvino:CPU"):
        make_engine(path, "openvino:abacus")


def _no_gpu():
    return pick_device().type == "cpu"


def _damage(path):
    content = artefact_path(path).read_bytes()
    artefact_path(path).write_bytes(content[: len(content) // 2])


def _change_student(path):
    student, meta = load_student(path)
    with torch.no_grad():
        student.tail.bias += 0.01
    save_student(path, student, meta)


@pytest.mark.skipif(not _no_gpu(), reason="on a GPU, PyTorch comes first")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: artefact_path(path).unlink(), "no int8 network"),
        (_damage, "cannot run"),
        (_change_student, "another checkpoint"),
    ],
)
def test_fallback_is_never_silent(exported, tmp_path, caplog, spoil, reason):
    path = tmp_path / "student.pth"
    for file in (exported[1], artefact_path(exported[1])):
        shutil.copy(file, tmp_path / file.name)
    spoil(path)
    with caplog.at_level(logging.WARNING):
        assert make_engine(path).description.startswith("torch cpu")
    assert reason in caplog.text and "PyTorch is used" in caplog.text
    with pytest.raises(DeviceError, match=reason):
        make_engine(path, "openvino")


def test_nothing_is_reported_to_the_makers_of_openvino():
    program = """
import runtime
runtime.OpenVINOEngine(runtime.RELEASED_STUDENT)
import openvino.tools.ovc.telemetry_utils as used
assert used.tm.__name__.endswith("telemetry_stub"), used.tm
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(runtime.__file__).parent, timeout=60)
