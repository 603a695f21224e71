import json
import re
import sys
import time

import numpy as np
import pytest
import torch

import evaluate as ev
from benchmark import speed
from benchmark.peers import FILTERS, Method
from inference import RealTimeSharpener
from models import RELEASED_STUDENT, Student
from runtime import checkpoint_digest
from video import VideoReader

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_command_writes_a_consistent_report(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "SIZES", {"360p": (96, 64), "540p": (128, 96), "1080p": (192, 128)})
    arguments = ["speed", "--seconds", "0", "--sizes", "360p", "540p", "--name", "mine"]
    assert ev.main(arguments) == 0
    folder = tmp_path / "results" / "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "speed.json"]
    report = json.loads((folder / "speed.json").read_text("utf-8"))
    assert report["command"] == ["python", "evaluate.py", *arguments]
    assert report["machine"]["cores"] >= 1 and report["versions"]["torch"] and report["left_out"] == []
    assert report["checkpoint"] == {"checkpoint": RELEASED_STUDENT.name, "sha256": checkpoint_digest(RELEASED_STUDENT)}
    measured = {(row["engine"], row["size"]) for row in report["engines"]}
    assert measured >= {("openvino CPU int8", size) for size in ("360p", "540p")}
    assert measured >= {("torch cpu float32", size) for size in ("360p", "540p")}
    assert [peer["name"] for peer in report["peers"]] == [*FILTERS]
    assert all(peer["ms_1080p"] > 0 for peer in report["peers"])
    (file,) = report["files"]
    for row in (*report["engines"], *(file[part] for part in ("whole", "decode", "encode"))):
        assert row["runs"] >= 3 and row["p95_ms"] >= row["median_ms"] > 0
        assert row["fps"] == pytest.approx(1000 / row["median_ms"])
    assert file["frames"] == 150 and file["size"] == "1080p" and file["kbps"] > 0
    assert file["peak_memory_mib"] > 100 or not sys.platform.startswith("linux")  # OpenVINO alone takes more
    page = (folder / "README.md").read_text("utf-8")
    assert report["int8_peak"] > 1 and f"reaches {report['int8_peak']:.0f} GMAC/s" in page
    assert page in capsys.readouterr().out
    assert len(re.findall(r"^\| (openvino|torch) .*\| (360p|540p) \|", page, re.MULTILINE)) == len(report["engines"])


def test_the_short_form_measures_the_student_alone_host_to_host_and_files(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "SIZES", {"720p": (64, 48), "1080p": (96, 64), "2160p": (128, 96)})
    monkeypatch.setattr(speed, "peak_memory", lambda *arguments: None)
    arguments = ["--checkpoint", str(checkpoint), "--device", "cpu", "--short", "--seconds", "0", "--name", "short"]
    assert ev.main(["speed", *arguments]) == 0
    report = json.loads((tmp_path / "results" / "short" / "speed.json").read_text("utf-8"))
    for engine in ("torch cpu float32", "network alone, on cpu"):
        assert [row["size"] for row in report["engines"] if row["engine"] == engine] == ["720p", "1080p", "2160p"]
    assert [(file["size"], file["frames"]) for file in report["files"]] == [(n, 20) for n in ("720p", "1080p", "2160p")]
    assert report["int8_peak"] is None and report["peers"] == [] and "Others" not in capsys.readouterr().out


def test_macs_are_those_of_the_convolutions():
    student = Student(channels=8, blocks=2)
    kernels = [module.weight.numel() for module in student.modules() if isinstance(module, torch.nn.Conv2d)]
    assert speed.count_macs(student, (640, 360)) == sum(kernels) * 160 * 90  # cells of 4x4 pixels


def test_turns_alternate_until_each_had_its_time():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = speed.time_in_turns(steps, 0, warmup=1, least=4)
    assert "".join(calls) == "ab" + "abababab" and [len(found) for found in times.values()] == [4, 4]
    del calls[:]
    times = speed.time_in_turns(steps, 0, warmup=0, least=2, warm=True)
    assert "".join(calls) == "aabbaabb" and [len(found) for found in times.values()] == [2, 2]
    busy = speed.time_in_turns({"a": lambda: None}, 0.001)["a"]
    assert len(busy) > 3 and sum(busy) >= 0.001


def test_no_frame_of_a_pan_comes_twice():
    frames = list(speed.pan((1300, 600), 3))
    assert len({y.tobytes() for y, _ in frames}) == len({uv.tobytes() for _, uv in frames}) == 3
    for y, uv in frames:
        assert y.shape == (600, 1300) and uv.shape == (2, 300, 650) and y.min() >= 16 and y.max() <= 235
    assert np.array_equal(frames[0][0][2:, 4:], frames[1][0][:-2, :-4])


def test_engines_that_do_not_work_here_are_left_out_with_a_reason(checkpoint):
    sharpener = RealTimeSharpener(checkpoint)  # it has no int8 network
    engines, left_out = speed.list_engines(sharpener, "auto")
    assert "torch cpu float32" in engines and not any("openvino" in name for name in engines)
    assert len(left_out) == 1 and "openvino" in left_out[0] and str(checkpoint.parent) not in left_out[0]
    assert list(speed.list_engines(RealTimeSharpener(checkpoint, "cpu"), "cpu")[0])[-1] == "torch cpu float32"


def test_the_clip_has_frames_and_sound(tmp_path):
    speed.make_clip(tmp_path / "clip.mp4", (96, 64), 10)
    with VideoReader(tmp_path / "clip.mp4", audio=True) as reader:
        frames = list(reader)
        assert reader.format.rate == speed.RATE and not reader.format.full_range
        sound = sum((frame.packets for frame in frames), reader.packets)
    assert [frame.y.shape for frame in frames] == [(64, 96)] * 10
    assert sum(packet.duration * packet.time_base for packet in sound) == pytest.approx(10 / speed.RATE, abs=0.05)
    expected = list(speed.pan((96, 64), 10))
    assert all(np.abs(f.y.astype(int) - y).mean() < 4 for f, (y, _) in zip(frames, expected, strict=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_peak_memory_of_a_process():
    held = np.ones(300 << 20, np.uint8)  # ours does not count
    assert 100 < speed.peak_memory("import sys; b = b'x' * (int(sys.argv[1]) << 20); del b", 100) < 200
    assert held[-1] == 1


@pytest.mark.parametrize(("size", "input_size", "scale"), [("1080p", (1920, 1080), 2), ("360p", (640, 360), 1)])
def test_the_time_of_a_method_is_that_of_a_full_frame(size, input_size, scale):
    """That of a slow one is measured on a part of the frame, and made sixteen times as long."""
    seen = []

    def method(part):
        def run(sample):
            sides = [(sample.size, 1920, 1080), (sample.input[0][0].shape[::-1], *input_size)]
            assert all(found == (width // part, height // part) for found, width, height in sides)
            assert not sample.full_range and sample.scale == scale
            seen.append(part)
            time.sleep(0.002)

        return Method(f"part {part}", "", run, is_slow=part > 1)

    times = speed.time_methods([method(1), method(4)], size, seconds=0)
    assert 2 / speed.FRAMES <= times["part 1"] < 200 / speed.FRAMES and 2 * 16 <= times["part 4"] < 200 * 16
    assert sorted(seen) == [1] * 5 + [4] * 5
