"""Break the programs on purpose, and run them long; prints a table of what came of it.

    python -m tests.faults kills --times 20              # kill -9 at random moments, then the same command again
    python -m tests.faults disk                          # disks of several sizes that fill up
    python -m tests.faults races                         # two processes on one cache
    python -m tests.faults soak --frames 20000 --size 640x360
    python -m tests.faults restarts --times 200          # construct a sharpener, sharpen a clip, drop it

Everything happens in a temporary folder. The exit code is 1 where an expectation failed. Quick
versions of all of it are in test_faults.py. Linux only: memory, threads and files are counted in /proc.
"""

import argparse
import contextlib
import csv
import gc
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np
import skimage.data
import torch

import dataset
import evaluate
from config import load_config
from inference import RealTimeSharpener
from models import RELEASED_STUDENT, Student, load_student, read_weights, save_student

ROOT = Path(__file__).resolve().parent.parent
GOP = 50  # frames that a long video repeats

TRAINING = [  # of seconds
    *("device=cpu", "teacher=none", "pairs=8", "validation_pairs=2", "region=256", "crop=32", "channels=8", "blocks=1"),
    *("epochs=3", "steps_per_epoch=4", "batch_size=4", "warmup_steps=2", "prepare_workers=1", "branch_width=8"),
]
TRAINING_PAIRS, REGION, PART = 8, 256, 2

# ----------------------------------------------------------------------------------------------------------------------
# Programs that are broken


class Program:
    """A script's ``main(arguments)`` in a process, and a process group, of its own.

    Args:
        module: its name.
        arguments: of its command line.
        folder: working directory; what it prints goes to ``NAME.txt`` there, or in `log`.
        half_written: it kills itself when it renames for this many-th time, counted from 1, with the file cut to half.
        file_limit: bytes that it may write to one file.
        cache: home of OpenVINO's cache of compiled networks.
    """

    def __init__(self, module, arguments, folder, half_written=0, file_limit=None, cache=None, log=None):
        self.log = Path(log or folder) / f"{module}-{time.monotonic_ns()}.txt"
        self.log.touch()
        settings = (module, list(map(str, arguments)), str(folder), half_written, file_limit, cache, str(self.log))
        context = multiprocessing.get_context("forkserver")  # forks from a process that has imported all, and no more
        context.set_forkserver_preload(["train", "evaluate", "inference"])
        self.process = context.Process(target=_run_main, args=settings)
        self.process.start()

    def finish(self, timeout=300):
        """Wait for its end; returns ``(exit code, last line that it printed)``.

        Raises:
            TimeoutError: it hangs; it is killed then.
        """
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.log.read_text('utf-8')[-2000:]}")
        lines = self.log.read_text("utf-8").replace("\r", "\n").split("\n")
        assert "Traceback (most recent call last):" not in lines, "\n".join(lines[-60:])
        return self.process.exitcode, [line for line in lines if line][-1:]

    def kill(self):
        """Kill -9; then all that it started must end by itself."""
        self.process.kill()
        self.process.join()
        for _ in range(200):
            if not group_members(self.process.pid):
                return
            time.sleep(0.05)
        raise AssertionError(f"processes outlive their killed parent: {group_members(self.process.pid)}")


def _run_main(module, arguments, folder, half_written, file_limit, cache, log):
    os.setsid()
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    if cache:
        os.environ["XDG_CACHE_HOME"] = str(cache)
    dataset.PART_SIZE = PART  # so that few pairs have several files
    evaluate.time_1080p = lambda method: 0.0  # seconds that say nothing here
    if half_written:
        os.replace = _replace_until(half_written, os.replace)
    if file_limit:
        import resource  # not on Windows, where the tests that need it are skipped

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))  # Python ignores SIGXFSZ
    sys.exit(importlib.import_module(module).main(arguments))


def _replace_until(count, replace):
    calls = []

    def replace_or_die(source, target):
        calls.append(target)
        if len(calls) == count:
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    return replace_or_die


