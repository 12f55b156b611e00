"""How far the native kernels may be from the reference, format by format."""

import torch

from pagoda.registry import lookup, names

FORMATS = tuple(lookup("format", name) for name in names("format"))
CODED = tuple(format for format in FORMATS if format.has_codes)
ROUNDING_UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def tolerance(shape, rule):
    """Largest difference from the reference, as a share of the largest value.

    Both round scores (|s| < 8 here, sums of 140 products in another order: 4 units x 8, and more in proportion) and,
    with a soft cap, its tanh (2 units x cap); an error e of every score moves a weighted mean of values by at most
    2e. Weights and their sum add a few units more. Where the dot instructions round weights w (1 + d), |d| <= u =
    2^-8, to bf16, weights that still sum to one move the mean by at most 2u. Both results are rounded to the query's
    type: u each. Queries that are rounded to a `query_step` err by up to half of it times the largest number (about 3)
    in each channel: scores of standard deviation 1 move by 3 step / 2 / sqrt(3), and all within five times as much.
    """
    single = ROUNDING_UNIT[torch.float32]
    score_error = 32 * single * max(1, shape.key_width / 140) + 2 * single * (rule.soft_cap or 0)
    if shape.dtype is torch.bfloat16:
        score_error += 5 * 3 * shape.format.query_step / 2 / 3**0.5
    weight_error = 16 * single
    if shape.dtype is torch.bfloat16 and shape.format.model_dtype() is torch.bfloat16:
        weight_error += 2 * ROUNDING_UNIT[torch.bfloat16]
    if shape.format.has_codes:  # values are rounded to bf16 once they are scaled, and may be half a code too large
        weight_error = 2 * weight_error + 2 * ROUNDING_UNIT[torch.bfloat16]
    return 2 * score_error + weight_error + 2 * ROUNDING_UNIT[shape.dtype]
