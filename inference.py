"""Sharpen a camera, a video, an image or a folder of them.

    python inference.py                              camera 0 in a live window
    python inference.py video.mp4                    writes video_sharpened.mp4 beside it
    python inference.py input.jpg -o output.jpg
    python inference.py holiday/ -o sharp/           all images and videos in a folder
    python inference.py rtsp://host/stream           live window; with -o, a file
    python inference.py --demo                       no camera, network or data: writes clips to results/demo/

Keys in the window: q or Esc quits, space turns sharpening on and off, c shows before and after side by side. Where the
machine is too busy, the window sharpens less for a while, and its title says so. Ctrl-C ends a recording from a camera
and keeps it; otherwise it leaves no file and exits with 130.

From Python::

    sharpener = RealTimeSharpener()
    sharp = sharpener.sharpen(frame)                       # (H, W, 3) uint8 BGR
    y, uv = sharpener.sharpen_planes(y, uv)                # YUV 4:2:0, no colour conversion
    sharpener.sharpen_image("input.jpg", "output.jpg")
    sharpener.process_video_stream("video.mp4", "sharpened_video.avi")
"""

import argparse
import dataclasses
import logging
import os
import sys
import time
import warnings
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from live import Camera, LoadController, Window, scheduled
from models import RELEASED_STUDENT, CheckpointError, load_student
from runtime import DeviceError, make_engine
from utils import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    bgr_to_planes,
    halve_chroma,
    luma_metrics,
    planes_to_bgr,
    to_limited_range,
)
from video import (
    Frame,
    Picture,
    VideoError,
    VideoFormat,
    VideoReader,
    VideoWriter,
    existing_file,
    read_ahead,
    read_image,
    write_behind,
    write_image,
)

# Change of (B, G, R) per change of (Y, Cb, Cr): ITU-T T.871.
_YCC_TO_BGR = np.array([[1, 1.772, 0], [1, -0.344136, -0.714136], [1, 0, 1.402]], np.float32)
# Colour tags (ITU-T H.273) of what `utils.bgr_to_planes` and `utils.to_limited_range` make.
_BT601_LIMITED = {"value_range": 1, "matrix": 6, "primaries": 6, "transfer": 6}
_NEUTRAL_CHROMA = np.float32(128 / 255)

log = logging.getLogger(__name__)


