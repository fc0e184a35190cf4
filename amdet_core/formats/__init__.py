"""Files to encoders and back: every layout of CLIP text encoders, recognised by content.

``open_target`` reads, ``write_encoder`` writes, ``file_sha256`` names what was read.
"""

from .folders import files_of, is_model, models_below
from .lora import LoraLayout, write_lora
from .open import TRIGGER_PHRASE, FoundEncoder, OpenedTarget, file_sha256, only_encoder, open_target
from .write import Layout, as_stored, check_expressible, hf_config, hf_tensors, write_encoder, write_tokenizer

__all__ = [
    "TRIGGER_PHRASE",
    "FoundEncoder",
    "Layout",
    "LoraLayout",
    "OpenedTarget",
    "as_stored",
    "check_expressible",
    "file_sha256",
    "files_of",
    "hf_config",
    "hf_tensors",
    "is_model",
    "models_below",
    "only_encoder",
    "open_target",
    "write_encoder",
    "write_lora",
    "write_tokenizer",
]
