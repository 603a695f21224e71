"""What a camera and a call do to a picture: optics, sensor, scaling, noise, JPEG, real video codecs.

Training pairs and the benchmark are made by the same functions. Images are uint8 arrays `(H, W)` or `(H, W, 3)`, planes
`(y, uv)` are as in utils.py, and a clip is a list of planes. Randomness comes from the generator that is passed in.
"""

import dataclasses
from fractions import Fraction

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np
from PIL import Image

from utils import first_line, open_encoder, to_full_range, to_limited_range, unsharp

FRAME_RATE = 25  # told to encoders


class DataError(RuntimeError):
    """Data is missing or unreadable. The message says which and what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# Degradations of an image (H, W) or (H, W, 3), uint8 in and out


def resize(image, size, kernel="lanczos"):
    """Resample to `size` = (width, height) without aliasing; kernels: area, bilinear, bicubic, lanczos (3 lobes)."""
    method = Image.Resampling["BOX" if kernel == "area" else kernel.upper()]
    return np.asarray(Image.fromarray(image).resize(size, method))


def add_noise(image, sigma, rng):
    """Add Gaussian noise of standard deviation `sigma` (in 255ths), independent in each channel."""
    return np.clip(np.rint(image + rng.normal(0, sigma, image.shape)), 0, 255).astype(np.uint8)


def blur(image, sigma):
    """Blur with a Gaussian of standard deviation `sigma` in pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def jpeg(image, quality):
    """Compress with JPEG at `quality` (1-100) and decompress."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)


# ----------------------------------------------------------------------------------------------------------------------
# Degradations of planes and clips (lists of planes)


def resample_planes(y, uv, size, kernel="lanczos"):
    """Resample planes to luma `size` = (width, height), plane by plane as video scalers do."""
    width, height = size
    chroma_size = ((width + 1) // 2, (height + 1) // 2)
    return resize(y, size, kernel), np.stack([resize(plane, chroma_size, kernel) for plane in uv])


def low_resolution(size, scale):
    """Return the even (width, height) of `size` scaled down by `scale`; encoders need even sides."""
    return tuple(2 * max(1, round(side / scale / 2)) for side in size)


def each_plane(planes, function, *arguments):
    """Apply a degradation of images to luma and to each chroma plane."""
    y, uv = planes
    return function(y, *arguments), np.stack([function(plane, *arguments) for plane in uv])


def crop_planes(y, uv, left, top, side):
    """Cut a square of even `left`, `top` and `side` out of planes."""
    x, row, half = left // 2, top // 2, side // 2
    return y[top : top + side, left : left + side], uv[:, row : row + half, x : x + half]


def at_scale(planes, scale, damage):
    """Shrink planes by `scale` with a bicubic kernel, apply `damage` to ``(y, uv)``, enlarge with Lanczos."""
    size = planes[0].shape[::-1]
    small = resample_planes(*planes, low_resolution(size, scale), "bicubic")
    return resample_planes(*damage(small), size)


def halve_with_noise(planes, rng):
    """Add noise of sigma 2/255 at half the size: super-resolution's classic condition, the benchmark's default."""
    return at_scale(planes, 2, lambda small: each_plane(small, add_noise, 2, rng))


@dataclasses.dataclass(frozen=True)
class Codec:
    """How a call uses a codec: FFmpeg's encoder and decoder, and the encoder's low-delay options."""

    encoder: str
    decoder: str
    quantisers: tuple  # range of constant quantisers, from lightest to heaviest damage
    options: dict  # always set
    constant: dict  # set for a constant quantiser {qp}
    controlled: dict  # set for rate control at {kbps} kbit/s with a buffer of one second


X265 = "log-level=none:pools=none:frame-threads=1"
AV1 = "pred-struct=1:rtc=1:lp=1"
BUFFERED = {"b": "{kbps}k", "maxrate": "{kbps}k", "bufsize": "{kbps}k"}
VPX = {"deadline": "realtime", "lag-in-frames": "0"}
# libvpx needs a bit rate beside its quantisers: a ceiling that is never reached.
VPX_RATES = {"qmin": "{qp}", "qmax": "{qp}", "b": "50M"}, {"minrate": "{kbps}k", **BUFFERED}
CODECS = {
    "x264": Codec("libx264", "h264", (16, 40), {"preset": "veryfast", "tune": "zerolatency"}, {"qp": "{qp}"}, BUFFERED),
    "x265": Codec(
        "libx265",
        "hevc",
        (16, 40),
        {"preset": "ultrafast", "tune": "zerolatency"},
        {"x265-params": "qp={qp}:" + X265},
        {"x265-params": "bitrate={kbps}:vbv-maxrate={kbps}:vbv-bufsize={kbps}:" + X265},
    ),
    "vp8": Codec("libvpx", "vp8", (8, 58), {**VPX, "cpu-used": "-6"}, *VPX_RATES),
    "vp9": Codec("libvpx-vp9", "vp9", (14, 58), {**VPX, "cpu-used": "7"}, *VPX_RATES),
    "av1": Codec(
        "libsvtav1",
        "libdav1d",
        (18, 60),
        {"preset": "10"},
        {"qp": "{qp}", "svtav1-params": AV1},
        {"b": "{kbps}k", "svtav1-params": "rc=2:" + AV1},
    ),
}


def encode_clip(clip, codec, qp=None, kbps=None, rate=FRAME_RATE):
    """Encode a clip of even size with a real codec at low delay, repeatably (in one thread); return packets as bytes.

    Args:
        codec: a key of `CODECS`.
        qp: the codec's own constant quantiser, or None.
        kbps: kbit/s for the encoder's rate control, if `qp` is None.

    Raises:
        DataError: the codec does not take frames of this size; some are too small for AV1 and x265.
    """
    profile = CODECS[codec]
    options = profile.options | (profile.controlled if qp is None else profile.constant)
    height, width = clip[0][0].shape
    encoder = av.CodecContext.create(profile.encoder, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, rate), Fraction(rate)
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = 600, 0, 1
    encoder.options = {key: value.format(qp=qp, kbps=kbps) for key, value in options.items()}
    try:
        open_encoder(encoder)
    except av.FFmpegError as error:
        raise DataError(f"{codec} cannot encode frames of {width}x{height} ({first_line(error)})") from error
    packets = []
    for pts, planes in enumerate(clip):
        frame = av.VideoFrame.from_ndarray(pack_planes(*planes), format="yuv420p")
        frame.pts = pts
        packets += encoder.encode(frame)
    return [bytes(packet) for packet in [*packets, *encoder.encode(None)]]


def decode_clip(packets, codec):
    """Decode packets of `encode_clip` to a list of planes."""
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
# The camera


def animate(photo, count, size, velocity, rng):
    """Pan over a photo with sub-pixel motion: a list of `count` frames, the last of them an exact crop.

    Args:
        photo: `(H, W, 3)` uint8, at least as large as `size`.
        size: (height, width) of the frames.
        velocity: (x, y) in pixels a frame.
        rng: chooses where the pan ends.
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


