"""How much of a change a frame can use: good pictures stay, bad ones are sharpened, and a video's gain is steady."""

import itertools
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

import dataset
import gate
import train
from inference import RealTimeSharpener, divide_strength
from metrics import psnr, ssim
from models import LIGHT_STUDENT, RELEASED_STUDENT, CheckpointError, Student, load_student, save_student
from utils import bgr_to_planes, planes_to_bgr, to_limited_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoReader, VideoWriter


@pytest.fixture(scope="module")
def sharpener():
    return RealTimeSharpener(device="cpu")


@pytest.fixture(scope="module")
def ungated():
    return RealTimeSharpener(device="cpu", gated=False)


@pytest.fixture(scope="module")
def photo():
    return bgr_to_planes(dataset.load_photo("skimage:astronaut"))


def soften(planes, scale, quality=90):
    small = dataset.resize_planes(*planes, dataset.low_resolution(planes[0].shape[::-1], scale), "bicubic")
    return dataset.resize_planes(*dataset.each_plane(small, dataset.jpeg, quality), planes[0].shape[::-1])


def test_features_tell_sharpening_from_smoothing(photo):
    y, _ = photo
    blurred = cv2.GaussianBlur(y, (0, 0), 1.5)
    smoothed = gate.features(y, blurred, zero=y)
    sharpened = gate.features(
        blurred, cv2.addWeighted(blurred, 2, cv2.GaussianBlur(blurred, (0, 0), 1.5), -1, 0), zero=blurred
    )
    assert (smoothed[-gate.BANDS :][4:] < -0.5).all() and (sharpened[-gate.BANDS :][2:10] > 0.5).all()
    high = slice(gate.BANDS // 2, gate.BANDS)
    assert (sharpened[high] < smoothed[high] - 1).all()  # the spectrum of the blurred picture breaks off


def test_features_are_the_same_however_the_change_is_given(photo):
    y, _ = photo
    sharp = cv2.addWeighted(y, 1.5, cv2.GaussianBlur(y, (0, 0), 1), -0.5, 0)
    expected = gate.features(y, sharp, zero=y)
    change = sharp.astype(np.int16) - y
    np.testing.assert_allclose(gate.features(y, change + 128, zero=128), expected, atol=1e-4)
    np.testing.assert_allclose(gate.features(y / 255, change / 255, scale=255), expected, atol=1e-4)
    np.testing.assert_allclose(gate.features(y, 3 * change, strength=3), expected, atol=1e-4)
    spread = np.abs(gate.features(y[:, ::-1], sharp[:, ::-1], zero=y[:, ::-1]) - expected)
    assert spread.max() < 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (63, 64), (64, 65), (200, 7), (127, 129)])
def test_every_size_has_features(size):
    y = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    for plane in (y, np.full(size, 128, np.uint8)):
        found = gate.features(plane, plane // 2, zero=plane)
        assert found.shape == (gate.FEATURES,) and np.isfinite(found).all()


def layer(outputs, inputs, value=0.0):
    return np.full((outputs, inputs + 1), value).tolist()


DAMAGED = {
    "no judges": [],
    "nothing": None,
    "a word": "gate",
    "a mapping": {},
    "weights of a regression": layer(1, gate.FEATURES)[0],
    "layers of one judge": [layer(4, gate.FEATURES), layer(1, 4)],
    "no layers": [[]],
    "too few inputs": [[layer(1, gate.FEATURES - 1)]],
    "two outputs": [[layer(2, gate.FEATURES)]],
    "no outputs": [[layer(3, gate.FEATURES), []]],
    "layers that do not fit": [[layer(4, gate.FEATURES), layer(1, 3)]],
    "not a number": [[layer(4, gate.FEATURES), layer(1, 4, np.nan)]],
    "ragged": [[layer(4, gate.FEATURES), [[1], [2, 3]]]],
    "text": [[layer(4, gate.FEATURES), [["1", "2", "3", "4", "x"]]]],
    "one good, one bad": [[layer(1, gate.FEATURES)], [layer(1, 3)]],
}


@pytest.mark.parametrize("judges", DAMAGED.values(), ids=DAMAGED)
def test_damaged_gates_are_refused(judges, tmp_path):
    with pytest.raises(ValueError, match="gate"):
        gate.Gate(judges)
    save_student(tmp_path / "s.pth", Student(), {"gate": judges})
    with pytest.raises(CheckpointError, match="holds a damaged gate"):
        RealTimeSharpener(tmp_path / "s.pth", device="cpu")


def test_good_pictures_stay_and_soft_ones_are_sharpened(sharpener, ungated, photo):
    harmed = psnr(ungated.sharpen_planes(*photo, full_range=True)[0], photo[0])
    assert psnr(sharpener.sharpen_planes(*photo, full_range=True)[0], photo[0]) > max(55, harmed + 3)
    barely = dataset.each_plane(photo, dataset.jpeg, 92)
    assert psnr(sharpener.sharpen_planes(*barely, full_range=True)[0], photo[0]) > psnr(barely[0], photo[0]) - 0.05
    soft = soften(photo, 2)
    gated, whole = (s.sharpen_planes(*soft, full_range=True)[0] for s in (sharpener, ungated))
    before, after = ssim(soft[0], photo[0]), ssim(gated, photo[0])
    assert after - before > 0.8 * (ssim(whole, photo[0]) - before) > 0.005


def test_pictures_planes_and_depths_agree(sharpener, photo):
    frame = planes_to_bgr(*soften(photo, 3, 40))
    pixels = sharpener.sharpen(frame).astype(int)
    deep = sharpener.sharpen(frame.astype(np.uint16) * 257) / 257
    tensor = sharpener.sharpen(torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1) / 255)
    tensor = 255 * tensor.permute(1, 2, 0).numpy()[..., ::-1]
    changed = np.abs(pixels - frame).mean()
    assert changed > 0.3
    assert np.abs(deep - pixels).mean() < 0.5 and np.abs(tensor - deep).max() < 1
    y, _ = sharpener.sharpen_planes(*bgr_to_planes(frame), full_range=True)
    assert np.abs(y.astype(int) - bgr_to_planes(pixels.astype(np.uint8))[0]).mean() < 0.5


