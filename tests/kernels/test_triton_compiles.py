"""The Triton kernels compile for cards that are not here, within their shared memory. Needs no GPU."""

from pathlib import Path

import pytest

from processes import run

pytest.importorskip("triton")

# In a process of its own, where kernels are compiled and not interpreted.
SCRIPT = "import sys; sys.path.insert(0, sys.argv.pop(1)); import gpu_compile; gpu_compile.main()"
SCRIPTS = Path(__file__).parents[2] / "scripts"
ATTENDING = ("attend_few", "attend_many")
MULTIPLYING = ("multiply_few", "add_splits", "decode_tile")
CHOOSING = ("bound_pages", "choose_pages", "rest_of")
ROUTED = ("route_pairs", "multiply_routed")
# What the first parts of compilers refuse is the same for all cards, so of these kernels one card says it.
LAYERS = "layers/gemma_2_9b/bf16,products/qwen_2.5_0.5b/bf16"
OF_LAYERS = ("norm_row", "add_norm_row", "gate_block", "rotate_rows", "multiply_tile")


@pytest.mark.parametrize(
    ("card", "cases", "kernels"),
    [
        ("RTX3090", "chosen/fp8_e4m3/full,experts/int4/bf16", ATTENDING + CHOOSING + ROUTED),
        ("MI300", f"constants/int8/full,coded/Q6_K/bf16,{LAYERS}", ATTENDING + MULTIPLYING + OF_LAYERS),
    ],
)
def test_kernels_compile_for(card, cases, kernels, tmp_path):
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = run(str(SCRIPTS), "--cards", card, "--cases", cases, script=SCRIPT, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
    for name in kernels:
        assert f"kernel={name}" in done.stdout
