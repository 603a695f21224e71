"""Sharpen a camera, videos, images, or folders of them.

    python inference.py                              camera 0 in a live window
    python inference.py video.mp4                    writes video_sharpened.mp4 beside it
    python inference.py input.jpg -o output.jpg
    python inference.py holiday/ -o sharp/           all images and videos in a folder; again: only what is new
    python inference.py "calls/**/*.mp4" a.png       several files and patterns, each NAME_sharpened beside itself
    python inference.py holiday/ --shard 2/3         the second of three machines on one folder
    python inference.py rtsp://host/stream           live window; with -o, a file
    python inference.py --virtual-camera             offers camera 0, sharpened, to other programs
    python inference.py --demo                       no camera, network or data: writes clips to results/demo/

Keys in the window: h lists them (`live.KEYS`); space turns sharpening on and off, c compares before and after, + and -
set the strength, p saves a picture, r records, q or Esc quits. Where the machine is too busy, the window sharpens less
for a while, and says so. Ctrl-C ends what is written and keeps it: a recording from a camera is complete with that; a
file then has its first frames, and the exit code is 130. ``--help`` tells the rest.

From Python::

    sharpener = RealTimeSharpener()
    sharp = sharpener.sharpen(frame)                       # (H, W, 3) uint8 BGR; a PIL image, a tensor, a list of them
    y, uv = sharpener.sharpen_planes(y, uv)                # YUV 4:2:0, no colour conversion
    sharpener.sharpen_image("input.jpg", "output.jpg")
    sharpener.process_video_stream("video.mp4", "sharpened_video.avi")
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from batch import beside, check_free, is_pattern, plan_files, sharpen_file, sharpen_files
from images import VideoError, existing_file, read_image, write_image
from live import (
    KEYS,
    Camera,
    Controls,
    Keeper,
    LoadController,
    Meter,
    Recorder,
    Schedule,
    VirtualCamera,
    Window,
    divide_frames,
    is_camera,
    play,
)
from models import RELEASED_STUDENT, CheckpointError, load_student
from pipeline import read_ahead, write_behind
from runtime import DeviceError, make_engine
from utils import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    bgr_to_planes,
    halve_chroma,
    tqdm,
)
from video import VideoReader, VideoWriter, check_encoder

# Change of (B, G, R) per change of (Y, Cb, Cr): ITU-T T.871.
_YCC_TO_BGR = np.array([[1, 1.772, 0], [1, -0.344136, -0.714136], [1, 0, 1.402]], np.float32)
_NEUTRAL_CHROMA = np.float32(128 / 255)

Pictures = np.ndarray | Image.Image | torch.Tensor | list | tuple  # what `RealTimeSharpener.sharpen` takes

log = logging.getLogger(__name__)


class RealTimeSharpener:
    """Sharpens frames, images and video with a distilled student.

    Threads may share a sharpener, and a process may have several: each picture is sharpened to what it gives alone, bit
    for bit (x264, which encodes files, does not always repeat exactly at small sizes). The int8 network takes one frame
    at a time, so that threads gain time only in what they do besides.

    Args:
        checkpoint: file written by `models.save_student`. A relative name is looked up in the working directory, then
            beside this module.
        device: see `runtime.make_engine`; ``"auto"`` takes what is fastest here.
        strength: scale of the student's change: 0 is the identity, 1 what most people like best, 2 crisp.

    Attributes:
        checkpoint, student, meta: the file that was found, and what it holds.
        device: a `torch.device`, or OpenVINO's name of one.
        description: where and at which precision it runs.
        strength: may be set at any time; it holds from the next frame on.

    Raises:
        CheckpointError: the checkpoint is missing or is not one.
        DeviceError: the device is missing.
        ValueError: the strength is not a finite number from 0.
    """

    def __init__(
        self,
        checkpoint: str | Path = "checkpoints/best_student_model.pth",
        device: str = "auto",
        strength: float = 1.0,
    ) -> None:
        self.strength = _checked(strength)
        path = Path(checkpoint)
        if not path.is_absolute() and not path.exists():
            path = RELEASED_STUDENT.parent.parent / path
        self.checkpoint = path
        self.student, self.meta = load_student(path)
        self.engine = make_engine(self.student, path, device)
        self.device, self.description = self.engine.device, self.engine.description

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.checkpoint.name}, {self.description}, strength {self.strength:g})"

    def sharpen(
        self,
        frame: Pictures,
        rgb: bool = False,
        strength: float | None = None,
    ) -> Pictures:
        """Sharpen a picture, or each of several; returns new ones of the same kind, shape and type.

        The student's residual is added to the picture itself, so colour keeps its full resolution, 16 bits stay 16
        bits, and strength 0 is exactly the identity.

        Args:
            frame: one of

                * an array of uint8 or uint16: ``(H, W, 3)`` BGR as OpenCV has it, ``(H, W)`` grey, or a batch
                  ``(N, H, W, 3)``; the last axis decides: ``(N, H, 3)`` is one picture;
                * a PIL image, RGB, L or RGBA, whose alpha is kept; other modes of 8 bits come back as RGB;
                * a tensor ``(3, H, W)`` or ``(N, 3, H, W)`` on any device, RGB as torchvision has it, of uint8 or of
                  floating point in [0, 1], computed in float32 and without a gradient;
                * a list or tuple of those, of any sizes, which gives a list.
            rgb: arrays are RGB instead of BGR. Nothing else asks for it: PIL images and tensors always are.
            strength: overrides the sharpener's own for this call.

        Raises:
            ValueError: a shape, type, mode or range is another, or the strength is not a finite number from 0.
            TypeError: it is none of those.
        """
        strength = _checked(self.strength if strength is None else strength)
        if isinstance(frame, list | tuple):
            return [self.sharpen(item, rgb, strength) for item in frame]
        frames, restore = _as_frames(frame, rgb)
        return restore([self._sharpen_pixels(pixels, strength) for pixels in frames])

    def sharpen_planes(
        self,
        y: np.ndarray,
        uv: np.ndarray,
        full_range: bool = False,
        strength: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sharpen the planes of a YUV 4:2:0 frame without a colour conversion.

        Args:
            y: luma ``(H, W)`` uint8.
            uv: chroma ``(2, ceil(H/2), ceil(W/2))`` uint8.
            full_range: luma spans 0-255 instead of video's 16-235.
            strength: overrides the sharpener's own for this call.

        Returns:
            New ``(y, uv)``; at strength 0 bit for bit the same.

        Raises:
            ValueError: shapes or types do not fit, or the strength is not a finite number from 0.
        """
        strength = _checked(self.strength if strength is None else strength)
        expected = (2, (y.shape[0] + 1) // 2, (y.shape[-1] + 1) // 2)
        if y.ndim != 2 or uv.shape != expected or y.dtype != np.uint8 or uv.dtype != np.uint8:
            raise ValueError(
                f"expected uint8 planes y (H, W) and uv {expected}, got {y.shape} {y.dtype} and {uv.shape} {uv.dtype}"
            )
        return self.engine(y, uv, full_range, strength)

    def sharpen_image(
        self, input_path: str | Path, output_path: str | Path, compare: bool = False, strength: float | None = None
    ) -> None:
        """Sharpen an image file into another; it is written upright, completely or not at all.

        Grey stays grey, 16 bits stay 16 bits, transparency and colour profile are kept. With `compare`, the left half
        stays as it came. `strength` overrides the sharpener's own.

        Raises:
            VideoError: the input cannot be read, or the output format cannot hold it.
            ValueError: the strength is not a finite number from 0.
        """
        picture = read_image(input_path)
        sharp = self.sharpen(picture.pixels, strength=strength)
        if compare:
            sharp = divide_frames(picture.pixels, sharp)
        write_image(output_path, dataclasses.replace(picture, pixels=sharp))

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
        camera_rate: float | None = None,
        virtual_camera: bool = False,
    ) -> dict:
        """Sharpen a camera, video file or stream, into a file, a live window or a virtual camera.

        A file's frames are each processed once, in order, at their own time stamps; its audio, subtitles, chapters and
        tags are copied. Ctrl-C keeps what was written so far; where the input breaks off, that is in ``NAME_partial``.
        A camera gives its newest frame each time; one that is unplugged is waited for. Ctrl-C, or a camera that stays
        away, ends a recording and keeps it. A live stream in a window leaves out frames that are late, and a window
        sharpens less where the machine is too busy (see `LoadController`); a file that is written never does.

        Args:
            input_source: camera index, device path (``/dev/video2``), path or URL.
            output_path: video file to write, replaced if it exists; None opens a window.
            compare: left half as it came, right half sharpened.
            progress: show a progress bar on a terminal or in a notebook.
            frame_budget: milliseconds that a window's frame may take; None for the interval between the source's
                frames, 0 for no limit.
            on_frame: called as ``on_frame(number, picture)``, numbers from 0, after each frame that is written or
                shown, with that picture upright as ``(H, W, 3)`` uint8 BGR, before the encoder's loss. It delays the
                next frame. Where it returns False (nothing else will do), that frame is the last, and the file is
                complete with it. What it raises ends the processing, is raised here, and leaves no file.
            codec, quality: of a file that is written, see `VideoWriter`.
            camera_size, camera_rate: ``(width, height)`` and frames per second to ask a camera for.
            virtual_camera: offer the pictures to other programs instead (see `live.VirtualCamera`), until Ctrl-C.

        Returns:
            dict: ``frames``, ``seconds``, ``fps`` (of the whole chain), ``size`` ``(width, height)``, ``engine`` and
            ``output``; of what is live also ``dropped``, ``latency_ms`` and ``latency_p95_ms``, see `Meter.stats`; of a
            window or virtual camera also ``levels``, see `LoadController.frames`.

        Raises:
            ValueError: the budget is not a number from 0.
            VideoError: the source cannot be read, the file cannot be written, or there is no display or no virtual
                camera.
        """
        if output_path is not None:
            check_encoder(output_path, codec, quality)
            if not is_camera(input_source):
                return self._process_file(input_source, output_path, compare, progress, on_frame, codec, quality)
        with contextlib.ExitStack() as stack:
            if is_camera(input_source):
                source = stack.enter_context(Camera(input_source, camera_size, camera_rate))
                rate, sharpen = source.rate, self._sharpen_pixels
            else:
                reader = stack.enter_context(VideoReader(input_source))
                timed = ((frame, float(frame.pts * reader.format.time_base)) for frame in reader)
                frames = stack.enter_context(read_ahead(timed, tick=0.1))
                source, rate = Schedule(frames, reader.live), reader.format.rate

                def sharpen(frame, strength):
                    return reader.to_bgr(*self.sharpen_planes(frame.y, frame.uv, reader.format.full_range, strength))

            if output_path is not None:
                return self._record_camera(source, output_path, compare, progress, on_frame, codec, quality)
            load = LoadController(frame_budget, rate)
            return self._show(source, rate, sharpen, load, compare, progress, on_frame, virtual_camera)

    def _process_file(self, source, output_path, compare, progress, on_frame, codec, quality):
        if Path(output_path).exists() and Path(source).exists() and os.path.samefile(source, output_path):
            raise VideoError(f"{output_path} is the input itself: name another output")
        with (
            VideoReader(source, audio=True) as reader,
            VideoWriter(output_path, reader.format, reader, quality, codec) as writer,
            read_ahead(reader) as frames,
            write_behind(writer.write) as write,
        ):
            counter = _FrameCounter(progress, reader.frame_count)
            for frame in counter.count(frames):
                y, uv = self.sharpen_planes(frame.y, frame.uv, reader.format.full_range)
                if compare:
                    y, uv = split_planes((frame.y, frame.uv), (y, uv))
                write(dataclasses.replace(frame, y=y, uv=uv))
                if on_frame and on_frame(counter.number, reader.to_bgr(y, uv)) is False:
                    break
            size = (reader.format.width, reader.format.height)
        return counter.stats(size, self.engine, output_path)

    def _record_camera(self, camera, output_path, compare, progress, on_frame, codec, quality):
        meter, size = Meter(), camera.size
        with Recorder(output_path, size, camera.rate, codec, quality) as recorder:
            counter = _FrameCounter(progress, None)
            for frame, taken, _ in counter.count(item for item in camera if item[0] is not None):
                if frame.shape[1::-1] != size:
                    log.warning("the camera changed to %dx%d: the recording ends", *frame.shape[1::-1])
                    break
                sharp = self.sharpen(frame)
                shown = divide_frames(frame, sharp) if compare else sharp
                recorder.add(shown)
                now = time.perf_counter()
                meter.add(now, 1000 * (now - taken))
                if on_frame and on_frame(counter.number, shown) is False:
                    break
        meter.dropped = camera.dropped
        stats = counter.stats(size, self.engine, output_path)
        return stats | meter.stats | {"frames": recorder.frames}

    def _show(self, source, rate, sharpen, load, compare, progress, on_frame, virtual):
        meter, size, controls = Meter(), (0, 0), Controls(self.strength, compare)
        with contextlib.ExitStack() as stack:
            if virtual:
                screen, keeper = stack.enter_context(VirtualCamera(rate, controls)), None
                stack.enter_context(contextlib.suppress(KeyboardInterrupt))  # the usual end
            else:
                screen = stack.enter_context(Window("Real-time sharpener", controls, self.description))
                keeper = stack.enter_context(Keeper(screen.say, rate))
            counter = _FrameCounter(progress, None)
            for shown in counter.count(play(source, sharpen, screen, load, meter, keeper)):
                size = shown.shape[1::-1]
                if on_frame and on_frame(counter.number, shown) is False:
                    break
        return counter.stats(size, self.engine, None) | meter.stats | {"levels": load.frames}

    def _sharpen_pixels(self, pixels, strength):
        """Sharpen BGR ``(H, W, 3)`` or grey ``(H, W)`` pixels of uint8, uint16 or float32 in [0, 1], at that depth."""
        if strength == 0:
            return pixels.copy()
        dy, duv = self.engine.difference(*_full_range_planes(pixels), strength)
        if pixels.dtype == np.uint8:  # the change is in codes around 128, and cv2.addWeighted saturates
            return cv2.addWeighted(pixels, 1, _to_pixels(dy, duv, pixels.ndim, 128), 1, -128)
        return _add(pixels, _to_pixels(dy, duv, pixels.ndim, 0))


