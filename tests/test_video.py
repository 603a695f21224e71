"""Reading and writing of videos, on small files made here."""

import functools
import gc
import http.server
import socket
import struct
import sys
import threading
import time
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from images import VideoError
from pipeline import read_ahead
from tests.conftest import (
    CONSTANT,
    MIRROR,
    QUARTER_TURN,
    VARIABLE,
    brightness_order,
    broken_file,
    copy,
    encode,
    milliseconds,
    packets,
    pictures,
    planes,
    read_times,
    spoil,
)
from video import Frame, VideoFormat, VideoReader, VideoWriter, plane_pixels

SMALL = VideoFormat(64, 48, Fraction(25))


# ----------------------------------------------------------------------------------------------------------------------
# Frames


@pytest.mark.parametrize(
    ("suffix", "times"),
    [(suffix, times) for suffix in (".mp4", ".mkv", ".mov", ".webm", ".avi") for times in (CONSTANT, VARIABLE)][:-1],
)
def test_every_frame_once_in_order_at_its_time_and_the_audio_as_it_was(tmp_path, suffix, times):
    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    encode(source, times=times, audio="aac", options={"bf": "3"})
    assert copy(source, target) == times
    assert read_times(target) == times
    assert brightness_order(target) == list(range(len(times)))
    before, after = packets(source, "audio"), packets(target, "audio")
    assert len(before) > 40 and before[0][1] < 0  # what the decoder needs to begin with moves no frame
    assert suffix in (".avi", ".webm") or [data for data, _ in after] == [data for data, _ in before]
    assert suffix != ".mp4" or after == before  # time stamps too


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_broken_rates_are_kept(tmp_path, suffix):
    rate = Fraction(24000, 1001)
    with VideoWriter(tmp_path / "in.mp4", VideoFormat(64, 48, rate)) as writer:
        for index in range(20):
            writer.write(Frame(*planes(index)))
    copy(tmp_path / "in.mp4", tmp_path / f"out{suffix}")
    with VideoReader(tmp_path / f"out{suffix}") as reader:
        assert suffix in (".mkv", ".webm") or reader.format.rate == rate
        times = [float(frame.pts * reader.format.time_base) for frame in reader]
    tolerance = 0.0005 if suffix in (".mkv", ".webm") else 0  # Matroska counts milliseconds
    assert times == pytest.approx([float(index / rate) for index in range(20)], abs=tolerance + 1e-9)
    assert brightness_order(tmp_path / f"out{suffix}") == list(range(20))


def test_odd_sizes_are_read_as_coded_kept_by_vp9_and_padded_for_h264(tmp_path, caplog):
    source = encode(tmp_path / "in.mkv", codec="ffv1", size=(35, 29))
    with VideoReader(source) as reader:
        assert (reader.format.width, reader.format.height, reader.frame_count) == (35, 29, 20)
        for index, frame in enumerate(reader):
            y, uv = planes(index, 35, 29)
            assert np.array_equal(frame.y, y) and np.array_equal(frame.uv, uv)
        with pytest.raises(RuntimeError, match="once"):
            next(iter(reader))
    copy(source, tmp_path / "out.webm")
    assert not caplog.records
    copy(source, tmp_path / "out.mp4")
    assert "even size" in caplog.text
    for name, size in (("out.webm", (35, 29)), ("out.mp4", (36, 30))):
        with VideoReader(tmp_path / name) as reader:
            assert (reader.format.width, reader.format.height) == size
            *_, last = reader
        assert np.abs(last.y[:29, :35].astype(int) - planes(19, 35, 29)[0]).mean() < 3


