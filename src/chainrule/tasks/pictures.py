"""Images to the numbers that a model reads, once, and kept as bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.data.encode import Encoded, Pixels
from chainrule.system.images import open_image
from chainrule.system.spill import Spill

CHUNK_IMAGES = 256


def encode(tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
    """Bring images to the size that a model reads.

    Args:
        tokenizer: in its place a transformers image processor; its mean and deviation are applied when a batch is made.
        inputs: one column of paths or data URIs.
        max_length: the height of what the model reads, in pixels.

    Raises:
        UnreadableImageError: an image can no longer be read.
    """
    (cells,) = inputs.values()
    shape: tuple[int, ...] = (3, max_length, max_length)
    with Spill() as spill:
        for few in _pieces(cells):
            pixels = tokenizer(
                images=[open_image(cell) for cell in few], do_rescale=False, do_normalize=False, return_tensors="np"
            )["pixel_values"]
            shape = pixels.shape[1:]
            spill.write(np.ascontiguousarray(pixels, np.uint8).tobytes())
        values = np.frombuffer(spill.read(), np.uint8).reshape(-1, *shape)
    scale, shift = _scaling(tokenizer, shape[0])
    rows = len(values)
    return Encoded(
        ids=np.zeros(0, np.int32),
        offsets=np.zeros(rows + 1, np.int64),
        types=None,
        full_lengths=np.full(rows, shape[1], np.int64),
        targets=targets,
        pixels=Pixels(values, scale, shift),
    )


def height_of(processor: Any) -> int:
    """How many rows of pixels a processor makes of an image."""
    blank = np.zeros((8, 8, 3), np.uint8)
    return int(processor(images=[blank], return_tensors="np")["pixel_values"].shape[2])


def _pieces(cells: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(cells), CHUNK_IMAGES):
        yield list(cells[start : start + CHUNK_IMAGES])


def _scaling(processor: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(channels,) each: what a byte is multiplied with, and what is added then."""
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    mean, deviation = np.zeros(channels), np.ones(channels)
    if processor.do_normalize:
        mean, deviation = (np.broadcast_to(each, channels) for each in (processor.image_mean, processor.image_std))
    return (factor / deviation).astype(np.float32), (-mean / deviation).astype(np.float32)
