"""Hostile files: what is known to be dangerous, by name, and a few of the mutations of fuzzing.py."""

import collections
import http.server
import itertools
import json
import math
import struct
import sys
import threading
import zipfile
import zlib

import cv2  # noqa: F401 - before av: see video.py

# isort: split
import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import models
import runtime
from benchmark.report import ReportError, load_report
from benchmark.study import StudyError, load_study
from config import Config, ConfigError, load_config
from images import VideoError, read_image
from models import CheckpointError, Student, load_student, read_ncnn, save_student
from runtime import ArtefactError, OpenVINOEngine, artefact_path, make_engine
from tests import fuzzing
from video import VideoReader

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# ----------------------------------------------------------------------------------------------------------------------
# Mutations


needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="memory is limited with setrlimit")


@needs_posix
@pytest.mark.parametrize("name", ["image", "video"])
def test_damaged_files_are_read_or_refused(name, tmp_path):
    result = fuzzing.run_target(name, 60, seed=0, folder=tmp_path)
    assert not result["failures"] and result["refused"] and result["accepted"]
    assert result["refused"] + result["accepted"] == 60


@pytest.mark.parametrize("name", ["checkpoint", "ncnn", "config", "report", "study"])
def test_damaged_text_is_read_or_refused(name, tmp_path):
    """As above without a child, for what is read by Python alone."""
    target = fuzzing.TARGETS[name]
    (tmp_path / "seeds").mkdir()
    seeds, outcomes = target.seeds(tmp_path / "seeds"), collections.Counter()
    for number in range(40):
        file, content = fuzzing.case_file(target, seeds, 0, number)
        path = tmp_path / f"{number}-{file}"
        path.write_bytes(content)
        try:
            target.read(path)
            outcomes["accepted"] += 1
        except target.errors:
            outcomes["refused"] += 1
    assert min(outcomes["accepted"], outcomes["refused"]) > 2, outcomes


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_posix
@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_many_damaged_files(name, tmp_path):
    if name == "onnx":
        pytest.importorskip("onnx")
    assert not fuzzing.run_target(name, 2000, seed=0, folder=tmp_path)["failures"]


@needs_posix
def test_crashes_and_hangs_are_failures(tmp_path, monkeypatch):
    harm = "lambda path: (abs, lambda _: os.abort(), lambda _: time.sleep(60))[int(path.name[0])](path)"
    spoilt = f"f.Target(lambda _: [('file', b'content')], {harm}, ())"
    program = f"import os, sys, time, tests.fuzzing as f; f.TARGETS['report'] = {spoilt}; f.main(sys.argv[1:])"
    monkeypatch.setattr(fuzzing, "PROGRAM", ("-c", program))
    monkeypatch.setattr(fuzzing, "SECONDS", 1)
    failures = fuzzing.run_target("report", 3, seed=7, folder=tmp_path)["failures"]
    for failure, message in zip(failures, ("TypeError", "ended with -6", "ended with -9"), strict=True):
        assert message in failure and "seed 7" in failure


# ----------------------------------------------------------------------------------------------------------------------
# Pictures and videos


