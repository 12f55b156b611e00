"""Which layers keep their keys without what these have in common, and what that is.

Knows formats, layers and what calibration measured. Does not know texts, or how keys are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from pagoda.formats.base import Format
from pagoda.formats.constants import KeyConstants, PageTurns
from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.page import PageGeometry
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import FP8_E4M3, FP8_E5M2, INT8
from pagoda.layouts.spec import SiteSlot
from pagoda.models.calibration import KeyStatistics, ScaleRule, constants_of

# How channels are scaled. Rows of four bits that are scaled to equal channels lose what the large ones are for. Codes
# that are floats have a scale of their own.
SCALE_RULES: Mapping[Format, ScaleRule] = {
    INT8: ScaleRule(1.0, 0.0),
    FP8_E4M3: ScaleRule(0.0, 0.0),
    FP8_E5M2: ScaleRule(0.0, 0.0),
    INT4: ScaleRule(0.5, 0.25),
    INT4_ROTATED: ScaleRule(0.5, 0.25),
    INT4_PLAIN: ScaleRule(0.5, 0.25),
}

Constants = dict[SiteSlot, KeyConstants]


def constants_for(
    geometries: tuple[PageGeometry, ...], statistics: Mapping[SiteSlot, KeyStatistics], most_tokens: int
) -> Constants:
    """Of every layer whose format keeps them apart, for sequences of up to `most_tokens`."""
    turns: dict[tuple[bytes, int], PageTurns] = {}
    constants = {}
    for site, found in statistics.items():
        rule, page_tokens = _scale_rule(geometries, site), geometries[site.group].page_tokens
        if rule is None:
            continue
        frequencies = found.rotation.frequencies
        key = (frequencies.numpy().tobytes(), page_tokens)
        if key not in turns:
            turns[key] = PageTurns.of(frequencies, page_tokens, -(-most_tokens // page_tokens))
        constants[site] = constants_of(found, rule, turns[key], page_tokens)
    return constants


def digest_of(constants: Constants) -> str | None:
    """What tells pages that were kept with other constants: 16 hexadecimal digits, None without any."""
    if not constants:
        return None
    digest = blake2b(digest_size=8)
    for site, each in sorted(constants.items(), key=lambda item: (item[0].group, item[0].layer)):
        digest.update(repr((site.group, site.layer)).encode())
        # Angles follow from the model; the pairs of channels that turn are told by those that have a base.
        for tensor in (each.scales, each.pairs, each.bases):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _scale_rule(geometries: tuple[PageGeometry, ...], site: SiteSlot) -> ScaleRule | None:
    """None for layers that keep keys as they are."""
    geometry = geometries[site.group]
    return SCALE_RULES.get(geometry.format_of(site.layer).of(geometry.slots[site.layer][0].plane))
