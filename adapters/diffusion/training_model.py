"""The frozen UNet with the LoRA layers of the open runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from adapters.common.device_memory import on_device
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.cuda_graphs import GraphCache
from adapters.diffusion.data_parallel import Rank
from adapters.diffusion.execution import ExecutionOptions
from adapters.diffusion.lora_layers import PackedLora, lora_installed
from domain.parameters import TrainingParameters


class TrainingModel:
    """The model that training steps run on. Used by the device's thread only.

    Args:
        parameters: of the first run; the others have the same LoRA layers.
        slots: maximum number of open runs.
    """

    def __init__(
        self,
        base: BaseModel,
        parameters: TrainingParameters,
        device: torch.device,
        execution: ExecutionOptions,
        slots: int,
    ) -> None:
        self.parameters, self.device, self.dtype = parameters, device, execution.dtype
        self.memory_format = torch.contiguous_format
        if execution.channels_last:
            self.memory_format = torch.channels_last
        self.unet = base.unet
        self.text_encoder = base.text_encoder if parameters.train_text_encoder else None
        """None if the text encoder is not trained."""
        self.lora = PackedLora(
            base.unet,
            self.text_encoder,
            parameters,
            slots=slots,
            device=device,
            dtype=execution.dtype,
            merged=execution.merged_lora,
        )
        # The host seeds dropout for each step, and makes the text encoder's masks.
        eager = parameters.lora_dropout or parameters.train_text_encoder
        make = None if eager else execution.make_recorder
        recorder = make(device) if make else None
        self.graphs = GraphCache(recorder, "steps")
        self.evaluation_graphs = GraphCache(recorder, "measurements")
        self.distributed: Rank | None = None
        """This process's rank if several processes train one run."""
        self.slots = slots
        self.runs_per_pass = slots
        """Lower than the number of slots after out-of-memory."""
        self.free_slots = list(range(slots))
        self.recomputing = False

    @property
    def runs(self) -> int:
        """Number of open runs."""
        return self.slots - len(self.free_slots)

    def recompute(self, on: bool) -> None:
        """Recompute feature maps in the backward pass, or keep them."""
        self.recomputing = on
        if on:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()

    def free_graphs(self) -> bool:
        """Drop all recorded graphs. Returns whether there were any."""
        return any([self.graphs.clear(), self.evaluation_graphs.clear()])


@contextmanager
def training_model(
    base: BaseModel,
    parameters: TrainingParameters,
    device: torch.device,
    execution: ExecutionOptions,
    slots: int,
) -> Iterator[TrainingModel]:
    """In the with-block, the base carries LoRA layers. On leaving it is restored, bit for bit."""
    with ExitStack() as stack:
        if parameters.train_text_encoder:
            stack.enter_context(on_device(base.text_encoder, device))
        model = TrainingModel(base, parameters, device, execution, slots)
        stack.enter_context(lora_installed(base.unet, model.text_encoder, model.lora))
        stack.callback(model.free_graphs)
        stack.callback(model.recompute, False)
        yield model
