"""What accompanies the pictures of a video file: sound, subtitles, attachments, chapters, titles and tags.

Packets of sound and subtitles are copied bit for bit, or converted if the new container cannot hold them. One rule for
a packet that cannot be decoded, copied, timed or written: it is mended, or left out and counted, and one warning for
each track says so. It never costs the picture.
"""

import contextlib
import io
import logging
import math
from fractions import Fraction

import av
import numpy as np

from utils import first_line, plural

_FILE_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")  # of the container, not of the content
_STREAM_TAGS = ("language", "title")
_TEXT_SUBTITLES = {".mp4": "mov_text", ".m4v": "mov_text", ".mov": "mov_text", ".webm": "webvtt", ".mkv": "subrip"}
_PLAIN_TEXT = ("subrip", "webvtt", "ass", "ssa", "text")  # mov_text has binary parts
_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}  # by channels
_ENCODED_CHANNELS = (1, 2, 6, 8)  # which all encoders know; others become stereo
_TOLERANCE = Fraction(1, 50)  # seconds that sound may be off before silence is inserted, or some of it is cut
_LONGEST_GAP = 6 * 3600  # seconds of silence
COVER = av.stream.Disposition.attached_pic

log = logging.getLogger(__name__)


def copy_tracks(source, container, video_stream, path):
    """Add to a container what accompanies the pictures of a source; warn about what cannot be kept.

    Args:
        source: a `VideoReader`.
        container, video_stream: PyAV's container that is being written, and its stream of video.
        path: its file.

    Returns:
        dict: the track that writes the packets of a stream of the source, by the stream's index.
    """
    tracks, suffix = {}, path.suffix.lower()
    lost, kept_by_mkv = [source.describe(stream) for stream in source.other_streams], []
    container.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _FILE_TAGS})
    if suffix == ".avi" and any("location" in key.lower() for key in source.metadata):
        kept_by_mkv.append("location")
    _copy_tags(source.video_stream, video_stream)
    for stream in source.tracks:
        try:
            tracks[stream.index] = _add_track(source, stream, container, path)
        except ValueError:
            (kept_by_mkv if stream.codec_context else lost).append(source.describe(stream))
    for stream in source.attachments:
        try:
            if suffix != ".mkv":
                raise ValueError("none but .mkv has attachments")
            _check_fit(stream, container)
            container.add_stream_from_template(stream)
        except ValueError:
            kept_by_mkv.append(f"attachment {stream.metadata.get('filename', '')}")
    if source.chapters and suffix == ".avi":
        kept_by_mkv.append("chapters")
    elif source.chapters:
        container.set_chapters(source.chapters)
    if lost or kept_by_mkv:
        hint = " (.mkv keeps more)" if kept_by_mkv and suffix != ".mkv" else ""
        log.warning("%s: not kept%s: %s", path, hint, ", ".join(sorted(lost + kept_by_mkv)))
    return tracks


def _add_track(source, stream, container, path):
    """Add a track that copies the packets of a stream, or else converts them; ValueError if neither is possible."""
    name, changes = source.describe(stream), stream.index in source.changing
    try:
        if changes:
            raise ValueError("its rate or channels change on the way")
        track = _Track(stream, name, container, path)
    except ValueError:
        if stream.codec_context is None:
            raise
        track = (_ConvertedAudio if stream.type == "audio" else _ConvertedSubtitles)(stream, name, container, path)
        reason = "its rate or channels change on the way" if changes else f"{path.suffix} cannot hold it as it is"
        log.warning("%s: %s is converted to %s: %s", path, name, track.form, reason)
    _copy_tags(stream, track.stream)
    return track


def _copy_tags(source, stream):
    stream.metadata.update({key: value for key, value in source.metadata.items() if key in _STREAM_TAGS})
    if "name" in source.metadata:  # FFmpeg's reader of .mp4 has another word than its writer
        stream.metadata["title"] = source.metadata["name"]
    stream.disposition = source.disposition


