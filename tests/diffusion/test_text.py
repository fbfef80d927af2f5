"""Captions in the text encoder: truncated at 75 tokens, or encoded in chunks."""

from __future__ import annotations

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.text import encode_captions, tokens_of

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
SHORT = "a red circle"
LONG = ", ".join(["a red circle", "a blue star"] * 20)
"""A caption of more than 75 and fewer than 225 tokens."""


def test_tokens_are_those_of_the_tokenizer_by_default(base: BaseModel) -> None:
    own = base.tokenizer(
        [SHORT, LONG], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(tokens_of(base, [SHORT, LONG])[:, 0], own)
    with torch.no_grad():
        wanted = base.text_encoder(own).last_hidden_state
    torch.testing.assert_close(encode_captions(base, [SHORT, LONG], CPU), wanted)


@pytest.mark.parametrize("chunks", [2, 3])
def test_chunks_are_encoded_separately_and_concatenated(base: BaseModel, chunks: int) -> None:
    """kohya's rule: the first begin token, the 75 states of each chunk, the last end token."""
    tokenizer = base.tokenizer
    words = tokenizer(LONG, add_special_tokens=False).input_ids
    assert 75 < len(words) < 225
    padded = (words + [tokenizer.pad_token_id] * 225)[: 75 * chunks]
    with torch.no_grad():
        states = [
            base.text_encoder(
                torch.tensor(
                    [[tokenizer.bos_token_id, *padded[i : i + 75], tokenizer.eos_token_id]]
                )
            ).last_hidden_state
            for i in range(0, 75 * chunks, 75)
        ]
    wanted = [states[0][:, :1], *(chunk[:, 1:-1] for chunk in states), states[-1][:, -1:]]
    found = encode_captions(base, [SHORT, LONG], CPU, 75 * chunks)
    assert found.shape[1] == 75 * chunks + 2
    torch.testing.assert_close(found[1:], torch.cat(wanted, dim=1), rtol=1e-4, atol=1e-4)
