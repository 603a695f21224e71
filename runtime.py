"""Sharpening without PyTorch: the engine that runs a student's int8 network, and the arithmetic around it.

An engine maps uint8 planes of video to new ones; its `difference` returns what it would add to full-range planes of any
depth. All of it may be called from several threads.

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
ARTEFACT_FORMAT = 8  # raise if an int8 network's file, input or output changes, `fold_planes` included

DETAIL_GAIN = (-1, 5)  # limits of the gain that `steepen` takes
COARSE_SHARE, FINE_SHARE = 0.75, 1.5  # of the gain, for coarse detail and for all detail
FINE_THRESHOLD, FINE_LIMIT = 0.1, 0.15  # soft threshold of the latter, and its upper limit
_KEPT_STEPS = 128  # of `detail_shares`
DETAIL_SIGMA, DETAIL_RADIUS = 0.9, 2  # of the Gaussian blur at half the size; detail is what it takes away
NEIGHBOURS = 7  # pixels a side of the neighbourhood of `limit_halo`
HALO_SHARE = 0.19  # of the overshoot beyond its range that is kept
AVERAGED = 0.7  # share of a small change that `steady` takes away
NOISE_RANGE, NOISE_QUANTILE = (0.6, 2.5), 0.1  # codes; the share of a frame in which nothing moves
SMALL, MOVED = 8, 2  # times the noise (see `_noise`): limits for the change of a pixel, and for the mean around it

# Channels of folded planes (y, u, v), of their means (see `fold_planes`), of the gain, and unused ones: a convolution
# to 32 channels takes two thirds of the time of one to 28.
FOLDED, MEANS, GAINS, UNUSED = (16, 4, 4), (4, 2, 2), 4, 4
CHANNELS = 32  # of the network's input and output
RESIDUAL_STEPS = 2  # of the int8 network for a code: half codes, so that faint changes differ from none
FAINT = 0.45  # codes: soft threshold of the residual; below it is rounding noise, which flickers on walls
GAIN_STEPS = 42  # for a gain of 1, so that 8 bits end at a gain of 3

# uint8 codes for a step of 1 in full-range [0, 1] planes (ITU-R BT.601 and BT.709): luma, chroma.
FULL_RANGE_SCALE = (255, 255)
LIMITED_RANGE_SCALE = (219, 224)
_STRIPE, _MARGIN = 72, 2  # rows of cells of 4x4 pixels: at most in a stripe, and read above and below it
STRENGTH_LIMIT = 200  # more has no further effect and would overflow 16 bits; infinity times zero is NaN
_SIZES_KEPT = 4  # sizes of frames whose networks stay in memory
_BLOBS_KEPT = 64  # compiled networks on disk

_openvino_lock = threading.Lock()  # OpenVINO's readers briefly change the locale of the process


def in_stripes(function, rows, threads):
    """Divide rows of cells into stripes, as many for each thread, and call ``function(top, bottom)`` for each."""
    each = -(-rows // (threads * _STRIPE))  # stripes for a thread
    height = -(-rows // (threads * each))
    tops = range(0, rows, height)

    def work(part):
        for top in tops[part::threads]:
            function(top, min(top + height, rows))

    in_parallel([functools.partial(work, part) for part in range(min(threads, len(tops)))])


def steepen(y, added, kept):
    """Apply `models.steepen` to luma ``(H, W)`` in codes, uint8 or float32; `added` and `kept` are `detail_shares`."""
    rows, columns = added.shape
    half = _halved(_fit(y, 2 * rows, 2 * columns))
    smooth = cv2.GaussianBlur(half, [2 * DETAIL_RADIUS + 1] * 2, DETAIL_SIGMA, borderType=cv2.BORDER_REPLICATE)
    half -= smooth  # in place, as new memory costs more than arithmetic
    half *= added
    half += smooth
    steep = np.clip(half, 0, 255, out=half)
    if y.dtype == np.uint8:
        smooth, steep = cv2.convertScaleAbs(smooth), cv2.convertScaleAbs(steep)
    smooth, steep, kept = (_doubled(plane)[: y.shape[0], : y.shape[1]] for plane in (smooth, steep, kept))
    if y.dtype != np.uint8:
        return np.clip(steep + kept / np.float32(_KEPT_STEPS) * (y - smooth), 0, 255)
    # Size and sign of detail apart, as uint8: less than half the time of int16.
    change = cv2.absdiff(y, smooth)
    above = cv2.compare(y, smooth, cv2.CMP_GT, dst=smooth)
    change = cv2.multiply(change, kept, dst=change, scale=1 / _KEPT_STEPS)
    lower, higher = cv2.subtract(steep, change, dst=kept), cv2.add(steep, change, dst=steep)
    return cv2.copyTo(higher, above, lower)


def detail_shares(gain):
    """Convert gains for `steepen` to ``(added, kept)``, how much coarse detail is added and how much detail is kept.

    Both have the shape of `gain`; the first is float32, the second uint8 in steps of 1/128.
    """
    gain = np.clip(gain, *DETAIL_GAIN)
    fine = np.sign(gain) * np.maximum(FINE_SHARE * np.abs(gain) - FINE_THRESHOLD, 0)
    added, kept = COARSE_SHARE * np.maximum(gain, 0), 1 + np.clip(fine, -1, FINE_LIMIT)
    return added.astype(np.float32), np.rint(_KEPT_STEPS * kept).astype(np.uint8)


def scale_gain(gain, strength):
    """Multiply a gain, array or tensor, by the strength; from 0.5 on a negative one by at least 1.

    So all noise is removed there, as in `steady`: half of a faint change would be rounded to nothing.
    """
    removal = max(strength, min(2 * strength, 1))
    return strength * gain + (removal - strength) * ((gain < 0) * gain)


def _halved(plane):
    """Return a plane at half the size, the exact means of 2x2 pixels, float32."""
    pairs = np.add(plane[::2], plane[1::2], dtype=np.uint16 if plane.dtype == np.uint8 else None)
    return np.float32(0.25) * (pairs[:, ::2] + pairs[:, 1::2])


def _doubled(plane):
    """Return a plane at twice the size, bilinear: blurring repeated pixels by 1, 2, 1 is faster than OpenCV's own."""
    repeated = np.repeat(cv2.merge([plane, plane]).reshape(len(plane), -1), 2, axis=0)
    return cv2.GaussianBlur(repeated, (3, 3), 0, borderType=cv2.BORDER_REPLICATE)


