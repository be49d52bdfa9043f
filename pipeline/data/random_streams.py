"""Randomness as a function of (seed, purpose, step): never a stream that must be saved."""

import torch

# purposes of randomness
ORDER, LATENTS, FLIPS, SAMPLES, BALANCED_DRAWS, REQUESTS, TEST_SPLIT, DETECTOR_STEPS, PERTURBATION_NOISE = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
)


def seeded_generator(device: torch.device | str, *place: int) -> torch.Generator:
    """A torch generator that is a function of where it is used: (seed, purpose, step ...), never a stream to save."""
    state = 0x9E3779B97F4A7C15
    for number in place:  # splitmix64, so that neighbouring places give unrelated seeds
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state >> 1)