def _add(pixels, change):
    """Pixels of uint16 or float32 and a float change of them on the scale of [0, 1], cut off at their limits."""
    if pixels.dtype == np.float32:
        return np.clip(pixels + change, 0, 1)
    return cv2.add(pixels, change * np.float32(65535), dtype=cv2.CV_16U)  # rounds to nearest and saturates


def _checked(strength):
    """The strength as a float, if it is one."""
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must be a finite number from 0, got {strength}")
    return float(strength)


def _as_frames(pictures, rgb):
    """What `RealTimeSharpener.sharpen` was given as what the student takes, and the way back.

    Returns:
        ``(frames, restore)``: a list of BGR ``(H, W, 3)`` or grey ``(H, W)`` arrays of uint8, uint16 or float32, and a
        function that makes the kind that was given from the list of them sharpened.
    """
    if isinstance(pictures, Image.Image):
        return _from_pil(pictures)
    if isinstance(pictures, torch.Tensor):
        return _from_tensor(pictures)
    if not isinstance(pictures, np.ndarray):
        raise TypeError(f"expected a frame as an array, a PIL image or a tensor, or a list, got {type(pictures)}")
    shape, kind = pictures.shape, pictures.dtype
    if not (len(shape) == 2 or (len(shape) in (3, 4) and shape[-1] == 3)) or 0 in shape[-3:]:
        kind = None
    if kind not in (np.uint8, np.uint16):
        raise ValueError(
            "expected a frame (H, W, 3) or (H, W) or a batch (N, H, W, 3) of uint8 or uint16, got "
            f"{shape} of {pictures.dtype}"
        )
    color, batch = len(shape) > 2, len(shape) == 4
    swapped = pictures[..., ::-1] if rgb and color else pictures
    frames = [np.ascontiguousarray(frame) for frame in (swapped if batch else [swapped])]

    def restore(frames):
        sharp = np.array(frames, kind).reshape(shape) if batch else frames[0]
        return np.ascontiguousarray(sharp[..., ::-1]) if rgb and color else sharp

    return frames, restore