@dataclasses.dataclass(frozen=True)
class SimulatedCamera:
    """What a camera does to a crisp scene before encoding. The defaults do nothing.

    In this order: the lens blurs, the scene moves during the exposure, the sensor, which has fewer pixels than the
    frame, adds noise, the denoiser smears, the sharpener overshoots, and the picture is enlarged to the frame.
    """

    lens: str = "gaussian"  # point spread function, or "disc"
    blur: float = 0.0  # its standard deviation in pixels; 0 is a perfect lens
    stretch: float = 1.0  # the Gaussian's standard deviation in the direction of `angle`, relative to `blur`
    motion: float = 0.0  # pixels that the scene moves in the direction of `angle` during the exposure
    angle: float = 0.0  # in radians
    crop: float = 1.0  # factor by which the sensor's pixels are enlarged to the frame
    upscaler: str = "bicubic"  # kernel for that, see `resize`
    noise: float = 0.0  # standard deviation of the sensor's noise, in 255ths
    denoise: float = 0.0  # strength of the bilateral denoiser, relative to the noise
    sharpen: float = 0.0  # amount of the camera's own unsharp mask
    radius: float = 1.0  # its standard deviation in pixels

    @property
    def is_soft(self):
        """Whether the frame holds visibly less detail than its size allows."""
        return self.blur >= 0.4 or self.crop >= 1.15 or self.motion >= 2

    def __call__(self, clip, rng):
        """Return the clip as the camera sees it; each frame gets its own noise, drawn from `rng`."""
        return [self._expose(planes, rng) for planes in clip]

    def _expose(self, planes, rng):
        size = planes[0].shape[::-1]
        kernels = [self._kernel(size) for size in (1, 0.5)]  # of luma, and of chroma with half the pixels
        if kernels[0] is not None:
            y, uv = planes
            planes = cv2.filter2D(y, -1, kernels[0]), np.stack([cv2.filter2D(plane, -1, kernels[1]) for plane in uv])
        if self.crop > 1:
            planes = resample_planes(*planes, low_resolution(size, self.crop), "area")
        if self.noise:
            planes = each_plane(planes, add_noise, self.noise, rng)
        if self.denoise:
            spread = max(1.0, 3 * self.denoise * self.noise)
            planes = each_plane(planes, lambda plane: cv2.bilateralFilter(plane, 5, spread, 1.5 + self.denoise))
        if self.sharpen:
            planes = unsharp(planes[0], self.sharpen, self.radius), planes[1]
        return resample_planes(*planes, size, self.upscaler) if self.crop > 1 else planes

    def _kernel(self, size):
        """Point spread function of lens and motion, `(S, S)` float32, scaled by `size`; None if it is a point."""
        lens = blur_kernel(self.lens, size * self.blur, self.stretch, self.angle)
        motion = motion_kernel(size * self.motion, self.angle)
        if lens is None or motion is None:
            return motion if lens is None else lens
        margin = motion.shape[0] // 2
        return cv2.filter2D(np.pad(lens, margin), -1, motion, borderType=cv2.BORDER_CONSTANT)


