"""`RealTimeSharpener`: planes, image and video files, callbacks, threads, and the notebook in examples/."""

import base64
import dataclasses
import re
import sys
import threading
from pathlib import Path

import cv2  # before av: see video.py
import numpy as np
import pytest
import torch

import engines
import inference
from conversion import divide_planes
from images import Picture, VideoError, read_image, write_image
from inference import RealTimeSharpener
from models import CheckpointError, limit_halo, load_student, steepen
from runtime import DeviceError, OpenVINOEngine, scale_gain, steady
from tests.conftest import CONSTANT, VARIABLE, encode, make_student, packets, read_times
from torch_engine import TorchEngine, pick_device, pick_precision
from utils import bgr_to_planes
from video import VideoReader, VideoWriter

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def noise(height, width, seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype=dtype, endpoint=True)


# ----------------------------------------------------------------------------------------------------------------------
# Construction, strength and planes


def test_construction_is_checked(exported, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="strength"):
        RealTimeSharpener(exported, "cpu", float("nan"))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        RealTimeSharpener(tmp_path / "none.pth")
    sharpener = RealTimeSharpener(exported, "cpu")
    assert repr(sharpener) == f"RealTimeSharpener(student.pth, {sharpener.description}, strength 1)"
    # A file of the same name in the working directory, which may be a stranger's, is not the released student.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best_student_model.pth").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert RealTimeSharpener().checkpoint == inference.RELEASED_STUDENT


def test_strength_of_a_call(exported, sharpener, tmp_path):
    half, frame = RealTimeSharpener(exported, "cpu", 0.5), noise(20, 30)
    planes = bgr_to_planes(frame)
    expected = half.sharpen(frame)
    assert np.array_equal(sharpener.sharpen(frame, strength=0.5), expected)
    assert np.array_equal(sharpener.sharpen([frame], strength=0.5)[0], expected)
    assert not np.array_equal(sharpener.sharpen(frame), expected)
    for got, wanted in zip(sharpener.sharpen_planes(*planes, strength=0.5), half.sharpen_planes(*planes), strict=True):
        assert np.array_equal(got, wanted)
    cv2.imwrite(str(tmp_path / "in.png"), frame)
    sharpener.sharpen_image(tmp_path / "in.png", tmp_path / "out.png", strength=0.5)
    assert np.array_equal(cv2.imread(str(tmp_path / "out.png")), expected)
    for strength in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="strength must be"):
            sharpener.sharpen(frame, strength=strength)
    half.strength = 1
    assert np.array_equal(half.sharpen(frame), sharpener.sharpen(frame))


@pytest.mark.parametrize("strength", [0.5, 1, 1.8])
def test_pixels_get_the_engines_change_at_their_depth(exported, strength):
    sharpener, engine = RealTimeSharpener(exported, "cpu"), TorchEngine(load_student(exported)[0], "cpu")
    y, deep = noise(40, 52)[..., 0], noise(40, 52, dtype=np.uint16)[..., 0]
    change, _ = engine.difference(y, np.full((2, 20, 26), 128, np.uint8), strength)
    sharp = sharpener.sharpen(y, strength=strength)
    assert np.array_equal(sharp, np.clip(y.astype(int) + change - 128, 0, 255))
    assert np.abs(sharp - y.astype(int)).mean() > 2
    change, _ = engine.difference(np.float32(deep / 65535), np.full((2, 20, 26), 128 / 255, np.float32), strength)
    expected = np.clip(deep + 65535 * change.astype(float), 0, 65535)
    assert np.abs(sharpener.sharpen(deep, strength=strength) - expected).max() <= 1


def test_planes_may_be_read_only_views_and_strength_0_is_the_identity(sharpener):
    y, uv = bgr_to_planes(noise(9, 13))
    y.flags.writeable = uv.flags.writeable = False
    sharp = sharpener.sharpen_planes(y[:, ::-1], uv[..., ::-1])
    assert [plane.shape for plane in sharp] == [y.shape, uv.shape]
    for full_range in (False, True):
        same = sharpener.sharpen_planes(y, uv, full_range, strength=0)
        assert np.array_equal(same[0], y) and np.array_equal(same[1], uv)
    with pytest.raises(ValueError, match=r"uv \(2, 4, 4\)"):
        sharpener.sharpen_planes(np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="float"):
        sharpener.sharpen_planes(np.zeros((8, 8)), np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match=r"got \(16, 0\)"):
        sharpener.sharpen_planes(np.zeros((16, 0), np.uint8), np.zeros((2, 8, 0), np.uint8))