def _from_pil(image):
    """`_as_frames` of a PIL image."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"expected a PIL image of 8 bits, got mode {image.mode}: give an array of uint16")
    kept = image.mode in ("L", "RGB", "RGBA")
    pixels = np.array(image if kept else image.convert("RGB"))

    def restore(frames):
        (sharp,) = frames
        if pixels.ndim == 2:
            result = Image.fromarray(sharp)
        else:
            result = Image.fromarray(np.dstack([sharp[..., ::-1], pixels[..., 3:]]))
        result.info = dict(image.info) if kept else {}  # a colour profile describes the mode that it came with
        return result

    return [pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 2::-1])], restore


def _from_tensor(tensor):
    """`_as_frames` of a tensor."""
    shape = tuple(tensor.shape)
    known = tensor.dtype == torch.uint8 or tensor.is_floating_point()
    if not known or len(shape) not in (3, 4) or shape[-3] != 3 or 0 in shape[-2:]:
        raise ValueError(
            "expected a tensor (3, H, W) or (N, 3, H, W) of uint8 or floating point, got "
            f"{shape} of {str(tensor.dtype).removeprefix('torch.')}"
        )
    values = tensor.detach().cpu()
    values = (values.float() if tensor.is_floating_point() else values).numpy()
    if tensor.is_floating_point() and not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"expected values in [0, 1], got {values.min():g} to {values.max():g}: divide or clamp them")
    frames = [np.ascontiguousarray(frame[::-1].transpose(1, 2, 0)) for frame in values.reshape(-1, *shape[-3:])]

    def restore(frames):
        sharp = np.array(frames, values.dtype).reshape(-1, *shape[-2:], 3)
        sharp = sharp[..., ::-1].transpose(0, 3, 1, 2).copy()  # PyTorch takes no negative strides
        return torch.from_numpy(sharp.reshape(shape)).to(tensor)

    return frames, restore


def split_planes(original, sharp):
    """`live.divide_frames` in the middle, for a pair of planes ``(y, uv)``."""
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


def _in_notebook():
    """Whether a notebook's kernel runs this, in which standard error is no terminal, but shows bars."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