def test_closed_captions_are_named_once(tmp_path, caplog):
    """Two bytes of text in each frame from the third on, as user data of ATSC A/53 in a message of H.264."""
    source = encode(tmp_path / "in.mp4", options={"bf": "0"})
    captions = b"\xb5\x00\x31GA94\x03\x41\xff\xfc\x94\x2c\xff"
    message = b"\0\0\0\1\x06\x04" + bytes([len(captions)]) + captions + b"\x80"
    with av.open(str(source)) as container:
        to_stream = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", container.streams.video[0])
        found = [
            each for packet in container.demux(video=0) for each in to_stream.filter(packet if packet.size else None)
        ]
    stream = tmp_path / "in.h264"
    stream.write_bytes(b"".join(message * (index > 1) + bytes(packet) for index, packet in enumerate(found)))
    with VideoReader(stream) as reader:
        assert len(list(reader)) == len(found)
    assert caplog.text.count("closed captions within its video are not kept") == 1


def test_frames_are_freed_without_a_garbage_collection(tmp_path):
    """An hour of video must not fill the memory."""

    def alive():
        return sum(isinstance(thing, av.VideoFrame | av.AudioFrame | av.Packet) for thing in gc.get_objects())

    source = encode(tmp_path / "in.mp4", audio="aac")
    gc.collect()
    gc.disable()
    try:
        before = alive()
        assert copy(source, tmp_path / "out.mp4") == CONSTANT
        assert alive() - before <= 2  # the first frame, whose side data was read
    finally:
        gc.enable()


def interlaced(index, width, height):
    """A bright bar that moves by 8 pixels from field to field."""
    y, uv = np.full((height, width), 40, np.uint8), np.full((2, height // 2, width // 2), 128, np.uint8)
    for field in range(2):
        left = (16 * index + 8 * field) % 96
        y[field::2, left : left + 16] = 200
    return y, uv


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE], ids=["constant", "variable"])
def test_interlaced_frames_become_progressive(tmp_path, caplog, times):
    options = {"crf": "1", "flags": "+ildct+ilme"}
    source = encode(tmp_path / "in.mp4", times=times, size=(128, 64), options=options, draw=interlaced)
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
        assert comb(frame.y) < comb(plane_pixels(before.planes[0])) / 2
    copy(source, tmp_path / "out.mp4")
    assert read_times(tmp_path / "out.mp4") == times
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not any(frame.interlaced_frame for frame in container.decode(video=0))


# ----------------------------------------------------------------------------------------------------------------------
# Colours and shape


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi"])
@pytest.mark.parametrize("value_range", [1, 2])
def test_tags_pass_through(tmp_path, caplog, suffix, value_range):
    colours = {"value_range": value_range, "matrix": 6, "primaries": 5, "transfer": 8}
    form = VideoFormat(64, 48, Fraction(25), **colours, pixel_aspect=Fraction(4, 3))
    with VideoWriter(tmp_path / "in.mp4", form) as writer:
        for index in range(3):
            writer.write(Frame(*planes(index)))
    copy(tmp_path / "in.mp4", tmp_path / f"out{suffix}")
    with VideoReader(tmp_path / f"out{suffix}") as reader:
        tags = vars(reader.format)
        assert reader.format.full_range == (value_range == 2)
    assert {name: tags[name] for name in colours} == colours
    assert ("cannot keep pixels of 4/3" in caplog.text) == (suffix == ".webm")
    assert suffix == ".webm" or tags["pixel_aspect"] == Fraction(4, 3)


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
def test_pictures_have_the_colours_that_the_tags_say(tmp_path, matrix, value_range):
    red, green, blue = np.meshgrid(*3 * [np.linspace(0, 1, 4)], indexing="ij")
    kr, kb = (0.299, 0.114) if matrix == 6 else (0.2126, 0.0722)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = [(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)]
    black, white, swing = (16, 219, 224) if value_range == 1 else (0, 255, 255)

    def patches(values, side):
        return np.kron(np.clip(np.rint(values), 0, 255).astype(np.uint8).reshape(8, 8), np.ones((side, side), np.uint8))

    y, uv = patches(black + white * luma, 16), np.stack([patches(128 + swing * plane, 8) for plane in chroma])
    tags = {"value_range": value_range, "matrix": matrix, "primaries": matrix, "transfer": matrix}
    with VideoWriter(tmp_path / "in.mkv", VideoFormat(128, 128, Fraction(25), **tags), codec="ffv1") as writer:
        writer.write(Frame(y, uv))
    with VideoReader(tmp_path / "in.mkv") as reader:
        (picture,) = pictures(reader)
    chart = np.rint(255 * np.stack([blue, green, red], axis=-1)).reshape(8, 8, 3)
    difference = np.abs(picture[8::16, 8::16].astype(int) - chart)
    # Eight bits of luma and chroma hold a colour to within two steps, and the converter rounds once more.
    assert difference.max() <= 3 and difference.mean() < 1


