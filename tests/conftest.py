import numpy as np
import pytest
import torch

import runtime
from models import Student, save_student


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