def group_members(group):
    """Process numbers of a process group, zombies left out, by command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            state, _, member_of, *_ = (folder / "stat").read_text("utf-8").rpartition(")")[2].split()
            if int(member_of) == group and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text("utf-8").replace("\0", " ")
    return found


def leftovers(folder):
    """Temporary files of `utils.atomic_path` in a folder and below."""
    return [str(path) for path in Path(folder).rglob(".*.part*")]


@contextlib.contextmanager
def small_disk(folder, kilobytes):
    """A disk of this size at `folder` while the block lasts; gives the `file_limit` that stands for it, or None.

    A tmpfs where it may be mounted; elsewhere files, each for itself, may not be larger than that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield None if mounted else 1024 * kilobytes
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def enlarge(folder, limit):
    """Make room on a `small_disk`."""
    if limit is None:
        subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)


# ----------------------------------------------------------------------------------------------------------------------
# What programs leave


def train_command(cache, run):
    """``train.py``'s arguments for a run in the folder `run`; where it has begun, it goes on."""
    resume = ["--resume"] if (Path(run) / "last.pth").exists() else []
    return [*TRAINING, f"cache_dir={cache}", f"name={run}", *resume]


def check_pairs(cache):
    """Pairs in a cache are what they would be in one process, to the bit."""
    config = training_config(cache)
    for validation, count in ((False, TRAINING_PAIRS), (True, 2)):
        (folder,) = Path(cache).glob("validation-*" if validation else "training-*")
        sources = dataset.list_sources(config, validation)
        pairs = dataset.open_pairs(folder)
        assert len(pairs) == count, f"{len(pairs)} pairs in {folder}, expected {count}"
        for index, pair in enumerate(pairs):
            expected = dataset.make_pair(sources, 1_000_003 * validation, index, REGION)
            assert (pair.input == expected[0]).all() and (pair.goal == expected[1]).all(), f"pair {index} differs"


def training_config(cache):
    """The `Config` of `TRAINING`."""
    return load_config([*TRAINING, f"cache_dir={cache}"])


