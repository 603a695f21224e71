"""The command line, with a small random student."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from batch import plan_files
from demo import run_demo
from images import Picture, read_image, write_image
from inference import RealTimeSharpener, main, make_parser
from tests.conftest import CONSTANT, broken_file, encode, read_times
from tests.test_inference import ROOT, noise
from video import VideoReader

# ----------------------------------------------------------------------------------------------------------------------
# One source


def run_script(*arguments, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, ROOT / "inference.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean | environment,
        cwd=Path(arguments[0]).parent if Path(arguments[0]).parent.is_dir() else ROOT,
    )


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import demo
from inference import RealTimeSharpener, main
assert [main([source, "--overwrite"]) for source in sys.argv[1:]] == [0, 0]
assert main([sys.argv[1], "--overwrite", "--device", "cpu"]) == 2
used = {name for name, module in sys.modules.items() if module}
assert not used & {"torch", "torchvision", "skimage", "scipy", "matplotlib", "pandas", "yaml"}
"""


def test_pictures_videos_and_the_demo_need_no_pytorch(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), noise(40, 56, dtype=np.uint16))
    sources = [tmp_path / "deep.png", encode(tmp_path / "in.mp4", times=CONSTANT[:4])]
    run = [sys.executable, "-c", WITHOUT_TORCH, *sources]
    found = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert re.fullmatch(
        r"inference.py: device 'cpu' needs PyTorch \(.*\): pip install -r requirements.txt\n", found.stderr
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("text", "cannot be read as a video"),
        ("checkpoint", "not a checkpoint"),
        ("camera", "camera 0 cannot be opened"),
        ("display", "no display"),
        ("dead display", "no display"),
    ],
)
def test_bad_input_ends_in_one_line(exported, tmp_path, kind, message):
    if kind == "camera" and Path("/dev/video0").exists():
        pytest.skip("this machine has a camera")
    good = encode(tmp_path / "good.mp4", times=CONSTANT)
    window = kind.endswith("display")
    source = good.as_uri() if window else {"checkpoint": good, "camera": "0"}.get(kind) or broken_file(tmp_path, kind)
    before = sorted(tmp_path.iterdir())
    output = [] if window else ["-o", tmp_path / "out.mp4"]
    display = {"DISPLAY": ":987"} if kind == "dead display" else {}
    result = run_script(source, "--checkpoint", good if kind == "checkpoint" else exported, *output, **display)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr, result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither for one child")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_exits_with_130_and_keeps_the_first_frames_as_a_partial_file(sent, exported, tmp_path):
    source = encode(
        tmp_path / "long.mp4", times=range(0, 160_000, 40), size=(320, 240), options={"preset": "ultrafast"}
    )
    command = [sys.executable, ROOT / "inference.py", source, "--checkpoint", exported]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(p.stat().st_size > 50_000 for p in tmp_path.glob(".long*")):
        time.sleep(0.05)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    output, partial = tmp_path / "long_sharpened.mp4", tmp_path / "long_sharpened_partial.mp4"
    times = read_times(partial)
    assert 0 < len(times) < 4000 and times == [40 * index for index in range(len(times))]
    kept = f"{output}: interrupted; the {len(times)} frames before are in {partial}\n"
    assert (process.returncode, stderr) == (130, kept) and sorted(tmp_path.iterdir()) == [source, partial]


def test_codec_and_quality_from_the_command_line(exported, tmp_path, capsys):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=CONSTANT)
    arguments = [str(source), "-o", str(tmp_path / "out.mp4"), "--strength", "0", "--checkpoint", str(exported)]
    assert main([*arguments, "--crf", "60"]) == 2
    assert "0 (best) to 51, got 60" in capsys.readouterr().err
    assert main([*arguments, "--codec", "none"]) == 2
    assert "no video encoder none" in capsys.readouterr().err
    assert main([*arguments, "--codec", "h264", "--crf", "0"]) == 0
    with VideoReader(source) as before, VideoReader(tmp_path / "out.mp4") as after:
        for a, b in zip(before, after, strict=True):
            assert np.array_equal(a.y, b.y) and np.array_equal(a.uv, b.uv)


