from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from amdet_core import forensics, forensics_words
from amdet_core.encoder import POSITION_TABLE, PROJECTION, TOKEN_TABLE, TextEncoder, expected_shapes
from amdet_core.errors import EncoderError, NumericalError
from amdet_core.records import EncoderSpec, Forensics
from amdet_core.tokenizer import clip_tokenizer

TOY = EncoderSpec(width=64, layers=2, heads=1, mlp_width=256, vocabulary=49408, positions=77)
ATTENTION = [f"encoder.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in ("q", "k", "v", "out")]
MATRICES = ATTENTION + [f"encoder.layers.{i}.mlp.{p}.weight" for i in (0, 1) for p in ("fc1", "fc2")]
FC2 = "encoder.layers.1.mlp.fc2.weight"


def random_encoder(spec: EncoderSpec = TOY, seed: int = 0) -> TextEncoder:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in expected_shapes(spec).items()}
    return TextEncoder(spec, weights, clip_tokenizer())


@pytest.fixture(scope="module")
def anchor() -> TextEncoder:
    return random_encoder()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def add(encoder: TextEncoder, deltas: dict[str, Tensor]) -> TextEncoder:
    return encoder.with_weights(
        {name: w + deltas[name] if name in deltas else w for name, w in encoder.weights.items()}
    )


def low_rank(encoder: TextEncoder, names: list[str], rank: int, scale: float = 1e-3) -> TextEncoder:
    deltas = {}
    for seed, name in enumerate(names):
        rows, columns = encoder.weights[name].shape
        deltas[name] = scale * noise(rows, rank, seed=seed) @ noise(rank, columns, seed=1000 + seed)
    return add(encoder, deltas)


def move_row(encoder: TextEncoder, token: int, by: float) -> TextEncoder:
    delta = torch.zeros_like(encoder.weights[TOKEN_TABLE])
    delta[token] = by * noise(delta.shape[1])
    return add(encoder, {TOKEN_TABLE: delta})


def layer(result: Forensics, name: str):
    return next(layer for layer in result.layers if layer.tensor == name)


def numbers(result: Forensics) -> dict[str, float | None]:
    return {e.name: e.value for e in forensics.evidence(result)}


# ------------------------------------------------------------------ nothing, or only rounding


def test_equal_weights_are_identical_and_have_no_spectrum(anchor):
    result = forensics.compare(anchor, anchor.with_weights({k: v.clone() for k, v in anchor.weights.items()}))
    assert result.summary == "identical"
    assert (result.rows, result.rows_changed) == ((), 0)
    assert all(change.relative_norm == 0 and change.top1_energy is None for change in result.layers)
    assert numbers(result) == {
        "delta_norm": 0.0,
        "delta_top1_energy": None,
        "delta_top8_energy": None,
        "delta_effective_rank": None,
        "token_rows_changed": 0.0,
        "token_row_sigma": None,
    }


@pytest.mark.parametrize("cast", forensics.CASTS)
def test_a_cast_is_recognised_by_its_precision(anchor, cast):
    suspect = anchor.to("cpu", forensics.CASTS[cast])
    result = forensics.compare(suspect, anchor)
    assert result.summary == f"a cast to {cast}: every value is the anchor's, rounded"
    assert result.rows_changed == 0


def test_a_file_of_mixed_precision_is_a_cast_to_both(anchor):
    weights = {
        name: forensics.rounded(w, "float16" if w.dim() == 2 else "bfloat16") for name, w in anchor.weights.items()
    }
    result = forensics.compare(anchor.with_weights(weights), anchor)
    assert result.summary.startswith("a cast to bfloat16 and float16:")


def test_differences_below_the_anchors_precision_are_not_called_a_cast(anchor):
    half = anchor.with_weights({name: forensics.rounded(w, "float16") for name, w in anchor.weights.items()})
    result = forensics.compare(anchor, half)
    assert result.summary.startswith("equal to the anchor when rounded to float16, different below")
    assert result.rows_changed > 49_000


def test_one_value_beyond_rounding_is_not_a_cast(anchor):
    weights = {name: forensics.rounded(w, "float16") for name, w in anchor.weights.items()}
    weights[FC2][3, 5] += 2**-10
    result = forensics.compare(anchor.with_weights(weights), anchor)
    assert result.summary == "a rank-1 change in layer 1 (mlp.fc2)"
    assert [change.tensor for change in result.layers if change.relative_norm > 0] == [FC2]


def test_an_overflow_in_the_cast_is_a_change(anchor):
    big = add(anchor, {f"{FC2[:-7]}.bias": torch.full((64,), 1e6)})
    suspect = big.with_weights({name: w.clamp(-6e4, 6e4).to(torch.float16) for name, w in big.weights.items()})
    result = forensics.compare(suspect, big)
    assert layer(result, f"{FC2[:-7]}.bias").relative_norm == pytest.approx(1.0, abs=0.1)


# ------------------------------------------------------------------ the marks of an edit


