import numpy as np
import pytest
import torch

from models import Student, save_student


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
