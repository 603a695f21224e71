"""Where pictures come from and go to: image files, video files and streams.

Video files keep their own planes (see `utils`): a frame is decoded to 8-bit YUV 4:2:0 and encoded from it without a
colour conversion in between. Time stamps, colour tags, pixel shape, rotation, audio, subtitles, attachments, chapters
and tags pass through::

    with VideoReader("call.mp4", audio=True) as reader, VideoWriter("out.mp4", reader.format, reader) as writer:
        for frame in reader:
            writer.write(frame)

`read_ahead` and `write_behind` let decoding, what is done with a frame, and encoding overlap in three threads. Nothing
here locks: a reader or writer may change threads, but only one at a time may use it. `VideoReader.take_audio` is the
exception, so that a writer can run beside its reader.

Files appear under their name when they are complete, never half-written; but Ctrl-C ends a video early under its own
name, and where the input breaks off, what came before is kept as ``NAME_partial``. Everything that goes wrong with a
picture, a video, a camera or a window is a `VideoError` whose message says what to do.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import os
import queue
import re
import threading
import time
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import cv2  # before av, whose own libxcb would hang OpenCV's windows on Linux

# isort: split
import av
import numpy as np
from PIL import Image, ImageOps

from utils import IMAGE_SUFFIXES, VIDEO_SUFFIXES, atomic_path, first_line

_MATRIX_BT709, _MATRIX_BT601 = 1, 6  # ITU-T H.273, MatrixCoefficients
_TRANSFER_HDR = {16: "PQ", 18: "HLG"}  # ITU-T H.273, TransferCharacteristics
_RANGE_LIMITED, _RANGE_FULL = 1, 2  # FFmpeg's AVColorRange; 0 is unspecified and means limited

# Colour tags of what `utils.bgr_to_planes` and `utils.to_limited_range` make.
BT601_LIMITED = {"value_range": _RANGE_LIMITED, "matrix": _MATRIX_BT601, "primaries": 6, "transfer": 6}
_TONE_MAPPING = "-vf zscale=t=linear:npl=100,tonemap=hable,zscale=t=bt709:m=bt709:p=bt709:r=tv,format=yuv420p"
_FILE_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")  # of the container, not of the content
_STREAM_TAGS = ("language", "title")
_ARRIVAL_UNIT = Fraction(1, 1000)  # seconds, of time stamps that are made here
_GAP = 10  # seconds between packets of a stream: it was joined from two
_QUICKTIME = (".mp4", ".m4v", ".mov")
_TEXT_SUBTITLES = {".mp4": "mov_text", ".m4v": "mov_text", ".mov": "mov_text", ".webm": "webvtt", ".mkv": "subrip"}

# Files may come from anywhere. Their sizes are checked before memory is taken, and they are read as nothing but
# pictures and videos, whatever their names say: Pillow would run a program for PostScript, FFmpeg open what a playlist
# names.
MAX_IMAGE_SIDE, MAX_IMAGE_PIXELS = 1 << 14, 1 << 27  # 16,384 and 134 million
MAX_VIDEO_SIDE = 1 << 13  # 8,192
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # JPEG: and MPO, which is more of it
_VIDEO_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,h264,hevc,obu,av1,m4v,vc1,mjpeg,dv,rm,wtv,"
    "yuv4mpegpipe,gif"
)

log = logging.getLogger(__name__)


class VideoError(RuntimeError):
    """A picture, video, camera or window cannot be read, written or opened. The message says what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# Images


