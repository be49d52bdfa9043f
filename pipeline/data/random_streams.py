"""Randomness as a function of (seed, purpose, step), so that no generator state has to be saved."""

import torch

# Purposes: the second number of every stream. They affect results, so a number is never reused for another purpose.
ORDER = 1  # of the images of an epoch
LATENTS = 2  # of training
FLIPS = 3  # horizontal flips of training images
SAMPLES = 4  # latents of the samples
BALANCED_DRAWS = 5  # permutations of a balanced sampler's groups
REQUESTS = 6  # classes of a conditional generator's samples
TEST_SPLIT = 7  # faces that detectors are tested on
DETECTOR_STEPS = 8  # augmentation and noise in a detector's training
PERTURBATION_NOISE = 9  # random numbers of image perturbations
CLASSIFIER_ORDER = 10  # order of the images in each epoch of a classifier's fit
CLASSIFIER_AUGMENTATION = 11
EXTERNAL_SAMPLES = 12  # seeds of another program's generator
GAN_AUGMENTATION = 13  # random changes of the images that the discriminator sees


def seeded_generator(device: torch.device | str, *stream: int) -> torch.Generator:
    """Return a generator whose state is a function of `stream`: (seed, purpose, step, ...)."""
    state = 0x9E3779B97F4A7C15
    for number in stream:  # splitmix64, so that neighbouring streams get unrelated seeds
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state >> 1)
