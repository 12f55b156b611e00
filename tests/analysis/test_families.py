"""A plan answers for every family whose cache can be read from a config.json, its weights counted or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oracle import families
from pagoda import plan
from pagoda.analysis.formulas import formulas
from pagoda.commands.plan_tables import tables
from planning.families import KNOWABLE

MACHINE = {"memory": "2TiB", "bandwidth": "1TB/s", "flops": "1TFLOPS", "weights": "1GiB"}


@pytest.mark.parametrize("family", KNOWABLE)
def test_a_plan_is_made_told_and_explained(family: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(families.default_config(family).to_dict(), default=str), encoding="utf-8")
    found = plan(file, context=512, kv_cache_dtype=("fp32", "int8"), **MACHINE)
    assert found.main.users_by_memory
    assert found.main.decode[0].weight_nbytes <= 1 << 30
    assert json.dumps(found.as_json())
    assert formulas(found)
    assert [*tables(found)]
