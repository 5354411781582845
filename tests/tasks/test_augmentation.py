"""Changes of training images: nothing where nothing is asked for, and what is asked for where something is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chainrule.tasks.augmentation import Augmentation, augment

pytestmark = pytest.mark.unit
NOTHING: dict[str, Any] = {"rotation": 0, "scale": 0, "shift": 0, "brightness": 0, "contrast": 0}


def images(count: int = 4, side: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_nothing_asked_for_changes_nothing() -> None:
    torch.testing.assert_close(augment(images(), Augmentation(**NOTHING)), images(), atol=1e-5, rtol=0)


def test_a_flip_mirrors_half_of_the_images() -> None:
    torch.manual_seed(0)
    given = images(64)
    changed = augment(given, Augmentation(**NOTHING, flip=True))
    same = (changed - given).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (changed - given.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    assert bool((same ^ mirrored).all())
    assert 16 < int(mirrored.sum()) < 48


def test_a_shift_moves_in_the_darkest_value_and_loses_no_image() -> None:
    torch.manual_seed(0)
    given = images(16) + 1
    changed = augment(given, Augmentation(**(NOTHING | {"shift": 0.25})))
    darkest = given.amin((2, 3), keepdim=True)
    assert bool((changed >= darkest - 1e-5).all())
    assert bool((changed <= given.amax((2, 3), keepdim=True) + 1e-5).all())
    assert int(((changed - darkest).abs() < 1e-6).flatten(1).any(1).sum()) > 2


def test_rotation_turns_about_the_middle() -> None:
    torch.manual_seed(0)
    given = torch.zeros(8, 1, 33, 33)
    given[:, :, 4, 16] = 1  # above the middle
    changed = augment(given, Augmentation(**(NOTHING | {"rotation": 90})))
    for one in changed[:, 0]:
        y, x = divmod(int(one.argmax()), 33)
        assert (y - 16) ** 2 + (x - 16) ** 2 == pytest.approx(144, rel=0.2)
    assert len({int(one.argmax()) for one in changed[:, 0]}) > 4


def test_contrast_and_brightness_keep_the_shape_of_an_image() -> None:
    torch.manual_seed(0)
    given = images()
    changed = augment(given, Augmentation(**(NOTHING | {"contrast": 0.5, "brightness": 0.5})))
    for before, after in zip(given, changed, strict=True):
        correlation = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
        assert float(correlation) == pytest.approx(1, abs=1e-4)
    assert bool(((changed - given).abs().amax((1, 2, 3)) > 1e-3).all())


def test_erasing_replaces_a_rectangle() -> None:
    torch.manual_seed(0)
    given = torch.full((40, 3, 24, 24), 9.0)
    changed = augment(given, Augmentation(**NOTHING, erase=1.0))
    touched = (changed != 9).any(1)
    for one in touched:
        rows, columns = torch.nonzero(one.any(1)).flatten(), torch.nonzero(one.any(0)).flatten()
        assert len(rows)
        assert bool(one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
    assert 0.005 < float(touched.float().mean()) < 0.25


def test_what_is_drawn_follows_from_the_seed() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(augment(images(), Augmentation(flip=True, erase=0.5)))
    assert torch.equal(*found)
