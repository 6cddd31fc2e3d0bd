"""The adapter file: canonical bytes against hand-written ones and the real safetensors library, and hostile files."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from shared import adapter as adapter_module
from shared.adapter import MAX_HEADER, Adapter, AdapterManifest, AdapterMetadata
from shared.errors import InputError, InvalidAdapter
from shared.layout import MAX_TENSORS, Layout

A = "base_model.model.encoder.blocks.1.attn.q.lora_A.weight"
B = "base_model.model.encoder.blocks.1.attn.q.lora_B.weight"
PARENT = "cd" * 32

METADATA = AdapterMetadata(
    base_model_sha256="ab" * 32,
    rank=1,
    alpha=2.0,
    target_modules=("q",),
    blocks=(1,),
    head_policy="local",
    frames="stacked",
    task="disease",
    class_names=("normal", "disease"),
)


def tiny() -> Adapter:
    tensors = {B: np.array([[0.5], [-1.0]], np.float32), A: np.array([[1.0, 2.0, 3.0]], np.float32)}
    return Adapter(AdapterManifest(Layout.of(tensors), METADATA), 3, PARENT, tensors)


# Written by hand from the format's description, not by the code under test: keys sorted, no blanks, values of the metadata are
# JSON texts of their own. 1 x 3 floats lie at bytes 0..12, 2 x 1 floats at 12..20.
HEADER_BY_HAND = (
    rb'{"__metadata__":{"alpha":"2.0","base_model_sha256":"\"' + b"ab" * 32 + rb'\"","blocks":"[1]",'
    rb'"class_names":"[\"normal\",\"disease\"]","format":"med-duallora-adapter/1","frames":"\"stacked\"",'
    rb'"head_policy":"\"local\"","parent_digest":"' + b"cd" * 32 + rb'","rank":"1",'
    rb'"target_modules":"[\"q\"]","task":"\"disease\"","version":"3"},'
    rb'"base_model.model.encoder.blocks.1.attn.q.lora_A.weight":{"data_offsets":[0,12],"dtype":"F32","shape":[1,3]},'
    rb'"base_model.model.encoder.blocks.1.attn.q.lora_B.weight":{"data_offsets":[12,20],"dtype":"F32","shape":[2,1]}}'
)
DATA_BY_HAND = struct.pack("<5f", 1.0, 2.0, 3.0, 0.5, -1.0)


def test_canonical_bytes_are_those_written_by_hand() -> None:
    padded = HEADER_BY_HAND + b" " * (-len(HEADER_BY_HAND) % 8)
    by_hand = struct.pack("<Q", len(padded)) + padded + DATA_BY_HAND
    assert tiny().to_bytes() == by_hand
    assert tiny().digest == hashlib.sha256(by_hand).hexdigest()
    assert tiny().digest == "599bff2e641ee0bdd451d4e47ad2e0f1a607487c6af132d8160887c686ab4a8a"
    assert len(padded) % 8 == 0


def test_order_of_tensors_and_memory_layout_do_not_change_the_bytes() -> None:
    one = tiny()
    turned = {name: np.asfortranarray(array) for name, array in sorted(one.tensors.items(), reverse=True)}
    assert replace(one, tensors=turned).to_bytes() == one.to_bytes()


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    tiny().write(path)
    loaded = load_file(path)
    assert sorted(loaded) == [A, B]
    for name, array in tiny().tensors.items():
        np.testing.assert_array_equal(loaded[name], array)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["format"] == "med-duallora-adapter/1"
        assert json.loads(file.metadata()["target_modules"]) == ["q"]


def test_a_file_saved_by_the_safetensors_library_reads_as_the_same_adapter() -> None:
    strings = {**METADATA.to_strings(), "format": adapter_module.FORMAT, "version": "3", "parent_digest": PARENT}
    foreign = save(dict(tiny().tensors), metadata=strings)
    read = Adapter.from_bytes(foreign)
    assert read.digest == tiny().digest
    assert read.to_bytes() == tiny().to_bytes()


def test_reading_returns_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "adapter.safetensors"
    tiny().write(path)
    read = Adapter.read(path)
    assert (read.manifest, read.version, read.parent_digest, read.digest) == (
        tiny().manifest,
        3,
        PARENT,
        tiny().digest,
    )
    np.testing.assert_array_equal(read.tensors[B], tiny().tensors[B])
    rebuilt = Adapter.from_payload(AdapterManifest.from_bytes(read.manifest.to_bytes()), 3, PARENT, read.payload)
    assert rebuilt.digest == read.digest


def test_a_successor_names_its_parent() -> None:
    child = tiny().successor(tiny().tensors, 4)
    assert (child.version, child.parent_digest) == (4, tiny().digest)
    assert child.digest != tiny().digest


def test_a_whole_number_as_alpha_is_the_same_adapter_as_the_float() -> None:
    whole = replace(METADATA, alpha=2)
    assert whole.to_strings() == METADATA.to_strings()
    assert AdapterMetadata.from_strings(whole.to_strings()) == whole


# --- hostile files -----------------------------------------------------------------------------------------------------

Entries = dict[str, Any]


def file_of(entries: Entries | bytes, data: bytes = DATA_BY_HAND) -> bytes:
    """A file with this header, whatever it claims."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def header() -> Entries:
    result: Entries = json.loads(HEADER_BY_HAND)
    return result


