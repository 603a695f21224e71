"""The lock file and the oldest tested versions fit the requirements."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK, MINIMUM = ROOT / "requirements-lock.txt", ROOT / "tests" / "minimum-versions.txt"


def read_requirements():
    names = ("requirements-inference.txt", "requirements.txt", "requirements-dev.txt")
    lines = [line for name in names for line in (ROOT / name).open()]
    lines = [line.partition(" #")[0].strip() for line in lines]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


def read_versions(path):
    """Versions in a file of ``name==version`` lines, by name."""
    return dict(re.findall(r"^([\w.-]+)==([^\s\\]+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("requirement", read_requirements(), ids=lambda requirement: requirement.name)
def test_requirements_have_bounds_that_are_tested(requirement):
    bounds = {bound.operator: bound.version for bound in requirement.specifier}
    assert bounds.keys() in ({"=="}, {">=", "<"}), "a lower and an upper bound"
    for path in (LOCK, MINIMUM):
        assert requirement.specifier.contains(read_versions(path)[requirement.name]), path.name
    lower = bounds.get(">=") or bounds["=="]
    oldest = Version(read_versions(MINIMUM)[requirement.name])
    assert oldest.release[: lower.count(".") + 1] == Version(lower).release  # 6.0 is 6.0.x


def test_every_package_in_the_lock_file_has_hashes_and_comes_from_the_public_index():
    text = re.sub(r"^ *#.*\n", "", LOCK.read_text(), flags=re.MULTILINE)
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(read_versions(LOCK))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert not re.search(r"://|file:|@|--(?!hash=)", text)
    assert all(not Version(version).local for version in read_versions(LOCK).values())