def trained(run):
    """All that a training leaves, but for times: weights of the student and of the state, rows of the log."""
    state, student = read_weights(Path(run) / "last.pth"), load_student(Path(run) / "student.pth")[0].state_dict()
    with open(Path(run) / "log.csv", newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    tensors = {f"student {name}": tensor for name, tensor in student.items()}
    tensors |= {f"state {name}": tensor for name, tensor in {**state["student"], **state["average"]}.items()}
    for number, moments in state["optimizer"]["state"].items():
        tensors |= {f"optimizer {number} {name}": tensor for name, tensor in moments.items()}
    return tensors, rows


def check_trained(run, expected):
    """A run is as `trained` gave it of another, to the bit."""
    (tensors, rows), (expected_tensors, expected_rows) = trained(run), expected
    assert rows == expected_rows, f"the log of {run} differs"
    assert tensors.keys() == expected_tensors.keys()
    different = [name for name, tensor in tensors.items() if not torch.equal(tensor, expected_tensors[name])]
    assert not different, f"{run} differs in {different}"


def evaluate_command(folder, checkpoint, name="mine"):
    """``evaluate.py``'s arguments for a tiny benchmark, on a picture that is written to `folder`."""
    picture = Path(folder) / "data" / "cats" / "a.png"
    if not picture.exists():
        picture.parent.mkdir(parents=True)
        cv2.imwrite(str(picture), skimage.data.chelsea()[:128, :160, ::-1])
    options = ["--data", Path(folder) / "data", "--checkpoint", checkpoint, "--device", "cpu", "--name", name]
    return ["--quick", *options]


def measured(folder, name="mine"):
    """What an evaluation leaves: records, and the bytes of its pictures by name."""
    results = Path(folder) / "results" / name
    pictures = {path.name: path.read_bytes() for path in (results / "crops").iterdir()}
    assert (results / "report.html").read_text("utf-8").rstrip().endswith("</html>")
    return json.loads((results / "report.json").read_text("utf-8"))["records"], pictures


# ----------------------------------------------------------------------------------------------------------------------
# Faults


def finish_or_kill(program, seconds):
    """Kill a program after some seconds; returns whether it was still running."""
    program.process.join(seconds)
    running = program.process.is_alive()
    if running:
        program.kill()
    else:
        code, words = program.finish()
        assert code == 0, words
    return running


def kill_at_random(start, times, rng, longest):
    """Start a program again and again and kill it after up to `longest` seconds; then let it end.

    Returns:
        How often it was killed.
    """
    killed = sum(finish_or_kill(start(), rng.uniform(0, longest)) for _ in range(times))
    code, words = start().finish()
    assert code == 0, words
    return killed


def timed(program):
    """Let a program end well; returns how many seconds it took."""
    began = time.perf_counter()
    code, words = program.finish()
    assert code == 0, words
    return time.perf_counter() - began


def kill_preparation(folder, times, rng):
    """Preparation of pairs, killed at random."""
    made = folder / "pairs"
    made.mkdir()
    seconds = timed(Program("train", [*train_command(folder / "other", folder / "other-run"), "epochs=1"], made))

    def start():
        return Program("train", [*train_command(made / "cache", made / "run"), "epochs=1"], made)

    killed = 0
    while killed < times:  # each time from the beginning or a third of it, so that there is something to kill
        for part in list(made.glob("cache/*/*.json"))[::2]:
            part.unlink()
        for file in (made / "run").glob("last.pth"):
            file.unlink()
        killed += finish_or_kill(start(), rng.uniform(0, seconds))
    code, words = start().finish()
    assert code == 0, words
    check_pairs(made / "cache")
    assert not leftovers(made), leftovers(made)
    return killed, "no process left; after the same command again pairs equal, bit for bit, no temporary file"


def kill_training(folder, times, rng):
    """Training, killed at random and when it writes."""
    cache, runs = folder / "cache", folder / "training"
    runs.mkdir()
    timed(Program("train", train_command(cache, runs / "first"), runs))
    seconds = timed(Program("train", train_command(cache, runs / "whole"), runs))
    expected, killed = trained(runs / "whole"), 0
    for number in range(max(1, times // 4)):
        run = runs / f"random-{number}"
        killed += kill_at_random(
            lambda run=run: Program("train", train_command(cache, run), runs), min(times, 4), rng, seconds
        )
        check_trained(run, expected)
    for number in range(1, min(times, 9) + 1):  # three files in each of three epochs
        run, count = runs / f"half-written-{number}", number
        killed += kill_half_written(
            lambda count, run=run: Program("train", train_command(cache, run), runs, count), count
        )
        check_trained(run, expected)
    assert not leftovers(runs), leftovers(runs)
    return killed, "after --resume weights, optimiser and log equal, bit for bit; no temporary file"


def kill_half_written(start, count):
    """Kill a program at its `count`-th rename, then let it end; returns how often it was killed."""
    code, words = start(count).finish()
    assert code in (-signal.SIGKILL, 0), words
    again, words = start(0).finish()
    assert again == 0, words
    return int(code != 0)


def kill_evaluation(folder, checkpoint, times, rng):
    """An evaluation, killed at random and when it writes."""
    whole, parts = folder / "whole", folder / "parts"
    for made in (whole, parts):
        made.mkdir()
    seconds = timed(Program("evaluate", evaluate_command(whole, checkpoint), whole))
    expected, killed = measured(whole), 0
    files = sum(path.is_file() for path in whole.rglob("*"))
    for count in rng.choice(np.arange(1, files - 2), min(times, files - 3), replace=False):
        for path in list(parts.glob("data/cache/benchmark/*/*"))[::2]:  # so that some are read, some made
            path.unlink()

        def start(count):
            return Program("evaluate", evaluate_command(parts, checkpoint), parts, int(count))

        killed += kill_half_written(start, count)
        assert same_records(measured(parts), expected)
    for path in parts.glob("data/cache/benchmark/*/*"):
        path.unlink()
    killed += kill_at_random(lambda: start(0), min(times, 8), rng, seconds)
    assert same_records(measured(parts), expected)
    assert not leftovers(parts), leftovers(parts)
    return killed, "after the same command again records and pictures equal; no temporary file"


def same_records(found, expected):
    """Whether `measured` gave the same figures and pictures."""
    return found[0] == expected[0] and found[1] == expected[1]


def kill_worker(folder, limit=60):
    """The worker of a preparation, killed: the program must end with its error."""

    def parts():
        return len(list(folder.glob("cache/*/*.npy")))

    before, deadline = parts(), time.monotonic() + limit
    program = Program("train", train_command(folder / "cache", folder / "run"), folder)
    while parts() == before:  # then it is at work on the next
        assert time.monotonic() < deadline and program.process.is_alive(), program.log.read_text("utf-8")
        time.sleep(0.005)
    (worker,) = (pid for pid, words in group_members(program.process.pid).items() if "spawn_main" in words)
    os.kill(worker, signal.SIGKILL)
    code, words = program.finish(limit)
    assert code == 2 and words[0].startswith("train.py: a process that prepared pairs was killed"), (code, words)
    return 1, "exit code 2, one line"


def fill_disk(start, check, folder, sizes):
    """Run a program on disks that fill up, then, with room, the same command again.

    Args:
        start: function of `file_limit` that gives a `Program` that writes to `folder`.
        check: called without arguments when the program has ended well: what it left is right.
        folder: where the disks are mounted.
        sizes: of the disks in kilobytes.

    Returns:
        How often the disk was full.
    """
    full = 0
    for kilobytes in sizes:
        with small_disk(folder, kilobytes) as limit:
            code, words = start(limit).finish()
            assert code in (0, 2), (code, words)
            if code == 2:
                full += 1
                reasons = ("No space left on device", "File too large", "is the disk full?")
                assert any(reason in words[0] for reason in reasons), words
                assert not leftovers(folder), leftovers(folder)
                enlarge(folder, limit)
                code, words = start(None).finish()
                assert code == 0, words
            check()
    assert full, "no disk was too small"
    return full


def fill_disk_of_video(folder, checkpoint, suffixes=(".mp4", ".mkv", ".avi", ".webm"), sizes=(4, 16, 32, 48, 64, 80)):
    """A disk that is full while a video is written."""
    source, disk, full = folder / "clip.mp4", folder / "disk", 0
    make_video(source, 60, (320, 240))
    for suffix in suffixes:
        command = [source, "-o", disk / f"out{suffix}", "--device", "cpu", "--checkpoint", checkpoint, "--overwrite"]

        def start(limit, command=command):
            assert not disk.exists() or not any(disk.iterdir()), "a video that is not whole was left"
            return Program("inference", command, folder, file_limit=limit)

        def check(path=disk / f"out{suffix}"):
            assert count_frames(path) == 60
            path.unlink()

        full += fill_disk(start, check, disk, sizes)
    return full, "exit code 2, one line, no file; with room the video is whole"


def fill_disk_of_training(folder, cache, expected, sizes=(4, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048)):
    """A disk that is full while a training writes its checkpoints and its log."""
    run = folder / "disk" / "run"

    def start(limit):
        return Program("train", train_command(cache, run), folder, file_limit=limit)

    def check():
        check_trained(run, expected)
        for path in sorted(run.iterdir()):
            path.unlink()

    return fill_disk(start, check, folder / "disk", sizes), "exit code 2, one line; then equal, bit for bit"


def fill_disk_of_pairs(folder, sizes=(4, 1024)):
    """A disk that is full while pairs are prepared."""
    cache, runs = folder / "disk" / "cache", []

    def start(limit):
        runs.append(folder / f"run-{len(runs)}")
        return Program("train", [*train_command(cache, runs[-1]), "epochs=1"], folder, file_limit=limit)

    def check():
        check_pairs(cache)
        for path in cache.glob("*/*"):
            path.unlink()

    return fill_disk(start, check, folder / "disk", sizes), "exit code 2, one line; then equal, bit for bit"


def fill_disk_of_evaluation(folder, checkpoint, expected, sizes=(4, 16, 32, 64, 128, 256, 512)):
    """A disk that is full while an evaluation writes its cache, its pictures and its report."""
    disk = folder / "disk"

    def start(limit):
        return Program("evaluate", evaluate_command(folder, checkpoint), disk, file_limit=limit, log=folder)

    def check():
        assert same_records(measured(disk), expected)
        for path in disk.rglob("*"):
            if path.is_file():
                path.unlink()

    return fill_disk(start, check, disk, sizes), "exit code 2, one line; then records and pictures equal"


# ----------------------------------------------------------------------------------------------------------------------
# Two at once


def race_trainings(folder):
    """Two trainings that prepare the same pairs."""
    runs = [folder / "one", folder / "two"]
    programs = [Program("train", train_command(folder / "cache", run), folder) for run in runs]
    for program in programs:
        code, words = program.finish()
        assert code == 0, words
    check_pairs(folder / "cache")
    check_trained(runs[1], trained(runs[0]))
    assert not leftovers(folder), leftovers(folder)
    return 1, "both end well, equal to the bit"


def race_evaluations(folder, checkpoint):
    """Two evaluations with one cache."""
    names = ("one", "two")
    programs = [Program("evaluate", evaluate_command(folder, checkpoint, name), folder) for name in names]
    for program in programs:
        code, words = program.finish()
        assert code == 0, words
    assert same_records(*(measured(folder, name) for name in names))
    assert not leftovers(folder), leftovers(folder)
    return 1, "both end well, records and pictures equal"


def race_openvino(folder):
    """Two processes that compile the int8 network into one empty cache."""
    picture, outputs = folder / "cat.png", [folder / "one.png", folder / "two.png"]
    cv2.imwrite(str(picture), skimage.data.chelsea()[:, :, ::-1])
    commands = [[picture, "-o", output, "--device", "openvino"] for output in outputs]
    for program in [Program("inference", command, folder, cache=folder / "cache") for command in commands]:
        code, words = program.finish()
        assert code == 0, words
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    return 1, "both end well, pictures equal"


# ----------------------------------------------------------------------------------------------------------------------
# Long runs


def make_video(path, frames, size):
    """Write an H.264 file of `frames` frames of `size` (width, height): a pan, encoded once, its packets repeated."""
    width, height = size
    photo = cv2.resize(skimage.data.astronaut()[:, :, ::-1], (width + 128, height + 128))
    clip = dataset.animate(photo, min(GOP, frames), (height, width), (2, 1), np.random.default_rng(0))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        packets = [p for frame in clip for p in stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24"))]
        packets += stream.encode(None)
        stored = [(bytes(packet), packet.is_keyframe, packet.time_base) for packet in packets]
        for number in range(frames):
            data, is_keyframe, time_base = stored[number % len(stored)]
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, time_base, is_keyframe
            packet.pts = packet.dts = round(number / (25 * time_base))
            container.mux(packet)


def count_frames(path):
    """The frames of a video file, by its packets."""
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def resources():
    """What this process holds: ``(MiB of memory, threads, open files)``."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(os.listdir("/proc/self/fd"))


class Watched:
    """A function that notes the `resources` after every hundredth of `calls`."""

    def __init__(self, function, calls):
        self._function, self._calls, self._done, self.samples = function, calls, 0, {}

    def __call__(self, *arguments, **options):
        result = self._function(*arguments, **options)
        self._done += 1
        share = 100 * self._done // self._calls
        if share not in self.samples:
            self.samples[share] = resources()
        return result


def flat(samples, start=20, end=100):
    """Whether memory grew by at most 5 % + 20 MiB between two shares, and threads and open files not at all."""
    before, after = samples[start], samples[end]
    return after[0] <= 1.05 * before[0] + 20 and after[1] <= before[1] and after[2] <= before[2]


def soak(folder, frames, size, checkpoint=RELEASED_STUDENT, device="auto"):
    """Sharpen a long file into another; returns ``(passed, the stats, samples by per cent)``."""
    source, output = Path(folder) / "long.mp4", Path(folder) / "sharp.mp4"
    make_video(source, frames, size)
    sharpener = RealTimeSharpener(checkpoint, device)
    sharpener.sharpen_planes = watched = Watched(sharpener.sharpen_planes, frames)
    stats = sharpener.process_video_stream(source, output)
    whole = stats["frames"] == frames == count_frames(source) == count_frames(output)
    return whole and flat(watched.samples), stats, watched.samples


def restarts(folder, times, checkpoint=RELEASED_STUDENT, device="auto"):
    """Construct a sharpener, sharpen a clip of 3 frames, drop it; returns ``(passed, samples by per cent)``."""
    source, output, samples = Path(folder) / "clip.mp4", Path(folder) / "sharp.mp4", {}
    make_video(source, 3, (192, 128))
    for number in range(times):
        stats = RealTimeSharpener(checkpoint, device).process_video_stream(source, output)
        assert stats["frames"] == count_frames(output) == 3
        gc.collect()
        samples[100 * (number + 1) // times] = resources()
    return flat(samples), samples


def print_samples(samples, shares=(10, 20, 50, 100)):
    print("| done | memory (MiB) | threads | open files |\n| --- | --- | --- | --- |")
    for share in shares:
        memory, threads, files = samples[share]
        print(f"| {share} % | {memory:.0f} | {threads} | {files} |")


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def report(fault, function, *arguments):
    """Run a function of this module and print a row of the table; returns whether it passed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            count, outcome = function(Path(folder), *arguments)
        except (AssertionError, TimeoutError) as error:
            count, outcome = "", f"FAILED: {error}"
    print(f"| {fault} | {count} | {outcome} |", flush=True)
    return not outcome.startswith("FAILED")


def run_faults(arguments, folder):
    """The commands ``kills``, ``disk`` and ``races``; returns whether all passed."""
    checkpoint, rng = folder / "student.pth", np.random.default_rng(arguments.seed)
    save_student(checkpoint, Student(8, 1), {})
    if arguments.command == "kills":
        rows = [
            ("preparation of pairs, kill -9", kill_preparation, arguments.times, rng),
            ("training, kill -9", kill_training, arguments.times, rng),
            ("evaluation, kill -9", kill_evaluation, checkpoint, arguments.times, rng),
            ("a worker of the preparation, kill -9", kill_worker),
        ]
    elif arguments.command == "races":
        rows = [
            ("two trainings, one empty cache", race_trainings),
            ("two evaluations, one empty cache", race_evaluations, checkpoint),
            ("two processes, one empty cache of OpenVINO", race_openvino),
        ]
    else:
        timed(Program("train", train_command(folder / "cache", folder / "run"), folder))
        timed(Program("evaluate", evaluate_command(folder, checkpoint), folder))
        rows = [
            ("disk full, video", fill_disk_of_video, checkpoint),
            ("disk full, training", fill_disk_of_training, folder / "cache", trained(folder / "run")),
            ("disk full, preparation of pairs", fill_disk_of_pairs),
            ("disk full, evaluation", fill_disk_of_evaluation, checkpoint, measured(folder)),
        ]
    print("| fault | times | outcome |\n| --- | --- | --- |")
    results = [report(*row) for row in rows]
    return all(results)


def run_long(arguments, folder):
    """The commands ``soak`` and ``restarts``; returns whether it passed."""
    if arguments.command == "soak":
        passed, stats, samples = soak(folder, arguments.frames, arguments.size)
        print(f"{stats['frames']} frames of {arguments.size} in {stats['seconds']:.0f} s, {stats['engine']}")
    else:
        passed, samples = restarts(folder, arguments.times)
        print(f"{arguments.times} sharpeners")
    print_samples(samples)
    print("passed" if passed else "FAILED: frames were lost, or memory, threads or open files grew")
    return passed


def parse_size(text):
    """The pair ``(width, height)`` in ``640x360``."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def main(argv=None):
    """Run the command line; returns the exit code: 0, or 1 where an expectation failed."""
    parser = argparse.ArgumentParser(description="Break the programs on purpose, and run them long.")
    parser.add_argument("command", choices=("kills", "disk", "races", "soak", "restarts"))
    parser.add_argument("--times", type=int, default=20, help="how often to kill or to restart (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments to kill at")
    parser.add_argument("--frames", type=int, default=20000, help="of the soak (default: 20000)")
    parser.add_argument("--size", type=parse_size, default=(640, 360), help="of the soak (default: 640x360)")
    arguments = parser.parse_args(argv)
    os.environ["PYTHONPATH"] = str(ROOT)  # of the process that programs are forked from
    with tempfile.TemporaryDirectory() as folder:
        long = arguments.command in ("soak", "restarts")
        return 0 if (run_long if long else run_faults)(arguments, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
