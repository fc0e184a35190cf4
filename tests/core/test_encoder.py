"""The functional forward computes what transformers and open_clip compute, and never changes anything in place."""

from __future__ import annotations

from functools import cache

import open_clip
import pytest
import torch
import transformers
from torch import Tensor

from amdet_core import layers
from amdet_core.attention import activation, attention
from amdet_core.encoder import TextEncoder, expected_shapes, splice
from amdet_core.errors import ConfigError, EncoderError, NumericalError
from amdet_core.formats.layouts import locate, pieces
from amdet_core.records import EncoderSpec
from amdet_core.tokenizer import EOS, ClipTokenizer, clip_tokenizer

TOKENIZER = ClipTokenizer([])
PROMPTS = ["a photo of a cat", "", "an oil painting of two dogs in the rain, highly detailed", "猫 😀"]
TOLERANCE = 1e-5


def toy(dtype: torch.dtype = torch.float32, **changes: object) -> TextEncoder:
    sizes = {"width": 64, "layers": 2, "heads": 2, "mlp_width": 128, "vocabulary": len(TOKENIZER), "positions": 24}
    spec = EncoderSpec.model_validate(sizes | changes)
    generator = torch.Generator().manual_seed(0)
    shapes = expected_shapes(spec)
    weights = {name: torch.randn(shape, generator=generator, dtype=dtype) * 0.1 for name, shape in shapes.items()}
    return TextEncoder(spec, weights, TOKENIZER)


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Matrices N(0, 0.02) as CLIP starts, norms and biases away from where an error would not show."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.02
        parameter.copy_(1 + noise if parameter.ndim == 1 and "weight" in name else noise)


def sizes(spec: EncoderSpec) -> dict[str, object]:
    return {
        "hidden_size": spec.width, "intermediate_size": spec.mlp_width, "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads, "vocab_size": spec.vocabulary, "max_position_embeddings": spec.positions,
        "layer_norm_eps": spec.norm_eps, "hidden_act": spec.activation.replace("gelu_tanh", "gelu_pytorch_tanh"),
    }  # fmt: skip


def from_transformers(model: torch.nn.Module, spec: EncoderSpec, tokenizer: ClipTokenizer) -> TextEncoder:
    weights = {name.removeprefix("text_model."): w.detach() for name, w in model.state_dict().items()}
    return TextEncoder(spec, {name: weights[name] for name in expected_shapes(spec)}, tokenizer)


def clip_pair(spec: EncoderSpec, tokenizer: ClipTokenizer, eos: int) -> tuple[torch.nn.Module, TextEncoder]:
    config = transformers.CLIPTextConfig(
        **sizes(spec), projection_dim=spec.projection or 1, bos_token_id=tokenizer.bos_id, eos_token_id=eos,
        pad_token_id=tokenizer.eos_id,
    )  # fmt: skip
    kind = transformers.CLIPTextModel if spec.projection is None else transformers.CLIPTextModelWithProjection
    model = kind(config).train(False)
    randomise(model)
    return model, from_transformers(model, spec, tokenizer)


FULL = {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072, "vocabulary": 49408, "positions": 77}


@cache
def full_size(act: str) -> tuple[torch.nn.Module, TextEncoder]:
    spec = EncoderSpec.model_validate(FULL | {"activation": act})
    return clip_pair(spec, clip_tokenizer(), clip_tokenizer().eos_id)


@pytest.mark.slow
@pytest.mark.parametrize("pad", [None, 0, 49407])
@pytest.mark.parametrize("pooling", ["eos-id", "eos-argmax"])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_full_size_clip_equals_transformers(act, pooling, pad):
    model, encoder = full_size(act)
    encoder = TextEncoder(
        encoder.spec.model_copy(update={"pad_id": pad, "pooling": pooling}), encoder.weights, encoder.tokenizer
    )
    batch = encoder.tokens([*PROMPTS, f"a cat {EOS} a dog"], pad_to_context=True)
    model.eos_token_id = 2 if pooling == "eos-argmax" else 49407
    wanted = model(batch.ids)
    states = encoder.states(batch)
    assert (states - wanted.last_hidden_state).abs().max() <= TOLERANCE
    assert (encoder.pool(states, batch.eos) - wanted.pooler_output).abs().max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_full_size_clip_equals_open_clip(act):
    layer = {"quick_gelu": open_clip.transformer.QuickGELU, "gelu": torch.nn.GELU}[act]
    tower, encoder = fused_pair(768, 12, 12, 768, 49408, 77, act, layer, clip_tokenizer())
    assert_equal_to_tower(tower, encoder, PROMPTS)


