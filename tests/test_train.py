import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dataset
import degradation
import train as training
from config import Config
from images import read_image
from models import CheckpointError, Student, load_student, read_weights
from tests.faults import full_disk, leftovers, run_and_kill
from train import TrainingError
from utils import luma_metrics

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
    )
    return dataclasses.replace(config, **changes)


def as_arguments(config):
    return [f"{key}={json.dumps(value)}" for key, value in dataclasses.asdict(config).items()]


def run_script(*arguments):
    command = [sys.executable, "train.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


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


def test_flatter_edges_have_a_deficit_and_patterns_along_them_do_not_help():
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    step = 0.2 + 0.5 * (columns > 19).float()[None, None]
    soft = training.gaussian_blur(F.pad(step, [6] * 4, mode="replicate"), 2, 6)
    deficit = training.edge_deficit(soft, step)
    assert deficit.shape == (1,) and deficit > 0.005
    assert training.edge_deficit(step, step) < 1e-3
    assert training.edge_deficit(0.5 * (soft + step), step) < 0.6 * deficit
    for period in (2, 4):  # of dots along the edge
        dots = 0.1 * ((rows % period) < period // 2) * ((columns - 19.5).abs() < 2)
        assert training.edge_deficit(soft + dots - dots.mean(), step) > 0.9 * deficit


def a_batch(taught):
    """A collated batch of random pictures, 32x32, whose inputs differ from their goals by 0.01: a weight of 1."""
    count = len(taught)
    goal, target = (torch.rand(count, 1, 32, 32), torch.rand(count, 2, 16, 16)), torch.rand(count, 1, 32, 32)
    batch = {"input": (goal[0] + 0.01, goal[1]), "goal": goal, "target": target}
    return batch | {"taught": torch.tensor(taught)}


def test_ground_truth_counts_as_it_is_and_a_teacher_by_its_detail():
    config, batch = Config(), a_batch([0.0, 1.0])
    output = (torch.rand(2, 1, 32, 32, requires_grad=True), torch.rand(2, 2, 16, 16))
    terms = training.distillation_loss(output, batch, config, 0)
    luma = training.charbonnier(output[0][:1], batch["target"][:1], 0.01)
    chroma = training.charbonnier(output[1][:1], batch["goal"][1][:1], 0.01)
    torch.testing.assert_close(terms["l1"], (luma + 0.5 * chroma)[0] / 2)
    detail = [training.high_pass(y[1:]) for y in (output[0], batch["target"])]
    torch.testing.assert_close(terms["teacher_l1"], (detail[0] - detail[1]).abs().mean() / 2)
    names = ("l1", "ssim", "edges", "teacher_l1", "teacher_kl")
    assert set(terms) == {"loss", *names} and all(terms[name] > 0 for name in names)
    torch.testing.assert_close(terms["loss"], sum(getattr(config, name) * terms[name] for name in names))
    for taught, without in ((0.0, {"teacher_l1", "teacher_kl"}), (1.0, {"l1", "ssim"})):
        terms = training.distillation_loss(output, a_batch([taught] * 2), config, 0)
        assert {name for name, term in terms.items() if term == 0} == without


def test_an_error_added_to_good_video_counts_more():
    batch = a_batch([0.0])
    y, uv = batch["goal"]
    losses = []
    for damage in (0.0, 0.005, 0.05):
        batch |= {"input": (y + damage, uv), "target": y}
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
    going_on = dataclasses.replace(config, initial="student.pth")
    assert training.charbonnier_epsilon(going_on, 0) == pytest.approx(0.001)


def test_learning_rate_warms_up_and_falls_to_zero():
    config = Config(epochs=2, steps_per_epoch=50, warmup_steps=10, learning_rate=0.1)
    rates = [training.learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == rates[9] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 1e-4


def test_one_batch_can_be_learned_by_heart(cache):
    """Most of the error on four crops must go: loss, gradient and optimiser fit together."""
    config = tiny_config(cache, "overfit", channels=32)
    pairs = [p for p in dataset.open_pairs(dataset.prepare_pairs(config)) if p.description["kind"] != "clean"][:4]
    items = [dataset.PairDataset(pairs, config)[(0, 0, 0, i)] for i in range(4)]
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


# ----------------------------------------------------------------------------------------------------------------------
# Runs


def contents(run):
    """What a training leaves, except for times: the student's and the state's tensors by name, and rows of the log."""
    state = read_weights(run / "last.pth")
    tensors = {**weights(run / "student.pth"), **{f"state {name}": value for name, value in state["student"].items()}}
    tensors |= {f"average {name}": value for name, value in state["average"].items()}
    for number, moments in state["optimizer"]["state"].items():
        tensors |= {f"optimizer {number} {name}": value for name, value in moments.items()}
    rows = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
    return tensors, [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same_run(run, other):
    (tensors, rows), (other_tensors, other_rows) = contents(run), contents(other)
    assert rows == other_rows and tensors.keys() == other_tensors.keys()
    assert [name for name, value in tensors.items() if not torch.equal(value, other_tensors[name])] == []


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The folder of a training of two epochs that nothing happened to."""
    return training.train(tiny_config(cache, tmp_path_factory.mktemp("whole"))).parent


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize(("name", "count"), [("student.pth", 1), ("last.pth", 2)])
def test_a_killed_run_resumed_equals_one_uninterrupted(cache, whole, tmp_path, name, count):
    config = tiny_config(cache, tmp_path / "run")
    run_and_kill("train", as_arguments(config), name, count)
    assert len(leftovers(tmp_path)) == 1
    torch.manual_seed(99)  # whatever happened in between
    training.train(config, resume=(tmp_path / "run" / "last.pth").exists())
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.skipif(os.name != "posix", reason="needs limits of file size")
@pytest.mark.parametrize("limit", [16_000, 300_000])
def test_a_full_disk_ends_a_run_that_then_goes_on(cache, whole, tmp_path, capsys, limit):
    config = tiny_config(cache, tmp_path / "run")
    with full_disk(limit):
        assert training.main(as_arguments(config)) == 2
    assert "File too large" in capsys.readouterr().err.rstrip().splitlines()[-1]
    training.train(config, resume=(tmp_path / "run" / "last.pth").exists())
    assert_same_run(tmp_path / "run", whole)


def test_the_script_trains_a_student_that_knows_its_origin(cache, tmp_path):
    config = tiny_config(cache, tmp_path / "run")
    result = run_script(*as_arguments(config))
    assert result.returncode == 0, result.stderr[-3000:]
    path = tmp_path / "run" / "student.pth"
    assert str(path) in result.stdout
    _, meta = load_student(path)
    assert meta["teacher"] == "none" and meta["pairs"] == 8 and meta["epoch"] == 2
    assert meta["config"]["epochs"] == 2 and "data_root" not in meta["config"]
    assert sum(row["pairs"] for row in meta["metrics"]["validation"]) == 2
    assert read_image(tmp_path / "run" / "validation.png").pixels.shape[1] == 3 * 256
    again = run_script(*as_arguments(config))
    assert again.returncode == 2 and "--resume" in again.stderr.splitlines()[-1]


def test_a_loss_that_is_not_finite_stops_the_run(cache, tmp_path):
    config = tiny_config(cache, tmp_path / "run", learning_rate=1e37, warmup_steps=1)
    with pytest.raises(TrainingError, match="not finite at step"):
        training.train(config)
    assert not (tmp_path / "run" / "student.pth").exists()


def test_a_student_that_nobody_could_load_is_refused(cache, tmp_path):
    with pytest.raises(CheckpointError, match="`channels` must be 1 to 256"):
        training.train(tiny_config(cache, tmp_path / "run", channels=260))


def test_resume_needs_a_run_of_the_same_configuration(cache, whole, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        training.train(tiny_config(cache, tmp_path / "none"), resume=True)
    with pytest.raises(TrainingError, match=r"learning_rate: 0.001 -> 0.5"):
        training.train(tiny_config(cache, whole, learning_rate=0.5), resume=True)


def test_a_run_can_start_from_a_student(cache, whole, tmp_path):
    first = whole / "student.pth"
    config = tiny_config(cache, tmp_path / "second", initial=str(first), learning_rate=1e-9, epochs=1)
    second = training.train(config)
    for name in ("tail.weight", "head.weight"):
        torch.testing.assert_close(weights(second)[name], weights(first)[name])
    assert load_student(second)[1]["config"]["initial"] == str(first)
    assert load_student(second)[1]["initial"] == load_student(first)[1]
    with pytest.raises(TrainingError, match=r"holds a network of .*'channels': 8"):
        training.train(tiny_config(cache, tmp_path / "third", initial=str(first), channels=16))


def test_a_narrow_student_starts_from_the_channels_of_a_wider_one(cache):
    """Where a wide block uses few channels, choosing those loses nothing."""
    torch.manual_seed(0)
    wide, narrow = Student(8, 2, 12), Student(8, 2, 4)
    with torch.no_grad():
        wide.tail.weight.normal_(0, 0.1)
        for block in wide.body:
            block.conv2.weight[:, 4:] = 0
    config = tiny_config(cache, "narrow")
    training.narrow(wide, narrow, dataset.PairDataset(dataset.open_pairs(dataset.prepare_pairs(config)), config))
    y, uv = torch.rand(1, 1, 48, 64), torch.rand(1, 2, 24, 32)
    for expected, found in zip(wide.predict(y, uv), narrow.predict(y, uv), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_the_goal_lies_between_a_larger_students_answer_and_the_truth():
    torch.manual_seed(0)
    larger = Student(8, 1)
    torch.nn.init.normal_(larger.tail.weight, std=0.1)
    planes = torch.rand(2, 1, 32, 32), torch.rand(2, 2, 16, 16)
    truth = tuple(torch.rand_like(plane) for plane in planes)
    kinds = torch.tensor([[1.2, 1.5, 0.4, 0, 0], [1, 1, 0.4, 0, 1]])
    batch = {"input": planes, "goal": truth, "answer": kinds}
    *residuals, gain = larger.predict(*planes)
    missing = [true - before for true, before in zip(truth, planes, strict=True)]
    wanted = [torch.stack([1.2 * said[0], lost[1]]) for said, lost in zip(residuals, missing, strict=True)]
    scaled = torch.where(gain[0] > 0, 1.5, 1.2) * gain[0]
    wanted.append(torch.stack([scaled + 0.4, 0 * gain[1]]))  # noise is full of texture
    answers = training.answers(larger, batch)
    assert training.answer_loss(wanted, answers)["loss"] < 1e-9
    for index, name in enumerate(("luma", "chroma", "gain")):
        other = [plane + 0.1 * (number == index) for number, plane in enumerate(wanted)]
        terms = training.answer_loss(other, answers)
        assert terms[name] > 1e-4 and terms["loss"] >= 0.5 * terms[name]


def test_a_natural_answer_keeps_fine_detail_and_spares_outlines():
    torch.manual_seed(0)
    larger = Student(8, 1)
    torch.nn.init.normal_(larger.tail.weight, std=0.02)
    y = torch.full((1, 1, 64, 96), 0.5)
    y[..., 48:] += 0.02 * torch.randn(64, 48)  # cloth beside a wall
    batch = {"input": (y, torch.full((1, 2, 32, 48), 0.5)), "answer": torch.tensor([[1.0, 1, 0, 1, 0]])}
    batch["goal"] = batch["input"]
    residual, _, gain = larger.predict(*batch["input"])
    found, _, natural = training.answers(larger, batch)
    wall, cloth = slice(0, 32), slice(64, 80)
    torch.testing.assert_close(found[..., wall], residual[..., wall])
    fine = [training.detail(plane, training.FINE_SIGMA)[..., cloth].std() for plane in (found, residual)]
    assert fine[0] < 0.5 * fine[1]  # less of it is taken away
    torch.testing.assert_close(natural[..., :16], gain[..., :16])
    y[..., 48:] += 0.4 * (torch.arange(48) % 16 < 8)  # stripes
    gain, (*_, natural) = larger.predict(*batch["input"])[-1], training.answers(larger, batch)
    assert (natural[..., 32:40].abs() < 0.5 * gain[..., 32:40].abs()).all()


def test_texture_is_cloth_and_not_a_wall():
    y = torch.full((1, 1, 64, 96), 0.5)
    y[..., 32:64] += 0.03 * torch.randn(64, 32)  # cloth
    y[..., 64:] += 0.002 * torch.randn(64, 32)  # a wall, half a code of grain
    found = training.texture(training.deviation(y), *training.TEXTURE)
    assert found.shape == (1, 1, 32, 48)
    assert found[..., 20:28].min() == 1 and found[..., :8].max() == 0 and found[..., 40:].max() == 0


def test_a_run_can_learn_from_a_larger_student(cache, whole, tmp_path):
    config = tiny_config(cache, tmp_path / "small", larger=str(whole / "student.pth"), wide=4, epochs=1)
    student, meta = load_student(training.train(config))
    assert student.args == {"channels": 8, "blocks": 1, "wide": 4} and meta["config"]["larger"] == config.larger
    with pytest.raises(training.TrainingError, match="no wider one"):
        training.train(tiny_config(cache, tmp_path / "other", larger=config.larger, channels=16))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epoch=1", "unknown key"),
        ("device=quantum", "unknown device"),
        ("initial=missing.pth", "no checkpoint at missing.pth"),
        ("larger=missing.pth", "no checkpoint at missing.pth"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(capsys, argument, message):
    assert training.main([argument]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def make_pairs(count, taught=False):
    return [dataset.Pair(None, None, taught, {"kind": "call"})] * count


def test_each_epoch_has_its_own_keys_and_always_the_same():
    config, pairs = Config(steps_per_epoch=5, batch_size=3), make_pairs(100)
    keys = training.epoch_keys(config, 1, pairs)
    assert len(set(keys)) == 15 and keys == training.epoch_keys(config, 1, pairs)
    assert keys != training.epoch_keys(config, 2, pairs)


def test_taught_pairs_get_their_share_of_an_epoch():
    config = Config(steps_per_epoch=500, batch_size=10, teacher_share=0.25)
    pairs = make_pairs(90) + make_pairs(10, taught=True)
    indices = np.array([index for *_, index in training.epoch_keys(config, 0, pairs)])
    assert (indices >= 90).mean() == pytest.approx(0.25, abs=0.03) and set(indices) == set(range(100))
    # Without taught pairs the others are all there is.
    assert len(training.epoch_keys(config, 0, make_pairs(3))) == 5000


def test_validation_is_the_mean_psnr_against_the_truth_by_kind_of_damage(cache):
    config = tiny_config(cache, "shared")
    pairs = dataset.open_pairs(dataset.prepare_pairs(config, "validation", progress=False))
    pairs.append(dataset.Pair(pairs[0].goal, pairs[0].goal, False, {"kind": "clean", "soft": False}))
    score, rows = training.validate(lambda y, uv, full_range: (y, uv), pairs)
    psnr = [luma_metrics(pair.input[:256], pair.goal[:256])[0] for pair in pairs]
    assert psnr[2] == np.inf and score == pytest.approx(np.mean([min(value, 45) for value in psnr]))
    kinds = {pair.description["kind"] + (", soft" if pair.description["soft"] else "") for pair in pairs}
    assert {row["condition"] for row in rows} == kinds and sum(row["pairs"] for row in rows) == len(pairs)
    for row in rows:
        assert row["psnr"] == row["psnr_input"] and row["ssim"] == row["ssim_input"]
    worse, _ = training.validate(lambda y, uv, full_range: (y ^ 16, uv), pairs)
    assert worse < score - 3


# ----------------------------------------------------------------------------------------------------------------------
# Teachers


ENLARGER = torch.nn.Upsample(scale_factor=4, mode="nearest")  # a teacher that sharpens nothing


def test_a_teachers_picture_has_the_size_of_its_input(cache):
    """What a teacher only enlarges comes back as it was."""
    config = tiny_config(cache, "shared")
    (pair, *_) = dataset.open_pairs(dataset.prepare_pairs(config, progress=False))
    packed = degradation.pack_planes(*degradation.crop_planes(*degradation.unpack_planes(pair.input), 8, 4, 160))
    for change in (0, 0.1):
        taught = training.teach(lambda rgb, change=change: ENLARGER(rgb) + change, packed, torch.device("cpu"))
        assert taught.shape == packed.shape and taught.dtype == np.uint8
        expected = np.clip(packed[:160].astype(int) + 255 * change, 0, 255)
        assert np.abs(taught[:160] - expected).mean() < 1.5
        if not change:
            assert np.abs(taught.astype(int) - packed).max() <= 4  # what lies beyond RGB is cut off


def test_the_teacher_looks_once_and_a_student_learns_from_it(cache, clips, tmp_path, monkeypatch):
    """From two crops of real video, and from an image with stored outputs of the official BSRGAN."""
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    for name, side in (("lr", 160), ("sr", 640)):
        (tmp_path / "stored" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "stored" / name / "a.png"), cv2.resize(image, (side, side)))
    changes = {"data_root": str(clips), "sources": {"clips": 1.0}, "real_pairs": 2, "epochs": 1}
    config, cpu = tiny_config(cache, tmp_path / "run", **changes), torch.device("cpu")
    pairs, _, teacher = training.prepare_data(config, cpu, progress=False)
    assert len(pairs) == 8 and teacher == "none", "without a teacher real pairs are left out"

    monkeypatch.setattr(training, "load_teacher", lambda name: (ENLARGER, "bsrgan"))
    config = dataclasses.replace(config, teacher="auto", bsrgan_pairs=str(tmp_path / "stored"))
    pairs, validation_pairs, teacher = training.prepare_data(config, cpu, progress=False)
    assert [pair.taught for pair in pairs] == [False] * 8 + [True] * 3 and teacher == "bsrgan + bsrgan (stored outputs)"
    assert not any(pair.taught for pair in validation_pairs)
    for pair in pairs[8:10]:
        assert (pair.goal == training.teach(ENLARGER, pair.input, cpu)).all()
    files = sorted(cache.glob("real-*/teacher-bsrgan/*.npy"))
    written = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    path = training.train(config)
    assert len(files) == 2 and files[0].stat().st_mtime_ns == written[0] and files[1].stat().st_mtime_ns > written[1]
    meta = load_student(path)[1]
    assert meta["teacher"] == teacher and meta["pairs"] == 11
    (row,) = csv.DictReader((path.parent / "log.csv").read_text().splitlines())
    assert float(row["teacher_l1"]) > 0 and float(row["l1"]) > 0
    monkeypatch.setattr(training, "load_teacher", lambda name: (ENLARGER, "realesrgan"))
    with pytest.raises(TrainingError, match=r"another teacher: bsrgan .* before, now realesrgan"):
        training.train(config, resume=True)
