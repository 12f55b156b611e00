"""Attention calls bound to pages: each to what it stores, or to what another has stored for it."""

import torch

from pagoda.formats.constants import KeyConstants, PageTurns
from pagoda.formats.page import page_geometries
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import AttentionRule
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import Reach, SiteSlot, group_layers
from pagoda.models.discovery import Discovered
from pagoda.models.sites import bind_sites


def test_a_call_reads_keys_with_the_constants_that_they_were_stored_without():
    """Layers that share a cache come to the same pages as those that fill them."""
    layout = AttentionLayout(2, 16, 16)
    spec = group_layers([(Reach.FULL, None, layout)] * 3, [None, 0, None])
    geometries = page_geometries(spec, INT8, 16)
    pages = [torch.zeros(2, geometry.page_nbytes, dtype=torch.uint8) for geometry in geometries]
    nothing = PageTurns.of(torch.zeros(0), 16, 2)
    constants = KeyConstants(torch.ones(2, 16), torch.zeros(2, 0, 3).int(), torch.zeros(2, 0, 2), nothing)
    rules, no = (AttentionRule(0.25),) * 3, (False,) * 3
    bound = bind_sites(
        Discovered(spec, rules, no, no, (None,) * 3), ReferenceKernels(), geometries, pages, {SiteSlot(0, 0): constants}
    )
    first, reader, last = bound.sites
    assert first.layer.constants is reader.layer.constants is constants
    assert last.layer.constants is None
    assert [site.writes for site in bound.sites] == [True, False, True]
    assert [site.layer.layer for site in bound.sites] == [0, 0, 1]
