"""What a call does to a picture, and the sets of pairs made with it.

A *degradation* turns a clean picture into what arrives at the other end: scaled down, noisy, blurred, compressed by
JPEG or by a real video codec, and scaled back up. A *pair* is such an input with its ground truth. Pairs are prepared
once, in parallel, into a cache of memory-mapped files (`prepare_pairs`); training streams random crops from it
(`PairDataset`).

All randomness comes from a `np.random.Generator` seeded with (seed, index): the same pair for any number of workers.
"""

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
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
from torchvision.datasets.utils import download_and_extract_archive
from tqdm import tqdm

from utils import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    atomic_path,
    bgr_to_planes,
    first_line,
    to_full_range,
    to_limited_range,
)
from video import MAX_VIDEO_SIDE, VideoError, check_image, open_video

# scikit-image's own photos. The benchmark shows none of those that training or validation see.
SKIMAGE_TRAINING = (
    "brick",
    "grass",
    "gravel",
    "moon",
    "hubble_deep_field",
    "retina",
    "immunohistochemistry",
    "stereo_motorcycle",
    "cell",
    "colorwheel",
)
SKIMAGE_VALIDATION = ("camera", "coins")
SKIMAGE_BENCHMARK = {
    "people": ("astronaut",),
    "nature": ("chelsea",),
    "objects": ("coffee", "rocket"),
    "text": ("page", "text"),
}
SKLEARN_BENCHMARK = {"city": ("china",), "nature": ("flower",)}  # scikit-learn's two photos, 640x427

DIV2K = {  # Agustsson and Timofte, NTIRE 2017; for research only
    "url": "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
    "md5": "bdc2d9338d4e574fe81bf7d158758658",
}

FONTS = (  # that Matplotlib brings
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmss10",
)

CACHE_VERSION = 3  # raise when the same configuration would give other pairs
LATE_VERSION = 1  # likewise, of late ones
PURPOSES = {  # of pairs: the key of `Config` that counts them, and what is added to `data_seed`
    "training": ("pairs", 0),
    "validation": ("validation_pairs", 1_000_003),
    "gate": ("gate_pairs", 2_000_003),
    "late": ("late_pairs", 3_000_009),
}
LATE = ("late", "gate")  # purposes of pairs that were coded late in a slow clip
PART_SIZE = 32  # pairs in one file of the cache
FRAME_RATE = 25  # told to encoders
LEAST_FRAMES = 12  # that a video to learn from must have
LATE_FRAMES = 30  # of a clip whose last frame stands for a call that has gone on for a while
MIN_REGION = 256  # scaled down by 4 that is 64 pixels, the least that SVT-AV1 takes without damage


