"""Identity and choice of the anchor, on files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amdet_core import formats, pocket, published, trust
from amdet_core.anchors import Anchors, learn_known, trusted, vouch
from amdet_core.encoder import PROJECTION, TOKEN_TABLE, TextEncoder
from amdet_core.errors import EncoderError
from amdet_core.formats import write_encoder
from amdet_core.trust import TrustStore

from ..conftest import TOY, random_encoder, with_added_tokens


def near(encoder: TextEncoder, scale: float = 0.003) -> TextEncoder:
    generator = torch.Generator().manual_seed(2)
    return encoder.with_weights(
        {name: w + scale * torch.randn(w.shape, generator=generator) for name, w in encoder.weights.items()}
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "config" / "trust.json"


def save(encoder: TextEncoder, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    write_encoder(encoder, path, "comfyui", dtype=dtype)
    return path


def match(choice: str, target: Path, store: Path | None):  # type: ignore[no-untyped-def]
    opened = formats.open_target(target)
    return Anchors.of(choice, store).match(opened.encoders[0], opened)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_trusted_encoder_is_recognised_in_any_precision(
    toy: TextEncoder, tmp_path: Path, store: Path, dtype: torch.dtype
) -> None:
    vouch(save(toy, tmp_path / "official.safetensors"), None, store)
    found = match("auto", save(toy, tmp_path / "copy.safetensors", dtype), store)
    assert found.identical
    assert found.info.name.startswith("official.safetensors")
    assert found.info.chosen == "trusted"


def test_one_changed_weight_is_no_identity(toy: TextEncoder, tmp_path: Path, store: Path) -> None:
    vouch(save(toy, tmp_path / "official.safetensors"), None, store)
    weights = {name: w.clone() for name, w in toy.weights.items()}
    weights["encoder.layers.1.mlp.fc2.weight"][3, 5] += 1e-3
    found = match("auto", save(toy.with_weights(weights), tmp_path / "copy.safetensors"), store)
    assert not found.identical
    assert found.encoder is not None
    assert found.info.name == "official.safetensors"


def test_the_named_anchor_is_used_and_identity_with_it_seen(toy: TextEncoder, tmp_path: Path) -> None:
    anchor = save(toy, tmp_path / "anchor.safetensors")
    found = match(str(anchor), save(near(toy), tmp_path / "suspect.safetensors"), None)
    assert (found.info.name, found.info.chosen, found.identical) == ("anchor.safetensors", "given", False)
    assert match(str(anchor), save(toy, tmp_path / "half.safetensors", torch.float16), None).identical


def test_an_anchor_of_another_size_or_training_run_is_refused(toy: TextEncoder, tmp_path: Path) -> None:
    suspect = save(toy, tmp_path / "suspect.safetensors")
    shallower = save(toy.first_layers(1), tmp_path / "shallower.safetensors")
    with pytest.raises(EncoderError, match=r"expected an anchor with the shape of text_encoder \(2x64"):
        match(str(shallower), suspect, None)
    stranger = save(random_encoder(seed=8), tmp_path / "stranger.safetensors")
    with pytest.raises(EncoderError, match=r"unrelated weights.*--anchor none; in a graph: nothing connected"):
        match(str(stranger), suspect, None)


ADDED = (
    "text_encoder: 5 added token rows behind CLIP's vocabulary (named tokens of a textual inversion?) are not scanned"
)
FEWER = "text_encoder: compared with the first 1 of the anchor's 2 layers"
SHAPES = {"fewer layers": ((1, 0), (FEWER,)), "added tokens": ((2, 5), (ADDED,)), "both": ((1, 5), (ADDED, FEWER))}


@pytest.mark.parametrize(("shape", "notes"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("how", ["given", "trusted"])
def test_an_encoder_with_fewer_layers_or_added_tokens_has_an_anchor(
    toy: TextEncoder, tmp_path: Path, store: Path, shape: tuple[int, int], notes: tuple[str, ...], how: str
) -> None:
    official = save(toy, tmp_path / "official.safetensors")
    if how == "trusted":
        vouch(official, None, store)
    choice, layers, added = str(official) if how == "given" else "auto", *shape
    suspect = with_added_tokens(near(toy).first_layers(layers), added)
    found = match(choice, save(suspect, tmp_path / "suspect.safetensors"), store)
    assert (found.identical, found.info.chosen, found.notes) == (False, how, notes)
    assert (found.encoder.spec.layers, found.encoder.spec.vocabulary) == (layers, TOY.vocabulary)
    assert found.fingerprint == trust.fingerprint(suspect)

    same = save(with_added_tokens(toy.first_layers(layers), added), tmp_path / "same.safetensors", torch.float16)
    found = match(choice, same, store)
    assert (found.identical, found.encoder, found.notes) == (True, None, notes)
    assert found.info.name == "official.safetensors, cast to float16"


def test_an_anchor_with_added_tokens_serves(toy: TextEncoder, tmp_path: Path, store: Path) -> None:
    official = save(with_added_tokens(toy, 3), tmp_path / "official.safetensors")
    vouch(official, None, store)
    suspect = save(near(toy), tmp_path / "suspect.safetensors")
    for choice in ("auto", str(official)):
        assert match(choice, suspect, store).encoder.spec.vocabulary == TOY.vocabulary
        assert match(choice, save(toy, tmp_path / "same.safetensors"), store).identical
    assert match("none", official, store).identical


def test_a_change_that_prompts_reach_is_no_identity_in_any_shape(toy: TextEncoder, tmp_path: Path, store: Path) -> None:
    vouch(save(toy, tmp_path / "official.safetensors"), None, store)
    table = toy.weights[TOKEN_TABLE].clone()
    table[-1, 0] += 1e-3
    changed = toy.with_weights({**toy.weights, TOKEN_TABLE: table})
    for suspect in (with_added_tokens(changed, 5), changed.first_layers(1)):
        assert not match("auto", save(suspect, tmp_path / "suspect.safetensors"), store).identical


def test_without_a_trusted_encoder_of_its_shape_there_is_a_note_what_to_do(toy: TextEncoder, tmp_path: Path) -> None:
    found = match("auto", save(toy, tmp_path / "suspect.safetensors"), tmp_path / "none.json")
    assert found.encoder is None
    assert "amdet trust add" in found.notes[0]


def test_none_compares_with_nothing_but_still_knows_trusted_values(
    toy: TextEncoder, tmp_path: Path, store: Path
) -> None:
    official = save(toy, tmp_path / "official.safetensors")
    vouch(official, None, store)
    assert match("none", official, store).identical
    assert match("none", save(near(toy), tmp_path / "other.safetensors"), store).encoder is None


def test_the_shipped_encoder_is_known_and_anchors_its_kin(tmp_path: Path, store: Path) -> None:
    pocket.export(tmp_path, "comfyui")
    assert match("auto", tmp_path / "clean.safetensors", store).info.chosen == "shipped"
    benign = match("auto", tmp_path / "benign.safetensors", store)
    assert not benign.identical
    assert (benign.info.name, benign.info.chosen) == ("amdet pocket", "shipped")


def test_a_file_with_a_known_hash_teaches_its_values(
    toy: TextEncoder, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(toy, tmp_path / "renamed.safetensors")
    digest = formats.file_sha256(formats.open_target(path))
    known = published.KnownFile(name="official", sha256=digest, bytes=path.stat().st_size, evidence="test")
    monkeypatch.setattr(published, "KNOWN_FILES", {digest: known})
    assert match("auto", path, store).identical
    assert [entry.source for entry in trusted(store)] == ["shipped", "known-hash"]
    assert match("auto", save(toy, tmp_path / "cast.safetensors", torch.bfloat16), store).identical


def test_files_of_known_hash_become_anchors_and_are_hashed_once(
    toy: TextEncoder, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = save(toy, tmp_path / "clip_l.safetensors")
    digest = formats.file_sha256(formats.open_target(official))
    known = published.KnownFile(name="official", sha256=digest, bytes=official.stat().st_size, evidence="a test")
    monkeypatch.setattr(published, "KNOWN_FILES", {digest: known})
    same_size = save(near(toy), tmp_path / "stranger.safetensors")
    assert learn_known([official, same_size, tmp_path / "missing"], TrustStore(store)) != ()
    assert [(e.name, e.source) for e in TrustStore(store).entries] == [("official text_encoder", "known-hash")]
    found = match("auto", save(near(toy, 0.001), tmp_path / "suspect.safetensors"), store)
    assert found.info is not None
    assert found.info.chosen == "trusted"
    monkeypatch.setattr(published, "known_file", lambda path: pytest.fail(f"{path} was hashed again"))
    learn_known([official], TrustStore(store))


# ------------------------------------------------------------------ the text projection


def projected(encoder: TextEncoder, seed: int | None) -> TextEncoder:
    """The encoder with a random text projection; None: without one."""
    if seed is None:
        return encoder
    spec = encoder.spec.model_copy(update={"projection": 32})
    weight = torch.randn((32, spec.width), generator=torch.Generator().manual_seed(seed))
    return TextEncoder(spec, {**encoder.weights, PROJECTION: weight}, encoder.tokenizer)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("ours", "theirs", "identical", "note"),
    [
        (1, 1, True, None),
        (None, 1, True, None),
        (2, 1, False, "its text projection differs from the anchor's by 1"),
        (1, None, True, "its text projection has none to be compared with"),
    ],
)
def test_another_text_projection_is_no_identity_and_one_that_cannot_be_compared_is_named(
    toy: TextEncoder, tmp_path: Path, store: Path, stored: bool, dtype: torch.dtype,
    ours: int | None, theirs: int | None, identical: bool, note: str | None,
) -> None:  # fmt: skip
    official = save(projected(toy, theirs), tmp_path / "official.safetensors")
    if stored:
        vouch(official, None, store)
    suspect = save(projected(toy, ours), tmp_path / "suspect.safetensors", dtype)
    found = match("auto" if stored else str(official), suspect, store)
    assert found.identical is identical
    said = [line for line in found.notes if "projection" in line]
    assert len(said) == (note is not None)
    assert note is None or note in said[0]