@torch.no_grad()
def test_a_small_big_g_equals_open_clip():
    tower, encoder = fused_pair(128, 3, 2, 96, len(TOKENIZER), 77, "gelu", torch.nn.GELU, TOKENIZER)
    assert_equal_to_tower(tower, encoder, PROMPTS)


def fused_pair(
    width: int, layers: int, heads: int, projection: int, vocabulary: int, positions: int, act: str,
    layer: type[torch.nn.Module], tokenizer: ClipTokenizer,
) -> tuple[torch.nn.Module, TextEncoder]:  # fmt: skip
    tower = open_clip.transformer.TextTransformer(
        context_length=positions, vocab_size=vocabulary, width=width, heads=heads, layers=layers,
        output_dim=projection, act_layer=layer, output_tokens=True,
    ).train(False)  # fmt: skip
    randomise(tower)
    state = {key: w.detach() for key, w in tower.state_dict().items()}
    (location,) = locate(state)
    weights = dict(piece for key, name in location.keys.items() for piece in pieces(name, state[key]))
    spec = EncoderSpec.model_validate(
        {
            "width": width, "layers": layers, "heads": heads, "mlp_width": 4 * width, "vocabulary": vocabulary,
            "positions": positions, "activation": act, "pooling": "eos-argmax", "pad_id": 0, "projection": projection,
        }
    )  # fmt: skip
    return tower, TextEncoder(spec, weights, tokenizer)