def changed(name: str, **values: Any) -> Entries:
    entries = header()
    entries[name] = {**entries[name], **values}
    return entries


def metadata(**values: Any) -> Entries:
    return changed("__metadata__", **values)


def without(name: str, key: str) -> Entries:
    entries = header()
    del entries[name][key]
    return entries


def in_order(*names: str) -> Entries:
    return {name: header()[name] for name in names}


def scalar_tensors(count: int) -> bytes:
    """Many one-float tensors, in order and without gaps."""
    entries = {"__metadata__": header()["__metadata__"]} | {
        f"t{i:05}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(count)
    }
    return file_of(entries, bytes(4 * count))


NAN, INFINITY = float("nan"), float("inf")
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"at least 8 bytes, got 0"),
    "truncated length": (lambda: tiny().to_bytes()[:7], r"at least 8 bytes, got 7"),
    "truncated header": (lambda: tiny().to_bytes()[:100], r"header claims \d+ bytes; the file has 100"),
    "truncated data": (lambda: tiny().to_bytes()[:-1], r"tensors end at byte 20, the data section has 19 bytes"),
    "data after the end": (lambda: tiny().to_bytes() + b"\0", r"tensors end at byte 20, the data section has 21 bytes"),
    "lying header length": (lambda: struct.pack("<Q", 2**63) + b"{}", r"header claims 9223372036854775808 bytes"),
    "header over the limit": (
        lambda: file_of(b"{" + b" " * MAX_HEADER + b"}"),
        r"header claims 196610 bytes; .* the limit is 196608",
    ),
    "not JSON": (lambda: file_of(b"{'a': 1}"), r"header is not JSON"),
    "not ASCII": (lambda: file_of(b'{"\xff\xfe": 1}'), r"header has characters other than ASCII"),
    "UTF-16": (lambda: file_of(HEADER_BY_HAND.decode().encode("utf-16")), r"header has characters other than ASCII"),
    "not an object": (lambda: file_of(b"[1]"), r"header is a list, expected an object"),
    "deep JSON": (
        lambda: file_of(b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"),
        r"header is nested 3001 deep, the limit is 8",
    ),
    "JSON that is too deep to be printed": (
        lambda: file_of(HEADER_BY_HAND.replace(b"[0,12]", b"[" * 600 + b"]" * 600)),
        r"header is nested 602 deep, the limit is 8",
    ),
    "deep metadata": (
        lambda: file_of(metadata(blocks="[" * 400 + "]" * 400)),
        r"'blocks' is nested 400 deep, the limit is 8",
    ),
    "lists by the thousand": (
        lambda: file_of(b'{"a":[' + b"[]," * 60_000 + b"[]]}"),
        r"header has more than 10000 values",
    ),
    "metadata by the thousand": (
        lambda: file_of(metadata(class_names="[" + "[]," * 60_000 + "[]]")),
        r"'class_names' has more than 512 values",
    ),
    "a text for a list": (
        lambda: file_of(metadata(target_modules='"' + "x" * 50_000 + '"')),
        r"'target_modules' is a str, expected a list",
    ),
    "duplicate tensor": (
        lambda: file_of(HEADER_BY_HAND.replace(b"lora_B", b"lora_A")),
        rf"header names '{A}' twice",
    ),
    "duplicate at the end of many": (
        lambda: file_of(b"{" + b",".join(b'"%06d":0' % i for i in (*range(8000), 7999)) + b"}"),
        r"header names '007999' twice",
    ),
    "no metadata": (lambda: file_of(in_order(A, B)), r"metadata 'format' must be 'med-duallora-adapter/1'"),
    "metadata is a list": (lambda: file_of({**header(), "__metadata__": []}), r"metadata 'format' must be"),
    "another format": (lambda: file_of(metadata(format="pt")), r"metadata 'format' must be"),
    "metadata missing": (lambda: file_of(without("__metadata__", "rank")), r"adapter metadata 'rank' is missing"),
    "metadata unknown": (lambda: file_of(metadata(colour="1")), r"adapter metadata 'colour' is unknown"),
    "metadata no text": (lambda: file_of(metadata(version=3)), r"adapter metadata 'version' must be text"),
    "metadata no JSON": (lambda: file_of(metadata(rank="one")), r"adapter metadata cannot be read"),
    "rank a fraction": (lambda: file_of(metadata(rank="1.5")), r"adapter metadata 'rank' is '1.5', expected '1'"),
    "rank infinite": (lambda: file_of(metadata(rank="1e999")), r"adapter metadata cannot be read"),
    "rank below zero": (lambda: file_of(metadata(rank="-1")), r"rank must be 0 to 1024 .* got rank=-1"),
    "alpha NaN": (lambda: file_of(metadata(alpha="NaN")), r"alpha positive, got rank=1, alpha=nan"),
    "unknown policy": (lambda: file_of(metadata(head_policy='"mine"')), r"head policy 'mine' is none of global, local"),
    "unknown frames": (lambda: file_of(metadata(frames='"all"')), r"frames 'all' is neither stacked nor siamese"),
    "version no number": (lambda: file_of(metadata(version="x")), r"'version' must be a number, got 'x'"),
    "version of 5000 digits": (
        lambda: file_of(metadata(version="9" * 5000)),
        r"'version' must be a number, got '9{80}'",
    ),
    "version in other digits": (lambda: file_of(metadata(version="٣")), r"'version' must be a number"),
    "tensor without a shape": (lambda: file_of(without(A, "shape")), rf"entry of tensor '{A}' needs dtype, shape"),
    "entry is a number": (lambda: file_of({**header(), A: 7}), rf"entry of tensor '{A}' needs dtype, shape"),
    "wrong dtype": (lambda: file_of(changed(A, dtype="F64")), rf"tensor '{A}' has type F64, allowed are F32"),
    "half precision": (lambda: file_of(changed(B, dtype="BF16")), rf"tensor '{B}' has type BF16, allowed are F32"),
    "half precision of the right size": (
        lambda: file_of({**header(), B: {"dtype": "BF16", "shape": [2, 1], "data_offsets": [12, 16]}})[:-4],
        rf"tensor '{B}' has type BF16, allowed are F32",
    ),
    "dtype of a hundred kilobytes": (lambda: file_of(changed(A, dtype="F" * 100_000)), r"has type F{40}, allowed"),
    "exabyte": (lambda: file_of(changed(A, shape=[2**60])), r"has a dimension of 1152921504606846976: sizes must be"),
    "exabyte in steps": (
        lambda: file_of(changed(A, shape=[2**31] * 8)),
        r"lies at \[0, 12\], expected \[0, \d+\]",
    ),
    "dimension of 4000 digits": (lambda: file_of(changed(A, shape=[10**4000])), r"a dimension of 10{19}: sizes"),
    "infinite dimension": (lambda: file_of(changed(A, shape=[INFINITY])), r"needs a name, a list of whole numbers"),
    "negative dimension": (lambda: file_of(changed(A, shape=[-1, -3])), r"has a dimension of -1: sizes must be"),
    "empty tensor": (lambda: file_of(changed(A, shape=[0, 3])), r"has a dimension of 0: sizes must be"),
    "fractional dimension": (lambda: file_of(changed(A, shape=[1.0, 3])), r"list of whole numbers as shape"),
    "shape as text": (lambda: file_of(changed(A, shape="13")), r"list of whole numbers as shape"),
    "many dimensions": (lambda: file_of(changed(A, shape=[1] * 5000)), r"has 5000 dimensions, the limit is 8"),
    "many tensors": (lambda: scalar_tensors(MAX_TENSORS + 1), r"1025 tensors are more than the limit of 1024"),
    "reshaped": (lambda: file_of(changed(A, shape=[3, 3])), r"lies at \[0, 12\], expected \[0, 36\]"),
    "overlap": (
        lambda: file_of(changed(B, data_offsets=[8, 16])),
        r"lies at \[8, 16\], expected \[12, 20\]: .*overlaps",
    ),
    "gap": (
        lambda: file_of(changed(B, data_offsets=[16, 24]), DATA_BY_HAND + bytes(4)),
        r"expected \[12, 20\]: .*gaps",
    ),
    "backward": (lambda: file_of(changed(A, data_offsets=[12, 0])), r"lies at \[12, 0\], expected \[0, 12\]"),
    "negative offset": (lambda: file_of(changed(A, data_offsets=[-12, 0])), r"lies at \[-12, 0\], expected \[0, 12\]"),
    "unsorted names": (
        lambda: file_of(
            {
                "__metadata__": header()["__metadata__"],
                B: {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
                A: {"dtype": "F32", "shape": [1, 3], "data_offsets": [8, 20]},
            }
        ),
        rf"tensor '{A}' follows '{B}': names must be sorted and unique",
    ),
    "name over the limit": (
        lambda: file_of(
            {
                "__metadata__": header()["__metadata__"],
                "x" * 513: {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
            }
        ),
        r"tensor name of 513 characters, allowed are 1 to 512",
    ),
    "name that moves the cursor": (
        lambda: file_of(
            {
                "__metadata__": header()["__metadata__"],
                "\x1b[2Jok": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
            }
        ),
        r"tensor name '\\x1b\[2Jok' has characters other than printable ASCII",
    ),
    "NaN": (
        lambda: file_of(header(), struct.pack("<5f", 1, NAN, 3, 4, NAN)),
        rf"tensor '{A}' has 1 non-finite values",
    ),
    "infinity": (
        lambda: file_of(header(), struct.pack("<5f", 1, 2, 3, INFINITY, -INFINITY)),
        rf"tensor '{B}' has 2 non-finite values",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name_and_briefly(name: str) -> None:
    build, message = HOSTILE[name]
    with pytest.raises(InvalidAdapter, match=message) as caught:
        Adapter.from_bytes(build())
    assert len(str(caught.value)) < 1000


def test_the_builder_of_hostile_files_builds_a_good_one_when_nothing_is_changed() -> None:
    assert Adapter.from_bytes(file_of(header())).digest == tiny().digest


def test_refusing_a_lying_size_takes_no_memory_for_it() -> None:
    lying = file_of(changed(A, shape=[2**31 - 1], data_offsets=[0, 4 * (2**31 - 1)]))
    with pytest.raises(InvalidAdapter, match="expected"):
        Adapter.from_bytes(lying)  # 8 GiB: reading it would fail on this data section, allocating it first would hurt


def test_a_manifest_from_the_wire_is_read_as_strictly() -> None:
    good = tiny().manifest.to_bytes()
    for wrong, message in (
        (good.replace(b'"layout"', b'"layouts"'), "an adapter manifest has layout and metadata"),
        (good.replace(b"[1,3]", b'"13"'), "needs a name, a list of whole numbers"),
        (good.replace(b'"F32"', b"32", 1), "needs a name, a list of whole numbers"),
        (good.replace(b"[1,3]", b"[1,1e999]"), "needs a name, a list of whole numbers"),
        (b'{"layout":7,"metadata":{}}', r"a layout is a list of \[name, shape, dtype\]"),
        (b'{"layout":[[1]],"metadata":{}}', r"a layout is a list of \[name, shape, dtype\]"),
        (b"[" * 9000, "header is nested 9000 deep, the limit is 8"),
        (good.replace(b"[1,3]", b"[" * 990 + b"]" * 990), "header is nested"),
    ):
        with pytest.raises(InvalidAdapter, match=message):
            AdapterManifest.from_bytes(wrong)


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read adapter file .*nothing.safetensors: No such file"):
        Adapter.read(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match=r"cannot read adapter file .*: Is a directory"):
        Adapter.read(tmp_path)


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # sparse: takes no disk
    with pytest.raises(InvalidAdapter, match=r"has 3221225472 bytes, the limit is 2147680264"):
        Adapter.read(path)


def test_tensors_that_do_not_fit_the_manifest_are_never_written() -> None:
    with pytest.raises(InvalidAdapter, match=f"missing tensor '{A}'"):
        replace(tiny(), tensors={B: tiny().tensors[B]}).to_bytes()
