"""Draw images with the model's current weights, always from the same prompts and seeds."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from adapters.common.device_memory import on_device, split_on_oom
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.text import encode_captions
from domain.parameters import TrainingParameters
from domain.results import Preview

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STEPS = 20
"""Denoising steps by default; enough for DPM-Solver++ (arXiv 2211.01095)."""
GUIDANCE = 7.5
"""Scale of classifier-free guidance, SD 1.5's usual one."""
_MOST_FROM_CAPTIONS = 4
_SUBJECTS = ("a portrait of a woman", "a street in a town")


@dataclass(frozen=True)
class PreviewRequest:
    """The previews to draw, with their prompts already encoded."""

    prompts: tuple[str, ...]
    states: torch.Tensor
    """(prompts, tokens, width)"""
    empty: torch.Tensor
    """(1, tokens, width): the empty prompt for classifier-free guidance."""
    seed: int
    """Seed of the first image; each further image adds 1."""
    side: int
    """Width and height in pixels."""
    max_tokens: int
    """Length to which prompts are cut, as in training."""
    steps: int
    """Denoising steps."""

    def each(self) -> tuple[PreviewRequest, ...]:
        """One request per image."""
        return tuple(
            replace(self, prompts=(prompt,), states=states[None], seed=self.seed + index)
            for index, (prompt, states) in enumerate(zip(self.prompts, self.states, strict=True))
        )


def preview_prompts(parameters: TrainingParameters, captions: Sequence[str]) -> tuple[str, ...]:
    """The requested prompts, or else the first distinct captions.

    If all images have the same caption, such as tags, it is combined with further subjects, to
    show whether the style carries over to subjects outside the training images.
    """
    distinct = tuple(dict.fromkeys(captions))[:_MOST_FROM_CAPTIONS]
    if len(distinct) == 1:
        distinct += tuple(", ".join(filter(None, (s, *distinct))) for s in _SUBJECTS)
    return parameters.sample_prompts or distinct


def request_previews(
    base: BaseModel,
    parameters: TrainingParameters,
    captions: Sequence[str],
    device: torch.device,
    steps: int = STEPS,
) -> PreviewRequest:
    """Request squares at the run's resolution, at most at the base model's native one."""
    prompts = preview_prompts(parameters, captions)
    max_tokens = parameters.max_token_length
    states = encode_captions(base, ["", *prompts], device, max_tokens)
    side = min(parameters.resolution, base.native_resolution)
    return PreviewRequest(
        prompts, states[1:], states[:1], parameters.seed, side, max_tokens, steps
    )


def reencoded(base: BaseModel, request: PreviewRequest, device: torch.device) -> PreviewRequest:
    """The same request, encoded by the text encoder's current weights."""
    states = encode_captions(base, ["", *request.prompts], device, request.max_tokens)
    return replace(request, states=states[1:], empty=states[:1])


def preview_pipeline(base: BaseModel) -> StableDiffusionPipeline:
    """The base model with the scheduler for previews."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=None,
        tokenizer=None,
        unet=base.unet,
        scheduler=DPMSolverMultistepScheduler.from_config(base.noise_schedule.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def draw_previews(
    base: BaseModel,
    request: PreviewRequest,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> tuple[Preview, ...]:
    """Draw each prompt once. Does not use the global random generator.

    Args:
        check: called after each denoising step; an exception from it ends the drawing.
    """
    pipeline = preview_pipeline(base)
    parts = (request,) if device.type == "cuda" else request.each()
    previews = []
    with on_device(base.vae, device):  # the pipeline takes its device from it
        latents = torch.cat([latents_of(pipeline, part, check) for part in parts])
        # Decoded one by one: pixels take more memory than latents.
        for index, (prompt, one) in enumerate(zip(request.prompts, latents, strict=True)):
            # The VAE stays in float32, whatever type the UNet computes in.
            scaled = one[None].float() / base.vae.config.scaling_factor
            pixels = base.vae.decode(scaled).sample
            png = io.BytesIO()
            pipeline.image_processor.postprocess(pixels, output_type="pil")[0].save(png, "PNG")
            previews.append(Preview(prompt, request.seed + index, png.getvalue()))
    return tuple(previews)


def latents_of(
    pipeline: StableDiffusionPipeline,
    request: PreviewRequest,
    check: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Latents of all prompts, (prompts, c, h, w). On out-of-memory they are denoised one by one.

    One pass for all is faster: launching a pass takes longer than computing a few images.
    """

    def at_step_end(_pipeline: object, _step: int, _time: object, kept: Any) -> Any:
        check()
        return kept

    def denoise(some: PreviewRequest) -> torch.Tensor:
        count = len(some.prompts)
        latents: torch.Tensor = pipeline(
            prompt_embeds=some.states,
            negative_prompt_embeds=some.empty.expand(count, -1, -1),
            width=some.side,
            height=some.side,
            num_inference_steps=some.steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(some.seed + k) for k in range(count)],
            output_type="latent",
            callback_on_step_end=at_step_end,
        ).images
        return latents

    return torch.cat(split_on_oom(denoise, request, PreviewRequest.each))
