"""What sharpens without PyTorch: the engine that runs a student's int8 network, and the arithmetic around it.

An engine is called with uint8 planes as video carries them and returns new ones; `difference` gives what it would add
to full-range planes of any depth. The strength is applied here and nowhere else. All of it may be called from several
threads.

`OpenVINOEngine` runs the int8 network that export.py writes beside a checkpoint, several times as fast on a CPU as
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
ARTEFACT_FORMAT = 8

DETAIL_GAIN = (-1, 5)  # limits of the gain that `steepen` takes
COARSE_SHARE, FINE_SHARE = 0.75, 1.5  # of the gain, for coarse detail and for all detail
FINE_THRESHOLD, FINE_LIMIT = 0.1, 0.15  # soft threshold of the latter, and its upper limit
_KEPT_STEPS = 128  # of `detail_shares`
DETAIL_SIGMA, DETAIL_RADIUS = 0.9, 2  # of the Gaussian blur at half the size; detail is what it takes
NEIGHBOURS = 7  # pixels a side of the neighbours whose range `limit_halo` hardly leaves
HALO_SHARE = 0.19  # of what leaves it that stays
AVERAGED = 0.7  # of a small change that `steady` takes away
NOISE_RANGE, NOISE_QUANTILE = (0.6, 2.5), 0.1  # codes; the share of a frame in which nothing moves
SMALL, MOVED = 8, 2  # times the noise (see `_noise`): changes of a pixel, and in the mean around it

# Channels of folded planes (y, u, v), of their means beside them (see `fold_planes`), of the gain after the residual,
# and unused ones after that: a convolution to 32 channels takes two thirds of the time of one to 28.
FOLDED, MEANS, GAINS, UNUSED = (16, 4, 4), (4, 2, 2), 4, 4
CHANNELS = 32  # of what the network reads and writes
RESIDUAL_STEPS = 2  # of the int8 network for a code: half codes, so that what is faint can be told from nothing
FAINT = 0.45  # codes: soft threshold of the residual; smaller ones are rounding noise, which flickers on walls
GAIN_STEPS = 42  # codes for a gain of 1; those of the int8 network end at a gain of 3

# uint8 codes for a step of 1 in full-range [0, 1] planes (ITU-R BT.601 and BT.709): luma, chroma.
FULL_RANGE_SCALE = (255, 255)
LIMITED_RANGE_SCALE = (219, 224)
_STRIPE, _MARGIN = 72, 2  # cells of 4x4 pixels: most rows of a stripe, and what is read above and below it
STRENGTH_LIMIT = 200  # more has no further effect and would overflow 16 bits; infinity times zero is NaN
_SIZES_KEPT = 4  # of frames, whose networks stay in memory
_BLOBS_KEPT = 64  # compiled networks on disk

_openvino_lock = threading.Lock()  # its readers change the process's locale for a moment, whatever other threads do


def in_stripes(function, rows, threads):
    """Call ``function(top, bottom)`` for stripes of so many rows of cells, as many for each thread."""
    each = -(-rows // (threads * _STRIPE))  # stripes for a thread
    height = -(-rows // (threads * each))
    tops = range(0, rows, height)

    def work(part):
        for top in tops[part::threads]:
            function(top, min(top + height, rows))

    in_parallel([functools.partial(work, part) for part in range(min(threads, len(tops)))])


def steepen(y, added, kept):
    """`models.steepen` for video.

    Args:
        y: luma ``(H, W)`` in codes, uint8 or float32.
        added, kept: ``(ceil(H/2), ceil(W/2))`` from `detail_shares`.

    Returns:
        Luma of the same type.
    """
    rows, columns = added.shape
    half = _halved(_fit(y, 2 * rows, 2 * columns))
    smooth = cv2.GaussianBlur(half, [2 * DETAIL_RADIUS + 1] * 2, DETAIL_SIGMA, borderType=cv2.BORDER_REPLICATE)
    half -= smooth  # in place, here and below: new memory costs more than arithmetic
    half *= added
    half += smooth
    steep = np.clip(half, 0, 255, out=half)
    if y.dtype == np.uint8:
        smooth, steep = cv2.convertScaleAbs(smooth), cv2.convertScaleAbs(steep)
    smooth, steep, kept = (_doubled(plane)[: y.shape[0], : y.shape[1]] for plane in (smooth, steep, kept))
    if y.dtype != np.uint8:
        return np.clip(steep + kept / np.float32(_KEPT_STEPS) * (y - smooth), 0, 255)
    # The size and the sign of detail apart, as uint8: OpenCV computes that in less than half of the time of int16.
    change = cv2.absdiff(y, smooth)
    above = cv2.compare(y, smooth, cv2.CMP_GT, dst=smooth)
    change = cv2.multiply(change, kept, dst=change, scale=1 / _KEPT_STEPS)
    lower, higher = cv2.subtract(steep, change, dst=kept), cv2.add(steep, change, dst=steep)
    return cv2.copyTo(higher, above, lower)


def detail_shares(gain):
    """What gains mean to `steepen`: how much of coarse detail is added, and how much of all detail is kept.

    Returns:
        ``(added, kept)`` of the shape of `gain`, float32 and uint8 in steps of 1/128.
    """
    gain = np.clip(gain, *DETAIL_GAIN)
    fine = np.sign(gain) * np.maximum(FINE_SHARE * np.abs(gain) - FINE_THRESHOLD, 0)
    added, kept = COARSE_SHARE * np.maximum(gain, 0), 1 + np.clip(fine, -1, FINE_LIMIT)
    return added.astype(np.float32), np.rint(_KEPT_STEPS * kept).astype(np.uint8)


def scale_gain(gain, strength):
    """Multiply a gain, array or tensor, by the strength: a negative one by at least 1 from a strength of 0.5 on.

    So noise is taken away whole there, as in `steady`: half of what is faint would be rounded to nothing.
    """
    removal = max(strength, min(2 * strength, 1))
    return strength * gain + (removal - strength) * ((gain < 0) * gain)


def _halved(plane):
    """A plane at half the size, the exact means of 2x2 pixels: float32."""
    pairs = np.add(plane[::2], plane[1::2], dtype=np.uint16 if plane.dtype == np.uint8 else None)
    return np.float32(0.25) * (pairs[:, ::2] + pairs[:, 1::2])


def _doubled(plane):
    """A plane at twice the size, bilinear, as a mean of 1, 2, 1 over repeated pixels: faster than OpenCV's own."""
    repeated = np.repeat(cv2.merge([plane, plane]).reshape(len(plane), -1), 2, axis=0)
    return cv2.GaussianBlur(repeated, (3, 3), 0, borderType=cv2.BORDER_REPLICATE)


