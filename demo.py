"""The demonstration: moving photos through a soft camera and a call's codec, soft and sharpened side by side."""

import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from batch import check_free
from degradation import SimulatedCamera, animate, codec_roundtrip
from images import Picture, read_image, write_image
from scaling import resize_pixels
from utils import bgr_to_planes, luma_metrics, planes_to_bgr, to_limited_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoWriter

EXAMPLES = Path(__file__).resolve().parent / "examples"


def run_demo(sharpener, folder, overwrite=True, seconds=2.4, rate=25):
    """Write three clips ``soft | sharpened`` and one comparison picture to `folder`, and print SSIM and speed.

    Photos are panned slowly, blurred a little, and coded with low-delay x264 at QP 27 as in a call: the soft clips.
    SSIM compares their luma with the crisp clips, as a mean of every fifth frame.

    Raises:
        VideoError: a file exists and may not be replaced, or cannot be written.
    """
    camera = SimulatedCamera(blur=0.9, noise=1.0)
    photos = (  # name, photo, (width, height) of the clip, corner (x, y) of the close-up
        ("person", read_image(EXAMPLES / "photo.jpg").pixels, (448, 448), (110, 20)),
        ("text", _page_of_text(), (896, 512), (40, 110)),
        ("nature", read_image(EXAMPLES / "cat.jpg").pixels, (400, 256), (80, 30)),
    )
    folder, rows, rng = Path(folder), [], np.random.default_rng(0)
    for target in (*(f"{name}.mp4" for name, *_ in photos), "comparison.png"):
        check_free(folder / target, overwrite)
    print(f"clip          size  SSIM soft -> sharpened       FPS ({sharpener.description})")
    for name, photo, size, (x, y) in photos:
        frames = animate(photo, round(seconds * rate), size[::-1], (0.45, 0.3), rng)
        truth = [bgr_to_planes(frame) for frame in frames]
        soft = codec_roundtrip(camera(truth, rng), "x264", 27, rate=rate)
        sharpener.sharpen_planes(*soft[0], full_range=True)  # warm-up
        begin = time.perf_counter()
        sharp = [sharpener.sharpen_planes(*planes, full_range=True) for planes in soft]
        fps = len(sharp) / (time.perf_counter() - begin)

        video_format = VideoFormat(2 * size[0], size[1], Fraction(rate), **BT601_LIMITED)
        with VideoWriter(folder / f"{name}.mp4", video_format) as writer:
            for before, after in zip(soft, sharp, strict=True):
                pair = [_labelled(planes_to_bgr(*before), "soft"), _labelled(planes_to_bgr(*after), "sharpened")]
                writer.write(Frame(*to_limited_range(*bgr_to_planes(np.hstack(pair)))))
        before, after = (
            np.mean([luma_metrics(planes[0], true[0])[1] for planes, true in zip(clip[::5], truth[::5], strict=True)])
            for clip in (soft, sharp)
        )
        print(f"{name:8} {size[0]:4}x{size[1]:<4}       {before:.4f} -> {after:.4f}    {fps:6.1f}")
        close_ups = []
        for clip, label in ((soft, "soft"), (sharp, "sharpened"), (truth, "truth")):
            close_up = planes_to_bgr(*clip[len(clip) // 2])[y : y + 150, x : x + 200]
            close_ups.append(_labelled(resize_pixels(close_up, (400, 300)), f"{name}, {label}"))
        rows.append(np.hstack(close_ups))
    write_image(folder / "comparison.png", Picture(np.vstack(rows)))
    print(f"three clips and comparison.png are in {folder}")


def _page_of_text():
    """A shared screen: dark text of several sizes on white, ``(576, 960, 3)`` uint8."""
    page = Image.new("RGB", (960, 576), (250, 250, 248))
    draw, top = ImageDraw.Draw(page), 36
    lines = (
        "Weekly review: what changed since Monday?",
        "1. The release moves to Thursday, 14:30 (UTC+2).",
        "2. Latency fell from 48 ms to 23 ms per frame, at 1920x1080.",
        "3. Open: 17 tickets, 4 of them urgent; see the shared sheet, page 9.",
        "The quick brown fox jumps over the lazy dog. 0123456789 @ # % & ( ) { } [ ]",
    )
    for size in (30, 22, 17, 14):
        font = ImageFont.load_default(size)
        for line in lines[: 5 if size < 30 else 1]:
            draw.text((40, top), line, (24, 26, 32) if size != 22 else (20, 60, 150), font)
            top += round(1.5 * size)
        top += 12
    return np.array(page)[..., ::-1]


def _labelled(frame, text):
    frame, font, white = frame.copy(), (cv2.FONT_HERSHEY_SIMPLEX, 0.5), (255, 255, 255)
    (width, height), _ = cv2.getTextSize(text, *font, 1)
    frame[: height + 12, : width + 12] = 0
    return cv2.putText(frame, text, (6, height + 6), *font, white, 1, cv2.LINE_AA)
