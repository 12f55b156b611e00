"""Sound from WAV files, as encoders of sound are given it."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from pagoda.errors import ConfigError

SAMPLE_NBYTES = 2
FULL_SCALE = 1 << 15


def read_wav(file: Path) -> tuple[np.ndarray, int]:
    """The samples of a WAV file, fp32 from -1 to 1 with channels averaged, and how many there are in a second.

    Raises ConfigError for anything but 16-bit PCM.
    """
    try:
        with wave.open(str(file.expanduser()), "rb") as sound:
            rate, channels, width = sound.getframerate(), sound.getnchannels(), sound.getsampwidth()
            data = sound.readframes(sound.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise ConfigError(f"{file} cannot be read as WAV: {error}") from error
    if width != SAMPLE_NBYTES:
        raise ConfigError(f"{file} has samples of {8 * width} bits; convert it to 16-bit PCM.")
    data = data[: len(data) - len(data) % (width * channels)]  # a file may end in the middle of a frame
    samples = np.frombuffer(data, dtype="<i2").reshape(-1, channels).astype(np.float32) / FULL_SCALE
    return samples.mean(axis=1), rate
