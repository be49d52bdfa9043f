"""DiffAugment: its ranges, its shifts, and the gradients through it."""

import torch

from models.diff_augment import diff_augment, shift

NEUTRAL = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5]])


def test_the_middle_of_every_range_changes_nothing():
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.allclose(diff_augment(images, NEUTRAL), images, atol=1e-6)


def test_images_move_by_up_to_an_eighth_of_the_side():
    images = torch.arange(32 * 32.0).view(1, 1, 32, 32).expand(2, 3, 32, 32) + 1
    moved = shift(images, torch.tensor([[0.0, 0.9999], [0.5, 0.5]]))
    assert torch.equal(moved[0, :, 4:, :28], images[0, :, :28, 4:])  # four rows down, four columns to the left
    assert (moved[0, :, :4] == 0).all()
    assert (moved[0, :, :, 28:] == 0).all()
    assert torch.equal(moved[1], images[1])


def test_brightness_saturation_and_contrast_have_the_ranges_of_the_paper():
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    bright, grey, flat = NEUTRAL.clone(), NEUTRAL.clone(), NEUTRAL.clone()
    bright[0, 0], grey[0, 1], flat[0, 2] = 0.0, 0.0, 0.0
    assert torch.allclose(diff_augment(images, bright), images - 0.5, atol=1e-6)
    assert torch.allclose(diff_augment(images, grey).std(1), torch.zeros(1, 32, 32), atol=1e-6)
    assert torch.allclose(diff_augment(images, flat).std(), images.std() / 2, atol=1e-6)


def test_gradients_flow_to_every_pixel_that_stays_in_the_image():
    images = torch.rand(4, 3, 32, 32, requires_grad=True)
    diff_augment(images, torch.rand(4, 5)).square().sum().backward()
    assert images.grad is not None
    assert (images.grad[:, :, 4:-4, 4:-4] != 0).all()
