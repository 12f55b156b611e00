"""One step of attention: a tile of tokens added to what the rows of a block have summed so far.

Scores are in units of log 2. Knows the rules of attention; which tiles come, and what becomes of sums, does attend.py.
"""

import triton
import triton.language as tl

from pagoda.kernels.triton.decode import key_levels, key_tiles, scales_of, value_tiles, value_words, weights_apart

LOG2_E = tl.constexpr(1.4426950408889634)
# Within which weights of tokens differ by their scales: sums of 2**27 of them, and their inverses, are numbers in fp32.
LEAST_HEIGHT = tl.constexpr(-100)
MOST_HEIGHT = tl.constexpr(112)


@triton.jit
def add_tile(
    summed, rows, pages, numbers, beside, extras, first, length, is_masked: tl.constexpr, shape: tl.constexpr
):  # fmt: skip
    """One step of the softmax over tokens (arXiv 1805.02867), those from `first` on.

    `rows` are queries, what they were divided by, lifts, where their turns are kept, and whose they are. A row is
    masked here or there, and tiles that it does not reach may come: it must have the same bits. Weights times scales of
    values that meet codes in fp16 are 2 at most: the largest scores are of their product then.
    """
    largest, total, sums = summed[0], summed[1], summed[2]
    queries, units, lifts, turns, owner = rows[0], rows[1], rows[2], rows[3], rows[4]
    # A cell says which head's it is.
    head = 0 if shape.has_cells else owner[2]
    token = first + tl.arange(0, shape.tile.tokens)
    keep = (numbers[0] >= 0) & (token < length)
    page = tl.maximum(numbers[0], 0) if is_masked else numbers[0]
    slot = token % shape.keys.page_tokens
    keys = ()
    for part in tl.static_range(tl.constexpr(shape.num_parts)):
        keys += key_tiles(pages, page, slot, head, beside[2], keep, is_masked, part, shape)
    scores = _products(queries, keys, shape)
    scales = _scales_of_tokens(beside, keep, is_masked, shape)
    if shape.keys.is_coded:
        scores *= scales[0][None, :]
    if shape.scales_queries and not shape.folds_units:
        scores *= units[:, None]
    if shape.has_constants:
        places = turns[:, None] + _numbers_in_sequence(owner[4], token, length, shape)[None, :]
        table_of_turns = tl.load(extras[5] + places, mask=(token < length)[None, :], other=0.0)
        scores = tl.dot(lifts, table_of_turns, scores, input_precision=shape.exact_dot)
    row, position = _at_slots(owner[4], token, length, is_masked, shape)
    scores = _ruled(scores, owner, position, extras, shape)
    if is_masked:
        scores = tl.where(_is_seen(owner, token, row, position, length, shape), scores, float("-inf"))
    # Powers of two: it is the same where they are multiplied by.
    multipliers = units * shape.rule.multiplier if shape.folds_units else shape.rule.multiplier
    multiplier = multipliers[:, None] if shape.folds_units else multipliers
    highest = tl.maximum(largest, _highest_of(scores, scales, multipliers, shape))
    base = tl.where(highest == float("-inf"), 0.0, highest)
    # Fused by hand, and by nothing else. What fades is not: it must be 1 where nothing is larger.
    weights = tl.exp2(tl.fma(scores, multiplier, -base[:, None]))
    fade = tl.exp2(largest - base)
    total = total * fade + tl.sum(weights, axis=1)
    if shape.values.is_coded:
        weights = weights * scales[1][None, :]
    weights = weights.to(shape.value_dot)
    if shape.has_latents:
        sums = _add_latents(sums, fade, weights, keys, shape)
    else:
        tokens = first + shape.values.count * value_words(shape)
        values = value_tiles(pages, numbers[1], tokens, length, head, is_masked, shape)
        sums = _add_values(sums, fade, weights, values, shape)
    return highest, total, sums


@triton.jit
def _products(queries, keys, shape: tl.constexpr):
    scores = tl.full([shape.tile.rows, shape.tile.tokens], 0.0, tl.float32)
    for index in tl.static_range(tl.constexpr(shape.num_parts * shape.keys.tiles)):
        scores = tl.dot(queries[index], keys[index], scores, input_precision="ieee")
    return scores


@triton.jit
def beside_tile(pages, numbers, first, head, shape: tl.constexpr):
    """What a tile of codes needs besides: scales of keys and of values, and levels of keys.

    They come in pieces too small to be copied while others are computed: see `asks_ahead`.
    """
    page = tl.maximum(numbers[0], 0)
    slot = (first + tl.arange(0, shape.tile.tokens)) % shape.keys.page_tokens
    of_keys = scales_of(pages, page, slot, head, True, shape) if shape.keys.is_coded else 0
    if shape.values.is_coded and not shape.has_latents:
        of_values = scales_of(pages, page, slot, head, False, shape)
    else:
        of_values = of_keys
    return of_keys, of_values, key_levels(pages, page, slot, head, shape)