class DataError(RuntimeError):
    """Data is missing or unreadable. The message says which and what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# Degradations of an image (H, W) or (H, W, 3), uint8 in and out


def resize(image, size, kernel="lanczos"):
    """Resample to `size` = (width, height); the kernel widens when shrinking, so nothing aliases.

    Kernels: area, bilinear, bicubic, lanczos (three lobes, as FFmpeg's).
    """
    kernels = {
        "area": Image.Resampling.BOX,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    return np.asarray(Image.fromarray(image).resize(size, kernels[kernel]))


def add_noise(image, sigma, rng, grey=False):
    """Add Gaussian noise of standard deviation `sigma` (in 255ths); `grey` gives all channels the same noise."""
    shape = image.shape[:2] + (1,) * (image.ndim - 2) if grey else image.shape
    noisy = image + rng.normal(0, sigma, shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def blur(image, sigma):
    """Blur with a Gaussian of standard deviation `sigma` in pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def jpeg(image, quality):
    """Compress with JPEG at `quality` (1-100) and decompress."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)


# ----------------------------------------------------------------------------------------------------------------------
# Degradations of planes and clips (lists of planes)


def resize_planes(y, uv, size, kernel="lanczos"):
    """Resample planes to luma `size` = (width, height), plane by plane as video scalers do."""
    width, height = size
    chroma_size = ((width + 1) // 2, (height + 1) // 2)
    return resize(y, size, kernel), np.stack([resize(plane, chroma_size, kernel) for plane in uv])


def low_resolution(size, scale):
    """The even (width, height) that `size` has when scaled down by `scale`, as encoders want it."""
    return tuple(2 * max(1, round(side / scale / 2)) for side in size)


@dataclasses.dataclass(frozen=True)
class Codec:
    """How a call uses a codec: FFmpeg's encoder and decoder, and the encoder's low-delay options.

    Attributes:
        encoder, decoder: their names.
        quantisers: (lightest, heaviest) damage of constant quantisers that calls know.
        options: always set.
        constant: set for a constant quantiser ``{qp}``.
        controlled: set for rate control at ``{kbps}`` kbit/s with a buffer of one second.
    """

    encoder: str
    decoder: str
    quantisers: tuple
    options: dict
    constant: dict
    controlled: dict


X265_PARAMS = "log-level=none:pools=none:frame-threads=1"
SVT_AV1_PARAMS = "pred-struct=1:rtc=1:lp=1"
BUFFERED = {"b": "{kbps}k", "maxrate": "{kbps}k", "bufsize": "{kbps}k"}
CODECS = {
    "x264": Codec(
        encoder="libx264",
        decoder="h264",
        quantisers=(16, 40),
        options={"preset": "veryfast", "tune": "zerolatency"},
        constant={"qp": "{qp}"},
        controlled=BUFFERED,
    ),
    "x265": Codec(
        encoder="libx265",
        decoder="hevc",
        quantisers=(16, 40),
        options={"preset": "ultrafast", "tune": "zerolatency"},
        constant={"x265-params": "qp={qp}:" + X265_PARAMS},
        controlled={"x265-params": "bitrate={kbps}:vbv-maxrate={kbps}:vbv-bufsize={kbps}:" + X265_PARAMS},
    ),
    "vp8": Codec(
        encoder="libvpx",
        decoder="vp8",
        quantisers=(8, 58),
        options={"deadline": "realtime", "cpu-used": "-6", "lag-in-frames": "0"},
        # libvpx wants a bit rate beside its quantisers: a ceiling that is never reached.
        constant={"qmin": "{qp}", "qmax": "{qp}", "b": "50M"},
        controlled={"minrate": "{kbps}k", **BUFFERED},
    ),
    "vp9": Codec(
        encoder="libvpx-vp9",
        decoder="vp9",
        quantisers=(14, 58),
        options={"deadline": "realtime", "cpu-used": "7", "lag-in-frames": "0"},
        constant={"qmin": "{qp}", "qmax": "{qp}", "b": "50M"},
        controlled={"minrate": "{kbps}k", **BUFFERED},
    ),
    "av1": Codec(
        encoder="libsvtav1",
        decoder="libdav1d",
        quantisers=(18, 60),
        options={"preset": "10"},
        constant={"qp": "{qp}", "svtav1-params": SVT_AV1_PARAMS},
        controlled={"b": "{kbps}k", "svtav1-params": "rc=2:" + SVT_AV1_PARAMS},
    ),
}


def encode_clip(clip, codec, qp=None, kbps=None, rate=FRAME_RATE):
    """Encode a clip with a real low-delay codec, in memory; one thread, so it repeats exactly.

    Args:
        clip: list of uint8 planes `(y, uv)` of even size, in the range (full or limited) that they have.
        codec: a key of `CODECS`.
        qp: the codec's own constant quantiser, or None.
        kbps: without `qp`: kbit/s for the encoder's rate control.
        rate: frames per second told to the encoder.

    Returns:
        List of bytes, the packets in order.

    Raises:
        DataError: the codec does not take frames of this size; some are too small for AV1 and x265.
    """
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    profile = CODECS[codec]
    options = profile.options | (profile.controlled if qp is None else profile.constant)
    height, width = clip[0][0].shape
    encoder = av.CodecContext.create(profile.encoder, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, rate), Fraction(rate)
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = 600, 0, 1
    encoder.options = {key: value.format(qp=qp, kbps=kbps) for key, value in options.items()}
    try:
        encoder.open()
    except av.FFmpegError as error:
        raise DataError(f"{codec} cannot encode frames of {width}x{height} ({first_line(error)})") from error
    packets = []
    for pts, planes in enumerate(clip):
        frame = av.VideoFrame.from_ndarray(pack_planes(*planes), format="yuv420p")
        frame.pts = pts
        packets += encoder.encode(frame)
    return [bytes(packet) for packet in [*packets, *encoder.encode(None)]]


def decode_clip(packets, codec):
    """Decode what `encode_clip` made to a list of planes."""
    decoder = av.CodecContext.create(CODECS[codec].decoder, "r")
    decoder.thread_count = 1
    frames = [frame for packet in [*map(av.Packet, packets), None] for frame in decoder.decode(packet)]
    return [unpack_planes(frame.to_ndarray()) for frame in frames]


def codec_roundtrip(clip, codec, qp=None, kbps=None, rate=FRAME_RATE):
    """Encode a clip and decode it again: see `encode_clip`."""
    return decode_clip(encode_clip(clip, codec, qp, kbps, rate), codec)


def pack_planes(y, uv):
    """Stack even-sized planes to one I420 picture `(3*H/2, W)`."""
    return np.concatenate([y, uv.reshape(-1, y.shape[1])])


def unpack_planes(packed):
    """Split an I420 picture `(3*H/2, W)` into views `y (H, W)` and `uv (2, H/2, W/2)`."""
    height, width = packed.shape[0] * 2 // 3, packed.shape[1]
    return packed[:height], packed[height:].reshape(2, height // 2, width // 2)


# ----------------------------------------------------------------------------------------------------------------------
# Clean pictures


def animate(photo, count, size, velocity, rng):
    """Pan over a photo with sub-pixel motion, as a slow camera would.

    Args:
        photo: `(H, W, 3)` uint8, at least `size`.
        count: number of frames.
        size: (height, width) of the frames.
        velocity: (x, y) in pixels a frame.
        rng: chooses where the pan ends. The last frame is an exact crop of the photo, not resampled.

    Returns:
        List of `count` uint8 frames.
    """
    height, width = size
    end = rng.integers(0, [photo.shape[1] - width + 1, photo.shape[0] - height + 1])
    frames = []
    for remaining in range(count - 1, -1, -1):
        x, y = end - np.asarray(velocity) * remaining
        matrix = np.array([[1, 0, x], [0, 1, y]], dtype=np.float64)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        frames.append(cv2.warpAffine(photo, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101))
    return frames


def render_text(rng, size, font_sizes=(10, 11, 12, 13, 14, 16, 18, 22, 28, 40)):
    """Draw a page of words, numbers, thin lines at all slants and boxes, in random fonts and colours.

    Args:
        size: (width, height) in pixels.
        font_sizes: to choose from for each line, in pixels.

    Returns:
        The page `(height, width, 3)`, uint8 BGR.
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
        else:  # lines and boxes: the codec's ringing and the shuffle's grid show on these first
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
        check_image(source)
    except VideoError as error:
        raise DataError(f"cannot read the image {source} ({error}): remove it or replace it") from error
    frame = cv2.imread(source, cv2.IMREAD_COLOR)
    if frame is None:
        raise DataError(f"cannot read the image {source}: remove it or replace it")
    return frame


def read_clip(path, count, rng):
    """Decode `count` consecutive frames from a random place of a video to full-range planes; of a short one all it has.

    Raises:
        DataError: the video cannot be decoded or is shorter than `LEAST_FRAMES`, or than `count` if that is less.
    """
    try:
        with open_video(path) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(f"cannot read the video {path}: remove it or replace it")
            if max(stream.width, stream.height) > MAX_VIDEO_SIDE:
                raise DataError(f"the video {path} has more than {MAX_VIDEO_SIDE} pixels a side: scale it down first")
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
    for frame in container.decode(video=0):
        full_range = frame.color_range == av.video.reformatter.ColorRange.JPEG
        planes = unpack_planes(frame.to_ndarray(format="yuv420p"))
        clip.append(planes if full_range else to_full_range(*planes))
        if len(clip) == count:
            break
    return clip


# ----------------------------------------------------------------------------------------------------------------------
# Sources


def list_sources(config, validation):
    """The clean pictures of each source in `config.sources`, every tenth one set apart for validation.

    A source is ``skimage`` (scikit-image's own photos), ``rendered`` (drawn text), ``div2k`` (downloaded), or a folder
    of images or videos under `config.data_root`.

    Returns:
        List of (weight, [names]), names as `load_photo` and `read_clip` take them; ``rendered`` stands for itself.

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
            folder = _div2k_folder(config) if source == "div2k" else Path(config.data_root) / source
            if not folder.is_dir():
                raise DataError(
                    f"no folder {folder} (source {source!r}): change `data_root`, export's --data, or `sources`"
                )
            files = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES)
            names = [name for i, name in enumerate(files) if (i % 10 == 5) == validation]
            if not names:
                raise DataError(f"{folder} holds {len(files)} images and videos: at least 6 are needed")
        listed.append((weight, names))
    return listed


def _div2k_folder(config):
    folder = Path(config.data_root) / "DIV2K_train_HR"
    if not folder.is_dir():
        try:
            download_and_extract_archive(DIV2K["url"], config.data_root, md5=DIV2K["md5"], remove_finished=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"cannot download DIV2K ({error}): unpack {DIV2K['url']} to {folder} by hand, or change `sources`"
            ) from error
    return folder


# ----------------------------------------------------------------------------------------------------------------------
# Pairs


def make_pair(sources, seed, index, region, purpose="training"):
    """Make one pair, decided by `seed`, `index` and `purpose` alone.

    Args:
        sources: result of `list_sources`.
        region: side of the pair in pixels, a multiple of 8 and at least `MIN_REGION`.
        purpose: see `prepare_pairs`. Late pairs are as things stand after a second of a call: what goes through a codec
            are clips of `LATE_FRAMES`, half of them under rate control. Of ``"late"`` all go through a codec, and pans
            are slow; of ``"gate"`` as many as in training, and half of the sources are soft by themselves, see
            `_soften`.

    Returns:
        ``(input, truth, description)``: I420 pictures `(3*region/2, region)`, uint8, full range, and a dict with the
        degradation (``kind``, ``scale`` and more).
    """
    rng = np.random.default_rng((seed, index))
    weights = np.array([weight for weight, _ in sources])
    names = sources[rng.choice(len(sources), p=weights / weights.sum())][1]
    name = names[rng.integers(len(names))]
    kinds = [0, 0, 0, 1] if purpose == "late" else [0.07, 0.11, 0.30, 0.52]
    kind = rng.choice(["clean", "mild", "image", "codec"], p=kinds)
    count = int(rng.integers(3, LEAST_FRAMES + 1)) if kind in ("codec", "mild") else 1
    slow = purpose == "late"
    clip = _clean_clip(name, LATE_FRAMES if purpose in LATE and count > 1 else count, region, rng, slow)
    if purpose == "gate" and rng.random() < 0.5:
        clip = _soften(clip, rng)
    truth = clip[-1]
    if kind == "clean":
        damaged, description = truth, {"scale": 1.0}
    elif kind == "mild":
        damaged, description = _mild_degradation(clip, rng)
    elif kind == "image":
        damaged, description = _image_degradation(truth, rng)
    else:
        damaged, description = _codec_degradation(clip, rng, controlled=purpose in LATE)
    return pack_planes(*damaged), pack_planes(*truth), {"source": name, "kind": str(kind), **description}


def _clean_clip(name, count, region, rng, slow=False):
    """`count` clean frames of region x region pixels as full-range planes; photos are panned over, perhaps `slow`."""
    if Path(name).suffix.lower() in VIDEO_SUFFIXES:
        # The video has been compressed before: shrinking it gives a clean truth, at its own size it is a soft one.
        clip = read_clip(name, count, rng)
        height, width = clip[0][0].shape
        scale = max(1.0, min(rng.uniform(1.0, 2.2), min(height, width) / region))
        size = (max(region, round(width / scale)), max(region, round(height / scale)))
        clip = [resize_planes(*planes, size, "area") for planes in clip]
        left, top = (2 * int(rng.integers(0, (side - region) // 2 + 1)) for side in size)
        return [crop_planes(*planes, left, top, region) for planes in clip]

    if name == "rendered":
        photo = render_text(rng, (region + 32, region + 32))
    else:
        photo = load_photo(name)
        shrink = rng.uniform(1.0, max(1.0, min(3.0, min(photo.shape[:2]) / region)))
        size = tuple(round(side / shrink) for side in photo.shape[1::-1])
        photo = resize(photo, size, "area" if rng.random() < 0.5 else "lanczos")
        photo = _pad(photo, region)
        if rng.random() < 0.25:  # out of focus at the source: what was soft must stay soft
            photo = blur(photo, rng.uniform(0.4, 1.6))
    if rng.random() < 0.5:
        photo = np.ascontiguousarray(photo[:, ::-1])
    velocity = rng.uniform(-4, 4, 2) * (rng.random() < 0.7)
    if slow:  # an encoder that skips what hardly moves falls behind by up to a pixel: what is there is displaced
        velocity *= 10 ** rng.uniform(-1, 0)
    return [bgr_to_planes(frame) for frame in animate(photo, count, (region, region), velocity, rng)]


def _soften(clip, rng):
    """A clip as many cameras and videos give it, before any call: enlarged from fewer pixels, compressed, or both."""
    size, which = clip[0][0].shape[::-1], rng.choice(["enlarged", "compressed", "both"])
    if which != "compressed":
        small, down = low_resolution(size, rng.uniform(1.2, 2.5)), str(rng.choice(["bicubic", "area", "bilinear"]))
        clip = [resize_planes(*planes, small, down) for planes in clip]
    if which != "enlarged":
        codec = str(rng.choice(list(CODECS)))
        lightest, heaviest = CODECS[codec].quantisers
        clip = _compress(clip, codec, int(rng.uniform(lightest, lightest + 0.7 * (heaviest - lightest))))
    if which != "compressed":
        up = _random_upscaler(rng)
        clip = [resize_planes(*planes, size, up) for planes in clip]
    return clip


def _pad(frame, side):
    """Mirror a frame that is smaller than `side` at its right and lower edge."""
    bottom, right = (max(0, side - length) for length in frame.shape[:2])
    return np.pad(frame, ((0, bottom), (0, right), (0, 0)), mode="symmetric")


def _mild_degradation(clip, rng):
    """Barely damaged, at full size: what the student should leave alone."""
    which = rng.choice(["codec", "jpeg", "noise"], p=[0.6, 0.2, 0.2])
    if which == "codec":
        codec = str(rng.choice(list(CODECS)))
        lightest, heaviest = CODECS[codec].quantisers
        qp = int(rng.uniform(lightest - 4, lightest + 0.35 * (heaviest - lightest)))
        return _compress(clip, codec, qp)[-1], {"scale": 1.0, "codec": codec, "qp": qp}
    if which == "jpeg":
        quality = int(rng.integers(88, 99))
        return tuple(each_plane(clip[-1], jpeg, quality)), {"scale": 1.0, "jpeg": quality}
    sigma = rng.uniform(0.3, 1.5)
    return tuple(each_plane(clip[-1], add_noise, sigma, rng)), {"scale": 1.0, "noise": sigma}


def _image_degradation(truth, rng):
    """Blur, shrink, noise, JPEG, enlarge; each of them random, or the classic: halved with a little noise."""
    y, uv = truth
    classic = rng.random() < 0.35
    region = y.shape[0]
    scale = rng.choice([1.0, 2.0, rng.uniform(1, 4)], p=[0.1, 0.6, 0.3])
    down = str(rng.choice(["bicubic", "area", "bilinear"], p=[0.5, 0.3, 0.2]))
    sigma_blur = rng.uniform(0.3, 1.5) if rng.random() < 0.25 else 0.0
    sigma_noise = rng.choice([0.0, 2.0, rng.uniform(0, 8)], p=[0.2, 0.5, 0.3])
    quality = int(rng.integers(40, 98)) if rng.random() < 0.4 else 0
    up = _random_upscaler(rng)
    if classic:
        scale, down, sigma_blur, sigma_noise, quality, up = 2.0, "bicubic", 0.0, rng.uniform(1, 3), 0, "lanczos"

    planes = (y, uv)
    if sigma_blur:
        planes = (blur(y, sigma_blur), np.stack([blur(plane, sigma_blur / 2) for plane in uv]))
    planes = resize_planes(*planes, low_resolution((region, region), scale), down)
    if sigma_noise:
        grey = rng.random() < 0.4
        planes = (add_noise(planes[0], sigma_noise, rng), planes[1] if grey else add_noise(planes[1], sigma_noise, rng))
    if quality:
        planes = tuple(each_plane(planes, jpeg, quality))
    damaged = resize_planes(*planes, (region, region), up)
    return damaged, {"scale": float(scale), "down": down, "noise": float(sigma_noise), "jpeg": quality}


def _codec_degradation(clip, rng, controlled=False):
    """Shrink, sometimes camera noise, a real codec, enlarge; the last frame is a P frame.

    Where `controlled`, half of the codecs have a bit rate instead of a constant quantiser.
    """
    region = clip[0][0].shape[0]
    scale = float(rng.choice([1.0, 1.5, 2.0, 3.0, 4.0], p=[0.12, 0.16, 0.44, 0.16, 0.12]))
    down = str(rng.choice(["bicubic", "area", "bilinear"], p=[0.45, 0.35, 0.2]))
    codec = str(rng.choice(list(CODECS), p=[0.42, 0.15, 0.13, 0.16, 0.14]))
    lightest, heaviest = CODECS[codec].quantisers
    qp = int(rng.integers(lightest, heaviest + 1))
    noise = rng.uniform(0.5, 4) if rng.random() < 0.15 else 0.0
    size = low_resolution((region, region), scale)
    rate = {"qp": qp}
    if controlled and rng.random() < 0.5:
        bits = 10 ** rng.uniform(-2, -0.5)  # for a pixel of a frame
        rate = {"kbps": max(10, round(bits * size[0] * size[1] * FRAME_RATE / 1000))}

    small = [resize_planes(*planes, size, down) for planes in clip]
    if noise:
        small = [tuple(each_plane(planes, add_noise, noise, rng)) for planes in small]
    decoded = _compress(small, codec, **rate)[-1]
    damaged = resize_planes(*decoded, (region, region), _random_upscaler(rng)) if scale > 1 else decoded
    return damaged, {"scale": scale, "down": down, "codec": codec, **rate, "noise": float(noise)}


def _compress(clip, codec, qp=None, kbps=None):
    """`codec_roundtrip` of full-range planes through limited range, which is what calls send."""
    limited = [to_limited_range(*planes) for planes in clip]
    return [to_full_range(*planes) for planes in codec_roundtrip(limited, codec, qp, kbps)]


def each_plane(planes, function, *arguments):
    """Apply a degradation of images to luma and to each chroma plane."""
    y, uv = planes
    return function(y, *arguments), np.stack([function(plane, *arguments) for plane in uv])


def at_scale(planes, scale, damage):
    """Shrink planes by `scale` with a bicubic kernel, apply `damage` to ``(y, uv)``, enlarge with Lanczos."""
    size = planes[0].shape[::-1]
    small = resize_planes(*planes, low_resolution(size, scale), "bicubic")
    return resize_planes(*damage(small), size)


def halve_with_noise(planes, rng):
    """Gaussian noise of sigma 2/255 at half size: the classic condition of super-resolution, and the default one."""
    return at_scale(planes, 2, lambda small: each_plane(small, add_noise, 2, rng))


def _random_upscaler(rng):
    return str(rng.choice(["lanczos", "bicubic", "bilinear"], p=[0.65, 0.2, 0.15]))


def crop_planes(y, uv, left, top, side):
    """Cut a square of even `left`, `top` and `side` out of planes."""
    x, row, half = left // 2, top // 2, side // 2
    return y[top : top + side, left : left + side], uv[:, row : row + half, x : x + half]


# ----------------------------------------------------------------------------------------------------------------------
# The cache


def prepare_pairs(config, purpose="training", progress=True):
    """Make all pairs that `config` asks for, once, and return the folder that holds them.

    The purpose is ``"training"``, ``"validation"``, ``"late"`` (to train on besides), or ``"gate"`` (for it alone); see
    `make_pair` for how the last two differ.

    Parts of the cache that exist are kept, so an interrupted preparation goes on where it stopped. Each part is a
    ``pairs-NNNNN.npy`` of shape `(n, 2, 3*region/2, region)` uint8 (input, truth) and a ``.json`` beside it.

    Raises:
        DataError: a source is missing or unreadable, `config.region` and `config.crop` do not go together, or a process
            of the preparation was killed.
        OSError: the cache cannot be written.
    """
    if config.region < MIN_REGION or config.region % 8 or config.crop % 8 or not 32 <= config.crop <= config.region:
        raise DataError(
            f"region={config.region} and crop={config.crop} must be multiples of 8, region at least {MIN_REGION}, "
            "crop at least 32 and not larger than region"
        )
    key, offset = PURPOSES[purpose]
    total, seed = getattr(config, key), config.data_seed + offset
    sources = list_sources(config, purpose == "validation")
    identity = {"version": CACHE_VERSION, "sources": sources, "seed": seed, "region": config.region, "total": total}
    identity |= {"late": LATE_VERSION} if purpose in LATE else {}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(config.cache_dir) / f"{purpose}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)

    starts = range(0, total, PART_SIZE)
    jobs = [
        (str(folder / f"pairs-{start // PART_SIZE:05d}"), sources, seed, start, min(start + PART_SIZE, total))
        for start in starts
    ]
    jobs = [(*job, config.region, purpose) for job in jobs if not Path(job[0] + ".json").exists()]
    if not jobs:
        return folder
    context = multiprocessing.get_context("spawn")
    try:
        with (
            tqdm(
                total=total,
                initial=total - sum(job[4] - job[3] for job in jobs),
                desc=f"{purpose} pairs",
                disable=not progress,
            ) as bar,
            ProcessPoolExecutor(max(1, config.prepare_workers), mp_context=context, initializer=_start_worker) as pool,
        ):
            for made in pool.map(_prepare_part, jobs):
                bar.update(made)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that prepared pairs was killed, perhaps for want of memory (prepare_workers=1 needs least): the "
            "same command goes on where it stopped"
        ) from error
    return folder


def _start_worker():
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    def follow():  # a process pool's workers outlive a parent that is killed, and wait for work for ever
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _prepare_part(job):
    stem, sources, seed, first, last, region, purpose = job
    pairs = [make_pair(sources, seed, index, region, purpose) for index in range(first, last)]
    save_array(stem + ".npy", np.stack([np.stack(pair[:2]) for pair in pairs]))
    with atomic_path(stem + ".json") as temporary:  # last: its presence says that the part is complete
        temporary.write_text(json.dumps([pair[2] for pair in pairs]), encoding="utf-8")
    return last - first


def save_array(path, array):
    """Write an array as a ``.npy`` file, completely or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array)  # to a file NumPy would not say why it cannot write
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