def _check_fit(stream, container):
    """Raise ValueError if a container cannot hold a stream as it is; some refuse it only when they begin."""
    try:
        with av.open(io.BytesIO(), "w", format=container.format.name) as trial:
            _add_copy(stream, trial)
            trial.start_encoding()
    except av.FFmpegError as error:
        raise ValueError(first_line(error)) from error


def _add_copy(stream, container):
    """Add a stream for the same packets; ValueError if the container does not know their codec."""
    added = container.add_stream_from_template(stream)
    if stream.type == "audio" and stream.codec_context:
        added.codec_context.layout = _layout(stream.codec_context)
    return added


def _layout(form):
    """The layout of sound; if a file says only how many channels there are (AVI, ASF, PCM), the usual one."""
    layout = form.layout
    return _LAYOUTS.get(layout.nb_channels, layout.name) if layout.name.endswith(" channels") else layout.name


class _Track:
    """Copies the packets of a stream into a container.

    Attributes:
        stream: the stream that is written.
        form: its codec, in words.
    """

    def __init__(self, source, name, container, path):
        self._source, self._name, self._container, self._path = source, name, container, path
        self._avi = container.format.name == "avi"
        self._end, self._left_out, self._recoded, self._gap = None, 0, False, False
        codec = source.codec_context and source.codec_context.codec.canonical_name
        self._text = source.type == "subtitle" and codec in _PLAIN_TEXT
        self.stream = self._add_stream()

    def write(self, packet):
        try:
            if self._set_time(packet):
                self._write(packet)
        except (ValueError, NotImplementedError):  # the packet's fault; the disk's is an OSError
            self._left_out += 1

    def flush(self):
        if self._left_out:
            log.warning("%s: %s, %s left out: damaged", self._path, self._name, plural(self._left_out, "packet"))
        if self._gap:
            log.warning(
                "%s: %s has pauses, which AVI cannot hold: take .mp4 to keep it in step", self._path, self._name
            )

    def _add_stream(self):
        source, context = self._source, self._source.codec_context
        if self._avi and source.type == "audio" and context:
            late = (source.start_time or 0) * source.time_base - max(source.container.start_time or 0, 0) / 10**6
            if late > _TOLERANCE or source.container.format.name in ("mpegts", "mpeg"):
                raise ValueError("without time stamps a gap would be lost")
            if context.name in ("aac", "vorbis", "eac3", "dca"):
                raise ValueError("without time stamps their packets would be taken for other lengths")
        _check_fit(source, self._container)
        return _add_copy(source, self._container)

    def _set_time(self, packet):
        """Make sure that a packet has times, which follow the last one's; return whether it is to be written."""
        unit, sound, duration = packet.time_base, self._source.type == "audio", packet.duration or 0
        if packet.pts is None:
            packet.pts = self._end if packet.dts is None else packet.dts  # None at the beginning
        if packet.pts is None:
            raise ValueError("no time stamp")
        if sound and packet.pts * unit + (duration * unit or 2 * _TOLERANCE) < -Fraction(1, 1000):
            return False  # from before the cut of a trimmed clip
        if self._source.type == "subtitle" and bytes(packet) == b"\0\0":
            return False  # with which .mp4 fills pauses
        packet.dts = packet.pts if packet.dts is None else packet.dts
        if self._end is not None:
            strict = sound and not self._container.format.flags & av.format.Flags.ts_nonstrict.value
            packet.dts = max(packet.dts, self._last + (math.ceil(Fraction(1, 1000) / unit) if strict else 0))
            packet.pts = max(packet.pts, packet.dts)
            if self._avi and sound and (packet.pts - self._end) * unit > 2 * _TOLERANCE:
                self._gap = True
        self._last, self._end = packet.dts, packet.pts + duration
        return True

    def _write(self, packet):
        packet = self._in_utf8(packet) if self._text else packet
        packet.stream = self.stream
        self._container.mux(packet)

    def _in_utf8(self, packet):
        try:
            bytes(packet).decode()
            return packet
        except UnicodeDecodeError:
            if not self._recoded:
                log.warning("%s: %s is not UTF-8: it is read as Windows-1252", self._path, self._name)
            self._recoded = True
        mended = av.Packet(bytes(packet).decode("cp1252", "replace").encode())
        mended.time_base, mended.pts, mended.dts = packet.time_base, packet.pts, packet.dts
        mended.duration, mended.is_keyframe = packet.duration, True
        return mended


