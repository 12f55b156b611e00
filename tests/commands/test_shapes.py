"""Built-in shapes have the published number of parameters, and a config.json of one's own works too."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from pagoda.cli import main
from pagoda.commands.shapes import SHAPES, shape_config
from pagoda.llm import EMBEDDED_MODEL

NUM_PARAMETERS = {"qwen2.5-0.5b": 494_032_768, "llama-3.2-1b": 1_235_814_400}


def test_every_shape_is_tested() -> None:
    assert NUM_PARAMETERS.keys() == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == NUM_PARAMETERS[name]


def test_a_config_file_is_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompt-tokens", "20", "--output-tokens", "2", "--repeats", "1"]
    config = str(EMBEDDED_MODEL / "config.json")
    assert main(["bench", "--random-weights", config, "--scenario", "single", *sizes]) == 0
    assert "decode" in capsys.readouterr().out
