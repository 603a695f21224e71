"""What accompanies the pictures of a video file: audio, subtitles, attachments, chapters, titles and tags.

Packets of audio and subtitles are copied bit for bit, or converted if the new container cannot hold them.
"""

import io
import logging
from fractions import Fraction

import av

from utils import first_line

_FILE_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")  # of the container, not of the content
_STREAM_TAGS = ("language", "title")
_TEXT_SUBTITLES = {".mp4": "mov_text", ".m4v": "mov_text", ".mov": "mov_text", ".webm": "webvtt", ".mkv": "subrip"}
_USUAL_LAYOUTS = {"1 channels": "mono", "2 channels": "stereo", "6 channels": "5.1", "8 channels": "7.1"}
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
    lost = ["cover" if stream.disposition & COVER else stream.type for stream in source.other_streams]
    container.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _FILE_TAGS})
    _copy_tags(source.video_stream, video_stream)
    for stream in source.tracks:
        try:
            tracks[stream.index] = _add_track(stream, container, path)
        except ValueError:
            name = stream.codec_context.name if stream.codec_context else "unknown"
            lost.append(f"{name} {stream.type} ({stream.language or 'no language'})")
    for stream in source.attachments:
        if suffix == ".mkv":
            container.add_stream_from_template(stream)
        else:
            lost.append(f"attachment {stream.metadata.get('filename', '')}")
    if source.chapters and suffix == ".avi":
        lost.append("chapters")
    elif source.chapters:
        container.set_chapters(source.chapters)
    if lost:
        hint = "" if suffix == ".mkv" else " (.mkv keeps more)"
        log.warning("%s: not kept%s: %s", path, hint, ", ".join(sorted(lost)))
    return tracks


def _add_track(source, container, path):
    """Add a track that copies the packets of a stream, or else converts them; ValueError if neither is possible."""
    try:
        track = _Track(source, container, path)
    except ValueError:
        if source.codec_context is None:
            raise
        track = (_ConvertedAudio if source.type == "audio" else _ConvertedSubtitles)(source, container, path)
        names = source.codec_context.name, source.type, track.stream.codec_context.name
        log.warning("%s cannot hold %s %s as it is: it is converted to %s", path, *names)
    _copy_tags(source, track.stream)
    return track


def _copy_tags(source, stream):
    stream.metadata.update({key: value for key, value in source.metadata.items() if key in _STREAM_TAGS})
    if "name" in source.metadata:  # FFmpeg's reader of .mp4 has another word than its writer
        stream.metadata["title"] = source.metadata["name"]
    stream.disposition = source.disposition


class _Track:
    """Copies the packets of a stream into a container."""

    def __init__(self, source, container, path):
        self._source, self._container, self._path, self._begun = source, container, path, False
        # AVI has no time stamps: its audio begins with the pictures.
        self._aligned = source.type == "audio" and container.format.name == "avi"
        self.stream = self._add_stream()

    def write(self, packet):
        if self._aligned and packet.pts is not None and not self._begun:
            begin = packet.pts * packet.time_base
            if begin < -0.1:  # seconds; from before the cut of a trimmed clip
                return
            if begin > 0.1:
                message = "%s: its sound begins %.1f s too early, as AVI has no time stamps: take .mp4"
                log.warning(message, self._path, begin)
            self._begun = True
        self._mux(packet)

    def flush(self):
        pass

    def _add_stream(self):
        source, name = self._source, self._container.format.name
        if source.type != "audio" or source.codec_context is None:
            return self._container.add_stream_from_template(source)
        if name == "avi" and source.codec_context.name in ("vorbis", "eac3", "dca"):
            raise ValueError("without time stamps their packets would be taken for other lengths")
        try:
            with av.open(io.BytesIO(), "w", format=name) as trial:  # some refuse a codec only when they begin
                _add_audio_copy(source, trial)
                trial.start_encoding()
        except av.FFmpegError as error:
            raise ValueError(first_line(error)) from error
        return _add_audio_copy(source, self._container)

    def _mux(self, packet):
        if self.stream.type != "subtitle" or bytes(packet) != b"\0\0":  # with which .mp4 fills pauses
            packet.stream = self.stream
            self._container.mux(packet)


class _ConvertedAudio(_Track):
    def flush(self):
        self._encode(self._source.decode(None))
        self._container.mux(self.stream.encode(None))

    def _add_stream(self):
        webm, layout = self._container.format.name == "webm", _layout(self._source)
        codec, rate = ("libopus", 48000) if webm else ("aac", self._source.codec_context.rate)
        stream = self._container.add_stream(codec, rate=rate)
        stream.codec_context.layout = "5.1" if layout == "5.1(side)" else layout  # libopus knows no sides
        return stream

    def _mux(self, packet):
        self._encode(packet.decode())

    def _encode(self, frames):
        for frame in frames:
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
        return stream

    def _mux(self, packet):
        subtitle = self._source.codec_context.decode2(packet)
        if subtitle is None or len(subtitle) == 0:
            return
        text = self.stream.codec_context.encode_subtitle(subtitle)
        text.stream = self.stream
        text.time_base, text.pts, text.dts, text.duration = packet.time_base, packet.pts, packet.pts, packet.duration
        self._container.mux(text)


def _add_audio_copy(source, container):
    """Add a stream for the same packets of audio; ValueError if the container does not know their codec."""
    stream = container.add_stream_from_template(source)
    stream.codec_context.layout = _layout(source)
    return stream


def _layout(source):
    """The layout of audio; if a file says only how many channels there are (AVI, ASF, PCM), the usual one."""
    layout = source.codec_context.layout.name
    return _USUAL_LAYOUTS.get(layout, layout)
