"""WAV files become samples, or an error that says what is wrong with the file."""

import wave

import numpy as np
import pytest

from pagoda.commands.sound import read_wav
from pagoda.errors import ConfigError


def write(file, samples, channels=1, width=2):
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(16000)
        sound.writeframes(np.asarray(samples, dtype=f"<i{width}").tobytes())
    return file


def test_samples_lie_between_minus_one_and_one(tmp_path):
    samples, rate = read_wav(write(tmp_path / "mono.wav", [0, 16384, -32768]))
    assert rate == 16000
    assert samples.dtype == np.float32
    assert samples.tolist() == [0, 0.5, -1]


def test_channels_are_averaged(tmp_path):
    samples, _ = read_wav(write(tmp_path / "stereo.wav", [0, 16384, -16384, -16384], channels=2))
    assert samples.tolist() == [0.25, -0.5]


def test_other_files(tmp_path):
    (tmp_path / "text.wav").write_text("words")
    (tmp_path / "empty.wav").write_text("")
    for name in ("text.wav", "empty.wav", "absent.wav"):
        with pytest.raises(ConfigError, match="cannot be read as WAV"):
            read_wav(tmp_path / name)
    with pytest.raises(ConfigError, match="samples of 32 bits"):
        read_wav(write(tmp_path / "wide.wav", [0], width=4))


def test_a_file_that_ends_in_the_middle_of_a_frame(tmp_path):
    file = write(tmp_path / "cut.wav", [0, 16384, -16384, -16384], channels=2)
    file.write_bytes(file.read_bytes()[:-3])
    samples, _ = read_wav(file)
    assert samples.tolist() == [0.25]
