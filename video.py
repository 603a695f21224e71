"""Read and write video files and streams, frame by frame.

Frames are decoded to the planes of 8-bit YUV 4:2:0 (see `utils`) and encoded from them, without a colour conversion.
Time stamps, colour tags, pixel shape, audio, subtitles, attachments, chapters and tags are kept (see `tracks`)::

    with VideoReader("call.mp4", audio=True) as reader, VideoWriter("out.mp4", reader.format, reader) as writer:
        for frame in reader:
            writer.write(frame)

A reader may run in one thread and its writer in another (see `pipeline`). All errors are `VideoError`.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
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
from tqdm import tqdm

from images import VideoError, existing_file
from pipeline import Worker
from scaling import resize_pixels
from tracks import COVER, copy_tracks
from utils import VIDEO_SUFFIXES, atomic_path, first_line, open_encoder, plural, usable_cores, without_password

_MATRIX_BT709, _MATRIX_BT601 = 1, 6  # ITU-T H.273, MatrixCoefficients
_TRANSFER_HDR = {16: "PQ", 18: "HLG"}  # ITU-T H.273, TransferCharacteristics
_RANGE_LIMITED, _RANGE_FULL = 1, 2  # FFmpeg's AVColorRange; 0 is unspecified and means limited

# Colour tags of what `utils.bgr_to_planes` and `utils.to_limited_range` make.
BT601_LIMITED = {"value_range": _RANGE_LIMITED, "matrix": _MATRIX_BT601, "primaries": 6, "transfer": 6}
_TONE_MAPPING = "-vf zscale=t=linear:npl=100,tonemap=hable,zscale=t=bt709:m=bt709:p=bt709:r=tv,format=yuv420p"
_UNCONVERTED = ("yuv420p", "yuvj420p", "nv12", "nv21")  # 8-bit 4:2:0: nothing is lost
_ARRIVAL_UNIT = Fraction(1, 1000)  # seconds
_CONTAINER_UNIT = Fraction(1, 10**6)  # seconds, of a container's times
_FORWARD, _BACK = 10, 0.5  # a stream whose packets jump by more seconds was joined from two
_LASTING = 3  # packets of sound of another form in a row are no damage
_TRIES = 100  # how often to read on after a packet that FFmpeg cannot read
_UNREAD, _GAP = ("packet", "could not be read"), ("frame", "could not be decoded")
_GUESSED = ("frame", "damaged: parts of them are guessed")
_ONE_FRAME_EACH = ("h264", "hevc")  # codecs whose packets hold a frame each, unless they are interlaced
_WRONG_TIMES = ("avi", "asf")  # containers without the time at which a packet's frame is shown
_CAPTIONS, _CAPTIONS_WITHIN = b"GA94\x03", 4096  # ATSC A/53; they come before the picture, in its first bytes
_MAX_ASPECT, _MAX_RATE = 8, 1000  # of a pixel and of frames per second; beyond that, a file is damaged
_QUICKTIME = (".mp4", ".m4v", ".mov")
_CHANGING_FORMATS = ("matroska,webm", "mpegts", "mpeg", "flv")  # sizes and rates may change after the header

# Files may come from strangers: sizes are limited, and playlists, which could name any file, are not read.
MAX_VIDEO_SIDE = 1 << 13  # 8,192
_LIMITS = {"max_pixels": str(MAX_VIDEO_SIDE**2)}  # for the decoder, if frames are larger than the header says
_VIDEO_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,h264,hevc,obu,av1,m4v,vc1,mjpeg,dv,rm,wtv,"
    "yuv4mpegpipe,gif"
)
_STREAM_FORMATS = f"{_VIDEO_FORMATS},mpjpeg,rtsp,sdp,rtp,live_flv"

log = logging.getLogger(__name__)
_describing = threading.Lock()  # PyAV's level of messages is the whole process's


@dataclasses.dataclass(frozen=True)
class VideoFormat:
    """The properties that all frames of a video share.

    Attributes:
        width, height: in pixels.
        rate: frames per second (a `Fraction`; the average if it varies).
        time_base: unit of time stamps in seconds; None for ``1 / rate``.
        value_range: 2 is full range (luma 0-255), 1 limited range (16-235), 0 unspecified, which means limited.
        matrix, primaries, transfer: colour tags as in ITU-T H.273; 2 is unspecified.
        pixel_aspect: width to height of a pixel, or None for square or unknown.
        chroma_location: position of chroma samples, as FFmpeg names it (``"left"``, ``"topleft"`` ...), or None.
    """

    width: int
    height: int
    rate: Fraction
    time_base: Fraction | None = None
    value_range: int = 0
    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    pixel_aspect: Fraction | None = None
    chroma_location: str | None = None

    @property
    def full_range(self):
        """Whether luma spans 0-255 instead of 16-235."""
        return self.value_range == _RANGE_FULL


@dataclasses.dataclass
class Frame:
    """One frame: ``y (H, W)``, ``uv (2, ceil(H/2), ceil(W/2))`` uint8; `pts`, `duration` in time base units or None.

    `packets` holds the audio and subtitle packets between the previous frame and this one.
    """

    y: np.ndarray
    uv: np.ndarray
    pts: int | None = None
    duration: int | None = None
    packets: list = ()


def open_video(path):
    """Open a video file as a PyAV container. Files and addresses that it names are not opened.

    Raises:
        av.FFmpegError, OSError: it cannot be read.
    """
    only = {"format_whitelist": _VIDEO_FORMATS, "protocol_whitelist": "file"}
    # An absolute path: FFmpeg would take a relative one with a colon for an address.
    return av.open(str(Path(path).absolute()), options=only, metadata_errors="replace")


class VideoReader(contextlib.AbstractContextManager):
    """Iterates over the frames of a video file or stream: every `Frame` once, in display order.

    8-bit YUV 4:2:0 is returned as coded, but cropped, rotated and mirrored as the container says. With a warning, other
    8-bit formats are converted to it (range and matrix stay), interlaced frames are deinterlaced, frames of another
    size are scaled (to the largest if `audio`, else to the first, with black bars if the aspect differs), and packets
    that cannot be decoded leave gaps.

    Args:
        source: path or URL.
        audio: also read audio and subtitle packets into `Frame.packets`, for a `VideoWriter`.

    Attributes:
        format: the `VideoFormat`.
        packets: audio and subtitle packets after the last frame.
        frame_count: estimated number of frames, or None if unknown.
        live: whether it comes from an address and has no known end. If its format has no time stamps (MJPEG of network
            cameras), frames are stamped with their times of arrival.
        video_stream, tracks, other_streams: PyAV's streams: the default video, those to copy if `audio`, the rest.
        changing: indices of the audio streams whose codec, rate or channels change midway.
        metadata, chapters: the container's.

    Raises:
        VideoError: it cannot be opened, has no video, is larger than `MAX_VIDEO_SIDE`, or does not fit 8-bit planes
            (10 bits, HDR, transparency); while iterating: it ends too early, or most of it is damaged.
    """

    def __init__(self, source, audio=False):
        self.source, self._remote = str(source), "://" in str(source)
        self.name = without_password(self.source)
        self._busy, self._closed = threading.Lock(), False
        with self._reading("cannot be read as a video", "try a fresh copy, or name another file"):
            if self._remote:  # seconds for opening and for each read: a dead server must not hang the call
                self._container = av.open(self.source, options={"format_whitelist": _STREAM_FORMATS}, timeout=(10, 30))
            else:
                self._container = open_video(existing_file(self.source))
        try:
            self._choose_streams(audio)
            surveyed = audio and not self._remote and self._container.format.name in _CHANGING_FORMATS
            self._largest, self.changing = self._survey() if surveyed else ((0, 0), ())
            self._timeline = _Timeline(self._container, self.video_stream, self.live)
            self.packets, self._faults = [], {_UNREAD: [], _GAP: [], _GUESSED: []}  # times in seconds
            frames = self._decode()
            with self._reading():
                first = next(frames, None)
            if first is None:
                raise VideoError(f"{self.name} holds no frame that can be decoded: it is damaged or incomplete")
            self.format = self._read_format(first)
            self._frames = self._shaped(itertools.chain([first], frames))
        except BaseException:
            self._container.close()
            raise

    def __iter__(self):
        if self._frames is None:
            raise RuntimeError("a VideoReader can be iterated over once: open another for a second pass")
        frames, self._frames = self._frames, None
        while True:
            with self._busy, self._reading():
                decoded = None if self._closed else next(frames, None)  # of a freed container it would crash
                if decoded is None:
                    return
                packets, self.packets = self.packets, []
                frame = Frame(*_to_planes(decoded, self.format), decoded.pts, decoded.duration or None, packets)
            yield frame

    def to_bgr(self, y, uv):
        """Convert planes of any size, by the colour tags, to ``(H, W, 3)`` uint8 BGR with square pixels."""
        picture = av.VideoFrame(*y.shape[::-1], "yuv420p")
        for plane, source in zip(picture.planes, (y, *uv), strict=True):
            plane_pixels(plane)[...] = source
        picture.colorspace, picture.color_range = self.format.matrix, self.format.value_range
        pixels, aspect = picture.to_ndarray(format="bgr24"), self.format.pixel_aspect or 1
        stretch = max(aspect, 1), max(1 / aspect, 1)
        size = [2 * round(k * side / 2) if k > 1 else side for k, side in zip(stretch, y.shape[::-1], strict=True)]
        return resize_pixels(pixels, size)

    def close(self):
        """Release the file, unless a thread still waits for a frame: then it is released when that thread ends."""
        self._closed = True
        if self._busy.acquire(timeout=0.5):
            self._container.close()
            self._busy.release()

    def __exit__(self, *error):
        self.close()

    def describe(self, stream):
        """Name a stream of the file, as in ``sound track 2 (aac, eng)``."""
        if stream.type == "attachment":
            return f"attachment {stream.metadata.get('filename', '')}"
        kind = "cover" if stream.disposition & COVER else {"audio": "sound"}.get(stream.type, stream.type)
        alike = [other.index for other in self._container.streams if other.type == stream.type]
        if stream.codec_context:
            codec = stream.codec_context.codec.canonical_name
        else:
            tag = re.search(r"\((\w{4}) / 0x", self.read_description(stream))
            codec = tag and tag[1]
        details = ", ".join(filter(None, (codec, stream.language if stream.language != "und" else None)))
        return f"{kind} track {alike.index(stream.index) + 1}" + (f" ({details})" if details else "")

    def read_description(self, stream):
        """Return FFmpeg's verbose description of a stream, with chroma location, cropping, tag and channels' order."""
        with _describing:
            level = av.logging.get_level()
            av.logging.set_level(av.logging.VERBOSE)
            av.logging.set_libav_level(av.logging.VERBOSE)
            try:
                text = self._container.dumps_format().partition(f"Stream #0:{stream.index}")[2]
            finally:
                av.logging.set_libav_level(av.logging.INFO)
                av.logging.set_level(level)
        return text.partition("Stream #")[0]

    def _reading(self, what="is damaged or incomplete", hint="try a fresh copy"):
        if self._remote:
            what, hint = "sends nothing that can be read", "check the address and the connection"
        return _explained(f"{self.name} {what} (", f"): {hint}")

    def _choose_streams(self, audio):
        """Choose the streams, refuse what can be refused before decoding, and limit the decoder."""
        container, streams = self._container, self._container.streams
        video = [stream for stream in streams.video if not stream.disposition & COVER]
        if not video:
            raise VideoError(f"{self.name} has no video stream: name another file")
        video = [stream for stream in video if stream.codec_context]
        if not video:
            raise VideoError(f"{self.name} holds video of an unknown kind: try a fresh copy, or convert it to H.264")
        stream = next((s for s in video if s.disposition & av.stream.Disposition.default), video[0])
        self.metadata = dict(container.metadata)
        self.chapters = [chapter for chapter in container.chapters() if 0 <= chapter["start"] <= chapter["end"]]
        kinds = ("audio", "subtitle", "attachment")
        self.video_stream, self.tracks = stream, [other for other in streams if audio and other.type in kinds]
        known = ("data", *kinds) if self.chapters else kinds  # in .mp4, data is the chapters' text
        self.other_streams = [other for other in streams if other is not stream and other.type not in known]
        self._rate = _plausible_rate(stream.average_rate, stream.guessed_rate)
        self._seconds = (stream.duration or 0) * stream.time_base or (container.duration or 0) * _CONTAINER_UNIT
        if container.format.name == "matroska,webm":  # its duration counts from 0
            self._seconds = max(self._seconds - max(container.start_time or 0, 0) * _CONTAINER_UNIT, 0)
        self.frame_count = stream.frames or round(self._seconds * self._rate) or None
        self.live = self._remote and not self.source.startswith("file:") and self.frame_count is None
        if max(stream.width, stream.height) > MAX_VIDEO_SIDE:
            came, most = f"{stream.width}x{stream.height}", f"{MAX_VIDEO_SIDE}x{MAX_VIDEO_SIDE}"
            raise VideoError(f"{self.name} is too large ({came}): at most {most} pixels are read; scale it down first")
        stream.codec_context.options = _LIMITS
        stream.thread_type = "SLICE" if self._remote else "AUTO"  # frame threads would delay a live stream
        stream.codec_context.thread_count = min(max(1, usable_cores() // 2), 8)  # the others sharpen and encode

    def _survey(self):
        """Return the largest size of a file's keyframes, and the audio streams whose codec, rate or channels change."""
        largest, forms, met, failed = (0, 0), Counter(), Counter(), Counter()
        bar = {"desc": "looking for changes of size and sound", "unit": " packets", "delay": 2, "leave": False}
        with contextlib.suppress(av.FFmpegError, IndexError), open_video(self.source) as container:
            video = container.streams[self.video_stream.index]
            video.codec_context.options, video.codec_context.thread_count = _LIMITS, 1
            sound = [stream for stream in container.streams.audio if stream.codec_context]
            for packet in tqdm(container.demux(video, *sound), **bar, disable=None):
                index = packet.stream.index
                met[index] += 1
                new = packet.has_sidedata("new_extradata")  # a header
                if packet.stream is not video and (new or met[index] % 8 == 0):  # an eighth is enough, and fast
                    try:
                        for frame in packet.decode():
                            forms[index, frame.sample_rate, frame.layout.nb_channels] += _LASTING if new else 1
                        failed[index] = 0
                    except av.FFmpegError:
                        failed[index] += 1
                        forms[index, "another codec"] = max(forms[index, "another codec"], failed[index])
                elif packet.stream is video and packet.is_keyframe and packet.size:
                    with contextlib.suppress(av.FFmpegError):
                        packet.decode()
                    size = video.codec_context.width, video.codec_context.height
                    largest = max(largest, size, key=np.prod) if max(size) <= MAX_VIDEO_SIDE else largest
        lasting = [index for (index, *_), number in forms.items() if number >= _LASTING]
        return largest, {index for index in lasting if lasting.count(index) > 1}

    def _video_packets(self):
        """Yield the packets of video, then None to flush the decoder; collect those of the other tracks.

        FFmpeg stops at a packet that it cannot read, but goes on after it if asked again. Only an error that no packet
        follows is raised.
        """
        tries, failure = 0, None  # since the last packet
        while tries <= (1 if self._remote else _TRIES):
            try:
                for packet in self._container.demux(self.video_stream, *self.tracks):
                    self._timeline.add(packet)
                    if not packet.size:  # PyAV's last ones, too, which flush decoders
                        continue
                    if tries:
                        self._faults[_UNREAD].append(self._timeline.now)
                    tries, failure = 0, None
                    if packet.stream.index == self.video_stream.index:
                        yield packet
                    else:
                        self.packets.append(packet)
            except IndexError:  # PyAV's, if streams came up on the way
                pass
            except av.InvalidDataError as error:
                failure = error
            tries += 1
        yield None
        if failure:
            raise failure

    def _decode(self):
        """Yield frames with time stamps. A packet that cannot be decoded leaves a gap, as in players."""
        number, kind, captioned, errors, sent, came = 0, None, False, [], set(), set()  # the last two hold times
        context, container = self.video_stream.codec_context, self._container.format.name
        one_each = context.name in _ONE_FRAME_EACH and container not in _WRONG_TIMES and not self.live
        for packet in self._video_packets():
            # Each look at a frame's `side_data` would keep the frame until the next garbage collection.
            if packet and not captioned and _CAPTIONS in bytes(memoryview(packet)[:_CAPTIONS_WITHIN]):
                log.warning("%s: closed captions within its video are not kept", self.name)
                captioned = True
            if packet and one_each and packet.pts is not None and not packet.is_discard:
                sent.add(packet.pts)
            try:
                frames = self.video_stream.decode(packet)
            except av.FFmpegError:
                if packet:
                    errors.append(self._timeline.now)
                continue
            for frame in frames:
                self._timeline.stamp(frame)
                one_each = one_each and not frame.interlaced_frame
                if one_each:
                    came.add(frame.pts)
                time, number = frame.pts * self._timeline.time_base, number + 1
                if frame.is_corrupt:
                    self._faults[_GUESSED].append(time)
                before, kind = kind, f"{frame.width}x{frame.height} {frame.format.name}"
                if before != kind:
                    self._check_pixel_format(frame)
                    if before:
                        log.warning("%s changes from %s to %s near %s: scaled", self.name, before, kind, _clock(time))
                yield frame
        # Some frames are dropped without an error. Before the first one, a healthy stream may be incomplete, too.
        first = -math.inf if errors else min(came, default=math.inf)
        lost = sorted(pts for pts in sent - came if one_each and pts > first)
        self._faults[_GAP] = max([pts * self.video_stream.time_base for pts in lost], errors, key=len)
        self._report(number)

    def _report(self, number):
        """Warn of damage and of an early end; raise `VideoError` if most of the video is lost."""
        for (noun, what), times in self._faults.items():
            if times:
                places = ", ".join(dict.fromkeys(map(_clock, times[:5]))) + (" ..." if len(times) > 5 else "")
                log.warning("%s: %s %s, near %s", self.name, plural(len(times), noun), what, places)
        if len(self._faults[_GAP]) > number > 0:
            raise VideoError(f"{self.name} is damaged for the most part: try a fresh copy")
        stream, timeline, kind = self.video_stream, self._timeline, self._container.format.name
        if "mp4" in kind:  # an edit list may leave out frames, and the duration may be wrong: it takes both
            told, missing = timeline.count != stream.frames, self._seconds - timeline.length
            tolerance = 1.5 / self._rate
        else:  # the duration may be that of audio that is not read
            told = kind in ("avi", "matroska,webm") and (self.tracks or not self._container.streams.audio)
            missing = (self.frame_count or 0) / self._rate - timeline.end
            tolerance = max(1, timeline.end / 20)
        if number and told and missing > tolerance:
            of = f"{number} of about " if number < self.frame_count else ""
            frames = of + plural(max(self.frame_count, number), "frame")
            if "mp4" in kind and timeline.count < stream.frames:
                raise VideoError(f"{self.name} is incomplete: it ends early, after {frames}; try a fresh copy")
            log.warning("%s ends early: %s", self.name, frames)

    def _check_pixel_format(self, frame):
        pixels, parts, hdr = frame.format, frame.format.components, _TRANSFER_HDR.get(int(frame.color_trc))
        bits = max(part.bits for part in parts)
        reasons = []
        if hdr:
            reasons.append(f"HDR video ({hdr})")
        if bits > 8:
            reasons.append(f"{bits}-bit video")
        if any(part.is_alpha for part in parts) or pixels.has_palette or pixels.is_bayer:
            reasons.append("video with transparency or a palette")
        if reasons:
            command = f"ffmpeg -i INPUT {_TONE_MAPPING if hdr else '-pix_fmt yuv420p'} OUTPUT"
            what = f"{self.name}: {', '.join(reasons)} ({pixels.name}) is not supported yet"
            raise VideoError(f"{what}; convert it to 8-bit yuv420p first: {command}")

    def _read_format(self, frame):
        pixels, value_range, matrix = frame.format, int(frame.color_range), int(frame.colorspace)
        if pixels.is_rgb:  # `_to_planes` chooses these
            value_range, matrix = _RANGE_LIMITED, _MATRIX_BT709 if frame.height >= 720 else _MATRIX_BT601
        elif pixels.name.startswith("yuvj"):
            value_range = _RANGE_FULL
        if pixels.name not in _UNCONVERTED:
            log.warning("%s: %s is converted to 8-bit yuv420p", self.name, pixels.name)
        if self.video_stream.metadata.get("alpha_mode") == "1":
            log.warning("%s: its transparency is not kept", self.name)
        beside = {data.type.name: bytes(data) for data in frame.side_data}
        description = self.read_description(self.video_stream)
        width, height = self._uncropped = max((frame.width, frame.height), self._largest, key=np.prod)
        crop = re.search(r"Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", description)
        left, right, top, bottom = map(int, crop.groups()) if crop else (0, 0, 0, 0)
        if top + bottom >= height or left + right >= width:
            left = right = top = bottom = 0
        width, height = width - left - right, height - top - bottom
        self._to_upright = [("crop", f"{width}:{height}:{left}:{top}:exact=1")]
        aspect = self.video_stream.sample_aspect_ratio or 1
        aspect = aspect if 1 / _MAX_ASPECT < aspect < _MAX_ASPECT else 1
        site = re.search(r"\A.*[(, ](left|center|topleft|top|bottomleft|bottom)\)", description)
        site = site[1] if site and pixels.name in _UNCONVERTED else None
        if "DISPLAYMATRIX" in beside:
            a, b, _, c, d = np.frombuffer(beside["DISPLAYMATRIX"], np.int32)[:5]
            if abs(b) > abs(a):
                self._to_upright.append(("transpose", "cclock_flip"))
                a, d, width, height, aspect = c, b, height, width, 1 / aspect
            self._to_upright += [("hflip",)] * bool(a < 0) + [("vflip",)] * bool(d < 0)
            site = "center"  # the nearest that has a name
        colors = value_range, matrix, int(frame.color_primaries), int(frame.color_trc)
        aspect = aspect if aspect != 1 else None
        return VideoFormat(width, height, self._rate, self._timeline.time_base, *colors, aspect, site)

    def _shaped(self, frames):
        """Yield frames deinterlaced, of one size (with black bars if the aspect differs), and upright."""
        graph, form, interlaced, times = None, None, False, deque()
        for frame in frames:
            if frame.interlaced_frame and not interlaced:
                log.warning("%s is interlaced: its fields are made into whole frames (bwdif)", self.name)
            interlaced |= frame.interlaced_frame
            last, form = form, (frame.width, frame.height, frame.format.name, interlaced)
            if form != last:
                if graph:
                    yield from _filtered(graph, None, times)
                graph = self._make_graph(*form)
            times.append((frame.pts, frame.duration))
            yield from _filtered(graph, frame, times)
        yield from _filtered(graph, None, times)

    def _make_graph(self, width, height, pixel_format, interlaced):
        filters, size = [("bwdif", "deint=interlaced:mode=send_frame")] * interlaced, "{}:{}".format(*self._uncropped)
        if (width, height) != self._uncropped:
            filters.append(("scale", f"{size}:force_original_aspect_ratio=decrease:force_divisible_by=2:flags=bicubic"))
            filters.append(("pad", f"{size}:-1:-1"))
        filters += self._to_upright
        graph = av.filter.Graph()
        source = graph.add_buffer(width=width, height=height, format=pixel_format, time_base=self._timeline.time_base)
        graph.link_nodes(source, *(graph.add(*each) for each in filters), graph.add("buffersink")).configure()
        return graph