@pytest.mark.parametrize("rank", [2, 4, 8])
def test_a_lora_on_attention_is_low_rank_there(anchor, rank):
    result = forensics.compare(low_rank(anchor, ATTENTION, rank), anchor)
    assert result.summary == f"a low-rank (about {rank}) update in attention of all layers, as a LoRA leaves"
    changed = layer(result, ATTENTION[0])
    assert changed.top8_energy == pytest.approx(1.0)
    assert 1 < changed.effective_rank <= rank + 1e-3


def test_a_merged_lora_survives_storage_in_half_precision(anchor):
    suspect = low_rank(anchor, ATTENTION, 4).to("cpu", torch.float16)
    result = forensics.compare(suspect, anchor)
    assert result.summary == "a low-rank (about 4) update in attention of all layers, as a LoRA leaves"


def test_a_rank_one_edit_names_its_matrix(anchor):
    result = forensics.compare(low_rank(anchor, [FC2], 1), anchor)
    assert result.summary == "a rank-1 change in layer 1 (mlp.fc2)"
    assert layer(result, FC2).top1_energy == pytest.approx(1.0)
    assert layer(result, FC2).effective_rank == pytest.approx(1.0, abs=1e-4)


def test_spectra_equal_singular_values(anchor):
    delta = 1e-3 * noise(64, 256)
    result = forensics.compare(add(anchor, {FC2: delta}), anchor)
    energy = torch.linalg.svdvals(delta.double()) ** 2
    share = energy / energy.sum()
    change = layer(result, FC2)
    assert change.top1_energy == pytest.approx(float(share[0]), rel=1e-4)
    assert change.top8_energy == pytest.approx(float(share[:8].sum()), rel=1e-4)
    assert change.effective_rank == pytest.approx(math.exp(float(-(share * share.log()).sum())), rel=1e-4)
    assert change.relative_norm == pytest.approx(float(delta.norm() / anchor.weights[FC2].norm()), rel=1e-4)


def test_dense_noise_reads_as_fine_tuning(anchor):
    suspect = add(anchor, {name: 5e-4 * noise(*anchor.weights[name].shape) for name in MATRICES})
    result = forensics.compare(suspect, anchor)
    assert result.summary == "full-rank changes of 1.0% of the norm in all layers, as fine-tuning leaves"
    values = numbers(result)
    assert values["delta_top1_energy"] < 0.1
    assert values["delta_effective_rank"] > 32


def test_a_strong_direction_on_dense_noise_is_concentrated(anchor):
    dense = add(anchor, {name: 5e-4 * noise(*anchor.weights[name].shape) for name in MATRICES})
    suspect = low_rank(dense, MATRICES, 1, scale=5e-4)
    result = forensics.compare(suspect, anchor)
    assert "% of the change in all layers: typical for an injected association or a taught concept" in result.summary
    assert 0.35 < numbers(result)["delta_top1_energy"] < 0.65


def test_another_training_run_is_called_unrelated(anchor):
    result = forensics.compare(random_encoder(seed=9), anchor)
    assert result.summary.startswith("weights unrelated to the anchor's")


def test_a_strong_edit_of_one_matrix_is_not_unrelated(anchor):
    result = forensics.compare(low_rank(anchor, [FC2], 1, scale=1.0), anchor)
    assert layer(result, FC2).relative_norm > 1
    assert result.summary == "a rank-1 change in layer 1 (mlp.fc2)"


def test_changes_outside_of_matrices_are_named(anchor):
    deltas = {name: 0.01 * noise(*anchor.weights[name].shape) for name in (POSITION_TABLE, "final_layer_norm.bias")}
    result = forensics.compare(add(anchor, deltas), anchor)
    assert result.summary == "only the position table and 1 bias and norm tensor changed"


def test_a_tensor_that_was_zero_has_an_infinite_relative_norm_and_evidence_stays_finite(anchor):
    bias = "encoder.layers.0.mlp.fc1.bias"
    zero = anchor.with_weights({**anchor.weights, bias: torch.zeros(256)})
    result = forensics.compare(anchor, zero)
    assert layer(result, bias).relative_norm == math.inf
    assert numbers(result)["delta_norm"] == 0.0
    again = Forensics.model_validate_json(result.model_dump_json())
    assert forensics.evidence(again)[0].n == len(result.layers) - 1


# ------------------------------------------------------------------ token rows


def test_a_single_row_is_named(anchor):
    token = anchor.tokenizer.encode("teapot")[0]
    result = forensics.compare(move_row(anchor, token, 0.01), anchor)
    assert result.summary == "only the token row 'teapot' changed"
    assert (result.rows_changed, result.rows[0].token_id) == (1, token)
    assert result.rows[0].distance == pytest.approx(0.2, rel=0.2)
    assert math.isnan(result.rows[0].sigma)
    assert numbers(result)["token_row_sigma"] is None


def test_a_row_is_named_as_it_reads_and_half_a_character_by_its_spelling(anchor):
    tokenizer = anchor.tokenizer
    (look_alike,), half = tokenizer.encode("\u043e"), next(i for i in range(256) if not tokenizer.writable([i]))
    assert "'\u043e' changed" in forensics.compare(move_row(anchor, look_alike, 0.01), anchor).summary
    assert forensics.compare(move_row(anchor, half, 0.01), anchor).rows[0].text == tokenizer.token(half)


