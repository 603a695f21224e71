"""Faults, quickly: real kills, real disks that fill up. The long versions are ``python -m tests.faults``."""

import json
import os
import platform
import shutil
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import faults
import numpy as np
import pytest
import skimage.data
import torch

import dataset
from benchmark import conditions, runner
from benchmark.peers import Peer
from config import load_config
from degradation import DataError
from runtime import DeviceError, TorchEngine, student_reach
from utils import atomic_path, bgr_to_planes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, signals and limits of Linux")


@pytest.fixture(scope="module", autouse=True)
def children_find_the_modules():
    """Programs are forked from a process that has imported them: it must find them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{faults.ROOT}{os.pathsep}{faults.ROOT / 'tests'}")
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The pairs of `faults.TRAINING`, made without processes."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "ProcessPoolExecutor", lambda *arguments, **options: ThreadPoolExecutor(1))
        patch.setattr(dataset, "PART_SIZE", faults.PART)
        config = load_config([*faults.TRAINING, f"cache_dir={folder}"])
        for purpose in ("training", "validation"):
            dataset.prepare_pairs(config, purpose, progress=False)
    return folder


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """What a training leaves that nothing happens to."""
    folder = tmp_path_factory.mktemp("trained")
    faults.timed(faults.Program("train", faults.train_command(cache, folder / "run"), folder))
    return faults.trained(folder / "run")


# ----------------------------------------------------------------------------------------------------------------------
# Kills


@pytest.mark.parametrize("moment", [2, 6])  # student.pth of the first epoch, last.pth of the second
def test_a_training_killed_while_it_writes_goes_on(cache, trained, tmp_path, moment):
    def start(half_written):
        command = faults.train_command(cache, tmp_path / "run")
        return faults.Program("train", command, tmp_path, half_written)

    code, _ = start(moment).finish()
    assert code == -9 and len(faults.leftovers(tmp_path)) == 1
    assert start(0).finish()[0] == 0
    faults.check_trained(tmp_path / "run", trained)
    assert not faults.leftovers(tmp_path)


def test_a_preparation_survives_what_befalls_it(cache, tmp_path):
    """Its process is killed, then its worker; then two trainings finish it at once."""
    (validation,) = cache.glob("validation-*")
    shutil.copytree(validation, tmp_path / "cache" / validation.name)
    command = faults.train_command(tmp_path / "cache", tmp_path / "run")
    program = faults.Program("train", command, tmp_path)
    while not any(tmp_path.glob("cache/training-*/*.npy")) and program.process.is_alive():
        program.process.join(0.005)
    assert program.process.is_alive(), program.log.read_text()
    program.kill()
    assert not list(tmp_path.glob("run/*")) and not (tmp_path / "one").exists()

    faults.kill_worker(tmp_path)
    faults.race_trainings(tmp_path)


def test_evaluations_killed_or_two_at_once(checkpoint, tmp_path):
    folders = [tmp_path / "killed", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()

    def start(half_written):
        return faults.Program("evaluate", faults.evaluate_command(folders[0], checkpoint), folders[0], half_written)

    assert faults.kill_half_written(start, 5) == 1
    faults.race_evaluations(folders[1], checkpoint)
    assert faults.same_records(faults.measured(folders[0]), faults.measured(folders[1], "one"))
    assert not faults.leftovers(folders[0])


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    machine = f"{zlib.crc32(platform.node().encode()):08x}"
    left = [
        f".a.{machine}-{ended.pid}-7.part.png",
        f"..a.{machine}-{ended.pid}-7.part.{machine}-{ended.pid}-7.part.png",
    ]
    running, elsewhere, other = (
        f".a.{machine}-{os.getppid()}-7.part.png",
        ".a.0badcafe-7-7.part.png",
        f".b.{left[0][3:]}",
    )
    for name in (*left, running, elsewhere, other):
        (tmp_path / name).write_text("half")
    with atomic_path(tmp_path / "a.png") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", running, elsewhere, other}


# ----------------------------------------------------------------------------------------------------------------------
# Full disks, damaged caches


def test_a_full_disk_ends_a_video(checkpoint, tmp_path):
    faults.fill_disk_of_video(tmp_path, checkpoint, [".mp4", ".mkv"], [16])


def test_a_full_disk_ends_a_training_that_then_goes_on(cache, trained, tmp_path):
    faults.fill_disk_of_training(tmp_path, cache, trained, [16, 1024])


def test_a_full_disk_ends_an_evaluation(checkpoint, tmp_path):
    (tmp_path / "whole").mkdir()
    faults.timed(faults.Program("evaluate", faults.evaluate_command(tmp_path, checkpoint), tmp_path / "whole"))
    faults.fill_disk_of_evaluation(tmp_path, checkpoint, faults.measured(tmp_path / "whole"), [64])


def test_a_full_disk_leaves_no_array(tmp_path):
    with faults.small_disk(tmp_path / "disk", 16) as limit:
        if limit:
            pytest.skip("a tmpfs cannot be mounted here")
        with pytest.raises(OSError, match=r"No space left on device: '.*pairs.npy'"):
            dataset.save_array(tmp_path / "disk" / "pairs.npy", np.zeros(100_000))
        assert not list((tmp_path / "disk").iterdir())


def test_a_damaged_cache_is_not_taken_for_good(cache, tmp_path):
    copy = tmp_path / "training"
    shutil.copytree(next(cache.glob("training-*")), copy)
    path = copy / "pairs-00001.npy"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="is damaged: remove it"):
        dataset.open_pairs(copy)


def test_damaged_figures_and_streams_are_made_anew(tmp_path):
    planes = bgr_to_planes(np.ascontiguousarray(skimage.data.chelsea()[:128, :160]))
    unit = conditions.Unit("call", conditions.Source("cats", "a", "skimage:chelsea"), "x", 1, "x264", 30, None)
    expected = conditions.send([planes] * 2, unit, tmp_path, 1)
    (stream,) = tmp_path.glob("streams/*.npz")
    for damaged in (stream.read_bytes()[:-50], b""):
        stream.write_bytes(damaged)
        found = conditions.send([planes] * 2, unit, tmp_path, 1)
        assert found[1] == expected[1] and (found[0][0][0] == expected[0][0][0]).all()

    units = conditions.image_units([conditions.Source("nature", "chelsea", "skimage:chelsea")], ("light jpeg",))
    methods = [Peer("input", "as it came", lambda scale: runner.as_it_came)]
    (record,) = runner.run(units, methods, tmp_path, vmaf=False)
    (figures,) = tmp_path.glob("figures/*.json")
    figures.write_text(figures.read_text()[:40])
    assert runner.run(units, methods, tmp_path, vmaf=False) == [record]
    assert json.loads(figures.read_text()) == record


# ----------------------------------------------------------------------------------------------------------------------
# Too little memory


@pytest.fixture
def frame(rng):
    coarse = rng.integers(0, 256, (3, 40, 60), dtype=np.uint8)
    y, u, v = (torch.nn.functional.interpolate(torch.tensor(p)[None, None].float(), size=s, mode="bilinear")
               for p, s in zip(coarse, ((325, 483), (163, 242), (163, 242)), strict=True))  # fmt: skip
    planes = [plane[0, 0].byte().numpy() for plane in (y, u, v)]
    return planes[0], np.stack(planes[1:])


def short_of_memory(engine, pixels):
    """Let the engine's student fail as on a GPU with memory for so many pixels; returns the list of sizes it met."""
    predict, sizes = engine._student.predict, []

    def limited(y, uv):
        sizes.append(tuple(y.shape[2:]))
        if y.numel() > pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return predict(y, uv)

    engine._student.predict = limited
    return sizes