def test_strength_scales_what_the_gate_leaves(sharpener, photo):
    soft = soften(photo, 3, 40)
    changes = {
        strength: np.abs(sharpener.sharpen_planes(*soft, True, strength)[0].astype(float) - soft[0]).mean()
        for strength in (0, 0.5, 1, 2)
    }
    assert changes[0] == 0
    assert changes[0.5] / changes[1] == pytest.approx(0.5, abs=0.1) and changes[2] / changes[1] == pytest.approx(
        2, abs=0.2
    )


def test_strength_beyond_1_overrules_the_gate(sharpener, ungated, photo):
    faithful, crisper, crispest = (sharpener.sharpen_planes(*photo, True, strength)[0] for strength in (1, 1.5, 2))
    scale, _ = divide_strength(2)  # a good photo has no need of the mask
    whole = ungated.engine(*photo, True, scale)[0].astype(int)
    assert np.array_equal(faithful, photo[0]) and np.abs(crispest - whole).max() <= 1
    changes = [np.abs(y.astype(int) - photo[0]).mean() for y in (crisper, whole)]
    assert 0.2 * changes[1] < changes[0] < 0.6 * changes[1]
    frame = planes_to_bgr(*photo)
    for pixels, codes in ((frame, 1), (frame.astype(np.uint16) * 257, 257)):
        y, _ = bgr_to_planes((sharpener.sharpen(pixels, strength=2) / codes).round().astype(np.uint8))
        strong = np.abs(whole - photo[0]) > 4
        off, change = (np.abs(other - whole)[strong].mean() for other in (y, photo[0]))
        assert strong.mean() > 0.001 and off < 0.4 * change
    history = gate.History()
    for _ in range(gate.HISTORY + 1):
        sharpener.sharpen_planes(*photo, True, history=history)
    assert not np.array_equal(sharpener.sharpen_planes(*photo, True, 2, history)[0], photo[0])


def test_the_gain_of_a_video_is_steady(sharpener, photo):
    good, bad = photo, soften(photo, 3, 40)
    frames = [good, bad] * 15

    def gains(history):
        found = []
        for y, uv in frames:
            sharp, _ = sharpener.engine(y, uv, True)
            found.append(sharpener.gate.gain(y, sharp, history, zero=y))
        return np.array(found)

    alone, followed = gains(None), gains(gate.History())
    assert np.abs(np.diff(alone)).min() > 0.5
    assert followed[0] == alone[0] and np.abs(np.diff(followed[10:])).max() < 0.5 * np.abs(np.diff(alone)).max()
    history, shares = gate.History(), np.linspace(0.5, 1, gate.HISTORY)
    gains = [history.follow(np.full(gate.FEATURES, share), lambda found: found[0]) for share in shares]
    np.testing.assert_allclose(gains, [shares[: number + 1].mean() for number in range(gate.HISTORY)])


def test_a_good_video_rests_and_wakes_up(sharpener, photo, monkeypatch):
    looked_at, engine, history = [], sharpener.engine, gate.History()
    monkeypatch.setattr(sharpener, "engine", lambda *planes: looked_at.append(None) or engine(*planes))

    def change(planes):
        y, _ = sharpener.sharpen_planes(*planes, full_range=True, history=history)
        return np.abs(y.astype(int) - planes[0]).max()

    frames = gate.HISTORY + 2 * (gate.RESTS + 1)
    assert max(change(photo) for _ in range(frames)) == 0
    assert len(looked_at) == gate.HISTORY + 2 and history.untouched == 2 * gate.RESTS
    changes = [change(soften(photo, 3, 40)) for _ in range(gate.RESTS + 3)]
    assert max(changes[: gate.RESTS]) == 0 and min(changes[gate.RESTS :]) > 5
    assert len(looked_at) == gate.HISTORY + 5 and history.gain > 0.5