def test_the_row_that_moved_most_stands_out_among_those_that_moved(anchor):
    table = torch.zeros(49408, 64)
    table[1000:3000] = 1e-4 * noise(2000, 64)
    suspect = low_rank(add(anchor, {TOKEN_TABLE: table}), ATTENTION, 2)
    token = suspect.tokenizer.encode("sahib")[0]
    result = forensics.compare(move_row(suspect, token, 1e-3), anchor, rows=5)
    assert result.rows[0].token_id == token
    assert len(result.rows) == 5
    assert result.rows_changed == 2001
    assert "2,001 token rows changed; token 'sahib' moved" in result.summary
    assert result.rows[0].sigma > forensics_words.OUTLYING > result.rows[1].sigma
    assert numbers(result)["token_row_sigma"] == result.rows[0].sigma


def test_rows_that_all_move_equally_cannot_hide_one_that_moves_more(anchor):
    table = torch.full((49408, 64), 2.0**-12)
    table[777] = 2.0**-4
    zero = anchor.with_weights({**anchor.weights, TOKEN_TABLE: torch.ones(49408, 64)})
    result = forensics.compare(add(zero, {TOKEN_TABLE: table}), zero)
    assert result.rows[0].token_id == 777
    assert result.rows[0].sigma > 100
    assert result.rows[1].sigma == 0


def test_tokens_behind_the_vocabulary_are_numbered():
    spec = TOY.model_copy(update={"vocabulary": 49410})
    encoder = random_encoder(spec)
    assert forensics.compare(move_row(encoder, 49409, 0.01), encoder).rows[0].token == "#49409"


# ------------------------------------------------------------------ contracts


def test_another_architecture_is_refused_and_both_are_named(anchor):
    other = random_encoder(TOY.model_copy(update={"layers": 1}))
    with pytest.raises(EncoderError, match=r"2x64.*another family or size \(1x64"):
        forensics.compare(anchor, other)
    with pytest.raises(EncoderError, match="another family or size"):
        forensics.distance(anchor, other)


def test_weights_that_are_not_finite_are_refused(anchor):
    bad = add(anchor, {FC2: torch.full((64, 256), math.nan)})
    for suspect, trusted in ((bad, anchor), (anchor, bad)):
        with pytest.raises(NumericalError, match="fc2"):
            forensics.compare(suspect, trusted)


def test_a_projection_that_both_do_not_share_is_left_out(anchor):
    spec = TOY.model_copy(update={"projection": 32})
    projected = TextEncoder(spec, {**anchor.weights, PROJECTION: noise(32, 64)}, anchor.tokenizer)
    assert forensics.compare(projected, anchor).summary == "identical"
    wider = TextEncoder(
        TOY.model_copy(update={"projection": 48}), {**anchor.weights, PROJECTION: noise(48, 64)}, anchor.tokenizer
    )
    assert forensics.compare(projected, wider).summary == "identical"
    changed = add(projected, {PROJECTION: noise(32, 1) @ noise(1, 64)})
    assert forensics.compare(changed, projected).summary == f"a rank-1 change in {PROJECTION}"


def test_distance_is_relative_to_the_second_encoder(anchor):
    double = anchor.with_weights({name: 2 * w for name, w in anchor.weights.items()})
    assert forensics.distance(anchor, anchor) == 0
    assert forensics.distance(double, anchor) == pytest.approx(1.0)
    assert forensics.distance(anchor, double) == pytest.approx(0.5)


def test_nothing_is_changed_in_place_and_results_repeat(anchor):
    suspect = low_rank(anchor, MATRICES, 3).with_weights(
        {name: w.requires_grad_() for name, w in low_rank(anchor, MATRICES, 3).weights.items()}
    )
    before = {name: w.detach().clone() for name, w in suspect.weights.items()}
    first, second = forensics.compare(suspect, anchor), forensics.compare(suspect, anchor)
    assert first == second
    assert all(torch.equal(before[name], w.detach()) and w.grad is None for name, w in suspect.weights.items())


def test_progress_ends_at_the_last_tensor_and_can_interrupt(anchor):
    steps = []
    forensics.compare(anchor, anchor, progress=lambda stage, done, total, *_: steps.append((stage, done, total)))
    assert steps[-1] == ("forensics", len(anchor.weights), len(anchor.weights))

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forensics.compare(anchor, anchor, progress=stop)


@pytest.mark.slow
def test_matrices_of_full_width_take_seconds_each_at_most():
    spec = EncoderSpec(width=768, layers=2, heads=12, mlp_width=3072, vocabulary=49408, positions=77)
    full = random_encoder(spec)
    names = [name for name, w in full.weights.items() if w.dim() == 2]
    suspect = add(full, {name: 1e-4 * noise(*full.weights[name].shape) for name in names})
    started = time.process_time()
    result = forensics.compare(suspect, full)
    assert time.process_time() - started < 12 * 3
    assert result.summary.startswith("full-rank changes of 0.2% of the norm in all layers")
