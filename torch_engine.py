"""The engine that runs a student with PyTorch, on every device that PyTorch knows."""

import copy
import functools
import logging

import numpy as np
import torch

from runtime import (
    FULL_RANGE_SCALE,
    GAIN_STEPS,
    GAIN_ZERO,
    LIMITED_RANGE_SCALE,
    STRENGTH_LIMIT,
    DeviceError,
    check_size,
    refine,
)
from utils import first_line, usable_cores

log = logging.getLogger(__name__)


def pick_device(name="auto"):
    """Return the `torch.device` called `name`; ``"auto"`` takes CUDA before MPS before the CPU.

    Raises:
        DeviceError: the device is unknown or missing.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    choices = ", ".join(kind for kind, there in present.items() if there)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}: use auto, {choices}") from error
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if not present.get(device.type) or missing:
        raise DeviceError(f"device {name!r} is not available on this machine: use auto, {choices}")
    return device


def pick_precision(device):
    """Return the type of the convolutions that is fastest on `device` without visible loss, and the reason.

    float16 on CUDA; bfloat16 on CPUs with instructions for it (AVX512-BF16, AMX: about twice as fast as
    float32; without them it is emulated and slower); float32 elsewhere.
    """
    if device.type == "cuda":
        return torch.float16, "tensor cores"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
        if native and torch.backends.mkldnn.is_available():
            return torch.bfloat16, f"the CPU has {native[0]}"
    return torch.float32, f"no faster type is known for this {device.type}"


class TorchEngine:
    """Runs a student with PyTorch.

    Only the convolutions run at reduced precision; the input that the residual is added to stays as it is. A frame that
    a GPU's memory does not suffice for is computed in parts that overlap, with the same result but for the rounding of
    sums, and from then on all that are as large.

    Args:
        student: a `models.Student`; it is copied, later changes to it are not seen.
        device: ``"auto"``, or a name that PyTorch knows.
        dtype: of the convolutions; None leaves it to `pick_precision`.

    Attributes:
        device: the `torch.device` in use.
        description: device and precision, for reports.
        identity: the description and what else decides the output.

    Raises:
        DeviceError: the device is unknown or missing; when called: its memory does not suffice for the smallest part.
    """

    def __init__(self, student, device="auto", dtype=None):
        self.device = pick_device(device)
        self._dtype, reason = (dtype, "as asked for") if dtype else pick_precision(self.device)
        self.description = self.identity = f"torch {self.device} {str(self._dtype).removeprefix('torch.')}"
        self._student = copy.deepcopy(student).eval().to(self.device, memory_format=torch.channels_last)
        self._overlap, self._too_large = student_reach(student), float("inf")
        log.info("%s (%s)", self.description, reason)

    @torch.inference_mode()
    def __call__(self, y, uv, full_range=False, strength=1.0):
        """Sharpen the planes of a video frame.

        Limited-range planes are stretched to full range for the student; its residual is scaled back and added to the
        planes as they came, so that what the student leaves alone stays bit for bit the same.

        Args:
            y, uv: uint8 arrays ``(H, W)`` and ``(2, ceil(H/2), ceil(W/2))``.
            full_range: luma spans 0-255 instead of 16-235.
            strength: 0 is the identity; see `models.Student.forward`.

        Returns:
            ``(y, uv)``, new uint8 arrays.
        """
        if strength == 0:
            return y.copy(), uv.copy()
        function = functools.partial(self._sharpen, full_range=full_range, strength=strength)
        sharp, uv, gain = self._in_parts(function, y, uv)
        return refine(sharp, gain, y, usable_cores()), uv

    def _sharpen(self, y, uv, full_range, strength):
        planes = [self._tensor(plane) for plane in (y, uv)]
        if full_range:
            scale = FULL_RANGE_SCALE
            stretched = [plane.float().mul_(1 / 255) for plane in planes]
        else:
            scale = LIMITED_RANGE_SCALE
            stretched = [
                planes[0].float().sub_(16).mul_(1 / scale[0]),
                planes[1].float().sub_(128).mul_(1 / scale[1]).add_(128 / 255),
            ]
        *residuals, gain = self._predict(*stretched, strength)
        sharp = []
        for plane, residual, codes in zip(planes, residuals, scale, strict=True):
            change = residual.mul(codes).round_().add_(plane)
            sharp.append(change.clamp_(0, 255).to(torch.uint8).cpu().numpy())
        return *sharp, gain

    @torch.inference_mode()
    def difference(self, y, uv, strength=1.0):
        """What sharpening would add to full-range planes.

        Args:
            y: luma ``(H, W)``, uint8, or float32 in [0, 1].
            uv: chroma ``(2, ceil(H/2), ceil(W/2))`` likewise; 128/255 is neutral.
            strength: see `__call__`.

        Returns:
            ``(dy, duv)`` of the same shapes and types: of uint8 planes in codes, 128 being none; of float ones on the
            scale of [0, 1].
        """
        dy, duv, gain = self._in_parts(functools.partial(self._changes, strength=strength), y, uv)
        codes = y.astype(np.float32) if y.dtype == np.uint8 else 255 * y
        dy = refine(np.clip(codes + 255 * dy, 0, 255), gain, codes, usable_cores()) - codes
        if y.dtype != np.uint8:
            return dy / 255, duv
        return tuple(np.clip(np.rint(change) + 128, 0, 255).astype(np.uint8) for change in (dy, 255 * duv))

    def _changes(self, y, uv, strength):
        planes = [self._tensor(plane) for plane in (y, uv)]
        if planes[0].dtype == torch.uint8:
            planes = [plane.float() / 255 for plane in planes]
        dy, duv, gain = self._predict(*planes, strength)
        return dy.cpu().numpy(), duv.cpu().numpy(), gain

    def _in_parts(self, function, y, uv):
        """What `function` makes of planes; where memory does not suffice, of two overlapping halves, and so on."""
        if y.shape[0] * y.shape[1] < self._too_large:
            try:
                return function(y, uv)
            except torch.OutOfMemoryError as error:
                reason = first_line(error)
            if self._too_large == float("inf"):
                log.warning("%s: too little memory (%s), so frames are computed in parts", self.description, reason)
            self._too_large = min(self._too_large, y.shape[0] * y.shape[1])
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        axis = 0 if y.shape[0] > y.shape[1] else 1
        length, overlap = y.shape[axis], self._overlap
        middle = length // 2 // 8 * 8  # where the student's folding begins anew
        if middle < 2 * overlap:
            raise DeviceError(f"{self.device} has too little free memory for frames: close programs, or use device cpu")

        def cut(plane, begin, end, size=1):  # the frame's pixels from begin to end, in a plane of a `size`-th of them
            span = slice(begin // size, (end + size - 1) // size)
            return plane[..., span, :] if axis == 0 else plane[..., span]

        first = self._in_parts(function, cut(y, 0, middle + overlap), cut(uv, 0, middle + overlap, 2))
        second = self._in_parts(function, cut(y, middle - overlap, length), cut(uv, middle - overlap, length, 2))
        return tuple(
            np.concatenate([cut(one, 0, middle, size), cut(other, overlap, length, size)], axis - 2)
            for one, other, size in zip(first, second, (1, 2, 2), strict=True)
        )

    def _tensor(self, plane):
        if isinstance(plane, np.ndarray):  # PyTorch takes neither negative strides nor read-only memory
            plane = torch.from_numpy(np.require(plane, requirements=["C", "W"]))
        return plane.to(self.device)

    def _predict(self, y, uv, strength):
        """Residuals as tensors, and the gain as `steepen` takes it."""
        check_size(y)
        reduced = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype if reduced else None, enabled=reduced):
            changes = self._student.predict(y[None, None], uv[None])
        dy, duv, gain = (min(strength, STRENGTH_LIMIT) * change.float()[0] for change in changes)
        gain = (GAIN_STEPS * gain[0] + GAIN_ZERO).round_().clamp_(0, 255).to(torch.uint8)
        return dy[0], duv, gain.cpu().numpy()


def student_reach(student):
    """Return how far from a pixel the input lies that decides a student's residual there, in pixels, rounded up to 8.

    Convolutions one after the other reach as far as their kernels together, in cells of 4x4 pixels; the local mean
    (`models.local_mean`) reaches one cell more.
    """
    convolutions = [module for module in student.modules() if isinstance(module, torch.nn.Conv2d)]
    cells = 1 + sum(conv.kernel_size[0] // 2 * conv.dilation[0] for conv in convolutions)
    reach = 4 * cells + 3
    return reach + -reach % 8
