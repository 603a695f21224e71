"""Make the benchmark's input: soft, noisy and compressed pictures and clips, by the protocols of docs/benchmark.md.

A *unit* is one clip or photo under one condition. ``x4`` resembles Microsoft's video super-resolution challenge for
conferencing (ICME 2025).
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

import dataset
import degradation
from benchmark import metrics
from degradation import DataError, SimulatedCamera, at_scale, each_plane, low_resolution, resample_planes
from utils import IMAGE_SUFFIXES, VIDEO_SUFFIXES, bgr_to_planes
from video import VideoReader

CLIP_FRAMES, MEASURED_FRAMES = 30, 8  # of a clip; the last ones, for which rate control has settled
LEAST_SIDE = 64  # pixels
PAN_SIDE = 1024  # photos are shrunk to this many pixels before the camera pans over them
PAN_VELOCITY = (1.5, 0.5)  # pixels a frame
SCALES = (1, 1.5, 2, 3, 4)
CODECS = ("x264", "x265", "vp9", "av1")
# From good to bad, with similar PSNR for each codec.
QUANTISERS = {"x264": (22, 27, 32, 37), "x265": (22, 27, 32, 37), "vp9": (22, 32, 44, 56), "av1": (22, 32, 44, 56)}
BITRATES = (150, 300, 600)  # kbit/s
LINES = ("360p", "540p", "720p")  # protocols of calls of few lines, named after what is left of 1080
FEW_LINES = {  # protocol: (what sides are divided by, codec, quantisers)
    "x4": (4, "x265", (17, 22, 27, 32, 37, 42)),
    **{name: (scale, "x264", QUANTISERS["x264"]) for name, scale in zip(LINES, (3, 2, 1.5), strict=True)},
}
REAL_FRAMES, REAL_START, REAL_LEAST = 24, 10, 4  # frames of a real clip: measured, skipped before, and needed in all
VIDEO_SHRINK = 2  # factor by which videos are shrunk to be crisp; photos: `dataset.CRISP_PHOTO`
CAMERAS = {  # of the protocol camera
    "perfect": SimulatedCamera(),
    "crisp": SimulatedCamera(blur=0.25, noise=1.0, sharpen=0.2),
    "slightly soft": SimulatedCamera(blur=0.6),
    "soft lens": SimulatedCamera(blur=0.9),
    "out of focus": SimulatedCamera(lens="disc", blur=1.4),
    "astigmatic": SimulatedCamera(blur=0.8, stretch=1.5, angle=0.6),
    "sensor crop": SimulatedCamera(blur=0.3, crop=1.5),
    "half the pixels": SimulatedCamera(crop=2, upscaler="bilinear"),
    "cheap webcam": SimulatedCamera(blur=0.6, noise=5, denoise=1.0, sharpen=0.5),
    "sharpened webcam": SimulatedCamera(blur=0.7, crop=1.3, noise=2, denoise=0.7, sharpen=1.0, radius=1.2),
    "moving": SimulatedCamera(blur=0.5, motion=4, angle=0.3),
}
DEFAULT_CONDITION = "bicubic+noise"  # of `IMAGE_CONDITIONS`, for which SSIM above 0.9 is promised
SLIDE_SIZE, SLIDE_FONTS = (1280, 720), (16, 18, 20, 24, 28, 36, 48)  # of a shared screen


@dataclasses.dataclass(frozen=True)
class Source:
    """A clean picture or video: its category, its name in reports, and a path for `load_frame` or `load_clip`."""

    category: str
    name: str
    path: str

    @property
    def is_video(self):
        return Path(self.path).suffix.lower() in VIDEO_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Unit:
    """A source under one condition."""

    protocol: str
    source: Source
    condition: str
    scale: float = 1  # by which its sides are divided
    codec: str | None = None  # a key of `degradation.CODECS`
    rate: tuple | None = None  # of the codec: ("qp", constant quantiser) or ("kbps", kbit/s)
    camera: str | None = None  # a key of `CAMERAS`

    def identity(self):
        """Return the keys that identify the unit in a report, as a dict."""
        named = {"protocol": self.protocol, "category": self.source.category, "name": self.source.name}
        named["condition"] = self.condition
        if self.codec:
            named |= {"scale": self.scale, "codec": self.codec, "rate": _rate_name(self.rate)}
        if self.camera:
            named["camera"] = "soft" if CAMERAS[self.camera].is_soft else "crisp"
        return named


@dataclasses.dataclass(frozen=True)
class Sample:
    """Degraded frames and their ground truth: clips of planes `(y (H, W), uv (2, H/2, W/2))`."""

    input: list
    truth: list | None  # None if it is unknown
    full_range: bool = True  # of both
    scale: float = 1  # by which the input was enlarged
    words: list | None = None  # that tesseract reads in the truth

    @property
    def size(self):
        """The (width, height) of a method's output, that of the truth; input frames may be smaller."""
        return (self.truth or self.input)[0][0].shape[::-1]