class _Timeline:
    """Joins the time stamps of packets into one timeline, and corrects those of frames.

    Attributes:
        time_base: of the frames, in seconds.
        now, end: time of the newest packet and end of all so far, in seconds.
        count, length: number of video packets, and the seconds that they and a pause before them last.
    """

    def __init__(self, container, stream, live):
        untimed = container.format.flags & av.format.Flags.no_timestamps.value
        self._opened = time.monotonic() if live and untimed else None
        self._stream, self._avi = stream, container.format.name == "avi"
        self._broadcast = container.format.name in ("mpegts", "mpeg")  # elsewhere, a jump forward is a long pause
        self.time_base = stream.time_base if self._opened is None else _ARRIVAL_UNIT
        start = (container.start_time or 0) * _CONTAINER_UNIT  # negative if a broadcast's clock overflows on the way
        self._shift = -start if self._broadcast else -max(start, 0)  # seconds, of the newest part
        self._latest = {}  # for each stream, its shift and time in seconds
        # The average counts the empty packets that AVI may have between others.
        rate = stream.guessed_rate if self._avi else _plausible_rate(stream.average_rate, stream.guessed_rate)
        self._step = max(round(1 / (rate or 25) / stream.time_base), 1)
        self._first, self._begin, self._delay, self._following_pts = None, 0, None, 0
        self.now = self.end = self.count = self.length = 0

    def add(self, packet):
        """Shift a packet in time to follow those before it, if the file begins late or was joined from parts."""
        unit = packet.stream.time_base
        shift, last = self._latest.get(packet.stream.index, (self._shift, None))
        seconds = None if packet.dts is None else packet.dts * unit  # None: Matroska's first ones with B-frames
        if packet.stream.type == "subtitle":
            shift = self._shift
        elif None not in (seconds, last) and not -_BACK <= seconds - last <= _FORWARD:
            joint = seconds < last or (self._broadcast and seconds + shift > self.end + _FORWARD)
            if joint and shift == self._shift:  # else another stream has already reached this part
                self._shift = self.end - seconds
            shift = self._shift
        ticks = round(shift / unit)
        packet.pts = None if packet.pts is None else packet.pts + ticks
        if seconds is None:
            return
        self._latest[packet.stream.index] = shift, seconds
        packet.dts += ticks
        shown, duration = packet.dts if packet.pts is None else packet.pts, (packet.duration or 0) * unit
        self.now, self.end = max(shown * unit, 0), max(self.end, packet.dts * unit + duration)
        if packet.stream.index == self._stream.index:
            self._first = packet.dts if self._first is None else self._first
            self._begin = min(self._begin, seconds)
            self.count, self.length = self.count + 1, seconds + duration - self._begin

    def stamp(self, frame):
        """Set a time stamp that is missing or, in AVI, wrong; in an untimed stream, to the time of arrival."""
        if self._opened is not None:
            frame.pts, frame.duration = round((time.monotonic() - self._opened) / _ARRIVAL_UNIT), 0
        elif self._avi and frame.dts is not None:  # AVI has only the order of its packets
            if self._delay is None:  # the decoder's; it looks longer if the first frames are damaged
                reordered = self._stream.codec_context.has_b_frames
                self._delay = min(frame.dts - self._first, (reordered + 1) * self._step if reordered else 0)
            frame.pts = frame.dts - self._delay
        elif self._avi or frame.pts is None:
            frame.pts = self._following_pts
        self._following_pts = frame.pts + self._step


