from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from adapters.common.tensor_file import TensorFileDamaged, decode, encode

TENSORS = {"a": torch.arange(5.0), "b": torch.ones(2, 3, dtype=torch.float16)}
METADATA = {f"key {index}": f"value {index} ä" for index in range(20)}


def test_a_written_file_is_read_by_us_and_by_safetensors(tmp_path: Path) -> None:
    data = encode(TENSORS, METADATA)
    tensors, metadata = decode(data)
    assert metadata == METADATA
    path = tmp_path / "file.safetensors"
    path.write_bytes(data)
    for found in (tensors, safetensors.torch.load_file(path)):
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    with safe_open(path, "pt") as file:
        assert file.metadata() == METADATA


def test_equal_content_gives_equal_bytes_in_any_order() -> None:
    forwards = {encode(TENSORS, METADATA) for _ in range(5)}
    backwards = encode(dict(reversed(TENSORS.items())), dict(reversed(METADATA.items())))
    assert forwards == {backwards}


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_damaged(length: int) -> None:
    with pytest.raises(TensorFileDamaged):
        decode(encode(TENSORS, METADATA)[:length])


def test_another_kind_of_file_is_damaged() -> None:
    with pytest.raises(TensorFileDamaged):
        decode(b"PK\x03\x04" + b"pickle" * 100)


def test_metadata_that_is_not_utf8_does_not_prevent_the_file() -> None:
    data = encode({"a": torch.ones(1)}, {"name": "base\udcff"})
    assert decode(data)[1] == {"name": "base?"}
