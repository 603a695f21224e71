"""Files from strangers: damaged ones, and those made to do harm, are refused with an error that names the cause."""

import io
import math
import struct
import zipfile
import zlib

import cv2
import pytest

# isort: split
import av
import numpy as np
import onnx
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from engines import make_engine
from images import VideoError, read_image
from models import CheckpointError, Student, load_student, save_student
from runtime import ArtefactError, OpenVINOEngine, artefact_path
from tests.conftest import write_video
from torch_engine import pick_device
from video import VideoReader

# ----------------------------------------------------------------------------------------------------------------------
# Damage

PICTURES = ("picture.png", "picture.jpg", "picture.webp", "picture.bmp", "picture.tif")
VIDEOS = ("video.mp4", "video.mkv", "video.avi", "video.webm")


@pytest.fixture(scope="module")
def originals(tmp_path_factory, exported):
    """Contents of good files, by name."""
    folder, rng = tmp_path_factory.mktemp("originals"), np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (40, 30), interpolation=cv2.INTER_CUBIC)
    for name in PICTURES:
        Image.fromarray(pixels).save(folder / name)
    cv2.imwrite(str(folder / "picture.tif"), pixels.astype(np.uint16) * 257)  # 16 bits have a decoder of their own
    for name in VIDEOS:
        write_video(folder / name, 8, (64, 48))
    save_student(folder / "student.pth", Student(8, 1), {"teacher": "none"})
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    return contents | {"student.int8.onnx": artefact_path(exported).read_bytes()}


@st.composite
def damaged(draw, content):
    """`content` cut short, or with up to four bytes changed, half of them in its header."""
    if draw(st.integers(0, 3)) == 0:
        return content[: draw(st.integers(0, len(content) - 1))]
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, 255) | st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@pytest.mark.parametrize("name", [*PICTURES, *VIDEOS, "student.pth", "student.int8.onnx"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused(originals, exported, tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data.draw(damaged(originals[name])))
    try:
        if name in PICTURES:
            read_image(path)
        elif name in VIDEOS:
            with VideoReader(path, audio=True) as reader:
                for _ in reader:
                    pass
        elif name == "student.pth":
            load_student(path)
        else:
            (tmp_path / "student.pth").write_bytes(exported.read_bytes())
            OpenVINOEngine(tmp_path / "student.pth", threads=1)
    except (VideoError, CheckpointError, ArtefactError) as error:
        assert str(error).strip()


# ----------------------------------------------------------------------------------------------------------------------
# Pictures and videos


def png(width, height):
    """A PNG whose header announces any size, with a few bytes of content."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 16_385), r"too large \(.*134 million pixels"),
        ((16_384, 8_193), r"too large \(.*134 million pixels"),
        ((16_384, 8_192), "damaged"),  # the largest picture: it is only cut off
    ],
)
def test_pictures_beyond_the_largest_size_are_refused(tmp_path, size, message):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size))
    with pytest.raises(VideoError, match=message):
        read_image(path)


def test_other_image_formats_are_refused_whatever_the_name(tmp_path):
    """Pillow would start Ghostscript for PostScript."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n")
    with Image.open(path) as file:
        assert file.format == "EPS"
    with pytest.raises(VideoError, match="not an image"):
        read_image(path)


def write_frame(path, codec, size, pixel_format="yuv420p"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        container.mux(stream.encode(av.VideoFrame(*size, pixel_format)))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_playlists_open_no_other_file(tmp_path, text):
    write_frame(tmp_path / "secret.ts", "mpeg2video", (64, 48))
    path = tmp_path / "call.mp4"
    path.write_text(text.format("secret.ts"))
    for source, message in ((path, "cannot be read as a video"), (path.as_uri(), "sends nothing that can be read")):
        with pytest.raises(VideoError, match=message), VideoReader(source) as reader:
            list(reader)


def test_videos_beyond_the_largest_size_are_refused(tmp_path):
    write_frame(tmp_path / "wide.avi", "mjpeg", (8_208, 16), "yuvj420p")
    with pytest.raises(VideoError, match=r"too large \(8208x16\): at most 8192x8192"):
        VideoReader(tmp_path / "wide.avi")


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints


class Malicious:
    def __reduce__(self):
        return open, ("executed.txt", "w")


class Bomb:
    def __reduce__(self):
        return bytearray, (10**11,)


GOOD = {"model": Student(4, 1).state_dict(), "model_args": {"channels": 4, "blocks": 1}, "meta": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just text, not weights", "cannot be read"),
        ({"model": {}}, "needs `model`, `model_args` and `meta`"),
        (Malicious(), "refused"),
        ({**GOOD, "model_args": {"channels": 10**6}}, "`channels` must be 1 to 256"),
        ({**GOOD, "model_args": {"trunk_blocks": 24}}, "does not fit this version's student: 'trunk_blocks'"),
        ({**GOOD, "model_args": {"channels": 4, "blocks": 2}}, "Missing key.*body.1.conv1.weight"),
        ({**GOOD, "model_args": {"channels": 8, "blocks": 1}}, "size mismatch for head.weight"),
        ({**GOOD, "model": {**GOOD["model"], "head.bias": [0.0] * 4}}, "head.bias.*expected torch.Tensor"),
        ({**GOOD, "model": {**GOOD["model"], "head.bias": torch.full((4,), math.inf)}}, "not finite"),
        ({**GOOD, "meta": {"a": Bomb()}}, "refused .*bytearray"),
    ],
)
def test_bad_checkpoints_are_refused_by_name(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_student(path)
    assert str(path) in str(error.value) and not (tmp_path / "executed.txt").exists()


def test_archives_that_could_take_any_memory_are_refused(tmp_path):
    path, packed = tmp_path / "student.pth", io.BytesIO()
    save_student(path, Student(4, 1), {})
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry) + bytes(10**8))
    path.write_bytes(packed.getvalue())
    with pytest.raises(CheckpointError, match="too large"):
        load_student(path)


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    path = tmp_path / "student.pth"
    save_student(path, Student(4, 1), {})
    content = bytearray(path.read_bytes())
    weights = GOOD["model"]["tail.weight"].numpy().tobytes()  # zeros, the longest run of them
    content[content.index(weights) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_student(path)


# ----------------------------------------------------------------------------------------------------------------------
# ONNX networks: anybody can copy the note that says from which weights one was made


def add_external_weights(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")


def change_input(model):
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 10**6


def change_weights(model):
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            tensor.raw_data = bytes(len(tensor.raw_data))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (add_external_weights, "weights from another file"),
        (change_input, "cannot run"),
        (change_weights, "it is wrong by"),
    ],
)
def test_networks_that_claim_the_right_weights_are_refused(exported, tmp_path, caplog, spoil, message):
    (tmp_path / "student.pth").write_bytes(exported.read_bytes())
    model = onnx.load(artefact_path(exported))
    spoil(model)
    path = tmp_path / "student.pth"
    artefact_path(path).write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=message):
        OpenVINOEngine(path)
    if pick_device().type == "cpu":
        assert make_engine(path).description.startswith("torch")
        assert "PyTorch is used" in caplog.text
