"""What sharpens without PyTorch: the engine that runs a student's int8 network, and the arithmetic around it.

An engine is called with uint8 planes as video carries them and returns new ones; `difference` gives what it would add
to full-range planes of any depth. The strength is applied here and nowhere else. All of it may be called from several
threads.

`OpenVINOEngine` runs the int8 network that export.py writes beside a checkpoint, three times as fast on a CPU as
`torch_engine.TorchEngine`, which runs everywhere. `engines.make_engine` chooses.
"""

import base64
import functools
import hashlib
import io
import logging
import os
import sys
import threading
from pathlib import Path

import cv2
import numpy as np

from pipeline import in_parallel
from utils import first_line, usable_cores

log = logging.getLogger(__name__)

RELEASED_STUDENT = Path(__file__).resolve().parent / "checkpoints" / "best_student_model.pth"
# Of an int8 network's file and what it reads and writes, `fold_planes` included; raise it if any changes.
ARTEFACT_FORMAT = 6

DETAIL_GAIN = (-1, 3)  # what `steepen` may multiply detail by
DETAIL_SIGMA, DETAIL_RADIUS = 1.5, 3  # of the Gaussian that detail is what is left of
NEIGHBOURS = 7  # pixels a side of the neighbours whose range `limit_halo` hardly leaves
HALO_SHARE = 0.15  # of what leaves it that stays

# Channels of folded luma, u and v, and of their means beside them: see `fold_planes`; of gain behind a residual.
FOLDED, MEANS, GAINS = (16, 4, 4), (4, 2, 2), 4
GAIN_ZERO, GAIN_STEPS = 128, 42  # uint8 code of no gain for `steepen`, and codes for a gain of 1

# uint8 codes for a step of 1 in full-range [0, 1] planes (ITU-R BT.601 and BT.709): luma, chroma.
FULL_RANGE_SCALE = (255, 255)
LIMITED_RANGE_SCALE = (219, 224)
_STRIPE, _MARGIN = 32, 1  # cells of 4x4 pixels: rows that stay in a core's cache, and what is read above and below them
STRENGTH_LIMIT = 200  # more would do no more, and overflow 16 bits: of infinity times zero comes no number
_SIZES_KEPT = 4  # of frames, whose networks stay in memory
_BLOBS_KEPT = 64  # compiled networks on disk
_FRAMES = {"planes": sum(FOLDED) + GAINS, "cells": sum(FOLDED) + sum(MEANS)}  # inputs and their channels

_openvino_lock = threading.Lock()  # its readers change the process's locale for a moment, whatever other threads do


def in_stripes(function, rows, threads):
    """Call ``function(top, bottom)`` for stripes of so many rows of cells, shared among threads."""
    tops = range(0, rows, _STRIPE)

    def work(part):
        for top in tops[part::threads]:
            function(top, min(top + _STRIPE, rows))

    in_parallel([functools.partial(work, part) for part in range(max(1, min(threads, len(tops))))])


