"""Full disks and long runs of the programs. Killed processes are in test_train.py and test_dataset.py."""

import gc
import os
import sys
from pathlib import Path

import av
import cv2
import pytest
import skimage.data

import evaluate
import inference
from inference import RealTimeSharpener
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


def test_a_full_disk_ends_an_evaluation(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "cats").mkdir(parents=True)
    cv2.imwrite("data/cats/a.png", skimage.data.chelsea()[:128, :160, ::-1])
    arguments = ["--protocol", "image", "--data", "data", "--checkpoint", str(checkpoint), "--device", "cpu", "--quick"]
    check_full_disk(evaluate.main, arguments, 20_000, tmp_path / "results" / "quick" / "report.html", capsys)


def resources():
    """What this process holds: ``(MiB of memory, threads, open files)``."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(os.listdir("/proc/self/fd"))


def check_growth(samples):
    """From a fifth of a run to its end memory hardly grows, threads and open files not at all."""
    (memory, threads, files), (last_memory, last_threads, last_files) = samples[len(samples) // 5], samples[-1]
    assert last_memory <= 1.05 * memory + 20 and last_threads <= threads and last_files <= files, samples


def test_a_long_video_and_many_sharpeners_leave_memory_flat(checkpoint, tmp_path):
    source, output, samples = write_video(tmp_path / "long.mp4", 300, (320, 192), (0.3, 0.2)), tmp_path / "o.mp4", []
    stats = RealTimeSharpener(checkpoint, "cpu").process_video_stream(
        source, output, on_frame=lambda number, picture: samples.append(resources())
    )
    assert stats["frames"] == count_frames(output) == len(samples) == 300
    check_growth(samples)

    source, samples = write_video(tmp_path / "short.mp4", 3), []
    for _ in range(10):
        RealTimeSharpener(checkpoint, "cpu").process_video_stream(source, output)
        gc.collect()
        samples.append(resources())
    check_growth(samples)
