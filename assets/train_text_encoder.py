"""Train the small text encoder on captions first, as SD 1.5's (CLIP) was before its UNet."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor, nn
from transformers import CLIPTextModel

from assets.drawing import BACKGROUNDS, COLOURS, RADII, RELATIONS, SHAPES, Scene

_BATCH_SIZE = 32
_LEARNING_RATE = 3e-3

logger = logging.getLogger(__name__)


def train_text_encoder(
    text_encoder: CLIPTextModel,
    tokens: Tensor,
    scenes: Sequence[Scene],
    steps: int,
    generator: torch.Generator,
) -> None:
    """Predict a scene's attributes from its caption's states: cross-entropy of each attribute.

    The prediction uses the mean of the states, as an untrained UNet's attention does. So the UNet
    gets information from the caption from its first step on.

    Args:
        tokens: (scenes, 77) token ids of the captions.
    """
    labels = torch.tensor([_attributes(scene) for scene in scenes])
    choices = [int(column.max()) + 1 for column in labels.T]
    readout = nn.Linear(text_encoder.config.hidden_size, sum(choices))
    parameters = [*text_encoder.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=1e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    text_encoder.train()
    for step in range(steps):
        chosen = torch.randint(len(tokens), (_BATCH_SIZE,), generator=generator)
        read = readout(text_encoder(tokens[chosen])[0].mean(dim=1)).split(choices, dim=-1)
        loss = torch.stack(
            [
                nn.functional.cross_entropy(scores, labels[chosen, attribute])
                for attribute, scores in enumerate(read)
            ]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            logger.info("text step %d/%d: loss %.4f", step, steps, loss.detach())
    text_encoder.eval()


def _attributes(scene: Scene) -> list[int]:
    """A scene's attributes as numbers; 0 for those of a missing second shape."""
    kinds, colours, sizes = list(SHAPES), list(COLOURS), list(RADII)
    numbers = []
    for shape in (*scene.shapes, None)[:2]:
        if shape is None:
            numbers += [0, 0, 0]
        else:
            numbers += [
                1 + kinds.index(shape.kind),
                1 + colours.index(shape.colour),
                1 + sizes.index(shape.size),
            ]
    ground = scene.background
    return [
        *numbers,
        RELATIONS.index(scene.relation),
        BACKGROUNDS.index(ground.kind),
        colours.index(ground.top),
        colours.index(ground.bottom),
    ]
