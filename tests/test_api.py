"""What a program or a notebook uses: kinds of pictures, callbacks, threads, and the notebook in examples/."""

import base64
import contextlib
import re
import threading
import typing
from concurrent.futures import ThreadPoolExecutor

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np
import pytest
import torch
from PIL import Image

import inference
from images import quiet_opencv
from inference import RealTimeSharpener
from live import divide_frames
from tests.conftest import CONSTANT, QUARTER_TURN, encode, packets, pictures, read_times
from tests.test_cli import ROOT
from tests.test_inference import noise
from tests.test_live import FakeCapture, SlowCapture
from utils import atomic_path
from video import VideoFormat, VideoReader, VideoWriter

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module", params=["cpu", "openvino"])
def each_sharpener(request, exported):
    return RealTimeSharpener(exported, request.param)


# ----------------------------------------------------------------------------------------------------------------------
# Kinds of pictures


def test_arrays_of_either_order_and_grey(each_sharpener):
    frame = noise(30, 41)
    sharp = each_sharpener.sharpen(frame)
    assert np.abs(sharp.astype(int) - frame).mean() > 2
    from_rgb = each_sharpener.sharpen(frame[..., ::-1], rgb=True)
    assert np.array_equal(from_rgb[..., ::-1], sharp) and from_rgb.flags.c_contiguous
    assert not np.array_equal(from_rgb, each_sharpener.sharpen(frame[..., ::-1]))
    grey = each_sharpener.sharpen(frame[..., 1])
    assert (grey.shape, grey.dtype) == ((30, 41), np.uint8) and not np.array_equal(grey, frame[..., 1])
    assert np.array_equal(each_sharpener.sharpen(frame[..., 1], rgb=True), grey)


def test_16_bits(sharpener):
    deep = cv2.GaussianBlur(noise(30, 41, dtype=np.uint16), (0, 0), 1)
    sharp = sharpener.sharpen(deep)
    assert (sharp.dtype, sharp.shape) == (np.uint16, deep.shape)
    expected = sharpener.sharpen(np.rint(deep / 257).astype(np.uint8))
    assert np.abs(sharp / 257 - expected).mean() < 1 < np.abs(sharp / 257 - deep / 257).mean()
    assert np.array_equal(sharpener.sharpen(deep[..., ::-1], rgb=True)[..., ::-1], sharp)
    assert sharpener.sharpen(deep[..., 0]).dtype == np.uint16


@pytest.mark.parametrize("kind", ["batch", "list", "tuple"])
def test_several_pictures_are_what_each_gives_alone(sharpener, kind):
    frames = np.stack([noise(24, 33, seed) for seed in range(3)])
    for rgb in (False, True):
        sharp = sharpener.sharpen({"batch": frames, "list": list(frames), "tuple": tuple(frames)}[kind], rgb=rgb)
        assert type(sharp) is (np.ndarray if kind == "batch" else list)
        for got, frame in zip(sharp, frames, strict=True):
            assert np.array_equal(got, sharpener.sharpen(frame, rgb=rgb))


def test_lists_may_be_mixed_and_anything_may_be_empty(sharpener):
    array, image, tensor = sharpener.sharpen([noise(9, 8), Image.new("L", (7, 6)), torch.zeros(3, 5, 4)])
    assert (array.shape, image.size, tensor.shape) == ((9, 8, 3), (7, 6), (3, 5, 4))
    assert sharpener.sharpen([]) == []
    assert sharpener.sharpen(np.zeros((0, 8, 9, 3), np.uint8)).shape == (0, 8, 9, 3)
    assert sharpener.sharpen(torch.zeros(0, 3, 8, 9)).shape == (0, 3, 8, 9)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"])