# ----------------------------------------------------------------------------------------------------------------------
# The engine in PyTorch


@pytest.mark.parametrize("strength", [0.7, 1.6])
@pytest.mark.parametrize("full_range", [True, False])
def test_planes_get_the_scaled_residual_rounded_and_luma_the_gain(full_range, strength):
    engine = TorchEngine(make_student(), "cpu", torch.float32)
    y, uv = bgr_to_planes(noise(36, 52))
    luma, chroma = (255, 255) if full_range else (219, 224)
    offset = 0 if full_range else 16
    full_y = torch.from_numpy((y.astype(np.float32) - offset) / luma)
    full_uv = torch.from_numpy((uv.astype(np.float32) - 128) / chroma + np.float32(128 / 255))
    with torch.no_grad():
        dy, duv, gain = (change[0].double() for change in make_student().predict(full_y[None, None], full_uv[None]))
    sharp_y, sharp_uv = engine(y, uv, full_range, strength)
    assert min(dy.abs().max() * luma, duv.abs().max() * chroma) > 2  # the student does something
    exact = np.clip(uv + strength * chroma * duv.numpy(), 0, 255)
    assert np.abs(sharp_uv - exact).max() <= 0.501  # rounded, not truncated
    restored = (torch.from_numpy(y) + strength * luma * dy).round().clamp(0, 255)[None]
    steep = 255 * steepen(restored / 255, scale_gain(gain[None], strength))
    assert (steep - restored).abs().max() > 2  # so does the gain
    exact = limit_halo(steep, torch.from_numpy(y)[None, None].double())[0, 0].numpy()
    assert np.percentile(np.abs(sharp_y - exact), 99) <= 2.1  # detail is rounded before it is multiplied


def test_a_broken_pytorch_leaves_the_int8_network(exported, monkeypatch):
    monkeypatch.setattr(engines, "_gpu_is_likely", lambda: True)
    monkeypatch.setitem(sys.modules, "torch_engine", None)  # its import fails
    assert isinstance(engines.make_engine(exported), OpenVINOEngine)
    with pytest.raises(DeviceError, match="needs PyTorch"):
        engines.make_engine(exported, "cpu")


