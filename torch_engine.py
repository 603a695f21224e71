"""The engine that runs a student with PyTorch, on every device that PyTorch knows."""

import copy
import logging

import numpy as np
import torch

import runtime
from runtime import DeviceError, detail_shares, limit_halo, scale_gain, steepen

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
    """Return the fastest type of convolutions on `device` without visible loss, and the reason.

    CPUs without instructions for bfloat16 emulate it, more slowly than float32.
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
    """Runs a student with PyTorch; only the convolutions run at reduced precision.

    Args:
        student: a `models.Student`, which is copied.
        device: ``"auto"``, or a name that PyTorch knows.
        dtype: of the convolutions; None leaves it to `pick_precision`.

    Attributes:
        device: the `torch.device` in use.
        description: device and precision, for reports.
        identity: the description and whatever else decides the output.

    Raises:
        DeviceError: the device is unknown or missing, or, when called, out of memory.
    """

    def __init__(self, student, device="auto", dtype=None):
        self.device = pick_device(device)
        self._dtype, reason = (dtype, "as asked for") if dtype else pick_precision(self.device)
        self.description = self.identity = f"torch {self.device} {str(self._dtype).removeprefix('torch.')}"
        self._student = copy.deepcopy(student).eval().to(self.device, memory_format=torch.channels_last)
        log.info("%s (%s)", self.description, reason)

    @torch.inference_mode()
    def __call__(self, y, uv, full_range=False, strength=1.0):
        """Sharpen the planes of a video frame.

        The student sees limited range stretched to full range; its residual is scaled back and added to the planes as
        they came, so that what it leaves alone stays bit for bit the same.

        Args:
            y, uv: uint8 arrays ``(H, W)`` and ``(2, ceil(H/2), ceil(W/2))``.
            full_range: luma spans 0-255 instead of 16-235.
            strength: 0 is the identity; see `models.Student.forward`.

        Returns:
            ``(y, uv)``, new uint8 arrays.
        """
        if strength == 0:
            return y.copy(), uv.copy()
        planes = [self._tensor(plane) for plane in (y, uv)]
        if full_range:
            scale = runtime.FULL_RANGE_SCALE
            stretched = [plane.float().mul_(1 / 255) for plane in planes]
        else:
            scale = runtime.LIMITED_RANGE_SCALE
            stretched = [
                planes[0].float().sub_(16).mul_(1 / scale[0]),
                planes[1].float().sub_(128).mul_(1 / scale[1]).add_(128 / 255),
            ]
        *residuals, shares = self._predict(*stretched, strength)
        sharp, sharp_uv = (
            residual.mul(codes).round_().add_(plane).clamp_(0, 255).to(torch.uint8).cpu().numpy()
            for plane, residual, codes in zip(planes, residuals, scale, strict=True)
        )
        return limit_halo(steepen(sharp, *shares), y), sharp_uv

    @torch.inference_mode()
    def difference(self, y, uv, strength=1.0):
        """Return what sharpening would add to full-range planes, ``(dy, duv)`` of the same shapes and types.

        Changes of uint8 planes are in codes around 128, those of float32 planes on the scale of [0, 1].

        Args:
            y: luma ``(H, W)``, uint8, or float32 in [0, 1].
            uv: chroma ``(2, ceil(H/2), ceil(W/2))`` likewise; 128/255 is neutral.
            strength: see `__call__`.
        """
        planes = [self._tensor(plane) for plane in (y, uv)]
        if y.dtype == np.uint8:
            planes = [plane.float() / 255 for plane in planes]
        *changes, shares = self._predict(*planes, strength)
        dy, duv = (change.cpu().numpy() for change in changes)
        codes = y.astype(np.float32) if y.dtype == np.uint8 else 255 * y
        dy = limit_halo(steepen(np.clip(codes + 255 * dy, 0, 255), *shares), codes) - codes
        if y.dtype != np.uint8:
            return dy / 255, duv
        return tuple(np.clip(np.rint(change) + 128, 0, 255).astype(np.uint8) for change in (dy, 255 * duv))

    def _tensor(self, plane):
        # PyTorch takes neither negative strides nor read-only memory.
        return torch.from_numpy(np.require(plane, requirements=["C", "W"])).to(self.device)

    def _predict(self, y, uv, strength):
        """Return residuals as tensors, and the gain's `detail_shares`."""
        reduced = self._dtype != torch.float32
        try:
            with torch.autocast(self.device.type, self._dtype if reduced else None, enabled=reduced):
                changes = self._student.predict(y[None, None], uv[None])
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"{self.device} has too little free memory: close programs, or use device cpu") from error
        strength = min(strength, runtime.STRENGTH_LIMIT)
        dy, duv, gain = (change.float()[0] for change in changes)
        return strength * dy[0], strength * duv, detail_shares(scale_gain(gain[0].cpu().numpy(), strength))
