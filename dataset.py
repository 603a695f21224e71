"""Training pairs: crisp pictures degraded by degradation.py, and crops of real video, whose ground truth is unknown.

Pairs are prepared once, in parallel, into a cache of memory-mapped files (`prepare_pairs`). Training draws random crops
from them (`PairDataset`). A generator seeded with (seed, index) decides each pair, however many threads there are.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2  # before av: see video.py

# isort: split
import av
import matplotlib
import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import Dataset
from tqdm import tqdm

import degradation
from degradation import DataError, crop_planes, pack_planes, resample_planes, resize, unpack_planes
from images import VideoError, open_image
from runtime import limit_halo
from utils import IMAGE_SUFFIXES, VIDEO_SUFFIXES, bgr_to_planes, to_full_range, usable_cores, write_bytes, write_text
from video import open_video, plane_pixels

# scikit-image's photos. The benchmark uses none that training or validation use.
SKIMAGE_TRAINING = ("brick", "grass", "gravel", "moon", "hubble_deep_field", "retina", "immunohistochemistry")
SKIMAGE_TRAINING += ("stereo_motorcycle", "cell", "colorwheel")
SKIMAGE_VALIDATION = ("camera", "coins")
SKIMAGE_BENCHMARK = {
    "people": ("astronaut",),
    "nature": ("chelsea",),
    "objects": ("coffee", "rocket"),
    "text": ("page", "text"),
}
SKLEARN_BENCHMARK = {"city": ("china",), "nature": ("flower",)}  # scikit-learn's two photos, 640x427

# Fonts that Matplotlib brings.
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold")
FONTS += ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmss10")

CACHE_VERSION = 6  # raise if the same configuration would give other pairs
PURPOSES = {  # of pairs: the key of `Config` with their number, and an offset to `data_seed`
    "training": ("pairs", 0),
    "validation": ("validation_pairs", 1_000_003),
    "real": ("real_pairs", 2_000_003),
}
PART_SIZE = 32  # pairs in one file of the cache
LEAST_FRAMES = 12  # of a video to learn from
LATE_FRAMES = 30  # of a clip whose last one stands for a call that has gone on for a while
MOST_TRIES = 100  # to find a picture that is large enough
FAINT_DETAIL = 4  # codes of detail that `crisp` does not sharpen
GOAL_HALO = 0.5  # share of the halo that `crisp` keeps
GRAIN, CORING = 1.2, 0.8  # codes of the faintest grain, and the share of it that `crisp` removes
TEACHER_WEIGHT = 0.5  # in the goal of a real pair; the rest is the input, which has the subject's own texture

# How `train.answers` turns a larger student's output into a target, by kind of crop: factors of residual and gain, gain
# added to texture, share of the changes that make a picture look natural, share of the known truth.
ANSWERS = {
    "real": (1.1, 1.5, 0.9, 1.0, 0.0),
    "soft": (1.0, 1.0, 0.5, 1.0, 0.3),
    "crisp": (0.7, 0.6, 0.1, 1.0, 0.4),
    "image": (1.0, 1.0, 0.0, 0.0, 0.3),
    "text": (1.0, 1.0, 0.0, 0.0, 0.5),
    "undamaged": (0.0, 0.0, 0.0, 0.0, 1.0),
}
CLEAN_TEXT_SHARE = 0.25  # of otherwise unchanged crops of text: shown undamaged, like a shared screen
CRISP_PHOTO, CRISP_VIDEO = 1.3, 1.6  # least factors by which photos and videos are shrunk to be crisp
REAL_REGION = 160  # pixels a side of a crop of real video: the teacher takes a second for each
MIN_REGION = 256  # a quarter of it is 64 pixels, the least that SVT-AV1 encodes without damage


# ----------------------------------------------------------------------------------------------------------------------
# Clean pictures


def render_text(rng, size, font_sizes=(10, 11, 12, 13, 14, 16, 18, 22, 28, 40)):
    """Draw a page of words, lines and boxes in random fonts and colours, `(height, width, 3)` uint8 BGR.

    Args:
        size: (width, height) in pixels.
        font_sizes: in pixels; each line gets a random one.
    """
    width, height = size
    paper, ink = rng.integers(190, 256, 3), rng.integers(0, 80, 3)
    if rng.random() < 0.3:
        paper, ink = ink, paper
    page = Image.new("RGB", size, tuple(int(v) for v in paper))
    draw = ImageDraw.Draw(page)
    alphabet = np.array(list("abcdefghijklmnopqrstuvwxyzaeiouABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-()@%"))
    fonts = [Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf") for name in FONTS]
    font_path = fonts[rng.integers(len(fonts))]

    y = int(rng.integers(4, 20))
    while y < height:
        font_size = int(rng.choice(font_sizes))
        colour = tuple(int(v) for v in (ink if rng.random() < 0.8 else rng.integers(0, 256, 3)))
        if rng.random() < 0.8:
            if rng.random() < 0.2:
                font_path = fonts[rng.integers(len(fonts))]
            words = ("".join(rng.choice(alphabet, rng.integers(1, 11))) for _ in range(width // 20))
            font = ImageFont.truetype(str(font_path), font_size)
            draw.text((int(rng.integers(0, 40)), y), " ".join(words), fill=colour, font=font)
        else:  # lines, on which ringing and the folding grid show first
            for _ in range(8):
                ends = rng.uniform(0, width, 4)
                ends[1::2] = y + rng.uniform(0, font_size * 4, 2)
                draw.line(tuple(ends), fill=colour, width=int(rng.integers(1, 4)))
            y += font_size * 3
        y += int(font_size * rng.uniform(1.2, 2.0))
    for _ in range(int(rng.integers(0, 4))):
        (x0, x1), (y0, y1) = sorted(rng.integers(0, width, 2)), sorted(rng.integers(0, height, 2))
        draw.rectangle((int(x0), int(y0), int(x1), int(y1)), outline=tuple(int(v) for v in ink))
    for _ in range(int(rng.integers(0, 6))):  # nearly vertical and nearly horizontal lines
        drift = rng.uniform(-12, 12)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        line = (x, 0, x + drift, height) if rng.random() < 0.5 else (0, y, width, y + drift)
        draw.line(line, fill=tuple(int(v) for v in rng.integers(0, 256, 3)), width=int(rng.integers(1, 3)))
    return np.ascontiguousarray(np.asarray(page)[:, :, ::-1])


def load_photo(source):
    """Read an image file, or a package's photo as ``skimage:NAME`` or ``sklearn:NAME``, to a uint8 BGR frame.

    Raises:
        DataError: the file is missing or cannot be decoded.
    """
    if source.startswith("sklearn:"):
        from sklearn.datasets import load_sample_image  # of requirements-dev.txt

        return cv2.cvtColor(load_sample_image(source.removeprefix("sklearn:") + ".jpg"), cv2.COLOR_RGB2BGR)
    if source.startswith("skimage:"):
        image = getattr(skimage.data, source.removeprefix("skimage:"))()
        image = image[0] if isinstance(image, tuple) else image  # stereo_motorcycle: left, right, disparity
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
    try:
        with open_image(source):
            pass
    except VideoError as error:
        raise DataError(f"cannot read the image {source} ({error}): remove it or replace it") from error
    frame = cv2.imread(source, cv2.IMREAD_COLOR)
    if frame is None:
        raise DataError(f"cannot read the image {source}: remove it or replace it")
    return frame


def read_clip(path, count, rng):
    """Decode up to `count` consecutive frames from a random place of a video to full-range planes.

    Raises:
        DataError: the video cannot be decoded, or has fewer frames than both `LEAST_FRAMES` and `count`.
    """
    try:
        with open_video(path) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(f"cannot read the video {path}: remove it or replace it")
            duration = stream.duration or int((container.duration or 0) / av.time_base / stream.time_base)
            container.seek(int(rng.random() * 0.9 * duration), stream=stream)
            clip = _decode_planes(container, count)
            if len(clip) < count:  # too near to the end: take the beginning
                container.seek(0, stream=stream)
                clip = _decode_planes(container, count)
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"cannot read the video {path}: remove it or replace it") from error
    if len(clip) < min(count, LEAST_FRAMES):
        raise DataError(f"the video {path} is shorter than {min(count, LEAST_FRAMES)} frames: remove it")
    return clip


def _decode_planes(container, count):
    clip = []
    for frame in itertools.islice(container.decode(video=0), count):
        full_range = frame.color_range == av.video.reformatter.ColorRange.JPEG
        y, *uv = map(plane_pixels, frame.reformat(format="yuv420p").planes)
        height, width = (side // 2 * 2 for side in y.shape)  # pairs have even sides
        planes = y[:height, :width].copy(), np.stack(uv)[:, : height // 2, : width // 2].copy()
        clip.append(planes if full_range else to_full_range(*planes))
    return clip


# ----------------------------------------------------------------------------------------------------------------------
# Sources


def list_sources(config, validation):
    """List the clean pictures of each source in `config.sources`; every tenth is for validation only.

    A source is ``skimage`` (scikit-image's photos), ``rendered`` (drawn text), or a folder under `config.data_root`.

    Returns:
        List of (weight, [names]); names are for `load_photo` and `read_clip`, or ``rendered``.

    Raises:
        DataError: a folder is missing or holds too little.
    """
    listed = []
    for source, weight in config.sources.items():
        if source == "rendered":
            names = ["rendered"]
        elif source == "skimage":
            names = [f"skimage:{name}" for name in (SKIMAGE_VALIDATION if validation else SKIMAGE_TRAINING)]
        else:
            folder = Path(config.data_root) / source
            if not folder.is_dir():
                raise DataError(f"no folder {folder}: change `data_root`, export's --data, or `sources`")
            files = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES)
            names = [name for i, name in enumerate(files) if (i % 10 == 5) == validation]
            if not names:
                raise DataError(f"{folder} holds {len(files)} images and videos: at least 6 are needed")
        listed.append((weight, names))
    return listed


# ----------------------------------------------------------------------------------------------------------------------
# Pairs


def make_pair(sources, seed, index, region):
    """Make one pair, decided by `seed` and `index` alone.

    Args:
        sources: result of `list_sources`.
        region: side in pixels, a multiple of 8 and at least `MIN_REGION`.

    Returns:
        ``(input, truth, description)``: full-range I420 pictures `(3*region/2, region)` uint8, and a dict with
        ``source``, ``kind``, ``scale``, ``soft`` and more.
    """
    rng = np.random.default_rng((seed, index))
    kind = str(rng.choice(["clean", "image", "call"], p=[0.05, 0.22, 0.73]))
    count = 1
    if kind == "call":
        count = LATE_FRAMES if rng.random() < 0.25 else int(rng.integers(3, LEAST_FRAMES + 1))
    for _ in range(MOST_TRIES):
        name = _draw_name(sources, rng)
        if (clip := _crisp_clip(name, count, region, rng)) is not None:
            break
    else:
        raise DataError(f"{MOST_TRIES} pictures such as {name} are too small for region={region}: replace them")
    damaged, truth, description = clip[-1], clip[-1], {"scale": 1.0, "soft": False}
    if kind == "image":
        damaged, description = degradation.degrade_image(truth, rng)
    elif kind == "call":
        damaged, description = degradation.degrade_call(clip, rng)
    return pack_planes(*damaged), pack_planes(*truth), {"source": name, "kind": kind, **description}


def make_real(sources, seed, index, region):
    """Cut one crop out of a video at its own size, soft and compressed as it is: the one of two with more detail.

    The frame lies some way after a key frame, as most do.

    Returns:
        ``(input, None, description)``, see `make_pair`: the truth is unknown.
    """
    rng = np.random.default_rng((seed, index))
    name = _draw_name(sources, rng)
    y, uv = _pad_planes(*read_clip(name, int(rng.integers(LEAST_FRAMES, LATE_FRAMES)), rng)[-1], region)
    crops = [crop_planes(y, uv, *random_corner(y, region, rng), region) for _ in range(2)]
    crop = max(crops, key=lambda planes: cv2.Laplacian(planes[0], cv2.CV_32F).std())
    return pack_planes(*crop), None, {"source": name, "kind": "real", "scale": 1.0, "soft": True}


def _draw_name(sources, rng):
    weights = np.array([weight for weight, _ in sources])
    names = sources[rng.choice(len(sources), p=weights / weights.sum())][1]
    return names[rng.integers(len(names))]


def _crisp_clip(name, count, region, rng):
    """Return `count` crisp full-range frames of region x region pixels, of a photo a pan; None if it is too small.

    Pictures that fill at least half of the region are mirrored at their edges.
    """
    if _is_video(name):
        clip = read_clip(name, count, rng)
        height, width = clip[0][0].shape
        scale = max(CRISP_VIDEO, min(rng.uniform(CRISP_VIDEO, 2.4), min(height, width) / region))
        size = degradation.low_resolution((width, height), scale)
        if 2 * min(size) < region:
            return None
        clip = [_pad_planes(*resample_planes(*planes, size, "area"), region) for planes in clip]
        left, top = random_corner(clip[0][0], region, rng)
        return [crop_planes(*planes, left, top, region) for planes in clip]

    if name == "rendered":
        photo = render_text(rng, (region + 32, region + 32))
    else:
        photo = load_photo(name)
        shrink = max(CRISP_PHOTO, min(rng.uniform(CRISP_PHOTO, 3.0), min(photo.shape[:2]) / region))
        size = tuple(round(side / shrink) for side in photo.shape[1::-1])
        if 2 * min(size) < region:
            return None
        photo = pad(resize(photo, size, "area" if rng.random() < 0.5 else "lanczos"), region)
    if rng.random() < 0.5:
        photo = np.ascontiguousarray(photo[:, ::-1])
    velocity = rng.uniform(-4, 4, 2) * rng.choice([0, 1, 0.1], p=[0.3, 0.5, 0.2])
    return [bgr_to_planes(frame) for frame in degradation.animate(photo, count, (region, region), velocity, rng)]


def random_corner(y, side, rng):
    """Draw the even left and top of a square in luma; the codec's grid need not agree with the network's."""
    return tuple(2 * int(rng.integers(0, (length - side) // 2 + 1)) for length in y.shape[::-1])


def _is_video(name):
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def _pad_planes(y, uv, side):
    """Apply `pad` to planes; `side`, that of luma, is even."""
    return pad(y, side), np.stack([pad(plane, side // 2) for plane in uv])


def pad(picture, side):
    """Mirror a frame or a plane that is smaller than `side` at its right and lower edge."""
    bottom, right = (max(0, side - length) for length in picture.shape[:2])
    return cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REFLECT)


# ----------------------------------------------------------------------------------------------------------------------
# The cache


def prepare_pairs(config, purpose="training", progress=True):
    """Make all pairs of a purpose that are not in the cache yet, and return the folder that holds them.

    The purpose is ``"training"`` or ``"validation"`` (see `make_pair`), or ``"real"`` (see `make_real`). Each part of
    the cache is a ``pairs-NNNNN.npy`` of shape `(n, 2, 3*region/2, region)` uint8 (input, truth), of real pairs
    `(n, 1, ...)`, with descriptions in a ``.json`` beside it. Threads suffice, as codecs, filters and
    NumPy release Python's lock.

    Raises:
        DataError: a source is missing or unreadable, or `config.region` and `config.crop` do not go together.
        OSError: the cache cannot be written.
    """
    if config.region < MIN_REGION or config.region % 8 or config.crop % 8 or not 32 <= config.crop <= config.region:
        raise DataError(
            f"region={config.region} and crop={config.crop} must be multiples of 8, region at least {MIN_REGION}, "
            "crop at least 32 and not larger than region"
        )
    if config.crop > REAL_REGION and (config.real_pairs or config.bsrgan_pairs):
        raise DataError(
            f"crop={config.crop} is too large for crops of real video or stored outputs, of {REAL_REGION} pixels each"
        )
    key, offset = PURPOSES[purpose]
    total, seed = getattr(config, key), config.data_seed + offset
    sources, region, make = list_sources(config, purpose == "validation"), config.region, make_pair
    if purpose == "real":
        videos = sorted(name for _, names in sources for name in names if _is_video(name))
        if not videos:
            raise DataError("real_pairs needs videos: name a folder with some in `sources`, or set real_pairs=0")
        sources, region, make = [(1.0, videos)], REAL_REGION, make_real
    identity = {"version": CACHE_VERSION, "sources": sources, "seed": seed, "region": region, "total": total}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(config.cache_dir) / f"{purpose}-{digest}"

    def prepare(part):
        start = PART_SIZE * part
        pairs = [make(sources, seed, index, region) for index in range(start, min(start + PART_SIZE, total))]
        pictures = [[picture for picture in pair[:2] if picture is not None] for pair in pairs]
        save_array(folder / f"pairs-{part:05d}.npy", np.array(pictures))
        # Written last: it marks the part as complete.
        write_text(folder / f"pairs-{part:05d}.json", json.dumps([pair[2] for pair in pairs]))

    parts = range(-(-total // PART_SIZE))
    missing = [part for part in parts if not (folder / f"pairs-{part:05d}.json").exists()]
    with ThreadPoolExecutor(usable_cores()) as pool:
        made = pool.map(prepare, missing)
        list(tqdm(made, f"{purpose} pairs", len(missing), unit="part", disable=not (progress and missing)))
    return folder


def save_array(path, array):
    """Write an array as a ``.npy`` file, completely or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array)  # into a file, NumPy would hide the reason of a failure
    write_bytes(path, buffer.getbuffer())


