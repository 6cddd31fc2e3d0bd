"""JSON from outside: what is measured before it is parsed, and that parsing takes no more than was measured."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import json_text

MOST = 1 << 18
flat = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=12)
    | st.sampled_from(['"', "\\", '\\"', "[{,}]", '"],['])
)
values = st.recursive(
    flat,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def count(value: Any) -> tuple[int, int]:
    """Values in all and how deep they lie, by looking at them."""
    if not isinstance(value, list | dict):
        return 1, 0
    inner = [count(one) for one in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(one for one, _ in inner), 1 + max((depth for _, depth in inner), default=0)


@given(values)
def test_what_the_library_writes_is_read_as_it_was_unless_it_is_too_deep(value: Any) -> None:
    number, depth = count(value)
    data = json.dumps(value).encode()
    if depth > json_text.MAX_DEPTH:
        with pytest.raises(ValueError, match=f"is nested {depth} deep"):
            json_text.read(data, MOST)
    else:
        assert json_text.read(data, MOST) == value
        assert json_text.read(memoryview(data), MOST, 2 * number) == value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not JSON"),
        (b"[1,]", "is not JSON"),
        (b'{"a":1', "is not JSON"),
        (b'"' + b'\\"' * 1000, "is not JSON"),
        (b"[" * 9, "is nested 9 deep, the limit is 8"),
        (b'["[[[[[[[[[", [[[[[[[[[1]]]]]]]]]]', "is nested 10 deep, the limit is 8"),
        (b'{"a":1,"b":2,"a":3}', "names 'a' twice"),
        (b'{"x":{"' + b"a" * 500 + b'":1,"' + b"a" * 500 + b'":1}}', "names 'a{80}' twice"),
        ('"ä"'.encode(), "has characters other than ASCII"),
        ("[1]".encode("utf-16"), "has characters other than ASCII"),
        ("[1]".encode("utf-16-le"), "is not JSON"),
        (b"[" + b"0," * 10_000 + b"0]", "has more than 10000 values"),
        (b" " * (MOST + 1), f"of {MOST + 1} bytes is over the limit of {MOST}"),
        (b"9" * 5000, "."),
    ],
)
def test_anything_else_is_refused_with_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        json_text.read(data, MOST)


@pytest.mark.parametrize("one", [b"[]", b"{}", b'"a"', b'{"a":[]}', b'"\\u0100"', b"1.5", b"12345", b'["",{}]'])
@pytest.mark.parametrize("share", [1.0, 0.9], ids=["of the text", "of the values"])
def test_no_text_takes_many_times_its_size_in_memory(one: bytes, share: float) -> None:
    each = one.count(b"[") + one.count(b"{") + one.count(b",") + 1
    number = MOST // (len(one) + 1) if share == 1.0 else int(share * json_text.MAX_VALUES / each)
    data = b"[" + b",".join([one] * number) + b"]"
    tracemalloc.start(1)
    try:
        json_text.read(data[:MOST], MOST)
    except ValueError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 5 * MOST