class RealTimeSharpener:
    """Sharpens frames, images and video with a distilled student.

    Args:
        checkpoint: file written by `models.save_student`. A relative name is looked up in the working directory, then
            beside this module.
        device: see `runtime.make_engine`; ``"auto"`` takes what is fastest here.
        strength: how much of the student's change is applied; 0 is the identity, 1 what it was trained for.

    Attributes:
        checkpoint, student, meta: the file that was found, and what it holds.
        device: a `torch.device`, or OpenVINO's name of one.
        description: where and at which precision it runs.

    Raises:
        CheckpointError: the checkpoint is missing or is not one.
        DeviceError: the device is missing.
        ValueError: the strength is not a finite number from 0.
    """

    def __init__(self, checkpoint="checkpoints/best_student_model.pth", device="auto", strength=1.0):
        if not (np.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be a finite number from 0, got {strength}")
        path = Path(checkpoint)
        if not path.is_absolute() and not path.exists():
            path = RELEASED_STUDENT.parent.parent / path
        self.checkpoint = path
        self.student, self.meta = load_student(path)
        self.engine = make_engine(self.student, path, device)
        self.device, self.description = self.engine.device, self.engine.description
        self.strength = float(strength)

    def sharpen(self, frame):
        """Sharpen a frame ``(H, W, 3)`` uint8 BGR, as OpenCV has it; returns a new one.

        The student's residual is added to the frame itself, so the colour keeps its full resolution and strength 0 is
        exactly the identity.

        Raises:
            ValueError: the frame has another shape or type.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
            raise ValueError(f"expected a frame (H, W, 3) of uint8, got {frame.shape} of {frame.dtype}")
        return self._sharpen_pixels(frame)

    def sharpen_planes(self, y, uv, full_range=False):
        """Sharpen the planes of a YUV 4:2:0 frame without a colour conversion.

        Args:
            y: luma ``(H, W)`` uint8.
            uv: chroma ``(2, ceil(H/2), ceil(W/2))`` uint8.
            full_range: luma spans 0-255 instead of video's 16-235.

        Returns:
            New ``(y, uv)``; at strength 0 bit for bit the same.

        Raises:
            ValueError: shapes or types do not fit.
        """
        expected = (2, (y.shape[0] + 1) // 2, (y.shape[-1] + 1) // 2)
        if y.ndim != 2 or uv.shape != expected or y.dtype != np.uint8 or uv.dtype != np.uint8:
            raise ValueError(
                f"expected uint8 planes y (H, W) and uv {expected}, got {y.shape} {y.dtype} and {uv.shape} {uv.dtype}"
            )
        return self.engine(y, uv, full_range, self.strength)

    def sharpen_image(self, input_path, output_path, compare=False):
        """Sharpen an image file into another; it is written upright, completely or not at all.

        Grey stays grey, 16 bits stay 16 bits, transparency and colour profile are kept. With `compare`, the left half
        stays as it came.

        Raises:
            VideoError: the input cannot be read, or the output format cannot hold it.
        """
        picture = read_image(input_path)
        sharp = self._sharpen_pixels(picture.pixels)
        if compare:
            sharp = split_frames(picture.pixels, sharp)
        write_image(output_path, dataclasses.replace(picture, pixels=sharp))

    def process_video_stream(self, input_source=0, output_path=None, compare=False, progress=False, frame_budget=None):
        """Sharpen a camera, video file or stream, into a file or a live window.

        A file's frames are each processed once, in order, at their own time stamps, and its audio is copied. A camera
        gives its newest frame each time; Ctrl-C, or unplugging it, ends a recording and keeps it. A live stream in a
        window leaves out frames that are late, and a window sharpens less where the machine is too busy (see
        `LoadController`); a file that is written never does.

        Args:
            input_source: camera index, path or URL.
            output_path: video file to write, replaced if it exists; None opens a window.
            compare: left half as it came, right half sharpened.
            progress: show a progress bar on a terminal.
            frame_budget: milliseconds that a window's frame may take; None for the interval between the source's
                frames, 0 for no limit.

        Returns:
            dict: ``frames``, ``seconds``, ``fps`` (of the whole chain), ``size`` ``(width, height)``, ``engine`` and
            ``output``; of a window also ``levels``, see `LoadController.frames`.

        Raises:
            ValueError: the budget is not a number from 0.
            VideoError: the source cannot be read, the file cannot be written or there is no display.
        """
        is_camera = isinstance(input_source, int)
        if output_path is not None and not is_camera:
            return self._process_file(input_source, output_path, compare, progress)
        if output_path is not None:
            return self._record_camera(input_source, output_path, compare, progress)
        if is_camera:
            with Camera(input_source) as camera:
                load = LoadController(frame_budget, camera.rate)
                return self._show(((frame, None) for frame in camera), load, compare, progress)
        with VideoReader(input_source) as reader, read_ahead(reader.bgr_frames()) as frames:
            load = LoadController(frame_budget, reader.format.rate)
            return self._show(scheduled(frames, live=reader.frame_count is None), load, compare, progress)

    def _process_file(self, source, output_path, compare, progress):
        if Path(output_path).exists() and Path(source).exists() and os.path.samefile(source, output_path):
            raise VideoError(f"{output_path} is the input itself: name another output")
        with (
            VideoReader(source, audio=True) as reader,
            VideoWriter(output_path, reader.format, reader) as writer,
            read_ahead(reader) as frames,
            write_behind(writer.write) as write,
        ):
            counter = _FrameCounter(progress, reader.frame_count)
            for frame in counter.count(frames):
                y, uv = self.sharpen_planes(frame.y, frame.uv, reader.format.full_range)
                if compare:
                    y, uv = split_planes((frame.y, frame.uv), (y, uv))
                write(dataclasses.replace(frame, y=y, uv=uv))
            size = (reader.format.width, reader.format.height)
        return counter.stats(size, self.engine, output_path)

    def _record_camera(self, index, output_path, compare, progress):
        with Camera(index) as camera:
            width, height = camera.size
            # Milliseconds as time base, as cameras slow down in the dark.
            video_format = VideoFormat(width, height, camera.rate, Fraction(1, 1000), **_BT601_LIMITED)
            with VideoWriter(output_path, video_format) as writer:
                counter = _FrameCounter(progress, None)
                begin = time.perf_counter()
                try:
                    for frame in counter.count(camera):
                        pts = round(1000 * (time.perf_counter() - begin))
                        sharp = self.sharpen(frame)
                        shown = split_frames(frame, sharp) if compare else sharp
                        writer.write(Frame(*to_limited_range(*bgr_to_planes(shown)), pts))
                except KeyboardInterrupt:
                    if writer.empty:
                        raise
        return counter.stats((width, height), self.engine, output_path)

    def _show(self, frames, load, compare, progress):
        size = None
        with Window("Real-time sharpener", compare) as window:
            counter = _FrameCounter(progress, None)
            kept = (item for item in frames if not window.sharpening or load.takes_next())
            for frame, due in counter.count(kept):
                size = (frame.shape[1], frame.shape[0])
                begin, timed = time.perf_counter(), window.sharpening and load.sharpens
                sharp = self.sharpen(frame) if timed else frame
                if load.bypassed:
                    sharp = frame
                shown = split_frames(frame, sharp) if window.comparing else sharp
                wait = 0 if due is None else due - time.perf_counter()  # a file plays at its own rate
                window.show(shown, 1000 * wait, load.note if window.sharpening else "")
                if timed:  # the window draws while it waits: only what goes beyond counts
                    load.add(1000 * (time.perf_counter() - begin - max(wait, 0)))
                if window.closed:
                    break
        return counter.stats(size, self.engine, None) | {"levels": load.frames}

    def _sharpen_pixels(self, pixels):
        """Sharpen BGR ``(H, W, 3)`` or grey ``(H, W)`` pixels of uint8 or uint16, at their own precision."""
        if self.strength == 0:
            return pixels.copy()
        planes = _full_range_planes(pixels)
        if pixels.dtype == np.uint8:  # in codes around 128; cv2.addWeighted saturates
            change = _to_pixels(*self.engine.difference(*planes, self.strength), pixels.ndim, offset=128)
            return cv2.addWeighted(pixels, 1, change, 1, -128)
        change = _to_pixels(*self.engine.residual(*planes), pixels.ndim, offset=0)
        # cv2.add rounds to nearest and saturates.
        return cv2.add(pixels, change * np.float32(65535 * self.strength), dtype=cv2.CV_16U)


def split_frames(original, sharp):
    """Left half of `original`, right half of `sharp` (``(H, W)`` or ``(H, W, 3)``), and a white line between them."""
    middle = sharp.shape[1] // 2
    joined = sharp.copy()
    joined[:, :middle] = original[:, :middle]
    joined[:, middle - 1 : middle + 1] = np.iinfo(joined.dtype).max
    return joined


def split_planes(original, sharp):
    """`split_frames` for a pair of planes ``(y, uv)``."""
    middle = sharp[0].shape[1] // 4  # in chroma columns
    y, uv = sharp[0].copy(), sharp[1].copy()
    y[:, : 2 * middle], uv[..., :middle] = original[0][:, : 2 * middle], original[1][..., :middle]
    y[:, 2 * middle : 2 * middle + 2], uv[..., middle : middle + 1] = 235, 128  # white in either range
    return y, uv


def _full_range_planes(pixels):
    """Full-range planes of BGR or grey pixels: of uint8 as they are, of uint16 as float32 in [0, 1]."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(np.float32) / 65535
    deep = pixels.dtype == np.float32
    if pixels.ndim == 2:
        height, width = pixels.shape
        neutral = _NEUTRAL_CHROMA if deep else 128
        return pixels, np.full((2, (height + 1) // 2, (width + 1) // 2), neutral, pixels.dtype)
    if not deep:
        return bgr_to_planes(pixels)
    y, v, u = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_BGR2YCrCb))  # chroma around 0.5
    return y, np.stack([halve_chroma(u), halve_chroma(v)]) + (_NEUTRAL_CHROMA - np.float32(0.5))


def _to_pixels(dy, duv, dimensions, offset):
    """A change of planes, to which `offset` was added, as the change of BGR (3 dimensions) or grey (2) pixels."""
    if dimensions == 2:
        return dy
    height, width = dy.shape
    size = (2 * duv.shape[2], 2 * duv.shape[1])
    chroma = [cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR)[:height, :width] for plane in duv]
    shift = offset * (1 - _YCC_TO_BGR.sum(axis=1, keepdims=True))
    return cv2.transform(cv2.merge([dy, *chroma]), np.hstack([_YCC_TO_BGR, shift]))


