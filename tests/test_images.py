"""Reading and writing of images: depth, transparency, orientation, profiles, EXIF, names, and what is refused."""

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from images import Picture, VideoError, is_image, read_image, write_image


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
    assert picture.pixels.shape == ((30, 40) if mode in ("1", "L", "LA") else (30, 40, 3))
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
        pixels = read_image(path).pixels
        assert np.array_equal(pixels, upright[orientation - 1] * np.array(scale, np.uint16))
        assert pixels.flags.c_contiguous  # as PyTorch wants it


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
    with pytest.raises(VideoError, match="as separate planes, as a negative"):
        read_image(path)


def test_grey_with_alpha_stays_grey(tmp_path, rng):
    grey, alpha = rng.integers(0, 256, (2, 24, 32), np.uint8)
    Image.merge("LA", [Image.fromarray(plane) for plane in (grey, alpha)]).save(tmp_path / "in.png")
    picture = read_image(tmp_path / "in.png")
    assert np.array_equal(picture.pixels, grey) and np.array_equal(picture.alpha, alpha)


def test_twelve_bits_are_refused(tmp_path):
    """Pillow would make nearly all of it white."""
    path = tmp_path / "in.tif"
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(path)
    entry = struct.pack("<HHII", 258, 3, 1, 16)  # bits of a sample
    data = path.read_bytes()
    assert data.count(entry) == 1
    path.write_bytes(data.replace(entry, struct.pack("<HHII", 258, 3, 1, 12)))
    with pytest.raises(VideoError, match="neither 8 nor 16 bits"):
        read_image(path)


@pytest.mark.parametrize(
    ("suffix", "deep"), [(suffix, False) for suffix in (".jpg", ".png", ".tif", ".webp", ".avif")] + [(".png", True)]
)
def test_exif_and_resolution_are_kept(tmp_path, photo, suffix, deep):
    exif = Image.Exif()
    exif.update({0x010F: "Maker", 0x0112: 6, 0x8298: "(c) Jane", 0x8825: {1: "N"}})
    Image.fromarray(photo).save(tmp_path / "in.jpg", exif=exif, dpi=(300, 300), comment="hello")
    picture = read_image(tmp_path / "in.jpg")
    if deep:
        picture.pixels = picture.pixels.astype(np.uint16) * 257
    write_image(tmp_path / f"out{suffix}", picture)
    with Image.open(tmp_path / f"out{suffix}") as image:
        found = image.getexif()
        assert (found[0x010F], found[0x8298], found.get_ifd(0x8825)) == ("Maker", "(c) Jane", {1: "N"})
        assert found.get(0x0112, 1) == 1 and image.size == (30, 40)
        assert suffix in (".webp", ".avif") or image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize(
    ("suffix", "lost"),
    [(".bmp", "colour profile, EXIF, comment"), (".webp", "resolution, comment"), (".png", "comment"), (".jpg", "")],
)
def test_what_a_format_cannot_keep_is_named(tmp_path, photo, caplog, suffix, lost):
    exif, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[0x010F] = "Maker"
    Image.fromarray(photo).save(tmp_path / "in.jpg", exif=exif, dpi=(300, 300), comment="hello", icc_profile=profile)
    write_image(tmp_path / f"out{suffix}", read_image(tmp_path / "in.jpg"))
    named = [record.getMessage() for record in caplog.records]
    assert named == ([f"{tmp_path}/out{suffix}: {suffix} cannot keep its {lost}"] if lost else [])


def test_damaged_exif_does_not_cost_the_picture(tmp_path, photo, caplog):
    Image.fromarray(photo).save(tmp_path / "in.png", exif=b"Exif\0\0 garbage " * 9)
    assert read_image(tmp_path / "in.png").pixels.shape == photo.shape
    write_image(tmp_path / "out.jpg", Picture(photo, metadata={"exif": bytes(100_000)}))
    assert read_image(tmp_path / "out.jpg").pixels.shape == photo.shape and "EXIF and texts are not kept" in caplog.text


def test_a_transparent_grey_of_16_bits_is_kept(tmp_path):
    grey = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    cv2.imwrite(str(tmp_path / "in.png"), grey)
    data = (tmp_path / "in.png").read_bytes()
    chunk = b"tRNS" + struct.pack(">H", 5000)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "in.png").write_bytes(data[:33] + chunk + data[33:])
    picture = read_image(tmp_path / "in.png")
    assert np.array_equal(picture.pixels[..., 0], grey) and np.array_equal(
        picture.alpha, np.where(grey == 5000, 0, 65535)
    )


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_names_need_not_be_utf8(tmp_path, photo, suffix):
    path, deep = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode()), suffix != ".jpg"
    write_image(path, Picture(photo.astype(np.uint16) * 257 if deep else photo))
    assert read_image(path).pixels.shape == photo.shape


def test_a_picture_is_known_by_its_content(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "photo", "JPEG")
    for suffix in (".jfif", ".jpe"):
        write_image(tmp_path / f"photo{suffix}", read_image(tmp_path / "photo"))
        with Image.open(tmp_path / f"photo{suffix}") as image:
            assert image.format == "JPEG"
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    assert is_image(tmp_path / "photo") and is_image(tmp_path / "photo.heic") and not is_image(__file__)
    (tmp_path / "burst").write_bytes(b"\0\0\0\x18ftyphevm\0\0\0\0mif1heic" + bytes(50))
    assert is_image(tmp_path / "burst")
    with pytest.raises(VideoError, match="is a HEIC picture: pip install pillow-heif"):
        read_image(tmp_path / "photo.heic")
