"""Sharpen a camera, videos, images, or folders of them.

examples:
  python inference.py                      camera 0 in a live window
  python inference.py 1 --compare          camera 1, its left half as it came
  python inference.py call.mp4             writes call_sharpened.mp4 beside it
  python inference.py a.jpg -o b.jpg       writes b.jpg
  python inference.py holiday/             all in it, to holiday_sharpened/
  python inference.py "in/**/*.mp4"        all .mp4 in in/, at any depth
  python inference.py a.mp4 --size 1080p   enlarged, then sharpened
  python inference.py --screen             a part of the screen, in a window
  python inference.py rtsp://host/stream   a stream; with -o, written to a file
  python inference.py --virtual-camera     offers camera 0 to other programs
  python inference.py --demo               three clips; needs no camera or data

From Python: `RealTimeSharpener`. docs/usage.md says more.
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from batch import check_free, default_output, is_pattern, plan_files, sharpen_file, sharpen_files
from conversion import add_change, divide_pixels, divide_planes, pixels_to_planes, stack, to_pixels
from engines import make_engine
from images import VideoError, existing_file, read_image, write_image
from live import Camera, LoadController, Meter, TimedSource, is_camera, play, size_text
from pipeline import read_ahead, write_behind
from runtime import RELEASED_STUDENT, CheckpointError, DeviceError, steady
from scaling import WINDOW, SizeError, parse_size, resize_pixels, resize_planes, target_size
from screen import Screen, is_screen
from utils import IMAGE_SUFFIXES, VIDEO_SUFFIXES, plural, without_password
from video import MAX_VIDEO_SIDE, VideoReader, VideoWriter, check_encoder
from window import KEYS, Controls, Recorder, VirtualCamera, Window, draw_rectangle

if TYPE_CHECKING:
    import torch

Pictures: TypeAlias = "np.ndarray | Image.Image | torch.Tensor | list | tuple"  # what `RealTimeSharpener.sharpen` takes
SizeLike: TypeAlias = str | tuple[int, int]  # what `scaling.parse_size` takes

log = logging.getLogger(__name__)


class RealTimeSharpener:
    """Sharpens frames, images and video with a distilled student.

    Threads may share a sharpener, and a process may have several: results are the same, bit for bit. The int8 network
    takes one frame at a time, so only the work around it gains from threads.

    Args:
        checkpoint: file written by `models.save_student`; by default the released student.
        device: see `engines.make_engine`; ``"auto"`` takes the fastest.
        strength: scale of the student's change: 0 is the identity, 1 the default, 2 crisp.

    Attributes:
        checkpoint: its path.
        description: device and precision.
        strength: may be changed at any time, for the next picture, file or stream.

    Raises:
        CheckpointError: the checkpoint is missing or is not one.
        DeviceError: the device is missing.
        ValueError: the strength is not a finite number from 0.
    """

    def __init__(self, checkpoint: str | Path = RELEASED_STUDENT, device: str = "auto", strength: float = 1.0) -> None:
        self.strength = _check_strength(strength)
        self.checkpoint = Path(checkpoint)
        self.engine = make_engine(self.checkpoint, device)
        self.description = self.engine.description

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.checkpoint.name}, {self.description}, strength {self.strength:g})"

    def sharpen(
        self, frame: Pictures, rgb: bool = False, strength: float | None = None, size: SizeLike | None = None
    ) -> Pictures:
        """Sharpen a picture, or each of several; return new ones of the same kind and type, and shape without `size`.

        The student's residual is added to the picture itself, so colour keeps its full resolution, 16 bits stay 16
        bits, and strength 0 is exactly the identity.

        Args:
            frame: one of

                * an array of uint8 or uint16: ``(H, W, 3)`` BGR as in OpenCV, ``(H, W)`` grey, or a batch
                  ``(N, H, W, 3)``; ``(N, H, 3)`` is one picture;
                * a PIL image; transparency is kept (as RGBA), and modes of 8 bits other than L become RGB;
                * a tensor ``(3, H, W)`` or ``(N, 3, H, W)`` on any device, RGB as in torchvision, of uint8 or of
                  floating point in [0, 1], computed in float32 and without a gradient;
                * a list or tuple of those, of any sizes, which gives a list.
            rgb: arrays are RGB instead of BGR; PIL images and tensors always are.
            strength: overrides the sharpener's for this call.
            size: enlarge the picture first: ``"1080p"`` (lines), ``"2x"``, or to fit into a box, ``"1920x1080"`` or
                ``(1920, 1080)``. The aspect stays.

        Raises:
            ValueError: shape, type, mode, range, strength or size is not supported.
            TypeError: it is none of those.
        """
        strength = _check_strength(self.strength if strength is None else strength)
        if isinstance(frame, list | tuple):
            return [self.sharpen(item, rgb, strength, size) for item in frame]
        if getattr(frame, "ndim", 0) == 4:
            return stack([self.sharpen(item, rgb, strength, size) for item in frame]) if len(frame) else frame[:0]
        pixels, restore = to_pixels(frame, rgb)
        pixels = resize_pixels(pixels, target_size(_fixed_size(size), *pixels.shape[1::-1]))
        if strength == 0:
            return restore(pixels.copy())
        return restore(add_change(pixels, *self.engine.difference(*pixels_to_planes(pixels), strength)))

    def sharpen_planes(
        self,
        y: np.ndarray,
        uv: np.ndarray,
        full_range: bool = False,
        strength: float | None = None,
        size: SizeLike | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sharpen the planes of a YUV 4:2:0 frame without a colour conversion.

        To lessen the noise of a video first, see `runtime.steady`.

        Args:
            y: luma ``(H, W)`` uint8.
            uv: chroma ``(2, ceil(H/2), ceil(W/2))`` uint8.
            full_range: luma spans 0-255 instead of 16-235.
            strength: overrides the sharpener's for this call.
            size: enlarge the frame first, see `sharpen`; chroma samples lie left, as in most video.

        Returns:
            New ``(y, uv)``; at strength 0 and without `size` bit for bit the same.

        Raises:
            ValueError: shapes, types, strength or size are not supported.
        """
        strength = _check_strength(self.strength if strength is None else strength)
        expected = (2, (y.shape[0] + 1) // 2, (y.shape[-1] + 1) // 2)
        if y.ndim != 2 or not y.size or uv.shape != expected or y.dtype != np.uint8 or uv.dtype != np.uint8:
            came = f"{y.shape} {y.dtype} and {uv.shape} {uv.dtype}"
            raise ValueError(f"expected uint8 planes y (H, W) and uv {expected}, got {came}")
        y, uv = resize_planes(y, uv, target_size(_fixed_size(size), *y.shape[::-1]))
        return self.engine(y, uv, full_range, strength)

    def sharpen_image(
        self,
        input_path: str | Path,
        output_path: str | Path,
        compare: bool = False,
        strength: float | None = None,
        size: SizeLike | None = None,
    ) -> None:
        """Sharpen an image file into another, which is written upright, completely or not at all.

        Grey stays grey, 16 bits stay 16 bits; transparency, colour profile, EXIF and texts are kept. With `compare`,
        the left half is not sharpened. For `strength` and `size` see `sharpen`.

        Raises:
            VideoError: the input cannot be read, or the output format cannot hold it.
            ValueError: the strength or size is not supported.
        """
        _check_other(input_path, output_path)
        size = _fixed_size(size)
        picture = read_image(input_path)
        target = _say_shrunk(input_path, size, *picture.pixels.shape[1::-1])
        before = resize_pixels(picture.pixels, target)
        sharp = self.sharpen(before, strength=strength)
        if compare:
            sharp = divide_pixels(before, sharp)
        alpha = None if picture.alpha is None else resize_pixels(picture.alpha, target)
        write_image(output_path, dataclasses.replace(picture, pixels=sharp, alpha=alpha))

    def process_video_stream(
        self,
        input_source: int | str | Path = 0,
        output_path: str | Path | None = None,
        compare: bool = False,
        progress: bool = False,
        frame_budget: float | None = None,
        on_frame: Callable[[int, np.ndarray], object] | None = None,
        codec: str | None = None,
        quality: float | None = None,
        camera_size: tuple[int, int] | None = None,
        virtual_camera: bool = False,
        size: SizeLike | None = None,
    ) -> dict:
        """Sharpen a camera, the screen, a video file or a stream, into a file, a live window or a virtual camera.

        Each frame of a file is written once, in order, at its own time; audio, subtitles, chapters and tags are
        copied. Frames that cannot be decoded are left out, with a warning. After Ctrl-C, or if the input breaks off or
        is mostly damaged, the output so far is kept as ``NAME_partial``. Ctrl-C ends a recording of a camera, the
        screen or a live stream and keeps it, and so does unplugging the camera. A camera gives its newest frame each
        time. In a window or virtual camera, late frames of a live stream are left out, and less is sharpened if the
        machine is too busy (see `live.LoadController`); never in a file.

        Args:
            input_source: camera index, device path (``/dev/video2``), path, URL, or a part of the screen: a monitor
                ``"screen:2"``, a rectangle ``"screen:100,80,1280x720"``, or ``"screen:"`` to let the user draw one.
            output_path: video file to write, replaced if it exists; None opens a window.
            compare: sharpen only the right half.
            progress: show a progress bar.
            frame_budget: milliseconds for a frame that is shown live; None for the source's interval, 0 for no limit.
            on_frame: called as ``on_frame(number, picture)``, numbers from 0, for each frame that is written or shown,
                upright as ``(H, W, 3)`` uint8 BGR. If it returns False (nothing else will do), that frame is the last.
                Its errors are raised here and leave no file, except that a `VideoError` counts as the input's.
            codec, quality: of a file, see `video.VideoWriter`.
            camera_size: ``(width, height)`` to ask a camera for.
            virtual_camera: offer the pictures to other programs instead (see `window.VirtualCamera`), until Ctrl-C.
            size: enlarge the pictures first, see `sharpen`; ``"window"`` follows the window's size.

        Returns:
            dict: ``frames``, ``seconds``, ``fps`` (of the whole chain), ``size`` ``(width, height)`` of the output,
            ``source_size``, ``engine`` and ``output``; if it is shown live, also those of `live.Meter.stats`, and
            ``levels``, see `live.LoadController.frames`.

        Raises:
            ValueError: the budget is not a number from 0, or there is no such size.
            VideoError: the source cannot be read, the file cannot be written, or there is no display or virtual camera.
        """
        live = output_path is None or is_camera(input_source) or is_screen(input_source)
        in_window = output_path is None and not virtual_camera
        size = _fixed_size(size, in_window)
        if output_path is not None:
            check_encoder(output_path, codec, quality)
        if not live:
            return self._sharpen_video(input_source, output_path, compare, progress, on_frame, codec, quality, size)

        controls, meter, count = Controls(self.strength, compare, size=size), Meter(), 0
        with contextlib.ExitStack() as stack:
            source, enlarge, sharpen = self._open_live(stack, input_source, camera_size, controls)
            target = source.size if size == WINDOW else _say_shrunk(input_source, size, *source.size)
            load = LoadController(0 if output_path is not None else frame_budget, source.rate)
            if in_window:
                place = source.free_place if isinstance(source, Screen) else None
                display = stack.enter_context(Window(controls, self.description, place))
            elif virtual_camera:
                display = stack.enter_context(VirtualCamera(source.rate))
            else:
                display = stack.enter_context(Recorder(output_path, target, source.rate, codec, quality))
            begin = time.perf_counter()
            pictures = play(source, enlarge, sharpen, display, controls, load, meter)
            for count, picture in enumerate(tqdm(pictures, unit=" frames", leave=False, disable=not progress), 1):
                if on_frame and on_frame(count - 1, picture) is False:
                    break
        if isinstance(display, Recorder):
            count = display.frames  # after Ctrl-C, fewer than were shown to it
        sizes = meter.sizes or (source.size, target)
        return self._statistics(count, begin, sizes, output_path) | meter.stats | {"levels": load.frames}

    def _sharpen_video(self, source, output_path, compare, progress, on_frame, codec, quality, size):
        """Sharpen a video into another: one thread reads, this one sharpens, one writes."""
        _check_other(source, output_path)
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(VideoReader(source, audio=True))
            kind = reader.format
            shape = kind.width, kind.height, kind.pixel_aspect
            target = _say_shrunk(source, size, *shape, MAX_VIDEO_SIDE)
            kind = dataclasses.replace(kind, width=target[0], height=target[1])
            writer = stack.enter_context(VideoWriter(output_path, kind, reader, quality, codec))
            frames = stack.enter_context(read_ahead(reader))
            write = stack.enter_context(write_behind(writer.write))
            begin, steadied, count = time.perf_counter(), None, 0
            bar = tqdm(frames, total=reader.frame_count, unit=" frames", leave=False, disable=not progress)
            try:
                for frame in bar:
                    steadied = steady(frame.y, steadied, self.strength)
                    enlarged = resize_planes(steadied, frame.uv, target, kind.chroma_location)
                    y, uv = self.sharpen_planes(*enlarged, kind.full_range)
                    if compare:
                        before = resize_planes(frame.y, frame.uv, target, kind.chroma_location)
                        y, uv = divide_planes(before, (y, uv))
                    write(dataclasses.replace(frame, y=y, uv=uv))
                    count += 1
                    if on_frame and on_frame(count - 1, reader.to_bgr(y, uv)) is False:
                        break
            except KeyboardInterrupt:
                if not (reader.live and count):  # else that is how a recording ends
                    raise
        return self._statistics(count, begin, (shape[:2], target), output_path)

    def _open_live(self, stack, source, camera_size, controls):
        """Return a source and the functions that enlarge and sharpen its frames, for `live.play`."""
        steadied = None

        def enlarge(pixels):
            return resize_pixels(pixels, controls.target_size(*pixels.shape[1::-1]))

        def sharpen(pixels, strength):
            nonlocal steadied
            if strength == 0:
                return pixels.copy()
            y, uv = pixels_to_planes(pixels)
            steadied = steady(y, steadied, strength)
            dy, duv = self.engine.difference(steadied, uv, strength)
            return add_change(pixels, cv2.addWeighted(add_change(steadied, dy, None), 1, y, -1, 128), duv)

        if is_screen(source):
            return stack.enter_context(Screen(source, draw_rectangle)), enlarge, sharpen
        if is_camera(source):
            return stack.enter_context(Camera(source, camera_size)), enlarge, sharpen

        reader = stack.enter_context(VideoReader(source))
        kind = reader.format
        timed = ((frame, float(frame.pts * kind.time_base)) for frame in reader)
        frames = stack.enter_context(read_ahead(timed, tick=0.1))

        def enlarge_frame(frame):
            target = controls.target_size(kind.width, kind.height, kind.pixel_aspect)
            return resize_planes(frame.y, frame.uv, target, kind.chroma_location)

        def sharpen_frame(planes, strength):
            nonlocal steadied
            if strength == 0:
                return reader.to_bgr(*planes)
            steadied = steady(planes[0], steadied, strength)
            return reader.to_bgr(*self.sharpen_planes(steadied, planes[1], kind.full_range, strength))

        return TimedSource(frames, reader.live, kind.rate, (kind.width, kind.height)), enlarge_frame, sharpen_frame

    def _statistics(self, frames, begin, sizes, output):
        seconds = time.perf_counter() - begin
        return {
            "frames": frames,
            "seconds": seconds,
            "fps": frames / seconds,
            "source_size": sizes[0],
            "size": sizes[1],
            "engine": self.description,
            "output": output,
        }


def _check_other(source, output):
    """Raise `VideoError` if the output is the input."""
    if Path(output).exists() and Path(source).exists() and os.path.samefile(source, output):
        raise VideoError(f"{output} is the input itself: name another output")


def _check_strength(strength):
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must be a finite number from 0, got {strength}")
    return float(strength)


def _fixed_size(size, in_window=False):
    """Parse a size, or None; `WINDOW` is for a window only."""
    size = None if size is None else parse_size(size)
    if size == WINDOW and not in_window:
        raise SizeError("size window is for a live window: name another, such as 1080p")
    return size


def _say_shrunk(source, size, width, height, *shape):
    """Return `target_size` of a source; warn if that is smaller."""
    target = target_size(size, width, height, *shape)
    if target < (width, height):
        log.warning("%s: shrunk from %dx%d to %dx%d", without_password(str(source)), width, height, *target)
    return target


_KEYS = "\n".join(f"  {key:<12} {meaning}" for key, meaning in KEYS)
_EXPLANATIONS = f"""keys in the window:
{_KEYS}
  Pictures go to the current folder.

exit codes:
  0    all is written or existed already
  2    something failed; each line on stderr says what and what to do
  130  Ctrl-C, SIGTERM; what was written is kept, a video as NAME_partial"""


def main(argv=None):
    """Run the command line; return the exit code: 0, 2 if something failed, 130 after Ctrl-C or SIGTERM."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--" in argv:  # argparse, intermixed, would drop it and take the names after it for options
        end = argv.index("--")
        argv[end:] = [f".{os.sep}{name}" if name.startswith("-") else name for name in argv[end + 1 :]]
    args = make_parser().parse_intermixed_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names need not be UTF-8
        stream.reconfigure(errors="replace")
    logging.basicConfig(format="%(message)s")
    for module in ("live", "window"):  # they say what a camera gives and where pictures go
        logging.getLogger(module).setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module="torch|PIL")  # a damaged checkpoint or picture ends in one line of ours
    try:
        return _run(args)
    except (VideoError, CheckpointError, DeviceError, OSError) as error:
        print(f"inference.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _make_sharpener(args):
    return RealTimeSharpener(args.checkpoint, args.device, args.strength)


def _run(args):
    given = args.sources + ([] if args.screen is None else [f"screen:{args.screen}"])
    sources = given or ["0"]
    if "" in sources:  # which would mean this folder
        raise VideoError("a name is empty: name a file, a folder, a camera or a stream")
    live = args.virtual_camera or any(map(_is_live, sources))
    if (live or args.demo) and (len(sources) > 1 or (args.demo and (given or args.size))):
        raise VideoError("a camera, a stream, --screen, --virtual-camera and --demo run alone: leave out the rest")
    if args.virtual_camera and (args.output or args.demo):
        raise VideoError("--virtual-camera writes no file: leave out -o and --demo")
    if args.size is not None and not live:
        _fixed_size(args.size)  # refused before anything is done
    if args.demo:
        from demo import run_demo

        folder = args.output or Path(__file__).resolve().parent / "results" / "demo"
        run_demo(_make_sharpener(args), folder, overwrite=args.overwrite or not args.output)
        return 0
    if live:
        return _run_live(args, sources[0])
    into_folder = args.output is not None and (args.output.endswith(("/", os.sep)) or Path(args.output).is_dir())
    if len(sources) > 1 or Path(sources[0]).is_dir() or is_pattern(sources[0]) or into_folder:
        return _run_files(args, sources)
    return _run_file(args, sources[0])


def _run_file(args, source):
    """Sharpen one image or video file."""
    output = args.output or default_output(existing_file(source))
    check_free(output, args.overwrite)
    options = {"size": args.size, "codec": args.codec, "quality": args.crf, "progress": sys.stderr.isatty()}
    stats = sharpen_file(_make_sharpener(args), source, output, args.compare, **options)
    if stats:
        _print_statistics(stats)
    print(f"written to {output}")
    return 0


def _run_files(args, sources):
    """Sharpen many files into a folder or beside themselves."""
    output = args.output and Path(args.output)
    if output and not output.is_dir() and (output.exists() or output.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES):
        raise VideoError(f"{output} is not a folder: several files go to one, name it with -o")
    options = {"size": args.size, "codec": args.codec, "quality": args.crf}
    return sharpen_files(_make_sharpener(args), plan_files(sources, output), args.compare, args.overwrite, **options)


def _run_live(args, source):
    """Show a camera, the screen or a stream in a window, offer it as a virtual camera, or record it."""
    if args.output is not None:
        check_free(args.output, args.overwrite)
    stats = _make_sharpener(args).process_video_stream(
        int(source) if source.isdecimal() else source,
        args.output,
        args.compare,
        progress=sys.stderr.isatty(),
        frame_budget=args.budget,
        camera_size=args.camera_size,
        virtual_camera=args.virtual_camera,
        size=args.size,
        codec=args.codec,
        quality=args.crf,
    )
    _print_statistics(stats)
    if args.output is not None:
        print(f"written to {args.output}")
    return 0


def _is_live(source):
    named = source.isdecimal() or "://" in source or is_camera(source) or is_screen(source)
    return named and not Path(source).is_dir()


def _print_statistics(stats):
    frames, sizes = plural(stats["frames"], "frame"), size_text(stats["source_size"], stats["size"])
    print("{} of {} in {seconds:.1f} s: {fps:.1f} FPS ({engine})".format(frames, sizes, **stats))
    if "latency_ms" in stats:
        latency = "{} dropped; added latency {latency_ms:.1f} ms, 95 % within {latency_p95_ms:.1f} ms"
        print(latency.format(plural(stats["dropped"], "frame"), **stats))
    levels = stats.get("levels", {})
    if any(list(levels.values())[1:]):
        print("this machine was busy: " + ", ".join(f"{name}: {count} shown" for name, count in levels.items()))


def parse_amount(text):
    """Parse a finite number from 0, such as the strength."""
    try:
        return _check_strength(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a finite number from 0, got {text}") from error


def parse_camera_size(text):
    """Parse ``WIDTHxHEIGHT`` into a pair."""
    width, height = map(int, text.split("x"))
    return width, height


def make_parser():
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="inference.py",
        usage="python %(prog)s [SOURCE ...] [options]",
        description=__doc__,
        epilog=_EXPLANATIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what to sharpen").add_argument
    text = "camera index, image, video, folder, pattern in quotes, or URL of a stream; default: camera 0"
    add("sources", nargs="*", metavar="SOURCE", help=text)
    text = "the screen: a monitor's number, a rectangle such as 100,80,1280x720, or one that you draw if you name none"
    add("--screen", nargs="?", const="", metavar="PART", help=text)
    add("--demo", action="store_true", help="sharpen three built-in clips into results/demo/")

    add = parser.add_argument_group("output").add_argument
    text = "file to write, or folder for several files; default: NAME_sharpened beside the source, or a window"
    add("-o", "--output", metavar="PATH", help=text)
    add("--overwrite", action="store_true", help="replace what exists; by default it is left alone")
    text = "how much to sharpen: 0 nothing, 1 the default, 2 crisp; default: 1"
    add("--strength", type=parse_amount, default=1.0, metavar="X", help=text)
    text = "enlarge first: 1080p (lines), 1920x1080 (fits into it), 2x, or window (follows it); default: its own size"
    add("--size", metavar="SIZE", help=text)
    add("--compare", action="store_true", help="left half as it came, right half sharpened")
    text = "of a video: h264, hevc, av1, vp9 or ffv1; default: h264, in .webm vp9"
    add("--codec", metavar="NAME", help=text)
    text = "quality of a video on its codec's scale: of h264 0 is lossless, 51 worst; default: 18, or what is alike"
    add("--crf", type=float, metavar="Q", help=text)

    add = parser.add_argument_group("live picture").add_argument
    text = "milliseconds for a frame in a window, after which less is sharpened; 0: no limit; default: the frames' rate"
    add("--budget", type=parse_amount, metavar="MS", help=text)
    text = "size to ask a camera for, such as 1280x720; default: what it gives"
    add("--camera-size", type=parse_camera_size, metavar="WxH", help=text)
    text = "offer the sharpened picture to other programs as a camera, without a window (needs pyvirtualcam)"
    add("--virtual-camera", action="store_true", help=text)

    add = parser.add_argument_group("how it runs").add_argument
    text = "auto, cpu, cuda:1, mps, openvino, openvino:GPU ...; default: auto, the fastest here"
    add("--device", default="auto", help=text)
    text = "file of the student network; default: the released one"
    add("--checkpoint", default=str(RELEASED_STUDENT), metavar="FILE", help=text)
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # from `kill` or a service: like Ctrl-C
    sys.exit(main())