class _FrameCounter:
    """Counts frames and seconds from its creation on, with a progress bar on a terminal or in a notebook if wanted."""

    def __init__(self, shown, total):
        hidden = False if _in_notebook() else None  # None: where there is no terminal
        self._bar = {"total": total, "unit": " frames", "leave": False, "disable": hidden if shown else True}
        self._frames, self._begin = 0, time.perf_counter()

    @property
    def number(self):
        """Of the frame given last, from 0."""
        return self._frames - 1

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
# Command line

_EXAMPLES = """Sharpen a camera, videos, images, or folders of them.

examples:
  python inference.py                      camera 0 in a live window
  python inference.py 1 --compare          camera 1, its left half as it came
  python inference.py call.mp4             writes call_sharpened.mp4 beside it
  python inference.py a.jpg -o b.jpg       writes b.jpg
  python inference.py holiday/             all in it, to holiday_sharpened/
  python inference.py a.mp4 b.png -o out/  writes out/a.mp4 and out/b.png
  python inference.py "in/**/*.mp4"        all .mp4 in in/, at any depth
  python inference.py in/ --shard 2/3      the second of three machines
  python inference.py rtsp://host/stream   a stream; with -o, written to a file
  python inference.py --demo               three clips; needs no camera or data"""

_EXPLANATIONS = (
    """where it goes:
  Without -o, a file becomes NAME_sharpened beside it, a folder NAME_sharpened/
  beside it, and a camera or stream a window. With -o, one file becomes that
  file; everything else goes into that folder: what is below a folder under its
  path there, what a pattern finds under its path below the part before the
  first wildcard, a file under its name. Where two files would have one output,
  nothing is done. Hidden files are left out, and so is what earlier runs wrote
  (NAME_sharpened and NAME_sharpened_partial beside a NAME).

many files (several sources, a folder, a pattern, or -o names a folder):
  A file whose output is there and not older is done: the same command goes on
  where it was stopped. Other options, such as another --strength, do not count
  as a change: add --overwrite to do all files anew. A file that fails does not
  stop the others; failures are listed at the end.

keys in the window:
"""
    + "\n".join(f"  {key:<12} {meaning}" for key, meaning in KEYS)
    + """
  Pictures and recordings go to the current folder. Ctrl-C, or unplugging the
  camera for half a minute, keeps what was recorded.

exit codes:
  0    all is written or was there already
  2    something failed; each line on stderr says what and what to do
  130  Ctrl-C; what was written is kept: of the last video its first frames"""
)


