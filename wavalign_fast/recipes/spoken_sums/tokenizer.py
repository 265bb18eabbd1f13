"""The speech tokenizer: 80 ms of log-mel frames -> the nearest of 256 centroids."""

import numpy as np

from wavalign_fast.recipes.spoken_sums.mel import NUM_MELS, log_mel

FRAMES_PER_CODE = 8
"""Eight 10 ms frames per code, so 12.5 codes per second."""


def mel_blocks(waveform: np.ndarray) -> np.ndarray:
    """Cuts a waveform (float32 [samples]) into mel blocks, float32 [codes, 8 * NUM_MELS]."""
    frames = log_mel(waveform)
    whole = len(frames) // FRAMES_PER_CODE * FRAMES_PER_CODE
    return frames[:whole].reshape(-1, FRAMES_PER_CODE * NUM_MELS)


def nearest_centroids(blocks: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the index of the nearest centroid of each block, uint8 [codes]."""
    distance = (centroids**2).sum(1) - 2 * blocks @ centroids.T
    return distance.argmin(1).astype(np.uint8)


def encode(waveform: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Encodes a 16 kHz waveform as speech codes, uint8 [codes]."""
    return nearest_centroids(mel_blocks(waveform), centroids)