@dataclasses.dataclass(frozen=True)
class Pair:
    """One stored pair, memory-mapped: I420 pictures `(3*region/2, region)` uint8, full range; None where unknown."""

    input: np.ndarray
    truth: np.ndarray | None
    teacher: np.ndarray | None
    description: dict


def open_pairs(folder, teacher_outputs=None):
    """List the `Pair` objects of a prepared folder in order, with the teacher's outputs, a dict of index -> file.

    Raises:
        DataError: a file is damaged.
    """
    pairs = []
    for listing in sorted(Path(folder).glob("pairs-*.json")):
        try:
            pictures = np.load(listing.with_suffix(".npy"), mmap_mode="r")
            for (damaged, truth), description in zip(pictures, json.loads(listing.read_text("utf-8")), strict=True):
                path = (teacher_outputs or {}).get(len(pairs))
                teacher = np.load(path, mmap_mode="r") if path else None
                pairs.append(Pair(damaged, truth, teacher, description))
        except (ValueError, EOFError) as error:
            raise DataError(f"the cache {folder} is damaged: remove it, and it is made anew") from error
    return pairs


def read_teacher_pairs(folder, region):
    """Cut images and a x4 teacher's outputs for them (``lr/NAME``, ``sr/NAME``) into pairs without ground truth.

    The student's input is the image enlarged with Lanczos to the size of the output and to half of it (where the
    output is shrunk too), as calls are rarely enlarged by 4.

    Raises:
        DataError: a folder or an image is missing, or sizes are not in the ratio of 1 to 4.
    """
    folder = Path(folder)
    outputs = sorted((folder / "sr").glob("*.png"))
    if not outputs:
        raise DataError(
            f"no PNG images in {folder / 'sr'}: set bsrgan_pairs to a folder with lr/ and sr/, or leave it out"
        )
    pairs = []
    for path in outputs:
        small, large = load_photo(str(folder / "lr" / path.name)), load_photo(str(path))
        height, width = small.shape[:2]
        if large.shape[:2] != (4 * height, 4 * width):
            raise DataError(f"{path} is {large.shape[1]}x{large.shape[0]}, not four times its input {width}x{height}")
        for scale in (4, 2):
            size = (scale * width, scale * height)
            pictures = [resize(small, size, "lanczos"), resize(large, size, "area") if scale < 4 else large]
            damaged, teacher = (bgr_to_planes(_pad(picture, region)) for picture in pictures)
            rows, columns = damaged[0].shape
            for top in range(0, rows - region + 1, region):
                for left in range(0, columns - region + 1, region):
                    packed = [pack_planes(*crop_planes(*planes, left, top, region)) for planes in (damaged, teacher)]
                    pairs.append(
                        Pair(packed[0], None, packed[1], {"source": path.name, "kind": "bsrgan", "scale": scale})
                    )
    return pairs