@pytest.mark.parametrize(
    ("matrix", "aspect", "shape"),
    [(QUARTER_TURN, 1, (64, 48)), (MIRROR, 1, (48, 64)), (MIRROR, 2, (48, 128)), (QUARTER_TURN, 0.5, (64, 96))],
)
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_pictures_are_as_players_show_them(tmp_path, matrix, aspect, shape, suffix):
    def halves(_, width, height):
        return np.repeat([[200, 50]], width // 2, axis=1).repeat(height, axis=0), np.full((2, 24, 32), 128)

    encode(tmp_path / "in.mp4", times=[0], draw=halves, matrix=matrix, aspect=Fraction(aspect))
    copy(tmp_path / "in.mp4", tmp_path / f"out{suffix}")
    for name in ("in.mp4", f"out{suffix}"):
        with VideoReader(tmp_path / name) as reader:
            (picture,) = pictures(reader)
        assert picture.shape == (*shape, 3)
        bright, dark = (picture[:20], picture[-20:]) if matrix == QUARTER_TURN else (picture[:, -20:], picture[:, :20])
        assert bright.mean() > 180 and dark.mean() < 60  # what was left comes to the top, or to the right


def test_what_the_container_crops_is_left_out(tmp_path):
    data = encode(tmp_path / "in.mp4").read_bytes()
    clap = struct.pack(">I4s8i", 40, b"clap", 48, 1, 40, 1, 0, 1, 2, 1)
    place = data.index(b"avcC") - 4
    data = bytearray(data[:place] + clap + data[place:])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = data.rindex(name) - 4
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + 40).to_bytes(4, "big")
    (tmp_path / "in.mp4").write_bytes(data)
    with VideoReader(tmp_path / "in.mp4") as reader:
        assert (reader.format.width, reader.format.height) == (48, 40)
        first = next(iter(reader))
    assert first.y.shape == (40, 48) and first.uv.shape == (2, 20, 24)
    with av.open(str(tmp_path / "in.mp4")) as container:
        whole = plane_pixels(next(container.decode(video=0)).planes[0])
    assert np.array_equal(first.y, whole[6:46, 8:56])


@pytest.mark.parametrize("value_range", [1, 2])
@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv444p", "gray", "nv12"])
def test_other_8_bit_formats_keep_their_range(tmp_path, caplog, pixel_format, value_range):
    codec, name = ("rawvideo", "in.nut") if pixel_format == "nv12" else ("ffv1", "in.mkv")
    options = {"color_range": str(value_range)}
    encode(tmp_path / name, codec, pixel_format, times=CONSTANT[:3], options=options)
    with VideoReader(tmp_path / name) as reader:
        assert reader.format.value_range == (0 if pixel_format == "nv12" else value_range)  # .nut does not keep it
        frames = list(reader)
    assert len(frames) == 3
    assert caplog.text.count(f"{pixel_format} is converted to 8-bit yuv420p") == (pixel_format != "nv12")
    for index, frame in enumerate(frames):
        value = planes(index)[0][0, -1]
        assert (frame.y == value).all() and (frame.uv == (128 if pixel_format == "gray" else value)).all()


