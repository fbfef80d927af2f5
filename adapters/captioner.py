"""Describe images with an image-to-text model of transformers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from adapters.common.device_errors import is_broken_device
from adapters.common.device_memory import on_device, oom_fails_the_run, split_on_oom
from application.ports import TrainerBroken
from application.stop_signal import StopSignal
from domain.errors import UserError

BATCH_SIZE = 8
MAX_TOKENS = 60
"""Largest number of tokens in a description."""


class CaptionModelInvalid(UserError):
    """The caption model cannot be loaded; the text has the reason and the remedy."""


class TransformersCaptioner:
    """Port ``Captioner``: a model that needs no prompt, such as BLIP, GIT or an encoder-decoder.

    The model stays in main memory and is on the device only while it describes images. Decoding
    is greedy, so equal images on equal hardware get equal descriptions.

    Args:
        name: a folder or a name on the hub. Only weights in safetensors are loaded.
        device: the device to describe images on, such as ``cuda``.
        decode: decodes a file's bytes to an upright RGB image.

    Raises:
        CaptionModelInvalid: there is no such model, or it is of another kind.
    """

    def __init__(self, name: str, device: str, decode: Callable[[bytes], Image.Image]) -> None:
        try:
            # False, because the default may ask on the terminal whether to run the model's code.
            load = {"trust_remote_code": False}
            self._pixels = AutoImageProcessor.from_pretrained(name, **load)
            self._tokenizer = AutoTokenizer.from_pretrained(name, **load)
            model = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, **load)
        except MemoryError:
            raise
        except Exception as error:  # transformers documents no types for damaged folders
            reason = " ".join(str(error).split())[:300]
            raise CaptionModelInvalid(
                f"caption model {name}: cannot be loaded ({reason}); give the folder or the hub "
                "name of an image-to-text model of transformers with weights in safetensors"
            ) from error
        self._model = model.float().eval().requires_grad_(False)
        self._device = torch.device(device)
        self._decode = decode
        self._lock = threading.Lock()

    def describe(self, images: Sequence[bytes], stop: StopSignal) -> list[str]:
        """Describe ``BATCH_SIZE`` images at a time, or fewer if memory is short.

        Raises:
            TrainingFailed: GPU_OOM, if one image does not fit.
        """
        texts: list[str] = []
        try:
            with self._lock, on_device(self._model, self._device), oom_fails_the_run():
                for start in range(0, len(images), BATCH_SIZE):
                    stop.check()
                    batch = images[start : start + BATCH_SIZE]
                    for some in split_on_oom(self._describe, batch, _halves):
                        texts += some
        except RuntimeError as error:
            if is_broken_device(error):
                raise TrainerBroken(str(error).partition("\n")[0]) from error
            raise
        return texts

    @torch.inference_mode()
    def _describe(self, images: Sequence[bytes]) -> list[str]:
        decoded = [self._decode(data) for data in images]
        pixels = self._pixels(images=decoded, return_tensors="pt").pixel_values
        tokens = self._model.generate(
            pixel_values=pixels.to(self._device), max_new_tokens=MAX_TOKENS, do_sample=False
        )
        texts: list[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


def _halves(images: Sequence[bytes]) -> Sequence[Sequence[bytes]]:
    middle = -(-len(images) // 2)
    return [part for part in (images[:middle], images[middle:]) if part]