def test_frames_too_large_for_the_memory_are_computed_in_parts(student, frame, caplog):
    with torch.no_grad():
        student.tail.weight *= 20
    whole, parts = TorchEngine(student, "cpu", torch.float32), TorchEngine(student, "cpu", torch.float32)
    sizes = short_of_memory(parts, 60_000)
    for function in ("__call__", "difference"):
        expected, found = getattr(whole, function)(*frame), getattr(parts, function)(*frame)
        for one, other in zip(expected, found, strict=True):
            assert one.shape == other.shape
            assert np.abs(one.astype(int) - other).max() <= 1 and (one != other).mean() < 1e-3
    assert (expected[0] != 128).mean() > 0.3
    assert sizes.count(frame[0].shape) == 1, "what failed once is not tried again"
    floats = [np.float32(plane / 255) for plane in frame]
    for one, other in zip(whole.difference(*floats), parts.difference(*floats), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)
    assert len([record for record in caplog.records if "computed in parts" in record.message]) == 1


def test_the_overlap_is_what_the_student_sees(student):
    """A pixel changes nothing beyond `student_reach`, and something near it."""
    reach = student_reach(student)
    y, uv = torch.rand(1, 1, 256, 64), torch.full((1, 2, 128, 32), 0.5)
    changed = y.clone()
    changed[:, :, 0] = 1 - changed[:, :, 0]
    with torch.no_grad():
        rows = (student.predict(y, uv)[0] != student.predict(changed, uv)[0]).any(dim=3)[0, 0].nonzero()
    assert reach - 16 < rows.max() < reach


def test_without_any_memory_there_is_an_error(student, frame):
    engine = TorchEngine(student, "cpu")
    short_of_memory(engine, 0)
    with pytest.raises(DeviceError, match="too little free memory"):
        engine(*frame)


# ----------------------------------------------------------------------------------------------------------------------
# Long runs


def test_a_video_of_some_hundred_frames_leaves_memory_flat(checkpoint, tmp_path):
    passed, stats, samples = faults.soak(tmp_path, 300, (320, 192), checkpoint, "cpu")
    assert passed and stats["frames"] == 300, samples


def test_sharpeners_are_dropped_without_a_leak(checkpoint, tmp_path):
    passed, samples = faults.restarts(tmp_path, 10, checkpoint, "cpu")
    assert passed, samples


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("frames", "size"), [(20000, (640, 360)), (2000, (1920, 1080))])
def test_soak(frames, size, tmp_path):
    passed, stats, samples = faults.soak(tmp_path, frames, size)
    assert passed, (stats, samples)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_sharpeners(tmp_path):
    passed, samples = faults.restarts(tmp_path, 200)
    assert passed, samples


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", ["kills", "disk", "races"])
def test_faults(command):
    assert faults.main([command, "--times", "5"]) == 0