@pytest.mark.parametrize(
    ("pixel_format", "transfer", "message"),
    [
        ("yuv420p10le", 1, "10-bit.*yuv420p10le"),
        ("yuva420p", 1, "transparency.*yuva420p"),
        ("yuv420p10le", 16, r"HDR video \(PQ\).*ffmpeg -i INPUT -vf .*tonemap.* OUTPUT"),
        ("yuv420p10le", 18, r"HDR video \(HLG\).*ffmpeg -i INPUT -vf .*tonemap.* OUTPUT"),
    ],
)
def test_what_8_bit_planes_cannot_hold_is_refused_by_name(tmp_path, pixel_format, transfer, message):
    options = {"color_trc": str(transfer)}
    source = encode(tmp_path / "in.mkv", "ffv1", pixel_format, times=CONSTANT[:3], options=options)
    with pytest.raises(VideoError, match=message):
        VideoReader(source)


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
        (".avi", "ffv1", "FFV1"),
    ],
)
def test_the_encoder_is_chosen(tmp_path, suffix, codec, tag):
    copy(encode(tmp_path / "in.mp4", size=(96, 64), options={"bf": "3"}), tmp_path / f"out{suffix}", codec=codec)
    assert read_times(tmp_path / f"out{suffix}") == CONSTANT
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        found = container.streams.video[0].codec_context
        assert found.codec.canonical_name == codec
        assert tag is None or found.codec_tag == tag


@pytest.mark.parametrize(
    ("suffix", "codec", "quality"),
    [
        (".mp4", None, 0),
        (".avi", "h264", 0),
        (".webm", None, 0),
        (".mkv", "ffv1", None),
        (".avi", "ffv1", None),
    ],
)
def test_lossless_is_bit_for_bit(tmp_path, rng, suffix, codec, quality):
    noise = [(rng.integers(0, 256, (64, 96), np.uint8), rng.integers(0, 256, (2, 32, 48), np.uint8)) for _ in range(3)]
    with VideoWriter(tmp_path / f"out{suffix}", VideoFormat(96, 64, Fraction(25)), None, quality, codec) as writer:
        for frame in noise:
            writer.write(Frame(*frame))
    with VideoReader(tmp_path / f"out{suffix}") as reader:
        for frame, (y, uv) in zip(reader, noise, strict=True):
            assert np.array_equal(frame.y, y) and np.array_equal(frame.uv, uv)


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9"])
def test_quality_is_the_encoders(tmp_path, codec):
    source = encode(tmp_path / "in.mp4", size=(96, 64), options={"crf": "1"})
    for quality in (10, 50):
        copy(source, tmp_path / f"{quality}.mkv", codec=codec, quality=quality)
    assert (tmp_path / "10.mkv").stat().st_size > 1.3 * (tmp_path / "50.mkv").stat().st_size


@pytest.mark.parametrize(
    ("name", "codec", "quality", "message"),
    [
        ("out.xyz", None, None, r"ends in one of \.mp4"),
        ("out.mp4", "h264", 52, r"h264 is 0 \(best\) to 51, got 52"),
        ("out.mp4", "vp9", -1, r"vp9 is 0 \(best\) to 63"),
        ("out.mp4", "h264", float("nan"), "got nan"),
        ("out.mp4", "h265", None, "no video encoder h265 on this machine: use one of h264, hevc"),
    ],
)
def test_wrong_names_encoders_and_qualities_are_refused_first(tmp_path, name, codec, quality, message):
    with pytest.raises(VideoError, match=message):
        VideoWriter(tmp_path / name, SMALL, quality=quality, codec=codec)


@pytest.mark.parametrize(
    ("suffix", "codec", "message"),
    [
        (".webm", "h264", ".webm does not hold .* use one of (av1, )?vp9, or .mkv"),
        (".mp4", "hevc", "libx265 does not open for 8x8 .*use one of h264"),
        (".mov", "vp9", r"\.mov does not hold .*use one of h264, hevc, or .mkv"),
    ],
)
def test_encoders_that_do_not_fit_or_open_name_others(tmp_path, suffix, codec, message):
    writer = VideoWriter(tmp_path / f"out{suffix}", VideoFormat(8, 8, Fraction(25)), codec=codec)
    with pytest.raises(VideoError, match=message), writer:
        pass
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------------------
# What goes wrong


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is empty"),
        ("truncated", "cannot be read"),
        ("cut", "incomplete"),
        ("sound", "no video stream"),
    ],
)
def test_broken_videos_are_refused(tmp_path, kind, message):
    with pytest.raises(VideoError, match=message):
        list(VideoReader(broken_file(tmp_path, kind)))