def limit_halo(sharp, y, share=HALO_SHARE):
    """Apply `models.limit_halo` to luma ``(H, W)``, both uint8 or both float32; `share` of the halo is kept."""
    window = np.ones((NEIGHBOURS, NEIGHBOURS), np.uint8)
    inside = cv2.min(cv2.max(sharp, cv2.erode(y, window)), cv2.dilate(y, window))
    return cv2.addWeighted(inside, 1 - share, sharp, share, 0)


def steady(y, previous, strength=1.0, threads=None):
    """Average luma with earlier frames where the picture stands still, so that noise is not sharpened.

    A change since the previous frame counts as noise if it is small at the pixel and close to zero in the mean of 3x3
    cells of 4x4 pixels. Most of it is then taken away. What moves is left as it is, but if it is as faint as the noise,
    it leaves a trail of a few codes. What is small depends on the noise, which is measured in the stillest tenth of the
    frame; if black bars fill that tenth, the frame counts as free of noise.

    What stands still settles to within a code, which is invisible in luma. Chroma is left alone: a code off, it would
    show rings on walls.

    Args:
        y: luma ``(H, W)`` uint8.
        previous: the result for the previous frame; None, or of another shape: the frame stands alone, as do frames of
            less than 16 pixels a side.
        strength: of the sharpening that follows; below 0.5, less is taken away in proportion.
        threads: number of threads; None for as many as the process may use cores.

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
    changed -= 128.25  # each of two halvings rounds up by an eighth of a code
    noise = _noise(changed, size)
    still = np.abs(cv2.blur(changed, (3, 3))) < MOVED * noise
    mask = -still.astype(np.int32)[:, None]  # the four bytes of a cell's row: 255 if it is still, else 0
    table = _taken_table(noise, min(2 * strength, 1) * AVERAGED)

    def average_stripe(top, bottom):
        pixels = slice(4 * top, 4 * bottom)
        gone = cv2.LUT(change[pixels], table, change[pixels])
        cells = gone.view(np.int32).reshape(-1, 4, columns)
        np.bitwise_and(cells, mask[top:bottom], out=cells)
        np.subtract(y[pixels], gone, out=gone)  # `gone` held signed bytes, and now holds the steadied luma

    in_stripes(average_stripe, rows, threads)
    return change[:height, :width]


def _noise(changed, size):
    """Estimate how much 2x2 pixels change without motion, in codes: about 0.3 times the sigma of white noise.

    Args:
        changed, size: means over each cell of that change and of its absolute value, float32 ``(rows, columns)``.
    """
    changed, size = (cv2.resize(c, None, fx=1 / 4, fy=1 / 4, interpolation=cv2.INTER_AREA) for c in (changed, size))
    blocks = np.sort(size - np.abs(changed), axis=None)
    return np.clip(blocks[int(NOISE_QUANTILE * blocks.size)], *NOISE_RANGE)


def _taken_table(noise, share):
    """Tabulate what is taken away from a change, for each of its bytes around 128, as signed bytes."""
    change = np.arange(256) - 128.0
    return np.rint(share * change * np.clip(2 - np.abs(change) / (SMALL * noise), 0, 1)).astype(np.int8).view(np.uint8)


class CheckpointError(RuntimeError):
    """A checkpoint is missing or not what it should be. The message says what to do."""


class DeviceError(RuntimeError):
    """A requested device is missing, or cannot run this student."""


class ArtefactError(DeviceError):
    """The int8 network is missing, belongs to another student, or fails here. The message says what to do."""


def artefact_path(checkpoint):
    """Return the path of a checkpoint's int8 network: ``NAME.int8.onnx`` beside ``NAME.pth``."""
    return Path(checkpoint).with_suffix(".int8.onnx")


