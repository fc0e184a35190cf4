"""What a file holds besides CLIP's text encoders, recognised by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

FIRST_APPLY = "Apply it to an encoder first, save that encoder, and scan it."
OTHER_ENCODER = "Only CLIP text encoders can be scanned; name a file that holds one."
NO_TEXT = "Name a checkpoint with its text encoder, or the text encoder itself."
DOWNLOAD = "The file is incomplete; download it again."
QUANTISED = "Scan the encoder before it was quantised; values without their scales are another encoder."


@dataclass(frozen=True)
class Part:
    """One kind of content.

    Attributes:
        what: its name in messages.
        remedy: what to do when a file holds nothing else.
        named: a report has to name it, because it takes part in reading prompts.
        pattern: found in the names of its tensors.
    """

    what: str
    remedy: str
    named: bool
    pattern: re.Pattern[str]


def _part(what: str, remedy: str, named: bool, *patterns: str) -> Part:
    return Part(what, remedy, named, re.compile("|".join(patterns)))


SCALES = _part(
    "scales of quantised weights",
    QUANTISED,
    False,
    r"(\.|^)(scaled_fp8|comfy_quant|weight_format)$",
    r"\.(scale_weight|weight_scale(_2)?|scale_input|input_scale|SCB|qweight|qzeros|scales|g_idx)$",
    r"\.(nested_)?(absmax|quant_map|quant_state(\.\w+)?)$",
)
CONSTANTS = _part(
    "constants of the sampler",
    NO_TEXT,
    False,
    r"(^|\.)(position_ids|attn_mask|mask[12]|logit_scale|logit_bias|scale_factor|vae_scale|vae_shift|ztsnr|v_pred)$",
    r"(^|\.)(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|logvar|sigmas|edm_\w+)$",
    r"^(denoiser|model_sampling|optimizer_states|optimizer|lr_schedulers|callbacks)(\.|$)",
)
PARTS = (
    SCALES,
    _part(
        "a LoRA",
        FIRST_APPLY,
        True,
        r"(^|[._])lora_?(up|down|A|B|te\d?|unet|mid)([._]|$)",
        r"\.lora_linear_layer\.|hada_w[12]|lokr_w[12]|oft_blocks|(^|\.)dora_scale$|^lora_.*\.alpha$|\.(to_.*_)?lora\.",
    ),
    _part(
        "a CLIP image tower",
        NO_TEXT,
        False,
        r"(^|\.)(vision_model|visual|visual_projection|vision_tower)\.",
        r"(^|\.)(patch|class)_embedding(\.|$)|(^|\.)(pre_layrnorm|post_layernorm)\.",
    ),
    _part(
        "a VAE",
        NO_TEXT,
        False,
        r"(^|\.)(first_stage_model|vae)\.",
        r"^(encoder|decoder)\.(conv_in|conv_out|conv_norm_out|norm_out|down|up|mid|down_blocks|up_blocks|mid_block)\.",
        r"^(post_)?quant_conv\.|^loss\.(discriminator|perceptual_loss)\.",
    ),
    _part(
        "an image model (UNet or diffusion transformer)",
        NO_TEXT,
        False,
        r"(^|\.)(diffusion_model|model_ema|unet|control_model|controlnet_\w+)\.",
        r"^(model\.)?(input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks|time_embed\w*|label_emb)\.",
        r"^(model\.)?(conv_in|conv_out|conv_norm_out|add_embedding|out)\.",
        r"^(model\.)?(double_blocks|single_blocks|joint_blocks|transformer_blocks|single_transformer_blocks)\.",
        r"^(model\.)?(x_embedder|y_embedder|t_embedder|context_embedder|img_in|txt_in|time_in|vector_in|final_layer)\.",
        r"^(model\.)?(guidance_in|distilled_guidance_layer|time_text_embed|pos_embed|norm_out|proj_out)\.",
    ),
    _part(
        "a T5 text encoder",
        OTHER_ENCODER,
        True,
        r"(^|\.)(encoder|decoder)\.block\.\d+\.layer\.\d+\.",
        r"(^|\.)shared\.weight$|(^|\.)(encoder|decoder)\.(embed_tokens|final_layer_norm)\.weight$",
        r"(^|\.)(t5xxl|umt5\w*)\.",
    ),
    _part(
        "a BERT text encoder",
        OTHER_ENCODER,
        True,
        r"(^|\.)encoder\.layer\.\d+\.(attention|intermediate|output)\.",
        r"(^|\.)embeddings\.(word_embeddings|position_embeddings|token_type_embeddings|LayerNorm)(\.|$)",
        r"(^|\.)pooler\.dense\.",
    ),
    _part(
        "transformer layers without a token table",
        DOWNLOAD,
        True,
        r"(^|\.)encoder\.layers\.\d+\.(layer_norm[12]|self_attn|mlp\.fc[12])\.",
        r"(^|\.)transformer\.resblocks\.\d+\.|(^|\.)embeddings\.position_embedding\.weight$",
    ),
    _part(
        "a language model",
        OTHER_ENCODER,
        True,
        r"(^|\.)layers\.\d+\.(mlp|self_attn|(input|post_attention|pre_feedforward|post_feedforward)_layernorm)\.",
        r"(^|\.)(embed_tokens|lm_head)\.|(^|\.)model\.norm\.",
    ),
    _part(
        "a textual-inversion embedding",
        "It is no encoder. Scan the encoder that it was made for.",
        True,
        r"^(emb_params|clip_[lgh]|t5xxl)$|^(string_to_param|string_to_token|bundle_emb)\.|^<.*>$",
    ),
    CONSTANTS,
)


def sort_out(keys: Iterable[str]) -> tuple[dict[Part, list[str]], list[str]]:
    """The parts that keys belong to, and the keys of no known part, all in order of their names.

    A checkpoint of torch may hold everything below ``state_dict.``.
    """
    known: dict[Part, list[str]] = {}
    unknown: list[str] = []
    for key in sorted(keys):
        part = next((part for part in PARTS if part.pattern.search(key.removeprefix("state_dict."))), None)
        known.setdefault(part, []).append(key) if part else unknown.append(key)
    return known, unknown


def describe(part: Part, keys: list[str]) -> str:
    """One line that names a part and where it lies."""
    return f"{_language_model(keys) if part.what == 'a language model' else part.what} ({_some(keys)})"


def describe_unknown(keys: list[str]) -> str:
    """One line that counts tensors of no known part."""
    return f"tensors of no known kind ({_some(keys)})"


def _some(keys: list[str]) -> str:
    return f"{len(keys)} tensors, first {keys[0][:120]}"


def _language_model(keys: list[str]) -> str:
    """The family of a language model, by the layers that only it has."""
    families: Mapping[str, str] = {
        r"(pre|post)_feedforward_layernorm": "a Gemma language model",
        r"self_attn\.(q_norm\.|q_proj\.bias)": "a Qwen language model",
    }
    for pattern, family in families.items():
        if any(re.search(pattern, key) for key in keys):
            return family
    return "a Llama-like language model"