@pytest.mark.parametrize("damage", [1, 10, 60])
def test_damage_is_a_gap_and_if_it_is_most_of_a_file_a_partial_one(tmp_path, rng, caplog, damage):
    options = {"crf": "5", "g": "10", "bf": "0"}
    source = encode(tmp_path / "in.mp4", times=range(0, 4000, 40), size=(128, 96), audio="aac", options=options)
    spoil(source, "video", slice(20, 20 + damage), rng)
    if damage < 50:
        copy(source, tmp_path / "out.mp4")
        assert f"{damage} frame{'s' * (damage > 1)} could not be decoded, near 00:00.8" in caplog.text
        times = read_times(tmp_path / "out.mp4")
        assert len(times) == 100 - damage and set(times) <= set(range(0, 4000, 40)) and times[-1] == 3960
    else:
        with pytest.raises(
            VideoError, match=r"damaged for the most part.*the \d+ frames before are in .*out_partial.mp4"
        ):
            copy(source, tmp_path / "out.mp4")


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_a_file_that_was_cut_off_is_told(tmp_path, caplog, suffix):
    source = tmp_path / f"in{suffix}"
    copy(encode(tmp_path / "film.mkv", codec="ffv1", times=range(0, 4000, 40)), source, codec="ffv1")
    copy(source, tmp_path / "whole.mp4")
    assert "ends early" not in caplog.text
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    told, output = "", tmp_path / "out.mp4"
    try:
        copy(source, output)
    except VideoError as error:  # some releases of FFmpeg notice it
        told, output = str(error), tmp_path / "out_partial.mp4"
    count = len(read_times(output))
    assert 20 < count < 80
    assert f"ends early: {count} of about 100 frames" in caplog.text or f"the {count} frames before are in" in told


def test_a_partial_file_replaces_none(tmp_path):
    (tmp_path / "out_partial.mp4").write_bytes(b"somebody's own")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "out.mp4")
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "link.mp4", SMALL) as writer:
        writer.write(Frame(*planes(0)))
        raise KeyboardInterrupt
    assert (tmp_path / "out_partial.mp4").read_bytes() == b"somebody's own"
    assert len(read_times(tmp_path / "out_partial2.mp4")) == 1


@pytest.mark.parametrize("table", [b"stsz", b"stco"])
def test_an_mp4_whose_index_ends_early_is_a_partial_one(tmp_path, table):
    source = encode(tmp_path / "in.mp4", times=range(0, 3000, 40), audio="aac", heard=range(0, 3000, 20))
    data = bytearray(source.read_bytes())
    place = data.index(table) + (12 if table == b"stsz" else 8)  # the number of its entries, which is smaller for stco
    kept = int.from_bytes(data[place : place + 4], "big") - 17
    data[place : place + 4] = kept.to_bytes(4, "big")
    source.write_bytes(data)
    with pytest.raises(
        VideoError, match=r"incomplete: it ends early, after 5\d of about 75 .*are in .*out_partial.mp4"
    ):
        copy(source, tmp_path / "out.mp4")
    assert 50 < len(read_times(tmp_path / "out_partial.mp4")) < 60


@pytest.mark.parametrize("first", [29, 15])
def test_wrong_entries_in_an_index_are_a_gap(tmp_path, caplog, first):
    heard, options = range(0, 3000, 20), {"g": "10", "bf": "0"}
    source = encode(tmp_path / "in.mp4", times=range(0, 3000, 40), audio="aac", heard=heard, options=options)
    data = bytearray(source.read_bytes())
    for frame in range(first, 30):  # the last is before a keyframe
        place = data.index(b"stco") + 12 + 4 * frame
        data[place : place + 4] = (1 << 30).to_bytes(4, "big")
    source.write_bytes(data)
    expected = [time for time in range(0, 3000, 40) if not first * 40 <= time < 1200]
    assert read_times(source) == expected
    assert "1 packet could not be read, near 00:01.2" in caplog.text
    assert copy(source, tmp_path / "out.mp4") == expected
    assert len(packets(tmp_path / "out.mp4", "audio")) > 140 and "ends early" not in caplog.text


