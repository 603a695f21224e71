"""Reading and writing of images and videos, on small files made here."""

import logging
import threading
import time
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from video import (
    Frame,
    Picture,
    VideoError,
    VideoFormat,
    VideoReader,
    VideoWriter,
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


def copy(source, target):
    """Pass a video through reader and writer; returns the times in milliseconds that were read."""
    times = []
    with VideoReader(source, audio=True) as reader, VideoWriter(target, reader.format, reader) as writer:
        for frame in reader:
            times.append(milliseconds(frame.pts, reader))
            writer.write(frame)
    return times


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


def test_bgr_frames_are_upright(tmp_path):
    turned = VideoFormat(64, 48, Fraction(25), display_matrix=QUARTER_TURN)
    y, uv = planes(0)
    y[:, :32], y[:, 32:] = 200, 50
    with VideoWriter(tmp_path / "turned.mp4", turned) as writer:
        writer.write(Frame(y, uv))
    with VideoReader(tmp_path / "turned.mp4") as reader:
        frame, seconds = next(reader.bgr_frames())
    assert frame.shape == (64, 48, 3) and seconds == 0
    # The matrix says: turn by 90 degrees clockwise, so what was left comes to the top.
    assert frame[:20].mean() > 180 and frame[-20:].mean() < 60


@pytest.mark.parametrize("value_range", [1, 2])
@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv444p", "gray", "nv12"])
def test_other_8_bit_formats_keep_their_range(tmp_path, pixel_format, value_range):
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
    for index, frame in enumerate(frames):
        assert (frame.y == 100 + index).all()
        assert (frame.uv == (128 if pixel_format == "gray" else 100 + index)).all()


@pytest.mark.parametrize(("pixel_format", "reason"), [("yuv420p10le", "10-bit"), ("yuva420p", "transparency")])
def test_what_8_bit_planes_cannot_hold_is_refused_by_name(tmp_path, pixel_format, reason):
    source = encode(tmp_path / "in.mkv", codec="ffv1", pixel_format=pixel_format, times=CONSTANT[:3])
    with pytest.raises(VideoError, match=f"{reason}.*{pixel_format}"):
        VideoReader(source)


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


def test_damage_in_the_middle_leaves_no_output(tmp_path):
    source = encode(tmp_path / "in.mp4", times=range(0, 4000, 40), size=(128, 96), options={"crf": "5"})
    data = bytearray(source.read_bytes())
    middle = len(data) // 3
    data[middle : 2 * middle] = np.random.default_rng(0).integers(0, 256, middle, dtype=np.uint8).tobytes()
    source.write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        copy(source, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


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
        time.sleep(0.5)
        written.append(item)

    endless = iter(lambda: 0, 1)
    with pytest.raises(error), read_ahead(endless) as items, write_behind(write) as put:
        for count, item in enumerate(items):
            put(item)
            if count == 4:
                raise error
    assert len(written) <= 1  # what waits is dropped


def test_a_further_interrupt_does_not_leave_the_thread_behind(threads, monkeypatch):
    join, interrupts = threading.Thread.join, iter([KeyboardInterrupt, KeyboardInterrupt])

    def interrupted(thread):
        for interrupt in interrupts:
            raise interrupt
        join(thread)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    for block in (write_behind(lambda item: time.sleep(0.2)), read_ahead(iter(lambda: 0, 1))):
        interrupts = iter([KeyboardInterrupt, KeyboardInterrupt])
        with pytest.raises(KeyboardInterrupt), block:
            raise KeyboardInterrupt
        assert not next(interrupts, None), "both interrupts have come"


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
