"""Layers that read the same x, computed as one: the numbers of each by itself, in fewer calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from diffusers.models.attention_processor import Attention

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.fused.blocks import fused
from adapters.diffusion.lora.adapters import attached
from adapters.diffusion.lora.flat_path import FlatPath, Site, flat_path_of, shapes_of
from adapters.diffusion.lora.joint import Joining, one_by_one
from adapters.diffusion.lora.low_rank import adapted
from tests.diffusion.fake_cuda_graph import Recording

INPUTS, RANK, OUTPUTS = 12, 2, (8, 6, 6)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for a CUDA device"),
        ],
    ),
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def linears() -> list[torch.nn.Linear]:
    """Frozen, the last one without a bias."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(INPUTS, outputs, dtype=torch.float64) for outputs in OUTPUTS[:2]]
    layers.append(torch.nn.Linear(INPUTS, OUTPUTS[2], bias=False, dtype=torch.float64))
    for layer in layers:
        layer.requires_grad_(False)
    return layers


def by_the_book(
    x: torch.Tensor,
    layers: Sequence[torch.nn.Linear],
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
    scale: float = 1.0,
) -> list[torch.Tensor]:
    return [
        layer(x) + scale * (x @ down.mT @ up.mT)
        for layer, down, up in zip(layers, downs, ups, strict=True)
    ]


def gradients(answers: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """For a loss in which every number counts differently."""
    loss = sum((y * normal(*y.shape, seed=5).to(y)).sum() for y in answers)
    assert isinstance(loss, torch.Tensor)
    return list(torch.autograd.grad(loss, of))


@pytest.mark.parametrize("styles", [(), (3,)])
@pytest.mark.parametrize("x_moves", [True, False])
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("device", DEVICES)
def test_values_and_gradients_are_autograds(
    styles: tuple[int, ...], x_moves: bool, dtype: torch.dtype, within: float, device: str
) -> None:
    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype).double()

    layers = linears()
    for parameter in (parameter for layer in layers for parameter in layer.parameters()):
        parameter.data = rounded(parameter.data)
    x = rounded(normal(*styles, 5, INPUTS)).requires_grad_(x_moves)
    downs = [rounded(normal(*styles, RANK, INPUTS, seed=s)).requires_grad_() for s in (1, 2, 3)]
    ups = [
        rounded(normal(*styles, outputs, RANK, seed=outputs)).requires_grad_()
        for outputs in OUTPUTS
    ]
    moving = [*([x] if x_moves else []), *downs, *ups]
    wanted = by_the_book(x, layers, downs, ups)
    wanted_gradients = gradients(wanted, moving)

    on = {"device": device, "dtype": dtype}
    joint = torch.cat([down.to(**on) for down in downs], dim=-2)
    found = adapted(
        x.to(**on), [layer.to(**on) for layer in layers], joint, [up.to(**on) for up in ups]
    )
    for one, other in zip(
        [*found, *gradients(found, moving)], [*wanted, *wanted_gradients], strict=True
    ):
        size = other.abs().max().item()
        torch.testing.assert_close(one.cpu().double(), other, rtol=0, atol=within * size)


