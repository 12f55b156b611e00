"""Layouts and how the layers of a model are sorted into groups."""

from dataclasses import replace

import pytest

from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.base import Axis, Layout
from pagoda.layouts.cross import CrossLayout
from pagoda.layouts.latent import LatentLayout
from pagoda.layouts.spec import LayerGroup, Reach, SiteSlot, group_layers
from pagoda.layouts.state import StateKind, StateLayout, StateTensor

GQA = AttentionLayout(num_kv_heads=2, key_width=16, value_width=16)
WIDE = AttentionLayout(num_kv_heads=1, key_width=48, value_width=32)
FULL = (Reach.FULL, None, GQA)
SLIDING = (Reach.SLIDING, 64, GQA)


class EveryFourth(Layout):
    """A layer that resumes at every fourth token only."""

    planes = ()

    @classmethod
    def examples(cls):
        return {"every fourth": cls()}

    def resumable_tokens(self, num_matched_tokens):
        return num_matched_tokens // 4 * 4


class TestAttentionLayout:
    def test_a_token_leaves_a_key_and_a_value_per_head(self):
        assert [(plane.name, plane.num_heads, plane.width) for plane in WIDE.planes] == [
            ("key", 1, 48),
            ("value", 1, 32),
        ]
        assert WIDE.elements_per_token == 48 + 32

    def test_keys_are_summed_over_channels_and_values_over_tokens(self):
        assert [plane.reduced for plane in GQA.planes] == [Axis.CHANNEL, Axis.TOKEN]

    @pytest.mark.parametrize("num_tokens", [0, 1, 31, 32, 1000])
    def test_every_prefix_can_be_resumed(self, num_tokens):
        assert GQA.resumable_tokens(num_tokens) == num_tokens


def test_nothing_of_an_encoder_s_output_is_good_for_a_part_of_its_input():
    layout = CrossLayout(4, 64, 64)
    assert layout.planes == AttentionLayout(4, 64, 64).planes
    assert {layout.resumable_tokens(num_tokens) for num_tokens in (0, 1, 32, 1000)} == {0}


@pytest.mark.parametrize(("num_devices", "num_heads"), [(1, 8), (2, 4), (3, 3), (8, 1), (16, 1)])
def test_heads_are_divided_and_never_cut(num_devices, num_heads):
    assert AttentionLayout(8, 64, 32).part(num_devices) == AttentionLayout(num_heads, 64, 32)
    assert CrossLayout(8, 64, 64).part(num_devices) == CrossLayout(num_heads, 64, 64)


def test_what_every_head_reads_is_kept_on_every_device():
    latent = LatentLayout(512, 64)
    assert latent.part(8) == latent
    state = StateLayout((StateTensor(StateKind.RECURRENT, 0, (32, 128, 128), full_precision=True),))
    assert state.part(8).nbytes(2) * 8 == state.nbytes(2)
    spec = replace(group_layers([FULL, SLIDING], [None, None]), states=(state,))
    assert spec.part(2).elements_per_token * 2 == spec.elements_per_token
    assert spec.part(2).sites == spec.sites


class TestGroup:
    def test_windows_keep_their_last_tokens_and_sinks(self):
        full, sliding = LayerGroup(Reach.FULL, None, (GQA,)), LayerGroup(Reach.SLIDING, 64, (GQA,), sink_tokens=4)
        assert [full.num_kept(count) for count in (0, 10, 1000)] == [0, 10, 1000]
        assert [sliding.num_kept(count) for count in (0, 10, 1000)] == [0, 10, 68]

    def test_the_layer_that_resumes_earliest_decides(self):
        group = LayerGroup(Reach.FULL, None, (GQA, EveryFourth()))
        assert group.resumable_tokens(7) == 4

    def test_elements_add_up_over_layers(self):
        assert LayerGroup(Reach.FULL, None, (GQA, WIDE)).elements_per_token == 2 * 2 * 16 + 48 + 32


class TestGroupLayers:
    def test_equal_layers_are_one_group_in_call_order(self):
        spec = group_layers([FULL] * 3, [None] * 3)
        assert spec.groups == (LayerGroup(Reach.FULL, None, (GQA,) * 3),)
        assert spec.sites == (SiteSlot(0, 0), SiteSlot(0, 1), SiteSlot(0, 2))

    def test_layers_of_other_reach_or_span_are_other_groups(self):
        spec = group_layers([FULL, SLIDING, (Reach.SLIDING, 128, GQA), (Reach.CHUNKED, 64, GQA)], [None] * 4)
        assert [(group.reach, group.span) for group in spec.groups] == [
            (Reach.FULL, None),
            (Reach.SLIDING, 64),
            (Reach.SLIDING, 128),
            (Reach.CHUNKED, 64),
        ]

    def test_interleaved_layers_find_their_place_in_their_group(self):
        spec = group_layers([SLIDING, FULL, SLIDING, FULL], [None] * 4)
        assert spec.sites == (SiteSlot(0, 0), SiteSlot(1, 0), SiteSlot(0, 1), SiteSlot(1, 1))

    def test_layers_of_one_group_may_differ_in_shape(self):
        spec = group_layers([FULL, (Reach.FULL, None, WIDE)], [None, None])
        assert spec.groups[0].layouts == (GQA, WIDE)
        assert spec.elements_per_token == GQA.elements_per_token + WIDE.elements_per_token

    def test_a_call_that_reads_an_earlier_one_stores_nothing(self):
        spec = group_layers([FULL, SLIDING, FULL, FULL], [None, None, 0, 2])
        reads_the_first = SiteSlot(0, 0, writes=False)
        assert spec.sites == (SiteSlot(0, 0), SiteSlot(1, 0), reads_the_first, reads_the_first)
        assert [len(group.layouts) for group in spec.groups] == [1, 1]
