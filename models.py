"""The two networks: the teacher that knows (BSRGAN's RRDBNet) and the student that runs (`Student`).

A student checkpoint is plain data: ``model`` (weights), ``model_args`` (arguments of `Student`) and ``meta`` (where it
comes from). It is loaded without executing anything and rebuilds its own model.
"""

import pickle
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from utils import atomic_path

CHECKPOINT_DIR = Path(__file__).resolve().parent / "checkpoints"
RELEASED_STUDENT = CHECKPOINT_DIR / "best_student_model.pth"


class CheckpointError(RuntimeError):
    """A checkpoint file is missing or is not what it should be. The message says what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# Student


class ResidualBlock(nn.Module):
    """conv-ReLU-conv with a skip, without normalisation (Lim et al., EDSR, CVPRW 2017)."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)))


class Student(nn.Module):
    """Ultra-light sharpener on the planes of YUV 4:2:0 video; all layers work at a quarter of the frame's size.

    Luma is folded by 4 and chroma by 2 to one map of 16 + 8 channels, so that a 3x3 convolution sees 12x12 pixels and
    costs a sixteenth. The output is a residual that is added to the input: an untrained student is the identity.

    Args:
        channels: width of the residual blocks.
        blocks: number of residual blocks.
    """

    def __init__(self, channels=32, blocks=4):
        super().__init__()
        self.args = {"channels": channels, "blocks": blocks}
        self.head = nn.Conv2d(24, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.tail = nn.Conv2d(channels, 24, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)

    def residual(self, y, uv):
        """What the student would add, before scaling: `(dy, duv)` of the shapes of `forward`'s arguments."""
        height, width = y.shape[-2:]
        bottom, right = -height % 8, -width % 8
        if bottom or right:
            y = F.pad(y, (0, right, 0, bottom), mode="replicate")
            missing = (y.shape[-1] // 2 - uv.shape[-1], y.shape[-2] // 2 - uv.shape[-2])
            uv = F.pad(uv, (0, missing[0], 0, missing[1]), mode="replicate")
        x = torch.cat([F.pixel_unshuffle(y, 4), F.pixel_unshuffle(uv, 2)], dim=1)  # (N, 24, H/4, W/4)
        x = self.tail(self.body(F.relu(self.head(x))))
        dy = F.pixel_shuffle(x[:, :16], 4)[..., :height, :width]
        duv = F.pixel_shuffle(x[:, 16:], 2)[..., : (height + 1) // 2, : (width + 1) // 2]
        return dy, duv

    def forward(self, y, uv, strength=1.0):
        """Sharpen full-range planes in [0, 1].

        Args:
            y: luma ``(N, 1, H, W)``, any H and W from 16.
            uv: chroma ``(N, 2, ceil(H/2), ceil(W/2))``, 0.5 is neutral.
            strength: scale of the residual; 0 is the identity.

        Returns:
            The sharpened ``(y, uv)``, not clamped.
        """
        dy, duv = self.residual(y, uv)
        return y + strength * dy, uv + strength * duv


def save_student(path, student, meta):
    """Write a student and its `meta` (plain data) to `path`: completely or not at all."""
    checkpoint = {"model": student.state_dict(), "model_args": student.args, "meta": meta}
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)


def load_student(path=RELEASED_STUDENT):
    """Read a checkpoint of `save_student` on the CPU, in evaluation mode; no code in the file is executed.

    Returns:
        ``(student, meta)``.

    Raises:
        CheckpointError: the file is missing, not a checkpoint, of another model, or holds weights that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: train one with `python train.py` or name another")
    checkpoint = read_weights(path)
    if not isinstance(checkpoint, dict) or not {"model", "model_args", "meta"} <= checkpoint.keys():
        raise CheckpointError(f"{path} is not a student checkpoint: it needs `model`, `model_args` and `meta`")
    try:
        student = Student(**checkpoint["model_args"])
        student.load_state_dict(checkpoint["model"])
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit this version's student: {_first_line(error)}") from error
    if not all(torch.isfinite(weights).all() for weights in student.parameters()):
        raise CheckpointError(f"{path} holds weights that are not finite: the training that wrote it failed")
    return student.eval(), checkpoint["meta"]


def read_weights(path):
    """Read tensors and plain data from `path` onto the CPU without executing code, or raise `CheckpointError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read as plain weights ({_first_line(error)}): it is damaged, not a checkpoint, or holds "
            "code, which is refused"
        ) from error


def _first_line(error):
    return str(error).strip().split("\n")[0][:200]
