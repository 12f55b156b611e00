"""The families whose facts can be read from a config.json."""

from oracle import families
from pagoda.planning.spec import UNKNOWABLE

KNOWABLE = [
    family
    for family in (*families.FAMILIES, *families.ENCODER_DECODERS, *families.FORWARD_ONLY)
    if family not in UNKNOWABLE
]