def test_pil_images(sharpener, mode):
    rgb = noise(20, 31)
    image = Image.fromarray(rgb).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(noise(20, 31, 1)[..., 0]))
    image.info["icc_profile"] = b"profile"
    before = image.tobytes()
    sharp = sharpener.sharpen(image)
    assert image.tobytes() == before
    assert (sharp.mode, sharp.size) == (mode if mode in ("RGB", "L", "RGBA") else "RGB", (31, 20))
    assert ("icc_profile" in sharp.info) == (mode in ("RGB", "L", "RGBA"))
    if mode == "L":
        assert np.array_equal(sharp, sharpener.sharpen(np.array(image)))
        return
    assert np.array_equal(sharp.convert("RGB"), sharpener.sharpen(np.array(image.convert("RGB")), rgb=True))
    if mode == "RGBA":
        assert np.array_equal(sharp.getchannel("A"), image.getchannel("A"))


def test_byte_tensors_are_rgb(sharpener):
    rgb = noise(20, 31)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    sharp = sharpener.sharpen(tensor)
    expected = sharpener.sharpen(rgb, rgb=True)
    assert (sharp.dtype, sharp.shape) == (torch.uint8, tensor.shape)
    assert np.array_equal(sharp.permute(1, 2, 0), expected)
    batch = sharpener.sharpen(torch.stack([tensor, tensor.flip(2)]))
    assert torch.equal(batch[0], sharp) and torch.equal(batch[1], sharpener.sharpen(tensor.flip(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors(each_sharpener, dtype):
    rgb = cv2.GaussianBlur(noise(20, 31), (0, 0), 1)
    tensor = (torch.from_numpy(rgb).permute(2, 0, 1) / 255).to(dtype).requires_grad_()
    sharp = each_sharpener.sharpen(tensor[None])
    assert (sharp.dtype, sharp.shape, sharp.requires_grad) == (dtype, (1, 3, 20, 31), False)
    assert sharp.min() >= 0 and sharp.max() <= 1
    expected = each_sharpener.sharpen(rgb, rgb=True).astype(float)
    change = np.abs(expected - rgb).mean()
    assert np.abs(255 * sharp[0].double().permute(1, 2, 0).numpy() - expected).mean() < 0.3 * change
    assert torch.equal(each_sharpener.sharpen(tensor, strength=0), tensor.detach().float().to(dtype))
    values = sharp.float().unique() * 255
    assert dtype == torch.bfloat16 or ((values - values.round()).abs() > 0.1).any()  # not rounded to bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_stay_on_their_device(sharpener):
    tensor = torch.rand(3, 20, 31, device="cuda")
    sharp = sharpener.sharpen(tensor)
    assert sharp.device == tensor.device and torch.equal(sharp.cpu(), sharpener.sharpen(tensor.cpu()))


def test_nothing_given_is_changed_or_shared(sharpener):
    frame = noise(8, 9)
    for picture in (frame, frame[None], torch.from_numpy(frame.copy()).permute(2, 0, 1), torch.rand(3, 8, 9)):
        before = np.asarray(picture).copy()
        for strength in (0, 1):
            sharp = sharpener.sharpen(picture, strength=strength)
            assert np.array_equal(sharp, before) == (strength == 0)
            sharp[...] = 0
            assert np.array_equal(picture, before)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"\(H, W, 3\).*got \(3, 20, 30\) of uint8"),
        (np.zeros((20, 30, 4), np.uint8), r"got \(20, 30, 4\)"),
        (np.zeros((2, 3, 20, 30), np.uint8), r"\(N, H, W, 3\).*got \(2, 3, 20, 30\)"),
        (np.zeros((0, 30, 3), np.uint8), r"got \(0, 30, 3\)"),
        (np.zeros(30, np.uint8), r"got \(30,\)"),
        (np.zeros((20, 30, 3), np.float32), "uint8 or uint16, got .* of float32"),
        (np.zeros((20, 30), bool), "of bool"),
        (torch.zeros(20, 30, 3), r"\(3, H, W\).*got \(20, 30, 3\) of float32"),
        (torch.zeros(20, 30), r"got \(20, 30\)"),
        (torch.zeros(3, 0, 30), r"got \(3, 0, 30\)"),
        (torch.zeros(3, 20, 30, dtype=torch.int32), "of int32"),
        (torch.full((3, 20, 30), 255.0), r"in \[0, 1\], got 255 to 255"),
        (torch.full((3, 20, 30), float("nan")), "got nan"),
        (Image.new("I;16", (30, 20)), "got mode I;16: give an array of uint16"),
        (Image.new("F", (30, 20)), "got mode F"),
        ([np.zeros((20, 30), np.uint8), np.zeros((3, 20, 30), np.uint8)], r"got \(3, 20, 30\)"),
    ],
)
def test_what_is_wrong_is_named(sharpener, picture, message):
    with pytest.raises(ValueError, match=message):
        sharpener.sharpen(picture)


