"""How far the native kernels may be from the reference, format by format."""

import torch

from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.mixed import K8V4
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import FP8_E4M3, FP8_E5M2, INT8

CODED = (INT8, FP8_E4M3, FP8_E5M2, INT4, INT4_ROTATED, INT4_PLAIN, K8V4)
FOUR_BIT_KEYS = (INT4, INT4_ROTATED, INT4_PLAIN)
FORMATS = (FP32, FP16, BF16, *CODED)
ROUNDING_UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def compute_dtype(format):
    """The type of a model whose pages are in `format`."""
    return torch.bfloat16 if format in CODED else format.dtype()


def tolerance(shape, rule):
    """Largest difference from the reference, as a share of the largest value.

    Both round scores (|s| < 8 here, sums of 140 products in another order: 4 units x 8, and more in proportion) and,
    with a soft cap, its tanh (2 units x cap); an error e of every score moves a weighted mean of values by at most
    2e. Weights and their sum add a few units more. Where the dot instructions round weights w (1 + d), |d| <= u =
    2^-8, to bf16, weights that still sum to one move the mean by at most 2u. Both results are rounded to the query's
    type: u each. Queries that meet keys of four bits have 8: an error of up to a 510th of the largest number (about 3)
    in each channel moves scores of standard deviation 1 by 3 / 510 / sqrt(3); all are within five times as much.
    """
    single = ROUNDING_UNIT[torch.float32]
    score_error = 32 * single * max(1, shape.key_width / 140) + 2 * single * (rule.soft_cap or 0)
    if shape.dtype is torch.bfloat16 and shape.format in FOUR_BIT_KEYS:
        score_error += 5 * 3 / 510 / 3**0.5
    weight_error = 16 * single
    if shape.dtype is torch.bfloat16 and shape.format in (BF16, *CODED):
        weight_error += 2 * ROUNDING_UNIT[torch.bfloat16]
    if shape.format in CODED:  # values are rounded to bf16 once they are scaled, and may be half a code too large
        weight_error = 2 * weight_error + 2 * ROUNDING_UNIT[torch.bfloat16]
    return 2 * score_error + weight_error + 2 * ROUNDING_UNIT[shape.dtype]