def existing_checkpoint(path):
    """Return a checkpoint's `Path`, or raise `CheckpointError` if there is no such file."""
    if not Path(path).is_file():
        raise CheckpointError(f"no checkpoint at {path}: train one with `python train.py` or name another")
    return Path(path)


def checkpoint_digest(path):
    """Return the SHA-256 of a checkpoint's file, as hexadecimal digits."""
    return hashlib.sha256(existing_checkpoint(path).read_bytes()).hexdigest()


def probe_planes():
    """Make the small full-range picture ``(y, uv)`` on which an int8 network is compared with its student."""
    rng = np.random.default_rng(0)
    y = cv2.resize(rng.integers(64, 192, (16, 16), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    return y, np.stack([cv2.resize(rng.integers(96, 160, (8, 8), dtype=np.uint8), (32, 32)) for _ in range(2)])


def network_notes(checkpoint, answer):
    """Return the metadata of an int8 network's file, a dict of strings.

    Args:
        checkpoint: the student's file.
        answer: ``(dy, duv)``, the student's `difference` for `probe_planes` in float32.
    """
    codes = b"".join(plane.tobytes() for plane in answer)
    notes = {"format": str(ARTEFACT_FORMAT), "checkpoint": checkpoint_digest(checkpoint)}
    return notes | {"answer": base64.b64encode(codes).decode()}


def pad_planes(y, uv):
    """Repeat the edges of planes until luma's sides are multiples of 8; returns ``y, u, v`` with contiguous rows."""
    height, width = (side + -side % 8 for side in y.shape)
    return [_fit(plane, height // fold, width // fold) for plane, fold in ((y, 1), (uv[0], 2), (uv[1], 2))]


def fold_planes(y, u, v, cells=None, threads=1):
    """Fold a frame for the int8 network, channels last.

    The local means (`models.local_mean`) follow the planes, in four channels for luma and two for each chroma, which
    together are exact to a quarter and half a code (see `export.QuantisedHead`). In the network they would take a third
    of its time.

    Args:
        y, u, v: uint8 arrays ``(H, W)``, ``(H/2, W/2)`` and ``(H/2, W/2)``, from `pad_planes`.
        cells: array to fill; None makes a new one.
        threads: number of threads.

    Returns:
        uint8 array ``(H/4, W/4, 32)``: 16 channels of luma (rows, then columns, of 4x4 pixels), 4 of each chroma, and 8
        of means.
    """
    rows, columns = y.shape[0] // 4, y.shape[1] // 4
    if cells is None:
        cells = np.empty((rows, columns, CHANNELS), np.uint8)

    def fold_stripe(top, bottom):
        begin = max(top - _MARGIN, 0)
        means = _mean_quads(*_stripe((y, u, v), begin, bottom + _MARGIN))
        means = [quad[top - begin :][: bottom - top] for quad in means]
        cv2.merge(_quads(*_stripe((y, u, v), top, bottom)) + means, cells.view(np.int32)[top:bottom])

    in_stripes(fold_stripe, rows, threads)
    return cells


def _stripe(planes, top, bottom):
    """Return the rows of planes that belong to rows of cells."""
    return [plane[size * top : size * bottom] for plane, size in zip(planes, (4, 2, 2), strict=True)]


def _quads(y, u, v):
    """Return the channels of folded planes, four in each int32 of `(H/4, W/4)`, as that is faster to move."""
    chroma = [cv2.merge([plane[row::2].view(np.uint16) for row in range(2)]) for plane in (u, v)]  # (H/4, W/4, 2)
    return [y[row::4].view(np.int32) for row in range(4)] + [pair.view(np.int32)[..., 0] for pair in chroma]


def _mean_quads(y, u, v):
    """Return the channels of means, likewise."""
    size = (y.shape[1] // 4, y.shape[0] // 4)
    halved = cv2.resize(y, (2 * size[0], 2 * size[1]), interpolation=cv2.INTER_AREA)  # twice by 2 is faster than by 4
    channels = []
    # Each halving rounds up by an eighth of a code on average.
    for plane, count, excess in zip((halved, u, v), MEANS, (0.25, 0.125, 0.125), strict=True):
        channels += _means_3x3(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), count, excess)
    return [cv2.merge(channels[i : i + 4]).view(np.int32)[..., 0] for i in range(0, len(channels), 4)]


def _means_3x3(cells, count, excess):
    """Return the means of 3x3 cells less `excess`, `count` times, rounded at different fractions of a code.

    So their sum is `count` times as exact. At a frame's edge, the average of two borders gives the mean of 2x3 cells.
    """
    borders = cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101
    sums = [cv2.boxFilter(cells, cv2.CV_16U, (3, 3), normalize=False, borderType=border) for border in borders]
    total = cv2.add(*sums)
    offsets = [(index + 0.5) / count - 0.5 - excess for index in range(count)]
    # OpenCV's fastest conversion to 8 bits. It drops signs, which only matters for black: means are 0.25 instead of 0.
    return [cv2.convertScaleAbs(total, alpha=1 / 18, beta=offset) for offset in offsets]


def unfold_planes(folded):
    """Invert `fold_planes` for 8-bit arrays ``(h, w, 28 or more)``, uint8: luma ``(4h, 4w)``, and ``(3, 2h, 2w)``.

    The latter are both chroma planes and the gain.
    """
    rows, columns = folded.shape[:2]
    y = np.ascontiguousarray(folded.view(np.int32)[..., :4].transpose(0, 2, 1))
    halves = folded.view(np.uint16)[..., 8:14].reshape(rows, columns, 3, 2).transpose(2, 0, 3, 1)
    y, halves = (array.view(np.uint8) for array in (y, np.ascontiguousarray(halves)))
    return y.reshape(4 * rows, 4 * columns), halves.reshape(3, 2 * rows, 2 * columns)


def apply_change(change, y, uv, strength, scale, threads=1):
    """Sharpen planes by the int8 network's output; returns new ``(y, uv)`` of the same type.

    Args:
        change: int8 ``(ceil(H/8)*2, ceil(W/8)*2, 32)``: folded residuals in `RESIDUAL_STEPS`, the gain in `GAIN_STEPS`.
        y, uv: planes in codes, uint8 or float32.
        strength: factor of residual and gain, see `scale_gain`.
        scale: codes of luma and chroma for a step of 1.
        threads: number of threads.
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
    """Tabulate the change of luma and of chroma, and `detail_shares`, for each byte of the network's output."""
    codes = np.arange(256).astype(np.uint8).view(np.int8) / np.float32(RESIDUAL_STEPS)
    residual = np.sign(codes) * np.maximum(np.abs(codes) - FAINT, 0) * strength
    planes = [residual * (codes_of_1 / 255) for codes_of_1 in scale]
    if dtype == np.uint8:
        planes = [np.clip(np.rint(table) + 128, 0, 255).astype(np.uint8) for table in planes]
    return *planes, *detail_shares(scale_gain(codes * RESIDUAL_STEPS / GAIN_STEPS, strength))


def _add(plane, change, table):
    """Add a table's value for each byte of `change` (which may be larger) to a plane; for uint8 it is around 128."""
    moved = cv2.LUT(change[: plane.shape[0], : plane.shape[1]], table)
    if plane.dtype == np.uint8:
        return cv2.addWeighted(plane, 1, moved, 1, -128)
    return np.clip(plane + moved, 0, 255)


def _fit(plane, height, width):
    """Return a plane with contiguous rows, its edge repeated to the given size."""
    if plane.shape != (height, width):
        bottom, right = height - plane.shape[0], width - plane.shape[1]
        return cv2.copyMakeBorder(plane, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return plane if plane.strides[1] == 1 else np.ascontiguousarray(plane)


class OpenVINOEngine:
    """Runs the int8 network of a student with OpenVINO.

    The network is compiled when a first frame of a size comes. The last four sizes are kept in memory, and compiled
    networks in the user's cache. Calls from several threads take turns.

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
        # Without this, importing OpenVINO reports to its makers over the network.
        sys.modules.setdefault("openvino_telemetry", None)
        try:
            import openvino.frontend  # noqa: F401
        except ImportError as error:
            raise ArtefactError(f"OpenVINO cannot be imported ({first_line(error)}): pip install openvino") from error
        self.device, path = device, artefact_path(checkpoint)
        self._lock, self._threads = threading.Lock(), threads or usable_cores()
        properties = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU" and (threads or self._threads < os.cpu_count()):  # OpenVINO ignores quotas
            properties["INFERENCE_NUM_THREADS"] = self._threads
        if folder := _cache_folder():
            properties["CACHE_DIR"] = str(folder)
        try:
            with _openvino_lock:  # only one thread makes the core
                _check_device(device)
            network, answer = _read_network(path, checkpoint)
            compiled = functools.partial(_compile, network, device, properties)
            self._network_for = functools.lru_cache(_SIZES_KEPT)(compiled)
            self._test(answer)
        except (CheckpointError, DeviceError):
            raise
        except Exception as error:  # OpenVINO and its readers raise many kinds
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
        """Return what sharpening would add: see `TorchEngine.difference`. The network sees floats rounded to 8 bits."""
        if y.dtype == np.uint8:
            sharp = self._sharpen((y, uv), y, uv, strength)
            pairs = zip(sharp, (y, uv), strict=True)
            return tuple(cv2.addWeighted(a, 1, b, -1, 128).reshape(b.shape) for a, b in pairs)  # OpenCV drops axes of 1
        codes = 255 * y, 255 * uv
        sharp = self._sharpen([np.rint(plane).astype(np.uint8) for plane in codes], *codes, strength)
        return tuple((after - before) / 255 for after, before in zip(sharp, codes, strict=True))

    def _sharpen(self, seen, y, uv, strength, scale=FULL_RANGE_SCALE):
        """Sharpen planes in codes, uint8 or float32, by the network's output for the uint8 planes `seen`."""
        with self._lock:  # the next call overwrites the network's output
            padded = pad_planes(*seen)
            cells, change, infer = self._network_for(*(side // 4 for side in padded[0].shape), 255 / scale[0])
            fold_planes(*padded, cells, self._threads)
            infer()
            return apply_change(change, y, uv, strength, scale, self._threads)

    def _test(self, answer):
        """Raise `ArtefactError` if the result for `probe_planes` is not the student's `answer`."""
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
    """Read the network of this checkpoint and version, and the student's answer.

    The file may come from a stranger. ONNX holds no code, but may name other files; other formats, which OpenVINO would
    read whatever the name, are not all harmless.
    """
    import openvino.frontend

    advice = "make it with `pip install -r requirements-dev.txt` and `python export.py CHECKPOINT`"
    if not path.is_file():
        raise ArtefactError(f"there is no int8 network at {path}: {advice}")
    content = path.read_bytes()
    if b"location" in content:  # precedes the name of a file with weights
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
    """Compile for frames of `rows` by `columns` cells; returns the input and output arrays, and a function to run."""
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
    """Return OpenVINO's core, one for the whole process.

    A core gives the thread that first uses its CPU device another stack for signal handlers, and frees it when the core
    is dropped. Unless cores are dropped in reverse order and in that thread, it keeps a freed stack, and the next
    Ctrl-C ends the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _cache_folder():
    """Return the user's folder for compiled networks, or None if it cannot be written; old files are removed.

    Each size of frames leaves a file of 0.2 MB.
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
