"""Imports on the way to the first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from assets.drawing import draw_style_set
from tests.services.child import ROOT

LEFT_OUT = ("torch._dynamo", "sympy", "torch.distributed.tensor", "peft")

PROGRAM = f"""
import os, sys, threading
from domain.events import ProgressMade
from entrypoints import train

def at_first_step(*_arguments, **_named):
    print([name for name in {LEFT_OUT!r} if name in sys.modules], flush=True)
    os._exit(0)

ProgressMade.__init__ = at_first_step
train.main([sys.argv[1], "--out", sys.argv[2], "--device", "cpu"])
"""

COMPILED = """
from entrypoints.models import import_libraries
import_libraries()
import torch, transformers
assert torch.distributed.is_available()
assert transformers.models.__file__, "a stand-in"
compiled = torch.compile(lambda x: x + 1, backend="eager")
from transformers.masking_utils import create_causal_mask
mask = create_causal_mask(
    transformers.CLIPTextConfig(attn_implementation="sdpa"),
    inputs_embeds=torch.zeros(1, 2, 8),
    attention_mask=None,
    past_key_values=None,
    or_mask_function=lambda batch, head, query, key: key >= 0,
)
assert mask.all()
print(float(compiled(torch.zeros(()))))
"""


def output(program: str, *arguments: str) -> str:
    """What a new Python process prints last."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def test_the_first_step_needs_no_compiler(tmp_path: Path) -> None:
    draw_style_set(tmp_path / "images", count=1, seed=5)
    assert output(PROGRAM, str(tmp_path / "images"), str(tmp_path / "out")) == "[]"


def test_afterwards_what_was_left_out_can_be_used() -> None:
    assert output(COMPILED) == "1.0"
