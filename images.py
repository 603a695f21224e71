"""Read and write images: 8 and 16 bits, grey and colour, transparency, orientation, colour profiles, EXIF and texts.

Files may come from strangers. Their size is checked before memory is allocated, and only the formats listed here are
read, whatever their names say: for PostScript, Pillow would run a program. All errors are `VideoError`.
"""

import contextlib
import dataclasses
import io
import logging
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from utils import IMAGE_SUFFIXES, atomic_path, first_line

MAX_IMAGE_SIDE, MAX_IMAGE_PIXELS = 1 << 14, 1 << 27  # 16,384 and 134 million
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")  # JPEG includes MPO
_HEIC = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}  # brands, of which a file names several
_DEEP_FORMATS = ("PNG", "TIFF")  # can hold 16 bits
_ALPHA_FORMATS = ("PNG", "TIFF", "WEBP", "AVIF")
_SAVE_OPTIONS = {"JPEG": {"quality": 95, "subsampling": "4:4:4"}, "TIFF": {"compression": "tiff_deflate"}}
_SAVE_OPTIONS |= {"WEBP": {"quality": 95}, "AVIF": {"quality": 90}}
_BESIDE = {"icc_profile": "colour profile", "exif": "EXIF", "dpi": "resolution", "xmp": "XMP", "comment": "comment"}
_BESIDE |= {"pnginfo": "texts"}  # what goes along with pixels, and what Pillow saves of it
_KEPT = {"PNG": ("icc_profile", "exif", "dpi", "pnginfo"), "TIFF": ("icc_profile", "exif", "dpi"), "BMP": ("dpi",)}
_KEPT |= {"JPEG": ("icc_profile", "exif", "dpi", "xmp", "comment")}
_KEPT["WEBP"] = _KEPT["AVIF"] = "icc_profile", "exif", "xmp"
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_PLANES, _TIFF_EXTRA = 258, 262, 284, 338  # tags of TIFF 6.0
_ORIENTATION = 0x0112  # tag of EXIF
# Tags of TIFF that are about the picture, not the file.
_TEXT_TAGS = (270, 271, 272, 305, 306, 315, 33432, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)

log = logging.getLogger(__name__)


class VideoError(RuntimeError):
    """A picture, video, camera or window cannot be read, written or opened. The message says what to do."""