class _ConvertedAudio(_Track):
    """Decodes sound, whatever its rate and channels, and encodes it; gaps become silence."""

    def flush(self):
        with contextlib.suppress(ValueError, NotImplementedError):
            self._write(None)
        self._container.mux(self.stream.encode(None))
        super().flush()

    def _add_stream(self):
        context = self._source.codec_context
        name, channels = "libopus" if self._container.format.name == "webm" else "aac", context.layout.nb_channels
        rates = av.codec.Codec(name, "w").audio_rates
        self._rate = min((rate for rate in rates if rate >= context.rate > 0), default=48000)
        self._layout = _LAYOUTS[channels] if channels in _ENCODED_CHANNELS else "stereo"
        self._form, self._resampler, self._position = None, None, 0 if self._avi else None
        stream = self._container.add_stream(name, rate=self._rate, layout=self._layout)
        stream.codec_context.open()
        self.form = f"{stream.codec_context.codec.canonical_name} ({self._layout}, {self._rate} Hz)"
        return stream

    def _write(self, packet):
        try:
            frames = self._source.decode(packet)
        except av.FFmpegError as error:
            raise ValueError(first_line(error)) from error
        for frame in frames:
            form = frame.sample_rate, frame.layout.name, frame.format.name
            if form != self._form:
                self._form = form
                self._resampler = av.AudioResampler("fltp", self._layout, self._rate)
            for part in self._resampler.resample(frame):
                self._append(part)

    def _append(self, part):
        """Encode a part of the sound at its time: after silence if it comes late, without its beginning if early."""
        samples = part.to_ndarray()  # (channels, samples)
        begin = round(part.pts * part.time_base * self._rate) if part.pts is not None else self._position or 0
        if self._position is None:
            self._position = max(begin, 0)
        late = begin - self._position
        if late > _LONGEST_GAP * self._rate:
            raise ValueError("its time stamp is wrong")
        if late > _TOLERANCE * self._rate or self._position == 0:
            for done in range(0, late, self._rate):
                self._push(np.zeros((len(samples), min(self._rate, late - done)), np.float32))
        if late < 0 and (-late > _TOLERANCE * self._rate or self._position == 0):
            samples = samples[:, -late:]
        if samples.size:
            self._push(np.ascontiguousarray(samples))

    def _push(self, samples):
        frame = av.AudioFrame.from_ndarray(samples, "fltp", self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._position, Fraction(1, self._rate)
        self._position += samples.shape[1]
        self._container.mux(self.stream.encode(frame))


class _ConvertedSubtitles(_Track):
    def _add_stream(self):
        context, codec = self._source.codec_context, _TEXT_SUBTITLES.get(self._path.suffix.lower())
        if codec is None or not context.codec.text_sub:
            raise ValueError("neither copied nor converted")
        context.open(strict=False)  # the header is there only then
        stream = self._container.add_stream(codec)
        stream.codec_context.subtitle_header = context.subtitle_header
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        self.form = codec
        return stream

    def _write(self, packet):
        packet = self._in_utf8(packet) if self._text else packet
        subtitle = self._source.codec_context.decode2(packet)
        if subtitle is None or len(subtitle) == 0:
            return
        text = self.stream.codec_context.encode_subtitle(subtitle)
        text.stream = self.stream
        text.time_base, text.pts, text.dts, text.duration = packet.time_base, packet.pts, packet.pts, packet.duration
        self._container.mux(text)