def test_what_nothing_can_be_read_behind_is_a_partial_one(tmp_path):
    source = encode(tmp_path / "in.y4m", "rawvideo")
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    with pytest.raises(VideoError, match=r"in.y4m is damaged or incomplete .*are in .*out_partial.mp4"):
        copy(source, tmp_path / "out.mp4")
    assert 8 < len(read_times(tmp_path / "out_partial.mp4")) < 12 and not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(("codec", "lost"), [("libx264", "9 frames"), ("libx265", "1 frame")])
def test_frames_that_a_decoder_drops_without_a_word_are_counted(tmp_path, caplog, codec, lost):
    source = encode(tmp_path / "in.mp4", codec, options={"bf": "3", "g": "10", "x265-params": "log-level=none"})
    with av.open(str(source)) as container:
        first = next(container.demux(video=0))
        assert (first.pts, first.dts < 0) == (0, True)
    data = bytearray(source.read_bytes())
    data[first.pos : first.pos + first.size] = b"\xff" * first.size
    source.write_bytes(data)
    assert len(copy(source, tmp_path / "out.mp4")) == len(CONSTANT) - int(lost.split()[0])
    assert f"{lost} could not be decoded, near 00:00.0" in caplog.text


def test_no_frame_is_missed_in_whole_files(tmp_path, caplog):
    options = {"bf": "3", "g": "8"}
    for suffix in (".mp4", ".mkv", ".ts", ".flv", ".avi", ".asf", ".wmv"):
        source = encode(tmp_path / f"in{suffix}", "libx264", times=VARIABLE, options=options)
        assert len(copy(source, tmp_path / "out.mp4")) == len(VARIABLE), suffix
    assert not caplog.records


@pytest.mark.parametrize("options", [{"bf": "3", "g": "50"}, {"bf": "0", "g": "1"}], ids=["long", "short"])
def test_a_trimmed_clip_is_complete(tmp_path, caplog, options):
    whole = encode(tmp_path / "whole.mp4", times=range(0, 4000, 40), options=options)
    with av.open(str(whole)) as container, av.open(str(tmp_path / "in.mp4"), "w") as trimmed:
        stream = trimmed.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = (time - round(1.52 / packet.time_base) for time in (packet.pts, packet.dts))
                packet.stream = stream
                trimmed.mux(packet)
    with av.open(str(tmp_path / "in.mp4")) as container:
        assert container.streams.video[0].frames == 100  # of which an edit list leaves out 38
    assert len(copy(tmp_path / "in.mp4", tmp_path / "out.mp4")) == 62 and not caplog.records


@pytest.mark.parametrize("audio", ["aac", None])
def test_a_clip_that_begins_late_and_ends_before_its_data_is_complete(tmp_path, caplog, audio):
    source = encode(tmp_path / "in.mp4", times=range(0, 4000, 40), audio=audio, options={"bf": "0"})
    data = bytearray(source.read_bytes())
    edits, index = data.index(b"edts"), data.index(b"moov") - 4
    assert data[edits + 8 : edits + 20] == b"elst" + bytes(4) + b"\0\0\0\1" and data.index(b"mdat") < index
    one = struct.pack(">IiI", 2000, 0, 1 << 16)  # milliseconds, beginning, rate
    data[edits + 16 : edits + 32] = struct.pack(">IIiI", 2, 1000, -1, 1 << 16) + one  # -1: a pause
    for place in (edits - 4, edits + 4, data.index(b"trak") - 4, index):  # sizes of the boxes
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + 12).to_bytes(4, "big")
    source.write_bytes(data)
    begin = 1000 if audio else 0
    assert copy(source, tmp_path / "out.mp4") == [begin + time for time in range(0, 2000, 40)] and not caplog.records


