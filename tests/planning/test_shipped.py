"""The configurations that come with the package: what their files say is what the model leaves behind."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from pagoda.analysis.catalog import Shape, shapes
from pagoda.models.discovery import discover
from pagoda.models.quiet import quiet
from pagoda.models.tiny import shrink
from pagoda.planning.spec import spec_from_config


@pytest.mark.parametrize("shape", shapes(), ids=lambda shape: shape.name)
def test_the_configuration_and_the_model_agree(shape: Shape) -> None:
    """Of the file as it is, read by transformers and written out again; and of a small copy, run through."""
    said = {name: value for name, value in shape.config().items() if name != "quantization_config"}
    with quiet():
        config = AutoConfig.for_model(**said)
    assert spec_from_config(config.to_dict()) == spec_from_config(said)
    small = shrink(config)
    assert spec_from_config(small.to_dict()) == discover(small).spec