def limit_halo(sharp, y, share=HALO_SHARE):
    """`models.limit_halo` for video: luma ``(H, W)``, both uint8 or both float32; `share` of the halo stays."""
    window = np.ones((NEIGHBOURS, NEIGHBOURS), np.uint8)
    inside = cv2.min(cv2.max(sharp, cv2.erode(y, window)), cv2.dilate(y, window))
    return cv2.addWeighted(inside, 1 - share, sharp, share, 0)


def steady(y, previous, strength=1.0, threads=None):
    """Average luma with the frames before where the picture stands still, so that noise is not sharpened.

    A change since the frame before is taken for noise if it is small at the pixel and close to zero in the mean of
    3x3 cells of 4x4 pixels. Most of it is then taken away; what moves is left as it is, and hardly leaves a trail: a
    few codes behind what is as faint as the noise. How much is small depends on the noise, which is measured in the
    stillest tenth of the frame; if that is black bars, the frame counts as free of noise.

    As the frame before was steadied likewise, what stands still settles, to within a code. In luma nobody sees that
    code; chroma a code off would be rings on walls, and is left alone.

    Args:
        y: luma ``(H, W)`` uint8.
        previous: what this function gave for the frame before; None, or of another shape: the frame stands alone, as do
            frames of less than 16 pixels a side.
        strength: of the sharpening that follows; below 0.5, less is taken away in proportion.
        threads: how many work at the same time; None for as many as the process may use cores.

    Returns:
        Luma like `y`, to be kept unchanged for the next frame; `y` itself if nothing is to be done.
    """
    if previous is None or previous.shape != y.shape or strength == 0 or min(y.shape) < 16:
        return y
    threads, (height, width) = threads or usable_cores(), y.shape
    rows, columns = -(-height // 4), -(-width // 4)  # of cells
    y, previous = (_fit(plane, 4 * rows, 4 * columns) for plane in (y, previous))
    change, halved = np.empty(y.shape, np.uint8), np.empty((2 * rows, 2 * columns), np.uint8)  # around 128

    def compare_stripe(top, bottom):
        pixels, halves = slice(4 * top, 4 * bottom), slice(2 * top, 2 * bottom)
        cv2.addWeighted(y[pixels], 1, previous[pixels], -1, 128, change[pixels])
        cv2.resize(change[pixels], halved[halves].shape[::-1], halved[halves], interpolation=cv2.INTER_AREA)

    in_stripes(compare_stripe, rows, threads)
    changed, size = (
        cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
        for plane in (halved, cv2.absdiff(halved, 128))
    )
    changed -= 128.25  # halving rounds halves up, twice an eighth of a code
    noise = _noise(changed, size)
    still = np.abs(cv2.blur(changed, (3, 3))) < MOVED * noise
    mask = -still.astype(np.int32)[:, None]  # the four bytes of a cell's row: 255 if it is still, else 0
    table = _taken_table(noise, min(2 * strength, 1) * AVERAGED)

    def average_stripe(top, bottom):
        pixels = slice(4 * top, 4 * bottom)
        gone = cv2.LUT(change[pixels], table, change[pixels])
        cells = gone.view(np.int32).reshape(-1, 4, columns)
        np.bitwise_and(cells, mask[top:bottom], out=cells)
        np.subtract(y[pixels], gone, out=gone)  # `gone` holds signed bytes, and now what remains: the steadied luma

    in_stripes(average_stripe, rows, threads)
    return change[:height, :width]


def _noise(changed, size):
    """How much 2x2 pixels change without moving, in codes: about 0.3 times the sigma of white noise.

    Args:
        changed, size: means over each cell of that change and of its absolute value, float32 ``(rows, columns)``.
    """
    changed, size = (cv2.resize(c, None, fx=1 / 4, fy=1 / 4, interpolation=cv2.INTER_AREA) for c in (changed, size))
    blocks = np.sort(size - np.abs(changed), axis=None)
    return np.clip(blocks[int(NOISE_QUANTILE * blocks.size)], *NOISE_RANGE)


def _taken_table(noise, share):
    """What is taken away from a change, for each of its bytes around 128, as signed bytes."""
    change = np.arange(256) - 128.0
    return np.rint(share * change * np.clip(2 - np.abs(change) / (SMALL * noise), 0, 1)).astype(np.int8).view(np.uint8)


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


def fold_planes(y, u, v, cells=None, threads=1):
    """Fold a frame as the student's int8 network reads it, channels last.

    Behind the planes are their local means (`models.local_mean`), in four channels for luma and two for each chroma,
    which together are as exact as a quarter and a half of a code: see `export.QuantisedHead`. They are computed here
    and not in the network, where they would take a third of its time.

    Args:
        y, u, v: uint8 arrays ``(H, W)``, ``(H/2, W/2)`` and the same again, from `pad_planes`.
        cells: array to fill; None makes a new one.
        threads: how many work at the same time.

    Returns:
        uint8 array ``(H/4, W/4, 32)``: 16 channels of luma (rows, then columns, of 4x4 pixels), 4 of each chroma, and 8
        of means.
    """
    rows, columns = y.shape[0] // 4, y.shape[1] // 4
    if cells is None:
        cells = np.empty((rows, columns, CHANNELS), np.uint8)

    def fold_stripe(top, bottom):
        begin = max(top - _MARGIN, 0)
        means = [
            quad[top - begin :][: bottom - top] for quad in _mean_quads(*_stripe((y, u, v), begin, bottom + _MARGIN))
        ]
        cv2.merge(_quads(*_stripe((y, u, v), top, bottom)) + means, cells.view(np.int32)[top:bottom])

    in_stripes(fold_stripe, rows, threads)
    return cells


def _stripe(planes, top, bottom):
    """The rows of luma and chroma planes that rows of cells are made of."""
    return [plane[size * top : size * bottom] for plane, size in zip(planes, (4, 2, 2), strict=True)]


def _quads(y, u, v):
    """The channels of folded planes, four at a time, as int32 arrays `(H/4, W/4)`, which are moved faster."""
    chroma = [cv2.merge([plane[row::2].view(np.uint16) for row in range(2)]) for plane in (u, v)]  # (H/4, W/4, 2)
    return [y[row::4].view(np.int32) for row in range(4)] + [pair.view(np.int32)[..., 0] for pair in chroma]


def _mean_quads(y, u, v):
    """The channels of means after them, likewise."""
    size = (y.shape[1] // 4, y.shape[0] // 4)
    halved = cv2.resize(y, (2 * size[0], 2 * size[1]), interpolation=cv2.INTER_AREA)  # twice is faster than by 4
    channels = []
    # Halving rounds halves up, an eighth of a code too much in the mean: luma twice.
    for plane, count, excess in zip((halved, u, v), MEANS, (0.25, 0.125, 0.125), strict=True):
        channels += _means_3x3(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), count, excess)
    return [cv2.merge(channels[i : i + 4]).view(np.int32)[..., 0] for i in range(0, len(channels), 4)]


def _means_3x3(cells, count, excess):
    """Means of 3x3 cells less `excess`, `count` times, each rounded at another fraction of a code, so that their sum is
    as many times as exact. At an edge of the 2x3 that are there: half way between its two kinds of continuation.
    """
    borders = cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101
    sums = [cv2.boxFilter(cells, cv2.CV_16U, (3, 3), normalize=False, borderType=border) for border in borders]
    total = cv2.add(*sums)
    offsets = [(index + 0.5) / count - 0.5 - excess for index in range(count)]
    # The fastest of OpenCV's ways to 8 bits. It drops signs, which only black has, where means are 0.25 and not 0.
    return [cv2.convertScaleAbs(total, alpha=1 / 18, beta=offset) for offset in offsets]


def unfold_planes(folded):
    """The inverse of `fold_planes` for 8-bit arrays ``(h, w, 28 or more)``: luma ``(4h, 4w)`` and ``(3, 2h, 2w)``.

    The last three are both chroma planes and the gain; whatever the type, they come as uint8.
    """
    rows, columns = folded.shape[:2]
    y = np.ascontiguousarray(folded.view(np.int32)[..., :4].transpose(0, 2, 1))
    halves = folded.view(np.uint16)[..., 8:14].reshape(rows, columns, 3, 2).transpose(2, 0, 3, 1)
    y, halves = (array.view(np.uint8) for array in (y, np.ascontiguousarray(halves)))
    return y.reshape(4 * rows, 4 * columns), halves.reshape(3, 2 * rows, 2 * columns)


def apply_change(change, y, uv, strength, scale, threads=1):
    """Sharpen planes by what the int8 network says of them.

    Args:
        change: int8 ``(ceil(H/8)*2, ceil(W/8)*2, 32)``: folded residuals in `RESIDUAL_STEPS`, the gain in `GAIN_STEPS`.
        y, uv: planes in codes, uint8 or float32.
        strength: what residual and gain are multiplied by, see `scale_gain`.
        scale: codes of luma and chroma for a step of 1.
        threads: how many work at the same time.

    Returns:
        ``(y, uv)``, new arrays of the same type.
    """
    luma, chroma, *shares = _change_tables(min(strength, STRENGTH_LIMIT), scale, y.dtype)
    sharp, moved = np.empty_like(y), np.empty_like(uv)

    def apply_stripe(top, bottom):
        begin = max(top - _MARGIN, 0)
        dy, (du, dv, gain) = unfold_planes(change[begin : bottom + _MARGIN])
        seen = y[4 * begin : 4 * (bottom + _MARGIN)]
        restored = _add(seen, dy, luma)
        gain = gain[: (len(seen) + 1) // 2, : uv.shape[2]]
        refined = limit_halo(steepen(restored, *(cv2.LUT(gain, table) for table in shares)), seen)
        sharp[4 * top : 4 * bottom] = refined[4 * (top - begin) :][: 4 * (bottom - top)]
        inner = slice(2 * (top - begin), 2 * (bottom - begin))
        for plane, residual, out in zip(uv, (du, dv), moved, strict=True):
            out[2 * top : 2 * bottom] = _add(plane[2 * top : 2 * bottom], residual[inner], chroma)

    in_stripes(apply_stripe, -(-len(y) // 4), threads)
    return sharp, moved


def _change_tables(strength, scale, dtype):
    """What each byte of a change is worth, times the strength: in luma, in chroma, and as a gain to `detail_shares`."""
    codes = np.arange(256).astype(np.uint8).view(np.int8) / np.float32(RESIDUAL_STEPS)
    residual = np.sign(codes) * np.maximum(np.abs(codes) - FAINT, 0) * strength
    planes = [residual * (codes_of_1 / 255) for codes_of_1 in scale]
    if dtype == np.uint8:
        planes = [np.clip(np.rint(table) + 128, 0, 255).astype(np.uint8) for table in planes]
    return *planes, *detail_shares(scale_gain(codes * RESIDUAL_STEPS / GAIN_STEPS, strength))


def _add(plane, change, table):
    """Add to a plane what a table says of each byte of `change`, which may be larger; to uint8, around 128."""
    moved = cv2.LUT(change[: plane.shape[0], : plane.shape[1]], table)
    if plane.dtype == np.uint8:
        return cv2.addWeighted(plane, 1, moved, 1, -128)
    return np.clip(plane + moved, 0, 255)


def _fit(plane, height, width):
    """A plane that is contiguous in its rows, its edge repeated to the given size."""
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
            compiled = functools.partial(_compile, network, device, properties)
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
        return self._sharpen((y, uv), y, uv, strength, FULL_RANGE_SCALE if full_range else LIMITED_RANGE_SCALE)

    def difference(self, y, uv, strength=1.0):
        """What sharpening would add: see `TorchEngine.difference`. The network sees floats rounded to 8 bits."""
        if y.dtype == np.uint8:
            sharp = self._sharpen((y, uv), y, uv, strength)
            pairs = zip(sharp, (y, uv), strict=True)
            return tuple(cv2.addWeighted(a, 1, b, -1, 128).reshape(b.shape) for a, b in pairs)  # OpenCV drops ones
        codes = 255 * y, 255 * uv
        sharp = self._sharpen([np.rint(plane).astype(np.uint8) for plane in codes], *codes, strength)
        return tuple((after - before) / 255 for after, before in zip(sharp, codes, strict=True))

    def _sharpen(self, seen, y, uv, strength, scale=FULL_RANGE_SCALE):
        """Planes in codes, uint8 or float32, sharpened by what the network says of uint8 planes."""
        with self._lock:  # the next call overwrites what the network answered
            padded = pad_planes(*seen)
            cells, change, infer = self._network_for(*(side // 4 for side in padded[0].shape), 255 / scale[0])
            fold_planes(*padded, cells, self._threads)
            infer()
            return apply_change(change, y, uv, strength, scale, self._threads)

    def _test(self, answer):
        """Compare with the student's answer for `probe_planes`, so that a device which computes another is not used."""
        found = np.concatenate([plane.ravel() for plane in self.difference(*probe_planes())]).astype(float)
        error, size = np.abs(found - answer).mean(), np.abs(answer - 128.0).mean()
        if not error <= 0.5 + 0.25 * size:
            raise ArtefactError(f"it is wrong by {error:.2f} codes where the student changes {size:.2f}")


def _check_device(device):
    """Raise `DeviceError` if OpenVINO finds no device of this name."""
    found = openvino_core().available_devices
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


def _compile(network, device, properties, rows, columns, stretch):
    """Compile for frames of so many cells; returns arrays to fill and to read, and the function between them."""
    import openvino

    network = network.clone()
    network.reshape({"cells": [1, rows, columns, CHANNELS]})
    parameter = network.input("stretch").get_node()  # as a constant it costs nothing
    constant = openvino.opset13.constant(np.full((1, 1, 1, 1), stretch, np.float32))
    parameter.output(0).replace(constant.output(0))
    network.remove_parameter(parameter)
    with _openvino_lock:
        request = openvino_core().compile_model(network, device, properties).create_infer_request()
    cells, change = (np.zeros((1, rows, columns, CHANNELS), kind) for kind in (np.uint8, np.int8))
    for name, array in (("cells", cells), ("change", change)):
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    return cells[0], change[0], request.infer


@functools.cache
def openvino_core():
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
