"""A small convolutional network without pretrained weights, with what brings images to it.

It is a residual network with its activations before the convolutions (He et al., 2016, Identity Mappings in Deep
Residual Networks) and group instead of batch normalisation (Wu and He, 2018), so that no image's result depends on the
others of its batch: transformers' BiT (Kolesnikov et al., 2020, Big Transfer), and transformers loads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from transformers import BitConfig, BitForImageClassification, ViTImageProcessorPil

from chainrule.core.recipe import Section, Structure
from chainrule.core.task import Head
from chainrule.system.images import image_size, open_image

NAME = "convnet"  # in recipes
# LOG.md, "Which small network for images?"
LEARNING_RATE, EPOCHS = 3e-3, 20.0
SMALLEST, LARGEST = 16, 64  # pixels of a side, where the recipe does not say
STATISTICS_FROM = 2000  # images that mean and deviation are computed of
GROUPS = 8
SIDE_UNIT = 4  # a side is a multiple of this


class Options(Section):
    """What a convolutional network is made with.

    Attributes:
        size: the side, in pixels, of the square that every image is brought to; null means that of most training
            images (the median of their shorter sides), at least 16 and at most 64.
        widths: channels after each stage; each but the first halves the side.
        depth: blocks of two convolutions in each stage.
    """

    size: int | None = Field(default=None, ge=8, le=1024)
    widths: tuple[int, ...] = Field(default=(64, 128, 256), min_length=1, max_length=6)
    depth: int = Field(default=1, ge=1, le=16)

    @field_validator("widths")
    @classmethod
    def _in_groups(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 4 * GROUPS or width % (4 * GROUPS) for width in widths):
            raise ValueError(f"multiples of {4 * GROUPS}")
        return widths


def processor_of(options: Options, inputs: Mapping[str, Sequence[str]]) -> tuple[Any, Options]:
    """An image processor for training images, and the options with the size that suits them.

    Args:
        inputs: one column of paths or data URIs, each of an image that can be read.
    """
    (cells,) = inputs.values()
    size = options.size
    if size is None:
        sides = np.array([min(image_size(cell)) for cell in cells])
        size = int(np.clip(math.ceil(np.median(sides) / SIDE_UNIT) * SIDE_UNIT, SMALLEST, LARGEST))
    some = np.linspace(0, len(cells) - 1, min(len(cells), STATISTICS_FROM)).astype(int)
    totals = np.zeros((2, 3))
    for place in some.tolist():
        image = open_image(cells[place]).resize((size, size), Image.Resampling.BILINEAR)
        values = np.asarray(image, np.float64).reshape(-1, 3) / 255
        totals += values.mean(0), np.square(values).mean(0)
    mean, square = totals / len(some)
    deviation = np.sqrt(np.maximum(square - np.square(mean), 1e-4))
    processor = ViTImageProcessorPil(
        size={"height": size, "width": size},
        image_mean=mean.round(4).tolist(),
        image_std=deviation.round(4).tolist(),
        do_convert_rgb=True,
    )
    return processor, options.model_copy(update={"size": size})


def make_classifier(
    options: Options,
    processor: Any,
    labels: Sequence[str],
    problem_type: str,
    structure: Structure,
    *,
    seed: int,
    head: Head = "image-classifier",
) -> tuple[Any, str]:
    """A classifier of images in float32, and a line to tell about it.

    Args:
        seed: draws the weights.
    """
    config = BitConfig(
        num_channels=3,
        embedding_size=options.widths[0] // 2,
        hidden_sizes=list(options.widths),
        depths=[options.depth] * len(options.widths),
        layer_type="preactivation",
        num_groups=GROUPS,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=problem_type or None,
    )
    torch.manual_seed(seed)
    return BitForImageClassification(config), f"Images: read at {options.size} × {options.size} pixels."
