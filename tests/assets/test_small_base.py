import hashlib
import json
from pathlib import Path

import pytest

import assets

BASE = Path(assets.__file__).parent / "small_base"


def _files() -> dict[str, Path]:
    return {p.relative_to(BASE).as_posix(): p for p in BASE.rglob("*") if p.is_file()}


def _config(name: str):
    return json.loads((BASE / name).read_text("utf-8"))


def test_the_checksums_list_every_file_and_match():
    lines = (BASE / "SHA256SUMS").read_text("utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    actual = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in _files().items()
        if name != "SHA256SUMS"
    }
    assert listed == actual


def test_the_weights_are_safetensors_and_nothing_is_pickled():
    kinds = {path.suffix for path in _files().values()}
    assert kinds == {".safetensors", ".json", ".txt", ".md", ""}


def test_the_base_is_small():
    assert sum(path.stat().st_size for path in _files().values()) < 6_000_000


def test_the_unet_has_the_blocks_of_stable_diffusion_1_5():
    unet = _config("unet/config.json")
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["mid_block_type"] == "UNetMidBlock2DCrossAttn"
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert (unet["in_channels"], unet["out_channels"]) == (4, 4)


def test_the_native_side_is_128_px():
    vae = _config("vae/config.json")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    assert _config("unet/config.json")["sample_size"] * factor == 128


def test_the_noise_schedule_is_that_of_stable_diffusion_1_5():
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
def pipeline():
    import torch
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(BASE, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.integration
def test_any_text_becomes_77_known_tokens(pipeline):
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
def test_a_captions_words_are_whole_tokens(pipeline):
    caption = "a small red circle left of an orange star on a background fading to blue"
    assert pipeline.tokenizer.tokenize(caption) == [f"{word}</w>" for word in caption.split()]


@pytest.mark.integration
def test_the_text_encoders_file_is_what_was_loaded(pipeline):
    import torch
    from safetensors.torch import load_file

    stored = load_file(BASE / "text_encoder" / "model.safetensors")
    name = "embeddings.token_embedding.weight"
    loaded = {
        key.removeprefix("text_model."): v for key, v in pipeline.text_encoder.state_dict().items()
    }
    assert torch.equal(loaded[name], stored[f"text_model.{name}"].float())


@pytest.mark.integration
def test_the_autoencoder_keeps_a_scenes_colours(pipeline):
    import numpy as np
    import torch

    from assets.drawing import draw_scene
    from assets.train_autoencoder import to_batch

    rng = np.random.default_rng(10_000)
    batch = to_batch(np.stack([np.asarray(draw_scene(rng, 128)[0]) for _ in range(8)]))
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.encode(batch).latent_dist.mean).sample
    assert float((decoded - batch).abs().mean()) < 0.15


@pytest.mark.integration
def test_a_prompt_decides_the_colour(pipeline):
    import numpy as np
    import torch
    from diffusers import DDIMScheduler

    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    prompts = [
        "a large red circle on a blue background",
        "a large blue circle on a red background",
    ]
    pictures = pipeline(
        prompts,
        num_inference_steps=15,
        guidance_scale=4.0,
        height=128,
        width=128,
        output_type="np",
        generator=[torch.Generator().manual_seed(0) for _ in prompts],
    ).images
    centres = pictures[:, 56:72, 56:72].mean(axis=(1, 2))
    corners = pictures[:, :12, :12].mean(axis=(1, 2))
    redness = np.stack([centres, corners])[..., 0] - np.stack([centres, corners])[..., 2]
    assert redness[0, 0] > 0 > redness[1, 0]
    assert redness[0, 1] < 0 < redness[1, 1]
