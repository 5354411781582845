"""Image files, opened whole: a path, or a data URI that holds the file's bytes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
_URI = "data:"
_GLANCE = (64, 64)  # pixels that are enough to see whether an image is of one colour; a JPEG is then decoded faster


class UnreadableImageError(ValueError):
    """Bytes that are no image, or one that cannot be brought to 8 bits a colour; the message says which."""


@dataclass(frozen=True)
class ImageFacts:
    """What there is to know of an image without keeping it.

    Attributes:
        width, height: in pixels.
        blank: whether all its pixels are the same.
        digest: of the bytes of its file, in hexadecimal.
    """

    width: int
    height: int
    blank: bool
    digest: str


def open_image(cell: str) -> Image.Image:
    """An image as RGB with 8 bits a colour, upright by its EXIF orientation; of an animation the first picture.

    Args:
        cell: a path, or a data URI (RFC 2397) in base64.

    Raises:
        UnreadableImageError: there is no such file, or no image in it.
    """
    with _decoding(), Image.open(io.BytesIO(_bytes_of(cell))) as image:
        _refuse_depth(image)
        return ImageOps.exif_transpose(image).convert("RGB")


def examine_image(cell: str) -> ImageFacts:
    """Decode all of an image, and say what it is; raises as `open_image`."""
    data = _bytes_of(cell)
    with _decoding(), Image.open(io.BytesIO(data)) as image:
        _refuse_depth(image)
        width, height = image.size
        image.draft("RGB", _GLANCE)
        extremes = image.convert("RGB").getextrema()
        blank = all(low == high for low, high in extremes)  # type: ignore[misc]  # of RGB: a pair a colour
    return ImageFacts(width, height, blank, hashlib.blake2b(data, digest_size=16).hexdigest())


def image_size(cell: str) -> tuple[int, int]:
    """Width and height in pixels, from the beginning of the file alone; raises as `open_image`."""
    with _decoding(), Image.open(io.BytesIO(_bytes_of(cell)) if cell.startswith(_URI) else cell) as image:
        return image.size


def data_uri(data: bytes) -> str:
    """The bytes of an image file as a text."""
    return f"{_URI}image;base64,{base64.b64encode(data).decode()}"


def is_data_uri(cell: str) -> bool:
    """Whether a text holds a file instead of naming it."""
    return cell.startswith(_URI)


def _bytes_of(cell: str) -> bytes:
    if not is_data_uri(cell):
        try:
            return Path(cell).read_bytes()
        except (OSError, ValueError) as error:
            raise UnreadableImageError(getattr(error, "strerror", None) or str(error)) from error
    kind, comma, text = cell.partition(",")
    try:
        if not comma or not kind.endswith(";base64"):
            raise UnreadableImageError("a data URI that is not base64")
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise UnreadableImageError("a data URI with broken base64") from error


def _refuse_depth(image: Image.Image) -> None:
    if image.mode == "F" or image.mode.startswith("I"):
        raise UnreadableImageError(f"an image with more than 8 bits a colour (mode {image.mode})")


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever a damaged file makes the decoders raise, as one error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadableImageError("an image with far too many pixels") from error
    except Exception as error:  # a decoder may raise anything on damaged bytes: SyntaxError, struct.error, …
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise UnreadableImageError(f"a damaged image: {reason}") from error
