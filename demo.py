"""The demonstration: photos that move, seen by a soft camera and a call's codec, soft and sharpened side by side."""

import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from degradation import Camera, animate, codec_roundtrip
from images import read_image
from utils import bgr_to_planes, luma_metrics, planes_to_bgr, to_limited_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoWriter

EXAMPLES = Path(__file__).resolve().parent / "examples"


def run_demo(sharpener, folder, seconds=2.4, rate=25):
    """Write three clips ``soft | sharpened`` to `folder`, and print what was gained.

    Person, text and nature are panned slowly, seen by a lens that is a little out of focus, and coded at their own size
    with low-delay x264 at QP 27 as in a call: the soft clip. SSIM is that of the luma against the clip before, the mean
    of every fifth frame.
    """
    camera = Camera(blur=0.9, noise=1.0)
    photos = {  # name: (photo, (width, height) of the clip)
        "person": (read_image(EXAMPLES / "photo.jpg").pixels, (448, 448)),
        "text": (_page_of_text(), (896, 512)),
        "nature": (read_image(EXAMPLES / "cat.jpg").pixels, (400, 256)),
    }
    folder, rng = Path(folder), np.random.default_rng(0)
    print(f"clip          size  SSIM soft -> sharpened       FPS ({sharpener.description})")
    for name, (photo, size) in photos.items():
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
    print(f"three clips are in {folder}")


def _page_of_text():
    """A shared screen: dark text of several sizes on white, ``(576, 960, 3)`` uint8."""
    page = Image.new("RGB", (960, 576), (250, 250, 248))
    draw, top = ImageDraw.Draw(page), 36
    text = (
        "Weekly review: what changed since Monday?\n1. The release moves to Thursday, 14:30 (UTC+2).\n"
        "2. Latency fell from 48 ms to 23 ms per frame, at 1920x1080.\n"
        "3. Open: 17 tickets, 4 of them urgent; see the shared sheet, page 9.\n"
        "The quick brown fox jumps over the lazy dog. 0123456789 @ # % & ( ) { } [ ]"
    )
    for size in (22, 17, 14):
        draw.multiline_text((40, top), text, (24, 26, 32), ImageFont.load_default(size), spacing=size / 2)
        top += 9 * size
    return np.array(page)[..., ::-1]


def _labelled(frame, text):
    frame = frame.copy()
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    frame[: height + 12, : width + 12] = 0
    white = (255, 255, 255)
    return cv2.putText(frame, text, (6, height + 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, white, 1, cv2.LINE_AA)