@dataclasses.dataclass
class Picture:
    """A still image, upright.

    Attributes:
        pixels: ``(H, W, 3)`` BGR or ``(H, W)`` grey, uint8 or uint16.
        alpha: opacity ``(H, W)`` of the same type, or None.
        color_profile: ICC profile (bytes), or None.
        metadata: options for Pillow's `save`: EXIF without orientation, resolution, XMP, comment and PNG's texts.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    color_profile: bytes | None = None
    metadata: dict = dataclasses.field(default_factory=dict)


def read_image(path):
    """Read an image file as an upright `Picture`.

    Raises:
        VideoError: the file does not exist, is not an image, is damaged, exceeds `MAX_IMAGE_SIDE` or
            `MAX_IMAGE_PIXELS`, or does not hold exactly one picture of 8 or 16 bits.
    """
    path = existing_file(path)
    with open_image(path) as file:
        deep = _check_depth(path, file)
        file.load()
        with contextlib.suppress(Exception):  # the first call raises anything if EXIF is damaged
            file.getexif()
        upright, profile = ImageOps.exif_transpose(file), file.info.get("icc_profile")
        metadata = _read_metadata(file, upright.info)
        pixels = _read_16_bits(path, file) if deep else None  # Pillow would reduce them to 8
        if pixels is None:
            pixels = _read_8_bits(path, upright)
        if upright.mode in ("CMYK", "LAB") or (profile and pixels.ndim == 3 and profile[16:20] == b"GRAY"):
            profile = None  # the pixels are RGB now
        alpha = None
        if pixels.ndim == 3 and pixels.shape[2] != 3:
            alpha = np.ascontiguousarray(pixels[..., -1])
            pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
        return Picture(np.ascontiguousarray(pixels), alpha, profile, metadata)


def is_image(path):
    """Return whether a file is an image by its content or, if that is damaged, by its name."""
    suffix = Path(path).suffix.lower()
    try:
        if not _is_heic(path):
            Image.open(path, formats=_READ_FORMATS).close()
        return suffix not in (".mjpeg", ".mjpg")  # videos that begin as a JPEG
    except Exception:  # decoders of damaged files raise anything
        return suffix in IMAGE_SUFFIXES


def write_image(path, picture):
    """Write a `Picture`; JPEG and WebP at quality 95, AVIF at 90, the other formats without loss.

    Raises:
        VideoError: the format is unknown or cannot hold 16 bits or an alpha channel, or the file cannot be written.
    """
    path, pixels, metadata = Path(path), picture.pixels, picture.metadata
    suffix, deep = path.suffix.lower(), pixels.dtype == np.uint16
    kind = Image.registered_extensions().get(suffix)
    if suffix not in IMAGE_SUFFIXES:
        raise VideoError(f"cannot write {path}: an image's name ends in one of {', '.join(IMAGE_SUFFIXES)}")
    if deep and kind not in _DEEP_FORMATS:
        raise VideoError(f"cannot write {path}: {suffix} does not hold 16 bits; name a .png or .tif file")
    if kind is None:
        raise VideoError(f"cannot write {path}: this Pillow has no {suffix[1:].upper()}: pip install --upgrade pillow")
    if picture.alpha is not None:
        if kind not in _ALPHA_FORMATS:
            raise VideoError(f"cannot write {path}: {suffix} does not hold transparency; name a .png or .tif file")
        color = pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
        pixels = np.dstack([color, picture.alpha])  # (H, W, 4)
    options = {"format": kind, "icc_profile": picture.color_profile, **_SAVE_OPTIONS.get(kind, {})}
    if kind == "TIFF" and "exif" in metadata:
        metadata = metadata | {"compression": None}  # libtiff, which compresses, cannot write all of EXIF
    try:
        with atomic_path(path) as temporary:
            try:
                _save(temporary, pixels, options | metadata)
            except Exception as error:  # damaged EXIF raises anything
                if not metadata or isinstance(error, OSError):
                    raise
                _save(temporary, pixels, options)
                log.warning("%s: EXIF and texts are not kept: they are damaged or too long", path)
    except (OSError, ValueError, cv2.error) as error:  # ValueError: WebP's encoder
        raise VideoError(f"cannot write {path}: {first_line(error)}") from error
    kept = _KEPT[kind] if kind == "PNG" or not deep else ()  # OpenCV writes 16-bit TIFFs
    if lost := [name for key, name in _BESIDE.items() if (options | metadata).get(key) and key not in kept]:
        log.warning("%s: %s%s cannot keep its %s", path, "16-bit " if deep else "", suffix, ", ".join(lost))


def _save(path, pixels, options):
    """Save with Pillow or, if 16 bits, with OpenCV; a PNG then gets the chunks of one that Pillow writes."""
    if pixels.dtype == np.uint8:  # first into memory, as Pillow does not notice if a TIFF fills the disk
        file = io.BytesIO()
        Image.fromarray(_swap_red_and_blue(pixels)).save(file, **options)
        path.write_bytes(file.getvalue())
        return
    data = cv2.imencode(path.suffix, pixels)[1].tobytes()
    if options["format"] == "PNG":
        small = io.BytesIO()
        Image.new("RGB", (1, 1)).save(small, **options)
        chunks = small.getvalue()[33 : small.getvalue().rindex(b"IDAT") - 4]  # signature and IHDR: 33 bytes
        data = data[:33] + chunks + data[33:]
    path.write_bytes(data)


def existing_file(path):
    """Return `path` as a `Path`; raise `VideoError` if it does not exist, is no file or is empty."""
    path = Path(path)
    if not path.exists():
        raise VideoError(f"{path} does not exist: check the name")
    if not path.is_file():
        raise VideoError(f"{path} is a folder, pipe or device, which cannot be read: name a file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty: try a fresh copy")
    return path


@contextlib.contextmanager
def open_image(path):
    """Yield Pillow's image with only its header read; raise `VideoError` if it cannot be opened or is too large."""
    formats = _READ_FORMATS
    try:
        if _is_heic(path):
            try:
                import pillow_heif
            except ImportError:
                advice = "pip install pillow-heif, or convert it to JPEG first"
                raise VideoError(f"{path} is a HEIC picture: {advice}") from None
            pillow_heif.register_heif_opener()
            formats = ("HEIF",)
        with Image.open(path, formats=formats) as file:
            width, height = file.size
            if max(width, height) > MAX_IMAGE_SIDE or width * height > MAX_IMAGE_PIXELS:
                most = f"at most {MAX_IMAGE_SIDE} pixels a side and {MAX_IMAGE_PIXELS // 10**6} million pixels are read"
                raise VideoError(f"{path} is too large ({width}x{height}): {most}; scale it down or cut it first")
            yield file
    except VideoError:
        raise
    except Image.DecompressionBombError as error:
        raise VideoError(f"{path} is too large ({first_line(error)}): scale it down or cut it first") from error
    except Exception as error:  # decoders of damaged files raise anything
        raise VideoError(f"{path} is not an image that can be read, or is damaged: {first_line(error)}") from error


