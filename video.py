"""Video files and streams: reading and writing frames, with all that accompanies them.

Video files keep their own planes (see `utils`): a frame is decoded to 8-bit YUV 4:2:0 and encoded from it without a
colour conversion in between. Time stamps, colour tags, pixel shape, rotation, audio, subtitles, attachments, chapters
and tags pass through (see `tracks`)::

    with VideoReader("call.mp4", audio=True) as reader, VideoWriter("out.mp4", reader.format, reader) as writer:
        for frame in reader:
            writer.write(frame)

A reader may run in one thread and its writer in another (see `pipeline`).

Files appear under their name when they are complete, never half-written; but Ctrl-C ends a video early under its own
name, and if the input breaks off, what came before is kept as ``NAME_partial``. What goes wrong is a `VideoError`.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import re
import threading
import time
from collections import Counter, deque
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import cv2  # noqa: F401, before av, whose own libxcb would hang OpenCV's windows on Linux

# isort: split
import av
import numpy as np

from images import VideoError, existing_file
from pipeline import run_to_end
from scaling import resize_pixels, resize_planes
from tracks import COVER, copy_tracks
from utils import VIDEO_SUFFIXES, atomic_path, first_line, plural, tqdm, usable_cores, without_password

_MATRIX_BT709, _MATRIX_BT601 = 1, 6  # ITU-T H.273, MatrixCoefficients
_TRANSFER_HDR = {16: "PQ", 18: "HLG"}  # ITU-T H.273, TransferCharacteristics
_RANGE_LIMITED, _RANGE_FULL = 1, 2  # FFmpeg's AVColorRange; 0 is unspecified and means limited

# Colour tags of what `utils.bgr_to_planes` and `utils.to_limited_range` make.
BT601_LIMITED = {"value_range": _RANGE_LIMITED, "matrix": _MATRIX_BT601, "primaries": 6, "transfer": 6}
_TONE_MAPPING = "-vf zscale=t=linear:npl=100,tonemap=hable,zscale=t=bt709:m=bt709:p=bt709:r=tv,format=yuv420p"
_UNCONVERTED = ("yuv420p", "yuvj420p", "nv12", "nv21")  # 8-bit 4:2:0: nothing is lost
_ARRIVAL_UNIT = Fraction(1, 1000)  # seconds
_CONTAINER_UNIT = Fraction(1, 10**6)  # seconds, of a container's times
_GAP, _BACK = 10, 0.5  # seconds forward, or back, between packets of a stream: it was joined from two
_MAX_ASPECT = 8  # of a pixel; beyond that, a file is damaged
_QUICKTIME = (".mp4", ".m4v", ".mov")
_CHANGING_FORMATS = ("matroska,webm", "mpegts", "mpeg", "flv")  # whose headers do not tell all sizes and rates

# Files may come from strangers. Their size is checked before memory is allocated, and they are read as nothing but
# video, whatever their names say: FFmpeg would open what a playlist names.
MAX_VIDEO_SIDE = 1 << 13  # 8,192
_VIDEO_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,h264,hevc,obu,av1,m4v,vc1,mjpeg,dv,rm,wtv,"
    "yuv4mpegpipe,gif"
)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VideoFormat:
    """What all frames of a video share.

    Attributes:
        width, height: in pixels.
        rate: frames per second (a `Fraction`; the average if it varies).
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

    @property
    def turned(self):
        """Whether width and height change places where a frame is shown."""
        return self.display_matrix is not None and abs(self.display_matrix[1]) > abs(self.display_matrix[0])

    def upright(self, pixels):
        """Return a view of pixels ``(H, W)`` or ``(H, W, 3)`` as they are to be shown: turned and mirrored."""
        if self.display_matrix is None:
            return pixels
        a, b, _, c, d = self.display_matrix[:5]
        if self.turned:
            pixels, a, d = np.swapaxes(pixels, 0, 1), c, b
        return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


@dataclasses.dataclass
class Frame:
    """One frame: ``y (H, W)``, ``uv (2, ceil(H/2), ceil(W/2))`` uint8; `pts`, `duration` in time base units or None.

    `packets` are those of audio and subtitles that were met in the file since the frame before.
    """

    y: np.ndarray
    uv: np.ndarray
    pts: int | None = None
    duration: int | None = None
    packets: list = ()


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def open_video(path):
    """Open a video file as PyAV's container; what it names, such as a playlist's files and addresses, is not opened.

    Raises:
        av.FFmpegError, OSError: it cannot be read.
    """
    only = {"format_whitelist": _VIDEO_FORMATS, "protocol_whitelist": "file"}
    # FFmpeg would take the beginning of a relative path with a colon for a protocol.
    return av.open(str(Path(path).absolute()), options=only, metadata_errors="replace")


