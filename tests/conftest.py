from fractions import Fraction

import numpy as np
import pytest
import skimage.data
import torch

import runtime
from dataset import animate
from export import export
from inference import RealTimeSharpener
from models import Student, save_student
from utils import bgr_to_planes, to_limited_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoWriter


@pytest.fixture(scope="session", autouse=True)
def cache_of_compiled_networks(tmp_path_factory):
    """Keeps the user's own cache out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_cache_folder", lambda: tmp_path_factory.getbasetemp() / "openvino")
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def student():
    """A small student whose weights are random: its residual is visible, about one part in a hundred."""
    torch.manual_seed(0)
    student = Student(channels=8, blocks=1).eval()
    torch.nn.init.normal_(student.tail.weight, std=0.02)
    return student


@pytest.fixture
def checkpoint(student, tmp_path):
    path = tmp_path / "student.pth"
    save_student(path, student, meta={"teacher": "none"})
    return path


def make_student(channels=8, blocks=1):
    """A random student that changes noise by some 20 levels."""
    torch.manual_seed(0)
    student = Student(channels, blocks).eval()
    torch.nn.init.normal_(student.tail.weight)
    with torch.no_grad():
        dy, *_ = student.predict(torch.rand(1, 1, 64, 64), torch.rand(1, 2, 32, 32))
        student.tail.weight *= 0.15 / dy.std()
    return student


def write_video(path, count=34, size=(128, 96), velocity=(1, 0.5)):
    """Write a pan over a photo as a video file, nearly without loss, and return its path as a string."""
    photo = np.ascontiguousarray(skimage.data.astronaut()[..., ::-1])
    frames = animate(photo, count, size[::-1], velocity, np.random.default_rng(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, VideoFormat(*size, Fraction(25), **BT601_LIMITED), quality=8) as writer:
        for frame in frames:
            writer.write(Frame(*to_limited_range(*bgr_to_planes(frame))))
    return str(path)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Checkpoint of a student that changes a lot, with its int8 network beside it."""
    path = tmp_path_factory.mktemp("student") / "student.pth"
    save_student(path, make_student(), {"note": "random"})
    export(path, frames=2, steps=2, progress=False)
    return path


@pytest.fixture(scope="session")
def sharpener(exported):
    return RealTimeSharpener(exported, "cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with a folder ``clips`` of six videos of 14 frames."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(6):
        write_video(folder / "clips" / f"{number}.mp4", 14, (256, 224), (1, number / 5))
    return folder
