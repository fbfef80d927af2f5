"""The adapter of transformers' image-to-text models, with the small captioner and without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import assets
from adapters import captioner as module
from adapters.captioner import CaptionModelInvalid, TransformersCaptioner
from adapters.images.decode import decode
from application.ports import TrainerBroken
from application.stop_signal import Stopped, StopReason, StopSignal
from assets.drawing import draw_style_set
from domain.failure import FailureCode, TrainingFailed

pytestmark = pytest.mark.integration

SMALL = Path(assets.__file__).parent / "small_captioner"


@pytest.fixture
def captioner() -> TransformersCaptioner:
    return TransformersCaptioner(str(SMALL), "cpu", decode)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    paths = draw_style_set(tmp_path_factory.mktemp("images"), count=5, seed=4, size=128)
    return [path.read_bytes() for path in paths]


def test_each_image_gets_the_same_caption_in_any_batch(
    captioner: TransformersCaptioner, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = captioner.describe(images, StopSignal())
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    assert captioner.describe(images, StopSignal()) == together
    assert all(text.startswith(("a ", "an ")) for text in together)
    assert len(set(together)) > 1


def test_a_stop_interrupts_captioning(
    captioner: TransformersCaptioner, images: list[bytes]
) -> None:
    stop = StopSignal()
    stop.request(StopReason.SHUTDOWN)
    with pytest.raises(Stopped):
        captioner.describe(images, stop)


class Short:
    """A model on a device with memory for a few images at a time."""

    def __init__(self, captioner: TransformersCaptioner, room: int) -> None:
        self._describe, self.room, self.sizes = captioner._describe, room, list[int]()

    def __call__(self, images: Sequence[bytes]) -> list[str]:
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._describe(images)


def test_a_batch_that_does_not_fit_is_split(
    captioner: TransformersCaptioner, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = captioner.describe(images, StopSignal())
    short = Short(captioner, room=2)
    monkeypatch.setattr(captioner, "_describe", short)
    assert captioner.describe(images, StopSignal()) == expected
    assert short.sizes == [5, 3, 2, 1, 2]


def test_an_image_that_does_not_fit_fails_with_gpu_oom(
    captioner: TransformersCaptioner, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioner, "_describe", Short(captioner, room=0))
    with pytest.raises(TrainingFailed) as raised:
        captioner.describe(images, StopSignal())
    assert raised.value.failure.code is FailureCode.GPU_OOM


def test_a_broken_device_breaks_the_trainer(
    captioner: TransformersCaptioner, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_images: Sequence[bytes]) -> list[str]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(captioner, "_describe", fail)
    with pytest.raises(TrainerBroken):
        captioner.describe(images, StopSignal())


def test_a_model_of_the_documented_class_is_loaded(tmp_path: Path, images: list[bytes]) -> None:
    """BLIP with random weights: its captions are random words."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    for name in ("vocab.txt", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(SMALL / name, tmp_path)
    words = (SMALL / "vocab.txt").read_text("utf-8").split()
    common = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    text = {**common, "encoder_hidden_size": 32, "num_hidden_layers": 1, "vocab_size": len(words)}
    text |= {"bos_token_id": words.index("[DEC]"), "sep_token_id": words.index("[SEP]")}
    vision = {**common, "num_hidden_layers": 1, "image_size": 64, "patch_size": 32}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    model.save_pretrained(tmp_path, safe_serialization=True)
    described = TransformersCaptioner(str(tmp_path), "cpu", decode).describe(images, StopSignal())
    assert len(described) == len(images)
    assert set(" ".join(described).split()) <= set(words)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "empty").mkdir()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in SMALL.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    cut, listed, wide = (tmp_path / name for name in ("cut", "listed", "wide"))
    for folder in (cut, listed, wide):
        shutil.copytree(SMALL, folder)
    weights = (SMALL / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-1000])
    (listed / "config.json").write_text("[]")
    config = json.loads((SMALL / "config.json").read_text())
    config["decoder"]["hidden_size"] *= 2
    (wide / "config.json").write_text(json.dumps(config))
    base = SMALL.parent / "small_base"
    return {
        **{path.name: path for path in (cut, listed, wide, pickled)},
        "base": base,
        "empty": tmp_path / "empty",
    }


@pytest.mark.parametrize("kind", ["empty", "pickled", "base", "cut", "listed", "wide"])
def test_another_model_is_rejected_with_the_remedy(folders: dict[str, Path], kind: str) -> None:
    with pytest.raises(
        CaptionModelInvalid, match=r"give the folder or the hub name .*safetensors"
    ):
        TransformersCaptioner(str(folders[kind]), "cpu", decode)
