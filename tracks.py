"""Copy everything but the pictures of a video file: sound, subtitles, attachments, chapters, titles and tags.

Packets of sound and subtitles are copied bit for bit, or converted if the new container cannot hold them. A packet that
cannot be decoded, copied, timed or written is mended or left out, with one warning for each track. It never costs the
picture.
"""

import io
import logging
import math
import re
from fractions import Fraction

import av
import numpy as np

from utils import plural

_FILE_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")  # of the container, not its content
_STREAM_TAGS = ("language", "title")
_AUDIO_CODECS = {".webm": "libopus", ".avi": "pcm_s16le"}  # to convert to; AAC in the others
_TEXT_SUBTITLES = {".mp4": "mov_text", ".m4v": "mov_text", ".mov": "mov_text", ".webm": "webvtt", ".mkv": "subrip"}
_TEXT_CODECS = ("subrip", "webvtt", "ass", "ssa", "text", "mov_text")
_ENCODED_CHANNELS = (1, 2, 6)  # PyAV misreads frames of other numbers, which become stereo
_TOLERANCE = Fraction(1, 50)  # seconds that sound may be off before silence is inserted or sound is cut
_LONGEST_GAP = 3600  # seconds of silence
COVER = av.stream.Disposition.attached_pic

log = logging.getLogger(__name__)


def copy_tracks(source, container, video_stream, path):
    """Add tracks, chapters and tags of a source to a container; warn about what cannot be kept.

    Args:
        source: a `VideoReader`.
        container, video_stream: the PyAV container to write to, and its video stream.
        path: its file.

    Returns:
        dict: the tracks to write the packets of the source to, by the index of their stream in the source.
    """
    tracks, suffix = {}, path.suffix.lower()
    lost = {source.describe(stream): False for stream in source.other_streams}  # whether .mkv would keep it
    tags = {key: value for key, value in source.metadata.items() if key.lower() not in _FILE_TAGS}
    # Apple's are in small letters, which Matroska does not keep.
    container.metadata.update({key.lower() if key.startswith("COM.APPLE.") else key: tags[key] for key in tags})
    _copy_tags(source.video_stream, video_stream)
    for stream in source.tracks:
        try:
            tracks[stream.index] = _add_track(source, stream, container, path)
        except ValueError:
            lost[source.describe(stream)] = suffix != ".mkv" and (stream.codec_context or stream.type == "attachment")
    if suffix != ".avi":
        container.set_chapters(source.chapters)
    else:
        beside = {"chapters": source.chapters, "location": any("location" in key.lower() for key in source.metadata)}
        lost |= {name: True for name, there in beside.items() if there}
    if lost:
        hint = " (.mkv keeps more)" if any(lost.values()) else ""
        log.warning("%s: not kept%s: %s", path, hint, ", ".join(sorted(lost)))
    return tracks


def _add_track(source, stream, container, path):
    """Add a track that copies or else converts the packets of a stream; ValueError if neither is possible."""
    name, suffix = source.describe(stream), path.suffix.lower()
    try:
        if stream.index in source.changing:
            raise ValueError("its codec, rate or channels change on the way")
        if suffix == ".avi" and stream.type == "audio":
            raise ValueError("without time stamps, sound in .avi would lose its gaps")
        if suffix != ".mkv" and stream.type == "attachment":
            raise ValueError("none but .mkv keeps it")
        track = _Track(stream, name, container, path)
    except ValueError as error:
        context = stream.codec_context
        if context is None:
            raise
        if re.match(r".* channels \(", source.read_description(stream)):  # PyAV would free their order twice: a crash
            context.layout = f"{context.channels}c"
        track = (_ConvertedAudio if stream.type == "audio" else _ConvertedSubtitles)(stream, name, container, path)
        log.warning("%s: %s is converted to %s: %s", path, name, track.form, error)
    _copy_tags(stream, track.stream)
    return track


def _copy_tags(source, stream):
    stream.metadata.update({key: value for key, value in source.metadata.items() if key in _STREAM_TAGS})
    if "name" in source.metadata:  # FFmpeg reads titles of .mp4 under this name
        stream.metadata["title"] = source.metadata["name"]
    stream.disposition = source.disposition


