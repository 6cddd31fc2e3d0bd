"""Laws of layouts: splitting undoes joining, and two layouts are equal or differ by a tensor that can be named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidAdapter
from shared.layout import Layout, TensorSpec

names = st.text(st.sampled_from("abAB._1"), min_size=1, max_size=4)
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
layouts = st.dictionaries(names, shapes, max_size=5).map(
    lambda shapes_of: Layout(tuple(TensorSpec(name, shapes_of[name]) for name in sorted(shapes_of)))
)


def filled(layout: Layout, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {s.name: rng.standard_normal(s.shape).astype(np.float32).reshape(s.shape) for s in layout.tensors}


@given(layouts, st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_splitting_undoes_joining(layout: Layout, seed: int) -> None:
    tensors = filled(layout, seed)
    payload = layout.join(tensors)
    assert len(payload) == layout.size == 4 * layout.parameters
    back = layout.split(payload)
    assert list(back) == sorted(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)
    assert layout.join(back) == payload


@given(layouts)
@settings(max_examples=100, deadline=None)
def test_a_layout_that_travelled_is_the_same(layout: Layout) -> None:
    assert Layout.from_jsonable(layout.to_jsonable()) == layout


@given(layouts, layouts)
@settings(max_examples=200, deadline=None)
def test_two_layouts_are_equal_in_every_sense_or_in_none(one: Layout, other: Layout) -> None:
    if one == other:
        one.check_equal(other)
        assert one.digest == other.digest
        return
    assert one.digest != other.digest
    first = min({s.name for s in {*one.tensors} ^ {*other.tensors}})
    with pytest.raises(InvalidAdapter, match=f"tensor '{first}'".replace(".", r"\.")):
        one.check_equal(other)


@given(layouts, st.integers(0, 2**32), st.data())
@settings(max_examples=100, deadline=None)
def test_a_payload_of_any_other_size_is_refused(layout: Layout, seed: int, data: st.DataObject) -> None:
    payload = layout.join(filled(layout, seed))
    size = data.draw(st.integers(0, 2 * len(payload) + 9).filter(lambda size: size != len(payload)))
    with pytest.raises(InvalidAdapter, match=f"payload has {size} bytes"):
        layout.split((payload + bytes(len(payload) + 9))[:size])