def test_existing_output_needs_overwrite(sharpen, tmp_path):
    make_images(tmp_path, "in.png")
    (tmp_path / "in_sharpened.png").write_text("mine")
    code, _, err = sharpen("in.png")
    assert code == 2 and "--overwrite" in err[0]
    assert (tmp_path / "in_sharpened.png").read_text() == "mine"
    assert sharpen("in.png", "--strength", "0", "--overwrite")[0] == 0
    assert np.array_equal(read_image(tmp_path / "in_sharpened.png").pixels, noise(16, 20))


@pytest.mark.skipif(os.name == "nt", reason="it has neither such names nor links")
def test_odd_names_and_links(exported, tmp_path):
    video = encode(tmp_path / os.fsdecode(b"caf\xe9.mp4"), times=CONSTANT)
    result = run_script(video, "--checkpoint", exported, LANG="en_US.UTF-8")
    assert (result.returncode, result.stderr) == (0, "") and "caf?_sharpened.mp4" in result.stdout
    make_images(tmp_path, "in.png", "real.png")
    (tmp_path / "link.png").symlink_to("real.png")
    result = run_script(tmp_path / "in.png", "--checkpoint", exported, "-o", tmp_path / "link.png", "--overwrite")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "link.png").is_symlink() and read_image(tmp_path / "real.png").pixels.shape == (16, 20, 3)


def test_an_image_is_not_its_own_output(sharpen, tmp_path):
    make_images(tmp_path, "in.png")
    code, _, err = sharpen("in.png", "-o", "in.png", "--overwrite")
    assert code == 2 and "is the input itself" in err[0]


@pytest.mark.parametrize("path", ["cam?password=s3cret&access_token=s3cret", "cam_user=a_pwd=s3cret_channel=1"])
@pytest.mark.parametrize("user", ["jane:s3cret", "jane:/s3cret", "jane:s/3@s3cret"])
def test_passwords_are_not_shown(capsys, user, path):
    assert main([f"rtsp://{user}@127.0.0.1:9/{path}"]) == 2
    err = capsys.readouterr().err
    assert "s3cret" not in err and "rtsp://***@127.0.0.1:9/cam" in err


def test_a_name_may_begin_with_a_dash(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path, "-in.png")
    assert main(["--checkpoint", str(exported), "--", "-in.png"]) == 0
    assert (tmp_path / "-in_sharpened.png").exists()


def test_demo_needs_nothing(sharpener, tmp_path, capsys):
    run_demo(sharpener, tmp_path, seconds=0.4)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"person.mp4", "text.mp4", "nature.mp4", "comparison.png"}
    assert read_image(tmp_path / "comparison.png").pixels.shape == (900, 1200, 3)
    with av.open(str(tmp_path / "person.mp4")) as container:
        sizes = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert sizes == [(896, 448)] * 10  # beside each other at the clip's own size
    assert "->" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# Many files