def blur_kernel(lens, sigma, stretch=1.0, angle=0.0):
    """Return a lens's point spread function (see `SimulatedCamera`), `(S, S)` float32 of sum 1; None if it is perfect.

    A ``"disc"`` is out of focus; its radius of twice `sigma` gives it the standard deviation `sigma` in each direction.
    """
    if sigma <= 0:
        return None
    radius = int(np.ceil(3 * sigma * max(1, stretch)))
    fine = np.arange(-radius - 0.5 + 0.125, radius + 0.5, 0.25)  # four samples a pixel
    across, down = np.meshgrid(fine, fine)
    along = (across * np.cos(angle) + down * np.sin(angle)) / stretch
    beside = down * np.cos(angle) - across * np.sin(angle)
    squared = (along**2 + beside**2) / sigma**2
    kernel = (squared <= 4) if lens == "disc" else np.exp(-squared / 2)
    side = 2 * radius + 1
    kernel = kernel.reshape(side, 4, side, 4).mean(axis=(1, 3), dtype=np.float32)
    return kernel / kernel.sum()


def motion_kernel(length, angle):
    """Return the blur of a scene that moves `length` pixels during the exposure, `(S, S)` float32 with sum 1."""
    if length <= 0:
        return None
    radius = int(np.ceil(length / 2))
    kernel = np.zeros((2 * radius + 2,) * 2, np.float32)  # the last row and column stay empty
    steps = np.linspace(-length / 2, length / 2, 8 * radius + 1)
    for across, down in zip(radius + steps * np.cos(angle), radius + steps * np.sin(angle), strict=True):
        left, top = int(across), int(down)  # bilinear: each point is shared by four pixels
        shares = np.outer((top + 1 - down, down - top), (left + 1 - across, across - left))
        kernel[top : top + 2, left : left + 2] += shares
    kernel = kernel[:-1, :-1].copy()
    return kernel / kernel.sum()


def draw_camera(rng, soft):
    """Draw a `SimulatedCamera`: a soft one as built into laptops and old telephones, or a crisp one."""
    if not soft:
        return SimulatedCamera(
            noise=rng.uniform(0.5, 2) * (rng.random() < 0.4),
            sharpen=rng.uniform(0.1, 0.4) * (rng.random() < 0.25),
            radius=rng.uniform(0.7, 1.2),
        )
    enlarged = rng.random() < 0.5
    blurred = not enlarged or rng.random() < 0.4
    noisy = rng.random() < 0.4
    moving = rng.random() < 0.12
    return SimulatedCamera(
        lens=str(rng.choice(["gaussian", "disc"], p=[0.75, 0.25])),
        blur=rng.uniform(0.4, 1.0 if enlarged else 1.6) * blurred,
        stretch=rng.uniform(0.7, 1.4) if rng.random() < 0.4 else 1.0,
        motion=rng.uniform(2, 6) * moving,
        angle=rng.uniform(0, np.pi),
        crop=rng.uniform(1.15, 2) if enlarged else 1.0,
        upscaler=str(rng.choice(["bicubic", "bilinear", "lanczos"], p=[0.5, 0.3, 0.2])),
        noise=rng.uniform(1, 8) * noisy,
        denoise=rng.uniform(0.5, 1.5) * noisy,
        sharpen=rng.uniform(0.2, 1.0) * (rng.random() < 0.25),
        radius=rng.uniform(0.8, 1.6),
    )