@pytest.mark.parametrize(
    ("frames", "error"), [(1, ZeroDivisionError), (0, KeyboardInterrupt), (0, VideoError("damaged")), (0, None)]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, frames, error):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"old")
    expected = error or VideoError
    with (
        pytest.raises(expected if isinstance(expected, type) else VideoError),
        VideoWriter(target, SMALL) as writer,
    ):
        for index in range(frames):
            writer.write(Frame(*planes(index)))
        if error:
            raise error
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_frames_of_another_size_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="expected frames of 64x48, got 32x48"),
        VideoWriter(tmp_path / "out.mp4", SMALL) as writer,
    ):
        writer.write(Frame(*planes(0, 32, 48)))


# ----------------------------------------------------------------------------------------------------------------------
# Streams and time stamps that need mending


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("kind", ["ts", "webm"])
def test_recordings_that_were_joined_follow_each_other(tmp_path, kind, suffix):
    codecs = {"codec": "libvpx", "audio": "libopus", "muxing": {"live": "1"}} if kind == "webm" else {"audio": "aac"}
    part = encode(tmp_path / f"part.{kind}", times=range(0, 1000, 40), **codecs)
    (tmp_path / f"in.{kind}").write_bytes(2 * part.read_bytes())
    copy(tmp_path / f"in.{kind}", tmp_path / f"out{suffix}")
    steps = np.diff(read_times(tmp_path / f"out{suffix}"))
    # The first frame is at 80 ms, but .avi has no time stamps and begins at 0.
    assert len(steps) == 49 and (np.abs(np.delete(steps, [0, 24]) - 40) <= 1).all() and 39 <= steps[24] <= 240
    assert (np.diff([pts for _, pts in packets(tmp_path / f"out{suffix}", "audio")]) > 0).all()
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 2 * 47800


@pytest.mark.parametrize("rate", [25, 50])  # of AVI's grid: at 50, every other packet is empty
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_b_frames_in_avi_come_at_their_times(tmp_path, suffix, rate):
    encode(tmp_path / "in.avi", options={"bf": "2", "b_strategy": "0"}, unit=Fraction(1, rate))
    assert copy(tmp_path / "in.avi", tmp_path / f"out{suffix}") == CONSTANT
    assert read_times(tmp_path / f"out{suffix}") == CONSTANT
    assert brightness_order(tmp_path / f"out{suffix}") == list(range(20))


def test_b_frames_in_matroska_that_begins_late_come_at_their_times(tmp_path, caplog):
    late = [5000 + time for time in CONSTANT]
    encode(tmp_path / "in.mkv", options={"bf": "2", "b_strategy": "0"}, times=late)
    copy(tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert "ends early" not in caplog.text
    times = read_times(tmp_path / "out.mp4")
    assert times[0] <= 80 and [time - times[0] for time in times] == CONSTANT


def test_a_size_that_changes_becomes_the_largest_between_black_bars(tmp_path, caplog):
    sizes = ((64, 48), (128, 96), (48, 64))
    parts = [encode(tmp_path / f"{w}.webm", "libvpx", size=(w, h), muxing={"live": "1"}) for w, h in sizes]
    (tmp_path / "in.webm").write_bytes(b"".join(part.read_bytes() for part in parts))
    copy(tmp_path / "in.webm", tmp_path / "out.mp4", quality=1)
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert (reader.format.width, reader.format.height) == (128, 96)
        frames = list(reader)
    assert len(frames) == 60 and frames[0].y.min() > 20
    upright = frames[-1].y  # 72x96 of the 128x96
    assert upright[:, :26].max() < 20 and upright[:, 102:].max() < 20 and upright[:, 30:98].min() > 20
    assert "changes from 64x48 yuv420p to 128x96 yuv420p near 00:00.8" in caplog.text


def test_a_fragmented_file_that_was_cut_gives_what_it_has(tmp_path, caplog):
    source = encode(tmp_path / "in.mp4", options={"g": "5"}, muxing={"movflags": "frag_keyframe+empty_moov"})
    data = source.read_bytes()
    source.write_bytes(data[: data.rindex(b"mdat") + 60])
    copy(source, tmp_path / "out.mp4")
    assert len(read_times(tmp_path / "out.mp4")) >= 15 and "ends early" in caplog.text


def test_the_default_video_track_is_taken(tmp_path, caplog):
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=25, width=side, height=side) for side in (32, 64)]
        streams[0].disposition, streams[1].disposition = 0, 1
        for stream in streams:
            for packet in [*stream.encode(av.VideoFrame(stream.width, stream.height, "yuv420p")), *stream.encode(None)]:
                container.mux(packet)
    copy(tmp_path / "in.mkv", tmp_path / "out.mp4")
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert reader.format.width == 64
    assert "not kept: video track 1 (h264)" in caplog.text