def test_a_layer_that_the_loss_does_not_see_gets_no_gradient() -> None:
    layers, x = linears(), normal(5, INPUTS).requires_grad_()
    downs = normal(3 * RANK, INPUTS, seed=1).requires_grad_()
    ups = [normal(outputs, RANK, seed=2).requires_grad_() for outputs in OUTPUTS]
    first, _, last = adapted(x, layers, downs, ups)
    of_x, of_downs, _, of_up, _ = gradients([first, last], [x, downs, *ups])
    book = by_the_book(x, layers, downs.split(RANK), ups)
    torch.testing.assert_close(of_x, gradients([book[0], book[2]], [x])[0])
    assert not of_up.any()
    assert not of_downs[RANK : 2 * RANK].any()
    assert of_downs[:RANK].any()


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("rows", [None, [0], [2, 0]])
def test_what_lies_side_by_side_in_the_copy_stays_where_it_is_in_the_leaf(
    rows: list[int] | None, scale: float
) -> None:
    """Sites 1 and 3 read one x, 0 and 2 another one each."""
    layers = [*linears(), torch.nn.Linear(INPUTS, 4, dtype=torch.float64).requires_grad_(False)]
    sites = [Site(layer, layer) for layer in layers]
    shapes = shapes_of(sites, RANK)
    sizes = [many * few for many, few in shapes]
    leaf = torch.nn.Parameter(normal(3, sum(sizes)))
    path = FlatPath(
        leaf, sites, rank=RANK, scale=scale, dtype=torch.float64, taken=torch.is_grad_enabled
    )
    together = path.joined([layers[1], layers[3]])
    path.refresh(None if rows is None else torch.tensor(rows))
    taken = [0, 1, 2] if rows is None else rows
    x = normal(2 * len(taken), 5, INPUTS, seed=4)

    first, (second, fourth), third = path.apply((0,), x)[0], together(x), path.apply((2,), x)[0]
    found = [first, second, third, fourth]
    wanted = []
    for place, style in enumerate(taken):
        pieces = torch.split(leaf[style], sizes)
        matrices = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        own = x[2 * place : 2 * place + 2]
        wanted.append(by_the_book(own, layers, matrices[::2], matrices[1::2], scale))
    for one, parts in zip(found, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(one, torch.cat(parts))
    whole = [torch.cat(parts) for parts in zip(*wanted, strict=True)]
    torch.testing.assert_close(gradients(found, [leaf]), gradients(whole, [leaf]))


def test_layers_work_by_themselves_where_one_has_no_adapter_or_the_path_is_not_taken() -> None:
    layers = linears()
    sites = [Site(layer, layer) for layer in layers[:2]]
    leaf = torch.nn.Parameter(normal(sum(many * few for many, few in shapes_of(sites, RANK))))
    path = FlatPath(
        leaf, sites, rank=RANK, scale=1.0, dtype=torch.float64, taken=torch.is_grad_enabled
    )
    some, all_three = path.joined(layers[:2]), path.joined(layers)
    path.refresh()
    x = normal(1, 5, INPUTS)
    plain = [layer(x) for layer in layers]
    assert not torch.allclose(some(x)[0], plain[0])
    assert all(map(torch.equal, all_three(x), plain))
    with torch.no_grad():
        assert all(map(torch.equal, some(x), plain[:2]))


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def calls(attention: Attention, x: torch.Tensor, states: torch.Tensor | None) -> Counter[str]:
    """Of an attention's pass there and back, by torch operation."""
    with Recording() as recording:
        attention(x, encoder_hidden_states=states).sum().backward()
    return Counter(call.function.overloadpacket.__name__.rstrip("_") for call in recording.calls)


@pytest.mark.integration
@pytest.mark.parametrize(("name", "products", "sums"), [("attn1", 6, 2), ("attn2", 2, 0)])
def test_an_attention_makes_fewer_products(
    base: BaseModel, name: str, products: int, sums: int
) -> None:
    """Self-attention saves 2 of 3 each: to the low rank, back from it, and for the downs'
    gradient, and the sums of three gradients. Of the text no gradient is asked."""
    with (
        attached(base.unet, rank=4, alpha=4.0, seed=1) as adapters,
        flat_path_of(adapters, torch.float32) as path,
    ):
        found = []
        joinings: list[Joining] = [one_by_one, path.joined]
        for joined in joinings:
            with fused(base.unet, joined):
                path.refresh()
                block = base.unet.mid_block.attentions[0].transformer_blocks[0]
                attention = getattr(block, name)
                x = normal(1, 9, attention.to_q.in_features).float().requires_grad_()
                width = base.unet.config.cross_attention_dim
                states = normal(1, 77, width).float() if name == "attn2" else None
                found.append(calls(attention, x, states))
    difference = found[0] - found[1]
    assert sum(difference[product] for product in PRODUCTS) == products
    assert difference["add"] == sums
    more = found[1] - found[0]
    assert not more.keys() & {"clone", "copy", "_to_copy", "cat", "add", "sum"}
