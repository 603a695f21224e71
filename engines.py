"""The choice of an engine; PyTorch is imported only if it is used."""

import importlib.util
import logging
import platform
from pathlib import Path

from runtime import ArtefactError, DeviceError, OpenVINOEngine
from utils import first_line

log = logging.getLogger(__name__)


def make_engine(checkpoint, device="auto"):
    """Choose the engine for a student.

    Args:
        checkpoint: path of its file; the int8 network lies beside it, see `runtime.artefact_path`.
        device: ``"auto"``: the first of CUDA, MPS, the int8 network on the CPU, and PyTorch on the CPU. A name that
            PyTorch knows (``"cpu"``, ``"cuda:1"``, ``"mps"``): PyTorch. ``"openvino"``, ``"openvino:GPU"``,
            ``"openvino:NPU"``: the int8 network there, by default on the CPU.

    Raises:
        CheckpointError: the checkpoint is missing or is not one.
        DeviceError: the device is unknown or missing, PyTorch is not installed, or OpenVINO cannot run this student.
    """
    library, _, name = device.partition(":")
    if library == "openvino":
        try:
            return OpenVINOEngine(checkpoint, name.upper() or "CPU")
        except ArtefactError as error:
            raise DeviceError(f"device {device!r} cannot be used: {error}") from error
    if device != "auto" or _has_gpu():
        return _torch_engine(checkpoint, device)
    try:
        return OpenVINOEngine(checkpoint)
    except DeviceError as error:  # an ArtefactError is one
        if not _has_torch():
            raise
        engine = _torch_engine(checkpoint, "cpu")
        log.warning("PyTorch is used, which is slower on a CPU than the int8 network: %s", error)
        return engine


def _torch_engine(checkpoint, device):
    try:
        from models import load_student
        from torch_engine import TorchEngine
    except (ImportError, OSError) as error:
        advice = "pip install -r requirements.txt"
        raise DeviceError(f"device {device!r} needs PyTorch ({first_line(error)}): {advice}") from error
    return TorchEngine(load_student(checkpoint)[0], device)


def _has_torch():
    return importlib.util.find_spec("torch") is not None


def _has_gpu():
    """Whether PyTorch finds a GPU. Importing it takes seconds, so that is done only if a GPU is likely."""
    if not _has_torch() or not _gpu_is_likely():
        return False
    try:
        from torch_engine import pick_device
    except (ImportError, OSError) as error:  # a broken PyTorch must not keep the int8 network from working
        log.warning("no GPU is used, as PyTorch cannot be loaded: %s", first_line(error))
        return False
    return pick_device().type != "cpu"


def _gpu_is_likely():
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    if platform.system() == "Windows":
        return Path("C:/Windows/System32/nvcuda.dll").exists()
    drivers = ("nvidia*", "nvhost*", "dxg", "kfd")  # NVIDIA, Tegra, WSL, AMD
    return any(any(Path("/dev").glob(driver)) for driver in drivers)