def test_a_transport_stream_that_begins_late_begins_at_once(tmp_path):
    hours = 36_000_000
    source = encode(tmp_path / "in.ts", times=range(hours, hours + 1000, 40))
    times = copy(source, tmp_path / "out.mp4")
    assert times[0] < 200 and np.array_equal(np.diff(times), [40] * 24)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration < 2e6


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_broadcast_whose_clock_overflows_is_complete(tmp_path, suffix):
    """After 26.5 hours: 2^33 ticks of 1/90,000 s."""
    source = encode(tmp_path / "in.ts", audio="mp2", muxing={"output_ts_offset": "95443.3", "muxdelay": "0"})
    with av.open(str(source)) as container:
        assert container.start_time < 0
    times = copy(source, tmp_path / f"out{suffix}")
    assert [time - times[0] for time in times] == CONSTANT and times[0] < 40  # of the sound, which comes first
    assert len(read_times(tmp_path / f"out{suffix}")) == len(CONSTANT)


def test_raw_dv_keeps_its_rate(tmp_path):
    source = encode(tmp_path / "in.dv", "dvvideo", times=CONSTANT, size=(720, 576), unit=Fraction(1, 25))
    assert copy(source, tmp_path / "out.mp4") == CONSTANT == read_times(tmp_path / "out.mp4")
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert reader.format.rate == 25


@pytest.mark.skipif(sys.platform == "win32", reason="names have no colons there")
def test_a_name_that_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "in.mp4").rename("call10:30.mp4")
    assert copy("call10:30.mp4", "out10:30.mp4") == CONSTANT
    assert read_times("out10:30.mp4") == CONSTANT


@pytest.fixture
def serve():
    """A function that serves HTTP with a handler, and returns the address."""
    servers = []

    def start(handler):
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_addresses_are_read_like_files(tmp_path, serve):
    encode(tmp_path / "in.mkv", times=VARIABLE)
    address = serve(functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path))
    assert read_times(f"{address}/in.mkv") == VARIABLE
    with pytest.raises(VideoError, match="check the address"):
        VideoReader(f"{address}/missing.mkv")


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


def test_a_network_camera_is_timed_by_arrival_and_left_if_it_stalls(serve):
    address, times, before = serve(MotionJPEG), [], set(threading.enumerate())
    MotionJPEG.ended.clear()
    try:
        with VideoReader(f"{address}/camera.mjpg") as reader:
            assert reader.live and reader.format.time_base == Fraction(1, 1000)
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
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()
    assert times == sorted(set(times)) and 850 < times[-1] - times[0] < 5000  # not 25 a second, as FFmpeg guesses


def test_ctrl_c_ends_the_recording_of_a_stream(serve, sharpener, tmp_path):
    def interrupt(number, picture):
        if number == 5:
            raise KeyboardInterrupt

    MotionJPEG.ended.clear()
    try:
        address = f"{serve(MotionJPEG)}/camera.mjpg"
        stats = sharpener.process_video_stream(address, tmp_path / "out.mp4", on_frame=interrupt)
    finally:
        MotionJPEG.ended.set()
    assert stats["frames"] == len(read_times(tmp_path / "out.mp4")) == 6


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


def test_a_closed_reader_ends(clips):
    reader = VideoReader(clips / "clips" / "0.mp4")
    frames = iter(reader)
    next(frames)
    reader.close()
    assert next(frames, None) is None
