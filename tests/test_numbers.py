"""Numerical accuracy of the engines: extreme pictures, every precision, every size, repeated calls."""

import cv2
import numpy as np
import pytest
import torch
from skimage.data import chelsea
from skimage.metrics import peak_signal_noise_ratio as psnr

from models import RELEASED_STUDENT, load_student
from runtime import OpenVINOEngine
from torch_engine import TorchEngine
from utils import bgr_to_planes

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENGINES = [*PRECISIONS, "int8"]
FLATS = [(0, 128, 128), (255, 128, 128), (16, 128, 128), (235, 128, 128)]  # Y, U, V: blacks and whites of both ranges
FLATS += [(82, 90, 240), (145, 54, 34), (41, 240, 110), (128, 0, 0), (128, 255, 255), (128, 0, 255), (128, 255, 0)]


@pytest.fixture(scope="module", params=["released", "random"])
def engines(request):
    """Engines of a student by precision, and int8. The random student changes noise by some 20 levels, up to 200."""
    path = RELEASED_STUDENT if request.param == "released" else request.getfixturevalue("exported")
    student, _ = load_student(path)
    engines = {name: TorchEngine(student, "cpu", dtype) for name, dtype in PRECISIONS.items()}
    return engines | {"int8": OpenVINOEngine(path)}


def extreme_pictures(height=64, width=96):
    """Planes of flat colours, noise, chequers, lines and gradients, by name."""
    chroma = (2, (height + 1) // 2, (width + 1) // 2)
    rng = np.random.default_rng(0)

    def chequer(shape, side):
        rows, columns = np.indices(shape[-2:]) // side
        return np.broadcast_to(np.uint8(255) * ((rows + columns) % 2).astype(np.uint8), shape)

    flats = [np.array(colour, np.uint8) for colour in FLATS]
    pictures = {
        f"flat {'-'.join(map(str, flat))}": (
            np.full((height, width), flat[0]),
            np.broadcast_to(flat[1:, None, None], chroma),
        )
        for flat in flats
    }
    pictures["noise"] = rng.integers(0, 256, (height, width), np.uint8), rng.integers(0, 256, chroma, np.uint8)
    for side in (1, 2, 8):
        pictures[f"chequer {side}"] = chequer((height, width), side), chequer(chroma, side)
    neutral = np.full(chroma, 128, np.uint8)
    for paper in (0, 255):
        lines = np.full((height, width), paper, np.uint8)
        lines[height // 3], lines[:, width // 3] = 255 - paper, 255 - paper
        pictures[f"lines on {paper}"] = lines, neutral
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    pictures["gradient"] = (
        np.tile(ramp, (height, 1)),
        np.stack([np.tile(row, (chroma[1], 1)) for row in (ramp[::2], ramp[::-2])]),
    )
    return pictures


def natural_picture(height, width):
    """Planes of a photo, halved, compressed and enlarged as in a call."""
    decoded = cv2.imdecode(cv2.imencode(".jpg", chelsea()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 1)
    large = cv2.resize(decoded, None, fx=2, fy=2, interpolation=cv2.INTER_LANCZOS4)
    return bgr_to_planes(np.ascontiguousarray(large[:height, :width]))


def errors(found, expected):
    """Absolute differences of two pairs of planes, in codes, all in one row."""
    return np.concatenate([np.abs(one.astype(int) - other).ravel() for one, other in zip(found, expected, strict=True)])


@pytest.mark.parametrize("full_range", [True, False])
@pytest.mark.parametrize("name", ENGINES)
def test_strength_scales_the_change_and_nothing_wraps(engines, name, full_range):
    """What wraps around, or is cut off before the strength is applied, is off by far more than the roundings."""
    for picture, planes in extreme_pictures().items():
        for plane in engines[name].difference(*(np.float32(plane / 255) for plane in planes)):
            assert plane.dtype == np.float32 and np.isfinite(plane).all(), picture
        once = engines[name](*planes, full_range, strength=1)
        for strength in (2, 10):
            found = engines[name](*planes, full_range, strength)
            for plane, sharp, got in zip(planes, once, found, strict=True):
                if plane.ndim == 3:
                    change = np.clip(strength * (sharp.astype(int) - plane), -127, 127)  # more than any picture needs
                    error = np.abs(got - np.clip(plane + change, 0, 255))
                    assert error[np.abs(change) < 120].max() <= strength / 2 + 1, (picture, strength)
                    assert ((got.astype(int) - plane) * change >= 0).all(), (picture, strength)
                elif name != "int8":  # whose errors the gain multiplies by detail, which is extreme here
                    expected, _ = engines["float32"](*planes, full_range, strength)
                    assert np.abs(got.astype(int) - expected).mean() < 1 + 0.3 * strength, (picture, strength)


@pytest.mark.parametrize(("dtype", "codes", "gain"), [(torch.float16, 0.2, 0.015), (torch.bfloat16, 2.5, 0.15)])
def test_reduced_precision_predicts_as_float32_on_extreme_pictures(dtype, codes, gain):
    """Within so many codes of residual, and so much gain; in proportion more where what is predicted is extreme."""
    student, _ = load_student()
    for picture, planes in extreme_pictures().items():
        planes = [torch.from_numpy(np.float32(plane / 255))[None] for plane in (planes[0][None], planes[1])]
        with torch.inference_mode():
            expected = student.predict(*planes)
            with torch.autocast("cpu", dtype):
                found = student.predict(*planes)
        for one, other, limit, extreme in zip(
            found, expected, (codes / 255, codes / 255, gain), (20 / 255, 20 / 255, 5), strict=True
        ):
            assert (one.float() - other).abs().max() <= limit * max(1, other.abs().max() / extreme), picture


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (7, 3), (1, 93), (61, 1), (61, 93), (241, 319)])
def test_precisions_agree_on_photos_of_every_size(engines, height, width):
    """On photos float16 and bfloat16 are within 0.05 codes of float32 on average, int8 within one.

    The gain multiplies what is rounded: where detail is strong, single pixels differ by a few codes.
    """
    planes = natural_picture(height, width)
    expected = engines["float32"](*planes)
    assert [plane.shape for plane in expected] == [plane.shape for plane in planes]
    for name in ("float16", "bfloat16"):
        error = errors(engines[name](*planes), expected)
        assert error.max() <= 6 and error.mean() <= 0.05, name
    int8 = engines["int8"](*planes)
    error = errors(int8, expected)
    quality = [psnr(found, plane) for found, plane in zip(int8, expected, strict=True)]
    assert error.mean() <= 1 and min(quality) >= 40


@pytest.mark.parametrize("stripe", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["chequer", "rows", "columns"])
def test_the_released_student_leaves_fine_patterns_alone(stripe, kind):
    """To a folded network their period can look like damage, and int8 can clip what they make its layers say."""
    rows, columns = np.mgrid[:96, :96] // stripe
    pattern = {"chequer": rows + columns, "rows": rows, "columns": columns}[kind] % 2
    student, _ = load_student()
    chroma = np.full((2, 48, 48), 128, np.uint8)
    for engine, limits in (
        (TorchEngine(student, "cpu", torch.float32), (6, 6, 6)),
        (OpenVINOEngine(RELEASED_STUDENT), (6, 6, 12)),
    ):
        for contrast, limit in zip((150, 200, 255), limits, strict=True):
            y = np.rint(127.5 + contrast * (pattern - 0.5)).astype(np.uint8)
            change = engine(y, chroma, full_range=True)[0].astype(float) - y
            assert np.sqrt(np.square(change[16:-16, 16:-16]).mean()) < limit, (engine.description, contrast)