class _FrameCounter:
    """Counts frames and seconds from its creation on, with a progress bar on a terminal if wanted."""

    def __init__(self, shown, total):
        self._bar = {"total": total, "unit": " frames", "leave": False, "disable": None if shown else True}
        self._frames, self._begin = 0, time.perf_counter()

    def count(self, frames):
        for frame in tqdm(frames, **self._bar):
            self._frames += 1
            yield frame

    def stats(self, size, engine, output):
        seconds = time.perf_counter() - self._begin
        return {
            "frames": self._frames,
            "seconds": seconds,
            "fps": self._frames / seconds,
            "size": size,
            "engine": engine.description,
            "output": output,
        }


# ----------------------------------------------------------------------------------------------------------------------
# Demonstration: photos that move, through a call's codec and back


def run_demo(sharpener, folder, seconds=2.4, rate=25):
    """Write three clips ``soft | sharpened`` and one comparison picture to `folder`, and print what was gained.

    Person, text and nature are panned slowly, halved, coded with low-delay x264 at QP 29 as in a call, and scaled up
    again: the soft clip. SSIM is that of the luma against the clip before, the mean of every fifth frame.
    """
    import dataset  # slow to import and only needed here

    photos = (  # name, photo, (width, height) of the clip, corner (x, y) of the close-up
        ("person", dataset.load_photo("skimage:astronaut"), (448, 448), (110, 20)),
        ("text", _page_of_text(), (896, 512), (40, 110)),
        ("nature", dataset.load_photo("skimage:chelsea"), (400, 256), (80, 30)),
    )
    folder, rows, rng = Path(folder), [], np.random.default_rng(0)
    print(f"clip          size  SSIM soft -> sharpened       FPS ({sharpener.description})")
    for name, photo, size, corner in photos:
        frames = dataset.animate(photo, round(seconds * rate), size[::-1], (0.45, 0.3), rng)
        truth = [bgr_to_planes(frame) for frame in frames]
        small = [dataset.resize_planes(*planes, (size[0] // 2, size[1] // 2), "area") for planes in truth]
        soft = [dataset.resize_planes(*planes, size) for planes in dataset.codec_roundtrip(small, "x264", 29, rate)]
        sharpener.sharpen_planes(*soft[0], full_range=True)  # warm-up
        begin = time.perf_counter()
        sharp = [sharpener.sharpen_planes(*planes, full_range=True) for planes in soft]
        fps = len(sharp) / (time.perf_counter() - begin)

        video_format = VideoFormat(2 * size[0], size[1], Fraction(rate), **_BT601_LIMITED)
        with VideoWriter(folder / f"{name}.mp4", video_format) as writer:
            for before, after in zip(soft, sharp, strict=True):
                pair = [_labelled(planes_to_bgr(*before), "soft"), _labelled(planes_to_bgr(*after), "sharpened")]
                writer.write(Frame(*to_limited_range(*bgr_to_planes(np.hstack(pair)))))
        before, after = (
            np.mean([luma_metrics(planes[0], true[0])[1] for planes, true in zip(clip[::5], truth[::5], strict=True)])
            for clip in (soft, sharp)
        )
        print(f"{name:8} {size[0]:4}x{size[1]:<4}       {before:.4f} -> {after:.4f}    {fps:6.1f}")
        close_ups = [
            _labelled(_enlarged(planes_to_bgr(*clip[len(clip) // 2]), corner), f"{name}, {label}")
            for clip, label in ((soft, "soft"), (sharp, "sharpened"), (truth, "truth"))
        ]
        rows.append(np.hstack(close_ups))
    write_image(folder / "comparison.png", Picture(np.vstack(rows)))
    print(f"three clips and comparison.png are in {folder}")


def _page_of_text():
    """A shared screen: dark text of several sizes on white, ``(576, 960, 3)`` uint8."""
    page = Image.new("RGB", (960, 576), (250, 250, 248))
    draw, top = ImageDraw.Draw(page), 36
    lines = (
        "Weekly review: what changed since Monday?",
        "1. The release moves to Thursday, 14:30 (UTC+2).",
        "2. Latency fell from 48 ms to 23 ms per frame, at 1920x1080.",
        "3. Open: 17 tickets, 4 of them urgent; see the shared sheet, page 9.",
        "The quick brown fox jumps over the lazy dog. 0123456789 @ # % & ( ) { } [ ]",
    )
    for size in (30, 22, 17, 14):
        font = ImageFont.load_default(size)
        for line in lines[: 5 if size < 30 else 1]:
            draw.text((40, top), line, (24, 26, 32) if size != 22 else (20, 60, 150), font)
            top += round(1.5 * size)
        top += 12
    return np.array(page)[..., ::-1]


def _enlarged(frame, corner, width=200, height=150):
    x, y = corner
    return cv2.resize(frame[y : y + height, x : x + width], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)


def _labelled(frame, text):
    frame = frame.copy()
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    frame[: height + 12, : width + 12] = 0
    white = (255, 255, 255)
    return cv2.putText(frame, text, (6, height + 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, white, 1, cv2.LINE_AA)


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def sharpen_folder(sharpener, folder, output, compare=False, overwrite=False):
    """Sharpen all images and videos below `folder` into `output`, under the same relative names.

    A file that fails does not stop the others.

    Returns:
        ``(number of files written, list of messages about those that were not)``.

    Raises:
        VideoError: the folder holds nothing to sharpen.
    """
    folder, output = Path(folder), Path(output)
    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix.lower() in suffixes]
    files = [p for p in files if not p.name.startswith(".") and not p.is_relative_to(output)]
    if not files:
        raise VideoError(f"{folder} holds no image or video ({', '.join(suffixes)})")
    failures = []
    for path in tqdm(files, unit=" files", leave=False, disable=None):
        target = output / path.relative_to(folder)
        try:
            _sharpen_file(sharpener, path, target, compare, overwrite)
        except (VideoError, OSError) as error:
            failures.append(str(error))
    return len(files) - len(failures), failures


def _sharpen_file(sharpener, path, output, compare, overwrite, progress=False):
    """Sharpen one image or video file; returns the statistics of a video, None for an image."""
    existing_file(path)
    _check_free(output, overwrite)
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return sharpener.sharpen_image(path, output, compare)
    return sharpener.process_video_stream(str(path), output, compare, progress)


def _check_free(output, overwrite):
    if Path(output).is_dir():
        raise VideoError(f"{output} is a folder: name a file with -o")
    if Path(output).exists() and not overwrite:
        raise VideoError(f"{output} exists already: name another output with -o, or allow it with --overwrite")


def _run(args):
    source, output = args.source, args.output
    is_camera, is_url, is_folder = source.isdecimal(), "://" in source, Path(source).is_dir()
    if not (args.demo or is_camera or is_url or is_folder):
        existing_file(source)
        suffix = Path(source).suffix
        if output is None:
            kept = suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
            output = Path(source).with_name(f"{Path(source).stem}_sharpened{suffix if kept else '.mp4'}")
    if output is not None and not is_folder and not args.demo:
        _check_free(output, args.overwrite)

    sharpener = RealTimeSharpener(args.checkpoint, args.device, args.strength)
    if args.demo:
        run_demo(sharpener, output or Path(__file__).resolve().parent / "results" / "demo")
        return 0
    if is_folder:
        output = output or Path(source).resolve().with_name(f"{Path(source).resolve().name}_sharpened")
        written, failures = sharpen_folder(sharpener, source, output, args.compare, args.overwrite)
        print(f"{written} files written to {output}")
        for failure in failures:
            print(f"inference.py: {failure}", file=sys.stderr)
        return 2 if failures else 0
    if is_camera or is_url:
        source = int(source) if is_camera else source
        stats = sharpener.process_video_stream(source, output, args.compare, True, args.budget)
    else:
        stats = _sharpen_file(sharpener, source, output, args.compare, args.overwrite, progress=True)
    if stats:
        width, height = stats["size"]
        print(
            f"{stats['frames']} frames of {width}x{height} in {stats['seconds']:.1f} s: {stats['fps']:.1f} FPS "
            f"({stats['engine']})"
        )
        levels = stats.get("levels", {})
        if any(list(levels.values())[1:]):
            print("this machine was busy: " + ", ".join(f"{name}: {count} shown" for name, count in levels.items()))
    if output is not None:
        print(f"written to {output}")
    return 0


def parse_amount(text):
    """The number in a command line's ``--strength`` or ``--budget``."""
    value = float(text)
    if not (np.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"expected a finite number from 0, got {text}")
    return value


def main(argv=None):
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        description="Sharpen a camera, a video, an image or a folder of them.",
        epilog="Keys in the window: q or Esc quits, space turns sharpening on and off, c shows before and after.",
    )
    parser.add_argument(
        "source", nargs="?", default="0", help="camera index (default 0), image, folder, video file, or URL of a stream"
    )
    output_help = "what to write; by default NAME_sharpened beside a file or folder, a live window for a camera or URL"
    parser.add_argument("-o", "--output", help=output_help)
    parser.add_argument("--strength", type=parse_amount, default=1.0, help="0 changes nothing; default 1, as trained")
    budget_help = "milliseconds that a live window's frame may take, 0 for no limit; default: the source's interval"
    parser.add_argument("--budget", type=parse_amount, metavar="MS", help=budget_help)
    parser.add_argument("--compare", action="store_true", help="left half as it came, right half sharpened")
    parser.add_argument("--device", default="auto", help="auto (default), openvino, openvino:GPU, cpu, cuda:1, mps ...")
    parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="the student (default: the released one)")
    parser.add_argument("--demo", action="store_true", help="sharpen three built-in clips into results/demo/")
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    warnings.filterwarnings("ignore", module="torch")  # an unreadable checkpoint ends in one line of ours
    try:
        return _run(args)
    except (VideoError, CheckpointError, DeviceError, OSError) as error:
        print(f"inference.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