@dataclasses.dataclass(frozen=True)
class Pair:
    """One stored pair, memory-mapped: full-range I420 pictures `(3*region/2, region)` uint8."""

    input: np.ndarray  # what the student sees
    goal: np.ndarray  # the truth, or the teacher's output if it is unknown, or the input if there is no teacher
    taught: bool  # whether the truth is unknown: real video, and images with BSRGAN's outputs
    description: dict  # see `make_pair`


def open_pairs(folder):
    """List the `Pair` objects of a prepared folder in order; if the truth is unknown, the goal is the input."""
    pairs = []
    for listing in sorted(Path(folder).glob("pairs-*.json")):
        pictures = np.load(listing.with_suffix(".npy"), mmap_mode="r")
        for stored, description in zip(pictures, json.loads(listing.read_text("utf-8")), strict=True):
            pairs.append(Pair(stored[0], stored[-1], len(stored) == 1, description))
    return pairs


def read_teacher_pairs(folder, region):
    """Cut images ``lr/NAME`` and a x4 teacher's outputs ``sr/NAME``, brought to their size, into pairs without a truth.

    Raises:
        DataError: a folder or an image is missing, or an output is not four times as large.
    """
    inputs, outputs = Path(folder, "lr"), Path(folder, "sr")
    paths, pairs = sorted(outputs.glob("*.png")), []
    if not paths:
        raise DataError(f"no PNG images in {outputs}: set bsrgan_pairs to a folder with lr/ and sr/, or leave it out")
    for path in paths:
        small, large = load_photo(str(inputs / path.name)), load_photo(str(path))
        height, width = small.shape[:2]
        if large.shape[:2] != (4 * height, 4 * width):
            raise DataError(f"{path} is {large.shape[1]}x{large.shape[0]}, not four times its input {width}x{height}")
        planes = [bgr_to_planes(pad(picture, region)) for picture in (small, resize(large, (width, height), "area"))]
        rows, columns = planes[0][0].shape
        description = {"source": path.name, "kind": "bsrgan", "scale": 1.0, "soft": True}
        for top in range(0, rows - region + 1, region):
            for left in range(0, columns - region + 1, region):
                damaged, goal = (pack_planes(*crop_planes(*p, left, top, region)) for p in planes)
                pairs.append(Pair(damaged, goal, True, description))
    return pairs


