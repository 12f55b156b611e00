"""Machines by name, and this one."""

from __future__ import annotations

import pytest

from pagoda import machine as system
from pagoda import plan
from pagoda.analysis import measured
from pagoda.analysis.machines import PRESETS, find_machine
from pagoda.errors import ConfigError


@pytest.mark.parametrize("preset", PRESETS, ids=lambda each: each.name)
def test_presets_are_whole_and_say_where_their_figures_are_from(preset):
    assert preset.source
    assert preset.memory_nbytes >= 24 << 30
    assert 1e11 < preset.bandwidth < 1e13
    assert preset.flops_in("bfloat16") == preset.flops_in("float16") >= preset.flops_in("float32")


@pytest.mark.parametrize("spelling", ["RTX 4090", "rtx4090", "RTX-4090"])
def test_names_are_found_however_they_are_spelled(spelling):
    assert find_machine(spelling).name == "RTX 4090"


def test_an_unknown_machine_names_the_others():
    with pytest.raises(ConfigError, match=r"did you mean H200.*RTX 4090.*this"):
        find_machine("H2000")


def test_figures_that_are_given_win():
    found = plan("llama-3-8b", machine="H100", memory="40GiB", bandwidth="1TB/s").machine
    assert (found.memory_nbytes, found.bandwidth) == (40 << 30, 1e12)
    assert found.flops_in("bfloat16") == 989.4e12
    assert "as given" in found.source


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setattr(measured, "READ_NBYTES", 1 << 20)
    monkeypatch.setattr(measured, "SIDE", 64)
    found = find_machine("this machine")
    assert found.bandwidth > 1e8
    assert found.flops_in("bfloat16") > 1e7
    assert found.memory_nbytes <= system.memory_nbytes()


def test_nothing_is_measured_for_a_preset(monkeypatch):
    monkeypatch.setattr(measured, "this_machine", None)
    assert plan("llama-3-8b", machine="H100").machine.name == "H100"
