"""What is installed: the lock file, the oldest versions and the licences fit the requirements."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import supply

ROOT = Path(__file__).resolve().parent.parent
LOCK, MINIMUM = ROOT / "requirements-lock.txt", ROOT / "tests" / "minimum-versions.txt"


def required():
    """The requirements of requirements.txt and requirements-dev.txt."""
    lines = "\n".join((ROOT / name).read_text() for name in ("requirements.txt", "requirements-dev.txt")).splitlines()
    lines = [line.partition(" #")[0].strip() for line in lines]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


def pinned(path):
    """The versions in a file of `NAME==VERSION` lines, by name."""
    return dict(re.findall(r"^([\w.-]+)==([^\s\\]+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", [LOCK, MINIMUM], ids=lambda path: path.name)
def test_pinned_versions_are_within_the_bounds(path):
    versions = pinned(path)
    for requirement in required():
        assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_minimum_versions_are_the_lower_bounds():
    versions = pinned(MINIMUM)
    assert versions.keys() == {requirement.name for requirement in required()}
    for requirement in required():
        lower = next(bound.version for bound in requirement.specifier if bound.operator in (">=", "=="))
        oldest = Version(versions[requirement.name])
        assert oldest.release[: lower.count(".") + 1] == Version(lower).release, requirement  # 6.0 is 6.0.x


def test_lock_file_is_for_the_public_index():
    text = LOCK.read_text()
    assert not re.search(
        r"^\s*-|://|file:|@", re.sub(r"^ *--hash=sha256:|^#.*", "", text, flags=re.MULTILINE), re.MULTILINE
    )
    assert all(not Version(version).local for version in pinned(LOCK).values())
    entries = re.split(r"^(?=[\w.-]+==)", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    assert len(entries) == len(pinned(LOCK))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)


@pytest.mark.parametrize(
    ("declared", "files", "expected"),
    [
        ("MIT", [], ""),
        ("GPL-3.0-or-later", [], "copyleft"),
        ("GNU Lesser General Public License v2 (LGPLv2)", [], "copyleft"),
        ("AGPL-3.0", [], "copyleft"),
        ("BSD-3-Clause", ["libx264-d6533a8d.so.165"], "bundled"),
        ("BSD-3-Clause", ["ffmpeg-linux-x86_64-v7.0.2"], "bundled"),
        ("LicenseRef-NVIDIA-Proprietary", [], "proprietary"),
        ("", [], "unknown"),
    ],
)
def test_licences_are_marked(declared, files, expected):
    assert supply.mark(declared, supply.contents(files)) == expected


def test_what_is_required_is_explained(capsys):
    supply.main()
    listed = capsys.readouterr().out
    unexplained = re.search(r"not explained: (.*)$", listed).group(1).split(", ")
    assert not {requirement.name for requirement in required()} & set(unexplained), listed