@pytest.mark.parametrize("picture", [None, "photo.jpg", [1, 2]])
def test_other_types_are_refused(sharpener, picture):
    with pytest.raises(TypeError, match="expected a frame as an array, a PIL image or a tensor"):
        sharpener.sharpen(picture)


def test_strength_of_a_call(exported, sharpener, tmp_path):
    half, frame = RealTimeSharpener(exported, "cpu", 0.5), noise(20, 30)
    planes = frame[..., 0].copy(), np.stack([frame[::2, ::2, 1], frame[::2, ::2, 2]])
    expected = half.sharpen(frame)
    assert np.array_equal(sharpener.sharpen(frame, strength=0.5), expected)
    assert np.array_equal(sharpener.sharpen([frame], strength=0.5)[0], expected)
    assert np.array_equal(half.sharpen(frame, strength=0), frame)
    assert not np.array_equal(sharpener.sharpen(frame), expected)
    for got, wanted in zip(sharpener.sharpen_planes(*planes, strength=0.5), half.sharpen_planes(*planes), strict=True):
        assert np.array_equal(got, wanted)
    cv2.imwrite(str(tmp_path / "in.png"), frame)
    sharpener.sharpen_image(tmp_path / "in.png", tmp_path / "out.png", strength=0.5)
    assert np.array_equal(cv2.imread(str(tmp_path / "out.png")), expected)
    for strength in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="strength must be"):
            sharpener.sharpen(frame, strength=strength)
        with pytest.raises(ValueError, match="strength must be"):
            sharpener.sharpen_planes(*planes, strength=strength)
    half.strength = 1
    assert np.array_equal(half.sharpen(frame), sharpener.sharpen(frame))


def test_what_a_notebook_shows_and_an_editor_knows(each_sharpener):
    assert repr(each_sharpener) == f"RealTimeSharpener(student.pth, {each_sharpener.description}, strength 1)"
    for name in ("__init__", "sharpen", "sharpen_planes", "sharpen_image", "process_video_stream"):
        method = getattr(RealTimeSharpener, name)
        names = set(method.__code__.co_varnames[1 : method.__code__.co_argcount])
        assert set(typing.get_type_hints(method)) == names | {"return"}


# ----------------------------------------------------------------------------------------------------------------------
# A function called for each frame


@pytest.mark.parametrize("compare", [False, True])
def test_on_frame_sees_what_is_written(sharpener, tmp_path, compare):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=CONSTANT, size=(128, 96))
    seen = []
    stats = sharpener.process_video_stream(
        source, tmp_path / "out.mp4", compare, on_frame=lambda number, picture: seen.append((number, picture))
    )
    assert [number for number, _ in seen] == list(range(20)) and stats["frames"] == 20
    with VideoReader(tmp_path / "out.mp4") as reader:
        written = pictures(reader)
    with VideoReader(source) as reader:
        soft = pictures(reader)
    for (_, picture), coded, before in zip(seen, written, soft, strict=True):
        assert (picture.dtype, picture.shape) == (np.uint8, (96, 128, 3))
        loss = np.abs(picture.astype(int) - coded).mean()
        assert loss < 8 and loss < 0.7 * np.abs(before.astype(int) - coded).mean()


