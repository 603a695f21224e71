"""What accompanies the pictures: audio, subtitles, chapters, titles, attachments."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.subtitles.subtitle import SubtitleSet

from tests.conftest import CONSTANT, copy, encode, noise, packets, read_times, spoil
from video import VideoReader

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
        text.codec_context.time_base = text.time_base = unit = Fraction(1, 1000)
        for stream, language, title in zip((*sounds, text), ("eng", "fra", "ita"), ("A", "B", "C"), strict=True):
            stream.metadata.update(language=language, title=title)
        sounds[0].disposition, sounds[1].disposition, text.disposition = 0, 1, 64  # none, default, forced
        container.add_attachment("font.ttf", "application/x-truetype-font", b"font" * 50)
        container.metadata.update(title="Holiday", creation_time="2024-05-06T07:08:09.000000Z")
        container.set_chapters(
            [
                {"id": begin + 1, "start": begin, "end": end, "time_base": unit, "metadata": {"title": title}}
                for begin, end, title in CHAPTERS
            ]
        )
        for index in range(50):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
            for sound in sounds:
                container.mux(sound.encode(noise(40 * index, 40)))
            if 40 * index in LINES:
                line = f"{index},0,Default,,0,0,0,,{LINES[40 * index]}".encode()
                packet = text.codec_context.encode_subtitle(SubtitleSet.create(line, 0, 600))
                packet.stream, packet.time_base = text, unit
                packet.pts, packet.dts, packet.duration = 40 * index, 40 * index, 600
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


def check_lines(packets_of_subtitles):
    """The lines are there at their times, whatever the format."""
    assert [(begin, length) for _, begin, length in packets_of_subtitles] == [(begin, 600) for begin in LINES]
    assert all(text.encode() in data for (data, *_), text in zip(packets_of_subtitles, LINES.values(), strict=True))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".webm", ".avi"])
def test_what_accompanies_the_pictures_is_kept(tmp_path, film, caplog, suffix):
    target = tmp_path / f"out{suffix}"
    copy(film, target)
    sounds = track_packets(target, "audio")
    assert len(sounds) == 2
    assert (suffix == ".webm") == ("sound track 2 (aac, fra) is converted to opus" in caplog.text)
    if suffix not in (".avi", ".webm"):
        for before, after in zip(track_packets(film, "audio"), sounds, strict=True):
            assert len(before) > 90 and [data for data, *_ in after] == [data for data, *_ in before]
    with av.open(str(target)) as container:
        streams = container.streams
        assert container.metadata["title"] == "Holiday"
        if suffix == ".avi":
            assert "(.mkv keeps more): attachment font.ttf, chapters, subtitle track 1 (subrip, ita)" in caplog.text
            return
        assert container.metadata["creation_time"] == "2024-05-06T07:08:09.000000Z"
        tracks = [*streams.audio, *streams.subtitles]
        assert [stream.language for stream in tracks] == ["eng", "fra", "ita"]
        assert [stream.metadata.get("title", stream.metadata.get("name")) for stream in tracks] == ["A", "B", "C"]
        assert [bool(stream.disposition & 1) for stream in streams.audio] == [False, True]
        assert suffix == ".mov" or streams.subtitles[0].disposition & 64
        for chapter, (begin, end, title) in zip(container.chapters(), CHAPTERS, strict=True):
            times = [round(1000 * chapter[name] * chapter["time_base"]) for name in ("start", "end")]
            assert (times, chapter["metadata"]["title"]) == ([begin, end], title)
        if suffix == ".mkv":
            (font,) = streams.attachments
            assert (font.data, font.metadata["filename"]) == (b"font" * 50, "font.ttf")
            assert track_packets(target, "subtitle") == track_packets(film, "subtitle")
            assert not caplog.records
        else:
            check_lines(*track_packets(target, "subtitle"))
            assert "not kept (.mkv keeps more): attachment font.ttf" in caplog.text


@pytest.mark.parametrize("last", [".mp4", ".mkv", ".webm"])
def test_subtitles_of_mp4_come_back(tmp_path, film, last):
    copy(film, tmp_path / "first.mp4")
    copy(tmp_path / "first.mp4", tmp_path / f"second{last}")
    check_lines(*track_packets(tmp_path / f"second{last}", "subtitle"))
    with VideoReader(tmp_path / f"second{last}") as reader:
        assert not reader.other_streams
        assert [chapter["metadata"]["title"] for chapter in reader.chapters] == ["one", "two"]


def test_audio_after_the_last_frame_is_copied(tmp_path):
    # Raw video: no decoder holds frames back until the audio has passed.
    source = encode(tmp_path / "in.mkv", codec="rawvideo", times=CONSTANT[:5], audio="aac")
    copy(source, tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", "audio") == packets(source, "audio")


def test_audio_and_video_are_interleaved(tmp_path):
    copy(encode(tmp_path / "in.mp4", times=range(0, 4000, 40), audio="aac"), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        kinds = [packet.stream.type for packet in sorted(container.demux(), key=lambda p: p.pos or 0) if packet.size]
    assert "audio" in kinds[:60] and "video" in kinds[:60]


@pytest.mark.parametrize(
    ("source", "codec", "target"),
    [
        ("in.mp4", "aac", "out.webm"),
        ("in.avi", "pcm_s16le", "out.mp4"),  # its sound has channels, but no layout
        ("in.avi", "pcm_mulaw", "out.mkv"),
        ("in.mkv", "libopus", "out.mov"),  # whose writer refuses it when it begins
        ("in.mkv", "eac3", "out.avi"),
        ("in.ts", "aac", "out.avi"),
    ],
)
def test_audio_that_a_container_cannot_hold_as_it_is_comes_along(tmp_path, source, codec, target):
    copy(encode(tmp_path / source, audio=codec), tmp_path / target)
    with av.open(str(tmp_path / target)) as container:
        frames = list(container.decode(audio=0))
    assert 47_000 < sum(frame.samples for frame in frames) < 51_000 and abs(frames[0].time) < 0.1


@pytest.mark.parametrize(
    ("layout", "target", "kept", "source"),
    [
        ("stereo", "out.mp4", "stereo", "in.avi"),
        ("7.1", "out.webm", "stereo", "in.avi"),
        ("7.1", "out.webm", "stereo", "in.mov"),
    ],
)
def test_pcm_of_several_channels_is_converted(tmp_path, caplog, layout, target, kept, source):
    """FFmpeg refuses stereo of unknown layout when an .mp4 ends; PyAV crashes reading planes of 8 channels."""
    with av.open(str(tmp_path / source), "w") as container:
        video = container.add_stream("libx264", rate=25, width=64, height=48)
        sound = container.add_stream("pcm_s16le", rate=48000, layout=layout)
        channels = sound.codec_context.layout.nb_channels
        for picture in (*(av.VideoFrame(64, 48, "yuv420p") for _ in range(25)), None):
            container.mux(video.encode(picture))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000 * channels), np.int16), "s16", layout)
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    if source.endswith(".mov"):  # in Apple's order 7.1 C, with which PyAV crashes, too
        begin, _, rest = (tmp_path / source).read_bytes().partition(b"chan" + bytes(4))
        (tmp_path / source).write_bytes(begin + b"chan" + bytes(4) + b"\0\x80\0\x08" + bytes(4) + rest[8:])
    copy(tmp_path / source, tmp_path / target)
    assert "is converted to" in caplog.text
    with av.open(str(tmp_path / target)) as container:
        frames = list(container.decode(audio=0))
    assert {frame.layout.name for frame in frames} == {kept}
    assert 47_000 < sum(frame.samples for frame in frames) < 51_000


@pytest.mark.parametrize("channels", [5, 9])  # there is no usual layout of 9
def test_sound_of_many_channels_is_copied(tmp_path, caplog, channels):
    with av.open(str(tmp_path / "in.mov"), "w") as container:
        video = container.add_stream("libx264", rate=25, width=64, height=48)
        sound = container.add_stream("pcm_s16le", rate=48000, layout=f"{channels} channels")
        for picture in (av.VideoFrame(64, 48, "yuv420p"), None):
            container.mux(video.encode(picture))
        samples = np.arange(48000 * channels, dtype=np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, "s16", f"{channels} channels")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    copy(tmp_path / "in.mov", tmp_path / "out.mov")
    with av.open(str(tmp_path / "out.mov")) as container:
        assert b"".join(bytes(packet) for packet in container.demux(audio=0)) == samples.tobytes()
    assert not caplog.records


def test_an_empty_packet_of_sound_is_no_damage(tmp_path, caplog):
    source = encode(tmp_path / "in.mp4", audio="aac")
    data = bytearray(source.read_bytes())
    place = data.rindex(b"stsz") + 16 + 4 * 20  # the size of the sound's 21st packet
    data[place : place + 4] = bytes(4)
    source.write_bytes(data)
    copy(source, tmp_path / "out.webm")
    assert "is converted to opus" in caplog.text and "left out" not in caplog.text


@pytest.mark.parametrize("suffix", [".avi", ".webm", ".mp4", ".mkv"])
def test_late_sound_is_in_step(tmp_path, suffix):
    encode(tmp_path / "in.mkv", times=range(0, 2000, 40), audio="mp2", heard=range(1000, 2000, 20))
    copy(tmp_path / "in.mkv", tmp_path / f"out{suffix}")
    assert abs(begin_of_sound(tmp_path / f"out{suffix}") - 1) < 0.04


def begin_of_sound(path):
    """The second in which a file is no longer silent, as players play it."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.abs(frame.to_ndarray().astype(float)[0]) > (500 if "s16" in frame.format.name else 0.015)
            if loud.any():
                return float(frame.pts * frame.time_base) + loud.argmax() / frame.sample_rate


