"""Reading and writing of images: depth, transparency, orientation, profiles, and what is refused."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from images import Picture, VideoError, read_image, write_image


@pytest.fixture
def photo(rng):
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
    pixels, alpha = deep[..., 0].copy() if kind == "grey" else deep, deep[..., 1].copy() if kind == "alpha" else None
    write_image(tmp_path / f"deep{suffix}", Picture(pixels, alpha))
    again = read_image(tmp_path / f"deep{suffix}")
    assert again.pixels.dtype == np.uint16
    assert np.array_equal(again.pixels, pixels) and np.array_equal(again.alpha, alpha)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pillow_modes_are_read(tmp_path, photo, mode):
    image = Image.fromarray(photo[..., ::-1]).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    picture = read_image(path)
    assert picture.pixels.shape == ((30, 40) if mode in ("1", "L") else (30, 40, 3))
    assert (picture.alpha is not None) == (mode in ("LA", "RGBA"))
    color = picture.pixels if picture.pixels.ndim == 3 else np.repeat(picture.pixels[..., None], 3, axis=2)
    assert np.array_equal(color, np.array(image.convert("RGB"))[..., ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["8 bit png", "16 bit png", "8 bit tif", "16 bit tif"])
def test_orientation_is_applied(tmp_path, photo, orientation, kind):
    path, grey, scale = tmp_path / f"image.{kind[-3:]}", photo[..., 0], 1 if kind.startswith("8") else 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey * scale if scale == 1 else grey.astype(np.uint16) * scale).save(path, exif=exif)
    upright = [grey, grey[:, ::-1], grey[::-1, ::-1], grey[::-1]]
    upright += [grey.T, np.rot90(grey, -1), grey[::-1, ::-1].T, np.rot90(grey)]
    if path.suffix == ".tif" and orientation > 4:
        with pytest.raises(VideoError, match="on its side"):
            read_image(path)
    else:
        assert np.array_equal(read_image(path).pixels, upright[orientation - 1] * np.array(scale, np.uint16))


def test_a_profile_is_kept_unless_it_is_of_other_colours(tmp_path, photo):
    profiles = {name: ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes() for name in ("sRGB", "LAB")}
    Image.fromarray(photo).save(tmp_path / "in.jpg", icc_profile=profiles["sRGB"])
    write_image(tmp_path / "out.png", read_image(tmp_path / "in.jpg"))
    assert Image.open(tmp_path / "out.png").info["icc_profile"] == profiles["sRGB"]
    Image.new("LAB", (16, 16)).save(tmp_path / "in.tif", icc_profile=profiles["LAB"])
    assert read_image(tmp_path / "in.tif").color_profile is None


def test_jpegs_keep_the_resolution_of_colour(tmp_path):
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:, ::2, 2] = colours[:, 1::2, 0] = 200
    write_image(tmp_path / "out.jpg", Picture(colours))
    assert np.abs(read_image(tmp_path / "out.jpg").pixels.astype(int) - colours).mean() < 10


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
    Image.fromarray(photo).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.fromarray(photo)])
    for name, message in (("cut.jpg", "damaged"), ("text.png", "not an image"), ("pages.tif", "2 pictures")):
        with pytest.raises(VideoError, match=message):
            read_image(tmp_path / name)


@pytest.mark.parametrize(("tag", "value"), [(284, 2), (262, 0)], ids=["separate planes", "a negative"])
def test_deep_tiffs_that_would_be_misread_are_refused(tmp_path, rng, tag, value):
    path, pixels = tmp_path / "in.tif", rng.integers(0, 65536, (24, 32, 3), np.uint16)
    cv2.imwrite(str(path), pixels if tag == 284 else pixels[..., 0])
    data, usual = path.read_bytes(), 1  # one after the other; 0 is black
    entry = struct.pack("<HHII", tag, 3, 1, usual)
    assert data.count(entry) == 1 and read_image(path).pixels.dtype == np.uint16
    path.write_bytes(data.replace(entry, struct.pack("<HHII", tag, 3, 1, value)))
    with pytest.raises(VideoError, match="separate planes or a negative"):
        read_image(path)