# ----------------------------------------------------------------------------------------------------------------------
# Random degradations


def degrade_call(clip, rng):
    """Degrade a crisp clip as a call does: a camera, perhaps JPEG, perhaps fewer pixels, a codec, enlarging.

    Returns ``(planes, description)`` of the last frame; ``soft`` says whether it has less detail than its size allows.
    """
    size = clip[0][0].shape[::-1]
    camera = draw_camera(rng, soft=rng.random() < 0.7)
    scale = float(rng.choice([1.0, 1.5, 2.0, 3.0, 4.0], p=[0.45, 0.12, 0.24, 0.11, 0.08]))
    small = low_resolution(size, scale)
    description = {"scale": scale, "soft": scale > 1 or camera.is_soft, "camera": dataclasses.asdict(camera)}
    clip = camera(clip, rng)
    if rng.random() < 0.15:  # many webcams send JPEG
        description["jpeg"] = int(rng.integers(60, 96))
        clip = [each_plane(planes, jpeg, description["jpeg"]) for planes in clip]
    if scale > 1:
        description["down"] = str(rng.choice(["bicubic", "area", "bilinear"], p=[0.45, 0.35, 0.2]))
        clip = [resample_planes(*planes, small, description["down"]) for planes in clip]
    if rng.random() < 0.9:
        rate = _draw_rate(small, rng)
        description |= rate
        limited = codec_roundtrip([to_limited_range(*planes) for planes in clip], **rate)  # which calls send
        clip = [to_full_range(*planes) for planes in limited]
    damaged = clip[-1] if scale == 1 else resample_planes(*clip[-1], size, _random_upscaler(rng))
    return damaged, description


def _draw_rate(size, rng):
    """Draw a codec, and a constant quantiser or (for a third) a bit rate: arguments of `codec_roundtrip`."""
    codec = str(rng.choice(list(CODECS), p=[0.44, 0.15, 0.13, 0.16, 0.12]))
    if rng.random() < 0.33:
        bits = 10 ** rng.uniform(-2, -0.5)  # for a pixel of a frame
        return {"codec": codec, "kbps": max(10, round(bits * size[0] * size[1] * FRAME_RATE / 1000))}
    lightest, heaviest = CODECS[codec].quantisers
    return {"codec": codec, "qp": int(rng.integers(lightest, heaviest + 1))}


def degrade_image(truth, rng):
    """Degrade planes as in super-resolution: blur, shrink, noise, JPEG, enlarge; returns ``(planes, description)``."""
    classic = rng.random() < 0.35
    scale = rng.choice([1.0, 2.0, rng.uniform(1, 4)], p=[0.1, 0.6, 0.3])
    down = str(rng.choice(["bicubic", "area", "bilinear"], p=[0.5, 0.3, 0.2]))
    sigma_blur = rng.uniform(0.3, 1.5) if rng.random() < 0.25 else 0.0
    sigma_noise = rng.choice([0.0, 2.0, rng.uniform(0, 8)], p=[0.2, 0.5, 0.3])
    quality = int(rng.integers(40, 98)) if rng.random() < 0.4 else 0
    up = _random_upscaler(rng)
    if classic:
        scale, down, sigma_blur, sigma_noise, quality, up = 2.0, "bicubic", 0.0, rng.uniform(1, 3), 0, "lanczos"

    y, uv = truth
    size = y.shape[::-1]
    if sigma_blur:
        y, uv = blur(y, sigma_blur), np.stack([blur(plane, sigma_blur / 2) for plane in uv])
    y, uv = resample_planes(y, uv, low_resolution(size, scale), down)
    if sigma_noise:
        grey = rng.random() < 0.4
        y = add_noise(y, sigma_noise, rng)
        uv = uv if grey else add_noise(uv, sigma_noise, rng)
    if quality:
        y, uv = each_plane((y, uv), jpeg, quality)
    damaged = resample_planes(y, uv, size, up)
    return damaged, {"scale": float(scale), "soft": False, "down": down, "noise": float(sigma_noise), "jpeg": quality}


def _random_upscaler(rng):
    return str(rng.choice(["lanczos", "bicubic", "bilinear"], p=[0.65, 0.2, 0.15]))
