"""Put LoRA adapters (arXiv 2106.09685) on a model's layers, and take them off again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers import CLIPTextModel

from adapters.diffusion.data.rng import generator_for
from domain.parameters import LoraTargets, TrainingParameters

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of every attention, self and cross."""
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_CONVOLUTIONS = ("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj")
_SAMPLERS = ("downsamplers.0.conv", "upsamplers.0.conv")
_LAYERS = {
    LoraTargets.ATTENTION: TARGETS,
    LoraTargets.FEED_FORWARD: TARGETS + _FEED_FORWARD,
    LoraTargets.CONVOLUTIONS: TARGETS + _FEED_FORWARD + _CONVOLUTIONS + _SAMPLERS,
}
_OF_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_LAYERS = {
    LoraTargets.ATTENTION: _OF_TEXT,
    LoraTargets.FEED_FORWARD: (*_OF_TEXT, "fc1", "fc2"),
    LoraTargets.CONVOLUTIONS: (*_OF_TEXT, "fc1", "fc2"),
}
"""The text encoder's counterparts: its attention, and with the feed-forward layers its own."""
_NAME = "style"


@dataclass(frozen=True)
class Adapter:
    """One layer's pair of matrices: the layer adds ``scale * up @ down``."""

    layer: LoraLayer
    down: torch.nn.Parameter
    """(rank, inputs); of a convolution (rank, inputs, h, w)"""
    up: torch.nn.Parameter
    """(outputs, rank); of a convolution (outputs, rank, 1, 1)"""
    magnitude: torch.nn.Parameter | None = None
    """DoRA's length of each output's row, (outputs,); of a convolution (1, outputs, 1, 1)"""

    @property
    def weights(self) -> tuple[torch.nn.Parameter, ...]:
        """All that is trained of it."""
        pair = (self.down, self.up)
        return pair if self.magnitude is None else (*pair, self.magnitude)


@dataclass(frozen=True)
class Adapters:
    """All adapters of a denoiser, by the name of the layer that each is on, and where it is
    trained those of the text encoder."""

    by_layer: dict[str, Adapter]
    flat: torch.nn.Parameter
    """Every matrix end to end, float32. The matrices are views of it and their gradients are
    views of its gradient, so that clipping and the optimizer work on one tensor, not hundreds."""
    rank: int
    alpha: float
    """What other programs divide by the rank to get the scale: with rsLoRA not the alpha that
    was asked for, but that times the rank's square root."""
    of_text: dict[str, Adapter] = field(default_factory=dict)
    """The text encoder's; their matrices come last in ``flat``."""

    @property
    def text_weights(self) -> int:
        """How many of the last numbers in ``flat`` are the text encoder's."""
        return sum(w.numel() for adapter in self.of_text.values() for w in adapter.weights)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """While open, the denoiser is the base model's."""
        self._switch(on=False)
        try:
            yield
        finally:
            self._switch(on=True)

    def _switch(self, *, on: bool) -> None:
        for adapter in (*self.by_layer.values(), *self.of_text.values()):
            adapter.layer.enable_adapters(on)


@contextmanager
def attached(
    unet: UNet2DConditionModel,
    *,
    rank: int,
    alpha: float,
    seed: int,
    targets: LoraTargets = LoraTargets.ATTENTION,
    dropout: float = 0.0,
    rslora: bool = False,
    dora: bool = False,
    text_encoder: CLIPTextModel | None = None,
) -> Iterator[Adapters]:
    """While open, ``unet`` carries fresh adapters in float32, the only weights to be trained;
    and so does ``text_encoder`` where it is given, which must stay on its device meanwhile.

    ``down`` starts Kaiming-uniform and ``up`` at zero, as in the paper's code, and DoRA's
    magnitudes at the base's, so that the start is the base model; all depend on the seed alone.
    On leaving, both are what they were, bit for bit.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=rslora,
        use_dora=dora,
    )
    try:
        by_layer = _injected(unet, replace(config, target_modules=list(_LAYERS[targets])))
        of_text = {}
        if text_encoder is not None:
            own = replace(config, target_modules=list(_TEXT_LAYERS[targets]))
            of_text = _injected(text_encoder, own)
        adapters = [*by_layer.values(), *of_text.values()]
        flat = _gather(adapters, unet.device)
        _set_magnitudes(adapters)
        initialise(adapters, seed)
        scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        exact = unet.device.type == "cpu" and unet.dtype == torch.float32
        for adapter in adapters:
            if dropout:
                _drop_in_training(adapter.layer, dropout)
            elif exact and isinstance(adapter.layer.base_layer, torch.nn.Linear):
                _fold(adapter, scale)
        yield Adapters(by_layer, flat, rank, scale * rank, of_text)
    finally:
        unet.unload_lora()
        if text_encoder is not None:
            recurse_remove_peft_layers(text_encoder)
            text_encoder.__dict__.pop("peft_config", None)


def _injected(model: torch.nn.Module, config: LoraConfig) -> dict[str, Adapter]:
    """Put the adapters there and return them by the names of their layers."""
    # PEFT draws initial weights from the global generator; the ones kept are drawn later.
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, model, adapter_name=_NAME)
    return {
        name: _adapter(layer)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def dropout_draws(
    parameters: TrainingParameters, step: int, device: torch.device
) -> AbstractContextManager[None]:
    """While open, what ``lora_dropout`` leaves out depends on the seed and the step alone."""
    if not parameters.lora_dropout:
        return nullcontext()
    return _seeded(generator_for(parameters.seed, "dropout", step).initial_seed(), device)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Dropout(torch.nn.Dropout):
    """Leaves out only while gradients are recorded: previews and measurements see all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, self.p, training=torch.is_grad_enabled())


