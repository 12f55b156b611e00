"""What every registered layout must do: have planes that formats can lay out, and resume no more than was matched."""

from dataclasses import replace

import pytest

from pagoda.formats.page import PageGeometry
from pagoda.formats.plain import FP32
from pagoda.layouts.base import Layout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.registry import REGISTRY, lookup

EXAMPLES = {
    f"{name}, {example}": layout
    for name in REGISTRY["layout"]
    for example, layout in lookup("layout", name).examples().items()
}
every_example = pytest.mark.parametrize("layout", EXAMPLES.values(), ids=EXAMPLES)


@pytest.mark.parametrize("name", REGISTRY["layout"])
def test_it_is_a_layout_with_examples(name):
    kind = lookup("layout", name)
    assert issubclass(kind, Layout)
    assert all(type(each) is kind for each in kind.examples().values())
    assert kind.examples()


@every_example
def test_equal_layouts_are_one_key(layout):
    assert hash(layout) == hash(replace(layout))
    assert layout == replace(layout)
    assert layout.planes == layout.planes
    assert layout.elements_per_token == sum(plane.num_heads * plane.width for plane in layout.planes) > 0


@every_example
def test_pages_have_room_for_every_plane(layout):
    geometry = PageGeometry(LayerGroup(Reach.FULL, None, (layout, layout)), FP32, 16)
    slots = [slot for planes in geometry.slots for slot in planes]
    assert [slot.plane for slot in slots] == [*layout.planes, *layout.planes]
    ends = [slot.offset + slot.nbytes for slot in slots]
    assert all(end <= slot.offset for end, slot in zip(ends, slots[1:], strict=False))
    assert ends[-1] <= geometry.page_nbytes
    assert sum(slot.nbytes for slot in slots) == 2 * 4 * 16 * layout.elements_per_token


@every_example
def test_no_more_is_resumed_than_was_matched(layout):
    resumable = [layout.resumable_tokens(num_tokens) for num_tokens in range(200)]
    assert all(0 <= kept <= num_tokens for num_tokens, kept in enumerate(resumable))
    assert resumable == sorted(resumable)
