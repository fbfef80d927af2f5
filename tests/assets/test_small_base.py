import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import assets

BASE = Path(assets.__file__).parent / "small_base"


def _files() -> dict[str, Path]:
    return {p.relative_to(BASE).as_posix(): p for p in BASE.rglob("*") if p.is_file()}


def _config(name: str) -> Any:
    return json.loads((BASE / name).read_text("utf-8"))


def test_the_checksums_list_every_file_and_match() -> None:
    lines = (BASE / "SHA256SUMS").read_text("utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    actual = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in _files().items()
        if name != "SHA256SUMS"
    }
    assert listed == actual


def test_the_weights_are_safetensors_and_nothing_is_pickled() -> None:
    kinds = {path.suffix for path in _files().values()}
    assert kinds == {".safetensors", ".json", ".txt", ".md", ""}


def test_the_base_is_small() -> None:
    assert sum(path.stat().st_size for path in _files().values()) < 6_000_000


def test_the_unet_has_the_blocks_of_stable_diffusion_1_5() -> None:
    unet = _config("unet/config.json")
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["mid_block_type"] == "UNetMidBlock2DCrossAttn"
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert (unet["in_channels"], unet["out_channels"]) == (4, 4)


def test_the_native_side_is_128_px() -> None:
    vae = _config("vae/config.json")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    assert _config("unet/config.json")["sample_size"] * factor == 128


def test_the_noise_schedule_is_that_of_stable_diffusion_1_5() -> None:
    scheduler = _config("scheduler/scheduler_config.json")
    expected = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "clip_sample": False,
    }
    assert scheduler.items() >= expected.items()


@pytest.fixture(scope="module")
def pipeline() -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(BASE, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.integration
def test_any_text_becomes_77_known_tokens(pipeline: Any) -> None:
    tokenizer = pipeline.tokenizer
    text = "A Sloth (12 years) with Café, 犬!"
    tokens = tokenizer(text, padding="max_length").input_ids
    assert len(tokens) == 77 == tokenizer.model_max_length
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in tokens[: tokens.index(tokenizer.eos_token_id)]
    assert max(tokens) < pipeline.text_encoder.config.vocab_size
    decoded = tokenizer.decode(tokens, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.lower().replace(" ", "")


@pytest.mark.integration
def test_a_captions_words_are_whole_tokens(pipeline: Any) -> None:
    caption = "a small red circle left of an orange star on a background fading to blue"
    assert pipeline.tokenizer.tokenize(caption) == [f"{word}</w>" for word in caption.split()]


@pytest.mark.integration
def test_the_text_encoders_file_is_what_was_loaded(pipeline: Any) -> None:
    import torch
    from safetensors.torch import load_file

    stored = load_file(BASE / "text_encoder" / "model.safetensors")
    name = "embeddings.token_embedding.weight"
    loaded = {
        key.removeprefix("text_model."): v for key, v in pipeline.text_encoder.state_dict().items()
    }
    assert torch.equal(loaded[name], stored[f"text_model.{name}"].float())


@pytest.mark.integration
def test_the_autoencoder_keeps_a_scenes_colours(pipeline: Any) -> None:
    import numpy as np
    import torch

    from assets.drawing import draw_scene
    from assets.train_autoencoder import to_batch

    rng = np.random.default_rng(10_000)
    batch = to_batch(np.stack([np.asarray(draw_scene(rng, 128)[0]) for _ in range(8)]))
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.encode(batch).latent_dist.mean).sample
    assert float((decoded - batch).abs().mean()) < 0.15


def _draw(pipeline: Any, prompts: list[str]) -> Any:
    """Images (prompt, height, width, 3) in 0..255, each from a seed of its own."""
    import torch
    from diffusers import DDIMScheduler

    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return (
        255
        * pipeline(
            prompts,
            num_inference_steps=20,
            guidance_scale=4.0,
            output_type="np",
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
        ).images
    )


def _name_of(colours: Any) -> list[str]:
    """The nearest colour word of each mean colour (count, 3)."""
    import numpy as np

    from assets.drawing import COLOURS

    distances = np.linalg.norm(colours[:, None] - np.array(list(COLOURS.values())), axis=-1)
    return [list(COLOURS)[index] for index in distances.argmin(axis=1)]


@pytest.mark.integration
def test_a_caption_decides_the_colours_of_shape_and_background(
    pipeline: Any,
) -> None:
    from assets.drawing import COLOURS

    names = list(COLOURS)
    pairs = [(name, names[(index + 4) % len(names)]) for index, name in enumerate(names)]
    images = _draw(
        pipeline, [f"a large {shape} circle on a {ground} background" for shape, ground in pairs]
    )
    shapes = _name_of(images[:, 52:76, 52:76].mean(axis=(1, 2)))
    grounds = _name_of(images[:, :12, :12].mean(axis=(1, 2)))
    assert sum(got == wanted for got, (wanted, _) in zip(shapes, pairs, strict=True)) >= 7, shapes
    assert sum(got == wanted for got, (_, wanted) in zip(grounds, pairs, strict=True)) >= 7, (
        grounds
    )


@pytest.mark.integration
def test_a_caption_decides_the_shape(pipeline: Any) -> None:
    import numpy as np

    from assets.drawing import SHAPES, Background, Scene, Shape, paint_plain

    def paint(kind: str) -> Any:
        shape = Shape(kind, "white", "large", 0.0, 0.0, radius=0.375, angle=0.0)
        scene = Scene((shape,), "", Background("plain", "black", "black"))
        return np.asarray(paint_plain(scene, np.random.default_rng(0), 128))

    kinds = list(SHAPES)
    drawn = _draw(pipeline, [f"a large white {kind} on a black background" for kind in kinds])
    drawn_masks = drawn.mean(axis=-1) > 128
    masks = np.stack([paint(kind) for kind in kinds]).mean(axis=-1) > 128
    both = (drawn_masks[:, None] & masks).sum(axis=(2, 3))
    either = (drawn_masks[:, None] | masks).sum(axis=(2, 3))
    guesses = [kinds[index] for index in (both / either).argmax(axis=1)]
    assert sum(guess == kind for guess, kind in zip(guesses, kinds, strict=True)) >= 5, guesses
