"""Full disks. Killed processes are in test_train.py."""

import sys

import av
import cv2
import pytest
import skimage.data
from PIL import Image

import evaluate
import inference
from tests.conftest import write_video
from tests.faults import full_disk, leftovers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of file size and /proc are Linux's")


def count_frames(path):
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def check_full_disk(main, arguments, limit, output, capsys):
    """A script ends with one line on a full disk and leaves no half file; with room the same command succeeds."""
    with full_disk(limit):
        assert main(arguments) == 2
    assert "File too large" in capsys.readouterr().err.rstrip().splitlines()[-1]
    assert not output.exists() and not leftovers(output.parent)
    assert main(arguments) == 0 and output.exists()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_ends_a_video(checkpoint, tmp_path, capsys, suffix):
    source, output = write_video(tmp_path / "clip.mp4", 60, (320, 240)), tmp_path / f"out{suffix}"
    arguments = [source, "-o", str(output), "--device", "cpu", "--checkpoint", str(checkpoint)]
    check_full_disk(inference.main, arguments, 16_000, output, capsys)
    assert count_frames(output) == 60


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_a_full_disk_ends_a_picture(checkpoint, tmp_path, capsys, suffix):
    source, output, exif = tmp_path / "in.jpg", tmp_path / f"out{suffix}", Image.Exif()
    exif[0x010F] = "maker"  # with it a TIFF is not compressed
    Image.fromarray(skimage.data.chelsea()).save(source, exif=exif)
    arguments = [str(source), "-o", str(output), "--device", "cpu", "--checkpoint", str(checkpoint)]
    check_full_disk(inference.main, arguments, 8192, output, capsys)


def test_a_full_disk_ends_an_evaluation(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "cats").mkdir(parents=True)
    cv2.imwrite("data/cats/a.png", skimage.data.chelsea()[:128, :160, ::-1])
    arguments = ["--protocol", "image", "--data", "data", "--checkpoint", str(checkpoint), "--device", "cpu", "--quick"]
    check_full_disk(evaluate.main, arguments, 20_000, tmp_path / "results" / "quick" / "report.html", capsys)
