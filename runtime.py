"""Engines that run a student on the planes of video frames.

An engine has two methods: `residual`, what the student would add to full-range planes, in float; and the call itself,
uint8 planes in and out as video carries them.
"""

import copy
import logging

import numpy as np
import torch

log = logging.getLogger(__name__)

# uint8 codes for a step of 1 in full-range [0, 1] planes (ITU-R BT.601 and BT.709): luma, chroma.
_FULL_RANGE_SCALE = (255, 255)
_LIMITED_RANGE_SCALE = (219, 224)


class DeviceError(RuntimeError):
    """The device that was asked for is not there."""


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

    float16 on CUDA; bfloat16 on CPUs with instructions for it (AVX512-BF16, AMX: about four times faster than
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

    Only the convolutions run at reduced precision; the input that the residual is added to stays as it is.

    Args:
        student: a `models.Student`; it is copied, later changes to it are not seen.
        device: ``"auto"``, or a name that PyTorch knows.

    Attributes:
        device: the `torch.device` in use.
        description: device and precision, for reports.

    Raises:
        DeviceError: the device is unknown or missing.
    """

    def __init__(self, student, device="auto"):
        self.device = pick_device(device)
        self._dtype, reason = pick_precision(self.device)
        self.description = f"torch {self.device} {str(self._dtype).removeprefix('torch.')}"
        self._student = copy.deepcopy(student).eval().to(self.device, memory_format=torch.channels_last)
        log.info("%s (%s)", self.description, reason)

    @torch.inference_mode()
    def residual(self, y, uv):
        """What the student would add to full-range planes.

        Args:
            y: luma ``(H, W)``, uint8, or float32 in [0, 1]; an array or a tensor.
            uv: chroma ``(2, ceil(H/2), ceil(W/2))`` likewise; 128/255 is neutral.

        Returns:
            ``(dy, duv)``, float32 of the same shapes and on the same scale as [0, 1], arrays for arrays.
        """
        planes = [self._tensor(plane) for plane in (y, uv)]
        planes = [plane.float() / 255 if plane.dtype == torch.uint8 else plane for plane in planes]
        residuals = self._residual(*planes)
        return tuple(r.cpu().numpy() for r in residuals) if isinstance(y, np.ndarray) else residuals

    @torch.inference_mode()
    def __call__(self, y, uv, full_range=False, strength=1.0):
        """Sharpen the planes of a video frame.

        Limited-range planes are stretched to full range for the student; its residual is scaled back and added to the
        planes as they came, so that what the student leaves alone stays bit for bit the same.

        Args:
            y, uv: uint8 arrays ``(H, W)`` and ``(2, ceil(H/2), ceil(W/2))``.
            full_range: luma spans 0-255 instead of 16-235.
            strength: scale of the residual; 0 is the identity.

        Returns:
            ``(y, uv)``, new uint8 arrays.
        """
        if strength == 0:
            return y.copy(), uv.copy()
        planes = [self._tensor(plane) for plane in (y, uv)]
        if full_range:
            scale = _FULL_RANGE_SCALE
            stretched = [plane.float().mul_(1 / 255) for plane in planes]
        else:
            scale = _LIMITED_RANGE_SCALE
            stretched = [
                planes[0].float().sub_(16).mul_(1 / scale[0]),
                planes[1].float().sub_(128).mul_(1 / scale[1]).add_(128 / 255),
            ]
        residuals = self._residual(*stretched)
        sharp = []
        for plane, residual, codes in zip(planes, residuals, scale, strict=True):
            change = residual.mul(strength * codes).round_().add_(plane)
            sharp.append(change.clamp_(0, 255).to(torch.uint8).cpu().numpy())
        return tuple(sharp)

    def _tensor(self, plane):
        if isinstance(plane, np.ndarray):  # PyTorch takes neither negative strides nor read-only memory
            plane = torch.from_numpy(np.require(plane, requirements=["C", "W"]))
        return plane.to(self.device)

    def _residual(self, y, uv):
        reduced = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype if reduced else None, enabled=reduced):
            dy, duv = self._student.residual(y[None, None], uv[None])
        return dy[0, 0].float(), duv[0].float()
