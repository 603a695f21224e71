import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

import dataset
import evaluate as ev
from dataset import DataError
from utils import bgr_to_planes

ROOT = Path(__file__).parent.parent


@pytest.fixture
def samples():
    photo = np.ascontiguousarray(skimage.data.chelsea()[40:200, 100:300, ::-1])
    return list(ev.image_samples("nature", "cat", photo))


def identity(y, uv, full_range):
    return y, uv


def test_known_answers(samples):
    records = ev.evaluate(
        samples, {"identity": identity, "blur": lambda y, uv, _: (cv2.GaussianBlur(y, (0, 0), 3), uv)}
    )
    assert len(records) == 3 * len(samples)
    for row in ev.summarise(records, ["condition"]):
        others = {r["method"]: r for r in ev.summarise(records, ["condition"]) if r["condition"] == row["condition"]}
        assert (
            others["identity"]["psnr"] == others["input"]["psnr"]
            and others["identity"]["ssim"] == others["input"]["ssim"]
        )
        assert others["blur"]["ssim"] < others["input"]["ssim"]
        if row["condition"] == "clean":
            assert others["input"]["psnr"] == np.inf and others["input"]["ssim"] == 1
            assert others["input"]["phase_spread"] == 0


def test_conditions_are_degradations_that_repeat(samples):
    assert [s.condition for s in samples] == [*ev.IMAGE_CONDITIONS, *(f"x264 qp {qp}" for qp in ev.CODEC_QPS)]
    by_condition = {r["condition"]: r["psnr"] for r in ev.evaluate(samples, {})}
    qualities = [by_condition[f"x264 qp {qp}"] for qp in ev.CODEC_QPS]
    assert qualities == sorted(qualities, reverse=True) and 20 < qualities[-1] < qualities[0] < 45
    assert 24 < by_condition["bicubic+noise"] < 45
    photo = np.ascontiguousarray(skimage.data.chelsea()[40:200, 100:300, ::-1])
    for sample, again in zip(samples, ev.image_samples("nature", "cat", photo), strict=True):
        assert (sample.input[0] == again.input[0]).all() and (sample.input[1] == again.input[1]).all()


def test_summarise_averages_each_group():
    record = {"category": "a", "condition": "c", "name": "n", "method": "m", "phase_error": np.ones((4, 4)).tolist()}
    records = [{**record, "psnr": 30.0, "ssim": 0.8}, {**record, "psnr": 34.0, "ssim": 0.9}]
    records += [{**record, "category": "b", "psnr": 10.0, "ssim": 0.1}]
    rows = ev.summarise(records, ["category"])
    assert [(row["category"], row["samples"], row["psnr"]) for row in rows] == [("a", 2, 32.0), ("b", 1, 10.0)]
    assert rows[0]["ssim"] == pytest.approx(0.85) and rows[0]["phase_spread"] == 0


def test_phase_error_finds_a_grid(rng):
    truth = np.full((66, 71), 100, np.uint8)
    dotted = truth.copy()
    dotted[1::4, 2::4] += 8
    phases = ev.phase_error(dotted, truth)
    assert phases[1, 2] == 64 and phases.sum() == 64
    noisy = dataset.add_noise(np.full((400, 400), 128, np.uint8), 4, rng)
    phases = ev.phase_error(noisy, np.full((400, 400), 128, np.uint8))
    assert np.ptp(phases) / phases.mean() < 0.1


def test_unsharp_mask_undoes_some_blur():
    truth, uv = bgr_to_planes(np.ascontiguousarray(skimage.data.astronaut()[:128, 150:278, ::-1]))
    soft = cv2.GaussianBlur(truth, (0, 0), 0.8)
    sharp, same = ev.unsharp_mask(soft, uv)
    assert np.square(sharp.astype(float) - truth).mean() < 0.8 * np.square(soft.astype(float) - truth).mean()
    assert same is uv


def test_videos_are_measured_in_their_own_range(tmp_path):
    import av

    path = tmp_path / "clip.mp4"
    photo = np.ascontiguousarray(skimage.data.astronaut()[..., ::-1])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "10"})
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for image in dataset.animate(photo, 12, (128, 160), (2, 1), np.random.default_rng(0)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
    samples = list(ev.video_samples("people", path, frames=10))
    assert len(samples) == 2 * len(ev.CODEC_QPS) and not any(s.full_range for s in samples)
    assert samples[0].truth[0].shape == (128, 160)


def test_benchmark_of_a_folder(tmp_path):
    for category in ("cats", "empty"):
        (tmp_path / category).mkdir()
    photo = skimage.data.chelsea()[:100, :120, ::-1]
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / "cats" / name), photo)
    samples = list(ev.benchmark_samples(tmp_path, match=["a*"]))
    assert {(s.category, s.name) for s in samples} == {("cats", "a.png")} and len(samples) == 7
    assert len(list(ev.benchmark_samples(tmp_path, quick=True))) == 2
    with pytest.raises(DataError, match="no sub-folder"):
        list(ev.benchmark_samples(tmp_path, match=["*.mp4"]))
    with pytest.raises(DataError, match="no folder"):
        list(ev.benchmark_samples(tmp_path / "missing"))


def run(*arguments):
    return subprocess.run(
        [sys.executable, "evaluate.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_the_script_prints_and_writes_its_figures(checkpoint, tmp_path):
    (tmp_path / "data" / "cats").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "data" / "cats" / "a.png"), skimage.data.chelsea()[:100, :120, ::-1])
    output = tmp_path / "figures.json"
    result = run(
        "--checkpoint", str(checkpoint), "--data", str(tmp_path / "data"), "--json", str(output), "--device", "cpu"
    )
    assert result.returncode == 0, result.stderr
    assert "| cats | bicubic+noise |" in result.stdout and "FPS at 1920x1080" in result.stdout
    report = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {row["method"] for row in report["by_category"]} == {"input", "unsharp mask", "student"}
    clean = [row for row in report["by_category"] if row["condition"] == "clean" and row["method"] == "input"]
    assert clean[0]["psnr"] is None and clean[0]["ssim"] == 1
    assert set(report["fps_1080p"]) == {"sharpen_planes", "sharpen (BGR)"}


def test_the_script_refuses_bad_input_in_one_line(tmp_path, checkpoint):
    for arguments in (
        ["--checkpoint", str(tmp_path / "no.pth")],
        ["--checkpoint", str(checkpoint), "--data", "nowhere"],
    ):
        output = tmp_path / "figures.json"
        result = run(*arguments, "--json", str(output))
        assert result.returncode == 2 and not output.exists()
        assert result.stderr.startswith("evaluate.py: no ") and result.stderr.count("\n") == 1
