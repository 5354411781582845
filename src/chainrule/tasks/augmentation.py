"""Images that look a little different each time they are seen in training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional

from chainrule.core.recipe import Section
from chainrule.core.task import Objective


class Augmentation(Section):
    """How far an image may be changed, either way; what comes in at an edge is as dark as the darkest pixel.

    Attributes:
        rotation: in degrees.
        scale: share of its size.
        shift: share of its width and of its height.
        flip: half of the images are mirrored, left and right.
        brightness: in standard deviations of the training pixels.
        contrast: share of each pixel's distance from the image's mean.
        erase: the share of images that lose a rectangle of 2 to 20 % of their area (Zhong et al., 2017, Random
            Erasing).
    """

    rotation: float = Field(default=10.0, ge=0, le=180)
    scale: float = Field(default=0.1, ge=0, lt=1)
    shift: float = Field(default=0.1, ge=0, lt=1)
    flip: bool = False
    brightness: float = Field(default=0.1, ge=0)
    contrast: float = Field(default=0.1, ge=0, lt=1)
    erase: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True)
class Augmented:
    """An objective on images that are changed first; what is drawn follows from the step's seed."""

    objective: Objective
    augmentation: Augmentation

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        changed = augment(batch.inputs["pixel_values"], self.augmentation)
        return self.objective.accumulate(model, replace(batch, inputs=batch.inputs | {"pixel_values": changed}))


def augment(images: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Changed images (b, c, h, w) of normalised ones; each is changed by itself."""
    darkest = images.amin(dim=(2, 3), keepdim=True)
    grid = functional.affine_grid(_placements(len(images), augmentation), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images - darkest, grid.to(images), align_corners=False) + darkest
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    contrast = 1 + _drawn(len(images), augmentation.contrast).view(-1, 1, 1, 1).to(images)
    brightness = _drawn(len(images), augmentation.brightness).view(-1, 1, 1, 1).to(images)
    changed = (moved - mean) * contrast + mean + brightness
    return _erased(changed, augmentation.erase) if augmentation.erase else changed


def _drawn(count: int, most: float) -> torch.Tensor:
    """(count,) numbers between −most and most."""
    return (torch.rand(count) * 2 - 1) * most


def _placements(count: int, augmentation: Augmentation) -> torch.Tensor:
    """(count, 2, 3) where each pixel of a changed image comes from, in halves of a side from the middle."""
    angle = _drawn(count, augmentation.rotation) * (math.pi / 180)
    size = 1 / (1 + _drawn(count, augmentation.scale))
    mirrored = 1 - 2 * (torch.rand(count) < 0.5).float() if augmentation.flip else torch.ones(count)
    placements = torch.empty(count, 2, 3)
    placements[:, 0, 0], placements[:, 0, 1] = angle.cos() * size * mirrored, -angle.sin() * size
    placements[:, 1, 0], placements[:, 1, 1] = angle.sin() * size * mirrored, angle.cos() * size
    placements[:, :, 2] = _drawn(2 * count, 2 * augmentation.shift).view(count, 2)
    return placements


def _erased(images: torch.Tensor, share: float) -> torch.Tensor:
    """Images of which some have a rectangle of noise."""
    count, _, height, width = images.shape
    area, ratio = torch.empty(count).uniform_(0.02, 0.2), torch.empty(count).uniform_(-1.2, 1.2).exp()
    tall, wide = (area * ratio).sqrt().clamp(max=1) * height, (area / ratio).sqrt().clamp(max=1) * width
    top, left = torch.rand(count) * (height - tall), torch.rand(count) * (width - wide)
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    inside = (rows >= top.view(-1, 1, 1)) & (rows < (top + tall).view(-1, 1, 1))
    inside = inside & (columns >= left.view(-1, 1, 1)) & (columns < (left + wide).view(-1, 1, 1))
    inside &= (torch.rand(count) < share).view(-1, 1, 1)
    return torch.where(inside[:, None].to(images.device), torch.randn(images.shape).to(images), images)