@dataclasses.dataclass
class Picture:
    """A still image, upright.

    Attributes:
        pixels: ``(H, W, 3)`` BGR or ``(H, W)`` grey, uint8 or uint16.
        alpha: opacity ``(H, W)`` of the same type, or None.
        color_profile: the file's ICC profile (bytes), or None.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    color_profile: bytes | None = None


def read_image(path):
    """Read an image file as a `Picture`; an orientation tag is applied.

    Pillow reads 8-bit files: it knows orientation and colour profiles, and refuses a truncated file. OpenCV reads
    16-bit files, which Pillow would cut to 8 bits.

    Raises:
        VideoError: there is no such file, it is not an image, is damaged, has more than `MAX_IMAGE_SIDE` pixels a side
            or `MAX_IMAGE_PIXELS`, or holds something else than one picture of 8 or 16 bits.
    """
    path = existing_file(path)
    try:
        with _open_image(path) as file:
            # Pillow would count the pictures by reading them all. MPO: a phone's JPEG with extras
            if file.format != "MPO" and getattr(file, "is_animated", False):
                raise VideoError(f"{path} holds at least 2 pictures: only files with a single one can be sharpened")
            orientation, profile = file.getexif().get(0x0112, 1), file.info.get("icc_profile")
            if file.format == "TIFF" and orientation > 4:  # Pillow 13 garbles them, OpenCV 5 does not read them
                raise VideoError(f"{path} is a TIFF stored on its side (orientation {orientation}): turn it first")
            _check_deep_tiff(path, file)
            file.load()
            if _has_16_bits(path, file):  # OpenCV's TIFF reader applies the orientation itself
                deep = _read_16_bit(path, 1 if file.format == "TIFF" else orientation)
                if deep is not None:
                    if sorted(deep.shape[:2]) != sorted(file.size):
                        raise VideoError(f"{path} contradicts itself about its size: try a fresh copy")
                    return _split_alpha(deep, profile)
            if file.mode in ("I", "F"):
                raise VideoError(f"{path} has {file.mode}-type pixels of 32 bits: convert it to 8 or 16 bits first")
            upright = ImageOps.exif_transpose(file)
    except VideoError:
        raise
    except Exception as error:  # decoders stumble over damage in any way: KeyError, struct.error, zlib.error ...
        raise VideoError(f"{path} is not an image that can be read, or is damaged: {first_line(error)}") from error
    grey = upright.mode in ("1", "L") and not upright.has_transparency_data
    if upright.mode in ("CMYK", "LAB") or (profile and not grey and profile[16:20] == b"GRAY"):
        profile = None  # it does not describe the RGB values that we go on with
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
    elif grey:
        return Picture(np.array(upright.convert("L")), None, profile)
    else:
        upright = upright.convert("RGB")
    pixels = np.array(upright)
    order = [2, 1, 0, 3][: pixels.shape[2]]
    return _split_alpha(np.ascontiguousarray(pixels[..., order]), profile)


def _check_deep_tiff(path, file):
    """Refuse 16-bit TIFFs that OpenCV misreads: separate planes, and other colours than RGB and grey from black."""
    if file.format != "TIFF" or not _has_16_bits(path, file):
        return
    if file.tag_v2.get(284, 1) != 1 or file.tag_v2.get(262, 1) not in (1, 2, 5):
        raise VideoError(f"{path} is a 16-bit TIFF stored as separate planes or a negative: convert it to PNG first")


def check_image(path):
    """Raise `VideoError` where an image file cannot be opened or is larger than `read_image` allows."""
    with _open_image(path):
        pass


def _open_image(path):
    """Pillow's image of a file of which only the header has been read, and found to be of a bearable size."""
    try:
        file = Image.open(path, formats=_IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise VideoError(f"{path} {_too_large(error)}") from error
    except Exception as error:  # see `read_image`
        raise VideoError(f"{path} is not an image that can be read, or is damaged: {first_line(error)}") from error
    width, height = file.size
    if max(width, height) > MAX_IMAGE_SIDE or width * height > MAX_IMAGE_PIXELS:
        file.close()
        raise VideoError(f"{path} {_too_large(f'{width}x{height}')}")
    return file


def _too_large(size):
    return (
        f"is too large ({size}): at most {MAX_IMAGE_SIDE} pixels a side and {MAX_IMAGE_PIXELS // 10**6} million pixels "
        "can be read; scale it down or cut it first"
    )


def _has_16_bits(path, file):
    """Whether the header says 16 bits, which Pillow's modes do not."""
    if file.format == "PNG":
        with open(path, "rb") as header:
            return header.read(25)[24:] == bytes([16])  # signature, length and name of IHDR, width, height: 24 bytes
    return file.format == "TIFF" and 16 in file.tag_v2.get(258, ())


def write_image(path, picture):
    """Write a `Picture`; JPEG and WebP at quality 95, PNG and TIFF without loss.

    Raises:
        VideoError: the format is unknown, or cannot hold 16 bits or an alpha channel.
    """
    path = Path(path)
    suffix, deep = path.suffix.lower(), picture.pixels.dtype == np.uint16
    if suffix not in IMAGE_SUFFIXES:
        raise VideoError(f"cannot write {path}: an image's name ends in one of {', '.join(IMAGE_SUFFIXES)}")
    if deep and suffix not in (".png", ".tif", ".tiff"):
        raise VideoError(f"cannot write {path}: {suffix} does not hold 16 bits; name a .png or .tif file")
    if picture.alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
        raise VideoError(f"cannot write {path}: {suffix} does not hold transparency; name a .png, .tif or .webp file")
    pixels = picture.pixels
    if picture.alpha is not None:
        color = pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
        pixels = np.dstack([color, picture.alpha])
    try:
        with atomic_path(path) as temporary:
            if deep:
                if picture.color_profile:
                    log.warning("%s: the colour profile of a 16-bit image is not kept", path)
                if not cv2.imwrite(str(temporary), pixels):
                    raise VideoError(f"cannot write {path}")
                return
            image = Image.fromarray(pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
            options = {"quality": 95} if suffix in (".jpg", ".jpeg", ".webp") else {}
            if suffix in (".jpg", ".jpeg"):
                options["subsampling"] = "4:4:4"
            if suffix in (".tif", ".tiff"):
                options["compression"] = "tiff_deflate"
            image.save(temporary, icc_profile=picture.color_profile, **options)
    except (OSError, ValueError, cv2.error) as error:  # ValueError: WebP's encoder
        raise VideoError(f"cannot write {path}: {first_line(error)}") from error


def _read_16_bit(path, orientation):
    """The pixels of a 16-bit image turned upright, or None where the file has 8 bits."""
    with quiet_opencv():
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        return None
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1])


def _split_alpha(pixels, profile):
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return Picture(np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3]), profile)
    return Picture(pixels, None, profile)


# ----------------------------------------------------------------------------------------------------------------------
# Video files and streams


@dataclasses.dataclass(frozen=True)
class VideoFormat:
    """What all frames of a video share.

    Attributes:
        width, height: in pixels.
        rate: frames per second (a `Fraction`; the average where it varies).
        time_base: unit of time stamps in seconds; None for ``1 / rate``.
        grid_rate: frames per second of a regular grid on which all frames lie, for AVI; None for `rate`.
        value_range: 2 is full range (luma 0-255), 1 limited range (16-235), 0 unspecified, which means limited.
        matrix, primaries, transfer: colour tags as in ITU-T H.273; 2 is unspecified.
        pixel_aspect: width to height of a pixel, or None for square or unknown.
        display_matrix: the nine integers of a container's rotation or mirroring, or None.
        chroma_location: where chroma samples lie, as FFmpeg names it (``"left"``, ``"topleft"`` ...), or None.
    """

    width: int
    height: int
    rate: Fraction
    time_base: Fraction | None = None
    grid_rate: Fraction | None = None
    value_range: int = 0
    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    pixel_aspect: Fraction | None = None
    display_matrix: tuple | None = None
    chroma_location: str | None = None

    @property
    def full_range(self):
        """Whether luma spans 0-255 instead of 16-235."""
        return self.value_range == _RANGE_FULL


@dataclasses.dataclass
class Frame:
    """One frame: ``y (H, W)``, ``uv (2, ceil(H/2), ceil(W/2))`` uint8; `pts`, `duration` in time base units or None.

    `audio_before` is how many packets of audio and subtitles its file has before it, None where nobody counts.
    """

    y: np.ndarray
    uv: np.ndarray
    pts: int | None = None
    duration: int | None = None
    audio_before: int | None = None


def open_video(path):
    """Open a video file as PyAV's container; what it names, such as a playlist's files and addresses, is not opened.

    Raises:
        av.FFmpegError, OSError: it cannot be read.
    """
    only = {"format_whitelist": _VIDEO_FORMATS, "protocol_whitelist": "file"}
    # Of a relative path with a colon FFmpeg would take the beginning for a protocol.
    return av.open(str(Path(path).absolute()), options=only, metadata_errors="replace")