def test_a_gap_in_the_audio_of_a_transport_stream_stays(tmp_path):
    heard = [*range(0, 1000, 20), *range(13_000, 15_000, 20)]
    encode(tmp_path / "in.ts", times=range(0, 15_000, 40), audio="mp2", heard=heard)
    copy(tmp_path / "in.ts", tmp_path / "out.mkv")
    spans = []
    for name in ("in.ts", "out.mkv"):
        (video,), (audio,) = (track_packets(tmp_path / name, kind) for kind in ("video", "audio"))
        first = min(begin for _, begin, _ in video)
        spans.append([audio[0][1] - first, audio[-1][1] - first])
    assert spans[0][1] - spans[0][0] > 13_000
    np.testing.assert_allclose(*spans, atol=50)


# ----------------------------------------------------------------------------------------------------------------------
# What is wrong with it never costs the picture


@pytest.mark.parametrize("suffix", [".webm", ".avi", ".mp4", ".mkv"])
def test_lost_packets_of_sound_cost_no_picture(tmp_path, rng, caplog, suffix):
    source = encode(tmp_path / "in.ts", audio="aac")
    data = bytearray(source.read_bytes())
    places = [place for place in range(0, len(data), 188) if data[place + 1] & 31 == 1 and data[place + 2] == 1]
    for place in places[5::9]:  # transport packets of sound
        data[place + 10 : place + 188] = rng.integers(0, 256, 178, np.uint8).tobytes()
    source.write_bytes(data)
    copy(source, tmp_path / f"out{suffix}")
    assert len(read_times(tmp_path / f"out{suffix}")) == len(CONSTANT)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.audio


