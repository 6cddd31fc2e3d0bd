"""Layouts: payloads in a fixed order, and a difference named by its first tensor."""

import hashlib
import struct

import numpy as np
import pytest

from shared.errors import InvalidAdapter
from shared.layout import MAX_BYTES, Layout, TensorSpec

EXPECTED = Layout((TensorSpec("a", (2, 1)), TensorSpec("b", (3,)), TensorSpec("c", (1, 2))))
PAYLOAD = struct.pack("<7f", 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("received", "message"),
    [
        pytest.param(EXPECTED.tensors[:2], "missing tensor 'c'", id="missing"),
        pytest.param(
            (*EXPECTED.tensors, TensorSpec("d", (1,))), "extra tensor 'd': this round takes 3 tensors", id="extra"
        ),
        pytest.param(
            (EXPECTED.tensors[0], TensorSpec("bb", (3,)), EXPECTED.tensors[2]), "missing tensor 'b'", id="renamed"
        ),
        pytest.param(
            (TensorSpec("a", (1, 2)), *EXPECTED.tensors[1:]),
            r"tensor 'a' is a F32\[1, 2\], expected a F32\[2, 1\]",
            id="reshaped",
        ),
        pytest.param((), "missing tensor 'a'", id="empty"),
    ],
)
def test_a_difference_is_named_by_its_first_tensor(received: tuple[TensorSpec, ...], message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        EXPECTED.check_equal(Layout(received))


def test_equal_layouts_pass() -> None:
    EXPECTED.check_equal(Layout(EXPECTED.tensors))


def test_the_payload_is_the_raw_little_endian_floats_in_sorted_order() -> None:
    tensors = {
        "c": np.array([[6, 7]], np.float32),
        "a": np.array([[1], [2]], np.float32),
        "b": np.array([3, 4, 5], np.float32),
    }
    assert EXPECTED.join(tensors) == PAYLOAD
    assert (EXPECTED.size, EXPECTED.parameters) == (28, 7)
    for name, array in EXPECTED.split(PAYLOAD).items():
        np.testing.assert_array_equal(array, tensors[name])


def test_the_digest_is_that_of_the_json_written_by_hand() -> None:
    by_hand = b'[["a",[2,1],"F32"],["b",[3],"F32"],["c",[1,2],"F32"]]'
    assert EXPECTED.digest == hashlib.sha256(by_hand).hexdigest()
    assert Layout.from_jsonable(EXPECTED.to_jsonable()) == EXPECTED


def test_received_tensors_are_views_that_cannot_be_written() -> None:
    array = EXPECTED.split(PAYLOAD)["a"]
    assert array.base is not None
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 9


@pytest.mark.parametrize("size", [0, 27, 29])
def test_a_payload_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidAdapter, match=f"payload has {size} bytes, the layout has 28"):
        EXPECTED.split(bytes(size))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_by_its_tensor(value: float) -> None:
    with pytest.raises(InvalidAdapter, match="tensor 'b' has 1 non-finite values"):
        EXPECTED.split(struct.pack("<7f", 1, 2, 3, value, 5, 6, 7))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_an_array_of_another_type_is_refused_by_name(dtype: type) -> None:
    with pytest.raises(InvalidAdapter, match=f"tensor 'a' is {np.dtype(dtype)}, expected float32"):
        Layout.of({"a": np.zeros((2, 1), dtype)})


def test_limits_are_checked_before_anything_is_counted() -> None:
    with pytest.raises(InvalidAdapter, match=f"bytes of tensors are more than the limit of {MAX_BYTES}"):
        Layout((TensorSpec("a", (MAX_BYTES // 4,)), TensorSpec("b", (1,))))
    with pytest.raises(InvalidAdapter, match="names must be sorted and unique"):
        Layout((TensorSpec("a", (1,)), TensorSpec("a", (1,))))
    with pytest.raises(InvalidAdapter, match="tensor name of 0 characters"):
        Layout((TensorSpec("", (1,)),))


def test_a_tensor_cannot_take_the_name_of_the_files_metadata() -> None:
    """The file written from such a layout would have lost its metadata, or its tensor."""
    with pytest.raises(InvalidAdapter, match="tensor name '__metadata__' is taken"):
        Layout.from_jsonable([["__metadata__", [1], "F32"]])