# ----------------------------------------------------------------------------------------------------------------------
# What the student is trained towards


def crisp(y, source, amount=1.0):
    """Remove the faintest grain of luma and make its edges steeper without much halo: `(H, W)` float32 in codes.

    Twice, an unsharp mask of two radii is limited to the range of the neighbours, which makes edges steeper but not
    higher. This happens at twice the size: at the picture's own, steep edges become staircases. Half is kept of what
    then leaves the range of the 7x7 neighbours in `source`.

    Args:
        y: luma `(H, W)` uint8 or float32 in codes.
        source: what the student sees of it, uint8.
        amount: of the steepening; 0 only removes grain.
    """
    y = y.astype(np.float32)
    calm = y - CORING * np.clip(y - cv2.GaussianBlur(y, (0, 0), 1.5), -GRAIN, GRAIN)
    if amount == 0:
        return calm
    sharp, near = cv2.resize(calm, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.ones((5, 5), np.uint8)
    for _ in range(2):
        detail = sharp - cv2.GaussianBlur(sharp, (0, 0), 3) + 0.35 * (sharp - cv2.GaussianBlur(sharp, (0, 0), 5))
        detail = np.sign(detail) * np.maximum(np.abs(detail) - FAINT_DETAIL, 0)
        low, high = cv2.erode(sharp, near), cv2.dilate(sharp, near)
        slack = 0.04 * (high - low)
        sharp = np.clip(sharp + detail, low - slack, high + slack)
    sharp = cv2.resize(sharp, y.shape[::-1], interpolation=cv2.INTER_AREA)
    return calm + amount * (limit_halo(sharp, source.astype(np.float32), GOAL_HALO) - calm)


def periodic_pattern(side, rng):
    """Draw stripes or chequers of 1 to 6 pixels, or waves of 2 to 12, of any contrast, `(side, side)` uint8.

    Photos have few of them, and their period can look like damage to a folded network: a student that had seen none
    turned chequers of 2 pixels into their negative.
    """
    rows, columns = np.mgrid[:side, :side]
    if rng.random() < 0.4:
        angle, phase, period = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(2, 12)
        wave = np.sin(2 * np.pi / period * (np.sin(angle) * rows + np.cos(angle) * columns) + phase)
    else:
        down, across = rng.integers(1, 7, 2) if rng.random() < 0.5 else [rng.integers(1, 7)] * 2
        kind = rng.integers(3)  # chequer, rows, columns
        down, across = (rows + rng.integers(down)) // down, (columns + rng.integers(across)) // across
        cells = down * (kind != 2) + across * (kind != 1)
        wave = 2.0 * (cells % 2) - 1
    contrast = rng.uniform(2, 127.5)
    return np.rint(rng.uniform(contrast, 255 - contrast) + contrast * wave).astype(np.uint8)


def soft_lines(side, rng):
    """Draw soft parallel lines, half of them along the frame, `(side, side)` uint8.

    The four rows of a cell must agree along such a line: a student that had seen too few turned a door frame into dots.
    """
    rows, columns = np.mgrid[:side, :side]
    angle = rng.choice([0, np.pi / 2]) if rng.random() < 0.5 else rng.uniform(0, np.pi)
    distance, sigma = rng.uniform(12, 48), rng.uniform(0.5, 3)
    across = (np.sin(angle) * rows + np.cos(angle) * columns + rng.uniform(0, distance)) % distance - distance / 2
    height = rng.choice([-1, 1]) * rng.uniform(4, 80)
    return np.rint(rng.uniform(80, 175) + height * np.exp(-0.5 * (across / sigma) ** 2)).astype(np.uint8)


class PairDataset(Dataset):
    """Random crops of pairs, flipped and turned; an item is decided by its key alone.

    A key is a tuple of integers that ends with the pair's index. An item is a dict of float32 tensors in [0, 1]:
    ``input`` and ``goal``, planes `(y (1, S, S), uv (2, S/2, S/2))`; ``target`` `(1, S, S)`, the goal's luma made
    `crisp`; ``taught``, 1 for real video; and ``answer`` `(5,)`, see `ANSWERS`.
    """

    def __init__(self, pairs, config):
        self.pairs, self.config = pairs, config
        folders = [Path(config.data_root) / source for source in config.sources]
        self.text = tuple(f"{folder}{os.sep}" for folder in folders if folder.name == "text")

    def __getitem__(self, key):
        pair, config = self.pairs[key[-1]], self.config
        rng = np.random.default_rng(key)
        planes, crop = [unpack_planes(picture) for picture in (pair.input, pair.goal)], config.crop
        left, top = random_corner(planes[0][0], crop, rng)
        turns = rng.random(3) < 0.5
        source, goal = (crop_planes(y, uv, left, top, crop) for y, uv in planes)
        if pair.taught:
            goal = [a + TEACHER_WEIGHT * (b.astype(np.float32) - a) for a, b in zip(source, goal, strict=True)]
        kind = pair.description["kind"]
        amount = 1.0 if pair.taught else config.crispness * pair.description["soft"]
        if rng.random() < config.pattern_share:
            corner, size = rng.integers(0, crop // 2, 2), rng.integers(crop // 4, crop + 1, 2)
            inside = np.zeros((crop, crop), bool)
            inside[tuple(map(slice, corner, corner + size))] = True
            pattern = (periodic_pattern if rng.random() < 0.5 else soft_lines)(crop, rng)
            source, goal = ((np.where(inside, pattern, y), uv) for y, uv in (source, goal))
        elif not pair.taught and rng.random() < config.classic_share:
            source, kind = degradation.halve_with_noise(goal, rng), "image"
        elif not pair.taught and self._is_text(pair) and rng.random() < CLEAN_TEXT_SHARE:
            source, kind = goal, "clean"
        plain = config.larger or kind in ("clean", "image")
        target = goal[0] if plain else crisp(goal[0], source[0], amount)
        return {
            "input": _turned(*source, *turns),
            "goal": _turned(*goal, *turns),
            "target": _turned(target, goal[1], *turns)[0],
            "taught": torch.tensor(float(pair.taught)),
            "answer": torch.tensor(ANSWERS[self._answer_kind(pair, kind)]),
        }

    def _answer_kind(self, pair, kind):
        """The key of `ANSWERS` for a crop."""
        if pair.taught:
            return "real"
        if kind == "clean":
            return "undamaged"
        if self._is_text(pair):
            return "text"
        if kind == "image":
            return "image"
        return "soft" if pair.description["soft"] else "crisp"

    def _is_text(self, pair):
        """Whether it is ``rendered`` or from a source whose folder is called ``text``."""
        source = pair.description["source"]
        return source == "rendered" or source.startswith(self.text)


def _turned(y, uv, flip, mirror, transpose):
    """Return planes as float32 tensors `(C, H, W)` in [0, 1], turned as asked."""
    tensors = []
    for plane in (y[None], uv):
        plane = plane[:, :: -1 if flip else 1, :: -1 if mirror else 1]
        plane = plane.transpose(0, 2, 1) if transpose else plane
        tensors.append(torch.from_numpy(plane.astype(np.float32)) / 255)
    return tuple(tensors)