def png(width, height):
    """A PNG whose header announces any size, with a few bytes of content."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(100_000, 1), (1, 16_385), (16_384, 8_193), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_pixel_bombs_are_refused_by_size(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size))
    with pytest.raises(VideoError, match=r"too large \(.*134 million pixels"):
        read_image(path)


def test_the_largest_picture_is_not_too_large(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(png(16_384, 8_192))
    with pytest.raises(VideoError, match="damaged"):  # it is cut, and no more
        read_image(path)


def test_other_formats_are_not_read_whatever_the_name(tmp_path):
    """Pillow would start Ghostscript for PostScript."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n")
    with Image.open(path) as file:
        assert file.format == "EPS"
    with pytest.raises(VideoError, match="not an image"):
        read_image(path)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
    ],
)
def test_playlists_open_no_other_file(tmp_path, text):
    with av.open(str(tmp_path / "secret.ts"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    path = tmp_path / "call.mp4"
    path.write_text(text.format("secret.ts"))
    with pytest.raises(VideoError, match="cannot be read as a video"), VideoReader(path) as reader:
        list(reader)


def test_videos_too_large_are_refused(tmp_path):
    path = tmp_path / "wide.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 8_208, 16, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame(8_208, 16, "yuvj420p")))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"too large \(8208x16\): at most 8192x8192"):
        VideoReader(path)


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints


class Bomb:
    def __reduce__(self):
        return bytearray, (10**11,)


def endless():
    values = []
    values.append(values)
    return values


GOOD = {"model": Student(4, 1).state_dict(), "model_args": {"channels": 4, "blocks": 1}, "meta": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_args": {"channels": 10**6}}, "`channels` must be a whole number from 1 to 256"),
        ({"model_args": {"channels": 4, "blocks": 10**6}}, "`blocks` must be a whole number from 0 to 32"),
        ({"model_args": {"channels": True}}, "`channels` must be"),
        ({"model_args": {"channels": 4.0}}, "`channels` must be"),
        ({"model_args": {"channels": "4"}}, "`channels` must be"),
        ({"model_args": [4, 1]}, "`model_args` must be"),
        ({"model_args": {"trunk_blocks": 24}}, "`model_args` must be `channels`, `blocks` and `wide`"),
        ({"model_args": {"wide": 1, "channels": 4, "features": 4}}, "`model_args` must be"),
        ({"model_args": {"channels": 4, "wide": 385}}, "`wide` must be a whole number from 0 to 384"),
        ({"model_args": {"channels": 4, "blocks": 2}}, "body.1.conv1.weight are missing"),
        ({"model_args": {"channels": 4, "blocks": 0}}, "no weights 'body.0.conv1.weight'"),
        ({"model_args": {"channels": 8, "blocks": 1}}, r"head.weight has the shape \(4, 24, 3, 3\), expected \(8, "),
        ({"model": {**GOOD["model"], "head.bias": [0.0] * 4}}, "head.bias must be a tensor of floats"),
        ({"model": {**GOOD["model"], "head.bias": torch.zeros(4).expand(10**9, 4)}}, "head.bias has the shape"),
        ({"model": {**GOOD["model"], "head.bias": torch.full((4,), math.inf)}}, "not finite"),
        ({"meta": {"a": endless()}}, "`meta` must hold plain data"),
        ({"meta": {"a": torch.zeros(1)}}, "`meta` must hold plain data"),
        ({"meta": 3}, "`meta` must hold plain data"),
        ({"meta": {"a": Bomb()}}, "refused .*bytearray"),
    ],
)
def test_checkpoints_are_refused_by_name(tmp_path, change, message):
    path = tmp_path / "bad.pth"
    torch.save({**GOOD, **change}, path)
    with pytest.raises(CheckpointError, match=message):
        load_student(path)


def test_other_archives_are_refused(tmp_path):
    path = tmp_path / "student.pth"
    torch.save(GOOD, path, _use_new_zipfile_serialization=False)  # its pickle can ask for any memory
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_student(path)
    save_student(path, Student(4, 1), {})
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry) + bytes(10**7))
    with pytest.raises(CheckpointError, match="not compressed"):
        load_student(tmp_path / "bomb.pth")
    with open(tmp_path / "large.pth", "wb") as file:
        file.truncate(models.MAX_STUDENT_BYTES + 1)
    with pytest.raises(CheckpointError, match="more than 256 MiB"):
        load_student(tmp_path / "large.pth")


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    path = tmp_path / "student.pth"
    save_student(path, Student(4, 1), {})
    content = bytearray(path.read_bytes())
    weights = GOOD["model"]["tail.weight"].numpy().tobytes()  # zeros, the longest run of them
    content[content.index(weights) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_student(path)


def test_ncnn_files(tmp_path):
    seeds = dict(fuzzing.ncnn_seeds(tmp_path))
    param, weights = tmp_path / "small.param", tmp_path / "small.bin"
    assert set(seeds) == {param.name, weights.name} and read_ncnn(param, weights, fuzzing.SMALL)
    weights.write_bytes(seeds["small.bin"][:4] + b"\x00\x7c" + seeds["small.bin"][6:])  # infinity in fp16
    with pytest.raises(CheckpointError, match="not finite"):
        read_ncnn(param, weights, fuzzing.SMALL)
    with open(param, "ab") as file:
        file.write(b" " * models.MAX_PARAM_BYTES)
    with pytest.raises(CheckpointError, match="over 1 MiB"):
        read_ncnn(param, weights, fuzzing.SMALL)
    with pytest.raises(CheckpointError, match="no file"):
        read_ncnn(tmp_path / "absent.param", weights, fuzzing.SMALL)


@pytest.mark.parametrize("url", ["http://example.org/a.pth", "ftp://example.org/a.pth", "file:///etc/passwd"])
def test_downloads_are_https(tmp_path, url):
    with pytest.raises(CheckpointError, match="only https"):
        models._download(url, tmp_path / "a.pth", 3, "0" * 64)
    assert not any(tmp_path.iterdir())


def test_redirects_are_https(tmp_path, monkeypatch):
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/a.pth")
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with pytest.raises(CheckpointError, match=r"redirects to http://example\.invalid/a\.pth, which is not https"):
            models._download(f"http://127.0.0.1:{server.server_port}/", tmp_path / "a.pth", 3, "0" * 64)
        server.shutdown()
    assert not models._is_private("http://127.0.0.1/", source="https://example.org/")


# ----------------------------------------------------------------------------------------------------------------------
# Networks


def _outside(model):
    onnx = pytest.importorskip("onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")


def _other_type(model):
    model.graph.input[1].type.tensor_type.elem_type = 4  # uint16


def _other_shape(model):
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 10**6


def _other_name(model):
    model.graph.input[1].name = "more"
    for node in model.graph.node:
        node.input[:] = ["more" if name == "cells" else name for name in node.input]


def _insert(model, node, *constants):
    """Put a node with the input ``scale`` and the output ``scaled`` before the factor `keep`."""
    model.graph.initializer.extend(constants)
    for other in model.graph.node:
        other.input[:] = ["scaled" if name == "keep" else name for name in other.input]
    model.graph.node.insert(0, node)


def _huge(model):
    onnx = pytest.importorskip("onnx")
    sides = onnx.numpy_helper.from_array(np.array([10**5, 10**5, 1, 1]), "sides")
    _insert(model, onnx.helper.make_node("Expand", ["keep", "sides"], ["scaled"]), sides)


def _foreign(model):
    onnx = pytest.importorskip("onnx")
    _insert(model, onnx.helper.make_node("Sin", ["keep"], ["scaled"]))


def _other_weights(model):
    for tensor in model.graph.initializer:
        if tensor.data_type == 3:  # int8
            tensor.raw_data = bytes(len(tensor.raw_data))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_outside, "weights from another file"),
        (_other_type, "other inputs and outputs|cannot run"),
        (_other_shape, "other inputs and outputs|cannot run"),
        (_other_name, "other inputs and outputs"),
        (_huge, "makes|other inputs|cannot run"),
        (_foreign, r"do not \(Sin"),
        (_other_weights, "it is wrong by"),
    ],
)
def test_networks_that_claim_the_right_weights(exported, tmp_path, caplog, spoil, message):
    """Whoever makes a file can copy the note of whose weights it has."""
    onnx = pytest.importorskip("onnx")
    (tmp_path / "student.pth").write_bytes(exported.read_bytes())
    model = onnx.load(artefact_path(exported))
    spoil(model)
    path = artefact_path(tmp_path / "student.pth")
    path.write_bytes(model.SerializeToString())
    student, _ = load_student(exported)
    with pytest.raises(ArtefactError, match=message):
        OpenVINOEngine(student, path)
    if runtime.pick_device().type == "cpu":
        assert make_engine(student, tmp_path / "student.pth").description.startswith("torch")
        assert "PyTorch is used" in caplog.text