def periodic_pattern(side, rng):
    """Stripes and chequers of 1 to 6 pixels, or waves 2 to 12 long, `(side, side)` uint8, of any contrast.

    Fine cloth and dithered screens have them, photos nearly never, and to a folded network a period of its cells can
    look like damage: a student that saw none turned chequers of 2 pixels into their negative.
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


class PairDataset(Dataset):
    """Random crops of pairs, flipped and turned; an item is decided by its key alone.

    A key is a tuple of integers, the last of them the pair's index. An item is a dict of float32 planes in [0, 1]:
    ``input``, ``truth`` and ``teacher``, each `(y (1, S, S), uv (2, S/2, S/2))`, and ``known``: `(2,)`, 1 where truth
    and teacher are known (unknown ones are zero).

    Args:
        pairs: list of `Pair`.
        crop: side S in pixels.
        pattern_share: of the crops, in which a rectangle of input and truth shows the same `periodic_pattern`.
        classic_share: of the crops, whose input is made anew from the truth by `halve_with_noise`; the teacher's
            output, which is of another input, counts as unknown there.
    """

    def __init__(self, pairs, crop, pattern_share=0.0, classic_share=0.0):
        self.pairs, self.crop = pairs, crop
        self.pattern_share, self.classic_share = pattern_share, classic_share

    def __getitem__(self, key):
        pair = self.pairs[key[-1]]
        rng = np.random.default_rng(key)
        region, crop = pair.input.shape[1], self.crop
        # Any even offset: aligned crops would let the codec's block grid and the shuffle's grid coincide.
        left, top = (2 * int(rng.integers(0, (region - crop) // 2 + 1)) for _ in range(2))
        turns = rng.random(3) < 0.5
        packed = {"input": pair.input, "truth": pair.truth, "teacher": pair.teacher}
        pictures = {
            name: crop_planes(*unpack_planes(picture), left, top, crop)
            for name, picture in packed.items()
            if picture is not None
        }
        if self.pattern_share and rng.random() < self.pattern_share:
            corner, size = rng.integers(0, crop // 2, 2), rng.integers(crop // 4, crop + 1, 2)
            pattern, box = periodic_pattern(crop, rng), tuple(map(slice, corner, corner + size))
            pictures = {name: (_painted(y, pattern, box), uv) for name, (y, uv) in pictures.items()}
        elif self.classic_share and "truth" in pictures and rng.random() < self.classic_share:
            pictures["input"] = halve_with_noise(pictures["truth"], rng)
            pictures.pop("teacher", None)  # it saw another input
        known = torch.tensor([float(name in pictures) for name in ("truth", "teacher")])
        nothing = torch.zeros(1, crop, crop), torch.zeros(2, crop // 2, crop // 2)
        tensors = {name: _turned(*planes, *turns) for name, planes in pictures.items()}
        return {name: tensors.get(name, nothing) for name in packed} | {"known": known}


def _painted(y, pattern, box):
    """Luma with part of a pattern in it."""
    y = y.copy()
    y[box] = pattern[box]
    return y


def _turned(y, uv, flip, mirror, transpose):
    """Planes as float32 tensors `(C, H, W)` in [0, 1], turned as asked."""
    tensors = []
    for plane in (y[None], uv):
        plane = plane[:, ::-1] if flip else plane
        plane = plane[:, :, ::-1] if mirror else plane
        plane = plane.transpose(0, 2, 1) if transpose else plane
        tensors.append(torch.from_numpy(plane.astype(np.float32)) / 255)
    return tuple(tensors)