class VideoReader:
    """Iterates over a video file's or stream's frames: every `Frame` once, in the order of display.

    8-bit YUV 4:2:0 comes out as it was coded. Other 8-bit formats are converted to it, with range and matrix kept, and
    interlaced frames are made progressive, both with a warning.

    Args:
        source: path or URL.
        audio: collect packets of audio and subtitles for a `VideoWriter`, which must then take them (`take_audio`).

    Attributes:
        format: the `VideoFormat`.
        frame_count: estimated number of frames, or None where that is unknown.
        live: whether it comes from an address, without an end that is known. Then frames of formats without time
            stamps of their own (MJPEG of network cameras) get those of their arrival.
        pixel_format: FFmpeg's name of what the file holds.
        video_stream, tracks, attachments, other_streams: PyAV's streams: the video, what is collected, the files
            within the file, and what is left out.
        metadata, chapters: of the container, as PyAV gives them.

    Raises:
        VideoError: it cannot be opened, has no video, has more than `MAX_VIDEO_SIDE` pixels a side, or holds what 8-bit
            planes cannot (10 bits, HDR, transparency); while iterating: it is damaged, or its size changes.
    """

    def __init__(self, source, audio=False):
        self.source = str(source)
        self._remote = "://" in self.source
        self._closed, self._busy = False, threading.Lock()
        if not self._remote:
            existing_file(source)
        try:
            # The two limits in seconds hold for opening and for each read: a dead server must not hang the call.
            self._container = av.open(self.source, timeout=(10, 30)) if self._remote else open_video(source)
        except (av.FFmpegError, OSError) as error:
            cause = (
                "check the address" if self._remote else "it is damaged, incomplete or something else; try a fresh copy"
            )
            raise VideoError(f"{self.source} cannot be read as a video ({first_line(error)}): {cause}") from error
        try:
            self._open_streams(audio)
        except BaseException:
            self._container.close()
            raise

    def _open_streams(self, audio):
        covers = av.stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & covers]
        if not streams:
            raise VideoError(f"{self.source} has no video stream")
        self.video_stream = self._stream = streams[0]
        if self._stream.codec_context is None:
            raise VideoError(
                f"{self.source} holds video of an unknown kind: it is damaged, or convert it to H.264 first"
            )
        # Each thread that decodes a frame of its own holds one back, which in a live stream is time. In a file it is
        # memory, and half of the cores are for those who sharpen and encode.
        self._stream.thread_type = "SLICE" if self._remote else "AUTO"
        self._stream.codec_context.thread_count = min(max(1, _usable_cores() // 2), 8)
        self._check_size(self._stream.width, self._stream.height)
        self._stream.codec_context.options = {"max_pixels": str(MAX_VIDEO_SIDE**2)}  # should a frame be another
        every = self._container.streams
        self.tracks = [s for s in every if s.type in ("audio", "subtitle")] if audio else []
        self.attachments = list(every.attachments)
        self.metadata, self.chapters = dict(self._container.metadata), self._container.chapters()
        known = {self._stream.index, *(s.index for s in every if s.type in ("audio", "subtitle", "attachment"))}
        # The data stream beside chapters in .mp4 is their text, which is written again with them.
        self.other_streams = [s for s in every if s.index not in known and not (self.chapters and s.type == "data")]
        self._check_complete()
        untimed = bool(self._container.format.flags & av.format.Flags.no_timestamps.value)
        endless = not (self._stream.frames or self._stream.duration or self._container.duration)
        self.live = self._remote and not self.source.startswith("file:") and endless
        self._opened = time.monotonic() if self.live and untimed else None
        # Only who iterates counts what was met, only who takes counts what was taken: these may be two threads.
        self._audio, self._audio_met, self._audio_taken = deque(), 0, 0
        self._previous_pts, self._end = None, 0  # seconds
        self._decoded = self._decode()
        self._first = next(self._decoded, None)
        if self._first is None:
            raise VideoError(f"{self.source} holds no frame that can be decoded: it is damaged or incomplete")

        stream, frame = self._stream, self._first
        self.pixel_format = frame.format.name
        self._check_pixel_format(frame)
        grid = stream.guessed_rate
        rate = stream.average_rate or grid or Fraction(25)
        seconds = _seconds(stream.duration, stream.time_base) or _seconds(self._container.duration, Fraction(1, 10**6))
        self.frame_count = stream.frames or (round(seconds * rate) if seconds else None)
        matrix = frame.colorspace
        if frame.format.is_rgb:
            matrix = _MATRIX_BT709 if frame.height >= 720 else _MATRIX_BT601
        value_range = _RANGE_FULL if frame.format.name.startswith("yuvj") else int(frame.color_range)
        if frame.format.is_rgb:
            value_range = _RANGE_LIMITED
        aspect = stream.sample_aspect_ratio
        same = frame.format.name in ("yuv420p", "yuvj420p", "nv12", "nv21")
        if not same:
            log.warning("%s: %s is converted to 8-bit yuv420p", self.source, frame.format.name)
        rotation = next((bytes(d) for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
        self.format = VideoFormat(
            width=frame.width,
            height=frame.height,
            rate=rate,
            time_base=stream.time_base if self._opened is None else _ARRIVAL_UNIT,
            grid_rate=grid if grid and rate < grid <= 240 else None,  # a guess of FFmpeg's, at times absurd
            value_range=value_range,
            matrix=matrix,
            primaries=int(frame.color_primaries),
            transfer=int(frame.color_trc),
            pixel_aspect=aspect if aspect and aspect != 1 else None,
            display_matrix=tuple(np.frombuffer(rotation, np.int32).tolist()) if rotation else None,
            chroma_location=_chroma_location(self._container, stream) if same else None,
        )

    def __iter__(self):
        frames = self._frames()
        while True:
            with self._busy:
                decoded = None if self._closed else next(frames, None)
                if self._closed:
                    self._container.close()
                    return
                if decoded is None:
                    return
                frame = Frame(*self._planes(decoded), decoded.pts, decoded.duration or None, self._audio_met)
            yield frame

    def to_bgr(self, y, uv):
        """Planes of this video's size, range and matrix as a picture: upright ``(H, W, 3)`` uint8 BGR."""
        picture = av.VideoFrame(self.format.width, self.format.height, "yuv420p")
        for plane, source in zip(picture.planes, (y, *uv), strict=True):
            plane_pixels(plane)[...] = source
        picture.colorspace, picture.color_range = self.format.matrix, self.format.value_range
        return np.ascontiguousarray(np.rot90(picture.to_ndarray(format="bgr24"), self._quarter_turns()))

    def take_audio(self, end=None):
        """Return the packets of audio and subtitles met since the last call, of the first `end` if that is given."""
        packets = []
        while self._audio and (end is None or self._audio_taken < end):
            packets.append(self._audio.popleft())
            self._audio_taken += 1
        return packets

    def close(self):
        """Release the file; where a thread still waits for the next frame, it does so as soon as that comes."""
        self._closed = True
        if self._busy.acquire(timeout=0.5):
            try:
                self._container.close()
            finally:
                self._busy.release()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _frames(self):
        if self._first is None:
            raise RuntimeError("a VideoReader can be iterated over once: open another for a second pass")
        first, self._first = self._first, None
        yield first
        yield from self._decoded

    def _decode(self):
        deinterlacer, expected, count = _Deinterlacer(self._stream, self.source), None, 0
        timeline = _Timeline(self._container)
        try:
            for packet in self._container.demux(self._stream, *self.tracks):
                timeline.mend(packet)
                self._note_end(packet)
                if packet.stream.index != self._stream.index:
                    if packet.size:  # the empty packet at the end only flushes decoders
                        self._audio.append(packet)
                        self._audio_met += 1
                    continue
                for frame in packet.decode():
                    found = (frame.width, frame.height, frame.format.name)
                    self._check_size(*found[:2])
                    expected, count = expected or found, count + 1
                    if found != expected:
                        raise VideoError(
                            "{} changes from {}x{} {} to {}x{} {} on the way: split or re-encode it first".format(
                                self.source, *expected, *found
                            )
                        )
                    yield from deinterlacer.push(self._stamped(frame))
            yield from deinterlacer.push(None)
        except av.ExitError as error:
            raise VideoError(f"{self.source} sends nothing any more: check the connection") from error
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{self.source} is damaged or incomplete ({first_line(error)}): try a fresh copy"
            ) from error
        self._check_length(count)

    def _note_end(self, packet):
        begin = packet.dts if packet.pts is None else packet.pts
        if begin is not None:
            self._end = max(self._end, (begin + (packet.duration or 0)) * packet.time_base)

    def _check_length(self, count):
        """Warn where an .mkv or .avi has been cut off, which FFmpeg reads as if it ended there."""
        declared, name = _seconds(self._container.duration, Fraction(1, 10**6)), self._container.format.name
        if name == "avi":  # FFmpeg cuts the duration as the file is cut, but not the number of frames
            declared = self._stream.frames * self._stream.time_base
        elif name != "matroska,webm" or (self._container.streams.audio and not self.tracks):
            return  # the duration is estimated, or maybe that of audio which nobody looks at
        if not (count and declared):
            return
        if declared - self._end > max(1, declared / 20):
            log.warning("%s ends early: %d of about %d frames", self.source, count, self.frame_count)

    def _check_complete(self):
        """Refuse a cut .mp4 or .mov whose index came first: FFmpeg would read it as if it ended there."""
        ends = [entry.pos + entry.size for entry in self._stream.index_entries]
        if Path(self.source).is_file() and ends and max(ends) > Path(self.source).stat().st_size:
            raise VideoError(f"{self.source} is incomplete: its index names data beyond its end; try a fresh copy")

    def _stamped(self, frame):
        """Mend time stamps: those of AVI and of live streams without any, and those that are missing in raw streams."""
        if self._opened is not None:
            frame.pts, frame.duration = round((time.monotonic() - self._opened) / _ARRIVAL_UNIT), 0
            frame.time_base = _ARRIVAL_UNIT
        if self._container.format.name == "avi" and not self._stream.codec_context.has_b_frames:
            frame.pts = frame.dts  # FFmpeg's guess is one frame late
        if frame.pts is None:
            step = round(1 / (self._stream.average_rate or Fraction(25)) / self._stream.time_base)
            frame.pts = 0 if self._previous_pts is None else self._previous_pts + max(step, 1)
        self._previous_pts = frame.pts
        return frame

    def _check_size(self, width, height):
        if max(width, height) > MAX_VIDEO_SIDE:
            raise VideoError(
                f"{self.source} is too large ({width}x{height}): at most {MAX_VIDEO_SIDE}x{MAX_VIDEO_SIDE} pixels can "
                "be read; scale it down first"
            )

    def _check_pixel_format(self, frame):
        name, parts = frame.format.name, frame.format.components
        reason, advice = None, "-pix_fmt yuv420p"
        if int(frame.color_trc) in _TRANSFER_HDR:
            reason, advice = f"HDR video ({_TRANSFER_HDR[int(frame.color_trc)]})", _TONE_MAPPING
        elif max(part.bits for part in parts) > 8:
            reason = f"{max(part.bits for part in parts)}-bit video"
        elif any(part.is_alpha for part in parts) or frame.format.has_palette or frame.format.is_bayer:
            reason = "video with transparency or a palette"
        if reason:
            raise VideoError(
                f"{self.source}: {reason} ({name}) is not supported yet; convert it to 8-bit yuv420p first: "
                f"ffmpeg -i INPUT {advice} OUTPUT"
            )

    def _planes(self, frame):
        if frame.format.name == "gray":  # swscale would take it for full range whatever its tag says
            chroma = np.full((2, (frame.height + 1) // 2, (frame.width + 1) // 2), 128, np.uint8)
            return plane_pixels(frame.planes[0]).copy(), chroma
        if frame.format.name not in ("yuv420p", "yuvj420p"):
            value_range = _RANGE_FULL if self.format.full_range else _RANGE_LIMITED
            frame = frame.reformat(
                format="yuv420p",
                src_colorspace=self.format.matrix,
                dst_colorspace=self.format.matrix,
                src_color_range=_RANGE_FULL if frame.format.is_rgb else value_range,
                dst_color_range=value_range,
            )
        return plane_pixels(frame.planes[0]).copy(), np.stack([plane_pixels(plane) for plane in frame.planes[1:]])

    def _quarter_turns(self):
        """Counter-clockwise quarter turns that bring a frame upright, for `np.rot90`."""
        if self.format.display_matrix is None:
            return 0
        a, b = self.format.display_matrix[:2]
        return round(np.arctan2(-b, a) / (np.pi / 2)) % 4


class _Timeline:
    """Makes one timeline of an MPEG transport or program stream that begins late, or anew where parts were joined."""

    def __init__(self, container):
        self._needed = container.format.name in ("mpegts", "mpeg")
        start = Fraction(container.start_time or 0, 10**6)
        self._shifts, self._streams, self._end = [-start if start > _GAP else 0], {}, 0  # seconds

    def mend(self, packet):
        """Shift a packet's time stamps so that each part follows the one before."""
        if not self._needed or packet.dts is None:
            return
        unit = packet.stream.time_base
        seconds, latest = packet.dts * unit, len(self._shifts) - 1
        part, last = self._streams.get(packet.stream.index, (latest, seconds))
        if packet.stream.type == "subtitle":
            part = latest
        elif not 0 <= seconds - last <= _GAP:
            if part < latest:  # another stream came to the next part before
                part += 1
            elif seconds < last or seconds + self._shifts[part] > self._end + _GAP:  # else it alone has a gap
                self._shifts.append(self._end - seconds)
                part += 1
        self._streams[packet.stream.index] = part, seconds
        shift = round(self._shifts[part] / unit)
        packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
        self._end = max(self._end, (packet.dts + (packet.duration or 0)) * unit)


class _Deinterlacer:
    """Passes frames on; from the first interlaced one on through FFmpeg's bwdif: a frame for a frame, at its time."""

    def __init__(self, stream, name):
        self._stream, self._name = stream, name
        self._graph, self._times = None, deque()

    def push(self, frame):
        """Return the frames that are ready after another one, or after None, which is the end."""
        if self._graph is None:
            if frame is None or not frame.interlaced_frame:
                return [] if frame is None else [frame]
            log.warning("%s is interlaced: its fields are made into whole frames (bwdif)", self._name)
            self._graph = av.filter.Graph()
            source = self._graph.add_buffer(template=self._stream)
            bwdif, sink = self._graph.add("bwdif", "mode=send_frame:deint=interlaced"), self._graph.add("buffersink")
            source.link_to(bwdif)
            bwdif.link_to(sink)
            self._graph.configure()
        if frame is not None:
            self._times.append((frame.pts, frame.duration, frame.time_base))
        self._graph.push(frame)
        ready = []
        with contextlib.suppress(av.BlockingIOError, av.EOFError):
            while True:
                ready.append(self._graph.pull())
                ready[-1].pts, ready[-1].duration, ready[-1].time_base = self._times.popleft()
        return ready


def _chroma_location(container, stream):
    """Where chroma samples lie (see `VideoFormat`), which PyAV tells only in FFmpeg's verbose description of a file."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.VERBOSE)
    av.logging.set_libav_level(av.logging.VERBOSE)
    try:
        description = container.dumps_format()
    finally:
        av.logging.set_libav_level(av.logging.INFO)
        av.logging.set_level(level)
    pattern = rf"Stream #0:{stream.index}\b.*[(, ](left|center|topleft|top|bottomleft|bottom)\)"
    found = re.search(pattern, description)
    return found and found[1]


class _Encoder(NamedTuple):
    """How an encoder is set: its own scale of quality, and options in which ``{}`` stands for the quality."""

    best: int
    worst: int
    default: int
    options: dict
    lossless: dict | None = None  # options in their place where the best quality loses nothing
    odd: bool = False  # odd sizes


_CODECS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "ffv1": "ffv1"}
_VP9 = {"deadline": "realtime", "cpu-used": "6", "row-mt": "1"}
_ENCODERS = {  # by name, or by what a hardware encoder's name ends in
    "libx264": _Encoder(0, 51, 18, {"crf": "{}", "preset": "veryfast"}, {"qp": "0", "preset": "veryfast"}),
    "libx265": _Encoder(
        *(0, 51, 20),
        {"crf": "{}", "preset": "fast", "x265-params": "log-level=error"},
        {"preset": "fast", "x265-params": "lossless=1:log-level=error"},
    ),
    "libsvtav1": _Encoder(1, 63, 24, {"crf": "{}", "preset": "8"}, odd=True),
    "libvpx-vp9": _Encoder(0, 63, 24, {"crf": "{}", "b": "0", **_VP9}, {"lossless": "1", **_VP9}, odd=True),
    "ffv1": _Encoder(0, 0, 0, {"level": "3"}, odd=True),
    "nvenc": _Encoder(1, 51, 19, {"rc": "vbr", "cq": "{}", "b": "0"}),
    "qsv": _Encoder(1, 51, 20, {"global_quality": "{}"}),
    "vaapi": _Encoder(1, 51, 20, {"rc_mode": "CQP", "global_quality": "{}"}),
    "amf": _Encoder(0, 51, 20, {"rc": "cqp", "qp_i": "{}", "qp_p": "{}"}),
    "videotoolbox": _Encoder(100, 1, 65, {"flags": "+qscale", "global_quality": "{}*QP2LAMBDA"}),
}


def check_encoder(path, codec=None, quality=None):
    """Return FFmpeg's name of an encoder and its settings (an `_Encoder`, None where nothing is known of it).

    Args: see `VideoWriter`.

    Raises:
        VideoError: the name's ending is unknown, FFmpeg has no such encoder here, or it has no such quality.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise VideoError(f"cannot write {path}: a video's name ends in one of {', '.join(VIDEO_SUFFIXES)}")
    codec = codec or ("vp9" if suffix == ".webm" else "h264")
    name = _CODECS.get(codec, codec)
    try:
        missing = av.codec.Codec(name, "w").type != "video"
    except av.codec.codec.UnknownCodecError:
        missing = True
    if missing:
        raise VideoError(f"there is no video encoder {codec} on this machine: use one of {_encoders_here()}")
    settings = _ENCODERS.get(name) or _ENCODERS.get(name.rpartition("_")[2])
    if quality is not None and settings is None:
        raise VideoError(f"the quality of {codec} cannot be set here: leave it out")
    if quality is not None:
        low, high = sorted((settings.best, settings.worst))
        if not low <= quality <= high:
            raise VideoError(f"the quality of {codec} is {settings.best} (best) to {settings.worst}, got {quality}")
    return name, settings


def _encoders_here():
    """Which encoders this machine has, for a message: FFmpeg may hold those of hardware that is not there."""
    hardware = [f"{kind}_{maker}" for maker in ("nvenc", "qsv", "amf", "videotoolbox") for kind in ("h264", "hevc")]
    return ", ".join(
        [codec for codec, name in _CODECS.items() if name in av.codecs_available] + [n for n in hardware if _opens(n)]
    )


def _opens(name):
    try:
        context = av.CodecContext.create(name, "w")
        context.width, context.height, context.time_base = 320, 240, Fraction(1, 25)
        context.pix_fmt = _pixel_format(context.codec)
        context.open()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _pixel_format(codec):
    """What to give an encoder: planes, or where it takes none the same in the layout of hardware."""
    names = [form.name for form in codec.video_formats or []]
    return "nv12" if "nv12" in names and "yuv420p" not in names else "yuv420p"


class VideoWriter:
    """Encodes planes to a file: H.264 for .mp4, .m4v, .mov, .mkv and .avi, VP9 for .webm, or another codec.

    Time stamps, colour tags, pixel shape and rotation are those of `video_format`. What else `source` has comes along:
    packets of audio and subtitles bit for bit, or converted with a warning where the container cannot hold them;
    languages, titles and dispositions; in .mkv attachments; the container's tags and chapters. What cannot be kept is
    named in a warning.

    The file appears under its name when the block succeeds, and not at all when it fails, with two exceptions where at
    least one frame was written. After a `KeyboardInterrupt` it ends there, with a warning. After a `VideoError`, which
    is the input's, what came before is in ``NAME_partial``, and the error says so.

    Args:
        path: file to write, replaced if it exists.
        video_format: a `VideoFormat`.
        source: a `VideoReader` opened with ``audio=True``, or None.
        quality: on the encoder's own scale, where lower is better but for videotoolbox; by default 18 (x264), 24 (VP9).
            0 is lossless with x264, x265 and VP9.
        codec: ``"h264"``, ``"hevc"``, ``"av1"``, ``"vp9"``, ``"ffv1"`` (lossless) or FFmpeg's name of an encoder.

    Raises:
        VideoError: the name's ending is unknown, the file cannot be written, or the encoder is missing, does not open,
            does not fit the container or has no such quality.
    """

    def __init__(self, path, video_format, source=None, quality=None, codec=None):
        self._encoder, self._settings = check_encoder(path, codec, quality)
        self.path, self.format, self._source = Path(path), video_format, source
        self.suffix = self.path.suffix.lower()
        self._quality = quality
        self._last_pts, self.frames = None, 0

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(_writing(self.path))
            self._temporary = stack.enter_context(atomic_path(self.path))
            # Audio begins before 0, with what its decoder drops. FFmpeg would move all of an .mkv or .avi for that.
            shift = {} if self.suffix in _QUICKTIME else {"avoid_negative_ts": "disabled"}
            self._container = av.open(
                str(self._temporary.absolute()),
                "w",
                format="mp4" if self.suffix == ".m4v" else None,
                container_options=shift,
            )
            stack.callback(self._container.close)
            self._stream = self._add_video()
            self._tracks = {}
            if self._source:
                self._add_source()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, traceback):
        with self._stack:
            if error is not None and (self.empty or not isinstance(error, (KeyboardInterrupt, VideoError))):
                raise error
            if self.empty:
                raise VideoError(f"cannot write {self.path}: there is no frame")
            finishing = _Worker(functools.partial(self._finish, error is None), "finish")
            interrupt = finishing.through()
            if finishing.failure:
                raise finishing.failure
            if isinstance(error, VideoError):
                partial = self.path.with_name(f"{self.path.stem}_partial{self.path.suffix}")
                os.replace(self._temporary, partial)
                raise VideoError(f"{error}; the {self.frames} frames before are in {partial}") from error
        if error is not None:
            log.warning("%s: interrupted, its first %d frames are kept", self.path, self.frames)
        elif interrupt:
            raise interrupt

    def _finish(self, complete):
        """Write what the encoders still have, and close the file.

        It is done in a thread, so that Ctrl-C cannot break it off: the frames are all there.
        """
        if complete:
            self._mux_audio()
        self._container.mux(self._stream.encode(None))
        for track in self._tracks.values():
            track.flush()
        self._container.close()

    @property
    def empty(self):
        """Whether no frame was written yet."""
        return self.frames == 0

    def write(self, frame):
        """Encode a `Frame`. Without `pts`, it follows the one before at the format's rate."""
        height, width = frame.y.shape
        if (width, height) != (self.format.width, self.format.height):
            raise ValueError(f"expected frames of {self.format.width}x{self.format.height}, got {width}x{height}")
        picture = av.VideoFrame(self._stream.width, self._stream.height, "yuv420p")
        for plane, source in zip(picture.planes, (frame.y, *frame.uv), strict=True):
            target = plane_pixels(plane)
            rows, columns = source.shape
            target[:rows, :columns] = source
            # One row or column more where the encoder wants an even size.
            target[rows:, :columns] = source[-1:]
            target[:, columns:] = target[:, columns - 1 : columns]
        picture.pts = self._next_pts(frame.pts)
        picture.time_base = self._time_base
        if frame.duration:
            picture.duration = max(round(frame.duration * self._scale), 1)
        self._mux_audio(frame.audio_before)
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def _add_video(self):
        form, settings, avi, webm = self.format, self._settings, self.suffix == ".avi", self.suffix == ".webm"
        rate = Fraction(form.rate).limit_denominator(1 << 16)
        source_base = form.time_base or 1 / rate
        if avi:  # it has no time stamps, only the grid of its rate
            rate = Fraction(form.grid_rate or rate).limit_denominator(1 << 16)
        self._time_base = 1 / rate if avi else source_base
        self._scale = source_base / self._time_base
        upload = {"hwaccel": av.codec.hwaccel.HWAccel("vaapi")} if self._encoder.endswith("_vaapi") else {}
        try:
            stream = self._container.add_stream(self._encoder, rate=rate, time_base=self._time_base, **upload)
        except ValueError:
            fitting = [codec for codec, name in _CODECS.items() if name in self._container.supported_codecs]
            raise VideoError(
                f"{self.suffix} does not hold what {self._encoder} writes: use one of {', '.join(fitting)}, or .mkv"
            ) from None
        context = stream.codec_context
        stream.width, stream.height, stream.pix_fmt = form.width, form.height, _pixel_format(context.codec)
        if not (settings and settings.odd) and (form.width % 2 or form.height % 2):
            stream.width, stream.height = form.width + form.width % 2, form.height + form.height % 2
            log.warning(
                "%s: %s needs an even size, so %dx%d becomes %dx%d (the edge is repeated); .webm keeps it",
                *(self.path, self._encoder, form.width, form.height, stream.width, stream.height),
            )
        context.time_base = self._time_base
        context.flags |= av.codec.context.Flags.frame_duration  # else the last frame of a variable rate lasts no time
        context.color_range = form.value_range
        context.colorspace, context.color_primaries, context.color_trc = form.matrix, form.primaries, form.transfer
        if form.pixel_aspect and webm:
            log.warning("%s: WebM cannot keep pixels of %s; an .mp4 keeps them", self.path, form.pixel_aspect)
        elif form.pixel_aspect:
            context.sample_aspect_ratio = form.pixel_aspect
        if form.display_matrix:
            self._set_rotation(stream)
        if avi:
            context.max_b_frames = 0  # frames out of order cannot be told apart without time stamps
        if context.codec.name == "libx265" and self.suffix in _QUICKTIME:
            context.codec_tag = "hvc1"  # Apple's players know no other
        if context.codec.name == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # else it describes itself on the terminal
        stream.options = self._options()
        try:
            context.open()
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(
                f"the encoder {self._encoder} does not open for {stream.width}x{stream.height} on this machine "
                f"({first_line(error)}): use one of {_encoders_here()}"
            ) from error
        return stream

    def _options(self):
        options, settings = {}, self._settings
        if settings:
            quality = settings.default if self._quality is None else self._quality
            chosen = settings.lossless if settings.lossless and quality == settings.best else settings.options
            options = {key: value.format(f"{quality:g}") for key, value in chosen.items()}
        if self.format.chroma_location:
            options["chroma_sample_location"] = self.format.chroma_location
        return options

    def _add_source(self):
        """Add what goes with the pictures, and name what does not."""
        source, lost = self._source, []
        self._container.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _FILE_TAGS})
        _copy_tags(source.video_stream, self._stream)
        for stream in source.tracks:
            try:
                self._tracks[stream.index] = _Track(stream, self._container, self.path)
            except ValueError:
                name = stream.codec_context.name if stream.codec_context else "unknown"
                lost.append(f"{name} {stream.type} ({stream.language or 'no language'})")
        for stream in source.attachments:
            if self.suffix == ".mkv":
                self._container.add_stream_from_template(stream)
            else:
                lost.append(f"attachment {stream.metadata.get('filename', '')}")
        if source.chapters and self.suffix != ".avi":
            self._container.set_chapters(source.chapters)
        elif source.chapters:
            lost.append("chapters")
        covers = av.stream.Disposition.attached_pic
        others = ["cover" if s.disposition & covers else s.type for s in source.other_streams]
        if lost and self.suffix != ".mkv":
            log.warning("%s: not kept, but .mkv would keep it: %s", self.path, ", ".join(sorted(lost)))
            lost = []
        if lost or others:
            log.warning("%s: not kept: %s", self.path, ", ".join(sorted(lost + others)))

    def _set_rotation(self, stream):
        if self.suffix in (".avi", ".webm") or not hasattr(stream, "set_display_matrix"):
            log.warning("%s: the rotation tag cannot be kept in this container; an .mp4 keeps it", self.path)
        else:
            stream.set_display_matrix(self.format.display_matrix)

    def _next_pts(self, pts):
        """`pts` in the writer's time base, moved on where it would not come after the one before."""
        if pts is None:
            step = max(round(1 / self.format.rate / self._time_base), 1)
            pts = 0 if self._last_pts is None else self._last_pts + step
        else:
            pts = round(pts * self._scale)
        if self._last_pts is not None:
            pts = max(pts, self._last_pts + 1)
        self._last_pts = pts
        return pts

    def _mux_audio(self, end=None):
        for packet in self._source.take_audio(end) if self._source else []:
            if packet.stream.index in self._tracks:
                self._tracks[packet.stream.index].write(packet)


class _Track:
    """A track of audio or subtitles on its way into a container: copied, or converted where that cannot hold it.

    Raises:
        ValueError: the container can hold neither it nor what it can be converted to.
    """

    def __init__(self, source, container, path):
        self._source, self._container, self._path = source, container, path
        self._convert, note = None, "%s cannot hold %s %s as it is: it is converted to %s"
        self._avi, self._begun, context = container.format.name == "avi", False, source.codec_context
        try:
            _check_track(source, container.format.name)
            self._stream = _add_copy(source, container)
        except ValueError:
            if context is None:
                raise
            self._stream = self._add_audio(path) if source.type == "audio" else self._add_subtitles(path)
            self._convert = self._convert_audio if source.type == "audio" else self._convert_subtitle
            log.warning(note, path, context.name, source.type, self._stream.codec_context.name)
        _copy_tags(source, self._stream)

    def write(self, packet):
        if self._avi and self._source.type == "audio" and packet.pts is not None and not self._begun:
            begin = packet.pts * packet.time_base
            if begin < -0.1:  # seconds; a trimmed clip's sound before the cut would be heard, as AVI has no time stamps
                return
            if begin > 0.1:
                log.warning(
                    "%s: its sound begins %.1f s too early, as AVI has no time stamps: take .mp4", self._path, begin
                )
            self._begun = True
        if self._convert:
            self._convert(packet)
        elif self._source.type != "subtitle" or bytes(packet) != b"\0\0":  # with which .mp4's writer fills pauses
            packet.stream = self._stream
            self._container.mux(packet)

    def flush(self):
        if self._convert == self._convert_audio:
            self._encode(self._source.decode(None))
            self._container.mux(self._stream.encode(None))

    def _add_audio(self, path):
        context = self._source.codec_context
        codec, rate = ("libopus", 48000) if path.suffix.lower() == ".webm" else ("aac", context.rate)
        stream = self._container.add_stream(codec, rate=rate)
        layout = _layout(context)
        stream.codec_context.layout = "5.1" if layout == "5.1(side)" else layout  # libopus knows no sides
        return stream

    def _add_subtitles(self, path):
        context, codec = self._source.codec_context, _TEXT_SUBTITLES.get(path.suffix.lower())
        if codec is None or not context.codec.text_sub:
            raise ValueError("neither copied nor converted")
        context.open(strict=False)  # the header is there only then
        stream = self._container.add_stream(codec)
        stream.codec_context.subtitle_header = context.subtitle_header
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        return stream

    def _convert_audio(self, packet):
        self._encode(packet.decode())

    def _encode(self, frames):
        for frame in frames:
            self._container.mux(self._stream.encode(frame))

    def _convert_subtitle(self, packet):
        subtitle = self._source.codec_context.decode2(packet)
        if subtitle is None or len(subtitle) == 0:
            return
        text = self._stream.codec_context.encode_subtitle(subtitle)
        text.stream = self._stream
        text.time_base, text.pts, text.dts, text.duration = packet.time_base, packet.pts, packet.pts, packet.duration
        self._container.mux(text)


def _layout(context):
    """The layout of sound; where a file says only how many channels there are (AVI, ASF, PCM), the usual one."""
    usual = {"1 channels": "mono", "2 channels": "stereo", "6 channels": "5.1", "8 channels": "7.1"}
    return usual.get(context.layout.name, context.layout.name)


def _add_copy(source, container):
    """Add a track like `source` to a container, for the same packets; ValueError if it does not know their codec."""
    stream = container.add_stream_from_template(source)
    if source.type == "audio" and source.codec_context:
        stream.codec_context.layout = _layout(source.codec_context)
    return stream


def _check_track(source, container_format):
    """Raise a ValueError where a container could not hold an audio track as it is, by trying one in memory."""
    if source.type != "audio" or source.codec_context is None:
        return
    if container_format == "avi" and source.codec_context.name in ("vorbis", "eac3", "dca"):
        raise ValueError("without time stamps their packets would be taken for other lengths")
    try:
        with av.open(io.BytesIO(), "w", format=container_format) as trial:
            _add_copy(source, trial)
            trial.start_encoding()
    except av.FFmpegError as error:
        raise ValueError(first_line(error)) from error


def _copy_tags(source, stream):
    stream.metadata.update({key: value for key, value in source.metadata.items() if key in _STREAM_TAGS})
    if "name" in source.metadata:  # FFmpeg's reader of .mp4 has another word than its writer
        stream.metadata["title"] = source.metadata["name"]
    stream.disposition = source.disposition


@contextlib.contextmanager
def _writing(path):
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot write {path}: {first_line(error)}") from error


def _usable_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plane_pixels(plane):
    """The pixels ``(H, W)`` uint8 of a plane of a PyAV frame, where they lie."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _seconds(duration, unit):
    return None if duration is None else duration * unit


# ----------------------------------------------------------------------------------------------------------------------
# Reading ahead and writing behind

_END = object()


@contextlib.contextmanager
def read_ahead(items, depth=2, tick=None, patience=2.0):
    """Iterate over `items` in a thread, at most `depth` of them ahead; gives an iterator over the same items::

        with VideoReader("call.mp4") as reader, read_ahead(reader) as frames:
            for frame in frames:
                ...

    What iterating over `items` raises, the iterator raises in its place. The thread alone uses `items`; when the block
    ends, it has ended, and so has the iterator.

    Args:
        tick: seconds after which the iterator gives a None where there is no item; None waits.
        patience: seconds to wait for the thread at the end. One that still waits for its next item then, as for a dead
            server, is left to itself and ends with that.
    """
    waiting, leaving, failures = queue.Queue(depth), threading.Event(), []

    def produce():
        try:
            for item in items:
                waiting.put(item)
                if leaving.is_set():
                    return
        except BaseException as error:  # whatever it is, it is raised in `consume`, which waits for the end
            failures.append(error)
        waiting.put(_END)

    def consume():
        while True:
            try:
                item = waiting.get(timeout=tick)
            except queue.Empty:
                item = None
            if item is _END:
                break
            yield item
        if failures:
            raise failures[0]

    def leave():
        leaving.set()
        with contextlib.suppress(queue.Empty):  # makes room for the one item that the thread may still put
            while True:
                waiting.get_nowait()

    ahead, worker = consume(), _Worker(produce, "read ahead")
    try:
        yield ahead
    finally:
        worker.end(leave, patience)
        ahead.close()  # else iterating on would wait for ever


@contextlib.contextmanager
def write_behind(write, depth=2):
    """Call `write` in a thread, at most `depth` items behind; gives a function that takes an item in its stead.

    What `write` raises, that function raises when it is called next, or the end of the block; then items that still
    wait are dropped, as they are where Ctrl-C ends the block. Where another exception does, they are written. The
    thread alone calls `write`; when the block ends, it has ended.
    """
    waiting, leaving, failures = queue.Queue(depth), threading.Event(), []

    def consume():
        while (item := waiting.get()) is not _END and not leaving.is_set():
            if not failures:
                try:
                    write(item)
                except BaseException as error:  # whatever it is, it is raised in the caller's thread
                    failures.append(error)

    def enqueue(item):
        if failures:
            raise failures[0]
        waiting.put(item)

    def leave():
        leaving.set()
        with contextlib.suppress(queue.Full):  # then an item wakes the thread
            waiting.put_nowait(_END)

    def finish():
        waiting.put(_END)
        worker.wait()

    worker = _Worker(consume, "write behind")
    try:
        try:
            yield enqueue
        except Exception:
            finish()
            raise
        finish()
        if failures:
            raise failures[0]
    finally:
        worker.end(leave)


class _Worker:
    """Does `work` in a thread, whose end can be waited for through Ctrl-C.

    With `threading.Thread.join` it cannot: up to Python 3.12 a thread counts as ended when Ctrl-C interrupts that.

    Attributes:
        failure: what `work` raised, or None.
    """

    def __init__(self, work, name):
        self._work, self._ended, self.failure = work, threading.Event(), None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._work()
        except BaseException as error:  # whatever it is, who waits raises it
            self.failure = error
        finally:
            self._ended.set()

    def wait(self, patience=None):
        """Wait for the end, at most `patience` seconds."""
        if self._ended.wait(patience):
            self._thread.join()

    def end(self, leave, patience=None):
        """Tell the thread to leave and wait for it, even through a further Ctrl-C: what it uses is closed next."""
        try:
            leave()
            self.wait(patience)
        except KeyboardInterrupt:
            self.end(leave, patience)
            raise

    def through(self):
        """Wait for the end whatever is pressed; returns the `KeyboardInterrupt` that came meanwhile, or None."""
        interrupt = None
        while not self._ended.is_set():
            try:
                self._ended.wait()
            except KeyboardInterrupt as error:
                interrupt = error
        return interrupt


_quiet_lock, _quiet_levels = threading.Lock(), []  # OpenCV's level as it was, once for each block that is entered


@contextlib.contextmanager
def quiet_opencv():
    """Keep OpenCV's own messages from the terminal, until the last of the threads in such a block leaves it."""
    with _quiet_lock:
        _quiet_levels.append(_quiet_levels[0] if _quiet_levels else cv2.utils.logging.getLogLevel())
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        with _quiet_lock:
            level = _quiet_levels.pop()
            if not _quiet_levels:
                cv2.utils.logging.setLogLevel(level)


# ----------------------------------------------------------------------------------------------------------------------
# Paths


def existing_file(path):
    """Return `path` as a `Path`, or raise `VideoError` where it is no file with something in it."""
    path = Path(path)
    if path.is_dir():
        raise VideoError(f"{path} is a folder, expected a file")
    if not path.is_file():
        raise VideoError(f"{path} does not exist: check the name")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty: try a fresh copy")
    return path