def assert_equal_to_tower(tower: torch.nn.Module, encoder: TextEncoder, prompts: list[str]) -> None:
    batch = encoder.tokens(prompts, pad_to_context=True)
    projected, tokens = tower(batch.ids)
    states = encoder.states(batch)
    assert (states - tokens).abs().max() <= TOLERANCE
    assert (encoder.project(encoder.pool(states, batch.eos)) - projected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("positions", [24, 248])
@torch.no_grad()
def test_small_and_long_clip_equal_transformers_with_projection(act, positions):
    spec = toy(activation=act, positions=positions, projection=40, norm_eps=1e-3).spec
    model, encoder = clip_pair(spec, TOKENIZER, TOKENIZER.eos_id)
    prompts = [*PROMPTS, "word " * 300]
    batch = encoder.tokens(prompts)
    assert batch.ids.shape[1] == positions
    wanted = model(batch.ids)
    states = encoder.states(batch)
    assert (states - wanted.last_hidden_state).abs().max() <= TOLERANCE
    assert (encoder.project(encoder.pool(states, batch.eos)) - wanted.text_embeds).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
@torch.no_grad()
def test_attentions_equal_transformers(kind):
    spec = toy(heads=4, layers=3, causal=kind == "CLIP").spec
    config = getattr(transformers, f"{kind}TextConfig")(
        **sizes(spec), projection_dim=1, projection_size=1, pad_token_id=TOKENIZER.eos_id,
        bos_token_id=TOKENIZER.bos_id, eos_token_id=TOKENIZER.eos_id, attn_implementation="eager",
    )  # fmt: skip
    model = getattr(transformers, f"{kind}TextModel")(config).train(False)
    randomise(model)
    encoder = from_transformers(model, spec, TOKENIZER)
    batch = encoder.tokens(PROMPTS, pad_to_context=True)
    wanted = torch.stack(model(batch.ids, output_attentions=True).attentions).mean(2)
    found = encoder.attentions(batch)
    assert found.shape == (3, len(PROMPTS), 24, 24)
    assert (found - wanted).abs().max() <= TOLERANCE
    assert (found.sum(-1) - 1).abs().max() <= TOLERANCE
    assert bool((found.triu(1) == 0).all()) is spec.causal


@torch.no_grad()
def test_siglip_equals_transformers_with_its_head():
    spec = toy(
        activation="gelu_tanh", causal=False, pooling="last", pooled_head=48, norm_eps=1e-6, positions=16
    ).spec  # fmt: skip
    config = transformers.SiglipTextConfig(
        **sizes(spec), projection_size=48, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    model = transformers.SiglipTextModel(config).train(False)
    randomise(model)
    encoder = from_transformers(model, spec, TOKENIZER)
    batch = encoder.tokens(["a cat", "two dogs"])
    assert batch.ids.shape == (2, 16)
    wanted = model(batch.ids)
    states = encoder.states(batch)
    assert (states - wanted.last_hidden_state).abs().max() <= TOLERANCE
    assert (encoder.pool(states, batch.eos) - wanted.pooler_output).abs().max() <= TOLERANCE


# ---------------------------------------------------------------- structure of the forward


def placed(encoder: TextEncoder, prompts: list[str] = PROMPTS) -> Tensor:
    return encoder.place(encoder.embed(encoder.tokens(prompts).ids))


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("cached", [1, 1_000_000])
def test_a_shared_prefix_changes_nothing(length, grad, cached, monkeypatch):
    monkeypatch.setattr(layers, "CACHED", cached)
    encoder = toy()
    with torch.set_grad_enabled(grad):
        hidden = placed(encoder, ["abcdef", "abcxyz", "abc"])
        prefix = encoder.prefix(hidden[:, :length])
        assert prefix.length == length
        many = torch.stack([hidden, *(hidden + 0.1 * torch.randn_like(hidden) for _ in range(2))])
        many[:, :, :length] = hidden[:, :length]
        behind = many[:, :, length:]
        last = encoder.last_state(behind, prefix)
        assert last.shape == (3, 3, 64)
        assert (last - encoder.transform(many)[..., -1, :]).abs().max() <= TOLERANCE
        assert (last[1:] - last[:1]).abs().max() > 100 * TOLERANCE


def test_a_prefix_needs_a_causal_encoder():
    encoder = toy(causal=False, pooling="last")
    with pytest.raises(EncoderError, match="expected a causal encoder"):
        encoder.prefix(torch.zeros(1, 2, 64))


def test_a_restart_dimension_equals_a_loop():
    encoder = toy()
    hidden = torch.randn(5, 3, 7, 64)
    together = encoder.transform(hidden)
    assert together.shape == hidden.shape
    for one, states in zip(hidden, together, strict=True):
        assert (encoder.transform(one) - states).abs().max() <= TOLERANCE
    eos = torch.tensor([2, 6, 4])
    pooled = encoder.pool(together, eos)
    assert pooled.shape == (5, 3, 64)
    for restart in range(5):
        assert torch.equal(pooled[restart], encoder.pool(together[restart], eos))


def test_pooling_takes_the_state_at_eos():
    encoder, states = toy(), torch.randn(2, 5, 64)
    pooled = encoder.pool(states, torch.tensor([1, 4]))
    assert torch.equal(pooled, torch.stack([states[0, 1], states[1, 4]]))


def test_padding_and_later_tokens_do_not_change_the_pooled_state():
    encoder = toy(pad_id=0)
    alone = encoder.encode(["a cat"])
    batch = encoder.tokens(["a cat", "a much longer prompt"], pad_to_context=True)
    pooled = encoder.pool(encoder.states(batch), batch.eos)
    assert (pooled[:1] - alone).abs().max() <= TOLERANCE


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_encode_keeps_the_order_of_the_prompts(batch_size):
    encoder = toy()
    prompts = ["ccc ccc ccc", "a", "bb bb", "", "dddd dddd dddd"]
    together = encoder.encode(prompts, batch_size=batch_size)
    alone = torch.cat([encoder.encode([prompt]) for prompt in prompts])
    assert (together - alone).abs().max() <= TOLERANCE
    assert not together.requires_grad


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_tanh"])
def test_the_gradient_equals_finite_differences(act, causal):
    encoder = toy(torch.float64, activation=act, causal=causal)
    embeds = encoder.embed(encoder.tokens(["a cat", "dog"]).ids).detach().requires_grad_(True)
    direction = torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def scalar(values: Tensor) -> Tensor:
        states = encoder.transform(encoder.place(values))
        return (encoder.pool(states, torch.tensor([3, 3])) * direction).sum()

    (gradient,) = torch.autograd.grad(scalar(embeds), embeds)
    step = 1e-5
    for index in [(0, 0, 5), (0, 1, 0), (0, 2, 63), (1, 3, 17), (1, 1, 30)]:
        change = torch.zeros_like(embeds)
        change[index] = step
        with torch.no_grad():
            measured = (scalar(embeds + change) - scalar(embeds - change)) / (2 * step)
        assert gradient[index].item() == pytest.approx(measured.item(), rel=1e-6, abs=1e-9)
    if causal:
        assert torch.equal(gradient[:, 4:], torch.zeros_like(gradient[:, 4:]))


def test_both_ways_of_attention_agree():
    q, k, v = torch.randn(3, 2, 4, 6, 8).unbind()
    mask = torch.full((6, 6), float("-inf")).triu(1)
    for given in (mask, None):
        with torch.no_grad():
            fused = attention(q, k, v, given)
        assert (attention(q, k, v, given) - fused).abs().max() <= TOLERANCE


def test_weights_get_no_gradient_and_nothing_changes_in_place():
    encoder = toy()
    before = {name: w.clone() for name, w in encoder.weights.items()}
    ids = encoder.tokens(PROMPTS).ids
    embeds = encoder.embed(ids).detach().requires_grad_(True)
    kept = embeds.detach().clone()
    vectors = torch.randn(2, 1, 64, requires_grad=True)
    prefix = encoder.prefix(encoder.place(embeds[:, :1].detach()))
    spliced = splice(encoder.place(embeds), vectors)[:, :, 1:]
    encoder.last_state(spliced, prefix).square().sum().backward()
    assert embeds.grad is not None
    assert vectors.grad is not None
    assert torch.equal(embeds.detach(), kept)
    for name, weight in encoder.weights.items():
        assert weight.grad is None
        assert not weight.requires_grad
        assert torch.equal(weight, before[name])


@torch.inference_mode()
def _inference_weights(encoder: TextEncoder) -> dict[str, Tensor]:
    return {name: w.clone() for name, w in encoder.weights.items()}


def test_weights_of_inference_mode_work_after_a_copy():
    encoder = toy().with_weights(_inference_weights(toy())).to("cpu", torch.float64).to("cpu")
    embeds = encoder.embed(encoder.tokens(["a"]).ids).detach().requires_grad_(True)
    encoder.transform(embeds).sum().backward()
    assert embeds.grad is not None


def test_splice_inserts_behind_bos_and_drops_at_the_end():
    hidden = torch.arange(5.0).view(1, 5, 1).expand(2, 5, 1)
    vectors = torch.tensor([[[10.0], [11.0]], [[20.0], [21.0]]])
    out = splice(hidden, vectors)
    assert out.shape == (2, 2, 5, 1)
    assert out[0, 0, :, 0].tolist() == [0, 10, 11, 1, 2]
    assert out[1, 1, :, 0].tolist() == [0, 20, 21, 1, 2]
    assert splice(hidden, vectors, at=3)[0, 0, :, 0].tolist() == [0, 1, 2, 10, 11]


def test_positions_are_added_from_where_the_input_starts():
    encoder = toy()
    table = encoder.weights["embeddings.position_embedding.weight"]
    assert torch.equal(encoder.place(torch.zeros(2, 3, 64), start=4)[1], table[4:7])


@pytest.mark.parametrize(("name", "wanted"), [
    ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)), ("gelu", torch.nn.functional.gelu),
    ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
])  # fmt: skip
def test_activations(name, wanted):
    x = torch.linspace(-4, 4, 50)
    rounding = 1e-6 if name == "quick_gelu" else 0  # silu, scaled
    assert (activation(name, x) - wanted(x)).abs().max() <= rounding