def _encoding(args):
    return {"codec": args.codec, "quality": args.crf}


def _is_live(source):
    return (source.isdecimal() or "://" in source or is_camera(source)) and not Path(source).is_dir()


def _run(args):
    sources, output = args.sources or ["0"], args.output
    alone = args.demo or args.virtual_camera or any(map(_is_live, sources))
    if alone and (len(sources) > 1 or args.shard or (args.demo and args.sources)):
        raise VideoError("a camera, a stream, --virtual-camera and --demo run alone: leave out the rest")
    if args.virtual_camera and (output or args.demo):
        raise VideoError("--virtual-camera writes no file: leave out -o and --demo")
    several = len(sources) > 1 or args.shard or Path(sources[0]).is_dir() or is_pattern(sources[0])
    into_folder = output is not None and (output.endswith(("/", os.sep)) or Path(output).is_dir())
    if not alone and (several or into_folder):
        return _run_files(args, sources)

    source = sources[0]
    if not alone:
        output = output or beside(existing_file(source))
    if output is not None and not args.demo:
        check_free(output, args.overwrite)
    sharpener = RealTimeSharpener(args.checkpoint, args.device, args.strength)
    if args.demo:
        from demo import run_demo  # with all that makes training pairs: slow to import, and seldom needed

        run_demo(sharpener, output or Path(__file__).resolve().parent / "results" / "demo")
        return 0
    if alone:
        source = int(source) if source.isdecimal() else source
        if is_camera(source) or args.virtual_camera:
            logging.getLogger("live").setLevel(logging.INFO)  # what the camera gives, and where it is offered
        stats = sharpener.process_video_stream(
            source,
            output,
            args.compare,
            progress=True,
            frame_budget=args.budget,
            camera_size=args.camera_size,
            camera_rate=args.camera_rate,
            virtual_camera=args.virtual_camera,
            **_encoding(args),
        )
    else:
        stats = sharpen_file(sharpener, source, output, args.compare, args.overwrite, True, **_encoding(args))
    if stats:
        width, height = stats["size"]
        print(
            f"{stats['frames']} frames of {width}x{height} in {stats['seconds']:.1f} s: {stats['fps']:.1f} FPS "
            f"({stats['engine']})"
        )
        if "latency_ms" in stats:
            print(
                f"{stats['dropped']} frames dropped; added latency {stats['latency_ms']:.1f} ms, 95 % within "
                f"{stats['latency_p95_ms']:.1f} ms"
            )
        levels = stats.get("levels", {})
        if any(list(levels.values())[1:]):
            print("this machine was busy: " + ", ".join(f"{name}: {count} shown" for name, count in levels.items()))
    if output is not None:
        print(f"written to {output}")
    return 0