@pytest.mark.parametrize(
    "tags",
    [{}, {"matrix": 1, "value_range": 1}, {"matrix": 6, "value_range": 2}, {"display_matrix": QUARTER_TURN}],
    ids=["untagged", "BT.709", "full range", "turned"],
)
@pytest.mark.parametrize("size", [(64, 48), (62, 50)])
def test_pictures_have_the_files_colours_and_stand_upright(tmp_path, tags, size):
    source = encode(tmp_path / "in.mp4", times=CONSTANT[:3], size=size)
    with VideoReader(source) as reader:
        form = VideoFormat(*size, reader.format.rate, reader.format.time_base, **tags)
        with VideoWriter(tmp_path / "tagged.mp4", form) as writer:
            for frame in reader:
                frame.uv[1] = 90  # matrices differ in colours
                writer.write(frame)
    with VideoReader(tmp_path / "tagged.mp4") as reader, av.open(tmp_path / "tagged.mp4") as container:
        expected = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
        if "display_matrix" in tags:
            expected = [np.rot90(picture, -1) for picture in expected]
        assert np.array_equal(pictures(reader), expected)


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


@pytest.mark.parametrize("error", [ZeroDivisionError, StopIteration])
def test_what_on_frame_raises_arrives_and_leaves_nothing(sharpener, tmp_path, error):
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    (tmp_path / "out.mp4").write_bytes(b"old")
    threads, seen = set(threading.enumerate()), []

    def fail(number, picture):
        seen.append(number)
        if number == 3:
            raise error

    with pytest.raises(error):
        sharpener.process_video_stream(source, tmp_path / "out.mp4", on_frame=fail)
    assert seen == [0, 1, 2, 3]
    assert set(threading.enumerate()) == threads
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"old"