@pytest.mark.parametrize("scale", [1, 3])
def test_files_are_gated(sharpener, photo, tmp_path, scale):
    frames = [photo if scale == 1 else soften(photo, scale, 40)] * 30
    height, width = photo[0].shape
    form = VideoFormat(width, height, Fraction(25), **BT601_LIMITED)
    with VideoWriter(tmp_path / "in.mkv", form, codec="ffv1") as writer:
        for planes in frames:
            writer.write(Frame(*to_limited_range(*planes)))
    stats = sharpener.process_video_stream(tmp_path / "in.mkv", tmp_path / "out.mkv", codec="ffv1")
    with VideoReader(tmp_path / "in.mkv") as before, VideoReader(tmp_path / "out.mkv") as after:
        same = [np.array_equal(a.y, b.y) for a, b in zip(before, after, strict=True)]
    assert sum(same) == (30 if scale == 1 else 0)
    assert stats["untouched"] == (30 - gate.HISTORY - 2 if scale == 1 else 0)


@pytest.mark.parametrize("late", [False, True])
def test_a_fitted_gate_knows_where_a_student_does_harm(rng, late):
    """A student that smooths is of use to noisy pictures alone, and of those not to late ones that are busy."""
    student = smoothing_student()

    def make_pair(noisy, busy, scale):
        truth = texture(rng, busy)
        damaged = dataset.each_plane(truth, dataset.add_noise, 12, rng) if noisy else truth
        truth = damaged if busy else truth  # this noise belongs to the picture
        return dataset.Pair(dataset.pack_planes(*damaged), dataset.pack_planes(*truth), None, {"scale": scale})

    pairs = [make_pair(number % 2, False, 1) for number in range(240)]
    late_pairs = [make_pair(True, True, 2) for _ in range(60)] + [make_pair(True, False, 1)] if late else []
    engine = train.TorchEngine(student, "cpu")
    judges = train.fit_gate(engine, pairs, late_pairs, steps=1000)
    assert judges == train.fit_gate(engine, pairs, late_pairs, steps=1000)  # the same again
    assert len(judges) == 1 + late
    fitted, engine = gate.Gate(judges), train.TorchEngine(student, "cpu", torch.float32)
    gains = []
    for _ in range(2):
        for noisy, busy in ((False, False), (True, False), (True, True)):
            planes = [np.ascontiguousarray(p) for p in dataset.unpack_planes(make_pair(noisy, busy, 2).input)]
            gains.append(fitted.gain(planes[0], engine(*planes, True)[0], zero=planes[0]))
    assert max(gains[::3]) < 0.1
    assert max(gains[2::3]) < 0.1 if late else min(gains[1::3]) > 0.5 and min(gains[2::3]) > 0.5


def texture(rng, busy=False):
    """Planes of 128x128 with strokes, many of them where it is `busy`, clean."""
    y = np.full((128, 128), 90, np.uint8)
    for x0, y0, x1, y1, shade in rng.integers(0, 128, (300 if busy else 30, 5)).tolist():
        cv2.line(y, (x0, y0), (x1, y1), 60 + shade, 1)
    return y, np.full((2, 64, 64), 128, np.uint8)


def smoothing_student():
    """A student without blocks that takes two thirds of each pixel's distance from the local mean away."""
    student = Student(channels=48, blocks=0)
    with torch.no_grad():
        for layer in (student.head, student.tail):
            layer.weight.zero_()
            layer.bias.zero_()
        for channel in range(24):
            for half, sign in ((0, 1), (24, -1)):
                student.head.weight[half + channel, channel, 1, 1] = sign
                student.tail.weight[channel, half + channel, 1, 1] = -sign * 2 / 3
    return student


@pytest.mark.parametrize("hidden", [0, 1, 2])
def test_a_gate_answers_as_pytorch_does(rng, hidden):
    sizes = [gate.FEATURES, *[7, 5][:hidden], 1]
    network = torch.nn.Sequential()
    for inputs, outputs in itertools.pairwise(sizes):
        network.extend([torch.nn.Linear(inputs, outputs, dtype=torch.float64), torch.nn.ReLU()])
    network[-1] = torch.nn.Sigmoid()
    linear = [module for module in network if isinstance(module, torch.nn.Linear)]
    layers = [torch.cat([m.weight, m.bias[:, None]], dim=1).tolist() for m in linear]
    answers = gate.Gate([[layer(1, gate.FEATURES)], layers])  # the first says a half to everything
    luma, change = (rng.integers(0, 256, (90, 120), dtype=np.uint8) for _ in range(2))
    found = torch.from_numpy(gate.features(luma, change, zero=128)).double()
    assert answers.gain(luma, change, zero=128) == pytest.approx(min(network(found).item(), 0.5), rel=1e-9)
    assert gate.Gate([layers]).gain(luma, change, zero=128) == pytest.approx(network(found).item(), rel=1e-9)


@pytest.mark.parametrize("path", [RELEASED_STUDENT, LIGHT_STUDENT])
def test_the_released_students_have_gates(path):
    judges = gate.Gate(load_student(path)[1]["gate"]).judges
    shapes = [[weights.shape for weights in layers] for layers in judges]
    assert shapes == [[(1, gate.FEATURES + 1)], [(64, gate.FEATURES + 1), (1, 65)]]