def _plausible_rate(*rates):
    """Return the first rate that a video may have: FFmpeg gives 60,000 frames per second for DV."""
    return next((rate for rate in rates if rate and rate <= _MAX_RATE), Fraction(25))


def _clock(seconds):
    return f"{int(seconds // 60):02}:{float(seconds % 60):04.1f}"


def _filtered(graph, frame, times):
    """Push a frame, or None at the end, into a filter graph; yield the frames that are ready, at their times."""
    graph.push(frame)
    with contextlib.suppress(av.BlockingIOError, av.EOFError):
        while True:
            ready = graph.pull()
            ready.pts, ready.duration = times.popleft()
            yield ready


@contextlib.contextmanager
def _explained(before, after=""):
    """Turn errors of FFmpeg and the system into `VideoError`, with these words around their message."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{before}{first_line(error)}{after}") from error


def _to_planes(frame, video_format):
    """Convert an 8-bit PyAV frame to planes of the range and matrix of its `VideoFormat`."""
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        # swscale takes grey for full range whatever its tag says.
        value_range = _RANGE_FULL if video_format.full_range or frame.format.name == "gray" else _RANGE_LIMITED
        frame = frame.reformat(
            format="yuv420p",
            src_colorspace=video_format.matrix,
            dst_colorspace=video_format.matrix,
            src_color_range=_RANGE_FULL if frame.format.is_rgb else value_range,
            dst_color_range=value_range,
        )
    return plane_pixels(frame.planes[0]).copy(), np.stack([plane_pixels(plane) for plane in frame.planes[1:]])


def plane_pixels(plane):
    """Return a plane of a PyAV frame as a view ``(H, W)`` uint8."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