def test_devices_and_precisions(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    for name in ("cuda", "mps", "toaster"):
        with pytest.raises(DeviceError, match="use auto, cpu"):
            pick_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    for capabilities, expected in (({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert pick_precision(torch.device("cpu"))[0] == expected
    assert pick_precision(torch.device("cuda"))[0] == torch.float16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    y, uv = bgr_to_planes(noise(48, 80))
    results = [TorchEngine(make_student(), device)(y, uv) for device in ("cpu", "cuda")]
    for a, b in zip(*results, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 2), (2, 50)])
def test_the_int8_network_takes_the_smallest_pictures(exported, size):
    frame = noise(*size)
    sharp = RealTimeSharpener(exported, "openvino").sharpen(frame)
    assert sharp.shape == frame.shape and sharp.dtype == frame.dtype


# ----------------------------------------------------------------------------------------------------------------------
# Image files


@pytest.mark.parametrize(
    ("name", "size", "dtype", "kind"),
    [
        ("in.png", (33, 47), np.uint8, "colour"),
        ("in.png", (1, 1), np.uint8, "colour"),
        ("in.png", (3, 50), np.uint8, "grey"),
        ("in.png", (32, 40), np.uint8, "alpha"),
        ("in.png", (15, 15), np.uint16, "colour"),
        ("in.tif", (15, 16), np.uint16, "alpha"),
    ],
)
def test_image_files_keep_their_kind(sharpener, tmp_path, name, size, dtype, kind):
    pixels = noise(*size, dtype=dtype)
    pixels = pixels[..., 0].copy() if kind == "grey" else pixels
    alpha = noise(*size, 1, dtype)[..., 0].copy() if kind == "alpha" else None
    write_image(tmp_path / name, Picture(pixels, alpha))
    sharpener.sharpen_image(tmp_path / name, tmp_path / f"out_{name}")
    sharp = read_image(tmp_path / f"out_{name}")
    assert sharp.pixels.dtype == dtype and np.array_equal(sharp.pixels, sharpener.sharpen(pixels))
    assert sharp.alpha is None if alpha is None else np.array_equal(sharp.alpha, alpha)


# ----------------------------------------------------------------------------------------------------------------------
# Video files


@pytest.mark.parametrize("compare", [False, True])
def test_a_video_is_what_frame_after_frame_gives(sharpener, tmp_path, compare):
    # At 64x48 not even two equal runs of x264 agree.
    source = encode(tmp_path / "in.mp4", times=VARIABLE, size=(128, 96), audio="aac", options={"bf": "3"})
    expected, seen, steadied = [], [], None
    with (
        VideoReader(source, audio=True) as reader,
        VideoWriter(tmp_path / "plain.mp4", reader.format, reader) as writer,
    ):
        for frame in reader:
            steadied = steady(frame.y, steadied)
            y, uv = sharp = sharpener.sharpen_planes(steadied, frame.uv)
            if compare:
                y, uv = divide_planes((frame.y, frame.uv), sharp)
            writer.write(dataclasses.replace(frame, y=y, uv=uv))
            expected.append(reader.to_bgr(y, uv))
    stats = sharpener.process_video_stream(
        source, tmp_path / "out.mp4", compare, on_frame=lambda number, picture: seen.append((number, picture))
    )
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
    assert read_times(tmp_path / "out.mp4") == VARIABLE
    assert packets(tmp_path / "out.mp4", "audio") == packets(source, "audio")
    assert (stats["frames"], stats["size"]) == (len(VARIABLE), (128, 96))
    assert stats["fps"] == pytest.approx(stats["frames"] / stats["seconds"])
    assert [number for number, _ in seen] == list(range(len(VARIABLE)))
    assert all(np.array_equal(picture, wanted) for (_, picture), wanted in zip(seen, expected, strict=True))


@pytest.mark.parametrize("answer", [False, 0, None])
def test_only_false_stops_and_the_file_is_kept(sharpener, tmp_path, answer):
    source = encode(tmp_path / "in.mp4", times=CONSTANT, audio="aac")
    threads = set(threading.enumerate())
    stats = sharpener.process_video_stream(
        source, tmp_path / "out.mp4", on_frame=lambda number, _: answer if number == 4 else True
    )
    expected = 5 if answer is False else 20
    assert stats["frames"] == expected
    assert read_times(tmp_path / "out.mp4") == CONSTANT[:expected]
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("error", [ZeroDivisionError, StopIteration, OSError(28, "No space left on device")])
def test_a_failure_arrives_at_once_and_leaves_the_old_file(sharpener, tmp_path, monkeypatch, error):
    source = encode(tmp_path / "in.mp4", times=range(0, 4000, 40), audio="aac")
    (tmp_path / "out.mp4").write_bytes(b"old")
    threads, seen, full_disk = set(threading.enumerate()), [], isinstance(error, OSError)

    def fail(*_):
        raise error

    def see(number, picture):
        seen.append(number)
        return number < 3 or full_disk or fail()

    if full_disk:
        monkeypatch.setattr(VideoWriter, "write", fail)
    with pytest.raises(VideoError if full_disk else error, match="out.mp4: No space" if full_disk else None):
        sharpener.process_video_stream(source, tmp_path / "out.mp4", on_frame=see)
    assert len(seen) < 20 if full_disk else seen == [0, 1, 2, 3]
    assert set(threading.enumerate()) == threads
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"old"


# ----------------------------------------------------------------------------------------------------------------------
# The notebook


def check(notebook):
    """No errors or warnings, and the pictures: soft, sharpened and truth, strengths, video."""
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert {output.output_type for output in found} <= {"stream", "display_data", "execute_result"}
    assert [output.text for output in found if output.get("name") == "stderr"] == []
    images = [output.data["image/jpeg"] for output in found if "image/jpeg" in output.get("data", {})]
    assert len(images) == 3
    for image in images:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(image), np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape[1] > 600 and pixels.std() > 20
    text = "".join(output.text for output in found if output.output_type == "stream")
    soft, sharp = (float(psnr) for psnr in re.findall(r"PSNR ([\d.]+) dB", text))
    assert soft + 0.3 < sharp
    assert "50 frames of 448x448" in text


def test_the_notebook_holds_its_outputs_and_no_paths():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: requirements-dev.txt has it")
    check(nbformat.read(NOTEBOOK, as_version=4))
    text = re.sub(r'"image/jpeg": "[^"]*"', "", NOTEBOOK.read_text("utf-8"))
    assert not re.search(r"(?<![\w.])/(?!/)\w+/|[A-Z]:\\\\|site-packages", text)


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: requirements-dev.txt has it")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: requirements-dev.txt has it")
    for name in ("XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    files = sorted(NOTEBOOK.parent.iterdir())
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    assert sorted(NOTEBOOK.parent.iterdir()) == files
    check(notebook)