def _run_files(args, sources):
    output = args.output and Path(args.output)
    if output and not output.is_dir() and (output.exists() or output.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES):
        raise VideoError(f"{output} is not a folder: several files go to one, name it with -o")
    jobs = plan_files(sources, output)
    if args.shard:
        part, parts = args.shard
        jobs = jobs[part - 1 :: parts]
    sharpener = RealTimeSharpener(args.checkpoint, args.device, args.strength)
    result = sharpen_files(sharpener, jobs, args.compare, args.overwrite, **_encoding(args))
    counts = [f"{result.written} written", f"{result.present} already there"]
    if result.failures:
        counts.append(f"{len(result.failures)} failed")
    if result.interrupted:
        left = len(jobs) - result.written - result.present - len(result.failures)
        counts.append(f"{left} left when it was stopped; the same command goes on")
    print(f"{', '.join(counts)} ({output or 'NAME_sharpened beside the originals'})")
    for failure in result.failures:
        print(f"inference.py: {failure}", file=sys.stderr)
    return 130 if result.interrupted else 2 if result.failures else 0


def parse_amount(text):
    """The number in a command line's ``--strength`` or ``--budget``."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not (np.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"expected a finite number from 0, got {text}")
    return value


def parse_size(text):
    """The ``(width, height)`` in a command line's ``--camera-size``."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 1280x720, got {text}")
    return int(match[1]), int(match[2])