def test_a_packet_of_sound_that_cannot_be_copied_is_left_out(tmp_path, caplog):
    source = encode(tmp_path / "in.ts", audio="aac")
    data = bytearray(source.read_bytes())
    header = data.index(b"\xff\xf1", len(data) // 2)  # of ADTS
    data[header + 1], data[header + 6] = 0xF0, data[header + 6] | 1  # two blocks and a checksum: FFmpeg copies none
    source.write_bytes(data)
    copy(source, tmp_path / "out.mkv")
    assert len(read_times(tmp_path / "out.mkv")) == len(CONSTANT)
    assert "sound track 1 (aac), 1 packet left out: damaged" in caplog.text


def test_a_packet_that_cannot_be_decoded_is_silence(tmp_path, rng, caplog):
    spoil(source := encode(tmp_path / "in.mp4", audio="aac"), "audio", slice(20, 22), rng)
    copy(source, tmp_path / "out.webm")
    assert read_times(tmp_path / "out.webm") == CONSTANT
    assert "sound track 1 (aac), " in caplog.text and "left out: damaged" in caplog.text
    with av.open(str(tmp_path / "out.webm")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == pytest.approx(48000, abs=2000)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
def test_sound_that_changes_its_rate_is_converted(tmp_path, caplog, suffix):
    parts = [
        encode(tmp_path / f"{rate}.ts", times=range(0, 1000, 40), audio="aac", rate=rate) for rate in (48000, 32000)
    ]
    (tmp_path / "in.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    copy(tmp_path / "in.ts", tmp_path / f"out{suffix}")
    assert "sound track 1 (aac) is converted to" in caplog.text and "rate or channels change" in caplog.text
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        frames = list(container.decode(audio=0))
    assert {frame.sample_rate for frame in frames} == {48000}
    assert sum(frame.samples for frame in frames) == pytest.approx(2.1 * 48000, abs=6000)


def test_a_rate_that_no_encoder_knows_is_resampled_to_the_end(tmp_path):
    with av.open(str(encode(tmp_path / "in.avi", audio="pcm_u8", rate=11024))) as container:
        seconds = sum(frame.samples for frame in container.decode(audio=0)) / 11024
    copy(tmp_path / "in.avi", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].codec_context.rate == 11025
        *_, last = (packet for packet in container.demux(audio=0) if packet.size)
        assert abs((last.pts + last.duration) * last.time_base - seconds) < 0.0003


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_subtitles_that_are_not_utf8_are_read_as_windows_1252(tmp_path, film, caplog, suffix):
    film.write_bytes(film.read_bytes().replace(b"Good morning", b"Sch\xf6ne Tage!"))
    copy(film, tmp_path / f"out{suffix}")
    assert "subtitle track 1 (subrip, ita) is not UTF-8" in caplog.text
    ((data, *_), _) = track_packets(tmp_path / f"out{suffix}", "subtitle")[0]
    assert "Schöne Tage!".encode() in data


def test_subtitles_of_mp4_that_are_not_utf8_keep_their_form(tmp_path, film, caplog):
    copy(film, tmp_path / "in.mp4")
    data = (tmp_path / "in.mp4").read_bytes()
    assert data.count(b"Good morning") == 1
    (tmp_path / "in.mp4").write_bytes(data.replace(b"Good morning", b"Sch\xf6ne Tage!"))
    copy(tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert "subtitle track 1 (mov_text, ita) is not UTF-8" in caplog.text
    ((data, *_), _) = track_packets(tmp_path / "out.mp4", "subtitle")[0]
    length, text = int.from_bytes(data[:2], "big"), "Schöne Tage!".encode()
    assert data[2 : 2 + length] == text


def test_sound_that_becomes_another_codec_is_converted(tmp_path, caplog):
    parts = [encode(tmp_path / f"{codec}.ts", times=range(0, 2000, 40), audio=codec) for codec in ("aac", "mp2")]
    (tmp_path / "in.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    for suffix in (".mp4", ".mkv", ".webm"):
        copy(tmp_path / "in.ts", tmp_path / f"out{suffix}")
        assert len(read_times(tmp_path / f"out{suffix}")) == 100
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert sum(frame.samples for frame in container.decode(audio=0)) > 48000
    assert "its codec, rate or channels change on the way" in caplog.text


def test_packets_that_fail_only_when_they_are_written_cost_no_picture(tmp_path, caplog):
    """FFmpeg's writer holds AAC back that follows AC-3 until the picture has come so far, and then refuses it."""
    parts = [
        encode(tmp_path / f"{codec}.ts", times=range(0, end, 40), audio=codec, heard=range(0, end, 20))
        for codec, end in (("ac3", 2000), ("aac", 320))
    ]
    (tmp_path / "in.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    copy(tmp_path / "in.ts", tmp_path / "out.mp4")
    assert len(read_times(tmp_path / "out.mp4")) == 58
    assert "packets of sound left out: damaged" in caplog.text


def test_recordings_in_flv_whose_rates_differ_are_converted(tmp_path, caplog):
    parts = [encode(tmp_path / f"{rate}.flv", times=CONSTANT[:8], audio="aac", rate=rate) for rate in (48000, 32000)]
    (tmp_path / "in.flv").write_bytes(parts[0].read_bytes() + parts[1].read_bytes()[13:])
    copy(tmp_path / "in.flv", tmp_path / "out.mkv")
    assert "rate or channels change on the way" in caplog.text
    with av.open(str(tmp_path / "out.mkv")) as container:
        frames = list(container.decode(audio=0))
    assert len({frame.sample_rate for frame in frames}) == 1
    assert sum(frame.samples / frame.sample_rate for frame in frames) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_what_was_cut_off_a_clip_is_not_heard(tmp_path, suffix):
    with av.open(str(tmp_path / "in.mp4"), "w") as container:  # sound begins a second before the picture: an edit list
        video, sound = container.add_stream("libx264", rate=25, width=64, height=48), container.add_stream("aac", 48000)
        for start in range(-1000, 1000, 20):
            container.mux(sound.encode(noise(start, 20)))
        for _ in range(25):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    copy(tmp_path / "in.mp4", tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        spans = [(p.pts * p.time_base, p.duration * p.time_base) for p in container.demux(audio=0) if p.size]
    assert spans[0][0] > -0.05 and sum(length for _, length in spans) == pytest.approx(1, abs=0.06)


def test_apple_tags_are_kept(tmp_path):
    tags = {"com.apple.quicktime.make": "Apple", "location": "+48.1000+011.5000/"}
    with av.open(str(tmp_path / "in.mov"), "w", options={"movflags": "use_metadata_tags"}) as phone:
        phone.metadata.update(tags)
        video = phone.add_stream("libx264", rate=25, width=64, height=48)
        for picture in (av.VideoFrame(64, 48, "yuv420p"), None):
            phone.mux(video.encode(picture))
    for suffix in (".mov", ".mp4"):
        copy(tmp_path / "in.mov", tmp_path / f"out{suffix}")
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert tags.items() <= container.metadata.items()
    copy(tmp_path / "in.mov", tmp_path / "on the way.mkv")
    copy(tmp_path / "on the way.mkv", tmp_path / "back.mov")
    with av.open(str(tmp_path / "back.mov")) as container:
        assert container.metadata["com.apple.quicktime.make"] == "Apple"
