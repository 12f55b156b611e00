"""Every decoder family of transformers: its logits through pages equal its own, or it is refused by name."""

from __future__ import annotations

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from oracle import families
from pagoda.errors import UnsupportedModelError
from pagoda.models.loader import examine
from pagoda.models.selftest import paged_error


def test_every_family_is_in_exactly_one_table():
    tables = [*families.FAMILIES, *families.ENCODER_DECODERS, *families.FORWARD_ONLY, *families.REFUSED]
    assert len(tables) == len(set(tables))
    assert set(tables) == {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} | families.encoder_decoders()
    assert len(families.FAMILIES) >= 100


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.ENCODER_DECODERS, *families.FORWARD_ONLY])
def test_paged_logits_equal_transformers(family):
    error, tolerance = paged_error(families.build_tiny(family))
    assert error <= tolerance


@pytest.mark.parametrize("family", families.REFUSED)
def test_other_families_are_refused_with_the_reason(family):
    with pytest.raises(UnsupportedModelError, match=families.REFUSED[family]):
        examine(families.default_config(family))