class _Track:
    """Copies the packets of a stream to `stream` of a container; subclasses convert them to `form` (in words)."""

    def __init__(self, source, name, container, path):
        self._source, self._name, self._container, self._path = source, name, container, path
        self._last, self._end, self._left_out, self._recoded = None, None, 0, False
        self._codec = source.codec_context and source.codec_context.codec.canonical_name
        self.stream = self._add_stream()

    def write(self, packet):
        self._left_out += not self._attempt(self._copy, packet)

    def flush(self):
        if self._left_out:
            log.warning("%s: %s, %s left out: damaged", self._path, self._name, plural(self._left_out, "packet"))

    def _add_stream(self):
        try:  # some containers refuse a stream only in their header, or PCM only in their trailer
            with av.open(io.BytesIO(), "w", format=self._container.format.name) as trial:
                stream = trial.add_stream_from_template(self._source)
                trial.start_encoding()
                if self._source.codec_context and self._source.codec_context.name.startswith("pcm_"):
                    packet = av.Packet(bytes(9600))  # whole samples of any usual form
                    packet.stream, packet.time_base, packet.pts, packet.dts = stream, self._source.time_base, 0, 0
                    trial.mux(packet)
        except (av.FFmpegError, ValueError):
            raise ValueError(f"{self._path.suffix} cannot hold it as it is") from None
        return self._container.add_stream_from_template(self._source)

    def _attempt(self, function, packet):
        """Call the function; return False if the packet is at fault, and raise if the disk is."""
        try:
            function(packet)
        except OSError:
            raise
        except (av.FFmpegError, ValueError, NotImplementedError):
            return False
        return True

    def _copy(self, packet):
        if self._set_time(packet):
            self._write(self._mended(packet))

    def _set_time(self, packet):
        """Give a packet times that follow those of the last one; return whether it is to be written."""
        unit, sound, duration = packet.time_base, self._source.type == "audio", packet.duration or 0
        if packet.pts is None:
            packet.pts = self._end if packet.dts is None else packet.dts
        if packet.pts is None:
            raise ValueError("the first packet has no time stamp")
        if sound and packet.pts * unit + (duration * unit or 2 * _TOLERANCE) < -Fraction(1, 1000):
            return False  # cut off a trimmed clip
        if self._source.type == "subtitle" and bytes(packet) == b"\0\0":
            return False  # .mp4 fills pauses with these
        packet.dts = packet.pts if packet.dts is None else packet.dts
        if self._last is not None:
            strict = sound and not self._container.format.flags & av.format.Flags.ts_nonstrict.value
            packet.dts = max(packet.dts, self._last + (math.ceil(Fraction(1, 1000) / unit) if strict else 0))
            packet.pts = max(packet.pts, packet.dts)
        self._last, self._end = packet.dts, packet.pts + duration
        return True

    def _write(self, packet):
        packet.stream = self.stream
        self._container.mux(packet)

    def _mended(self, packet):
        data = bytes(packet)
        if self._codec not in _TEXT_CODECS or (text := self._in_utf8(data)) == data:
            return packet
        mended = av.Packet(text)
        for name in ("time_base", "pts", "dts", "duration", "is_keyframe"):
            setattr(mended, name, getattr(packet, name))
        return mended

    def _in_utf8(self, data):
        # mov_text has the text's length before it, and its style behind it.
        start, end = (2, 2 + int.from_bytes(data[:2], "big")) if self._codec == "mov_text" else (0, len(data))
        try:
            data[start:end].decode()
            return data
        except UnicodeDecodeError:
            if not self._recoded:
                log.warning("%s: %s is not UTF-8: it is read as Windows-1252", self._path, self._name)
            self._recoded = True
        text = data[start:end].decode("cp1252", "replace").encode()
        return (len(text).to_bytes(2, "big") if start else b"") + text + data[end:]


class _ConvertedAudio(_Track):
    """Decodes and encodes sound of any, even changing, rate and channels; gaps become silence."""

    def flush(self):
        self._attempt(self._write, None)
        self._attempt(self._resample, None)
        self._container.mux(self.stream.encode(None))
        super().flush()

    def _add_stream(self):
        name, context = _AUDIO_CODECS.get(self._path.suffix.lower(), "aac"), self._source.codec_context
        channels, rates = context.layout.nb_channels, av.codec.Codec(name, "w").audio_rates or [context.rate]
        self._rate = min((rate for rate in rates if rate >= context.rate > 0), default=48000)
        self._layout = av.AudioLayout(f"{channels}c" if channels in _ENCODED_CHANNELS else "stereo").name
        self._form, self._resampler, self._position = None, None, 0
        stream = self._container.add_stream(name, rate=self._rate, layout=self._layout)
        stream.codec_context.open()
        self.form = f"{stream.codec_context.codec.canonical_name} ({self._layout}, {self._rate} Hz)"
        return stream

    def _write(self, packet):
        try:
            frames = self._source.decode(packet)
        except av.FFmpegError as error:
            raise ValueError("it cannot be decoded") from error
        for frame in frames:
            form = frame.sample_rate, frame.layout.name, frame.format.name
            if form != self._form:
                self._resample(None)
                self._form, self._resampler = form, av.AudioResampler("fltp", self._layout, self._rate)
            self._resample(frame)

    def _resample(self, frame):
        """Append a frame of sound or, with None, what the resampler still holds."""
        for part in self._resampler.resample(frame) if self._resampler else ():
            self._append(part)

    def _append(self, part):
        """Encode a piece of sound at its time: after silence if it comes late, without its beginning if early."""
        samples = part.to_ndarray()  # (channels, samples)
        late = 0 if part.pts is None else round(part.pts * part.time_base * self._rate) - self._position
        if late > _LONGEST_GAP * self._rate:
            raise ValueError("its time stamp is wrong")
        if self._position and abs(late) <= _TOLERANCE * self._rate:
            late = 0
        for done in range(0, late, self._rate):
            self._push(np.zeros((len(samples), min(self._rate, late - done)), np.float32))
        self._push(np.ascontiguousarray(samples[:, max(-late, 0) :]))

    def _push(self, samples):
        if samples.size:
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
        if subtitle := self._source.codec_context.decode2(packet):
            text = self.stream.codec_context.encode_subtitle(subtitle)
            text.stream = self.stream
            for name in ("time_base", "pts", "dts", "duration"):
                setattr(text, name, getattr(packet, name))
            self._container.mux(text)
