"""Laws of the adapter file: reading undoes writing, content decides the bytes, and no bytes break the parser."""

import json
import random
import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load

from shared.adapter import FORMAT, HEAD_POLICIES, Adapter, AdapterManifest, AdapterMetadata
from shared.errors import InvalidAdapter
from shared.layout import RESERVED_NAME, Layout

words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20).filter(
    lambda text: text != RESERVED_NAME
)
arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=4),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
metadata = st.builds(
    AdapterMetadata,
    base_model_sha256=st.just("ab" * 32),
    rank=st.integers(1, 64),
    alpha=st.floats(1e-3, 1e3),
    target_modules=st.lists(words, max_size=3).map(tuple),
    blocks=st.lists(st.integers(0, 99), max_size=3).map(tuple),
    head_policy=st.sampled_from(HEAD_POLICIES),
    frames=st.sampled_from(["stacked", "siamese"]),
    task=st.text(max_size=20),
    class_names=st.lists(st.text(max_size=8), max_size=3).map(tuple),
)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    tensors = draw(st.dictionaries(words, arrays, max_size=4))
    manifest = AdapterManifest(Layout.of(tensors), draw(metadata))
    return Adapter(manifest, draw(st.integers(0, 10**9 - 1)), draw(st.sampled_from(["", "cd" * 32])), tensors)


@given(adapters())
@settings(max_examples=60, deadline=None)
def test_reading_undoes_writing(adapter: Adapter) -> None:
    read = Adapter.from_bytes(adapter.to_bytes())
    assert read.manifest == adapter.manifest
    assert (read.version, read.parent_digest, read.digest) == (adapter.version, adapter.parent_digest, adapter.digest)
    assert AdapterManifest.from_bytes(adapter.manifest.to_bytes()).digest == adapter.manifest.digest
    for name, array in adapter.tensors.items():
        assert read.tensors[name].tobytes() == array.tobytes()  # to the bit: minus zero and denormals too


@given(adapters())
@settings(max_examples=40, deadline=None)
def test_the_safetensors_library_reads_the_same_tensors(adapter: Adapter) -> None:
    loaded = load(adapter.to_bytes())
    assert loaded.keys() == adapter.tensors.keys()
    for name, array in adapter.tensors.items():
        np.testing.assert_array_equal(loaded[name], array)


@given(adapters(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_tensors_does_not_change_the_bytes(adapter: Adapter, shuffler: random.Random) -> None:
    names = list(adapter.tensors)
    shuffler.shuffle(names)
    shuffled = {name: adapter.tensors[name] for name in names}
    other = Adapter(
        AdapterManifest(Layout.of(shuffled), adapter.manifest.metadata),
        adapter.version,
        adapter.parent_digest,
        shuffled,
    )
    assert other.to_bytes() == adapter.to_bytes()


def read_or_refusal(data: bytes) -> Adapter | str:
    """The adapter, or the words of its refusal; any other exception is a failure."""
    try:
        return Adapter.from_bytes(data)
    except InvalidAdapter as error:
        return str(error)


@given(adapters(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_refused_briefly_or_is_another_adapter(adapter: Adapter, data: st.DataObject) -> None:
    damaged = bytearray(adapter.to_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    match read_or_refusal(bytes(damaged[:end])):
        case str(words):
            assert 0 < len(words) < 4000
        case read:  # a blank of the header that became another blank is no damage
            assert read.digest != adapter.digest or read.to_bytes() == adapter.to_bytes()


@given(st.binary(max_size=200), st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused(header: bytes, data: bytes) -> None:
    for file in (header, struct.pack("<Q", len(header)) + header + data):
        assert isinstance(read_or_refusal(file), str)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
entries_like = st.fixed_dictionaries({"dtype": json_values, "shape": json_values, "data_offsets": json_values})
metadata_names = words | st.sampled_from(["rank", "alpha", "version", "blocks"])


@given(
    st.dictionaries(words, json_values | entries_like, max_size=3),
    st.dictionaries(metadata_names, json_values, max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_any_header_is_refused_briefly(entries: dict[str, object], strings: dict[str, object]) -> None:
    text = json.dumps({"__metadata__": {**strings, "format": FORMAT}, **entries}).encode()
    words_of_refusal = read_or_refusal(struct.pack("<Q", len(text)) + text + bytes(16))
    assert isinstance(words_of_refusal, str)
    assert len(words_of_refusal) < 4000