def parse_shard(text):
    """The pair ``(i, n)`` in a command line's ``--shard i/n``."""
    numbers = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 2/3, got {text}")
    return int(numbers[1]), int(numbers[2])


def _help_format(prog):
    width = min(shutil.get_terminal_size().columns - 1, 100)
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=width)


def make_parser():
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="inference.py",
        usage="python %(prog)s [SOURCE ...] [options]",
        description=_EXAMPLES,
        epilog=_EXPLANATIONS,
        formatter_class=_help_format,
        add_help=False,
    )
    what = parser.add_argument_group("what to sharpen")
    sources_help = (
        "camera index, image, video, folder, pattern (in quotes, so that your shell does not cut it short; ** is any "
        "depth) or URL of a stream; default: camera 0"
    )
    what.add_argument("sources", nargs="*", metavar="SOURCE", help=sources_help)
    shard_help = "of many files, do only the I-th part of N, I from 1 to N: each machine has its own I; default: all"
    what.add_argument("--shard", type=parse_shard, metavar="I/N", help=shard_help)
    what.add_argument("--demo", action="store_true", help="sharpen three built-in clips into results/demo/")

    written = parser.add_argument_group("output")
    output_help = "file to write, or folder for several files; default: NAME_sharpened beside the source, or a window"
    written.add_argument("-o", "--output", metavar="PATH", help=output_help)
    written.add_argument("--overwrite", action="store_true", help="replace what exists; by default it is left alone")
    strength_help = "how much is sharpened: 0 nothing, 1 what most people like best, 2 crisp; default: 1"
    written.add_argument("--strength", type=parse_amount, default=1.0, metavar="X", help=strength_help)
    written.add_argument("--compare", action="store_true", help="left half as it came, right half sharpened")

    codec_help = (
        "of a video: h264, hevc, av1, vp9, ffv1, or FFmpeg's name of an encoder, such as h264_nvenc; default: h264, in "
        ".webm vp9"
    )
    written.add_argument("--codec", metavar="NAME", help=codec_help)
    crf_help = "quality of a video on its codec's scale: of h264 0 is lossless, 51 worst; default: 18, or what is alike"
    written.add_argument("--crf", type=float, metavar="Q", help=crf_help)

    live = parser.add_argument_group("live picture")
    budget_help = (
        "milliseconds that a window's frame may take before it is sharpened less, 0 for no limit; default: the time "
        "between the source's frames"
    )
    live.add_argument("--budget", type=parse_amount, metavar="MS", help=budget_help)

    size_help = "size to ask a camera for, such as 1280x720; default: what it gives"
    live.add_argument("--camera-size", type=parse_size, metavar="WxH", help=size_help)
    rate_help = "frames per second to ask a camera for; default: what it gives"
    live.add_argument("--camera-rate", type=parse_amount, metavar="FPS", help=rate_help)
    virtual_help = "offer the sharpened picture to other programs as a camera, without a window (needs pyvirtualcam)"
    live.add_argument("--virtual-camera", action="store_true", help=virtual_help)

    running = parser.add_argument_group("how it runs")
    device_help = "auto, cpu, cuda:1, mps, openvino, openvino:GPU ...; default: auto, the fastest here"
    running.add_argument("--device", default="auto", help=device_help)
    checkpoint_help = "file of the student network; default: the released one"
    running.add_argument("--checkpoint", default=str(RELEASED_STUDENT), metavar="FILE", help=checkpoint_help)
    running.add_argument("-h", "--help", action="help", help="show this page and exit")
    return parser


def main(argv=None):
    """Run the command line; returns the exit code: 0, 2 where something failed, 130 after Ctrl-C."""
    args = make_parser().parse_intermixed_args(argv)
    logging.basicConfig(format="%(message)s")
    warnings.filterwarnings("ignore", module="torch")  # an unreadable checkpoint ends in one line of ours
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # video.py has a limit of its own
    try:
        return _run(args)
    except (VideoError, CheckpointError, DeviceError, OSError) as error:
        print(f"inference.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
