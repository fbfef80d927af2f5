"""The small base model's own CLIP vocabulary: every byte, and each word of the captions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers

CONTEXT_LENGTH = 77
"""Tokens in a padded caption, as in CLIP."""

START, END = "<|startoftext|>", "<|endoftext|>"


def write_vocabulary(captions: Iterable[str], folder: Path) -> int:
    """Write a folder that `CLIPTokenizer.from_pretrained` loads; return the vocabulary's size.

    Byte-pair merges (Sennrich et al. 2016, arXiv:1508.07909) are learned from the captions
    until each of their words is one token. Every byte is also a token, alone and at a word's
    end, so any text can be encoded. The two special tokens come last, as in CLIP.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges(captions)
    tokens = dict.fromkeys(
        [
            *alphabet,
            *(f"{letter}</w>" for letter in alphabet),
            *("".join(pair) for pair in merges),
            START,
            END,
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIG, indent=2) + "\n", "utf-8")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({name: _CONFIG[name] for name in _SPECIAL}, indent=2) + "\n", "utf-8"
    )
    return len(vocabulary)


_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")

_CONFIG: dict[str, object] = {
    "tokenizer_class": "CLIPTokenizer",
    "bos_token": START,
    "eos_token": END,
    "pad_token": END,
    "unk_token": END,
    "model_max_length": CONTEXT_LENGTH,
    "add_prefix_space": False,
    "do_lower_case": True,
}


def _learn_merges(captions: Iterable[str]) -> list[tuple[str, str]]:
    """Merge the most frequent pair of the distinct words until each word is one token.

    The tokenizers library does the same, but breaks ties at random: another vocabulary each time.
    """
    words = sorted({word for caption in captions for word in caption.lower().split()})
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while counts := Counter(pair for parts in spelled for pair in pairwise(parts)):
        first, second = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((first, second))
        spelled = [_merge(parts, first, second) for parts in spelled]
    return merges


def _merge(parts: list[str], first: str, second: str) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if part == second and merged and merged[-1] == first:
            merged[-1] = first + second
        else:
            merged.append(part)
    return merged
