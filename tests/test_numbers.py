"""Numerical accuracy of the engines: extreme pictures, every precision, every size, repeated calls."""

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut, chelsea

from benchmark.metrics import psnr, visible_change
from degradation import Camera, animate, codec_roundtrip
from models import RELEASED_STUDENT, load_student
from runtime import OpenVINOEngine
from torch_engine import TorchEngine
from utils import bgr_to_planes

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENGINES = [*PRECISIONS, "int8"]
FLATS = [(0, 128, 128), (255, 128, 128), (16, 128, 128), (235, 128, 128)]  # Y, U, V: blacks and whites of both ranges
FLATS += [(82, 90, 240), (145, 54, 34), (41, 240, 110), (128, 0, 0), (128, 255, 255), (128, 0, 255), (128, 255, 0)]
REACH = 48  # luma pixels: a student of 4 blocks has 10 convolutions and a mean of 3x3 cells of 4x4 pixels


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
    """Planes of photos side by side, halved, compressed and enlarged as in a call."""
    photos = np.hstack([chelsea()[:300, :448], astronaut()[:300, :448]])[..., ::-1]
    decoded = cv2.imdecode(cv2.imencode(".jpg", photos, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    large = cv2.resize(decoded, None, fx=2, fy=2, interpolation=cv2.INTER_LANCZOS4)
    repeats = -(-height // large.shape[0]), -(-width // large.shape[1]), 1
    return bgr_to_planes(np.tile(large, repeats)[:height, :width])


def errors(found, expected):
    """Absolute differences of two pairs of planes, in codes, all in one row."""
    return np.concatenate([np.abs(one.astype(int) - other).ravel() for one, other in zip(found, expected, strict=True)])


def same(found, expected):
    return not errors(found, expected).any()


@pytest.mark.parametrize("full_range", [True, False])
@pytest.mark.parametrize("name", ENGINES)
def test_strength_scales_the_change_and_nothing_wraps(engines, name, full_range):
    """What wraps around, or is cut off before the strength is applied, is off by far more than the roundings."""
    for picture, planes in extreme_pictures().items():
        for plane in engines[name].difference(*(np.float32(plane / 255) for plane in planes)):
            assert plane.dtype == np.float32 and np.isfinite(plane).all(), picture
        assert same(engines[name](*planes, full_range, strength=0), planes)
        once = engines[name](*planes, full_range, strength=1)
        for strength in (2, 10):
            found = engines[name](*planes, full_range, strength)
            for plane, sharp, got in zip(planes, once, found, strict=True):
                if plane.ndim == 3:
                    expected = np.clip(plane + strength * (sharp.astype(int) - plane), 0, 255)
                    assert np.abs(got - expected).max() <= strength / 2 + 1, (picture, strength)
                elif name != "int8":  # whose errors the gain multiplies by detail, which is extreme here
                    expected, _ = engines["float32"](*planes, full_range, strength)
                    assert np.abs(got.astype(int) - expected).mean() < 3, (picture, strength)


@pytest.mark.parametrize("full_range", [True, False])
@pytest.mark.parametrize(("name", "limit"), [("float16", 6), ("bfloat16", 20)])
def test_reduced_precision_agrees_with_float32_on_extreme_pictures(engines, name, limit, full_range):
    """The gain multiplies differences in rounding by the detail, which is extreme here."""
    for picture, planes in extreme_pictures().items():
        error = errors(engines[name](*planes, full_range), engines["float32"](*planes, full_range))
        assert error.max() <= limit, picture


SMALL = [(1, 1), (2, 2), (7, 3), (1, 93), (61, 1), (61, 93)]
LARGE = [(16, 16), (17, 31), (15, 4096), (4096, 15), (144, 176), (241, 319), (481, 853), (1079, 1919), (2304, 4096)]


@pytest.mark.parametrize(
    ("height", "width"), [*SMALL, *(pytest.param(*size, marks=pytest.mark.slow) for size in LARGE)], ids=str
)
def test_precisions_agree_on_photos_of_every_size(engines, height, width):
    """On photos float16 and bfloat16 are within 0.05 codes of float32 on average, int8 within one.

    The gain multiplies what is rounded: where detail is strong, single pixels differ by a few codes.
    """
    planes = natural_picture(height, width)
    expected = engines["float32"](*planes)
    assert [plane.shape for plane in expected] == [plane.shape for plane in planes]
    for name in ("float16", "bfloat16"):
        error = errors(engines[name](*planes), expected)
        print(f"{width}x{height} {name}: max {error.max()}, mean {error.mean():.4f}")
        assert error.max() <= 6 and error.mean() <= 0.05, name
    int8 = engines["int8"](*planes)
    error = errors(int8, expected)
    quality = [psnr(found, plane) for found, plane in zip(int8, expected, strict=True)]
    print(f"{width}x{height} int8: max {error.max()}, mean {error.mean():.4f}, PSNR {min(quality):.1f}")
    assert error.mean() <= 1 and min(quality) >= 40


def test_empty_pictures_are_refused_by_name(sharpener):
    with pytest.raises(ValueError, match="expected a frame"):
        sharpener.sharpen(np.zeros((0, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="planes with pixels"):
        sharpener.sharpen_planes(np.zeros((16, 0), np.uint8), np.zeros((2, 8, 0), np.uint8))


@pytest.mark.parametrize("name", ENGINES)
def test_results_do_not_depend_on_what_came_before(engines, name):
    """Neither calls on other pictures nor on other sizes, whose networks are kept or dropped, change a result."""
    planes = natural_picture(61, 93)
    first = engines[name](*planes)
    for size in ((61, 93), (62, 94), (8, 8), (64, 8), (8, 96), (64, 160)):
        engines[name](*extreme_pictures(*size)["noise"], full_range=True, strength=10)
        engines[name].difference(*natural_picture(*size))
    assert same(engines[name](*planes), first)


def columns(planes, start=0, stop=None):
    """The columns of luma from `start` to `stop`, both even, and those of chroma beside them."""
    return [plane[..., start // fold : stop and stop // fold] for plane, fold in zip(planes, (1, 2), strict=True)]


@pytest.mark.parametrize("name", ENGINES)
def test_only_what_is_near_has_influence(engines, name):
    """Tiles rely on it: pixels beyond the receptive field do not change a bit."""
    planes, elsewhere = natural_picture(64, 160), extreme_pictures(64, 160)["noise"]
    parts = zip(columns(planes, 0, 120), columns(elsewhere, 120), strict=True)
    mixed = [np.concatenate(pair, axis=-1) for pair in parts]
    found, expected = engines[name](*mixed), engines[name](*planes)
    assert same(columns(found, 0, 120 - REACH), columns(expected, 0, 120 - REACH))
    assert not same(columns(found, 112, 120), columns(expected, 112, 120)), "what is near has to have some"


@pytest.mark.parametrize("name", ENGINES)
def test_a_tile_with_its_margin_is_the_whole(engines, name):
    """In float, another size may sum in another order, so a value may round the other way."""
    planes = natural_picture(64, 160)
    tile, whole = engines[name](*columns(planes, 64)), engines[name](*planes)
    error = errors(columns(tile, REACH), columns(whole, 64 + REACH))
    assert error.max() <= (name != "int8") and error.mean() < 0.001


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_the_released_student_sharpens_soft_video_visibly(name):
    """A photo behind a soft lens and a call's codec, at its own size."""
    photo, rng = np.ascontiguousarray(astronaut()[:256, 100:420, ::-1]), np.random.default_rng(0)
    clip = [bgr_to_planes(frame) for frame in animate(photo, 6, (240, 304), (0.5, 0.3), rng)]
    soft = codec_roundtrip(Camera(blur=0.9)(clip, rng), "x264", 27)[-3:]
    student, _ = load_student()
    engine = OpenVINOEngine(RELEASED_STUDENT) if name == "int8" else TorchEngine(student, "cpu", torch.float32)
    sharp = [engine(*planes, full_range=True) for planes in soft]
    found = visible_change(sharp, soft)
    print({metric: f"{np.mean(values):.3f}" for metric, values in found.items()})
    assert min(found["edges"]) > 1.02


@pytest.mark.parametrize("stripe", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["chequer", "rows", "columns"])
def test_the_released_student_leaves_fine_patterns_alone(stripe, kind):
    """To a folded network their period can look like damage; int8 clips the greatest contrasts."""
    rows, columns = np.mgrid[:96, :96] // stripe
    pattern = {"chequer": rows + columns, "rows": rows, "columns": columns}[kind] % 2
    student, _ = load_student()
    chroma, hard = np.full((2, 48, 48), 128, np.uint8), (kind, stripe) == ("chequer", 2)  # half a cell
    for engine, contrast, limit in (
        (TorchEngine(student, "cpu", torch.float32), 255, 6),
        (OpenVINOEngine(RELEASED_STUDENT), 150, 11 if hard else 8),
    ):
        y = np.rint(127.5 + contrast * (pattern - 0.5)).astype(np.uint8)
        change = engine(y, chroma, full_range=True)[0].astype(float) - y
        assert np.sqrt(np.square(change[16:-16, 16:-16]).mean()) < limit, engine.description