def test_on_frame_of_a_camera(sharpener, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeCapture, "opened", [])
    monkeypatch.setattr(FakeCapture, "plugged", [True] * 9)
    monkeypatch.setattr(cv2, "VideoCapture", SlowCapture)
    seen = []

    def stop(number, picture):
        seen.append(picture)
        return number < 2

    stats = sharpener.process_video_stream(0, tmp_path / "out.mp4", compare=True, on_frame=stop)
    assert stats["frames"] == len(seen) == len(read_times(tmp_path / "out.mp4")) == 3
    # A camera's frames are of one grey each; the left half stays so, then comes the white line.
    assert all(np.array_equal(divide_frames(picture, picture), picture) for picture in seen)
    assert seen[0].shape == (48, 64, 3) and seen[0][:, :30].std() == 0
    with pytest.raises(ZeroDivisionError):
        sharpener.process_video_stream(0, tmp_path / "none.mp4", on_frame=lambda *_: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_on_frame_of_a_window(sharpener, tmp_path, monkeypatch):
    class FakeWindow(contextlib.nullcontext):
        shown: typing.ClassVar = []

        def __init__(self, title, controls, engine):
            super().__init__(self)
            self.controls = controls

        def say(self, message):
            pass

        def show(self, frame, *_):
            self.shown.append(frame)

    monkeypatch.setattr(inference, "Window", FakeWindow)
    source, seen = encode(tmp_path / "in.mp4", times=CONSTANT), []

    def stop(number, picture):
        seen.append(picture)
        return number < 2

    stats = sharpener.process_video_stream(source, frame_budget=0, on_frame=stop)
    assert stats["frames"] == len(seen) == 3
    assert all(a is b for a, b in zip(FakeWindow.shown, seen, strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# Threads


def test_threads_give_what_each_stream_gives_alone(exported, each_sharpener, tmp_path):
    # Each size twice: they share an inference request. Pictures are compared as the encoder gets them, since x264's own
    # threads do not repeat exactly at small sizes.
    sizes = [(128, 96), (160, 128), (128, 96), (160, 128)]
    sources = [
        encode(tmp_path / f"{index}.mp4", times=CONSTANT, size=size, audio="aac", options={"crf": f"{10 + 9 * index}"})
        for index, size in enumerate(sizes)
    ]
    other = RealTimeSharpener(exported, "cpu" if "openvino" in each_sharpener.description else "openvino", 0.5)
    jobs = [(s, source) for s in (each_sharpener, other) for source in sources]

    def process(job, folder):
        (sharpener, source), seen = jobs[job], []
        target = tmp_path / folder / f"{job}.mp4"
        sharpener.process_video_stream(source, target, on_frame=lambda _, picture: seen.append(picture.tobytes()))
        return seen, (read_times(target), packets(target, "audio"))

    alone = [process(job, "alone") for job in range(len(jobs))]
    assert len({pictures[10] for pictures, _ in alone}) == len(jobs)  # mixing them up would show
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(lambda job: process(job, "together"), range(len(jobs))))
    for (seen, rest), (expected, expected_rest) in zip(together, alone, strict=True):
        assert seen == expected
        assert rest == expected_rest


def test_sharpeners_made_in_threads_and_shared_for_all_kinds(exported):
    frame = noise(40, 56)
    deep, tensor = frame.astype(np.uint16) * 257, torch.from_numpy(frame).permute(2, 0, 1) / 255

    def work(index):
        own = RealTimeSharpener(exported, ("cpu", "openvino")[index % 2])
        pictures = own.sharpen([frame, deep, tensor, frame[:30], frame[: 8 + 4 * (index // 2)]])
        return [np.asarray(picture) for picture in pictures]

    alone = [work(index) for index in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(work, range(6)))
    for got, expected in zip(together, alone, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_two_threads_may_write_the_same_file(tmp_path):
    path, both = tmp_path / "out.txt", threading.Barrier(2)

    def write(text):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
            both.wait(timeout=20)
            assert temporary.read_text("utf-8") == text
            both.wait(timeout=20)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["one", "other"]))
    assert path.read_text("utf-8") in ("one", "other")
    assert list(tmp_path.iterdir()) == [path]


def test_opencv_speaks_again_after_the_last_thread():
    level, inside, outside = cv2.utils.logging.getLogLevel(), threading.Event(), threading.Event()

    def overlap():
        with quiet_opencv():
            inside.set()
            outside.wait(timeout=20)
            assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_SILENT

    with ThreadPoolExecutor(1) as pool:
        with quiet_opencv():
            running = pool.submit(overlap)
            assert inside.wait(timeout=20)
        outside.set()
        running.result(timeout=20)
    assert cv2.utils.logging.getLogLevel() == level != cv2.utils.logging.LOG_LEVEL_SILENT


# ----------------------------------------------------------------------------------------------------------------------
# The notebook


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check(notebook):
    """No errors or warnings, and the pictures: soft, sharpened and truth, strengths, video."""
    found = outputs(notebook)
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
    return text


def test_the_notebook_holds_its_outputs_and_no_paths():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: requirements-dev.txt has it")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert NOTEBOOK.stat().st_size < 300_000
    text = re.sub(r'"image/jpeg": "[^"]*"', "", NOTEBOOK.read_text("utf-8"))
    assert "Traceback" not in text
    assert not re.search(r"(?<![\w.])/(?!/)\w+/|[A-Z]:\\\\|site-packages", text)


@pytest.mark.parametrize("folder", ["examples", "."])
def test_the_notebook_runs(tmp_path, monkeypatch, folder):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: requirements-dev.txt has it")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: requirements-dev.txt has it")
    import nbformat

    for name in ("XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if folder == ".":
        notebook.cells = notebook.cells[:2]  # what depends on the folder
    files = sorted(NOTEBOOK.parent.iterdir())
    resources = {"metadata": {"path": str(ROOT / folder)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    assert sorted(NOTEBOOK.parent.iterdir()) == files
    if folder == "examples":
        check(notebook)
    else:
        assert "RealTimeSharpener" in outputs(notebook)[-1].data["text/plain"]
