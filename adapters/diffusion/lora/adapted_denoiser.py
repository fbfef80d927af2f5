"""A denoiser made ready for a run: on its device, and with adapters that are computed as the
strategy has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from adapters.diffusion.failures import out_of_memory_is_a_failure
from adapters.diffusion.fused.blocks import fused
from adapters.diffusion.lora.adapters import Adapters, attached
from adapters.diffusion.lora.flat_path import flat_path_of, suits
from adapters.diffusion.lora.joint import Joining, one_by_one
from adapters.diffusion.strategy import Strategy
from domain.parameters import TrainingParameters


def place_denoiser(unet: UNet2DConditionModel, device: torch.device, strategy: Strategy) -> None:
    """Put the denoiser where and how the strategy wants it."""
    layout = torch.channels_last if strategy.channels_last else torch.contiguous_format
    # diffusers' own ``to`` warns of modules to be kept in float32 even where there are none.
    torch.nn.Module.to(unet, device=device, dtype=strategy.compute)
    torch.nn.Module.to(unet, memory_format=layout)  # type: ignore[call-overload] # has no signature


@contextmanager
def adapted_denoiser(
    unet: UNet2DConditionModel,
    parameters: TrainingParameters,
    strategy: Strategy,
    text_encoder: CLIPTextModel | None = None,
) -> Iterator[tuple[Adapters, Callable[[], None] | None]]:
    """While open, the denoiser carries a run's adapters; on leaving it is what it was.

    Yields:
        The adapters, and what to call before each forward pass.

    Raises:
        TrainingFailed: GPU_OOM.
    """
    with ExitStack() as stack:
        with out_of_memory_is_a_failure():
            adapters = stack.enter_context(
                attached(
                    unet,
                    rank=parameters.rank,
                    alpha=parameters.network_alpha,
                    seed=parameters.seed,
                    targets=parameters.lora_targets,
                    dropout=parameters.lora_dropout,
                    rslora=parameters.use_rslora,
                    dora=parameters.use_dora,
                    text_encoder=text_encoder,
                )
            )
            refresh, joined = None, one_by_one
            if strategy.flat_path and suits(adapters, parameters.lora_dropout):
                path = stack.enter_context(flat_path_of(adapters, strategy.compute))
                refresh, joined = path.refresh, path.joined
            stack.enter_context(as_the_strategy_fuses(unet, strategy, joined))
        yield adapters, refresh


def as_the_strategy_fuses(
    unet: UNet2DConditionModel, strategy: Strategy, joined: Joining
) -> AbstractContextManager[None]:
    """While open, the blocks are computed by fused operations, or as diffusers has them.

    Args:
        joined: how layers that read the same x are computed.
    """
    return fused(unet, joined) if strategy.fused else nullcontext()
