"""The safetensors reader follows the format's rules and never fails in another way than its own errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from amdet_core.errors import AmdetError, EncoderError, StorageError
from amdet_core.formats import open_target
from amdet_core.formats.safetensors_file import SafetensorsFile, parse_header
from amdet_core.tokenizer import ClipTokenizer

TOKENIZER = ClipTokenizer([])
GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def build(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def test_it_reads_what_the_reference_wrote(tmp_path):
    tensors = {
        "w": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "one": torch.tensor(2.0),
        "none": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    source = SafetensorsFile(tmp_path / "x")
    assert source.shapes == {name: tuple(t.shape) for name, t in tensors.items()}
    assert source.dtypes["half"] == "float16"
    for name, tensor in source.read(tensors):
        assert torch.equal(tensor, tensors[name])
        assert tensor.dtype == tensors[name].dtype
    assert source.bytes_read == (tmp_path / "x").stat().st_size


def test_it_counts_only_what_it_read(tmp_path):
    save_file({"w": torch.zeros(1000), "v": torch.ones(3)}, tmp_path / "x")
    source = SafetensorsFile(tmp_path / "x")
    header = source.bytes_read
    dict(source.read(["v"]))
    assert source.bytes_read == header + 12
    assert header == (tmp_path / "x").stat().st_size - 4012


BAD = {
    "truncated data": (build(GOOD, bytes(7)), "tensors of 8 bytes and 7 bytes behind the header"),
    "bytes behind": (build(GOOD, bytes(9)), "tensors of 8 bytes and 9 bytes behind the header"),
    "absurd length": (build(GOOD, length=2**40), "a header of 1,099,511,627,776 bytes"),
    "length over the limit": (build(GOOD, length=100_000_001), "a header of 100,000,001 bytes"),
    "length past the end": (build(GOOD, length=2000), "a header of 2,000 bytes"),
    "no json": (build(b"{nonsense"), "no valid JSON"),
    "no utf-8": (build(b'{"\xff": 1}'), "no valid JSON"),
    "deep json": (build(b'{"a":' * 100_000), "no valid JSON"),
    "a key twice": (build(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}'), "a key occurs twice"),
    "entry of text": (build({"a": "x"}), "an entry 'a' that is not dtype, shape and data_offsets"),
    "entry without shape": (build({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "an entry 'a' that is not"),
    "unknown dtype": (build({"a": GOOD["a"] | {"dtype": "F31"}}), "'a' of the unknown dtype 'F31'"),
    "dtype of a list": (build({"a": GOOD["a"] | {"dtype": []}}), "'a' of the unknown dtype"),
    "negative shape": (build({"a": GOOD["a"] | {"shape": [-2]}}), "'a' with the shape [-2]"),
    "true as a number": (build({"a": GOOD["a"] | {"shape": [True, 2]}}), "'a' with the shape [True, 2]"),
    "fraction": (build({"a": GOOD["a"] | {"shape": [2.0]}}), "'a' with the shape [2.0]"),
    "huge dimension": (build({"a": GOOD["a"] | {"shape": [0, 2**63], "data_offsets": [0, 0]}}), "with the shape"),
    "shape of text": (build({"a": GOOD["a"] | {"shape": "2"}}), "'a' with the shape 2"),
    "wrong size": (build({"a": GOOD["a"] | {"shape": [3]}}), "'a': F32 [3] in 8 bytes"),
    "reversed offsets": (build({"a": GOOD["a"] | {"data_offsets": [8, 0]}}), "'a': F32 [2] in -8 bytes"),
    "one offset": (build({"a": GOOD["a"] | {"data_offsets": [0]}}), "'a' with the offsets [0]"),
    "out of range": (build({"a": GOOD["a"] | {"data_offsets": [8, 16]}}), "'a' at byte 8 where byte 0 is next"),
    "overlap": (build(GOOD | {"b": GOOD["a"] | {"data_offsets": [4, 12]}}, bytes(12)), "'b' at byte 4 where byte 8"),
    "gap": (build(GOOD | {"b": GOOD["a"] | {"data_offsets": [9, 17]}}, bytes(17)), "'b' at byte 9 where byte 8"),
    "metadata of numbers": (build(GOOD | {"__metadata__": {"a": 1}}), "metadata that is not text"),
    "metadata of text": (build(GOOD | {"__metadata__": "a"}), "metadata that is not text"),
}


@pytest.mark.parametrize(("raw", "found"), BAD.values(), ids=BAD.keys())
def test_a_broken_file_is_a_storage_error_that_names_the_rule(tmp_path, raw, found):
    with pytest.raises(StorageError) as caught:
        open_target(write(tmp_path / "x", raw), tokenizer=TOKENIZER)
    assert found in str(caught.value)
    assert "download it again" in str(caught.value)


def test_a_header_that_is_no_object_is_refused(tmp_path):
    with pytest.raises(StorageError, match="no JSON object"):
        parse_header(b"[]", 0, tmp_path / "x")


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_a_header_is_refused(tmp_path, size):
    with pytest.raises(StorageError, match=f"a file of {size} bytes"):
        SafetensorsFile(write(tmp_path / "x", bytes(size)))


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    save_file({"w": torch.zeros(1000)}, tmp_path / "x")
    source = SafetensorsFile(tmp_path / "x")
    write(tmp_path / "x", (tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(StorageError, match="The file is incomplete"):
        dict(source.read(["w"]))


VALID = save({"text_model.embeddings.token_embedding.weight": torch.zeros(4, 2), "b": torch.ones(3).half()})
fuzz = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def only_own_errors(path: Path, raw: bytes) -> None:
    write(path, raw)
    with pytest.raises((StorageError, EncoderError)):
        open_target(path, tokenizer=TOKENIZER)


@fuzz
@given(st.binary(max_size=300))
def test_random_bytes_raise_only_the_librarys_errors(tmp_path, raw):
    only_own_errors(tmp_path / "x", raw)


@fuzz
@given(st.binary(max_size=200), st.binary(max_size=40))
def test_random_headers_raise_only_the_librarys_errors(tmp_path, header, data):
    only_own_errors(tmp_path / "x", build(b"{" + header, data))


@fuzz
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_raise_only_the_librarys_errors(tmp_path, changes):
    raw = bytearray(VALID)
    for at, value in changes:
        raw[at] = value
    only_own_errors(tmp_path / "x", bytes(raw))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8", "BOOL", "F4"]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
    }
)


@fuzz
@given(st.dictionaries(st.text(max_size=4), entries | json_values, max_size=3), st.integers(0, 64))
def test_it_accepts_no_header_that_the_reference_refuses(tmp_path, header, size):
    try:
        parse_header(json.dumps(header).encode(), size, tmp_path / "x")
    except AmdetError as error:
        assert isinstance(error, StorageError)
        return
    write(tmp_path / "x", build(header, bytes(size)))
    try:
        with safe_open(tmp_path / "x", "pt") as file:
            assert set(file.keys()) == header.keys() - {"__metadata__"}
    except SafetensorError as error:  # the reference as well
        pytest.fail(f"accepted {header}: {error}")