class VideoReader:
    """Iterates over a video file's or stream's frames: every `Frame` once, in the order of display.

    8-bit YUV 4:2:0 comes out as it was coded, without what the container crops. With a warning, other 8-bit formats are
    converted to it, with range and matrix kept, interlaced frames are made progressive, frames of another size are
    scaled (to the largest if `audio` is read, too, else to the first; of another aspect, they get black bars), and
    packets that cannot be decoded are gaps.

    Args:
        source: path or URL.
        audio: give frames the packets of audio and subtitles, for a `VideoWriter`.

    Attributes:
        format: the `VideoFormat`.
        packets: of audio and subtitles after the last frame; empty before the iteration has ended.
        frame_count: estimated number of frames, or None if unknown.
        live: whether it is a stream from an address, without a known end. If its format has no time stamps of its own
            (MJPEG of network cameras), frames get the times of their arrival.
        pixel_format: FFmpeg's name of what the file holds.
        video_stream, tracks, attachments, other_streams: PyAV's streams: the video (the default one), what is
            collected, the files within the file, and what is left out.
        changing: indices of the streams of sound whose rate or channels change on the way.
        metadata, chapters: of the container, as PyAV gives them.

    Raises:
        VideoError: it cannot be opened, has no video, has more than `MAX_VIDEO_SIDE` pixels a side, or holds what 8-bit
            planes cannot (10 bits, HDR, transparency); while iterating: it ends too early, or most of it is damaged.
    """

    def __init__(self, source, audio=False):
        self.source, self._remote = str(source), "://" in str(source)
        self.name = without_password(self.source)
        self._busy, self._closed = threading.Lock(), False
        self._container = self._open()
        try:
            self._choose_streams(audio)
            self._check_streams()
            self._rate = self.video_stream.average_rate or self.video_stream.guessed_rate or Fraction(25)
            self.frame_count = self._estimate_count()
            self.packets, self._packets = [], []  # those met since the last frame
            surveyed = audio and not self._remote and self._container.format.name in _CHANGING_FORMATS
            self._largest, self.changing = self._survey() if surveyed else ((0, 0), ())
            self._timeline = _Timeline(self._container, self.video_stream, self.live)
            frames = self._decode()
            first = next(frames, None)
            if first is None:
                raise VideoError(f"{self.name} holds no frame that can be decoded: it is damaged or incomplete")
            self._check_size(first.width, first.height)
            self._check_pixel_format(first)
            self.pixel_format = first.format.name
            self.format = self._read_format(first)
            self._frames = itertools.chain([first], frames)
        except BaseException:
            self._container.close()
            raise

    def __iter__(self):
        if self._frames is None:
            raise RuntimeError("a VideoReader can be iterated over once: open another for a second pass")
        frames, self._frames = self._frames, None
        while True:
            with self._busy:
                decoded = None if self._closed else next(frames, None)  # of a freed container it would crash
                packets, self._packets = self._packets, []
                if decoded is None:
                    self.packets = packets
                    return
                frame = Frame(*self._fit(decoded), decoded.pts, decoded.duration or None, packets)
            yield frame

    def to_bgr(self, y, uv):
        """Convert planes of any size to a picture ``(H, W, 3)`` uint8 BGR as players show it.

        It is upright, has the colours that the tags say and square pixels: it is stretched, never shrunk.
        """
        picture = av.VideoFrame(*y.shape[::-1], "yuv420p")
        for plane, source in zip(picture.planes, (y, *uv), strict=True):
            plane_pixels(plane)[...] = source
        picture.colorspace, picture.color_range = self.format.matrix, self.format.value_range
        pixels, aspect = picture.to_ndarray(format="bgr24"), self.format.pixel_aspect or 1
        height, width = y.shape
        size = (2 * round(width * aspect / 2), height) if aspect > 1 else (width, 2 * round(height / aspect / 2))
        return np.ascontiguousarray(self.format.upright(pixels if aspect == 1 else resize_pixels(pixels, size)))

    def close(self):
        """Release the file; if a thread still waits for the next frame, the end of that thread does it."""
        self._closed = True
        if self._busy.acquire(timeout=0.5):
            self._container.close()
            self._busy.release()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _open(self):
        try:
            if self._remote:  # seconds for opening and for each read: a dead server must not hang the call
                return av.open(self.source, timeout=(10, 30))
            return open_video(existing_file(self.source))
        except (av.FFmpegError, OSError) as error:
            cause = "it is damaged, incomplete or something else; try a fresh copy"
            cause = "check the address" if self._remote else cause
            raise VideoError(f"{self.name} cannot be read as a video ({first_line(error)}): {cause}") from error

    def _choose_streams(self, audio):
        container, streams = self._container, self._container.streams
        video = [stream for stream in streams.video if not stream.disposition & COVER]
        if not video:
            raise VideoError(f"{self.name} has no video stream")
        self.video_stream = next((s for s in video if s.disposition & av.stream.Disposition.default), video[0])
        tracks = [stream for stream in streams if stream.type in ("audio", "subtitle")]
        self.tracks, self.attachments = tracks if audio else [], list(streams.attachments)
        self.metadata = dict(container.metadata)
        self.chapters = [chapter for chapter in container.chapters() if 0 <= chapter["start"] <= chapter["end"]]
        kept = {stream.index for stream in (self.video_stream, *tracks, *self.attachments)}
        kept |= {stream.index for stream in streams.data if self.chapters}  # in .mp4 the chapters' text
        self.other_streams = [stream for stream in streams if stream.index not in kept]
        endless = not (self.video_stream.frames or self.video_stream.duration or container.duration)
        self.live = self._remote and not self.source.startswith("file:") and endless
        self._description = _describe_container(container)

    def describe(self, stream):
        """Return words for a stream of the file, such as ``sound track 2 (aac, eng)``."""
        kind = "cover" if stream.disposition & COVER else {"audio": "sound"}.get(stream.type, stream.type)
        alike = [other.index for other in self._container.streams if other.type == stream.type]
        tag = re.search(rf"Stream #0:{stream.index}\b.*?\((\w{{4}}) / 0x", self._description)
        codec = stream.codec_context.codec.canonical_name if stream.codec_context else tag and tag[1]
        details = ", ".join(filter(None, (codec, stream.language if stream.language != "und" else None)))
        return f"{kind} track {alike.index(stream.index) + 1}" + (f" ({details})" if details else "")

    def _check_streams(self):
        """Refuse what can be refused before decoding, and limit what the decoder may use."""
        stream = self.video_stream
        if stream.codec_context is None:
            raise VideoError(f"{self.name} holds video of an unknown kind: it is damaged, or convert it to H.264 first")
        self._check_size(stream.width, stream.height)
        # FFmpeg would read a cut .mp4 or .mov whose index came first as if it ended there.
        ends = [entry.pos + entry.size for entry in stream.index_entries]
        self._cut = bool(ends) and not self._remote and max(ends) > Path(self.source).stat().st_size
        stream.codec_context.options = {"max_pixels": str(MAX_VIDEO_SIDE**2)}  # if a frame has another size
        # A thread for each frame holds that back, which delays a live stream. In a file, half of the cores are for
        # sharpening and encoding.
        stream.thread_type = "SLICE" if self._remote else "AUTO"
        stream.codec_context.thread_count = min(max(1, usable_cores() // 2), 8)

    def _check_size(self, width, height):
        if max(width, height) > MAX_VIDEO_SIDE:
            raise VideoError(
                f"{self.name} is too large ({width}x{height}): at most {MAX_VIDEO_SIDE}x{MAX_VIDEO_SIDE} pixels can "
                "be read; scale it down first"
            )

    def _check_pixel_format(self, frame):
        pixels, transfer = frame.format, int(frame.color_trc)
        bits, advice = max(part.bits for part in pixels.components), "-pix_fmt yuv420p"
        if transfer in _TRANSFER_HDR:
            reason, advice = f"HDR video ({_TRANSFER_HDR[transfer]})", _TONE_MAPPING
        elif bits > 8:
            reason = f"{bits}-bit video"
        elif any(part.is_alpha for part in pixels.components) or pixels.has_palette or pixels.is_bayer:
            reason = "video with transparency or a palette"
        else:
            return
        raise VideoError(
            f"{self.name}: {reason} ({pixels.name}) is not supported yet; convert it to 8-bit yuv420p first: "
            f"ffmpeg -i INPUT {advice} OUTPUT"
        )

    def _read_format(self, frame):
        unconverted = self.pixel_format in _UNCONVERTED
        if not unconverted:
            log.warning("%s: %s is converted to 8-bit yuv420p", self.name, self.pixel_format)
        if self.video_stream.metadata.get("alpha_mode") == "1":
            log.warning("%s: its transparency is not kept", self.name)
        grid, aspect = self.video_stream.guessed_rate, self.video_stream.sample_aspect_ratio
        rotation = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
        own = self._description.partition(f"Stream #0:{self.video_stream.index}")[2].partition("Stream #")[0]
        width, height = max((frame.width, frame.height), self._largest, key=np.prod)
        self._uncropped = width, height
        crop = re.search(r"Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", own)
        left, right, top, bottom = map(int, crop.groups()) if crop else (0, 0, 0, 0)
        if top + bottom >= height or left + right >= width:
            top = bottom = left = right = 0
        self._crop = left, top
        chroma_location = re.search(r"\A.*[(, ](left|center|topleft|top|bottomleft|bottom)\)", own)
        return VideoFormat(
            width=width - left - right,
            height=height - top - bottom,
            rate=self._rate,
            time_base=self._timeline.time_base,
            grid_rate=grid if grid and self._rate < grid <= 240 else None,  # a guess of FFmpeg's, at times absurd
            **_color_tags(frame),
            pixel_aspect=aspect if aspect and aspect != 1 and 1 / _MAX_ASPECT < aspect < _MAX_ASPECT else None,
            display_matrix=tuple(np.frombuffer(rotation, np.int32).tolist()) if rotation else None,
            chroma_location=chroma_location[1] if chroma_location and unconverted else None,
        )

    def _fit(self, frame):
        """Return the planes of PyAV's frame at the video's size: scaled, between black bars, and cropped."""
        y, uv = _to_planes(frame, self.format)
        size, (left, top) = self._uncropped, self._crop
        if y.shape[::-1] != size:
            scale = min(size[0] / y.shape[1], size[1] / y.shape[0])
            inner = tuple(
                min(2 * round(scale * side / 2), whole) for side, whole in zip(y.shape[::-1], size, strict=True)
            )
            y, uv = _centred(*resize_planes(y, uv, inner, self.format.chroma_location), size, self.format.full_range)
        rows, columns = slice(top, top + self.format.height), slice(left, left + self.format.width)
        halves = (
            slice(part.start // 2, part.start // 2 + (part.stop - part.start + 1) // 2) for part in (rows, columns)
        )
        return np.ascontiguousarray(y[rows, columns]), np.ascontiguousarray(uv[:, *halves])

    def _survey(self):
        """Read through a file: return the largest size of its keyframes, and the sound whose rate or channels change.

        Of the sound, an eighth is decoded. A bar shows what is done if it takes more than two seconds.
        """
        sizes, forms = {(0, 0)}, Counter()
        with contextlib.suppress(av.FFmpegError, IndexError), open_video(self.source) as container:
            video, sound = container.streams[self.video_stream.index], container.streams.audio
            video.codec_context.options, video.codec_context.thread_count = {"max_pixels": str(MAX_VIDEO_SIDE**2)}, 1
            packets = container.demux(video, *(stream for stream in sound if stream.codec_context))
            bar = {"desc": "looking for changes of size and sound", "unit": " packets", "delay": 2, "leave": False}
            for number, packet in enumerate(tqdm(packets, **bar, disable=None)):
                with contextlib.suppress(av.FFmpegError):
                    if packet.stream is video and packet.is_keyframe and packet.size:
                        packet.decode()
                        sizes.add((video.codec_context.width, video.codec_context.height))
                    elif packet.stream is not video and number % 8 == 0:
                        forms.update(
                            (packet.stream.index, f.sample_rate, f.layout.nb_channels) for f in packet.decode()
                        )
        largest = max((size for size in sizes if max(size) <= MAX_VIDEO_SIDE), key=np.prod)
        # A frame or two of another form are damage.
        lasting = Counter(index for (index, *_), number in forms.items() if number > 2)
        return largest, {index for index, number in lasting.items() if number > 1}

    def _estimate_count(self):
        stream = self.video_stream
        seconds = (stream.duration or 0) * stream.time_base or (self._container.duration or 0) * _CONTAINER_UNIT
        return stream.frames or round(seconds * self._rate) or None

    def _decode(self):
        """Yield the frames as PyAV's, progressive and at their times; a `VideoError` says why that fails."""
        try:
            yield from _deinterlaced(self._timed_frames(), self.video_stream, self.name)
        except av.ExitError as error:
            raise VideoError(f"{self.name} sends nothing any more: check the connection") from error
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.name} is damaged or incomplete ({first_line(error)}): try a fresh copy") from error

    def _timed_frames(self):
        """Yield the frames at their times. A packet that cannot be decoded is a gap, as in players."""
        number, kind, captions, gaps, damaged = 0, None, False, [], []
        for packet in self._video_packets():
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if packet.size:
                    gaps.append(self._timeline.end)
                continue
            for frame in frames:
                self._timeline.stamp(frame)
                time, number = frame.pts * self._timeline.time_base, number + 1
                damaged += [time] if frame.is_corrupt else []
                before, kind = kind, f"{frame.width}x{frame.height} {frame.format.name}"
                if before not in (None, kind):
                    log.warning("%s changes from %s to %s near %s: scaled", self.name, before, kind, _clock(time))
                # To look at a frame's side data keeps it in memory until Python next searches for cycles.
                looked_at = not captions and number % 25 == 1
                if looked_at and any(data.type.name == "A53_CC" for data in frame.side_data):
                    captions = True
                    log.warning("%s: closed captions within its video are not kept", self.name)
                yield frame
        self._report(number, gaps, damaged)

    def _report(self, number, gaps, damaged):
        """Warn of damage and an early end; raise `VideoError` if there is more of it than of the video."""
        for times, what in ((gaps, "could not be decoded"), (damaged, "damaged: parts of them are guessed")):
            if times:
                places = ", ".join(dict.fromkeys(map(_clock, times[:5]))) + (" ..." if len(times) > 5 else "")
                log.warning("%s: %s %s, near %s", self.name, plural(len(times), "frame"), what, places)
        if len(gaps) > number > 0:
            raise VideoError(f"{self.name} is damaged for the most part: try a fresh copy")
        if self._cut and self.video_stream.frames:
            raise VideoError(f"{self.name} is incomplete: its index names data beyond its end; try a fresh copy")
        # FFmpeg reads other files that were cut off as if they ended there. Of audio that is not read, the duration
        # may be that of the file.
        told = self._container.format.name in ("avi", "matroska,webm")
        told = told and (self.tracks or not self._container.streams.audio)
        declared = (self.frame_count or 0) / self._rate if told else 0
        if number and (self._cut or declared - self._timeline.end > max(1, declared / 20)):
            log.warning("%s ends early: %d of about %s", self.name, number, plural(self.frame_count or 0, "frame"))

    def _video_packets(self):
        """Yield the packets of video; collect those of the tracks."""
        # PyAV raises IndexError if streams came up on the way.
        with contextlib.suppress(IndexError, *[av.InvalidDataError] * self._cut):
            for packet in self._container.demux(self.video_stream, *self.tracks):
                self._timeline.add(packet)
                if packet.stream.index == self.video_stream.index:
                    yield packet
                elif packet.size:  # the empty packet at the end only flushes decoders
                    self._packets.append(packet)
        flushing = av.Packet()
        flushing.stream = self.video_stream
        yield flushing


class _Timeline:
    """Makes one timeline of the time stamps of packets, and sets those of frames that are missing or wrong.

    Attributes:
        time_base: of the frames, in seconds.
        end: of the packets added so far, in seconds.
    """

    def __init__(self, container, stream, live):
        untimed = container.format.flags & av.format.Flags.no_timestamps.value
        self._opened = time.monotonic() if live and untimed else None
        self._stream, self._avi = stream, container.format.name == "avi"
        # Only there may times jump forward where parts were joined; elsewhere that is a long pause.
        self._broadcast = container.format.name in ("mpegts", "mpeg")
        self.time_base = stream.time_base if self._opened is None else _ARRIVAL_UNIT
        self._shifts = [-max((container.start_time or 0) * _CONTAINER_UNIT, 0)]  # seconds, of each part
        self._latest = {}  # for each stream, its part and time in seconds
        self._first, self._delay, self._previous_pts, self.end = None, None, None, 0

    def add(self, packet):
        """Move a packet of a stream that begins late, or anew where parts were joined, to follow those before."""
        if packet.dts is None:
            return
        unit, newest = packet.stream.time_base, len(self._shifts) - 1
        seconds = packet.dts * unit
        part, last = self._latest.get(packet.stream.index, (newest, seconds))
        if packet.stream.type == "subtitle":
            part = newest
        elif not -_BACK <= seconds - last <= _GAP:
            if part < newest:  # another stream came to the next part before
                part += 1
            elif seconds < last or (self._broadcast and seconds + self._shifts[part] > self.end + _GAP):
                self._shifts.append(self.end - seconds)
                part += 1
        self._latest[packet.stream.index] = part, seconds
        shift = round(self._shifts[part] / unit)
        packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
        if packet.stream.index == self._stream.index and self._first is None:
            self._first = packet.dts
        self.end = max(self.end, (packet.dts + (packet.duration or 0)) * unit)

    def stamp(self, frame):
        """Set the time stamp of a frame that has none or, in AVI, a wrong one; of an untimed stream, its arrival."""
        if self._opened is not None:
            frame.pts, frame.duration = round((time.monotonic() - self._opened) / _ARRIVAL_UNIT), 0
            frame.time_base = _ARRIVAL_UNIT
        step = max(round(1 / (self._stream.average_rate or Fraction(25)) / self._stream.time_base), 1)
        if self._avi:  # it has no other times than the order of its packets
            if self._delay is None and frame.dts is not None:  # the decoder's, if the first frames are not damaged
                reordered = self._stream.codec_context.has_b_frames
                self._delay = min(frame.dts - self._first, (reordered + 1) * step if reordered else 0)
            frame.pts = None if frame.dts is None else frame.dts - self._delay
        if frame.pts is None:
            frame.pts = 0 if self._previous_pts is None else self._previous_pts + step
        self._previous_pts = frame.pts


def _clock(seconds):
    return f"{int(seconds // 60):02}:{float(seconds % 60):04.1f}"


def _deinterlaced(frames, stream, name):
    """Pass frames on; from the first interlaced one on through FFmpeg's bwdif: a frame for a frame, at its time."""
    graph, times, form = None, deque(), None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if graph is None:
            log.warning("%s is interlaced: its fields are made into whole frames (bwdif)", name)
        found = {"width": frame.width, "height": frame.height, "format": frame.format.name}
        if found != form:
            yield from _filtered(graph, None, times)
            graph, form = av.filter.Graph(), found
            bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
            source = graph.add_buffer(**found, time_base=stream.time_base)
            graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
        times.append((frame.pts, frame.duration, frame.time_base))
        yield from _filtered(graph, frame, times)
    yield from _filtered(graph, None, times)


def _filtered(graph, frame, times):
    """Give a frame to a filter graph, None at the end, and yield those that are ready."""
    if graph is None:
        return
    graph.push(frame)
    with contextlib.suppress(av.BlockingIOError, av.EOFError):
        while True:
            ready = graph.pull()
            ready.pts, ready.duration, ready.time_base = times.popleft()
            yield ready


def _to_planes(frame, video_format):
    """Convert an 8-bit frame of PyAV's to planes, at the range and matrix of its `VideoFormat`."""
    if frame.format.name == "gray":  # swscale would take it for full range whatever its tag says
        chroma = np.full((2, (frame.height + 1) // 2, (frame.width + 1) // 2), 128, np.uint8)
        return plane_pixels(frame.planes[0]).copy(), chroma
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        value_range = _RANGE_FULL if video_format.full_range else _RANGE_LIMITED
        frame = frame.reformat(
            format="yuv420p",
            src_colorspace=video_format.matrix,
            dst_colorspace=video_format.matrix,
            src_color_range=_RANGE_FULL if frame.format.is_rgb else value_range,
            dst_color_range=value_range,
        )
    return plane_pixels(frame.planes[0]).copy(), np.stack([plane_pixels(plane) for plane in frame.planes[1:]])


def _centred(y, uv, size, full_range):
    """Put planes in the middle of black ones of a larger size (width, height); bars have even sides."""
    height, width = y.shape
    left, top = ((whole - side) // 4 * 2 for whole, side in zip(size, (width, height), strict=True))
    whole_y = np.full(size[::-1], 0 if full_range else 16, np.uint8)
    whole_uv = np.full((2, (size[1] + 1) // 2, (size[0] + 1) // 2), 128, np.uint8)
    whole_y[top : top + height, left : left + width] = y
    whole_uv[:, top // 2 : top // 2 + uv.shape[1], left // 2 : left // 2 + uv.shape[2]] = uv
    return whole_y, whole_uv


def _color_tags(frame):
    """Return the colour tags of the planes that `_to_planes` makes of a frame, as in `VideoFormat`."""
    value_range, matrix = int(frame.color_range), int(frame.colorspace)
    if frame.format.is_rgb:
        value_range, matrix = _RANGE_LIMITED, _MATRIX_BT709 if frame.height >= 720 else _MATRIX_BT601
    elif frame.format.name.startswith("yuvj"):
        value_range = _RANGE_FULL
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    return {"value_range": value_range, "matrix": matrix, "primaries": primaries, "transfer": transfer}


def _describe_container(container):
    """Return FFmpeg's verbose description of a file; only there PyAV tells chroma location, cropping and tags."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.VERBOSE)
    av.logging.set_libav_level(av.logging.VERBOSE)
    try:
        return container.dumps_format()
    finally:
        av.logging.set_libav_level(av.logging.INFO)
        av.logging.set_level(level)


def plane_pixels(plane):
    """Return the pixels ``(H, W)`` uint8 of a plane of a PyAV frame, without copying them."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


# ----------------------------------------------------------------------------------------------------------------------
# Encoders


class Encoder(NamedTuple):
    """How an encoder is set: qualities on its own scale, and options in which ``{}`` stands for the quality."""

    best: int
    worst: int
    default: int
    options: dict
    lossless: dict | None = None  # options to use instead if the best quality loses nothing
    odd: bool = False  # whether it takes odd sizes

    def options_at(self, quality):
        """Return the options for a quality; None is the default."""
        quality = self.default if quality is None else quality
        chosen = self.lossless if self.lossless and quality == self.best else self.options
        return {key: value.format(f"{quality:g}") for key, value in chosen.items()}


_CODECS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "ffv1": "ffv1"}
_X264, _X265 = {"preset": "veryfast"}, {"preset": "fast", "x265-params": "log-level=error"}
_VP9 = {"deadline": "realtime", "cpu-used": "6", "row-mt": "1"}
_ENCODERS = {  # by name, or by what a hardware encoder's name ends in
    "libx264": Encoder(0, 51, 18, {"crf": "{}", **_X264}, {"qp": "0", **_X264}),
    "libx265": Encoder(0, 51, 20, {"crf": "{}", **_X265}, _X265 | {"x265-params": "lossless=1:log-level=error"}),
    "libsvtav1": Encoder(1, 63, 24, {"crf": "{}", "preset": "8"}, odd=True),
    "libvpx-vp9": Encoder(0, 63, 24, {"crf": "{}", "b": "0", **_VP9}, {"lossless": "1", **_VP9}, odd=True),
    "ffv1": Encoder(0, 0, 0, {"level": "3"}, odd=True),
    "nvenc": Encoder(1, 51, 19, {"rc": "vbr", "cq": "{}", "b": "0"}),
    "qsv": Encoder(1, 51, 20, {"global_quality": "{}"}),
    "vaapi": Encoder(1, 51, 20, {"rc_mode": "CQP", "global_quality": "{}"}),
    "amf": Encoder(0, 51, 20, {"rc": "cqp", "qp_i": "{}", "qp_p": "{}"}),
    "videotoolbox": Encoder(100, 1, 65, {"flags": "+qscale", "global_quality": "{}*QP2LAMBDA"}),
}


def check_encoder(path, codec=None, quality=None):
    """Return FFmpeg's name of an encoder and its `Encoder`, None if nothing is known of it.

    Args: see `VideoWriter`.

    Raises:
        VideoError: the suffix of the name is unknown, FFmpeg has no such encoder here, or it has no such quality.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise VideoError(f"cannot write {path}: a video's name ends in one of {', '.join(VIDEO_SUFFIXES)}")
    codec = codec or ("vp9" if suffix == ".webm" else "h264")
    name = _CODECS.get(codec, codec)
    try:
        found = av.codec.Codec(name, "w").type == "video"
    except av.codec.codec.UnknownCodecError:
        found = False
    if not found:
        raise VideoError(
            f"there is no video encoder {codec} on this machine: use one of {_list_codecs(av.codecs_available)}"
        )
    settings = _ENCODERS.get(name) or _ENCODERS.get(name.rpartition("_")[2])
    if quality is not None:
        if settings is None:
            raise VideoError(f"the quality of {codec} cannot be set here: leave it out")
        low, high = sorted((settings.best, settings.worst))
        if not low <= quality <= high:
            raise VideoError(f"the quality of {codec} is {settings.best} (best) to {settings.worst}, got {quality}")
    return name, settings


def _list_codecs(available):
    return ", ".join(codec for codec, name in _CODECS.items() if name in available)


# ----------------------------------------------------------------------------------------------------------------------
# Writing


class VideoWriter:
    """Encodes planes to a file: H.264 for .mp4, .m4v, .mov, .mkv and .avi, VP9 for .webm, or another codec.

    Time stamps, colour tags, pixel shape and rotation are those of `video_format`. What accompanies the pictures of
    `source` comes along: packets of audio and subtitles bit for bit, or converted with a warning if the container
    cannot hold them; languages, titles and dispositions; in .mkv attachments; the container's tags and chapters. A
    warning names what cannot be kept.

    The file appears under its name when the block succeeds, and not at all when it fails, with two exceptions if at
    least one frame was written. After a `KeyboardInterrupt` it ends there, with a warning. After a `VideoError`, which
    is the input's, what came before is in ``NAME_partial``, and the error says so.

    Args:
        path: file to write, replaced if it exists.
        video_format: a `VideoFormat`.
        source: a `VideoReader` opened with ``audio=True``, or None.
        quality: on the encoder's own scale, on which lower is better except for videotoolbox; by default 18 (x264),
            24 (VP9). 0 is lossless with x264, x265 and VP9.
        codec: ``"h264"``, ``"hevc"``, ``"av1"``, ``"vp9"``, ``"ffv1"`` (lossless) or FFmpeg's name of an encoder.

    Raises:
        VideoError: the suffix of the name is unknown, the file cannot be written, or the encoder is missing, does not
            open, does not fit the container or has no such quality.
    """

    def __init__(self, path, video_format, source=None, quality=None, codec=None):
        self._encoder, self._settings = check_encoder(path, codec, quality)
        self.path, self.format, self._source, self._quality = Path(path), video_format, source, quality
        self._suffix = self.path.suffix.lower()
        self._tracks, self._last_pts, self._frames = {}, None, 0
        # AVI has no time stamps, only the grid of its rate.
        rate = video_format.grid_rate if self._suffix == ".avi" and video_format.grid_rate else video_format.rate
        self._rate = Fraction(rate).limit_denominator(1 << 16)
        source_base = video_format.time_base or 1 / Fraction(video_format.rate).limit_denominator(1 << 16)
        self._time_base = 1 / self._rate if self._suffix == ".avi" else source_base
        self._scale = source_base / self._time_base

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(_writing(self.path))
            self._temporary = stack.enter_context(atomic_path(self.path))
            # Audio begins before 0, with what its decoder drops. FFmpeg would move all of an .mkv or .avi for that.
            options = {} if self._suffix in _QUICKTIME else {"avoid_negative_ts": "disabled"}
            tags = self._source.metadata if self._source else {}
            if self._suffix in _QUICKTIME and any(key.startswith("com.") for key in tags):
                options["movflags"] = "use_metadata_tags"  # else Apple's location, date and maker are lost
            kind, name = "mp4" if self._suffix == ".m4v" else None, str(self._temporary.absolute())
            self._container = av.open(name, "w", format=kind, container_options=options)
            stack.callback(self._container.close)
            self._stream = self._add_stream()
            self._set_tags()
            self._open_encoder()
            if self._source:
                self._tracks = copy_tracks(self._source, self._container, self._stream, self.path)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, traceback):
        run_to_end(functools.partial(self._end, error))

    def write(self, frame):
        """Encode a `Frame`. Without `pts`, it follows the one before at the format's rate."""
        height, width = frame.y.shape
        if (width, height) != (self.format.width, self.format.height):
            raise ValueError(f"expected frames of {self.format.width}x{self.format.height}, got {width}x{height}")
        picture = av.VideoFrame(self._stream.width, self._stream.height, "yuv420p")
        for plane, source in zip(picture.planes, map(self._upright, (frame.y, *frame.uv)), strict=True):
            target = plane_pixels(plane)
            rows, columns = source.shape
            target[:rows, :columns] = source
            # One row or column more if the encoder needs an even size.
            target[rows:, :columns] = source[-1:]
            target[:, columns:] = target[:, columns - 1 : columns]
        self._last_pts = self._pts_of(frame)
        picture.pts, picture.time_base = self._last_pts, self._time_base
        if frame.duration:
            picture.duration = max(round(frame.duration * self._scale), 1)
        self._write_tracks(frame.packets)
        self._container.mux(self._stream.encode(picture))
        self._frames += 1

    def _upright(self, plane):
        return self.format.upright(plane) if self._turned else plane

    def _pts_of(self, frame):
        """The time stamp of the next frame in the writer's time base, later than the one before."""
        if frame.pts is not None:
            pts = round(frame.pts * self._scale)
        elif self._last_pts is None:
            pts = 0
        else:
            pts = self._last_pts + max(round(1 / self.format.rate / self._time_base), 1)
        return pts if self._last_pts is None else max(pts, self._last_pts + 1)

    def _write_tracks(self, packets):
        for packet in packets:
            if packet.stream.index in self._tracks:
                self._tracks[packet.stream.index].write(packet)

    def _end(self, error):
        """Complete the file, keep its beginning or remove it, depending on the error that ended the block."""
        with self._stack:
            if error is not None and not (self._frames and isinstance(error, (KeyboardInterrupt, VideoError))):
                raise error
            if not self._frames:
                raise VideoError(f"cannot write {self.path}: there is no frame")
            if error is None and self._source:
                self._write_tracks(self._source.packets)
            self._container.mux(self._stream.encode(None))
            for track in self._tracks.values():
                track.flush()
            self._container.close()
            if isinstance(error, VideoError):
                partial = self.path.with_name(f"{self.path.stem}_partial{self.path.suffix}")
                os.replace(self._temporary, partial)
                raise VideoError(f"{error}; the {plural(self._frames, 'frame')} before are in {partial}") from error
        if error is not None:
            log.warning("%s: interrupted, its first %s are kept", self.path, plural(self._frames, "frame"))

    def _add_stream(self):
        upload = {"hwaccel": av.codec.hwaccel.HWAccel("vaapi")} if self._encoder.endswith("_vaapi") else {}
        try:
            stream = self._container.add_stream(self._encoder, rate=self._rate, time_base=self._time_base, **upload)
        except ValueError:
            fitting = _list_codecs(self._container.supported_codecs)
            raise VideoError(
                f"{self._suffix} does not hold what {self._encoder} writes: use one of {fitting}, or .mkv"
            ) from None
        # AVI and WebM cannot say that a picture is turned or mirrored.
        unknown = self._suffix in (".avi", ".webm") or not hasattr(stream, "set_display_matrix")
        self._turned = self.format.display_matrix is not None and unknown
        height, width = self._upright(np.empty((self.format.height, self.format.width))).shape
        stream.width, stream.height = width, height
        if not (self._settings and self._settings.odd) and (width % 2 or height % 2):
            stream.width, stream.height = width + width % 2, height + height % 2
            log.warning(
                "%s: %s needs an even size, so %dx%d becomes %dx%d (the edge is repeated); .webm keeps it",
                *(self.path, self._encoder, width, height, stream.width, stream.height),
            )
        return stream

    def _set_tags(self):
        context, tags = self._stream.codec_context, self.format
        context.color_range, context.colorspace = tags.value_range, tags.matrix
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        if tags.pixel_aspect and self._suffix == ".webm":
            log.warning("%s: WebM cannot keep pixels of %s; an .mp4 keeps them", self.path, tags.pixel_aspect)
        elif tags.pixel_aspect:
            context.sample_aspect_ratio = 1 / tags.pixel_aspect if self._turned and tags.turned else tags.pixel_aspect
        if tags.display_matrix is not None and not self._turned:
            self._stream.set_display_matrix(tags.display_matrix)

    def _open_encoder(self):
        stream, context = self._stream, self._stream.codec_context
        context.time_base = self._time_base
        context.flags |= av.codec.context.Flags.frame_duration  # else the last frame of a variable rate lasts no time
        if self._suffix == ".avi":
            context.max_b_frames = 0  # frames out of order cannot be told apart without time stamps
        accepted = [pixels.name for pixels in context.codec.video_formats or []]
        # Some hardware takes the same planes only in another layout.
        stream.pix_fmt = "nv12" if "nv12" in accepted and "yuv420p" not in accepted else "yuv420p"
        if context.codec.name == "libx265" and self._suffix in _QUICKTIME:
            context.codec_tag = "hvc1"  # Apple's players know no other
        if context.codec.name == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # else it describes itself on the terminal
        options = self._settings.options_at(self._quality) if self._settings else {}
        if self.format.chroma_location:
            options["chroma_sample_location"] = self.format.chroma_location
        stream.options = options
        try:
            context.open()
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(
                f"the encoder {self._encoder} does not open for {stream.width}x{stream.height} on this machine "
                f"({first_line(error)}): use one of {_list_codecs(av.codecs_available)}"
            ) from error


@contextlib.contextmanager
def _writing(path):
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot write {path}: {first_line(error)}") from error
