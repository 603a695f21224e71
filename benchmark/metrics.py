"""Full-reference quality of pictures and clips: how near an output comes to its ground truth.

PSNR and SSIM are scikit-image's, to the last digit (see `utils.luma_metrics`), VMAF and MS-SSIM come from libvmaf (in
the ffmpeg that imageio-ffmpeg ships), words from tesseract. Two are defined here: temporal stability (`flicker`) and
the share of words read correctly (`word_accuracy`); so is the interval of a mean over clips (`bootstrap_interval`).

A plane is `(H, W)` uint8; planes are `(y (H, W), uv (2, ceil(H/2), ceil(W/2)))` uint8, see utils.py; a clip is a list
of planes, consecutive frames of one size.
"""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio

from utils import first_line, luma_metrics, planes_to_bgr, to_full_range, to_limited_range


class MetricError(RuntimeError):
    """A metric cannot be measured here. The message says why and what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def psnr(x, y):
    """Peak signal-to-noise ratio in dB of uint8 arrays of one shape (planes or frames); infinite where they are equal.

    Over a frame the squared error is averaged over its channels. As FFmpeg's ``psnr`` filter has it.

    Raises:
        ValueError: the shapes differ.
    """
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(y, x, data_range=255))


def ssim(x, y):
    """Structural similarity of two uint8 planes `(H, W)`: that of `utils.luma_metrics` (Wang et al., IEEE TIP 2004).

    11x11 Gaussian window of sigma 1.5 at every position where it fits. libvmaf's ``float_ssim`` at ``scale=1`` has the
    same definition, with a rounded window: they agree to 1e-4. FFmpeg's ``ssim`` filter has another, see `ssim_ffmpeg`.

    Raises:
        ValueError: the shapes differ or are smaller than the window.
    """
    return luma_metrics(x, y)[1]


def ssim_ffmpeg(x, y):
    """Structural similarity of two uint8 planes `(H, W)` as FFmpeg's ``ssim`` filter prints it for one of them.

    The filter follows x264 instead of the paper: 8x8 windows of equal weights, one every 4 pixels, variances over 63,
    and a C1 that is 64 times smaller. That is cruder and faster than `ssim`; figures of the two are not comparable.

    Raises:
        ValueError: the shapes differ or are smaller than a window.
    """
    if x.shape != y.shape or min(x.shape) < 8:
        raise ValueError(f"expected two planes of one size, at least 8x8, got {x.shape} and {y.shape}")
    height, width = (side - side % 4 for side in x.shape)
    x, y = (plane[:height, :width].astype(np.int32) for plane in (x, y))

    def windows(values):  # (H, W) -> (H/4 - 1, W/4 - 1): sums over 8x8 pixels
        blocks = values.reshape(height // 4, 4, width // 4, 4).sum(axis=(1, 3))
        return (blocks[:-1, :-1] + blocks[:-1, 1:] + blocks[1:, :-1] + blocks[1:, 1:]).astype(np.float64)

    sum_x, sum_y, squares, products = windows(x), windows(y), windows(x * x + y * y), windows(x * y)
    c1 = round(0.01**2 * 255**2 * 64)
    c2 = round(0.03**2 * 255**2 * 64 * 63)
    luminance = (2 * sum_x * sum_y + c1) / (sum_x**2 + sum_y**2 + c1)
    structure = (2 * (64 * products - sum_x * sum_y) + c2) / (64 * squares - sum_x**2 - sum_y**2 + c2)
    return float((luminance * structure).mean())


def picture_metrics(planes, truth, full_range=True, rgb=True):
    """PSNR and SSIM of one frame, on luma as it is and in RGB.

    RGB is what `utils.planes_to_bgr` makes of the planes, brought to full range first: the matrix is BT.601 for output
    and truth alike. Its PSNR is over all three channels, its SSIM the mean of theirs.

    Args:
        planes, truth: planes of one size.
        full_range: their range; False is limited (video) range.
        rgb: False leaves RGB out, which takes three quarters of the time.

    Returns:
        Dict of floats: ``psnr_y`` (dB, infinite where equal), ``ssim_y``, and with `rgb` ``psnr_rgb`` and ``ssim_rgb``.
    """
    metrics = dict(zip(("psnr_y", "ssim_y"), luma_metrics(planes[0], truth[0]), strict=True))
    if rgb:
        frame, expected = (planes_to_bgr(*(p if full_range else to_full_range(*p))) for p in (planes, truth))
        metrics["psnr_rgb"] = psnr(frame, expected)
        channels = zip(cv2.split(frame), cv2.split(expected), strict=True)
        metrics["ssim_rgb"] = float(np.mean([ssim(*pair) for pair in channels]))
    return metrics


# ----------------------------------------------------------------------------------------------------------------------
# libvmaf

MS_SSIM_SIDE = 176  # pixels: halved four times its 11x11 window still fits
VMAF_MODELS = {"vmaf": "vmaf_v0.6.1", "vmaf_neg": "vmaf_v0.6.1neg"}


def vmaf_scores(clip, truth, full_range=True, threads=1):
    """VMAF, VMAF NEG and MS-SSIM of each frame of a clip, in one run of ffmpeg's libvmaf filter.

    VMAF (Netflix, model v0.6.1) predicts opinions from 0 to 100; NEG ("no enhancement gain") denies the credit that
    VMAF gives to sharpening and contrast beyond the truth. MS-SSIM: Wang, Simoncelli and Bovik, Asilomar 2003. All
    three see luma only, and:

    * VMAF was trained on limited-range video, so full-range planes are brought to limited range first, both sides
      alike (MS-SSIM then too sees these); limited-range planes go in as they are.
    * The model stands for a 1080p screen seen from three times its height. Smaller pictures are not enlarged to it:
      they are judged as if watched from three times their own height, so figures of different sizes do not compare.
    * It weighs the truth's motion since the frame before: give consecutive frames and pick from the scores. The first
      frame has no motion; identical clips score 97.4 there and 100 after it when something moves, 97.4 when not.
    * Sizes are made even by leaving the last row or column out.

    Args:
        clip, truth: lists of planes, of one length and size.
        full_range: range of both; False is limited (video) range.
        threads: of libvmaf.

    Returns:
        Dict of ``vmaf``, ``vmaf_neg`` and ``ms_ssim``, each a list with one float a frame.

    Raises:
        ValueError: the clips are empty or differ in length or size.
        MetricError: the frames are smaller than 176x176, which MS-SSIM needs, or there is no ffmpeg with libvmaf.
    """
    sizes = {y.shape for y, _ in [*clip, *truth]}
    if len(clip) != len(truth) or len(sizes) != 1:
        raise ValueError(
            f"expected two clips of one length and size, got {len(clip)} and {len(truth)} frames, sizes {sizes}"
        )
    height, width = (side - side % 2 for side in sizes.pop())
    if min(height, width) < MS_SSIM_SIDE:
        raise MetricError(
            f"MS-SSIM needs at least {MS_SSIM_SIDE}x{MS_SSIM_SIDE} pixels, got {width}x{height}: leave it out here"
        )
    models = "|".join(rf"version={version}\:name={name}" for name, version in VMAF_MODELS.items())
    options = f"model='{models}':feature='name=float_ms_ssim':n_threads={threads}:log_fmt=json:log_path=scores.json"
    source = ["-f", "rawvideo", "-pixel_format", "yuv420p", "-video_size", f"{width}x{height}", "-framerate", "25"]
    with tempfile.TemporaryDirectory() as folder:
        inputs = []
        for name, planes in (("output.yuv", clip), ("truth.yuv", truth)):
            _write_raw(Path(folder) / name, planes, (width, height), full_range)
            inputs += [*source, "-i", name]
        # In the folder, for paths in filter options would need quoting that differs between systems.
        _run_ffmpeg([*inputs, "-lavfi", f"[0:v][1:v]libvmaf={options}", "-f", "null", "-"], folder)
        frames = json.loads((Path(folder) / "scores.json").read_text("utf-8"))["frames"]
    keys = {name: name for name in VMAF_MODELS} | {"ms_ssim": "float_ms_ssim"}
    return {name: [frame["metrics"][key] for frame in frames] for name, key in keys.items()}


def ms_ssim(planes, truth, full_range=True):
    """MS-SSIM of one picture, as `vmaf_scores` has it; errors as there."""
    return vmaf_scores([planes], [truth], full_range)["ms_ssim"][0]


def _run_ffmpeg(arguments, folder):
    """Run the ffmpeg that imageio-ffmpeg ships in `folder`; it must succeed.

    Raises:
        MetricError: it is not installed, or it fails; quotes what ffmpeg said first, which is the cause.
    """
    try:
        # Needed for these metrics only, so a development requirement.
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise MetricError(
            f"VMAF and MS-SSIM need imageio-ffmpeg ({first_line(error)}): pip install -r requirements-dev.txt"
        ) from error
    command = [program, "-hide_banner", "-nostdin", "-loglevel", "error", *arguments]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if finished.returncode:
        reason = first_line(finished.stderr or f"exit code {finished.returncode}")
        raise MetricError(
            f"{program} failed ({reason}): it must have the libvmaf filter, which "
            "pip install -r requirements-dev.txt brings, unless IMAGEIO_FFMPEG_EXE names another ffmpeg"
        )


def _write_raw(path, clip, size, full_range):
    """Write the upper left `size` = (width, height), both even, of a clip as raw limited-range yuv420p."""
    width, height = size
    with open(path, "wb") as file:
        for planes in clip:
            y, uv = to_limited_range(*planes) if full_range else planes
            file.write(y[:height, :width].tobytes())
            file.write(uv[:, : height // 2, : width // 2].tobytes())


# ----------------------------------------------------------------------------------------------------------------------
# ColorVideoVDP


def jod(clip, truth, full_range=True, rate=25):
    """ColorVideoVDP of a clip in just-objectionable differences: 10 is the truth itself, 1 less is clearly worse.

    Mantiuk et al., ACM Transactions on Graphics 43(4), 2024, for a 24 inch full HD screen at 0.6 m
    (``standard_fhd``); colours as `utils.planes_to_bgr` makes them, for both sides alike.

    Args:
        clip, truth: lists of planes, of one length and size, consecutive frames.
        full_range: range of both.
        rate: frames per second.

    Raises:
        MetricError: cvvdp is not installed.
    """
    frames = [
        np.stack([planes_to_bgr(*(p if full_range else to_full_range(*p)))[..., ::-1] for p in side])
        for side in (clip, truth)
    ]  # (F, H, W, 3) RGB
    score, _ = load_colour_video_vdp().predict(*frames, dim_order="FHWC", frames_per_second=rate)
    return float(score)


@functools.cache
def load_colour_video_vdp():
    """Return the metric of `jod`, or raise `MetricError` where cvvdp is not installed."""
    try:
        # Needed for this metric only, so a development requirement.
        import pycvvdp
    except ImportError as error:
        raise MetricError(f"ColorVideoVDP needs cvvdp ({first_line(error)}): pip install cvvdp") from error
    return pycvvdp.cvvdp(display_name="standard_fhd", device=torch.device("cpu"), quiet=True)


# ----------------------------------------------------------------------------------------------------------------------
# Temporal stability

STILL_WINDOW = 5  # pixels: the side of the neighbourhood
STILL_CHANGE = 2.0  # grey levels: above it lies motion, below it what a camera's noise adds to a still scene


def flicker(clip, truth):
    """How much the error of luma changes from frame to frame: what is added as flicker, or taken away.

    With e = output - truth it is the mean of ``|e[t] - e[t-1]|`` in grey levels, over all pixels of all pairs of
    successive frames, apart for static and for moving pixels. A pixel is static in a pair when the truth's absolute
    change, averaged over the 5x5 pixels around it, is at most 2 grey levels: noise in one pixel does not make motion,
    and an edge that passes makes its surroundings moving. An error that stays, however large, counts as zero.

    Args:
        clip, truth: lists of planes, of one length and size, consecutive frames in one range.

    Returns:
        ``(static, moving)`` in grey levels, 0 is best; NaN where the clip has no pixels of the kind.

    Raises:
        ValueError: the clips differ in length or size.
    """
    changes, pixels = np.zeros(2), np.zeros(2)  # (static, moving)
    error = previous = None
    for (y, _), (truth_y, _) in zip(clip, truth, strict=True):
        last_error, error = error, y.astype(np.int16) - truth_y
        if last_error is not None:
            change = np.abs(error - last_error)
            motion = cv2.boxFilter(cv2.absdiff(truth_y, previous), cv2.CV_32F, (STILL_WINDOW, STILL_WINDOW))
            still = motion <= STILL_CHANGE
            for kind, where in enumerate((still, ~still)):
                changes[kind] += change.sum(where=where)
                pixels[kind] += np.count_nonzero(where)
        previous = truth_y
    return tuple(float(c / p) if p else float("nan") for c, p in zip(changes, pixels, strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# What a viewer sees where no truth is known

EDGE_SHARE, FLAT_SHARE = 0.05, 0.4  # of the pixels: those of the steepest slopes, those of the least activity
STILL_BLURRED = 1.0  # grey levels: the change of a blurred input up to which a pixel stands still


def visible_change(clip, source):
    """Compare a clip with the one it was made from, where no truth is known, as a viewer does.

    Args:
        clip, source: lists of planes, of one length and size, consecutive frames in one range. Luma is compared.

    Returns:
        Dict of lists, one float a frame:

        * ``edges``: mean gradient where the source has its steepest 5 %, relative to the source's; 1 is as it came.
        * ``noise``: standard deviation of the high-pass in the calmest 40 % of the source, relative to the source's.
        * ``halo``: codes by which pixels beside those edges leave the range of their 7x7 neighbours in the source.
        * ``flicker``: absolute change since the frame before, in codes, where the source stands still; it is one frame
          shorter, and NaN where nothing stands still.

    Raises:
        ValueError: the clips differ in length or size.
    """
    found = {"edges": [], "noise": [], "halo": [], "flicker": []}
    window, before = np.ones((7, 7), np.uint8), None
    for (y, _), (source_y, _) in zip(clip, source, strict=True):
        if y.shape != source_y.shape:
            raise ValueError(f"expected two clips of one size, got {y.shape} and {source_y.shape}")
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
    """Length of the gradient of blurred float32 luma, in codes a pixel."""
    y = cv2.GaussianBlur(y, (0, 0), sigma)
    return np.hypot(cv2.Sobel(y, cv2.CV_32F, 1, 0), cv2.Sobel(y, cv2.CV_32F, 0, 1)) / 8


def _high_pass(y, sigma):
    return y - cv2.GaussianBlur(y, (0, 0), sigma)


# ----------------------------------------------------------------------------------------------------------------------
# Text


def tesseract_available():
    """Whether the ``tesseract`` program can be run here."""
    return shutil.which("tesseract") is not None


def read_words(y):
    """What tesseract reads in a uint8 luma plane `(H, W)`, as a list of words in reading order.

    The picture is enlarged by 2 first: tesseract was made for scans, whose letters are larger than those on a screen.

    Raises:
        MetricError: tesseract is missing or fails.
    """
    _, png = cv2.imencode(".png", cv2.resize(y, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    command = ["tesseract", "stdin", "stdout", "-l", "eng"]
    # Its own threads gain next to nothing and make it slower where others compute too.
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    try:
        finished = subprocess.run(command, input=png.tobytes(), env=environment, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise MetricError("reading text needs the program tesseract: install it (apt install tesseract-ocr)") from error
    except subprocess.CalledProcessError as error:
        raise MetricError(f"tesseract failed: {first_line(error.stderr.decode(errors='replace'))}") from error
    return finished.stdout.decode(errors="replace").split()


def word_accuracy(y, expected):
    """Share of words that tesseract reads correctly: 1 less the word error rate, not below 0.

    The word error rate is the smallest number of words to replace, insert and delete that turns what was read into what
    was expected, over the number of words expected; case and punctuation count. So words must be found in order, and
    invented ones cost as much as lost ones.

    Args:
        y: uint8 luma plane `(H, W)`.
        expected: the words, as a list, or the truth's luma plane, which then is read too (`read_words`).

    Returns:
        Float from 0 to 1; NaN where no words are expected.

    Raises:
        MetricError: tesseract is missing or fails.
    """
    expected = read_words(expected) if isinstance(expected, np.ndarray) else expected
    if not expected:
        return float("nan")
    return max(0.0, 1 - _edit_distance(read_words(y), expected) / len(expected))


def _edit_distance(words, expected):
    """Levenshtein's distance between two lists, one row of its table after the other."""
    above = list(range(len(expected) + 1))
    for i, word in enumerate(words, 1):
        row = [i]
        for j, other in enumerate(expected, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
        above = row
    return above[-1]


# ----------------------------------------------------------------------------------------------------------------------
# Confidence


def bootstrap_interval(clusters, rng=None, resamples=10_000, confidence=0.95):
    """Percentile bootstrap interval of a mean, resampling whole clusters (Efron and Tibshirani 1993).

    The frames of a clip resemble each other: drawing them one by one would promise far too much. So clips are drawn,
    with all that was measured in them; the mean is over all values drawn, a longer clip weighs more.

    Args:
        clusters: the values of each cluster, a list of lists of finite numbers; a number stands for a cluster of one.
        rng: np.random.Generator; by default one of a fixed seed, so that the same values give the same interval.
        resamples: how many times to draw.
        confidence: of the interval.

    Returns:
        ``(low, high)``. Fewer than two clusters say nothing about another one: NaN and NaN.

    Raises:
        ValueError: a value is not finite.
    """
    clusters = [values for values in map(np.atleast_1d, clusters) if values.size]
    if not all(np.isfinite(values).all() for values in clusters):
        raise ValueError("an interval needs finite values: leave out pictures that are identical to the truth")
    if len(clusters) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0) if rng is None else rng
    sums, counts = (np.array([f(values) for values in clusters]) for f in (np.sum, np.size))
    drawn = rng.integers(len(clusters), size=(resamples, len(clusters)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
