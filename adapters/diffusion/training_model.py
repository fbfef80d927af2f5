"""The frozen UNet with the LoRA layers of the runs that train on it now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from adapters.diffusion.backend import Backend
from adapters.diffusion.base.model import BaseModel, on_device
from adapters.diffusion.cuda_graphs import CudaRecorder, GraphCache, Recorder
from adapters.diffusion.data_parallel import Rank
from adapters.diffusion.lora_layers import PackedLora, lora_installed
from domain.parameters import TrainingParameters


class TrainingModel:
    """What a training step works with. Belongs to the device's thread.

    Args:
        parameters: of the first run; those of the others agree in what the LoRA layers depend on.
        slots: runs that can be open at a time.
        recorder: what records passes; None to run them eagerly.
    """

    def __init__(
        self,
        base: BaseModel,
        parameters: TrainingParameters,
        device: torch.device,
        backend: Backend,
        slots: int,
        recorder: Recorder | None,
    ) -> None:
        self.device, self.dtype = device, backend.dtype
        self.memory_format = torch.contiguous_format
        if backend.channels_last:
            self.memory_format = torch.channels_last
        self.unet = base.unet
        self.text_encoder = base.text_encoder if parameters.train_text_encoder else None
        """Where it is trained."""
        self.lora = PackedLora(
            base.unet,
            self.text_encoder,
            parameters,
            slots=slots,
            device=device,
            dtype=backend.dtype,
            merged=backend.merged_lora,
            side_by_side=backend.fused,
        )
        self.graphs = GraphCache(recorder, "steps") if recorder else None
        self.evaluation_graphs = GraphCache(recorder, "measurements") if recorder else None
        self.rank: Rank | None = None
        """Where several processes train one run, which of them this is."""
        self.slots = slots
        self.runs_per_pass = slots
        """Fewer than there are slots once memory has run out."""
        self.free_slots = list(range(slots))
        self.recomputing = False

    @property
    def runs(self) -> int:
        """Runs that are open."""
        return self.slots - len(self.free_slots)

    def recompute(self, on: bool) -> None:
        """Keep feature maps for the backward pass, or recompute them there."""
        self.recomputing = on
        if on:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()

    def free_graphs(self) -> bool:
        """Drop what can be recorded anew. Returns whether there was anything."""
        caches = (self.graphs, self.evaluation_graphs)
        dropped = [cache.clear() for cache in caches if cache is not None]
        return any(dropped)


@contextmanager
def training_model(
    base: BaseModel,
    parameters: TrainingParameters,
    device: torch.device,
    backend: Backend,
    slots: int = 1,
    make_recorder: Callable[[torch.device], Recorder] = CudaRecorder,
) -> Iterator[TrainingModel]:
    """While open, the base carries LoRA layers. On leaving it is what it was, bit for bit.

    Args:
        make_recorder: for the passes, where the backend records them. Dropout is seeded anew for
            each step on the host, and a text encoder makes its masks there: such passes are not
            recorded.
    """
    eager = parameters.lora_dropout or parameters.train_text_encoder
    recorder = make_recorder(device) if backend.cuda_graphs and not eager else None
    with ExitStack() as stack:
        if parameters.train_text_encoder:
            stack.enter_context(on_device(base.text_encoder, device))
        model = TrainingModel(base, parameters, device, backend, slots, recorder)
        stack.enter_context(lora_installed(base.unet, model.text_encoder, model.lora))
        stack.callback(model.free_graphs)
        stack.callback(model.recompute, False)
        yield model