@pytest.fixture
def sharpen(exported, tmp_path, monkeypatch, capsys):
    """Run the command line in `tmp_path`; returns the exit code, stdout and the lines of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([*map(str, arguments), "--checkpoint", str(exported), "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


def make_images(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, Picture(noise(16, 20, seed)))


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def shift_time(path, seconds):
    status = path.stat()
    os.utime(path, (status.st_atime, status.st_mtime + seconds))


def test_a_folder_is_mirrored_and_bad_files_are_listed(sharpen, tmp_path, caplog):
    folder = tmp_path / "holiday"
    make_images(folder, "one.png", "deeper/two.jpg", "deeper/.hidden.png", ".thumbnails/one.png")
    encode(folder / "deeper" / "clip.mp4", times=CONSTANT)
    (folder / "broken.mp4").write_text("not a video")
    (folder / "broken.png").touch()
    (folder / "notes.txt").write_text("not for us")
    code, out, err = sharpen("holiday")
    assert code == 2
    assert names_below(tmp_path / "holiday_sharpened") == ["deeper/clip.mp4", "deeper/two.jpg", "one.png"]
    assert "3 written, 0 already there, 2 failed" in out
    assert len(err) == 2 and "broken.mp4" in err[0] and "broken.png is empty" in err[1]
    assert "1 file of other types left out (.txt)" in caplog.text


def test_videos_of_a_folder_that_can_only_be_read_become_mp4(tmp_path):
    for name in ("a.ts", "b.MTS", "c.flv", "notes.txt"):
        (tmp_path / name).touch()
    jobs = plan_files([str(tmp_path)], tmp_path / "out")
    assert [target.name for _, target in jobs] == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize("output", ["sharp", "holiday/sharp/"])
def test_a_pattern_is_expanded_at_any_depth_and_mirrored(sharpen, sharpener, tmp_path, output):
    make_images(tmp_path / "holiday", "one.png", "deeper/two.png", "deeper/deepest/three.png", "deeper/four.jpg")
    for counts in ("3 written, 0 already there", "0 written, 3 already there"):
        code, out, err = sharpen("holiday/**/*.png", "-o", output)
        assert (code, err) == (0, []) and counts in out
        assert names_below(tmp_path / output) == ["deeper/deepest/three.png", "deeper/two.png", "one.png"]
    sharp = read_image(tmp_path / output / "deeper" / "two.png").pixels
    assert np.array_equal(sharp, sharpener.sharpen(noise(16, 20, 1)))


def test_several_files_go_beside_themselves_or_into_a_folder(sharpen, tmp_path):
    make_images(tmp_path, "a.png", "other/b.jpg", "c[1].png")
    encode(tmp_path / "clip.mkv", codec="ffv1", times=CONSTANT[:3])
    (tmp_path / "clip.mkv").rename(tmp_path / "clip.mxf")
    sources = ["a.png", "other/b.jpg", "clip.mxf", "a.png", "c[1].png"]
    assert sharpen(*sources)[0] == 0
    made = {"a_sharpened.png", "other/b_sharpened.jpg", "clip_sharpened.mp4", "c[1]_sharpened.png"}
    assert {name for name in names_below(tmp_path) if "sharpened" in name} == made
    assert sharpen(*sources, "-o", "sharp")[0] == 0
    assert names_below(tmp_path / "sharp") == ["a.png", "b.jpg", "c[1].png", "clip.mp4"]
    assert sharpen("a.png", "-o", "new/")[0] == 0  # as where a shell's pattern finds a single file
    assert names_below(tmp_path / "new") == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x/a.png", "y/a.png", "y/b.png", "-o", "sharp"], "would both be written to sharp"),
        (["x", "y", "-o", "sharp"], "would both be written to sharp"),
        (["y", "-o", "y"], "would be replaced"),
        (["y/a.png", "y/b.png", "-o", "y"], "would be replaced"),
        (["y/a.png", "y/b.png", "-o", "sharp.png"], "is not a folder"),
        (["y/*.png", "-o", "x/a.png"], "is not a folder"),
        (["y/*.webm"], "names no image or video"),
        (["y", "empty"], "names no image or video"),
        (["y/a_sharpened.png", "y/b_sharpened.png"], "written by this program"),
        (["--demo", "-o", "demo"], "comparison.png exists already"),
        (["y/a.png", "0"], "run alone"),
        (["y/a.png", "rtsp://localhost/stream"], "run alone"),
        (["--demo", "y"], "run alone"),
        (["--demo", "--screen"], "run alone"),
        (["--screen", "2", "y/a.png"], "run alone"),
        (["y", "--size", "banana"], "banana is no size"),
        (["y", "--size", ""], "is no size"),
        (["y", "--size", "40000x3"], "size 40000x3"),
        (["y", "--size", "window"], "for a live window"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(sharpen, tmp_path, arguments, message):
    outputs = "y/a_sharpened.png", "y/b_sharpened.png", "demo/comparison.png"
    make_images(tmp_path, "x/a.png", "y/a.png", "y/b.png", *outputs)
    (tmp_path / "empty").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, out, err = sharpen(*arguments)
    assert (code, out, len(err)) == (2, "", 1) and message in err[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_is_done_is_skipped_and_what_is_stale_is_said(sharpen, tmp_path):
    make_images(tmp_path / "in", "a.png", "b.png", "c.png")
    assert sharpen("in", "-o", "out")[0] == 0
    outputs = [tmp_path / "out" / name for name in ("a.png", "b.png", "c.png")]
    times = [path.stat().st_mtime_ns for path in outputs]
    make_images(tmp_path / "in", "d.png")
    code, out, err = sharpen("in", "-o", "out")
    assert (code, err) == (0, []) and "1 written, 3 already there" in out
    assert [path.stat().st_mtime_ns for path in outputs] == times

    shift_time(tmp_path / "in" / "b.png", 3600)
    code, out, err = sharpen("in", "-o", "out")
    assert code == 2 and "0 written, 3 already there, 1 failed" in out
    assert len(err) == 1 and f"{Path('out', 'b.png')} exists already" in err[0]
    assert [path.stat().st_mtime_ns for path in outputs] == times
    assert sharpen("in", "-o", "out", "--overwrite", "--strength", "0")[0] == 0
    assert np.array_equal(read_image(outputs[0]).pixels, noise(16, 20, 0))


def test_outputs_of_earlier_runs_are_no_sources(sharpen, tmp_path):
    make_images(tmp_path, "a.png", "in/b.png", "lone_sharpened.png")
    for expected in ("2 written, 0 already there", "0 written, 2 already there"):
        code, out, err = sharpen("**/*.png")
        assert (code, err) == (0, []) and expected in out
        assert sharpen("in")[0] == 0
        make_images(tmp_path, "a_sharpened_partial.png")
    made = {"a_sharpened.png", "in/b_sharpened.png", "in_sharpened/b.png"}
    assert made == set(names_below(tmp_path)) - {"a.png", "in/b.png", "lone_sharpened.png", "a_sharpened_partial.png"}


def test_a_file_that_fails_does_not_stop_the_others(sharpen, tmp_path, monkeypatch):
    make_images(tmp_path, "a.png", "b.png", "c.png")
    sharpen_image = RealTimeSharpener.sharpen_image

    def failing(self, path, *arguments, **options):
        if path.name == "b.png":
            raise RuntimeError("odd\nthing")
        return sharpen_image(self, path, *arguments, **options)

    monkeypatch.setattr(RealTimeSharpener, "sharpen_image", failing)
    code, out, err = sharpen("a.png", "b.png", "missing.png", "c.png")
    assert code == 2 and "2 written, 0 already there, 2 failed" in out
    assert (tmp_path / "a_sharpened.png").exists() and (tmp_path / "c_sharpened.png").exists()
    assert len(err) == 2 and "b.png: RuntimeError: odd thing" in err[0] and "missing.png does not exist" in err[1]


def test_control_c_ends_a_batch_and_the_next_run_goes_on(sharpen, tmp_path, monkeypatch):
    make_images(tmp_path, "in/a.png", "in/b.png", "in/c.png", "in/d.png")
    (tmp_path / "in" / "a.png").touch()
    sharpen_image = RealTimeSharpener.sharpen_image

    def interrupted(self, path, *arguments, **options):
        if path.name == "c.png":
            signal.raise_signal(signal.SIGINT)
        return sharpen_image(self, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RealTimeSharpener, "sharpen_image", interrupted)
        code, out, err = sharpen("in")
    assert (code, err, out) == (130, [], "2 written, 0 already there, 0 failed\n")
    assert names_below(tmp_path / "in_sharpened") == ["a.png", "b.png"]
    code, out, _ = sharpen("in")
    assert code == 0 and "2 written, 2 already there" in out


# ----------------------------------------------------------------------------------------------------------------------
# Help


def test_help_fits_a_terminal_and_its_examples_are_understood(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = make_parser().format_help()
    assert max(map(len, page.splitlines())) < 80
    for group in ("what to sharpen", "output", "live picture", "how it runs", "keys in the window", "exit codes"):
        assert f"\n{group}:\n" in page
    lines = re.findall(r"^ +python inference.py(.*?)(?:  |$)", page, re.MULTILINE)
    assert len(lines) == 11
    for line in lines:
        make_parser().parse_intermixed_args(line.split())
