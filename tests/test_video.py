"""Reading and writing of images and videos, on small files made here."""

import functools
import http.server
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.subtitles.subtitle import SubtitleSet
from PIL import Image, ImageCms

from video import (
    Frame,
    Picture,
    VideoError,
    VideoFormat,
    VideoReader,
    VideoWriter,
    check_encoder,
    read_ahead,
    read_image,
    write_behind,
    write_image,
)

QUARTER_TURN = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


def planes(index, width=64, height=48):
    """A frame that tells its number by its brightness (up to 20 of them), with stripes and a moving bar."""
    y = np.full((height, width), 40 + 8 * index % 160, np.uint8)
    y[:, ::8] += 40
    y[:, 2 * index % width : 2 * index % width + 3] = 220
    uv = np.full((2, (height + 1) // 2, (width + 1) // 2), 128, np.uint8)
    uv[0] += index % 100
    return y, uv


def encode(path, codec="libx264", pixel_format="yuv420p", times=range(20), size=(64, 48), audio=None, options=None):
    """Write a video with PyAV itself; `times` in milliseconds, `audio` names a codec for a second of noise."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, time_base=Fraction(1, 1000), options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        if audio:
            sound = container.add_stream(audio, rate=48000)
            sound.codec_context.layout = "mono"
        for index, time in enumerate(times):
            y, uv = planes(index, width, height)
            if pixel_format == "yuv420p":
                frame = av.VideoFrame(width, height, pixel_format)
                for plane, values in zip(frame.planes, (y, *uv), strict=True):
                    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
                    rows[:, : plane.width] = values
            else:
                frame = av.VideoFrame(width, height, pixel_format)
                for plane in frame.planes:
                    np.frombuffer(plane, np.uint8)[:] = y[0, -1]
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            rng = np.random.default_rng(0)
            for start in range(0, 48000, 960):
                noise = av.AudioFrame.from_ndarray(
                    rng.normal(0, 0.1, (1, 960)).astype(np.float32), format="fltp", layout="mono"
                )
                noise.sample_rate, noise.pts = 48000, start
                container.mux(sound.encode(noise))
            container.mux(sound.encode(None))
    return path


def copy(source, target, **encoding):
    """Pass a video through reader and writer; returns the times in milliseconds that were read."""
    times = []
    with VideoReader(source, audio=True) as reader, VideoWriter(target, reader.format, reader, **encoding) as writer:
        for frame in reader:
            times.append(milliseconds(frame.pts, reader))
            writer.write(frame)
    return times


def pictures(reader):
    """All frames as upright BGR pictures."""
    return [reader.to_bgr(frame.y, frame.uv) for frame in reader]


def milliseconds(pts, reader):
    return round(1000 * pts * reader.format.time_base)


def read_times(path):
    with VideoReader(path) as reader:
        return [milliseconds(frame.pts, reader) for frame in reader]


def brightness_order(path):
    with VideoReader(path) as reader:
        return [round((np.median(frame.y) - 40) / 8) for frame in reader]


def packets(path, kind):
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.pts) for packet in container.demux(**{kind: 0}) if packet.size]


CONSTANT = [40 * index for index in range(20)]
VARIABLE = [0, 40, 45, 120, 400, 433, 466, 1000, 1001, 1500]


# ----------------------------------------------------------------------------------------------------------------------
# Video


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE], ids=["constant", "variable"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_every_frame_once_in_order_at_its_time(tmp_path, suffix, times):
    source = encode(tmp_path / "in.mp4", times=times, options={"bf": "3"})
    assert copy(source, tmp_path / f"out{suffix}") == times
    assert read_times(tmp_path / f"out{suffix}") == times
    assert brightness_order(tmp_path / f"out{suffix}") == list(range(len(times)))


def test_avi_keeps_every_frame_on_the_grid_of_its_rate(tmp_path):
    source = encode(tmp_path / "in.mp4", times=CONSTANT, options={"bf": "3"})
    copy(source, tmp_path / "out.avi")
    assert read_times(tmp_path / "out.avi") == CONSTANT
    assert brightness_order(tmp_path / "out.avi") == list(range(20))


def test_planes_come_out_as_they_were_coded(tmp_path):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=CONSTANT, size=(35, 29))
    with VideoReader(source) as reader:
        frames = list(reader)
        assert (reader.format.width, reader.format.height, reader.frame_count) == (35, 29, 20)
    for index, frame in enumerate(frames):
        y, uv = planes(index, 35, 29)
        assert np.array_equal(frame.y, y) and np.array_equal(frame.uv, uv)


def test_odd_sizes_are_kept_by_vp9_and_padded_for_h264(tmp_path, caplog):
    source = encode(tmp_path / "in.mkv", codec="ffv1", times=CONSTANT, size=(35, 29))
    copy(source, tmp_path / "out.webm")
    assert not caplog.records
    copy(source, tmp_path / "out.mp4")
    assert "even size" in caplog.text
    for name, size in (("out.webm", (35, 29)), ("out.mp4", (36, 30))):
        with VideoReader(tmp_path / name) as reader:
            assert (reader.format.width, reader.format.height) == size
            assert len(list(reader)) == 20
            frame = planes(19, 35, 29)[0]
    with VideoReader(tmp_path / "out.mp4") as reader:
        last = list(reader)[-1].y
    assert np.abs(last[:29, :35].astype(int) - frame).mean() < 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
def test_audio_packets_are_copied_bit_for_bit(tmp_path, suffix):
    source = encode(tmp_path / "in.mp4", times=CONSTANT, audio="aac")
    copy(source, tmp_path / f"out{suffix}")
    before, after = packets(source, "audio"), packets(tmp_path / f"out{suffix}", "audio")
    assert len(before) > 40
    assert [data for data, _ in after] == [data for data, _ in before]
    if suffix == ".mp4":
        assert after == before  # time stamps too


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".webm"])
def test_audio_that_begins_before_0_moves_no_frame(tmp_path, suffix):
    source = encode(tmp_path / "in.mp4", times=CONSTANT, audio="aac", options={"bf": "3"})
    assert packets(source, "audio")[0][1] < 0  # what the decoder needs to begin with
    copy(source, tmp_path / f"out{suffix}")
    assert read_times(tmp_path / f"out{suffix}") == CONSTANT
    assert brightness_order(tmp_path / f"out{suffix}") == list(range(20))


def test_audio_after_the_last_frame_is_copied(tmp_path):
    # Raw video: no decoder holds frames back until the audio has passed.
    source = encode(tmp_path / "in.mkv", codec="rawvideo", times=CONSTANT[:5], audio="aac")
    copy(source, tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", "audio") == packets(source, "audio")


def test_audio_that_a_container_cannot_hold_is_converted_with_a_warning(tmp_path, caplog):
    source = encode(tmp_path / "in.mp4", times=CONSTANT, audio="aac")
    copy(source, tmp_path / "out.webm")
    assert "converted to libopus" in caplog.text
    with av.open(str(tmp_path / "out.webm")) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name in ("opus", "libopus")
        samples = sum(frame.samples for frame in container.decode(stream))
    assert samples == pytest.approx(48000, abs=3000)


def test_audio_and_video_are_interleaved(tmp_path):
    source = encode(tmp_path / "in.mp4", times=range(0, 4000, 40), audio="aac")
    copy(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        kinds = [packet.stream.type for packet in sorted(container.demux(), key=lambda p: p.pos or 0) if packet.size]
    assert "audio" in kinds[:60] and "video" in kinds[:60]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("value_range", [1, 2])
def test_tags_pass_through(tmp_path, suffix, value_range):
    video_format = VideoFormat(
        *(64, 48, Fraction(25)),
        time_base=Fraction(1, 1000),
        value_range=value_range,
        matrix=6,
        primaries=5,
        transfer=8,
        pixel_aspect=Fraction(4, 3),
        display_matrix=QUARTER_TURN,
    )
    with VideoWriter(tmp_path / f"in{suffix}", video_format) as writer:
        for index in range(3):
            writer.write(Frame(*planes(index)))
    copy(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}")
    for name in ("in", "out"):
        with VideoReader(tmp_path / f"{name}{suffix}") as reader:
            tags = reader.format
        assert tags.full_range == (value_range == 2)
        for field in ("value_range", "matrix", "primaries", "transfer", "pixel_aspect", "display_matrix"):
            assert getattr(tags, field) == getattr(video_format, field), field


def test_pictures_are_upright(tmp_path):
    turned = VideoFormat(64, 48, Fraction(25), display_matrix=QUARTER_TURN)
    y, uv = planes(0)
    y[:, :32], y[:, 32:] = 200, 50
    with VideoWriter(tmp_path / "turned.mp4", turned) as writer:
        writer.write(Frame(y, uv))
    with VideoReader(tmp_path / "turned.mp4") as reader:
        (frame,) = pictures(reader)
    assert frame.shape == (64, 48, 3)
    # The matrix says: turn by 90 degrees clockwise, so what was left comes to the top.
    assert frame[:20].mean() > 180 and frame[-20:].mean() < 60


@pytest.mark.parametrize("value_range", [1, 2])
@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv444p", "gray", "nv12"])
def test_other_8_bit_formats_keep_their_range(tmp_path, caplog, pixel_format, value_range):
    codec, name = ("rawvideo", "in.nut") if pixel_format == "nv12" else ("ffv1", "in.mkv")
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        stream.codec_context.color_range = value_range
        for index in range(3):
            frame = av.VideoFrame(64, 48, pixel_format)
            for plane in frame.planes:
                np.frombuffer(plane, np.uint8)[:] = 100 + index
            frame.pts, frame.time_base, frame.color_range = index, Fraction(1, 25), value_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / name) as reader:
        assert reader.pixel_format.startswith(pixel_format)
        frames = list(reader)
    assert len(frames) == 3
    assert caplog.text.count("is converted to 8-bit yuv420p") == (pixel_format != "nv12")
    for index, frame in enumerate(frames):
        assert (frame.y == 100 + index).all()
        assert (frame.uv == (128 if pixel_format == "gray" else 100 + index)).all()


@pytest.mark.parametrize(("pixel_format", "reason"), [("yuv420p10le", "10-bit"), ("yuva420p", "transparency")])
def test_what_8_bit_planes_cannot_hold_is_refused_by_name(tmp_path, pixel_format, reason):
    source = encode(tmp_path / "in.mkv", codec="ffv1", pixel_format=pixel_format, times=CONSTANT[:3])
    with pytest.raises(VideoError, match=f"{reason}.*{pixel_format}"):
        VideoReader(source)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_with_advice(tmp_path, transfer, name):
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("libx265", rate=25, width=64, height=48, options={"x265-params": "log-level=0"})
        stream.pix_fmt, stream.codec_context.color_trc = "yuv420p10le", transfer
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p10le")))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=rf"HDR video \({name}\).*ffmpeg -i INPUT -vf .*tonemap.* OUTPUT"):
        VideoReader(tmp_path / "in.mkv")


def broken_file(folder, kind):
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a video\n" * 50)
    elif kind == "sound":
        encode(folder / "both.mp4", times=CONSTANT[:2], audio="aac")
        with av.open(str(folder / "both.mp4")) as both, av.open(str(path), "w") as container:
            stream = container.add_stream_from_template(both.streams.audio[0])
            for packet in both.demux(audio=0):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
    elif kind == "truncated":
        data = encode(folder / "whole.mp4", times=CONSTANT).read_bytes()
        path.write_bytes(data[: data.index(b"moov") - 4])
    elif kind == "cut":  # the index comes first, so that FFmpeg would read it up to the cut
        data = encode_fast_start(folder / "whole.mp4").read_bytes()
        path.write_bytes(data[: len(data) - 200])
    return path


def encode_fast_start(path):
    source = encode(path.with_name("plain.mp4"), times=CONSTANT)
    with av.open(str(source)) as plain, av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(plain.streams.video[0], opaque=True)
        for packet in plain.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("text", "cannot be read"),
        ("truncated", "cannot be read"),
        ("cut", "incomplete"),
        ("sound", "no video stream"),
    ],
)
def test_broken_videos_are_refused(tmp_path, kind, message):
    with pytest.raises(VideoError, match=message):
        VideoReader(broken_file(tmp_path, kind))


def damaged(path):
    """A film of 100 frames whose second third is noise."""
    encode(path, times=range(0, 4000, 40), size=(128, 96), audio="aac", options={"crf": "5"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : 2 * middle] = np.random.default_rng(0).integers(0, 256, middle, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def test_damage_in_the_middle_keeps_what_came_before_under_another_name(tmp_path):
    source = damaged(tmp_path / "in.mp4")
    (tmp_path / "out.mp4").write_bytes(b"old")
    with pytest.raises(VideoError, match=r"in.mp4 is damaged.*the \d+ frames before are in .*out_partial.mp4") as error:
        copy(source, tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4", "out_partial.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    times = read_times(tmp_path / "out_partial.mp4")
    assert 10 < len(times) < 90 and times == [40 * index for index in range(len(times))]
    assert f"the {len(times)} frames" in str(error.value)


def test_control_c_keeps_what_was_written(tmp_path, caplog):
    source = encode(tmp_path / "in.mp4", times=CONSTANT, audio="aac", options={"bf": "3"})
    with (
        pytest.raises(KeyboardInterrupt),
        VideoReader(source, audio=True) as reader,
        VideoWriter(tmp_path / "out.mp4", reader.format, reader) as writer,
    ):
        for index, frame in enumerate(reader):
            if index == 7:
                raise KeyboardInterrupt
            writer.write(frame)
    assert "first 7 frames are kept" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert read_times(tmp_path / "out.mp4") == CONSTANT[:7]
    assert brightness_order(tmp_path / "out.mp4") == list(range(7))


@pytest.mark.parametrize("error", [KeyboardInterrupt, VideoError])
def test_an_early_end_without_a_frame_leaves_nothing(tmp_path, error):
    with pytest.raises(error), VideoWriter(tmp_path / "out.mp4", VideoFormat(64, 48, Fraction(25))):
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_a_file_that_was_cut_off_is_told(tmp_path, caplog, suffix):
    source = tmp_path / f"in{suffix}"
    copy(encode(tmp_path / "film.mkv", codec="ffv1", times=range(0, 4000, 40)), source, codec="ffv1")
    copy(source, tmp_path / "whole.mp4")
    assert "ends early" not in caplog.text
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    told = ""
    try:
        copy(source, output := tmp_path / "out.mp4")
    except VideoError as error:  # older releases of FFmpeg notice it
        told, output = str(error), tmp_path / "out_partial.mp4"
    with VideoReader(output) as reader:
        count = len(list(reader))
    assert 20 < count < 80
    assert f"ends early: {count} of about 100 frames" in caplog.text or f"the {count} frames before are in" in told


FULL_DISK = """
import resource, signal, sys
import numpy as np
from fractions import Fraction
from video import Frame, VideoError, VideoFormat, VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
rng = np.random.default_rng(0)
for count in (1, 30):  # met at the end, and on the way
    try:
        with VideoWriter(sys.argv[1], VideoFormat(320, 240, Fraction(25)), codec="ffv1") as writer:
            for index in range(count):
                writer.write(Frame(*(rng.integers(0, 256, size, np.uint8) for size in ((240, 320), (2, 120, 160)))))
    except VideoError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on a file's size")
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    target, root = tmp_path / "out.mkv", Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", FULL_DISK, target]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert (result.stdout, result.stderr) == (2 * f"cannot write {target}: File too large\n", "")
    assert not list(tmp_path.iterdir())


def test_a_failing_block_leaves_the_old_file_alone(tmp_path):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), VideoWriter(target, VideoFormat(64, 48, Fraction(25))) as writer:
        writer.write(Frame(*planes(0)))
        _ = 1 / 0
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_video_without_frames_is_an_error(tmp_path):
    with pytest.raises(VideoError, match="no frame"), VideoWriter(tmp_path / "out.mp4", VideoFormat(64, 48, 25)):
        pass
    assert not list(tmp_path.iterdir())


def test_writer_refuses_unknown_names_and_other_sizes(tmp_path):
    with pytest.raises(VideoError, match=r"\.mp4"):
        VideoWriter(tmp_path / "out.xyz", VideoFormat(64, 48, Fraction(25)))
    with (
        pytest.raises(ValueError, match="expected frames of 64x48, got 32x48"),
        VideoWriter(tmp_path / "out.mp4", VideoFormat(64, 48, Fraction(25))) as writer,
    ):
        writer.write(Frame(*planes(0, 32, 48)))


# ----------------------------------------------------------------------------------------------------------------------
# What goes with the pictures

ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
LINES = {200: "Good morning", 800: "and good night"}  # milliseconds: text, for 600 ms
CHAPTERS = [(0, 400, "one"), (400, 2000, "two")]


@pytest.fixture
def film(tmp_path):
    """Two seconds with two languages, subtitles, chapters, tags and a font."""
    with av.open(str(tmp_path / "film.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25, width=64, height=48)
        sounds = [container.add_stream("aac", rate=48000, layout="mono") for _ in range(2)]
        text = container.add_stream("subrip")
        text.codec_context.subtitle_header = ASS_HEADER
        text.codec_context.time_base = text.time_base = Fraction(1, 1000)
        for stream, language, title in zip((*sounds, text), ("eng", "fra", "ita"), ("A", "B", "C"), strict=True):
            stream.metadata.update(language=language, title=title)
        sounds[0].disposition, sounds[1].disposition, text.disposition = 0, 1, 64  # none, default, forced
        container.add_attachment("font.ttf", "application/x-truetype-font", b"font" * 50)
        container.metadata.update(title="Holiday", creation_time="2024-05-06T07:08:09.000000Z")
        container.set_chapters(
            [
                {
                    "id": begin + 1,
                    "start": begin,
                    "end": end,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": name},
                }
                for begin, end, name in CHAPTERS
            ]
        )
        for index in range(50):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane in frame.planes:
                np.frombuffer(plane, np.uint8)[:] = 60 + index
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
            for level, sound in enumerate(sounds):
                samples = np.full((1, 1920), 0.1 * level, np.float32)
                noise = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                noise.sample_rate, noise.pts = 48000, 1920 * index
                container.mux(sound.encode(noise))
            if 40 * index in LINES:
                line = f"{index},0,Default,,0,0,0,,{LINES[40 * index]}".encode()
                packet = text.codec_context.encode_subtitle(SubtitleSet.create(line, 0, 600))
                packet.stream, packet.time_base = text, Fraction(1, 1000)
                packet.pts = packet.dts = 40 * index
                packet.duration = 600
                container.mux(packet)
        for stream in (video, *sounds):
            container.mux(stream.encode(None))
    return tmp_path / "film.mkv"


def track_packets(path, kind):
    """For each track of a kind, its packets that are not empty: content, milliseconds and duration."""
    with av.open(str(path)) as container:
        tracks = {stream.index: [] for stream in container.streams if stream.type == kind}
        for packet in container.demux():
            if packet.stream.type == kind and packet.size > 2:
                begin, length = (round(1000 * ticks * packet.time_base) for ticks in (packet.pts, packet.duration))
                tracks[packet.stream.index].append((bytes(packet), begin, length))
    return list(tracks.values())


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".webm", ".avi"])
def test_what_goes_with_the_pictures_is_kept(tmp_path, film, caplog, suffix):
    target = tmp_path / f"out{suffix}"
    copy(film, target)
    sounds = track_packets(target, "audio")
    assert len(sounds) == 2
    if suffix != ".webm":
        for before, after in zip(track_packets(film, "audio"), sounds, strict=True):
            assert len(before) > 90 and [data for data, *_ in after] == [data for data, *_ in before]
    assert (suffix == ".webm") == ("converted to libopus" in caplog.text)
    if suffix == ".mkv":
        assert track_packets(target, "subtitle") == track_packets(film, "subtitle")
    elif suffix != ".avi":
        (lines,) = track_packets(target, "subtitle")
        assert [(begin, length) for _, begin, length in lines] == [(begin, 600) for begin in LINES]
        assert all(text.encode() in data for (data, *_), text in zip(lines, LINES.values(), strict=True))
    with av.open(str(target)) as container:
        streams = container.streams
        assert container.metadata["title"] == "Holiday"
        if suffix == ".avi":
            assert not streams.subtitles
            assert "not kept, but .mkv would keep it: attachment font.ttf, chapters, srt subtitle (ita)" in caplog.text
            return
        assert container.metadata["creation_time"] == "2024-05-06T07:08:09.000000Z"
        tracks = [*streams.audio, *streams.subtitles]
        assert [stream.language for stream in tracks] == ["eng", "fra", "ita"]
        assert [stream.metadata.get("title", stream.metadata.get("name")) for stream in tracks] == ["A", "B", "C"]
        assert [bool(stream.disposition & 1) for stream in streams.audio] == [False, True]
        assert suffix == ".mov" or streams.subtitles[0].disposition & 64
        chapters = [
            (round(1000 * c["start"] * c["time_base"]), round(1000 * c["end"] * c["time_base"]), c["metadata"]["title"])
            for c in container.chapters()
        ]
        assert chapters == CHAPTERS
        if suffix == ".mkv":
            (font,) = streams.attachments
            assert (font.data, font.metadata["filename"]) == (b"font" * 50, "font.ttf")
            assert not caplog.records
        else:
            assert "not kept, but .mkv would keep it: attachment font.ttf" in caplog.text


@pytest.mark.parametrize("last", [".mp4", ".mkv", ".webm"])
def test_mov_text_comes_back(tmp_path, film, last):
    copy(film, tmp_path / "first.mp4")
    copy(tmp_path / "first.mp4", tmp_path / f"second{last}")
    (before,), (after,) = (track_packets(tmp_path / name, "subtitle") for name in ("first.mp4", f"second{last}"))
    if last == ".mp4":
        assert after == before
    assert [length for *_, length in after] == [600, 600]
    assert all(text.encode() in data for (data, *_), text in zip(after, LINES.values(), strict=True))
    with VideoReader(tmp_path / f"second{last}") as reader:
        assert not reader.other_streams or last == ".mp4"
        assert [chapter["metadata"]["title"] for chapter in reader.chapters] == ["one", "two"]


# ----------------------------------------------------------------------------------------------------------------------
# Times, fields and colours


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(60000, 1001)], ids=["23.976", "59.94"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_broken_rates_are_kept(tmp_path, rate, suffix):
    video_format = VideoFormat(64, 48, rate)
    with VideoWriter(tmp_path / "in.mp4", video_format) as writer:
        for index in range(20):
            writer.write(Frame(*planes(index)))
    copy(tmp_path / "in.mp4", tmp_path / f"out{suffix}")
    with VideoReader(tmp_path / "in.mp4") as before, VideoReader(tmp_path / f"out{suffix}") as after:
        if suffix in (".mp4", ".avi"):
            assert after.format.rate == rate
        tolerance = 0 if suffix in (".mp4", ".avi") else 0.0005  # Matroska counts milliseconds
        times = [[float(f.pts * reader.format.time_base) for f in reader] for reader in (before, after)]
    assert times[1] == pytest.approx(times[0], abs=tolerance + 1e-9)
    assert times[0] == pytest.approx([float(index / rate) for index in range(20)])
    assert brightness_order(tmp_path / f"out{suffix}") == list(range(20))


def encode_interlaced(path, times):
    """A bright bar that moves by 8 pixels from field to field."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=128, height=64, options={"crf": "1"})
        stream.codec_context.flags |= (1 << 18) | (1 << 29)  # AV_CODEC_FLAG_INTERLACED_DCT and _ME
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time_ in enumerate(times):
            frame = av.VideoFrame(128, 64, "yuv420p")
            y, *chroma = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size) for p in frame.planes)
            for plane in chroma:
                plane[:] = 128
            y[:] = 40
            for field in range(2):
                left = (16 * index + 8 * field) % 96
                y[field::2, left : left + 16] = 200
            frame.pts, frame.time_base = time_, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE], ids=["constant", "variable"])
def test_interlaced_frames_become_progressive(tmp_path, caplog, times):
    source = encode_interlaced(tmp_path / "in.mp4", times)
    with av.open(str(source)) as container:
        coded = list(container.decode(video=0))
        assert all(frame.interlaced_frame for frame in coded)
    with VideoReader(source) as reader:
        frames = list(reader)
        assert [milliseconds(frame.pts, reader) for frame in frames] == times
    assert caplog.text.count("is interlaced") == 1

    def comb(y):  # how much neighbouring rows differ
        return np.abs(np.diff(y[8:-8].astype(int), axis=0)).mean()

    for frame, before in zip(frames[2:-2], coded[2:-2], strict=True):
        y = np.frombuffer(before.planes[0], np.uint8).reshape(64, -1)[:, :128]
        assert comb(frame.y) < comb(y) / 2
    copy(source, tmp_path / "out.mp4")
    assert read_times(tmp_path / "out.mp4") == times
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not any(frame.interlaced_frame for frame in container.decode(video=0))


@pytest.mark.parametrize("location", ["topleft", "center", "left"])
@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "h264"), (".mp4", "hevc"), (".mkv", "h264")])
def test_chroma_location_is_kept(tmp_path, location, suffix, codec):
    source = encode(tmp_path / "in.mp4", times=CONSTANT[:3], options={"chroma_sample_location": location})
    copy(source, tmp_path / f"out{suffix}", codec=codec)
    for name in ("in.mp4", f"out{suffix}"):
        with VideoReader(tmp_path / name) as reader:
            assert reader.format.chroma_location == location


@pytest.mark.parametrize("value_range", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [6, 1], ids=["BT.601", "BT.709"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_colour_chart_keeps_its_colours(tmp_path, matrix, value_range, suffix):
    red, green, blue = np.meshgrid(*3 * [np.linspace(0, 1, 4)], indexing="ij")
    kr, kb = (0.299, 0.114) if matrix == 6 else (0.2126, 0.0722)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = [(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)]
    black, white, swing = (16, 219, 224) if value_range == 1 else (0, 255, 255)

    def patches(values, side):
        return np.kron(np.clip(np.rint(values), 0, 255).astype(np.uint8).reshape(8, 8), np.ones((side, side), np.uint8))

    y = patches(black + white * luma, 16)
    uv = np.stack([patches(128 + swing * plane, 8) for plane in chroma])
    tags = {"value_range": value_range, "matrix": matrix, "primaries": matrix, "transfer": matrix}
    with VideoWriter(tmp_path / "in.mkv", VideoFormat(128, 128, Fraction(25), **tags), codec="ffv1") as writer:
        writer.write(Frame(y, uv))
    copy(tmp_path / "in.mkv", tmp_path / f"out{suffix}", quality=0)
    with VideoReader(tmp_path / f"out{suffix}") as reader:
        assert {name: getattr(reader.format, name) for name in tags} == tags
        (frame,) = reader
    assert np.array_equal(frame.y, y) and np.array_equal(frame.uv, uv)
    with VideoReader(tmp_path / f"out{suffix}") as reader:
        (bgr,) = pictures(reader)
    chart = np.rint(255 * np.stack([blue, green, red], axis=-1)).reshape(8, 8, 3)
    shown = bgr[8::16, 8::16].astype(int)
    # Eight bits of luma and chroma hold a colour to within two steps, and the converter rounds once more.
    assert np.abs(shown - chart).max() <= 3 and np.abs(shown - chart).mean() < 1
    with VideoReader(tmp_path / "in.mkv") as reader:
        (original,) = pictures(reader)
    assert np.abs(bgr.astype(int) - original).max() <= 1


# ----------------------------------------------------------------------------------------------------------------------
# Encoders


@pytest.mark.parametrize(
    ("suffix", "codec", "tag"),
    [
        (".mp4", "h264", "avc1"),
        (".mp4", "hevc", "hvc1"),
        (".mov", "hevc", "hvc1"),
        (".mp4", "av1", "av01"),
        (".webm", "av1", None),
        (".mp4", "vp9", "vp09"),
        (".mkv", "libx265", None),
        (".avi", "mpeg4", None),
        (".avi", "ffv1", "FFV1"),
    ],
)
def test_the_encoder_is_chosen(tmp_path, suffix, codec, tag):
    name = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}.get(codec, codec)
    if name not in av.codecs_available:
        pytest.skip(f"FFmpeg has no {name} here")
    source = encode(tmp_path / "in.mp4", times=CONSTANT, size=(96, 64), options={"bf": "3"})
    copy(source, tmp_path / f"out{suffix}", codec=codec)
    assert read_times(tmp_path / f"out{suffix}") == CONSTANT
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        found = container.streams.video[0].codec_context
        assert found.codec.canonical_name == av.codec.Codec(name, "w").canonical_name
        assert tag is None or found.codec_tag == tag


@pytest.mark.parametrize(
    ("suffix", "codec", "quality"),
    [
        (".mp4", None, 0),
        (".avi", "h264", 0),
        (".mp4", "hevc", 0),
        (".webm", None, 0),
        (".mkv", "ffv1", None),
        (".avi", "ffv1", None),
    ],
)
def test_lossless_is_bit_for_bit(tmp_path, suffix, codec, quality):
    rng = np.random.default_rng(0)
    noise = [(rng.integers(0, 256, (64, 96), np.uint8), rng.integers(0, 256, (2, 32, 48), np.uint8)) for _ in range(3)]
    with VideoWriter(tmp_path / f"out{suffix}", VideoFormat(96, 64, Fraction(25)), None, quality, codec) as writer:
        for frame in noise:
            writer.write(Frame(*frame))
    with VideoReader(tmp_path / f"out{suffix}") as reader:
        for frame, (y, uv) in zip(reader, noise, strict=True):
            assert np.array_equal(frame.y, y) and np.array_equal(frame.uv, uv)


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9"])
def test_quality_is_the_encoders(tmp_path, codec):
    source = encode(tmp_path / "in.mp4", times=CONSTANT, size=(96, 64), options={"crf": "1"})
    for quality in (10, 50):
        copy(source, tmp_path / f"{quality}.mkv", codec=codec, quality=quality)
    assert (tmp_path / "10.mkv").stat().st_size > 1.3 * (tmp_path / "50.mkv").stat().st_size


@pytest.mark.parametrize(
    ("codec", "quality", "message"),
    [
        ("h264", 52, r"h264 is 0 \(best\) to 51, got 52"),
        ("vp9", -1, r"vp9 is 0 \(best\) to 63"),
        ("h264", float("nan"), "got nan"),
        ("h264_videotoolbox", 101, "100 .best. to 1|no video encoder"),
        ("mpeg4", 5, "cannot be set"),
        ("h265", None, "no video encoder h265 on this machine: use one of h264, hevc"),
        ("aac", None, "no video encoder aac"),
    ],
)
def test_wrong_encoders_and_qualities_are_refused_first(tmp_path, codec, quality, message):
    with pytest.raises(VideoError, match=message):
        check_encoder("out.mp4", codec, quality)
    with pytest.raises(VideoError, match=message):
        VideoWriter(tmp_path / "out.mp4", VideoFormat(64, 48, Fraction(25)), quality=quality, codec=codec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codec", ["h264_nvenc", "h264_qsv", "h264_amf", "h264_vaapi", "hevc_videotoolbox"])
def test_options_for_hardware_are_those_that_ffmpeg_knows(codec):
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg has no {codec} here")
    _, settings = check_encoder("out.mp4", codec, 30)
    context = av.CodecContext.create(codec, "w")
    if not hasattr(context, "supported_options"):
        pytest.skip("this PyAV does not tell an encoder's options")
    known = context.supported_options
    assert set(settings.options) <= {option.name for option in (*known.generic, *known.private)}


@pytest.mark.parametrize(
    ("suffix", "codec", "size", "message"),
    [
        (".webm", "h264", (64, 48), ".webm does not hold .* use one of (av1, )?vp9, or .mkv"),
        (".mp4", "h264_v4l2m2m", (64, 48), "h264_v4l2m2m does not open .* use one of h264"),
        (".mp4", "mjpeg", (64, 48), "mjpeg does not open .*use one of h264"),
    ],
)
def test_encoders_that_do_not_fit_or_open_name_others(tmp_path, suffix, codec, size, message):
    if codec not in av.codecs_available and codec != "h264":
        pytest.skip(f"FFmpeg has no {codec} here")
    if codec == "h264_v4l2m2m" and list(Path("/dev").glob("video*")):
        pytest.skip("this machine may have the hardware")
    writer = VideoWriter(tmp_path / f"out{suffix}", VideoFormat(*size, Fraction(25), value_range=1), codec=codec)
    with pytest.raises(VideoError, match=message), writer:
        pass
    assert not list(tmp_path.iterdir())


def test_addresses_are_read_like_files(tmp_path):
    encode(tmp_path / "in.mkv", times=VARIABLE)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert read_times(f"http://127.0.0.1:{server.server_port}/in.mkv") == VARIABLE
            with pytest.raises(VideoError, match="check the address"):
                VideoReader(f"http://127.0.0.1:{server.server_port}/missing.mkv")
        finally:
            server.shutdown()
            thread.join()


def test_frames_of_a_live_stream_come_as_they_arrive(tmp_path):
    times = range(0, 2000, 40)
    data = encode(tmp_path / "in.ts", times=times, options={"tune": "zerolatency", "g": "20"}).read_bytes()
    found, ended = [], threading.Event()

    def send():
        connection, _ = server.accept()
        with connection:
            connection.sendall(data)
            ended.wait(20)

    def read():
        with VideoReader(f"tcp://127.0.0.1:{server.getsockname()[1]}") as reader:
            found.extend(None for _ in reader)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = [threading.Thread(target=work) for work in (send, read)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 15
        while len(found) < len(times) - 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        count = len(found)
        ended.set()
        for thread in threads:
            thread.join()
    assert count >= len(times) - 2  # the last of a stream is known when the next begins
    assert len(found) == len(times)


@pytest.mark.parametrize(
    ("source", "codec", "target"),
    [
        ("in.avi", "pcm_s16le", "out.mp4"),  # its sound has channels, but no layout
        ("in.avi", "pcm_mulaw", "out.mkv"),
        ("in.mkv", "libopus", "out.mov"),  # whose writer refuses it when it begins
        ("in.mkv", "eac3", "out.avi"),
    ],
)
def test_sound_that_a_container_cannot_hold_as_it_is_comes_along(tmp_path, source, codec, target):
    encode(tmp_path / source, times=CONSTANT, audio=codec)
    copy(tmp_path / source, tmp_path / target)
    with av.open(str(tmp_path / target)) as container:
        samples, begin = 0, None
        for frame in container.decode(audio=0):
            begin = frame.time if begin is None else begin
            samples += frame.samples
    assert 47_000 < samples < 51_000 and abs(begin) < 0.1


def encode_with_pauses(path, count, heard):
    """Write `count` frames, 25 a second, and sound while those are shown whose numbers are in `heard`."""
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=25), container.add_stream("mp2", rate=48000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for index in range(count):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
            if index in heard:
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), "s16", "mono")
                sound.sample_rate, sound.pts, sound.time_base = 48000, 1920 * index, Fraction(1, 48000)
                container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def test_avi_says_that_late_sound_comes_early(tmp_path, caplog):
    encode_with_pauses(tmp_path / "in.mkv", 50, range(25, 50))
    copy(tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert not caplog.text
    copy(tmp_path / "in.mkv", tmp_path / "out.avi")
    assert "sound begins 1.0 s too early" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="names have no colons there")
def test_a_name_that_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "in.mp4", times=CONSTANT).rename("call10:30.mp4")
    assert copy("call10:30.mp4", "out10:30.mp4") == CONSTANT
    assert read_times("out10:30.mp4") == CONSTANT


@pytest.mark.parametrize(("tag", "value"), [(284, 2), (262, 0)], ids=["separate planes", "a negative"])
def test_deep_tiffs_that_would_be_misread_are_refused(tmp_path, tag, value):
    path, pixels = tmp_path / "in.tif", np.random.default_rng(0).integers(0, 65536, (24, 32, 3), np.uint16)
    cv2.imwrite(str(path), pixels if tag == 284 else pixels[..., 0])
    data, usual = path.read_bytes(), 1  # one after the other; 0 is black
    entry = struct.pack("<HHII", tag, 3, 1, usual)
    assert data.count(entry) == 1 and read_image(path).pixels.dtype == np.uint16
    path.write_bytes(data.replace(entry, struct.pack("<HHII", tag, 3, 1, value)))
    with pytest.raises(VideoError, match="separate planes or a negative"):
        read_image(path)


def test_jpegs_keep_the_resolution_of_colour(tmp_path):
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:, ::2, 2] = colours[:, 1::2, 0] = 200
    write_image(tmp_path / "out.jpg", Picture(colours))
    assert np.abs(read_image(tmp_path / "out.jpg").pixels.astype(int) - colours).mean() < 10


def test_a_profile_of_other_colours_is_not_kept(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.new("LAB", (16, 16)).save(tmp_path / "in.tif", icc_profile=profile)
    assert read_image(tmp_path / "in.tif").color_profile is None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_transport_streams_that_were_joined_follow_each_other(tmp_path, suffix):
    part = encode(tmp_path / "part.ts", times=range(0, 1000, 40), audio="aac")
    (tmp_path / "joined.ts").write_bytes(2 * part.read_bytes())
    copy(tmp_path / "joined.ts", tmp_path / f"out{suffix}")
    steps = np.diff(read_times(tmp_path / f"out{suffix}"))
    # The first frame is at 80 ms, but .avi has no time stamps and begins at 0.
    assert len(steps) == 49 and (np.delete(steps, [0, 24]) == 40).all() and 40 <= steps[24] <= 240
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 2 * 48000


def test_a_gap_in_the_audio_of_a_transport_stream_stays(tmp_path):
    encode_with_pauses(tmp_path / "in.ts", 15 * 25, [*range(25), *range(13 * 25, 15 * 25)])
    times = []
    for path in (tmp_path / "in.ts", tmp_path / "out.mkv"):
        if path.suffix == ".mkv":
            copy(tmp_path / "in.ts", path)
        with av.open(str(path)) as container:
            stamps = {0: [], 1: []}
            for packet in container.demux():
                if packet.size:
                    stamps[packet.stream.index].append(float(packet.pts * packet.time_base))
        times.append([stamps[1][0] - min(stamps[0]), stamps[1][-1] - min(stamps[0])])
    assert times[0][1] - times[0][0] > 13
    np.testing.assert_allclose(*times, atol=0.05)


def test_a_transport_stream_that_begins_late_begins_at_once(tmp_path):
    hours = 36_000_000
    source = encode(tmp_path / "in.ts", times=range(hours, hours + 1000, 40))
    times = copy(source, tmp_path / "out.mp4")
    assert times[0] < 200 and np.array_equal(np.diff(times), [40] * 24)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration < 2e6


class MotionJPEG(http.server.BaseHTTPRequestHandler):
    """A network camera: a dozen pictures, ten a second, then nothing more until `ended` is set."""

    ended = threading.Event()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for index in range(12):
            data = cv2.imencode(".jpg", planes(index)[0])[1].tobytes()
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data))
            self.wfile.write(data + b"\r\n")
            time.sleep(0.1)
        self.ended.wait(20)

    def log_message(self, *_):
        pass


def test_a_network_camera_is_timed_by_arrival_and_left_where_it_stalls(threads):
    MotionJPEG.ended.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), MotionJPEG) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with VideoReader(f"http://127.0.0.1:{server.server_port}/camera.mjpg") as reader:
                assert reader.live and reader.format.time_base == Fraction(1, 1000)
                times = []
                with read_ahead(reader, tick=0.05, patience=0.2) as frames:
                    while len(times) < 11:
                        frame = next(frames)
                        times += [] if frame is None else [frame.pts]
                    while next(frames) is not None:  # the last picture may come yet
                        pass
                    begin = time.monotonic()
            assert time.monotonic() - begin < 5  # with a thread that waits for the next picture
        finally:
            MotionJPEG.ended.set()
            server.shutdown()
            serving.join()
    for thread in set(threading.enumerate()) - threads:
        thread.join()
    assert times == sorted(set(times)) and 850 < times[-1] - times[0] < 5000  # not 25 a second, as FFmpeg guesses


def test_a_file_without_a_duration_is_not_live(tmp_path):
    with av.open(str(tmp_path / "in.webm"), "w", container_options={"live": "1"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "in.webm") as reader:
        assert reader.frame_count is None and not reader.live


def test_a_reader_runs_once(tmp_path):
    with VideoReader(encode(tmp_path / "in.mp4", times=CONSTANT)) as reader:
        assert len(list(reader)) == 20
        with pytest.raises(RuntimeError, match="once"):
            next(iter(reader))


# ----------------------------------------------------------------------------------------------------------------------
# Reading ahead and writing behind


@pytest.fixture
def threads():
    """The threads before a test; afterwards there are no others."""
    before = set(threading.enumerate())
    yield before
    assert set(threading.enumerate()) == before


def slowly(items, seconds):
    for item in items:
        time.sleep(seconds)
        yield item


@pytest.mark.parametrize("slow", ["reading", "middle", "writing", None])
def test_items_keep_their_order_and_number(threads, slow):
    written = []

    def write(item):
        time.sleep(0.003 * (slow == "writing"))
        written.append(item)

    with read_ahead(slowly(range(60), 0.003) if slow == "reading" else range(60)) as items, write_behind(write) as put:
        assert len(set(threading.enumerate()) - threads) == 2
        for item in items:
            time.sleep(0.003 * (slow == "middle"))
            put(item)
    assert written == list(range(60))


@pytest.mark.parametrize("depth", [1, 4])
def test_reading_is_ahead_by_no_more_than_the_depth(threads, depth):
    read = []
    with read_ahead((read.append(item) or item for item in range(40)), depth) as items:
        for count, _ in enumerate(items, start=1):
            most, deadline = min(count + depth + 1, 40), time.monotonic() + 10
            while len(read) < most and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(read) == most  # `depth` wait, and one in the thread's hand


@pytest.mark.parametrize("depth", [1, 4])
def test_writing_is_behind_by_no_more_than_the_depth(threads, depth):
    written, gate = [], threading.Semaphore(0)

    def write(item):
        assert gate.acquire(timeout=10)
        written.append(item)

    with write_behind(write, depth) as put:
        for item in range(depth + 1):  # nothing waits for the writer: it holds one item, the others are kept
            put(item)
        assert not written
        last = threading.Thread(target=put, args=[depth + 1])
        last.start()
        last.join(0.1)
        assert last.is_alive()  # one more has to wait
        for _ in range(depth + 2):
            gate.release()
        last.join()
    assert written == list(range(depth + 2))


def test_items_are_not_kept(threads):
    class Item:
        living = 0

        def __init__(self):
            Item.living += 1

        def __del__(self):
            Item.living -= 1

    most = []
    with read_ahead((Item() for _ in range(200)), 4) as items, write_behind(lambda _: None, 4) as put:
        for item in items:
            put(item)
            most.append(Item.living)
    assert max(most) <= 2 * (4 + 2) + 1


def test_what_reading_raises_comes_after_the_items_before_it(threads):
    def items():
        yield from range(3)
        raise VideoError("damaged")

    seen = []
    with pytest.raises(VideoError, match="damaged"), read_ahead(items()) as ahead:
        for item in ahead:
            seen.append(item)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("when", ["early", "last"])
def test_what_writing_raises_comes_back_and_ends_it(threads, when):
    written = []

    def write(item):
        if item == (2 if when == "early" else 9):
            raise OSError(28, "No space left on device")
        written.append(item)

    count = 0
    with pytest.raises(OSError, match="No space"), write_behind(write) as put:
        for item in range(10 if when == "last" else 10**6):
            put(item)
            count += 1
    assert written == list(range(2 if when == "early" else 9))
    assert count <= 2 + 4 + 2 or when == "last"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_the_block_raises_ends_both_threads(threads, error):
    written = []

    def write(item):
        time.sleep(0.3)
        written.append(item)

    endless = iter(lambda: 0, 1)
    with pytest.raises(error), read_ahead(endless) as items, write_behind(write, 4) as put:
        for count, item in enumerate(items):
            put(item)
            if count == 4:
                raise error
    if error is KeyboardInterrupt:
        assert len(written) <= 1  # what waits is dropped
    else:
        assert len(written) == 5


def press_ctrl_c(*times):
    """Interrupt the main thread after so many seconds each."""
    for seconds in times:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process there")
def test_a_further_interrupt_does_not_leave_the_thread_behind(threads):
    done = []

    def work(item):
        time.sleep(0.6)
        done.append(item)

    with pytest.raises(KeyboardInterrupt), write_behind(work) as put:
        put("written")
        press_ctrl_c(0.2, 0.4)
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert done == ["written"]
    with pytest.raises(KeyboardInterrupt), read_ahead(work(item) for item in ["read"]) as items:
        press_ctrl_c(0.2, 0.4)
        assert items
        raise KeyboardInterrupt
    assert done == ["written", "read"]


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process there")
def test_an_interrupt_while_the_encoder_is_emptied_keeps_the_file(tmp_path, monkeypatch, threads):
    finish = VideoWriter._finish

    def slowly(writer, *arguments):
        time.sleep(0.5)
        finish(writer, *arguments)

    monkeypatch.setattr(VideoWriter, "_finish", slowly)
    source = encode(tmp_path / "in.mp4", times=CONSTANT)
    with (
        pytest.raises(KeyboardInterrupt),
        VideoReader(source) as reader,
        VideoWriter(tmp_path / "out.mp4", reader.format) as writer,
    ):
        for frame in reader:
            writer.write(frame)
        press_ctrl_c(0.2, 0.3)
    assert read_times(tmp_path / "out.mp4") == CONSTANT


def test_who_reads_is_not_waited_for_without_end(threads):
    begin, release = time.monotonic(), threading.Event()
    with read_ahead((release.wait(20) for _ in range(1)), tick=0.05, patience=0.2) as items:
        assert [next(items) for _ in range(3)] == [None] * 3
    assert time.monotonic() - begin < 10
    release.set()
    for thread in set(threading.enumerate()) - threads:
        thread.join()


def test_leaving_early_ends_the_thread(threads):
    with read_ahead(iter(lambda: 0, 1)) as items:
        assert next(items) == 0
    assert not list(items)
    with read_ahead(range(2)):
        pass


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_threads_change_nothing_in_the_file(tmp_path, threads, suffix):
    # A second without a frame, so that audio comes in heaps; WebM has it decoded and encoded.
    times = [40 * index for index in range(12)] + [1480, 1520]
    source = encode(tmp_path / "in.mp4", times=times, size=(128, 96), audio="aac", options={"bf": "3"})
    copy(source, tmp_path / f"plain{suffix}")
    with (
        VideoReader(source, audio=True) as reader,
        VideoWriter(tmp_path / f"threads{suffix}", reader.format, reader) as writer,
        read_ahead(reader) as frames,
        write_behind(writer.write) as write,
    ):
        for frame in frames:
            write(frame)
    for kind in ("video", "audio"):
        assert packets(tmp_path / f"threads{suffix}", kind) == packets(tmp_path / f"plain{suffix}", kind)
    if suffix == ".mp4":  # WebM has random numbers in it
        assert (tmp_path / "threads.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


def test_audio_is_taken_up_to_where_a_frame_was_met(tmp_path):
    source = encode(tmp_path / "in.mkv", codec="rawvideo", times=CONSTANT, audio="aac")
    with VideoReader(source, audio=True) as reader:
        frames = list(reader)
        met = [frame.audio_before for frame in frames]
        taken = [len(reader.take_audio(end)) for end in met]
        rest = len(reader.take_audio())
    assert np.array_equal(np.cumsum(taken), met) and met[-1] > 10
    assert met[-1] + rest == len(packets(source, "audio"))


# ----------------------------------------------------------------------------------------------------------------------
# Images


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (40, 30), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".jpg"])
def test_images_come_back(tmp_path, photo, suffix):
    write_image(tmp_path / f"image{suffix}", Picture(photo))
    again = read_image(tmp_path / f"image{suffix}")
    limit = 0 if suffix in (".png", ".tif", ".bmp") else 12
    assert again.pixels.dtype == np.uint8 and again.alpha is None
    assert np.abs(again.pixels.astype(int) - photo).mean() <= limit


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("kind", ["grey", "colour", "alpha"])
def test_16_bit_images_stay_16_bit(tmp_path, photo, suffix, kind):
    deep = photo.astype(np.uint16) * 257 + 3
    picture = {
        "grey": Picture(deep[..., 0].copy()),
        "colour": Picture(deep),
        "alpha": Picture(deep, deep[..., 1].copy()),
    }[kind]
    write_image(tmp_path / f"deep{suffix}", picture)
    again = read_image(tmp_path / f"deep{suffix}")
    assert again.pixels.dtype == np.uint16
    assert np.array_equal(again.pixels, picture.pixels)
    assert (again.alpha is None) == (kind != "alpha")
    assert kind != "alpha" or np.array_equal(again.alpha, picture.alpha)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pillow_modes_are_read(tmp_path, photo, mode):
    image = Image.fromarray(photo[..., ::-1]).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    picture = read_image(path)
    assert picture.pixels.shape == ((30, 40) if mode in ("1", "L") else (30, 40, 3))
    assert (picture.alpha is not None) == (mode in ("LA", "RGBA"))
    expected = np.array(image.convert("RGB"))[..., ::-1]
    color = picture.pixels if picture.pixels.ndim == 3 else np.repeat(picture.pixels[..., None], 3, axis=2)
    assert np.array_equal(color, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["8 bit png", "16 bit png", "8 bit tif", "16 bit tif"])
def test_orientation_is_applied(tmp_path, photo, orientation, kind):
    path = tmp_path / f"image.{kind[-3:]}"
    grey = photo[..., 0]
    stored = Image.fromarray(grey if kind.startswith("8") else grey.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)
    turns = {
        1: grey,
        2: grey[:, ::-1],
        3: grey[::-1, ::-1],
        4: grey[::-1],
        5: grey.T,
        6: np.rot90(grey, -1),
        7: grey[::-1, ::-1].T,
        8: np.rot90(grey),
    }
    if path.suffix == ".tif" and orientation > 4:
        with pytest.raises(VideoError, match="on its side"):
            read_image(path)
        return
    pixels = read_image(path).pixels
    assert pixels.dtype == (np.uint8 if kind.startswith("8") else np.uint16)
    assert np.array_equal(pixels >> (0 if kind.startswith("8") else 8), turns[orientation])


def test_color_profile_is_kept(tmp_path, photo):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo).save(tmp_path / "in.jpg", icc_profile=profile)
    picture = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.png", picture)
    assert Image.open(tmp_path / "out.png").info["icc_profile"] == profile


@pytest.mark.parametrize(
    ("suffix", "deep", "alpha"), [(".jpg", True, False), (".webp", True, False), (".jpg", False, True)]
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, photo, suffix, deep, alpha):
    pixels = photo.astype(np.uint16) if deep else photo
    with pytest.raises(VideoError, match="does not hold"):
        write_image(tmp_path / f"image{suffix}", Picture(pixels, pixels[..., 0] if alpha else None))
    assert not list(tmp_path.iterdir())


def test_broken_images_are_refused(tmp_path, photo):
    write_image(tmp_path / "whole.jpg", Picture(photo))
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("not an image")
    frames = [Image.fromarray(photo), Image.fromarray(photo[::-1])]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    for name, message in (("cut.jpg", "damaged"), ("text.png", "not an image"), ("pages.tif", "2 pictures")):
        with pytest.raises(VideoError, match=message):
            read_image(tmp_path / name)


def test_warnings_go_through_logging(tmp_path, caplog):
    turned = VideoFormat(64, 48, Fraction(25), display_matrix=QUARTER_TURN)
    with caplog.at_level(logging.WARNING, "video"), VideoWriter(tmp_path / "out.avi", turned) as writer:
        writer.write(Frame(*planes(0)))
    assert "rotation" in caplog.text