def refine(sharp, gain, y, threads=1):
    """Finish restored luma: `steepen` it, and `limit_halo`; in stripes on several threads, with the same result.

    Args:
        sharp: restored luma ``(H, W)`` in codes, uint8 or float32.
        gain: see `steepen`.
        y: luma as it came, of the same type.

    Returns:
        Luma of the same type.
    """
    refined = np.empty_like(sharp)

    def refine_stripe(top, bottom):
        begin = max(top - _MARGIN, 0)
        luma, chroma = (slice(size * begin, size * (bottom + _MARGIN)) for size in (4, 2))
        stripe = limit_halo(steepen(sharp[luma], gain[chroma]), y[luma])
        refined[4 * top : 4 * bottom] = stripe[4 * (top - begin) :][: 4 * (bottom - top)]

    in_stripes(refine_stripe, -(-len(y) // 4), threads)
    return refined


def steepen(y, gain):
    """`models.steepen` for video.

    Args:
        y: luma ``(H, W)`` in codes, uint8 or float32.
        gain: uint8 ``(ceil(H/2), ceil(W/2))``, coded with `GAIN_ZERO` and `GAIN_STEPS`.

    Returns:
        Luma of the same type.
    """
    dtype, kind, result = (
        (np.int16, cv2.CV_16S, cv2.CV_8U) if y.dtype == np.uint8 else (np.float32, cv2.CV_32F, cv2.CV_32F)
    )
    # NumPy where there is a scalar: OpenCV takes an array of one pixel for one, too.
    gain = np.maximum(gain, GAIN_ZERO + GAIN_STEPS * DETAIL_GAIN[0])  # it cannot be more than the greatest one
    gain = cv2.resize(gain, (2 * gain.shape[1], 2 * gain.shape[0]))[: y.shape[0], : y.shape[1]]
    gain = np.subtract(gain, GAIN_ZERO, dtype=dtype)
    side = 2 * DETAIL_RADIUS + 1
    detail = cv2.subtract(y, cv2.GaussianBlur(y, (side, side), DETAIL_SIGMA), dtype=kind)
    sharp = cv2.add(y, cv2.multiply(detail, gain, scale=1 / GAIN_STEPS), dtype=result)
    return sharp if y.dtype == np.uint8 else np.clip(sharp, 0, 255)


def limit_halo(sharp, y, share=HALO_SHARE):
    """`models.limit_halo` for video: luma ``(H, W)``, both uint8 or both float32; `share` of the halo stays."""
    window = np.ones((NEIGHBOURS, NEIGHBOURS), np.uint8)
    inside = cv2.min(cv2.max(sharp, cv2.erode(y, window)), cv2.dilate(y, window))
    return cv2.addWeighted(inside, 1 - share, sharp, share, 0)


class CheckpointError(RuntimeError):
    """A checkpoint file is missing or is not what it should be. The message says what to do."""


class DeviceError(RuntimeError):
    """The device that was asked for is not there, or cannot run this student."""


class ArtefactError(DeviceError):
    """The int8 network is missing, belongs to another student, or fails here. The message says what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# OpenVINO


def artefact_path(checkpoint):
    """Where the int8 network of a checkpoint is looked for: ``NAME.int8.onnx`` beside ``NAME.pth``."""
    return Path(checkpoint).with_suffix(".int8.onnx")


def existing_checkpoint(path):
    """A checkpoint's path as a `Path`; raises `CheckpointError` if there is no such file."""
    if not Path(path).is_file():
        raise CheckpointError(f"no checkpoint at {path}: train one with `python train.py` or name another")
    return Path(path)


def checkpoint_digest(path):
    """SHA-256 of a checkpoint's file, as hexadecimal digits."""
    return hashlib.sha256(existing_checkpoint(path).read_bytes()).hexdigest()


def probe_planes():
    """A small full-range picture ``(y, uv)`` on which an int8 network is compared with its student."""
    rng = np.random.default_rng(0)
    y = cv2.resize(rng.integers(64, 192, (16, 16), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    return y, np.stack([cv2.resize(rng.integers(96, 160, (8, 8), dtype=np.uint8), (32, 32)) for _ in range(2)])


def network_notes(checkpoint, answer):
    """What an int8 network's file has to say of itself, as a dict of strings.

    Args:
        checkpoint: the student's file.
        answer: ``(dy, duv)``, the student's `difference` for `probe_planes` in float32.
    """
    codes = b"".join(plane.tobytes() for plane in answer)
    notes = {"format": str(ARTEFACT_FORMAT), "checkpoint": checkpoint_digest(checkpoint)}
    return notes | {"answer": base64.b64encode(codes).decode()}


def pad_planes(y, uv):
    """Repeat the edges of planes until the sides of luma are multiples of 8; returns ``y, u, v`` with dense rows."""
    height, width = (side + -side % 8 for side in y.shape)
    return [_fit(plane, height // fold, width // fold) for plane, fold in ((y, 1), (uv[0], 2), (uv[1], 2))]


def fold_planes(y, u, v, planes=None, cells=None, threads=1):
    """Fold a frame as the student's int8 network reads it, channels last.

    The planes are what it adds its residual to, and, where it puts its gain, no gain. What it sees has their local
    means (`models.local_mean`) behind them, rounded to codes, four times for luma and twice for each chroma: see
    `export.QuantisedHead`. They are computed here and not in the network, where they would take a third of its time.

    Args:
        y, u, v: uint8 arrays ``(H, W)``, ``(H/2, W/2)`` and the same again, from `pad_planes`.
        planes, cells: arrays to fill; None makes new ones.
        threads: how many work at the same time.

    Returns:
        uint8 arrays: planes ``(H/4, W/4, 28)``, 16 channels of luma (rows, then columns, of 4x4 pixels), 4 of each
        chroma and 4 of `GAIN_ZERO`; cells ``(H/4, W/4, 32)``.
    """
    rows, columns = y.shape[0] // 4, y.shape[1] // 4
    if planes is None:
        planes, cells = (np.empty((rows, columns, channels), np.uint8) for channels in _FRAMES.values())

    def fold_stripe(top, bottom):
        begin = max(top - _MARGIN, 0)
        quads = _quads(*_stripe((y, u, v), top, bottom))
        means = [
            quad[top - begin :][: bottom - top] for quad in _mean_quads(*_stripe((y, u, v), begin, bottom + _MARGIN))
        ]
        no_gain = np.full((*quads[0].shape, GAINS), GAIN_ZERO, np.uint8).view(np.int32)[..., 0]
        cv2.merge([*quads, no_gain], planes.view(np.int32)[top:bottom])
        cv2.merge(quads + means, cells.view(np.int32)[top:bottom])

    in_stripes(fold_stripe, rows, threads)
    return planes, cells


def _stripe(planes, top, bottom):
    """The rows of luma and chroma planes that rows of cells are made of."""
    return [plane[size * top : size * bottom] for plane, size in zip(planes, (4, 2, 2), strict=True)]


def _quads(y, u, v):
    """The channels of folded planes, four at a time, as int32 arrays `(H/4, W/4)`, which are moved faster."""
    chroma = [cv2.merge([plane[row::2].view(np.uint16) for row in range(2)]) for plane in (u, v)]  # (H/4, W/4, 2)
    return [y[row::4].view(np.int32) for row in range(4)] + [pair.view(np.int32)[..., 0] for pair in chroma]


def _mean_quads(y, u, v):
    """The channels of means behind them, likewise."""
    size = (y.shape[1] // 4, y.shape[0] // 4)
    halved = cv2.resize(y, (2 * size[0], 2 * size[1]), interpolation=cv2.INTER_AREA)  # twice is faster than by 4
    means = [_mean_3x3(cv2.resize(plane, size, interpolation=cv2.INTER_AREA)) for plane in (halved, u, v)]
    channels = [mean for mean, count in zip(means, MEANS, strict=True) for _ in range(count)]
    return [cv2.merge(channels[i : i + 4]).view(np.int32)[..., 0] for i in range(0, len(channels), 4)]


def _mean_3x3(cells):
    """Means of 3x3 cells, at an edge of the 2x3 that are there: half way between its two kinds of continuation."""
    borders = cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101
    return cv2.addWeighted(*(x for border in borders for x in (cv2.blur(cells, (3, 3), borderType=border), 0.5)), 0)


def unfold_planes(folded, height, width, threads=1):
    """The inverse of `fold_planes`: new arrays ``y (H, W)``, ``uv (2, ceil(H/2), ceil(W/2))``, the gain likewise."""
    rows, columns = folded.shape[:2]
    y, halves = np.empty((rows, 4, columns), np.int32), np.empty((3, rows, 2, columns), np.uint16)

    def unfold_stripe(top, bottom):
        stripe = folded[top:bottom]
        y[top:bottom] = stripe.view(np.int32)[..., :4].transpose(0, 2, 1)
        pairs = stripe.view(np.uint16)[..., 8:].reshape(bottom - top, columns, 3, 2)
        halves[:, top:bottom] = pairs.transpose(2, 0, 3, 1)

    in_stripes(unfold_stripe, rows, threads)
    luma, halved = y.view(np.uint8).reshape(4 * rows, 4 * columns), halves.view(np.uint8).reshape(3, 2 * rows, -1)
    halved = halved[:, : (height + 1) // 2, : (width + 1) // 2]
    return tuple(np.ascontiguousarray(plane) for plane in (luma[:height, :width], halved[:2], halved[2]))


def _fit(plane, height, width):
    """A plane as rows without gaps between pixels, its edge repeated to the given size."""
    if plane.shape != (height, width):
        bottom, right = height - plane.shape[0], width - plane.shape[1]
        return cv2.copyMakeBorder(plane, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return plane if plane.strides[1] == 1 else np.ascontiguousarray(plane)


class OpenVINOEngine:
    """Runs the int8 network of a student with OpenVINO.

    The network is compiled for a size of frames when the first one comes; the last four sizes are kept in memory, and
    compiled networks in the user's cache. Calls from several threads take turns.

    Args:
        checkpoint: the student's file; beside it lies the network that export.py made of it, see `artefact_path`.
        device: ``"CPU"``, ``"GPU"``, ``"NPU"`` or another name that OpenVINO knows.
        threads: of the CPU; None takes what OpenVINO takes, one per core, but no more than the process may use.

    Attributes:
        device, description, identity: see `torch_engine.TorchEngine`; the device is OpenVINO's name of it.

    Raises:
        ArtefactError: OpenVINO is not installed, or the network is missing, was made from another checkpoint or does
            not work.
        CheckpointError: the checkpoint is missing.
        DeviceError: OpenVINO does not find the device.
    """

    def __init__(self, checkpoint, device="CPU", threads=None):
        # Importing OpenVINO tells its makers so over the network, unless what does that is missing.
        sys.modules.setdefault("openvino_telemetry", None)
        try:
            import openvino.frontend  # noqa: F401
        except ImportError as error:
            raise ArtefactError(f"OpenVINO cannot be imported ({first_line(error)}): pip install openvino") from error
        self.device, path = device, artefact_path(checkpoint)
        self._lock, self._threads = threading.Lock(), threads or usable_cores()
        properties = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU" and (threads or self._threads < os.cpu_count()):  # OpenVINO does not know of quotas
            properties["INFERENCE_NUM_THREADS"] = self._threads
        if folder := _cache_folder():
            properties["CACHE_DIR"] = str(folder)
        try:
            with _openvino_lock:  # one thread makes the core
                _check_device(device)
            network, answer = _read_network(path, checkpoint)
            compiled = functools.partial(_FrameNetwork, network, device, properties)
            self._network_for = functools.lru_cache(_SIZES_KEPT)(compiled)
            self._test(answer)
        except (CheckpointError, DeviceError):
            raise
        except Exception as error:  # OpenVINO's own and its readers', of many kinds
            raise ArtefactError(f"OpenVINO cannot run {path} on {device} ({first_line(error)})") from error
        self.description = f"openvino {device} int8"
        self.identity = f"{self.description} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        log.info("%s (%s)", self.description, path)

    def __call__(self, y, uv, full_range=False, strength=1.0):
        """Sharpen the planes of a video frame: see `TorchEngine.__call__`."""
        if strength == 0:
            return y.copy(), uv.copy()
        sharp, uv, gain = self._infer(y, uv, FULL_RANGE_SCALE if full_range else LIMITED_RANGE_SCALE, strength, keep=1)
        return refine(sharp, gain, y, self._threads), uv

    def difference(self, y, uv, strength=1.0):
        """What sharpening would add: see `TorchEngine.difference`. The network sees floats rounded to 8 bits."""
        if y.dtype == np.uint8:
            dy, duv, gain = self._infer(y, uv, FULL_RANGE_SCALE, strength, keep=0)
            sharp = refine(cv2.addWeighted(y, 1, dy, 1, -128), gain, y, self._threads)
            return cv2.addWeighted(sharp, 1, y, -1, 128), duv
        rounded = (np.rint(255 * plane).astype(np.uint8) for plane in (y, uv))
        dy, duv, gain = self._infer(*rounded, FULL_RANGE_SCALE, strength, keep=0)
        codes, middle = 255 * y, np.float32(128)
        sharp = refine(np.clip(codes + (dy - middle), 0, 255), gain, codes, self._threads)
        return (sharp - codes) / 255, (duv - middle) / 255

    def _infer(self, y, uv, scale, strength, keep):
        """Restored uint8 planes, or with `keep` 0 what is added to them around 128, and the gain for `steepen`."""
        amount = min(strength, STRENGTH_LIMIT) * np.repeat(np.float32([*scale, 255]), (16, 8, GAINS)) / 255
        with self._lock:
            padded = pad_planes(y, uv)
            network = self._network_for(*(side // 4 for side in padded[0].shape))
            fold_planes(*padded, network.planes, network.cells, self._threads)
            network.infer(stretch=255 / scale[0], amount=amount, keep=keep)
            return unfold_planes(network.sharp, *y.shape, self._threads)  # copied: the next call overwrites it

    def _test(self, answer):
        """Compare with the student's answer for `probe_planes`, so that a device which computes another is not used."""
        found = np.concatenate([plane.ravel() for plane in self.difference(*probe_planes())]).astype(float)
        error, size = np.abs(found - answer).mean(), np.abs(answer - 128.0).mean()
        if not error <= 0.5 + 0.25 * size:
            raise ArtefactError(f"it is wrong by {error:.2f} codes where the student changes {size:.2f}")


def _check_device(device):
    """Raise `DeviceError` if OpenVINO finds no device of this name."""
    found = _core().available_devices
    if device not in {*found, *(name.split(".")[0] for name in found)}:
        known = ", ".join(f"openvino:{name}" for name in found)
        raise DeviceError(f"OpenVINO finds no device {device!r} on this machine: use auto, {known}")


def _read_network(path, checkpoint):
    """Read the network if it was made from this checkpoint and for this version, and the student's answer.

    The file may come from a stranger. ONNX holds no code, but may name other files; OpenVINO would take other formats,
    too, whatever the name, and not all of them are harmless to read.
    """
    import openvino.frontend

    advice = "make it with `pip install -r requirements-dev.txt` and `python export.py CHECKPOINT`"
    if not path.is_file():
        raise ArtefactError(f"there is no int8 network at {path}: {advice}")
    content = path.read_bytes()
    if b"location" in content:  # ONNX's word before the name of a file in which weights lie
        raise ArtefactError(f"{path} wants weights from another file, which is refused: {advice}")
    with _openvino_lock:
        reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        network = reader.convert(reader.load(io.BytesIO(content)))
    notes = network.get_rt_info(["framework"]).value
    if notes.get("format") != str(ARTEFACT_FORMAT):
        raise ArtefactError(f"{path} was made for another version of this program: {advice}")
    if notes.get("checkpoint") != checkpoint_digest(checkpoint):
        raise ArtefactError(f"{path} was made from another checkpoint than {checkpoint}: {advice}")
    return network, np.frombuffer(base64.b64decode(notes["answer"]), np.uint8)


class _FrameNetwork:
    """The network compiled for one size of frames, and the arrays that it reads and writes.

    Attributes:
        planes, cells: uint8 arrays ``(rows, columns, 28)`` and ``(rows, columns, 32)``: a frame, folded.
        sharp: what the network made of it, like `planes`.
    """

    def __init__(self, network, device, properties, rows, columns):
        import openvino

        network = network.clone()
        network.reshape({name: [1, rows, columns, channels] for name, channels in _FRAMES.items()})
        with _openvino_lock:
            self._request = _core().compile_model(network, device, properties).create_infer_request()
        self.planes, self.cells = (np.zeros((rows, columns, channels), np.uint8) for channels in _FRAMES.values())
        self.sharp = np.zeros_like(self.planes)
        sizes = {"stretch": 1, "amount": _FRAMES["planes"], "keep": 1}
        self._parameters = {name: np.zeros((1, 1, 1, size), np.float32) for name, size in sizes.items()}
        arrays = {"planes": self.planes[None], "cells": self.cells[None], "sharp": self.sharp[None]}
        for name, array in (arrays | self._parameters).items():
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def infer(self, **parameters):
        """Make `sharp` of `planes` and `cells`, with numbers or arrays for the network's float inputs."""
        for name, value in parameters.items():
            self._parameters[name][...] = value
        self._request.infer()


@functools.cache
def _core():
    """OpenVINO's core, one for the whole process and until its end.

    Each core gives the thread that first uses its CPU device another stack for signal handlers, and takes it away when
    it is dropped. Where cores are not dropped in the reverse order, or in another thread, that leaves the thread with a
    stack that is gone, and the next Ctrl-C ends the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _cache_folder():
    """The user's folder for compiled networks, or None if it cannot be written: the cache only saves time.

    What was written longest ago is removed from it: each size of frames leaves a file of 0.2 MB.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(root) / "realtime-sharpener" / "openvino"
        folder.mkdir(parents=True, exist_ok=True)
        for blob in sorted(folder.glob("*.blob"), key=os.path.getmtime)[:-_BLOBS_KEPT]:
            blob.unlink(missing_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return folder if os.access(folder, os.W_OK) else None