def list_sources(data=None, match=("*",)):
    """List the clean pictures and clips to measure on whose names fit one of the patterns `match`.

    Args:
        data: folder with a sub-folder of images and videos for each category, at any depth; None: the photos of
            scikit-image and scikit-learn, and drawn slides.

    Raises:
        DataError: nothing matches.
    """
    if data is None:
        packages = {"skimage": dataset.SKIMAGE_BENCHMARK, "sklearn": dataset.SKLEARN_BENCHMARK}
        sources = [
            Source(category, name, f"{package}:{name}")
            for package, categories in packages.items()
            for category, names in categories.items()
            for name in names
        ]
        sources += [Source("text", f"slide {seed}", f"slide:{seed}") for seed in (1, 2)]
    else:
        data = Path(data)
        sources = [
            Source(path.parent.relative_to(data).as_posix(), path.name, str(path))
            for path in sorted(data.rglob("*"), key=lambda path: (path.parent, path.name))
            if path.parent != data and path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
        ]
    sources = [source for source in sources if any(fnmatch(source.name, pattern) for pattern in match)]
    if not sources:
        raise DataError(f"{data or 'the packages'}: no sub-folder with images or videos fits {' or '.join(match)}")
    return sources


def can_be_read(source):
    """Return whether a picture shows text and tesseract is installed."""
    return source.category == "text" and metrics.tesseract_available()


def load_frame(source):
    """Read a picture, ``slide:SEED`` or anything that `dataset.load_photo` takes, as a BGR frame of even size."""
    if source.path.startswith("slide:"):
        rng = np.random.default_rng(int(source.path.removeprefix("slide:")))
        return dataset.render_text(rng, SLIDE_SIZE, SLIDE_FONTS)
    frame = dataset.load_photo(source.path)
    height, width = (side - side % 2 for side in frame.shape[:2])
    _check_size(source, width, height)
    return np.ascontiguousarray(frame[:height, :width])