def _is_heic(path):
    """Whether a file begins as HEIC and not as AVIF, whose first bytes may be the same."""
    with open(path, "rb") as file:
        begin = file.read(64)
    brands = {begin[place : place + 4] for place in range(8, min(int.from_bytes(begin[:4], "big"), 64), 4)}
    return begin[4:8] == b"ftyp" and not _HEIC.isdisjoint(brands) and b"avif" not in brands


def _read_metadata(file, info):
    """Return `Picture.metadata` of a file and the `info` of its upright picture."""
    exif = file.getexif()
    metadata = {key: info[key] for key in ("exif", "dpi", "xmp", "comment") if info.get(key)}
    if file.format == "TIFF":
        kept = Image.Exif()
        kept.update({tag: exif.get_ifd(tag) or exif[tag] for tag in _TEXT_TAGS if tag in exif})
        if kept:
            metadata["exif"] = kept.tobytes()
    if texts := getattr(file, "text", None):
        metadata["pnginfo"] = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            metadata["pnginfo"].add_itxt(key, info.get(key, text))  # XMP without orientation
    return metadata


def _check_depth(path, file):
    """Return whether the header says 16 bits; refuse several pictures, and what Pillow 13 or OpenCV 5 misread."""
    if file.format != "MPO" and getattr(file, "is_animated", False):  # MPO: a phone's JPEG with extras
        raise VideoError(f"{path} holds at least 2 pictures: only files with a single one can be sharpened")
    if file.format == "PNG":
        with open(path, "rb") as header:
            return header.read(25)[24:] == bytes([16])  # signature, length and name of IHDR, width, height: 24 bytes
    tags = file.tag_v2 if file.format == "TIFF" else {}
    deep = 16 in tags.get(_TIFF_BITS, ())
    plain = tags.get(_TIFF_PLANES, 1) == 1 and tags.get(_TIFF_PHOTOMETRIC, 1) in (1, 2)
    plain &= tags.get(_TIFF_EXTRA, (2,)) == (2,)  # straight alpha
    if (deep and not plain) or (tags and file.getexif().get(_ORIENTATION, 1) > 4):
        kind = "on its side, as separate planes, as a negative, for print or with unusual alpha"
        raise VideoError(f"{path} is a TIFF stored {kind}: convert it to PNG first")
    return deep


def _read_16_bits(path, file):
    """Return the upright pixels of a 16-bit image, or None if OpenCV cannot read them."""
    with quiet_opencv():  # it gets the content, as some names crash it
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        return None
    if sorted(pixels.shape[:2]) != sorted(file.size):
        raise VideoError(f"{path} contradicts itself about its size: try a fresh copy")
    if pixels.ndim == 2 and isinstance(key := file.info.get("transparency"), int):  # of colour, OpenCV makes it alpha
        alpha = np.where(pixels == key, 0, 65535).astype(np.uint16)
        pixels = np.dstack([pixels, pixels, pixels, alpha])
    orientation = 1 if file.format == "TIFF" else file.getexif().get(_ORIENTATION, 1)  # OpenCV turns TIFFs itself
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _read_8_bits(path, image):
    if image.mode.startswith(("I", "F")):
        raise VideoError(f"{path} has neither 8 nor 16 bits a pixel ({image.mode}): convert it to PNG first")
    kind = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return _swap_red_and_blue(np.array(image.convert(f"{kind}A" if image.has_transparency_data else kind)))


def _swap_red_and_blue(pixels):
    """From RGB to BGR or back, with or without alpha; grey stays."""
    return pixels if pixels.ndim == 2 or pixels.shape[2] == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


@contextlib.contextmanager
def quiet_opencv():
    """Silence OpenCV's own messages; if threads overlap here, they may stay silent."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
