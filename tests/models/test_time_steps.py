"""Time steps that transformers limits where it scans several tokens: limited here where it computes one, too."""

import pytest

from oracle.families import default_config
from pagoda.models.selftest import paged_error, tiny_network


@pytest.mark.parametrize("family", ["nemotron_h", "zamba2"])
@pytest.mark.parametrize("limit", [0.001, 0.5])
def test_single_tokens_leave_the_state_that_many_leave(family, limit):
    config = default_config(family)
    config.time_step_min = limit
    for seed in range(3):
        error, tolerance = paged_error(tiny_network(config, seed))
        assert error <= tolerance