# ---------------------------------------------------------------- refusals


def test_missing_and_unexpected_tensors_are_named():
    encoder = toy()
    weights = dict(encoder.weights)
    del weights["final_layer_norm.bias"]
    with pytest.raises(EncoderError, match=r"1 missing \['final_layer_norm.bias'\] and 1 unexpected \['x'\]"):
        encoder.with_weights(weights | {"x": torch.zeros(1)})


def test_wrong_shapes_are_named():
    encoder = toy()
    with pytest.raises(EncoderError, match=r"final_layer_norm.bias \(3,\) instead of \(64,\)"):
        encoder.with_weights({**encoder.weights, "final_layer_norm.bias": torch.zeros(3)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_found(value):
    encoder = toy()
    encoder.check_finite()
    with pytest.raises(NumericalError, match=r"final_layer_norm.bias"):
        encoder.with_weights({**encoder.weights, "final_layer_norm.bias": torch.full((64,), value)}).check_finite()


def test_too_many_positions_are_an_error():
    with pytest.raises(EncoderError, match="expected at most 24 token positions; found 25"):
        toy().place(torch.zeros(1, 20, 64), start=5)


def test_projecting_without_a_projection_is_an_error():
    with pytest.raises(EncoderError, match="expected an encoder with a text projection"):
        toy().project(torch.zeros(1, 64))


def test_encoding_nothing_is_an_error():
    with pytest.raises(ConfigError, match="at least one prompt"):
        toy().encode([])