@triton.jit
def _scales_of_tokens(beside, keep, is_masked: tl.constexpr, shape: tl.constexpr):
    """Of keys and of values, where they are codes; those of values are zeros where there are no tokens."""
    of_keys = beside[0].to(tl.float32) * shape.keys.code_factor if shape.keys.is_coded else 0.0
    if not shape.values.is_coded:
        return of_keys, 0.0
    else:
        of_values = of_keys if shape.has_latents else beside[1].to(tl.float32) * shape.values.code_factor
        return of_keys, tl.where(keep, of_values, 0.0) if is_masked else of_values


@triton.jit
def _highest_of(scores, scales, multipliers, shape: tl.constexpr):
    """Of each row the largest score, or the largest of scores and exponents of the scales of values."""
    if shape.scales_weights:
        exponents = (scales[1].to(tl.int32, bitcast=True) >> 23) - 127
        heights = tl.minimum(tl.maximum(exponents, LEAST_HEIGHT), MOST_HEIGHT).to(tl.float32)
        heights = tl.broadcast_to(heights[None, :], scores.shape)
        multiplier = multipliers[:, None] if shape.folds_units else multipliers
        return tl.max(tl.fma(scores, multiplier, heights), axis=1)
    else:
        return tl.max(scores, axis=1) * multipliers


@triton.jit
def _add_latents(sums, fade, weights, keys, shape: tl.constexpr):
    added = ()
    for index in tl.static_range(tl.constexpr(shape.num_parts * shape.keys.tiles)):
        faded = sums[index] * fade[:, None]
        values = tl.trans(keys[index]).to(shape.value_dot)
        added += (tl.dot(weights, values, faded, input_precision="ieee"),)
    return added


@triton.jit
def _add_values(sums, fade, weights, values, shape: tl.constexpr):
    apart = weights_apart(weights, shape)
    added = ()
    for half in tl.static_range(tl.constexpr(shape.values.halves)):
        faded = sums[half] * fade[:, None]
        for index in tl.static_range(tl.constexpr(shape.values.count)):
            tile = values[index * shape.values.halves + half]
            faded = tl.dot(apart[index], tile, faded, input_precision="ieee")
        added += (faded,)
    return added


@triton.jit
def _ruled(scores, owner, token, extras, shape: tl.constexpr):
    """Scores of tokens at positions `token` from products; in units of log 2, or of 1 / `multiplier` of that."""
    if shape.rule.is_plain:
        return scores
    else:
        if shape.rule.soft_cap > 0.0:
            capped = 2.0 * tl.sigmoid(scores * (2.0 * shape.rule.scale / shape.rule.soft_cap)) - 1.0
            scores = capped * (shape.rule.soft_cap * LOG2_E)
        else:
            scores = scores * (shape.rule.scale * LOG2_E)
        if shape.rule.has_slopes:
            slopes = tl.load(extras[1] + owner[1])
            scores -= (slopes * LOG2_E)[:, None] * (owner[0][:, None] - token[None, :]).to(tl.float32)
        if shape.rule.num_biases > 0:
            distance = tl.minimum(tl.maximum(owner[0][:, None] - token[None, :], 0), shape.rule.num_biases - 1)
            scores += tl.load(extras[2] + owner[1][:, None] * shape.rule.num_biases + distance) * LOG2_E
        return scores


@triton.jit
def _numbers_in_sequence(places, token, length, shape: tl.constexpr):
    """Which pages of their sequence tokens lie in."""
    number = token // shape.keys.page_tokens
    return tl.load(places + number, mask=token < length, other=0) if shape.has_choice else number


@triton.jit
def _at_slots(places, slot, length, is_masked: tl.constexpr, shape: tl.constexpr):
    """Which new row of the sequence lies in a slot, or -1, and the position of what does."""
    if shape.has_places and is_masked:
        index = slot - places[0]
        row = tl.load(places[1] + index, mask=(index >= 0) & (slot < length), other=-1)
        return row, tl.where(row >= 0, tl.load(places[2] + row, mask=row >= 0, other=0), slot)
    else:
        return 0, slot


@triton.jit
def _is_seen(owner, slot, new, token, length, shape: tl.constexpr):
    """Which slots [rows, slots] a row attends to: new rows `new` lie there, or what is stored, at positions `token`."""
    position, row = owner[0], owner[3]
    if shape.rule.reach == "encoder":
        return (slot < length)[None, :]
    else:
        if shape.has_places:
            bit = tl.minimum(tl.maximum(new, 0), 63).to(tl.int64)[None, :]
            is_before = (new[None, :] < row[:, None]) & (((owner[5][:, None] >> bit) & 1) != 0)
            seen = (is_before | (new < 0)[None, :] | (new[None, :] == row[:, None])) & (slot < length)[None, :]
        else:
            seen = (token[None, :] <= position[:, None]) & (token[None, :] < length)
        return seen & _is_near(position, token, shape) if shape.has_edge else seen


@triton.jit
def _is_near(position, token, shape: tl.constexpr):
    """Which tokens [rows, tokens] are in the window or chunk of a row, or before all others."""
    if shape.rule.reach == "sliding":
        is_near = position[:, None] - token[None, :] < shape.rule.span
    else:
        is_near = position[:, None] // shape.rule.span == token[None, :] // shape.rule.span
    return is_near | (token < shape.rule.sink_tokens)[None, :] if shape.rule.sink_tokens > 0 else is_near