@functools.lru_cache(maxsize=1)  # the units of a source follow each other
def load_clip(source, count=CLIP_FRAMES, least=CLIP_FRAMES, crisp=False, step=2):
    """Read the first `count` frames of a video, or pan over a photo; `crisp` shrinks them until they are crisp.

    Returns:
        ``(clip, full_range)``: planes of even size, those of a video first cut to multiples of `step`.

    Raises:
        DataError: the video has fewer than `least` frames, or a side of them fewer than `LEAST_SIDE` pixels.
        VideoError: it cannot be read.
    """
    if not source.is_video:
        photo = load_frame(source)
        height, width = photo.shape[:2]
        shrink = max(dataset.CRISP_PHOTO if crisp else 1, max(height, width) / PAN_SIDE)
        photo = degradation.resize(photo, (round(width / shrink), round(height / shrink)), "area")
        travel = [math.ceil(velocity * count) for velocity in PAN_VELOCITY[::-1]]
        size = [(side - way) // 2 * 2 for side, way in zip(photo.shape[:2], travel, strict=True)]
        _check_size(source, *size[::-1])
        frames = degradation.animate(photo, count, size, PAN_VELOCITY, np.random.default_rng(0))
        return [bgr_to_planes(frame) for frame in frames], True
    with VideoReader(source.path) as reader:
        full_range, frames = reader.format.full_range, list(itertools.islice(reader, count))
    if len(frames) < least:
        raise DataError(f"the video {source.path} has {len(frames)} frames, the benchmark needs {least}: leave it out")
    height, width = (side - side % step for side in frames[0].y.shape)
    clip = [(frame.y[:height, :width], frame.uv[:, : height // 2, : width // 2]) for frame in frames]
    if crisp:
        size = low_resolution(clip[0][0].shape[::-1], VIDEO_SHRINK)
        clip = [resample_planes(*planes, size, "area") for planes in clip]
    _check_size(source, *clip[0][0].shape[::-1])
    return clip, full_range


def _check_size(source, width, height):
    if min(width, height) < LEAST_SIDE:
        raise DataError(f"{source.path} is too small to be measured ({width}x{height}): leave it out")


def blur_noise_jpeg(planes, rng):
    """Blur, add noise of sigma 6/255 and apply JPEG of quality 40."""
    noisy = each_plane(each_plane(planes, degradation.blur, 0.7), degradation.add_noise, 6, rng)
    return each_plane(noisy, degradation.jpeg, 40)


IMAGE_CONDITIONS = {  # name: (scale by which the picture is shrunk, what damages its planes then)
    "clean": (1, lambda small, rng: small),  # any change is harm
    "light jpeg": (1, lambda small, rng: each_plane(small, degradation.jpeg, 90)),  # barely visible
    DEFAULT_CONDITION: (2, lambda small, rng: each_plane(small, degradation.add_noise, 2, rng)),
    "jpeg": (2, lambda small, rng: each_plane(small, degradation.jpeg, 50)),
    "severe": (3, blur_noise_jpeg),
}


def image_units(sources, conditions=tuple(IMAGE_CONDITIONS)):
    """Return each picture of `sources` under each condition."""
    return [
        Unit("image", source, condition, scale=IMAGE_CONDITIONS[condition][0])
        for source in sources
        if not source.is_video
        for condition in conditions
    ]


def real_units(sources):
    """Return each video as it is."""
    return [Unit("real", source, "as it is") for source in sources if source.is_video]


def camera_units(sources):
    """Return each source seen by each camera, with codecs and quantisers in turn; every fifth is scaled by 1.5."""
    units = []
    for i, source in enumerate(sources):
        for j, camera in enumerate(CAMERAS):
            codec = CODECS[(i + j) % len(CODECS)]
            rate = "qp", QUANTISERS[codec][(i // len(CODECS) + j) % len(QUANTISERS[codec])]
            scale = 1.5 if (i + j) % 5 == 4 else 1
            condition = f"{camera}, x{scale:g} {codec} {_rate_name(rate)}"
            units.append(Unit("camera", source, condition, scale, codec, rate, camera))
    return units


def few_lines_units(sources, protocol):
    """Return each video with fewer lines, at each quantiser of `FEW_LINES`."""
    scale, codec, quantisers = FEW_LINES[protocol]
    return [
        Unit(protocol, source, f"{codec} qp {qp}", scale, codec, ("qp", qp))
        for source in sources
        if source.is_video
        for qp in quantisers
    ]


def call_units(sources):
    """Return each source at each codec and rate, with scales in turn, so that a few sources cover all combinations."""
    units = []
    for i, source in enumerate(sources):
        for j, codec in enumerate(CODECS):
            rates = [("qp", qp) for qp in QUANTISERS[codec]] + [("kbps", kbps) for kbps in BITRATES]
            for k, rate in enumerate(rates):
                scale = SCALES[(i + 2 * j + k) % len(SCALES)]
                condition = f"x{scale:g} {codec} {_rate_name(rate)}"
                units.append(Unit("call", source, condition, scale, codec, rate))
    return units


UNITS = {  # protocol: function of sources
    "real": real_units,
    "camera": camera_units,
    "call": call_units,
    "x4": functools.partial(few_lines_units, protocol="x4"),
    "image": image_units,
    **{lines: functools.partial(few_lines_units, protocol=lines) for lines in LINES},
}


def draw_units(units, share):
    """Return about `share` of `units`, chosen by a hash (larger shares contain smaller ones), and all real ones."""

    def place(unit):
        return int(hashlib.sha256(repr(unit.identity()).encode()).hexdigest()[:8], 16) / 2**32

    return [unit for unit in units if unit.protocol == "real" or place(unit) < share]


def _rate_name(rate):
    kind, value = rate
    return f"qp {value}" if kind == "qp" else f"{value}k"


@functools.lru_cache(maxsize=1)  # methods are measured one after the other
def make_sample(unit):
    """Degrade a unit's source deterministically, and keep the last `MEASURED_FRAMES` of a clip.

    Calls of few lines (`LINES`) stay as decoded; everything else is enlarged with Lanczos.
    """
    rng = np.random.default_rng(0)
    if unit.protocol == "image":
        truth = bgr_to_planes(load_frame(unit.source))
        damage = IMAGE_CONDITIONS[unit.condition][1]
        damaged = at_scale(truth, unit.scale, lambda small: damage(small, rng))
        words = metrics.read_words(truth[0]) if can_be_read(unit.source) else None
        return Sample([damaged], [truth], scale=unit.scale, words=words)
    if unit.protocol == "real":
        clip, full_range = load_clip(unit.source, REAL_START + REAL_FRAMES, REAL_LEAST)
        start = min(REAL_START, max(0, len(clip) - REAL_FRAMES))
        return Sample(clip[start:], None, full_range)
    step = 12 if unit.protocol in LINES else 2  # each of their scales leaves even sides
    clip, full_range = load_clip(unit.source, crisp=unit.camera is not None, step=step)
    seen = CAMERAS[unit.camera](clip, rng) if unit.camera else clip
    size = clip[0][0].shape[::-1]
    small = [resample_planes(*planes, low_resolution(size, unit.scale), "bicubic") for planes in seen]
    decoded = degradation.codec_roundtrip(small, unit.codec, **dict([unit.rate]))[-MEASURED_FRAMES:]
    truth = clip[-MEASURED_FRAMES:]
    if unit.protocol in LINES:
        return Sample(decoded, truth, full_range)
    return Sample([resample_planes(*planes, size) for planes in decoded], truth, full_range, unit.scale)
