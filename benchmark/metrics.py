"""Quality of pictures and clips, against their ground truth, or against the input if there is none (`visible_change`).

PSNR and SSIM are `utils.luma_metrics`. A clip is a list of planes `(y (H, W), uv (2, ceil(H/2), ceil(W/2)))` uint8,
consecutive frames of one size.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import scipy.stats
import torch

from degradation import pack_planes
from utils import first_line, planes_to_bgr, to_full_range, to_limited_range


class MetricError(RuntimeError):
    """A metric cannot be measured here. The message says why and what to do."""


VMAF_MODELS = {"vmaf": "vmaf_v0.6.1", "vmaf_neg": "vmaf_v0.6.1neg"}


def vmaf_scores(clip, truth, full_range=True):
    """Measure ``vmaf`` and ``vmaf_neg`` of luma with ffmpeg's libvmaf filter: a dict of lists, one float a frame.

    VMAF (Netflix, model v0.6.1) predicts opinions from 0 to 100; NEG ("no enhancement gain") gives no credit for
    sharpening and contrast beyond the truth. VMAF was trained on limited-range video, to which full range is converted.
    It assumes a screen seen from three times its height, so figures of different sizes do not compare. It weighs the
    truth's motion since the previous frame, so frames must be consecutive; the first has none, and without motion
    identical clips score 97.4 instead of 100.

    Args:
        clip, truth: of one length and size, even sides of at least 32 pixels.
        full_range: range of both; False is limited (video) range.

    Raises:
        MetricError: ffmpeg has no libvmaf, or fails.
    """
    height, width = truth[0][0].shape
    models = "|".join(rf"version={version}\:name={name}" for name, version in VMAF_MODELS.items())
    options = f"model='{models}':n_threads=1:log_fmt=json:log_path=scores.json"
    source = ["-f", "rawvideo", "-pixel_format", "yuv420p", "-video_size", f"{width}x{height}", "-framerate", "25"]
    with tempfile.TemporaryDirectory() as folder:
        inputs = []
        for name, planes in (("output.yuv", clip), ("truth.yuv", truth)):
            limited = [to_limited_range(*frame) if full_range else frame for frame in planes]
            (Path(folder) / name).write_bytes(b"".join(pack_planes(*frame).tobytes() for frame in limited))
            inputs += [*source, "-i", name]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-loglevel", "error", *inputs]
        command += ["-lavfi", f"[0:v][1:v]libvmaf={options}", "-f", "null", "-"]
        # Run in the folder, as quoting of paths in filter options differs between systems.
        finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        if finished.returncode:
            reason = first_line(finished.stderr or f"exit code {finished.returncode}")
            raise MetricError(
                f"{command[0]} failed ({reason}): it must have the libvmaf filter, as the one has that "
                "pip install -r requirements-dev.txt brings; IMAGEIO_FFMPEG_EXE names another ffmpeg"
            )
        frames = json.loads((Path(folder) / "scores.json").read_text("utf-8"))["frames"]
    return {name: [frame["metrics"][name] for frame in frames] for name in VMAF_MODELS}


def jod(clip, truth, full_range=True, rate=25):
    """Measure ColorVideoVDP of a clip in just-objectionable differences: 10 is the truth, 9 is clearly worse.

    Mantiuk et al., ACM Transactions on Graphics 43(4), 2024, for a 24 inch full HD screen at 0.6 m
    (``standard_fhd``). Both clips have one length, size and range; `rate` is in frames per second.
    """
    import pycvvdp  # slow to import

    frames = [
        np.stack([planes_to_bgr(*(p if full_range else to_full_range(*p)))[..., ::-1] for p in side])
        for side in (clip, truth)
    ]  # (F, H, W, 3) RGB
    metric = pycvvdp.cvvdp(display_name="standard_fhd", device=torch.device("cpu"), quiet=True)
    score, _ = metric.predict(*frames, dim_order="FHWC", frames_per_second=rate)
    return float(score)


STILL_WINDOW = 5  # pixels: the side of the neighbourhood
STILL_CHANGE = 2.0  # grey levels that noise changes in a still scene; more is motion


def flicker(clip, truth):
    """Measure how much the error of luma changes from frame to frame where the truth stands still, in grey levels.

    With e = output - truth it is the mean of ``|e[t] - e[t-1]|`` over all static pixels, at which the truth's absolute
    change, averaged over 5x5 pixels, is at most 2 grey levels; NaN if there are none. 0 is best, also for a constant
    error. Both clips have one length, size and range.
    """
    changes, pixels = 0, 0
    errors = [y.astype(np.int16) - truth_y for (y, _), (truth_y, _) in zip(clip, truth, strict=True)]
    for t in range(1, len(truth)):
        motion = cv2.absdiff(truth[t][0], truth[t - 1][0])
        still = cv2.boxFilter(motion, cv2.CV_32F, (STILL_WINDOW, STILL_WINDOW)) <= STILL_CHANGE
        changes += np.abs(errors[t] - errors[t - 1]).sum(where=still)
        pixels += np.count_nonzero(still)
    return float(changes / pixels) if pixels else float("nan")


EDGE_SHARE, FLAT_SHARE = 0.05, 0.4  # of the pixels: the steepest slopes, the least activity
STILL_BLURRED = 1.0  # grey levels that the blurred input may change at a static pixel


def visible_change(clip, source):
    """Compare the luma of a sharpened clip with that of its input, in the same range.

    Returns:
        Dict of lists, one float a frame:

        * ``edges``: mean gradient at the source's steepest 5 % of pixels, relative to the source's; 1 is unchanged.
        * ``noise``: standard deviation of the high-pass in the source's calmest 40 %, relative to the source's.
        * ``halo``: codes by which pixels near those edges leave the range of their 7x7 neighbours in the source.
        * ``flicker``: absolute change since the previous frame, in codes, at static pixels of the source; one entry
          fewer, and NaN if no pixel is static.
    """
    found = {"edges": [], "noise": [], "halo": [], "flicker": []}
    window, before = np.ones((7, 7), np.uint8), None
    for (y, _), (source_y, _) in zip(clip, source, strict=True):
        y, came = y.astype(np.float32), source_y.astype(np.float32)
        slope = _gradient(came, 1.5)
        edge = slope >= np.quantile(slope, 1 - EDGE_SHARE)
        found["edges"].append(float(_gradient(y)[edge].mean() / max(_gradient(came)[edge].mean(), 1e-6)))
        activity = cv2.blur(np.abs(_high_pass(came, 3)), (25, 25))
        flat = activity <= np.quantile(activity, FLAT_SHARE)
        noise, noise_before = (_high_pass(plane, 1.5)[flat].std() + 0.05 for plane in (y, came))
        found["noise"].append(float(noise / noise_before))
        beyond = np.maximum(y - cv2.dilate(came, window), 0) + np.maximum(cv2.erode(came, window) - y, 0)
        found["halo"].append(float(beyond[cv2.dilate(edge.view(np.uint8), window) > 0].mean()))
        if before is not None:
            still = np.abs(cv2.GaussianBlur(came - before[1], (0, 0), 2)) < STILL_BLURRED
            change = np.abs(y - before[0])[still]
            found["flicker"].append(float(change.mean()) if change.size else float("nan"))
        before = y, came
    return found


def _gradient(y, sigma=0.7):
    """Return the length of the gradient of blurred float32 luma, in codes a pixel."""
    y = cv2.GaussianBlur(y, (0, 0), sigma)
    return np.hypot(cv2.Sobel(y, cv2.CV_32F, 1, 0), cv2.Sobel(y, cv2.CV_32F, 0, 1)) / 8


def _high_pass(y, sigma):
    return y - cv2.GaussianBlur(y, (0, 0), sigma)


def tesseract_available():
    """Return whether the program ``tesseract`` is installed."""
    return shutil.which("tesseract") is not None


def read_words(y):
    """Return the words that tesseract reads in a uint8 luma plane `(H, W)`, enlarged by 2 to the letters of scans.

    Raises:
        MetricError: tesseract fails.
    """
    _, png = cv2.imencode(".png", cv2.resize(y, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    command = ["tesseract", "stdin", "stdout", "-l", "eng"]
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}  # its own threads gain nothing
    finished = subprocess.run(command, input=png.tobytes(), env=environment, capture_output=True, check=False)
    if finished.returncode:
        raise MetricError(f"tesseract failed: {first_line(finished.stderr.decode(errors='replace'))}")
    return finished.stdout.decode(errors="replace").split()


def word_accuracy(y, expected):
    """Return 1 less the word error rate of tesseract on uint8 luma `(H, W)`, at least 0.

    The word error rate is the edit distance in words between what is read and `expected`, a list of at least one word,
    over the number of words expected; case and punctuation count.
    """
    return max(0.0, 1 - _edit_distance(read_words(y), expected) / len(expected))


def _edit_distance(words, expected):
    """Return Levenshtein's distance between two lists."""
    above = list(range(len(expected) + 1))
    for i, word in enumerate(words, 1):
        row = [i]
        for j, other in enumerate(expected, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
        above = row
    return above[-1]


def bootstrap_interval(clusters):
    """Return ``(low, high)``, the 95 % percentile bootstrap interval of a mean (Efron and Tibshirani 1993).

    Clusters, non-empty lists of finite numbers, are drawn as a whole: frames of a clip resemble each other, and drawn
    one by one would give far too narrow an interval. Larger clusters weigh more. Equal values give equal intervals,
    fewer than two clusters NaN.
    """
    if len(clusters) < 2:
        return float("nan"), float("nan")
    sums, counts = (np.array([function(values) for values in clusters]) for function in (np.sum, np.size))
    found = scipy.stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        n_resamples=10_000,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
