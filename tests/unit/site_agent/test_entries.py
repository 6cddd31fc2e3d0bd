"""The file of one entry: mapped or read, it is what was written or it is damaged."""

import pytest
import torch

from site_agent.cache import entries
from site_agent.damage import Damaged
from site_agent.models.backbone import Prefix

KEY = b'{"image":"abc"}'
WAYS = {"mapped": None, "read": lambda count: torch.empty(count, dtype=torch.uint8)}
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def allocate(request):
    return request.param


def entry(dtype, skips=6):
    generator = torch.Generator().manual_seed(1)
    return Prefix(*(torch.randn(n, 5, generator=generator).to(dtype) for n in (7, skips)))


def same(found, expected):
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("skips", [6, 0])
def test_an_entry_is_read_as_it_was_written(tmp_path, allocate, dtype, skips):
    path, written = tmp_path / "entry", entry(dtype, skips)
    path.write_bytes(entries.write(KEY, written))
    assert same(entries.read(path, KEY, allocate), written)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_flipped_bit_goes_unseen(tmp_path, allocate, dtype):
    """Every bit of header and numbers; a name in the header may have two spellings."""
    path, written = tmp_path / "entry", entry(dtype)
    whole = entries.write(KEY, written)
    harmless = 0
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
        try:
            assert same(entries.read(path, KEY, allocate), written), bit
        except Damaged:
            continue
        harmless += 1
    assert harmless < 8 * len(whole) / 20


@pytest.mark.parametrize("left", [0, 7, 8, 100, -1])
def test_a_file_that_is_not_whole_is_damaged(tmp_path, allocate, left):
    path = tmp_path / "entry"
    path.write_bytes(entries.write(KEY, entry(torch.float16))[:left])
    with pytest.raises(Damaged):
        entries.read(path, KEY, allocate)


def test_an_entry_of_another_key_is_damaged_and_none_is_none(tmp_path, allocate):
    path = tmp_path / "entry"
    assert entries.read(path, KEY, allocate) is None
    path.write_bytes(entries.write(b"{}", entry(torch.float16)))
    with pytest.raises(Damaged, match="another entry"):
        entries.read(path, KEY, allocate)


def test_a_read_entry_lies_in_the_memory_it_was_given(tmp_path):
    path, given = tmp_path / "entry", []
    path.write_bytes(entries.write(KEY, entry(torch.float16)))

    def allocate(count):
        given.append(torch.empty(count, dtype=torch.uint8))
        return given[-1]

    found = entries.read(path, KEY, allocate)
    assert [len(memory) for memory in given] == [sum(value.nbytes for value in found)]
    assert {value.untyped_storage().data_ptr() for value in found} == {given[0].untyped_storage().data_ptr()}


def test_memory_that_runs_out_is_no_damage(tmp_path):
    path = tmp_path / "entry"
    path.write_bytes(entries.write(KEY, entry(torch.float16)))

    def allocate(count):
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        entries.read(path, KEY, allocate)


def test_an_entry_that_is_removed_as_it_is_opened_is_none(tmp_path, monkeypatch):
    def gone(*args):
        raise RuntimeError("unable to open file <entry> in read-only mode: No such file or directory (2)")

    monkeypatch.setattr(entries, "safe_open", gone)
    assert entries.read(tmp_path / "entry", KEY) is None