class Codec(NamedTuple):
    """FFmpeg's encoder, its quality scale (option ``crf``), its other options, and whether it takes odd sizes."""

    encoder: str
    best: int
    worst: int
    default: int
    options: dict
    odd: bool = False


_CODECS = {
    # `superfast` with a lookahead takes two thirds of the time of `veryfast`; files are up to a fifth larger.
    "h264": Codec("libx264", 0, 51, 18, {"preset": "superfast", "x264-params": "mbtree=1:rc-lookahead=10"}),
    "hevc": Codec("libx265", 0, 51, 20, {"preset": "fast", "x265-params": "log-level=error"}),
    "av1": Codec("libsvtav1", 1, 63, 24, {"preset": "8"}, odd=True),
    "vp9": Codec("libvpx-vp9", 0, 63, 24, {"b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}, odd=True),
    "ffv1": Codec("ffv1", 0, 0, 0, {"level": "3"}, odd=True),  # lossless
}


def check_encoder(path, codec=None, quality=None):
    """Return the `Codec` for a file, see `VideoWriter`.

    Raises:
        VideoError: the suffix or the codec is unknown, or the quality is off the codec's scale.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise VideoError(f"cannot write {path}: a video's name ends in one of {', '.join(VIDEO_SUFFIXES)}")
    name = codec or ("vp9" if suffix == ".webm" else "h264")
    found = _CODECS.get(name)
    if found is None or found.encoder not in av.codecs_available:
        raise VideoError(f"there is no video encoder {name} on this machine: use one of {_list(av.codecs_available)}")
    if quality is not None and not found.best <= quality <= found.worst:
        raise VideoError(f"the quality of {name} is {found.best} (best) to {found.worst}, got {quality}")
    return found


def _list(available):
    return ", ".join(name for name, codec in _CODECS.items() if codec.encoder in available)


class VideoWriter:
    """Encodes planes to a file: H.264 for .mp4, .m4v, .mov, .mkv and .avi, VP9 for .webm, or another codec.

    Time stamps, colour tags and pixel shape are those of `video_format`. Audio, subtitles and the like of `source` are
    copied, see `tracks`; a warning names what cannot be kept.

    The file appears when the block succeeds. If the block fails there is none; but after a `KeyboardInterrupt` or a
    `VideoError` (of the input), frames written so far are kept as ``NAME_partial``, and a warning or the error says so.

    Args:
        path: file to write, replaced if it exists.
        video_format: a `VideoFormat`.
        source: a `VideoReader` opened with ``audio=True``, or None.
        quality: on the codec's own scale, on which lower is better; by default 18 (H.264), 24 (VP9). 0 is lossless
            with H.264 and VP9.
        codec: ``"h264"``, ``"hevc"``, ``"av1"``, ``"vp9"`` or ``"ffv1"`` (lossless).

    Raises:
        VideoError: as in `check_encoder`; or the file cannot be written, or its encoder does not suit it or open.
    """

    def __init__(self, path, video_format, source=None, quality=None, codec=None):
        self._codec = check_encoder(path, codec, quality)
        self.path, self.format, self._source, self._quality = Path(path), video_format, source, quality
        self._suffix = self.path.suffix.lower()
        self._tracks, self._left_out, self._last_pts, self._frames = {}, 0, -math.inf, 0
        rate = self._rate = Fraction(video_format.rate).limit_denominator(1 << 16)
        source_base = self._time_base = video_format.time_base or 1 / rate
        if self._suffix == ".avi":  # it has no time stamps: all frames must lie on the grid of its rate
            grid = source and source.video_stream.guessed_rate  # FFmpeg's guess is sometimes absurd
            self._rate = grid.limit_denominator(1 << 16) if grid and rate < grid <= 240 else rate
            self._time_base = 1 / self._rate
        self._scale = source_base / self._time_base
        self._step = max(round(1 / rate / self._time_base), 1)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(_explained(f"cannot write {self.path}: "))
            self._temporary = stack.enter_context(atomic_path(self.path))
            # Audio begins before 0, with samples that its decoder drops. FFmpeg would shift an .mkv or .avi by them.
            options = {} if self._suffix in _QUICKTIME else {"avoid_negative_ts": "disabled"}
            tags = self._source.metadata if self._source else {}
            if self._suffix in _QUICKTIME and any(key.lower().startswith("com.") for key in tags):
                options["movflags"] = "use_metadata_tags"  # Apple's location, date and maker
            kind, name = "mp4" if self._suffix == ".m4v" else None, str(self._temporary.absolute())
            self._container = av.open(name, "w", format=kind, container_options=options)
            stack.callback(self._container.close)
            self._stream = self._open_encoder()
            if self._source:
                self._tracks = copy_tracks(self._source, self._container, self._stream, self.path)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, traceback):
        Worker(lambda: self._end(error), "end of file").wait()  # in a thread, which Ctrl-C does not interrupt

    def write(self, frame):
        """Encode a `Frame`. Without `pts`, it follows the previous one at the format's rate."""
        height, width = frame.y.shape
        if (width, height) != (self.format.width, self.format.height):
            raise ValueError(f"expected frames of {self.format.width}x{self.format.height}, got {width}x{height}")
        picture = av.VideoFrame(self._stream.width, self._stream.height, "yuv420p")
        for plane, source in zip(picture.planes, (frame.y, *frame.uv), strict=True):
            target = plane_pixels(plane)
            more = [(0, size - given) for size, given in zip(target.shape, source.shape, strict=True)]
            target[...] = np.pad(source, more, "edge")  # by a row or column if the encoder needs an even size
        following = max(self._last_pts + self._step, 0)
        pts = following if frame.pts is None else round(frame.pts * self._scale)
        picture.pts = self._last_pts = max(pts, self._last_pts + 1)
        picture.time_base = self._time_base
        if frame.duration:
            picture.duration = max(round(frame.duration * self._scale), 1)
        self._write_tracks(frame.packets)
        self._mux(self._stream.encode(picture))
        self._frames += 1

    def _mux(self, packets):
        for packet in packets:
            with self._tracks_may_fail():
                self._container.mux(packet)

    @contextlib.contextmanager
    def _tracks_may_fail(self):
        """Leave out a damaged packet of a track that waited for the picture, and fails only now that it is written."""
        try:
            yield
        except av.InvalidDataError:
            if not self._tracks:
                raise
            self._left_out += 1

    def _drain(self):
        """Let the packets that wait fail one by one: at the end, the first failure would cost what waits behind it."""
        before = 0
        while before < self._left_out:
            before, empty = self._left_out, av.Packet(0)  # which writers ignore
            empty.stream, empty.time_base = self._stream, self._time_base
            empty.pts = empty.dts = self._last_pts + before
            self._mux([empty])

    def _write_tracks(self, packets):
        for packet in packets:
            if packet.stream.index in self._tracks:
                self._tracks[packet.stream.index].write(packet)

    def _end(self, error):
        """Complete the file, keep its beginning, or remove it."""
        kept = self._frames and (error is None or isinstance(error, (KeyboardInterrupt, VideoError)))
        with self._stack:
            if not kept:
                raise error or VideoError(f"cannot write {self.path}: there is no frame")
            if error is None and self._source:
                self._write_tracks(self._source.packets)
            self._mux(self._stream.encode(None))
            for track in self._tracks.values():
                track.flush()
            self._drain()
            with self._tracks_may_fail():
                self._container.close()
            if self._left_out:
                log.warning("%s: %s of sound left out: damaged", self.path, plural(self._left_out, "packet"))
            if error is None:
                return
            whole = Path(os.path.realpath(self.path))  # the file that a link names
            names = (whole.with_name(f"{whole.stem}_partial{number}{whole.suffix}") for number in ("", *range(2, 1000)))
            partial = next(name for name in names if not name.exists())
            os.replace(self._temporary, partial)
            where = f"the {plural(self._frames, 'frame')} before are in {partial}"
            if isinstance(error, VideoError):
                raise VideoError(f"{error}; {where}") from error
            log.warning("%s: interrupted; %s", self.path, where)
            raise error

    def _open_encoder(self):
        """Return the video stream with its encoder open."""
        encoder, tags = self._codec.encoder, self.format
        # FFmpeg lists these for .mov, but refuses their first packet.
        fitting = self._container.supported_codecs - ({"libvpx-vp9", "libsvtav1"} if self._suffix == ".mov" else set())
        if encoder not in fitting:
            raise VideoError(f"{self._suffix} does not hold {encoder}: use one of {_list(fitting)}, or .mkv")
        stream = self._container.add_stream(encoder, rate=self._rate, time_base=self._time_base)
        context, size = stream.codec_context, (tags.width, tags.height)
        context.width, context.height = even = size if self._codec.odd else tuple(side + side % 2 for side in size)
        if even != size:
            text = "%s: %s needs an even size, so the edge of %dx%d is repeated to %dx%d; .webm keeps the size"
            log.warning(text, self.path, encoder, *size, *even)
        context.time_base, context.color_range, context.colorspace = self._time_base, tags.value_range, tags.matrix
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        if tags.pixel_aspect and self._suffix == ".webm":
            log.warning("%s: WebM cannot keep pixels of %s; an .mp4 keeps them", self.path, tags.pixel_aspect)
        elif tags.pixel_aspect:
            context.sample_aspect_ratio = tags.pixel_aspect
        context.flags |= av.codec.context.Flags.frame_duration  # else the last frame of a variable rate has none
        if self._suffix == ".avi":
            context.max_b_frames = 0  # these need time stamps
        if encoder == "libx265" and self._suffix in _QUICKTIME:
            context.codec_tag = "hvc1"  # the only tag that Apple's players know
        quality = self._codec.default if self._quality is None else self._quality
        stream.options = self._codec.options | {"crf": f"{quality:g}"}
        if tags.chroma_location:
            stream.options |= {"chroma_sample_location": tags.chroma_location}
        try:
            open_encoder(context)
        except (av.FFmpegError, ValueError) as error:
            what = f"{encoder} does not open for {context.width}x{context.height} on this machine ({first_line(error)})"
            raise VideoError(f"{what}: use one of {_list(av.codecs_available)}") from error
        return stream