def _drop_in_training(layer: LoraLayer, dropout: float) -> None:
    layer.lora_dropout[_NAME] = _Dropout(dropout)
    # DoRA's forward asks the layer itself; no part of an attention's layers looks at it otherwise.
    layer.training = True


def _adapter(layer: LoraLayer) -> Adapter:
    magnitude = None
    if _NAME in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[_NAME].weight
    return Adapter(layer, layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight, magnitude)


def _fold(adapter: Adapter, scale: float) -> None:
    """While gradients are recorded, compute ``(W + scale * up @ down) x`` in one product.

    The same function as PEFT's ``W x + scale * up (down x)`` in fewer and larger operations: on a
    CPU and a narrow denoiser a sixth of the step's time. In bfloat16 the sum would round the
    adapters away, so it is for float32 only. With DoRA each row of the sum is brought to its
    magnitude, its own length taken as a constant (arXiv 2402.09353, section 4.3).
    """
    layer, separate = adapter.layer, adapter.layer.forward
    weight, bias = layer.base_layer.weight, layer.base_layer.bias

    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.disable_adapters or not torch.is_grad_enabled():
            plain: torch.Tensor = separate(x)
            return plain
        folded = torch.addmm(weight, adapter.up, adapter.down, alpha=scale)
        if adapter.magnitude is not None:
            lengths = torch.linalg.vector_norm(folded.detach(), dim=1)
            folded = folded * (adapter.magnitude / lengths)[:, None]
        product: torch.Tensor = torch.nn.functional.linear(x, folded, bias)
        return product

    layer.forward = forward


def _gather(adapters: list[Adapter], device: torch.device) -> torch.nn.Parameter:
    """Give all matrices one piece of memory, and their gradients another."""
    matrices = [matrix for adapter in adapters for matrix in adapter.weights]
    sizes = [matrix.numel() for matrix in matrices]
    flat = torch.nn.Parameter(torch.zeros(sum(sizes), device=device))
    flat.grad = torch.zeros_like(flat)
    pieces = zip(torch.split(flat.data, sizes), torch.split(flat.grad, sizes), strict=True)
    for matrix, (values, gradient) in zip(matrices, pieces, strict=True):
        values.copy_(matrix.data.flatten())
        matrix.data = values.view(matrix.shape)
        matrix.grad = gradient.view(matrix.shape)
    return flat


def _set_magnitudes(adapters: Sequence[Adapter]) -> None:
    """Set DoRA's magnitudes to the lengths that PEFT divides them by, so that the start is
    the base: in float32, where it has taken them in the layer's own precision.
    """
    for adapter in adapters:
        if adapter.magnitude is not None:
            dora = adapter.layer.lora_magnitude_vector[_NAME]
            weight = adapter.layer.base_layer.weight.float()
            adapter.magnitude.data.copy_(dora.get_weight_norm(weight, 0.0, 1.0))


def layers_of(unet: UNet2DConditionModel, targets: str) -> dict[str, torch.nn.Module]:
    """The layers that carry adapters, in the order in which ``attached`` has them."""
    endings = tuple(f".{ending}" for ending in _LAYERS[LoraTargets(targets)])
    return {name: layer for name, layer in unet.named_modules() if name.endswith(endings)}


def initialise(adapters: Sequence[Adapter], seed: int) -> None:
    """Draw each ``down``; ``up`` stays as it is."""
    generator = generator_for(seed, "adapters")
    for adapter in adapters:
        fresh = torch.empty(adapter.down.shape)
        torch.nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=generator)
        adapter.down.data.copy_(fresh)
