"""Draw pictures with the model as it stands, always from the same prompts and seeds."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from adapters.diffusion.base_model import BaseModel, placed
from adapters.diffusion.dataset import encode_captions
from application.ports import Preview
from domain.parameters import TrainingParameters

STEPS = 20
"""Denoising steps; DPM-Solver++ (arXiv 2211.01095) needs no more."""
GUIDANCE = 7.5
"""Classifier-free guidance, SD 1.5's usual."""
_MOST_FROM_CAPTIONS = 4


@dataclass(frozen=True)
class PreviewRequest:
    """What to draw, encoded before the text encoder makes room on the device."""

    prompts: tuple[str, ...]
    states: torch.Tensor
    """(prompts, tokens, width)"""
    empty: torch.Tensor
    """(1, tokens, width): the empty prompt, which guidance leads away from."""
    seed: int
    """Of the first picture; each further one has the next."""
    side: int
    """Pixels."""

    def each(self) -> Iterator[PreviewRequest]:
        """Its pictures as requests of their own."""
        for index, prompt in enumerate(self.prompts):
            states = self.states[index : index + 1]
            yield replace(self, prompts=(prompt,), states=states, seed=self.seed + index)


def preview_prompts(parameters: TrainingParameters, captions: Sequence[str]) -> tuple[str, ...]:
    """The prompts asked for, else the first captions that differ."""
    distinct = tuple(dict.fromkeys(captions))[:_MOST_FROM_CAPTIONS]
    return parameters.sample_prompts or distinct


def request_previews(
    base: BaseModel,
    parameters: TrainingParameters,
    captions: Sequence[str],
    device: torch.device,
) -> PreviewRequest:
    """Squares at the run's resolution, but not larger than the base model can compose."""
    prompts = preview_prompts(parameters, captions)
    states = encode_captions(base, ["", *prompts], device)
    side = min(parameters.resolution, base.native_resolution)
    return PreviewRequest(prompts, states[1:], states[:1], parameters.seed, side)


def encoded_anew(base: BaseModel, request: PreviewRequest, device: torch.device) -> PreviewRequest:
    """The same request through the text encoder as it stands."""
    states = encode_captions(base, ["", *request.prompts], device)
    return replace(request, states=states[1:], empty=states[:1])


@torch.no_grad()
def draw_previews(
    base: BaseModel, request: PreviewRequest, device: torch.device
) -> tuple[Preview, ...]:
    """Draw each prompt once, one at a time. Takes no number from a global generator."""
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
    with placed(base.vae, device):
        return tuple(
            Preview(prompt, request.seed + index, _draw(pipeline, request, index))
            for index, prompt in enumerate(request.prompts)
        )


def _draw(pipeline: StableDiffusionPipeline, request: PreviewRequest, index: int) -> bytes:
    latents = pipeline(
        prompt_embeds=request.states[index : index + 1],
        negative_prompt_embeds=request.empty,
        width=request.side,
        height=request.side,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(request.seed + index),
        output_type="latent",
    ).images
    # The autoencoder stays in float32, whatever the denoiser computes in.
    pixels = pipeline.vae.decode(latents.float() / pipeline.vae.config.scaling_factor).sample
    picture = pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
    png = io.BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()
