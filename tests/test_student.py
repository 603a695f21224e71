import itertools

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from degradation import codec_roundtrip, resample_planes, resize
from inference import RealTimeSharpener
from models import (
    HALO_SHARE,
    CheckpointError,
    Student,
    add_branches,
    collapse,
    gaussian_blur,
    limit_halo,
    load_student,
    save_student,
    steepen,
)
from runtime import scale_gain
from utils import bgr_to_planes


def planes(height, width, batch=1):
    generator = torch.Generator().manual_seed(height * 1000 + width)
    y = torch.rand(batch, 1, height, width, generator=generator)
    return y, torch.rand(batch, 2, (height + 1) // 2, (width + 1) // 2, generator=generator)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(16, 70), width=st.integers(16, 70))
def test_an_untrained_student_is_the_identity(height, width):
    y, uv = planes(height, width)
    sharp_y, sharp_uv = Student()(y, uv)
    assert torch.equal(sharp_y, y) and torch.equal(sharp_uv, uv)


def test_strength_scales_residual_and_gain(student):
    y, uv = planes(24, 40, batch=2)
    dy, duv, gain = student.predict(y, uv)
    assert all(change.abs().max() > 1e-3 for change in (dy, duv, gain))
    for strength in (0.0, 0.5, 2.0):
        sharp_y, sharp_uv = student(y, uv, strength)
        torch.testing.assert_close(sharp_y, limit_halo(steepen(y + strength * dy, scale_gain(gain, strength)), y))
        torch.testing.assert_close(sharp_uv, uv + strength * duv)


@pytest.mark.parametrize("of", [np.array, torch.tensor])
@pytest.mark.parametrize(
    ("strength", "expected"),
    [(0, [0, 0, 0]), (0.25, [-0.375, 0, 0.5]), (0.5, [-0.75, 0, 1]), (1, [-0.75, 0, 2]), (2, [-1.5, 0, 4])],
)
def test_a_negative_gain_is_whole_from_half_the_strength_on(of, strength, expected):
    assert scale_gain(of([-0.75, 0.0, 2.0]), strength).tolist() == expected


def test_an_untrained_student_can_learn_a_gain():
    student = Student(8, 1)
    y, uv = planes(24, 40)
    limit_halo(student(y, uv)[0], y).square().mean().backward()
    assert student.tail.bias.grad[24:].abs().min() > 0 and student.tail.weight.grad[24:].abs().max() > 0


def test_a_gain_makes_edges_steeper_and_the_limit_keeps_them_from_getting_higher():
    """And a negative one calms what is flat."""
    y = torch.full((1, 1, 16, 24), 0.2)
    y[..., 12:] = 0.8
    soft = gaussian_blur(torch.nn.functional.pad(y, [3] * 4, mode="replicate"), 1.2, 3)
    steep, same, calm = (steepen(soft, torch.full((1, 1, 8, 12), gain)) for gain in (2.0, 0.0, -1.0))
    slopes = [plane.diff(dim=3).abs().amax() for plane in (steep, soft, calm)]
    assert slopes[0] > 1.2 * slopes[1] > 1.2 * slopes[2] and torch.equal(same, soft)
    limited, before = limit_halo(steep, soft), soft.amax()
    assert before < limited.amax() <= before + 1.01 * HALO_SHARE * (steep.amax() - before)
    for beyond, limit in ((9.0, 5.0), (-9.0, -1.0)):
        assert torch.equal(*(steepen(soft, torch.full((1, 1, 8, 12), gain)) for gain in (beyond, limit)))


def test_little_halo_beyond_the_range_of_the_neighbours_stays():
    y = torch.full((1, 1, 32, 32), 0.4)
    y[..., 16:] = 0.6
    sharp = y.clone()
    sharp[..., 14], sharp[..., 18] = 0.3, 0.8  # halos
    limited = limit_halo(sharp, y)[0, 0, 5]
    torch.testing.assert_close(limited[[14, 18]], torch.tensor([0.4 - HALO_SHARE * 0.1, 0.6 + HALO_SHARE * 0.2]))
    inside = y.clone()
    inside[..., 15] = 0.55  # steeper, but within
    torch.testing.assert_close(limit_halo(inside, y), inside)
    dot = torch.zeros(1, 1, 32, 32)
    dot[..., 10, 12] = 1
    reached = (limit_halo(torch.ones_like(dot), dot) == 1)[0, 0].nonzero()
    assert reached.amin(dim=0).tolist() == [7, 9] and reached.amax(dim=0).tolist() == [13, 15] and len(reached) == 49


def test_a_gain_of_2x2_pixels_changes_what_is_near_them():
    y, _ = planes(17, 21)
    gain = torch.zeros(1, 1, 9, 11)
    gain[..., 4, 5] = 3
    changed = (steepen(y, gain) != y)[0, 0].nonzero()
    assert len(changed) > 4 and changed.amin(dim=0).tolist() == [7, 9] and changed.amax(dim=0).tolist() == [10, 12]


@pytest.mark.parametrize(("height", "width"), [(17, 16), (35, 45), (38, 42)])
def test_padding_shows_only_near_the_edge(student, height, width):
    """An odd frame is treated like the same frame with its last rows and columns repeated up to a multiple of 8."""
    y, uv = planes(height, width)
    bottom, right = -height % 8, -width % 8
    big_y = torch.nn.functional.pad(y, (0, right, 0, bottom), mode="replicate")
    half = (big_y.shape[2] // 2 - uv.shape[2], big_y.shape[3] // 2 - uv.shape[3])
    big_uv = torch.nn.functional.pad(uv, (0, half[1], 0, half[0]), mode="replicate")
    dy, duv, gain = student.predict(y, uv)
    big_dy, big_duv, big_gain = student.predict(big_y, big_uv)
    assert dy.shape == y.shape and duv.shape == uv.shape and gain.shape == uv[:, :1].shape
    torch.testing.assert_close(dy, big_dy[..., :height, :width])
    for half, big_half in ((duv, big_duv), (gain, big_gain)):
        torch.testing.assert_close(half, big_half[..., : uv.shape[2], : uv.shape[3]])


def test_folding_puts_every_pixel_back_where_it_was():
    """With convolutions that copy their input, the residual is the positive part of each plane less its local mean."""
    student = Student(channels=24, blocks=0)
    with torch.no_grad():
        for conv in (student.head, student.tail):
            conv.weight.zero_()
            conv.bias.zero_()
            middle = conv.kernel_size[0] // 2
            conv.weight[range(24), range(24), middle, middle] = 1
    y, uv = planes(24, 32)
    dy, duv, _ = student.predict(y, uv)
    for plane, residual, side in ((y, dy, 4), (uv[:, :1], duv[:, :1], 2), (uv[:, 1:], duv[:, 1:], 2)):
        cell = plane[0, 0, 2 * side : 3 * side, 3 * side : 4 * side]
        mean = plane[0, 0, side : 4 * side, 2 * side : 5 * side].mean()
        torch.testing.assert_close(
            residual[0, 0, 2 * side : 3 * side, 3 * side : 4 * side], (cell - mean).relu(), rtol=1e-4, atol=1e-6
        )


def test_brightness_does_not_matter(student):
    y, uv = planes(32, 40)
    for ours, theirs in zip(student.predict(y, uv), student.predict(y + 0.3, uv - 0.2), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_checkpoint_round_trip(student, tmp_path):
    path = tmp_path / "student.pth"
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*train one"):
        load_student(path)
    save_student(path, student, {"teacher": "bsrgan", "pairs": 3})
    loaded, meta = load_student(path)
    assert meta == {"teacher": "bsrgan", "pairs": 3} and not loaded.training
    student.args["channels"] = 0
    save_student(tmp_path / "empty.pth", student, {})
    with pytest.raises(CheckpointError, match="`channels` must be 1 to 256"):
        load_student(tmp_path / "empty.pth")
    y, uv = planes(20, 20)
    for ours, theirs in zip(student(y, uv), loaded(y, uv), strict=True):
        assert torch.equal(ours, theirs)


def test_branches_start_at_nothing_and_sum_up_to_the_same_network():
    torch.manual_seed(0)
    y, uv = planes(40, 56)
    student = Student()
    before = student.head(torch.ones(1, 24, 8, 8))
    add_branches(student, 16)
    torch.testing.assert_close(student.head(torch.ones(1, 24, 8, 8)), before)
    with torch.no_grad():
        for weights in student.parameters():
            weights.add_(0.03 * torch.randn_like(weights))
    plain = collapse(student)
    assert plain.state_dict().keys() == Student().state_dict().keys()
    for collapsed, wide in zip(plain.predict(y, uv), student.predict(y, uv), strict=True):
        assert wide.abs().max() > 1e-3
        torch.testing.assert_close(collapsed, wide)
    size, wide_size = (sum(weights.numel() for weights in network.parameters()) for network in (plain, student))
    assert wide_size > size == 70_652  # the original keeps its branches


def test_the_folding_grid_does_not_show():
    """The released student's error is the same at each of the 16 pixels of a cell, measured on 16 shifted crops."""
    photo = resize(skimage.data.astronaut()[..., ::-1].copy(), (256, 256), "area")
    y, uv = bgr_to_planes(photo)
    small = resample_planes(y, uv, (128, 128), "bicubic")
    ((y_in, uv_in),) = codec_roundtrip([small], "x264", qp=27)
    y_in, uv_in = resample_planes(y_in, uv_in, (256, 256))
    sharpener, error = RealTimeSharpener(device="cpu"), np.zeros((4, 4))
    for down, right in itertools.product(range(4), repeat=2):
        part = (slice(down, down + 248), slice(right, right + 248))
        chroma = uv_in[:, down // 2 : down // 2 + 124, right // 2 : right // 2 + 124]
        sharp, _ = sharpener.sharpen_planes(y_in[part].copy(), chroma.copy(), True)
        squares = np.square(sharp.astype(float) - y[part])[16:-16, 16:-16]
        error += squares.reshape(54, 4, 54, 4).mean(axis=(0, 2))
    assert np.ptp(error) < 0.15 * error.mean()
