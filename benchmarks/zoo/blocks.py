"""The networks of Tier B that torchvision lacks."""

from __future__ import annotations

from benchmarks.zoo.block import Block, draw_tokens
from benchmarks.zoo.convolutions import Edsr, UNet, YoloNeck
from benchmarks.zoo.transformers import Bert, LanguageModel, Llama

_TOKENS = ((9,), (14,))

BLOCKS: dict[str, Block] = {
    "bert": Block(Bert, _TOKENS, ("head",), draw_tokens),
    "llama": Block(Llama, _TOKENS, ("head",), draw_tokens),
    "lstm_language_model": Block(LanguageModel, _TOKENS, ("head",), draw_tokens),
    "unet": Block(UNet, ((3, 32, 32), (3, 45, 37)), ("head",)),
    "yolo_c2f": Block(YoloNeck, ((3, 32, 32), (3, 45, 37)), ("head",)),
    "edsr": Block(Edsr, ((3, 12, 12), (3, 15, 11)), ("head",)),
}
"""Name to network."""