def test_network_files_too_large(exported, tmp_path):
    path = tmp_path / "large.onnx"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ArtefactError, match="has over"):
        OpenVINOEngine(load_student(exported)[0], path)


# ----------------------------------------------------------------------------------------------------------------------
# Text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 0x" + "f" * 9000, "got a number of 36000 bits"),
        ("epochs: " + "9" * 9000, "not valid YAML"),
        ("name: 2026-13-41", "not valid YAML"),
        ("epochs: " + "[" * 5000, "not valid YAML"),
        ("l1: .nan", "must be float, and finite"),
        ("l1: 1e999", "must be float, and finite"),
        ("channels: 1000000", "channels from .* must be int from 1 to 256, got 1000000"),
        ("batch_size: -1", "must be int from 1"),
        ("sources: {a: .inf}", "positive weights, got a dict of 1"),
        ("name: !!python/object/apply:os.abort []", "not valid YAML"),
        ("#" * (1 << 20) + "\n", "more than 1 MiB"),
    ],
)
def test_configurations_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config([str(path)])


def test_lists_of_lists_do_not_explode_in_the_message(tmp_path):
    lines = ["a: &a [x, x]", *(f"{b}: &{b} [{f'*{a}, ' * 9}]" for a, b in itertools.pairwise("abcdefghijk"))]
    path = tmp_path / "laughs.yaml"
    path.write_text("sources:\n" + "\n".join(f"  {line}" for line in lines))
    with pytest.raises(ConfigError) as error:
        load_config([str(path)])
    assert len(str(error.value)) < 500


@QUICK
@given(key=st.sampled_from([*Config.__dataclass_fields__, "x"]), value=st.text(max_size=40))
def test_any_text_is_a_value_or_refused(key, value):
    try:
        load_config([f"{key}={value}"])
    except ConfigError as error:
        assert len(str(error)) < 1000


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(tree=TREES, position=st.integers(0, 8))
def test_any_json_is_no_report_or_study(tmp_path, tree, position):
    """Anything in the place of any part."""
    content = json.loads(fuzzing.report_seeds(tmp_path)[0][1])
    content[list(content)[position % len(content)]] = tree
    (tmp_path / "report.json").write_text(json.dumps(content))
    try:
        load_report(tmp_path / "report.json")
    except ReportError as error:
        assert "report.json" in str(error)
    study = {"format": 1, "seed": 0, "methods": ["input", "student"], "trials": []}
    study[list(study)[position % 4]] = tree
    (tmp_path / "study.json").write_text(json.dumps(study))
    with pytest.raises(StudyError, match=r"study\.json"):
        load_study(tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\secret", "crops\\..\\..\\secret", "a\0b"])
def test_a_reports_pictures_lie_beside_it(tmp_path, name):
    content = json.loads(fuzzing.report_seeds(tmp_path)[0][1])
    content["crops"][0]["files"]["input"] = name
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ReportError, match=r"crops\[0\] has something else than expected as files"):
        load_report(path)


def test_json_without_end(tmp_path):
    (tmp_path / "report.json").write_text("[" * 200_000)
    (tmp_path / "study.json").write_text("[" * 200_000)
    with pytest.raises(ReportError, match="no JSON"):
        load_report(tmp_path / "report.json")
    with pytest.raises(StudyError, match="cannot read"):
        load_study(tmp_path)
