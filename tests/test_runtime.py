"""The int8 network: what OpenVINO makes of it, against the student in PyTorch."""

import itertools
import locale
import logging
import shutil
import subprocess
import sys
import threading
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

import models
import runtime
from benchmark.metrics import psnr, visible_change
from degradation import pack_planes
from export import (
    CLOSENESS,
    FAINT,
    FLAT_WEIGHT,
    NEAR,
    WEIGHT_LIMIT,
    QuantisedHead,
    answer_loss,
    details,
    draw_details,
    export,
    in_codes,
    main,
    predict,
    quantise,
)
from models import NEIGHBOURS, RELEASED_STUDENT, Student, load_student, local_mean, save_student
from runtime import (
    GAIN_STEPS,
    GAIN_ZERO,
    ArtefactError,
    DeviceError,
    OpenVINOEngine,
    TorchEngine,
    artefact_path,
    fold_planes,
    limit_halo,
    make_engine,
    pad_planes,
    steepen,
    unfold_planes,
)
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
    return TorchEngine(student, "cpu", torch.float32), OpenVINOEngine(student, artefact_path(RELEASED_STUDENT))


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


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_folding_is_pixel_unshuffle_and_unfolding_its_inverse(height, width, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 256, (height, width), np.uint8)
    uv = rng.integers(0, 256, (2, (height + 1) // 2, (width + 1) // 2), np.uint8)
    folded, _ = fold_planes(*pad_planes(y, uv))
    rows, columns = (-(-side // 8) * 8 for side in (height, width))
    padded = [np.pad(y, ((0, rows - height), (0, columns - width)), mode="edge")]
    padded += [
        np.pad(plane, ((0, rows // 2 - uv.shape[1]), (0, columns // 2 - uv.shape[2])), mode="edge") for plane in uv
    ]
    planes = zip(padded, (4, 2, 2), strict=True)
    expected = torch.cat([F.pixel_unshuffle(torch.from_numpy(plane)[None], fold) for plane, fold in planes])
    np.testing.assert_array_equal(folded[..., :24], expected.permute(1, 2, 0))
    no_gain = np.full(uv.shape[1:], GAIN_ZERO)
    for plane, same in zip((y, uv, no_gain), unfold_planes(folded, height, width), strict=True):
        np.testing.assert_array_equal(plane, same)


def test_gain_is_unfolded_as_chroma_is(rng):
    folded = rng.integers(0, 256, (5, 6, 28), np.uint8)
    again = folded.copy()
    again[..., 16:20] = folded[..., 24:]
    np.testing.assert_array_equal(unfold_planes(folded, 19, 23)[2], unfold_planes(again, 19, 23)[1][0])


def test_folded_means_are_the_students(soft):
    y, uv = crop(soft, 61, 83)
    planes, cells = fold_planes(*pad_planes(y, uv))
    np.testing.assert_array_equal(cells[..., :24], planes[..., :24])
    folded = torch.from_numpy(cells).permute(2, 0, 1)[None].float()
    found = cells.transpose(2, 0, 1).astype(float)
    for pixels, means, halvings in ((0, 16), (24, 28), 2), ((16, 20), (28, 30), 1), ((20, 24), (30, 32), 1):
        expected = local_mean(folded[:, slice(*pixels)])[0].numpy()
        error = np.abs(found[slice(*means)] - expected[:1]).max(axis=0)
        error[:: len(error) - 1, :: len(error[0]) - 1] -= 1  # at the corners of a frame it is not quite the mean
        # All else that differs is rounding to codes, at each halving and at the end.
        assert error.max() <= 0.5 * (halvings + 1)


@pytest.mark.parametrize("full_range", [True, False])
@pytest.mark.parametrize("size", [(304, 448), (97, 131)])
def test_released_network_does_what_the_student_does(released, soft, size, full_range):
    planes = crop(soft, *size)
    (y, uv), (int8_y, int8_uv) = (engine(*planes, full_range) for engine in released)
    assert int8_y.shape == y.shape and int8_uv.shape == uv.shape
    for sharp in ((y, uv), (int8_y, int8_uv)):
        assert visible_change([sharp], [planes])["edges"][0] > 1.02, "the student has to do something"
    assert psnr(int8_y, y) > 45 and psnr(int8_uv, uv) > 45


def test_black_letters_on_white_keep_their_contrast(released):
    """Their details are beyond 127 codes."""
    y = np.full((288, 512), 255, np.uint8)
    for line in range(8):
        cv2.putText(y, "Quick brown foxes jump", (12, 30 + 34 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 0, 2)
    small = cv2.resize(y, (256, 144), interpolation=cv2.INTER_AREA)
    planes = cv2.resize(small, (512, 288), interpolation=cv2.INTER_CUBIC), np.full((2, 144, 256), 128, np.uint8)
    (expected, _), (found, _) = (engine(*planes, full_range=True) for engine in released)
    assert visible_change([(expected, None)], [planes])["edges"][0] > 1.02, "the student has to do something"
    assert psnr(found, expected) > 42


def test_strength(released, soft):
    y, uv = crop(soft, 96, 128)
    _, engine = released
    for plane, same in zip((y, uv), engine(y, uv, strength=0), strict=True):
        np.testing.assert_array_equal(plane, same)
    once, twice = (engine.difference(y, uv, strength) for strength in (1, 2))
    chroma = [change.astype(float) - 128 for _, change in (once, twice)]
    assert np.abs(chroma[1] - 2 * chroma[0]).max() <= 1.5  # two roundings
    luma = [change.astype(float) - 128 for change, _ in (once, twice)]
    assert 1.2 < np.abs(luma[1]).mean() / np.abs(luma[0]).mean() < 2.2  # what the range of neighbours leaves of twice
    for change, strength in zip(luma, (1, 2), strict=True):
        sharp, _ = engine(y, uv, full_range=True, strength=strength)
        assert np.abs(sharp - np.clip(y + change, 0, 255)).max() <= 4  # so are the sum and its detail


@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 83)])
def test_video_is_made_steeper_as_in_training(soft, rng, height, width):
    y, uv = crop(soft, height, width)
    gain = rng.integers(0, 256, uv.shape[1:], np.uint8)
    expected = models.steepen(torch.from_numpy(np.float32(y / 255))[None, None], _decoded(gain))[0, 0].numpy() * 255
    assert np.abs(expected - y).max() > 10
    assert np.abs(steepen(y.astype(np.float32), gain) - expected).max() < 0.5  # the gain between two has whole codes
    assert np.abs(steepen(y, gain) - expected).max() <= 2  # detail is rounded before it is multiplied
    assert (steepen(y, np.full_like(gain, GAIN_ZERO)) == y).all()


def _decoded(gain):
    return (torch.from_numpy(gain)[None, None].float() - GAIN_ZERO) / GAIN_STEPS


def test_halo_is_limited_as_in_training(rng):
    y, sharp = (rng.integers(0, 256, (40, 48), np.uint8) for _ in range(2))
    planes = [torch.from_numpy(plane)[None, None].float() for plane in (sharp, y)]
    expected = models.limit_halo(*planes)[0, 0].numpy()
    assert np.abs(limit_halo(sharp, y) - expected).max() <= 0.51
    assert np.abs(limit_halo(*(plane.astype(np.float32) for plane in (sharp, y))) - expected).max() < 1e-3


def test_what_is_made_steeper_stays_within_its_neighbours_range(rng):
    y, gain = rng.integers(0, 256, (40, 48), np.uint8), rng.integers(0, 256, (20, 24), np.uint8)
    window = np.ones((NEIGHBOURS, NEIGHBOURS), np.uint8)
    for plane in (y, y.astype(np.float32)):
        sharp = steepen(plane, gain)
        assert sharp.dtype == plane.dtype and (sharp != plane).mean() > 0.5
        assert (sharp >= cv2.erode(plane, window)).all() and (sharp <= cv2.dilate(plane, window)).all()


@pytest.mark.parametrize("strength", [1, 1.7])
def test_float_differences_are_the_students(released, soft, strength):
    planes = [np.float32(plane / 255) for plane in crop(soft, 64, 64)]
    reference, engine = released
    for ours, theirs in zip(engine.difference(*planes, strength), reference.difference(*planes, strength), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_black_and_white_stay_in_range(released):
    for value in (0, 255):
        y, uv = np.full((64, 64), value, np.uint8), np.full((2, 32, 32), 128, np.uint8)
        sharp, _ = released[1](y, uv)
        assert np.abs(sharp.astype(int) - value).max() <= 1


def test_threads_take_turns(released, soft):
    engine, rng, tasks = released[1], np.random.default_rng(0), []
    for size, strength in [((64, 96), 1.0), ((96, 64), 1.0), ((64, 96), 0.5), ((80, 80), 1.0)]:
        frames = [[plane + rng.integers(0, 9, plane.shape, np.uint8) for plane in crop(soft, *size)] for _ in range(20)]
        tasks.append((frames, strength))
    alone = fresh()
    expected = [[alone(*frame, strength=strength) for frame in frames] for frames, strength in tasks]
    found, begin = [None] * len(tasks), threading.Barrier(len(tasks))

    def work(i):
        frames, strength = tasks[i]
        begin.wait()
        found[i] = [engine(*frame, strength=strength) for frame in frames]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert_same(ours, theirs)


AFTER_THE_END = """
import sys, threading, numpy
from inference import RealTimeSharpener
sharpener, main = RealTimeSharpener(device="openvino"), threading.current_thread()

def work():
    main.join()
    for value in range(3):
        sharpener.sharpen(numpy.full((64, 64, 3), 100 + value, numpy.uint8))
    print("sharpened")

threading.Thread(target=work).start()
"""

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
    [AFTER_THE_END, IN_A_CHILD, AFTER_CTRL_C],
    ids=["after the main thread's end", "after a fork", "after Ctrl-C"],
)
def test_threads_and_processes_go_on(program):
    if "fork" in program and sys.platform != "linux":
        pytest.skip("it is on Linux that processes are forked")
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout == "sharpened\n", run.stderr


@pytest.fixture
def computed(monkeypatch):
    """Sizes in cells of what networks computed, as a list that grows."""
    sizes, infer = [], runtime._FrameNetwork.infer

    def count(network, parameters):
        sizes.append(network.sharp.shape[:2])
        infer(network, parameters)

    monkeypatch.setattr(runtime._FrameNetwork, "infer", count)
    return sizes


def fresh(checkpoint=RELEASED_STUDENT):
    return OpenVINOEngine(load_student(checkpoint)[0], artefact_path(checkpoint))


def assert_same(ours, theirs):
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(found, expected)


PART = (runtime._WINDOW, runtime._WINDOW)


def prepare_part(engine, y, uv, full_range):
    """Change a corner of a picture until there is a network for parts of it."""
    for _ in range(runtime._FRAMES_TO_WIN + 1):
        y[0, 0] ^= 32
        engine(y, uv, full_range)
    engine.settle()
    assert engine._part


@pytest.mark.parametrize(
    ("name", "size", "full_range"),
    [
        ("released", (465, 609), True),
        ("released", (529, 531), False),
        ("random", (448, 624), False),
        ("random", (256, 1000), True),
    ],
)
def test_what_stands_still_is_not_computed_again(computed, exported, name, size, full_range):
    checkpoint = {"released": RELEASED_STUDENT, "random": exported[1]}[name]
    engine, alone = fresh(checkpoint), fresh(checkpoint)
    whole = tuple(-(-side // 8) * 2 for side in size)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 256, size, dtype=np.uint8)
    uv = rng.integers(0, 256, (2, (size[0] + 1) // 2, (size[1] + 1) // 2), dtype=np.uint8)
    prepare_part(engine, y, uv, full_range)
    seen = set()
    for count in range(40):
        height, width = [(24, 32), (32, 24), (size[0], 32), size][count % 4]
        for _ in range(1 + count % 2):
            lines, length = rng.integers(1, height), rng.integers(1, width)
            top, left = rng.integers(0, (size[0] - lines, size[1] - length))
            top, left = rng.choice([0, top, size[0] - lines]), rng.choice([0, left, size[1] - length])
            if count % 3:
                y[top : top + lines, left : left + length] ^= rng.integers(1, 256, (lines, length), dtype=np.uint8)
            if count % 3 != 1:
                uv[count % 2, top // 2 : (top + lines) // 2 + 1, left // 2] ^= 16
        del computed[:]
        found = engine(y, uv, full_range)
        seen.add(tuple(computed))
        alone(255 - y, uv, full_range)  # of which nothing can be kept
        assert_same(found, alone(y, uv, full_range))
        del computed[:]
        assert_same(engine(y, uv, full_range), found)
        assert not computed, "the same frame again"
    assert {(PART,), (PART, PART), (whole,)} <= seen
    assert all(set(sizes) <= {PART} or sizes == (whole,) for sizes in seen), "either parts or the whole"


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(64, 200),
    columns=st.integers(64, 200),
    reach=st.sampled_from([2, 5, 7, 9, 20, 31, 32, 33, 40]),
    data=st.data(),
)
def test_windows_hold_all_that_a_change_has_an_influence_on(rows, columns, reach, data):
    changed = np.zeros((rows, columns), bool)
    for _ in range(data.draw(st.integers(0, 3))):
        (top, bottom), (left, right) = (
            sorted(data.draw(st.tuples(*2 * [st.integers(0, side)]))) for side in (rows, columns)
        )
        changed[top : top + (bottom - top) // 4 + 1, left : left + (right - left) // 4 + 1] = True
    windows = runtime._cover(changed, reach)
    if windows is None:
        return
    assert len(windows) * runtime._WINDOW**2 < rows * columns
    renewed = np.zeros_like(changed)
    for source, target, result in windows:
        for given_side, seen, new, where in zip(changed.shape, source, target, result, strict=True):
            assert seen.start >= 0 and seen.stop <= given_side and seen.stop - seen.start == runtime._WINDOW
            assert (where.start, where.stop) == (new.start - seen.start, new.stop - seen.start)
            # At its borders a window sees nothing, where the frame goes on: it must not renew what that concerns.
            assert new.start - seen.start >= reach - 1 or new.start == 0
            assert seen.stop - new.stop >= reach - 1 or new.stop == given_side
        renewed[target] = True
    for row, column in np.argwhere(changed):
        assert renewed[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1].all()


def test_other_settings_are_computed_anew(soft, computed):
    calls = [
        ("__call__", {"full_range": True}),
        ("__call__", {"full_range": True, "strength": 0.5}),
        ("__call__", {"strength": 0.5}),
        ("__call__", {"strength": 1.5}),
        ("__call__", {"full_range": True}),
        ("difference", {}),  # in the last call's range and at its strength
        ("__call__", {"full_range": True}),
    ]
    engine = fresh()
    del computed[:]
    found = [getattr(engine, name)(*soft, **chosen) for name, chosen in calls]
    assert len(computed) == len(calls)
    for (name, chosen), planes in zip(calls, found, strict=True):
        assert_same(planes, getattr(fresh(), name)(*soft, **chosen))
    for i, j in itertools.combinations(range(1, 6), 2):
        assert (found[i][0] != found[j][0]).any()


@pytest.mark.parametrize("name", ["_quads", "_mean_quads"])
def test_a_failure_of_folding_is_no_secret(soft, monkeypatch, name):
    engine = fresh()
    engine(255 - soft[0], soft[1])
    with monkeypatch.context() as patch:
        patch.setattr(runtime, name, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine(*soft)
    assert_same(engine(*soft), fresh()(*soft))


def test_after_a_failure_all_is_computed_anew(soft, monkeypatch):
    engine, infer = fresh(), runtime._FrameNetwork.infer
    engine(*soft)

    def fail(network, parameters):
        raise RuntimeError("interrupted")

    monkeypatch.setattr(runtime._FrameNetwork, "infer", fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        engine(255 - soft[0], soft[1])
    monkeypatch.setattr(runtime._FrameNetwork, "infer", infer)
    for y in (255 - soft[0], soft[0]):
        assert_same(engine(y, soft[1]), fresh()(y, soft[1]))


def test_where_no_part_compiles_frames_are_computed_as_a_whole(soft, computed, monkeypatch, caplog):
    engine = fresh()
    engine(*soft)
    monkeypatch.setattr(engine, "_compile", lambda *size: 1 / 0)
    y, uv = (plane.copy() for plane in soft)
    with caplog.at_level("WARNING"):
        for _ in range(3 * runtime._FRAMES_TO_WIN):
            y[:8, :8] ^= 32
            engine(y, uv)
            engine.settle()
    assert computed[-1] == (76, 112) and caplog.text.count("computed as a whole") == 1  # it was tried once
    assert_same(engine(y, uv), fresh()(y, uv))


def test_of_many_sizes_few_are_kept(soft):
    engine = fresh()
    for side in range(64, 112, 8):
        engine(*crop(soft, side, side))
    assert list(engine._networks) == [(side // 4, side // 4) for side in range(80, 112, 8)]


def test_another_runtime_reads_the_same_network(released, soft):
    y, uv = crop(soft, 96, 128)
    session = onnxruntime.InferenceSession(artefact_path(RELEASED_STUDENT), providers=["CPUExecutionProvider"])
    planes, cells = fold_planes(*pad_planes(y, uv))
    inputs = {"planes": planes[None], "cells": cells[None]}
    inputs |= {
        name: np.ones((1, 1, 1, size), np.float32) for name, size in {"stretch": 1, "amount": 28, "keep": 1}.items()
    }
    (sharp,) = session.run(None, inputs)
    restored, _, gain = unfold_planes(sharp[0], *y.shape)
    theirs = limit_halo(steepen(restored, gain), y)
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
    heads = [load_student()[0].head, torch.nn.Conv2d(24, 8, 3), torch.nn.Conv2d(24, 8, 3)]
    torch.nn.init.constant_(heads[1].weight, -0.3)  # so that the sums are as large as they can be
    for head in heads:
        quantised = QuantisedHead(head, torch.zeros(24), torch.ones(24))
        weights, shares = quantised.weight_integers(), quantised.mean_weights()
        assert shares.abs().max() <= WEIGHT_LIMIT and torch.equal(shares, shares.round())
        for planes, means in ((0, 16), (0, 4)), ((16, 20), (4, 6)), ((20, 24), (6, 8)):
            assert torch.equal(shares[:, slice(*means)].sum(dim=1), -weights[:, slice(*planes)].sum(dim=1))
        error = (weights * quantised.scales()[:, None, None, None] - head.weight).abs().amax(dim=(1, 2, 3))
        assert (error <= 0.501 * quantised.scales()).all()


def test_export_follows_the_student(exported, soft):
    student, path = exported
    planes = crop(soft, 96, 128)
    expected, _ = TorchEngine(student, "cpu").difference(*planes)
    found, _ = OpenVINOEngine(student, artefact_path(path)).difference(*planes)
    changed = np.abs(expected.astype(float) - 128).mean()
    assert changed > 0.5 and np.abs(found.astype(float) - expected).mean() < 0.2 * changed + FAINT


def test_export_is_repeatable(exported, tmp_path):
    _, path = exported
    again = export(path, tmp_path / "again.onnx", frames=2, steps=2, progress=False)
    assert again.read_bytes() == artefact_path(path).read_bytes()


@pytest.fixture
def trained(exported, tmp_path, monkeypatch):
    """The small student with a note of how it was trained, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    config = {"sources": {"rendered": 1.0}, "pairs": 4, "validation_pairs": 2, "region": 256, "crop": 64}
    config["cache_dir"] = str(tmp_path / "elsewhere")  # no matter of the checkpoint
    save_student(tmp_path / "student.pth", exported[0], {"config": config})
    return tmp_path / "student.pth"


def test_export_distils_on_the_students_own_pairs(exported, trained):
    _, distilled = exported
    found = export(trained, artefact_path(trained.resolve()), data="data", frames=2, steps=2, progress=False)
    assert found == artefact_path(trained) and found.read_bytes() != artefact_path(distilled).read_bytes()
    assert [path.parent.name.partition("-")[0] for path in Path("data/cache").glob("*/pairs-*.npy")] == ["training"]
    content = trained.read_bytes()
    again = export(trained, "again.onnx", data="data", frames=2, steps=2, progress=False)
    assert again.read_bytes() == found.read_bytes() and trained.read_bytes() == content


def test_details_to_learn_from_are_those_of_random_crops(rng):
    y = rng.integers(0, 256, (96, 96), np.uint8)
    pictures = [pack_planes(y, np.stack([y[::2, ::2]] * 2)), pack_planes(255 - y, np.stack([y[1::2, ::2]] * 2))]
    batches = list(draw_details(pictures, 5, batch=3, crop=64))
    assert [tuple(batch.shape) for batch in batches] == [(3, 24, 16, 16)] * 5
    assert len({crop.numpy().tobytes() for batch in batches for crop in batch}) > 10
    assert all(torch.equal(*pair) for pair in zip(batches, draw_details(pictures, 5, batch=3, crop=64), strict=True))


def test_the_network_is_to_answer_like_the_student(exported, soft):
    student, x = in_codes(exported[0]), details(*crop(soft, 128, 128))
    answer = predict(student, x)
    smooth = 0.01 * (1 + FLAT_WEIGHT)  # of roots that keep their slope where nothing is wrong
    assert answer_loss(answer, answer, x).item() == pytest.approx(smooth, rel=1e-4)
    near, far = (answer_loss(answer + off, answer, 0 * x) for off in (_off(NEAR), _off(NEAR + 2)))
    planes = 24 / 28
    assert (far - near).item() == pytest.approx(2 * (1 + FLAT_WEIGHT) * planes**0.5 + CLOSENESS * 4 * planes, rel=1e-3)
    quantised = quantise(student, [x])
    answer_loss(predict(quantised, x), answer, x).backward()
    slopes = [weights.grad for weights in quantised.parameters() if weights.requires_grad]
    assert len(slopes) == 4 * 4 - 2 and all(slope.isfinite().all() and slope.any() for slope in slopes)


def test_errors_on_a_wall_count_most():
    """Where they are seen as noise."""
    x = torch.zeros(1, 24, 16, 16)
    x[..., 8:] = 60 * torch.randn(1, 24, 16, 8, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(1, 28, 16, 16)
    wall, texture = nothing.clone(), nothing.clone()
    wall[:, :24, :, 3:6], texture[:, :24, :, 10:13] = 1, 1
    assert answer_loss(wall, nothing, x) > 2 * answer_loss(texture, nothing, x)


def test_errors_of_the_gain_count_where_there_is_detail():
    x = torch.zeros(1, 24, 16, 16)
    x[..., 8:] = 60 * torch.randn(1, 24, 16, 8, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(1, 28, 16, 16)
    wall, texture = nothing.clone(), nothing.clone()
    wall[:, 24:, :, 3:6], texture[:, 24:, :, 10:13] = 5, 5
    none = answer_loss(nothing, nothing, x)
    assert answer_loss(wall, nothing, x) < none + 0.01 and answer_loss(texture, nothing, x) > none + 0.5


def _off(codes):
    """An error of so many codes in all planes, and none in the gain."""
    return torch.cat([torch.full((1, 24, 1, 1), float(codes)), torch.zeros(1, 4, 1, 1)], dim=1)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "does not say how it was trained: leave out --data"),
        ({"config": {"wings": 2}}, "unknown key 'wings'"),
        ({"config": {"pairs": 0}}, "pairs from"),
        ({"config": {"sources": {"here": 1.0}}}, "no folder"),
    ],
)
def test_the_students_own_pairs_need_a_configuration(exported, tmp_path, capsys, meta, message):
    save_student(tmp_path / "student.pth", exported[0], meta)
    assert main([str(tmp_path / "student.pth"), "--data", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err and not artefact_path(tmp_path / "student.pth").exists()


def test_export_refuses_what_is_no_checkpoint(tmp_path, capsys):
    path = tmp_path / "student.pth"
    path.write_text("no weights")
    assert main([str(path)]) == 2
    assert "student.pth" in capsys.readouterr().err and list(tmp_path.iterdir()) == [path]


def test_auto_takes_the_int8_network(exported):
    student, path = exported
    assert make_engine(student, path).description.startswith("openvino CPU" if _no_gpu() else "torch")
    assert make_engine(student, path, "cpu").description.startswith("torch cpu")
    assert make_engine(student, path, "openvino").description == "openvino CPU int8"


def _no_gpu():
    return runtime.pick_device().type == "cpu"


def _missing(path):
    artefact_path(path).unlink()


def _damaged(path):
    content = artefact_path(path).read_bytes()
    artefact_path(path).write_bytes(content[: len(content) // 2])


def _of_another_student(path):
    student, meta = load_student(path)
    with torch.no_grad():
        student.tail.bias += 0.01
    save_student(path, student, meta)


@pytest.mark.skipif(not _no_gpu(), reason="on a GPU, PyTorch comes first")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(_missing, "no int8 network"), (_damaged, "cannot run"), (_of_another_student, "other weights")],
)
def test_fallback_is_never_silent(exported, tmp_path, caplog, spoil, reason):
    path = tmp_path / "student.pth"
    for file in (exported[1], artefact_path(exported[1])):
        shutil.copy(file, tmp_path / file.name)
    spoil(path)
    student, _ = load_student(path)
    with caplog.at_level(logging.WARNING):
        assert make_engine(student, path).description.startswith("torch cpu")
    assert reason in caplog.text and "PyTorch is used" in caplog.text
    with pytest.raises(DeviceError, match=reason):
        make_engine(student, path, "openvino")


def test_without_openvino(exported, monkeypatch, caplog):
    student, path = exported
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ArtefactError, match="pip install openvino"):
        OpenVINOEngine(student, artefact_path(path))


def test_unknown_device(exported):
    student, path = exported
    with pytest.raises(DeviceError, match="openvino:CPU"):
        make_engine(student, path, "openvino:abacus")


def test_compiled_networks_are_kept(exported, tmp_path):
    student, path = exported
    OpenVINOEngine(student, artefact_path(path), cache=tmp_path / "cache")
    assert any((tmp_path / "cache").iterdir())


def test_nothing_is_reported_to_the_makers_of_openvino():
    program = """
import runtime, models
runtime.OpenVINOEngine(models.load_student()[0], runtime.artefact_path(models.RELEASED_STUDENT))
import openvino.tools.ovc.telemetry_utils as used
assert used.tm.__name__.endswith("telemetry_stub"), used.tm
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(runtime.__file__).parent, timeout=60)


def test_threads_that_make_engines_leave_the_locale_alone(exported):
    (student, path), encoding = exported, locale.getpreferredencoding(False)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: OpenVINOEngine(student, artefact_path(path)), range(12)))
    assert locale.getpreferredencoding(False) == encoding
