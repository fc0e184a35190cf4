from __future__ import annotations

import hashlib
import json
import re
import struct
import time
from pathlib import Path

import pytest
import torch

from amdet_core import forensics, published, trust
from amdet_core.encoder import PROJECTION, TOKEN_TABLE, TextEncoder, expected_shapes
from amdet_core.errors import ConfigError, StorageError
from amdet_core.published import KNOWN_FILES, known_file
from amdet_core.records import EncoderSpec
from amdet_core.tokenizer import clip_tokenizer
from amdet_core.trust import CASTS, TrustEntry, TrustStore, fingerprint, trust_entry

TOY = EncoderSpec(width=64, layers=2, heads=1, mlp_width=256, vocabulary=500, positions=77)
BIAS = "final_layer_norm.bias"


def random_encoder(spec: EncoderSpec = TOY, seed: int = 0) -> TextEncoder:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in expected_shapes(spec).items()}
    return TextEncoder(spec, weights, clip_tokenizer())


def near(encoder: TextEncoder, by: float, seed: int = 1) -> TextEncoder:
    generator = torch.Generator().manual_seed(seed)
    return encoder.with_weights(
        {name: w + by * torch.randn(w.shape, generator=generator) for name, w in encoder.weights.items()}
    )


def projected(encoder: TextEncoder, seed: int = 0) -> TextEncoder:
    spec = encoder.spec.model_copy(update={"projection": 32})
    weight = torch.randn((32, spec.width), generator=torch.Generator().manual_seed(seed))
    return TextEncoder(spec, {**encoder.weights, PROJECTION: weight}, encoder.tokenizer)


def changed(encoder: TextEncoder, name: str, value: torch.Tensor) -> TextEncoder:
    return encoder.with_weights({**encoder.weights, name: value})


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return random_encoder()


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "config" / "trusted.json")


# ------------------------------------------------------------------ fingerprints


def test_a_fingerprint_is_the_documented_hash(encoder):
    expected = hashlib.sha256()
    for name in sorted(encoder.weights):
        w = encoder.weights[name]
        expected.update(f"{name}\n{'x'.join(map(str, w.shape))}\n".encode())
        expected.update(struct.pack(f"<{w.numel()}f", *w.flatten().tolist()))
    assert fingerprint(encoder) == expected.hexdigest()


def test_stored_precision_layout_and_order_do_not_matter():
    half = {name: w.to(torch.float16) for name, w in random_encoder().weights.items()}
    stored = TextEncoder(TOY, half, clip_tokenizer())
    same = {
        fingerprint(stored),
        fingerprint(stored.to("cpu", torch.float32)),
        fingerprint(stored.to("cpu", torch.float64)),
        fingerprint(stored.with_weights(dict(reversed(half.items())))),
        fingerprint(stored.with_weights({n: w.t().contiguous().t() if w.dim() == 2 else w for n, w in half.items()})),
    }
    assert len(same) == 1


def test_the_projection_and_the_conventions_are_left_out(encoder):
    spec = TOY.model_copy(update={"projection": 32, "pad_id": 0, "pooling": "eos-argmax", "activation": "gelu"})
    projected = TextEncoder(spec, {**encoder.weights, PROJECTION: torch.ones(32, 64)}, encoder.tokenizer)
    assert fingerprint(projected) == fingerprint(encoder)


def test_zeros_of_either_sign_are_one_value(encoder):
    zero = changed(encoder, BIAS, torch.zeros(64))
    assert fingerprint(zero) == fingerprint(changed(encoder, BIAS, -torch.zeros(64)))


@pytest.mark.parametrize("name", [TOKEN_TABLE, BIAS, "encoder.layers.1.mlp.fc2.weight"])
def test_the_smallest_change_of_any_tensor_is_seen(encoder, name):
    w = encoder.weights[name].clone()
    last = w.view(-1)[-1:]
    last.copy_(torch.nextafter(last, torch.ones(1)))
    assert fingerprint(changed(encoder, name, w)) != fingerprint(encoder)


def test_two_tensors_that_change_places_are_seen(encoder):
    q, k = (f"encoder.layers.0.self_attn.{part}_proj.weight" for part in "qk")
    swapped = encoder.with_weights({**encoder.weights, q: encoder.weights[k], k: encoder.weights[q]})
    assert fingerprint(swapped) != fingerprint(encoder)


def test_hashing_changes_nothing(encoder):
    weights = {name: w.clone().requires_grad_() for name, w in encoder.weights.items()}
    assert fingerprint(encoder.with_weights(weights)) == fingerprint(encoder)
    assert all(torch.equal(w, encoder.weights[name]) for name, w in weights.items())


def test_precisions_are_those_of_forensics():
    assert ("float32", *forensics.CASTS) == CASTS


# ------------------------------------------------------------------ store


def test_a_missing_file_is_an_empty_store(store):
    assert store.entries == ()
    assert store.match("0" * 64) is None
    assert not store.path.exists()


def test_an_entry_survives_the_file(store, encoder):
    entry = trust_entry(encoder, "mine", slot="clip_l", path=Path("a.safetensors"), file_sha256="a" * 64, note="ü")
    store.add(entry)
    assert TrustStore(store.path).entries == (entry,)
    assert Path(entry.path).is_absolute()


@pytest.mark.parametrize("cast", CASTS)
def test_the_encoder_and_its_casts_are_recognised(store, encoder, cast):
    store.add(trust_entry(encoder, "mine"))
    suspect = encoder.to("cpu", getattr(torch, cast))
    entry, found = store.match(fingerprint(suspect))
    assert (entry.name, found) == ("mine", cast)


def test_a_file_that_only_rounds_to_a_trusted_one_is_not_recognised(store, encoder):
    half = encoder.to("cpu", torch.float16)
    store.add(trust_entry(half, "half"))
    assert store.match(fingerprint(encoder)) is None
    assert store.match(fingerprint(half))[0].name == "half"


def test_equal_values_come_before_casts(store, encoder):
    store.add(trust_entry(encoder, "full"))
    store.add(trust_entry(encoder.to("cpu", torch.float16), "half"))
    entry, cast = store.match(fingerprint(encoder.to("cpu", torch.float16)))
    assert (entry.name, cast) == ("half", "float32")


def test_adding_again_replaces_by_values(store, encoder):
    store.add(trust_entry(encoder, "old"))
    store.add(trust_entry(random_encoder(seed=1), "other"))
    store.add(trust_entry(encoder, "new"))
    before = store.path.read_bytes()
    store.add(trust_entry(encoder, "new"))
    assert [entry.name for entry in store.entries] == ["other", "new"]
    assert store.path.read_bytes() == before


def test_what_a_user_vouched_for_stays_beside_a_known_file_of_the_same_values(store, encoder, tmp_path):
    full = projected(encoder)
    place, hashed = tmp_path / "mine", {"source": "known-hash", "file_sha256": "a" * 64}
    place.touch()
    store.add(trust_entry(full, "mine", path=place))
    store.add(trust_entry(encoder, "official", path=tmp_path / "installed", **hashed))
    (kept,) = store.entries
    assert (kept.name, kept.source, kept.path) == ("mine", "user", str(place))
    assert kept.projections and not kept.has_projection(trust.projection_fingerprint(projected(encoder, 1)))
    place.unlink()
    store.add(trust_entry(encoder, "official", path=tmp_path / "installed", **hashed))
    (found,) = store.entries
    assert (found.name, found.path, found.projections) == ("official", str(tmp_path / "installed"), kept.projections)


def test_a_user_names_a_known_file_anew_and_its_projection_is_learnt(store, encoder, tmp_path):
    store.add(trust_entry(encoder, "official", source="known-hash", path=tmp_path))
    store.add(trust_entry(projected(encoder), "another", source="known-hash", path=tmp_path / "copy"))
    assert [(one.name, bool(one.projections)) for one in store.entries] == [("official", True)]
    store.add(trust_entry(encoder, "mine"))
    assert [(one.name, bool(one.projections)) for one in store.entries] == [("mine", True)]


def test_the_nearest_anchor_is_so_by_its_layers_whatever_its_projection(encoder, tmp_path):
    own, bare = projected(encoder), near(encoder, 0.001)
    found, _ = trust.choose_anchor(
        projected(encoder, 1),
        [trust_entry(own, "original", path=tmp_path)],
        lambda _: [own],
        shipped=[("shipped", bare)],
    )
    assert found is not None and found.info.name == "original"


def test_removing_by_name_and_by_digits(store, encoder):
    first, second = trust_entry(encoder, "a"), trust_entry(random_encoder(seed=1), "b")
    store.add(first)
    store.add(second)
    assert store.remove("a") == first
    assert store.remove(second.fingerprint[:8]) == second
    assert store.entries == ()


def test_removing_needs_exactly_one(store, encoder):
    store.add(trust_entry(encoder, "same"))
    store.add(trust_entry(random_encoder(seed=1), "same"))
    before = store.path.read_bytes()
    for name, found in (("same", "2; these: same"), ("unknown", "0; trusted are: same"), ("", "0;")):
        with pytest.raises(ConfigError, match=found):
            store.remove(name)
    with pytest.raises(ConfigError):
        store.remove(store.entries[0].fingerprint[:7])
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b'{"version": 2, "entries": []}',
        b'{"entries": [{"name": "x"}]}',
        b'{"entries": [], "more": 1}',
    ],
)
def test_a_damaged_file_is_an_error_and_stays(store, encoder, content):
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(store.path))):
        store.match("0" * 64)
    with pytest.raises(ConfigError, match="it has not been changed"):
        store.add(trust_entry(encoder, "mine"))
    assert store.path.read_bytes() == content


@pytest.mark.parametrize("fingerprints", [{}, {"float16": "0" * 64}, {"float32": "short"}, {"int8": "0" * 64}])
def test_an_entry_with_wrong_fingerprints_is_an_error(store, encoder, fingerprints):
    store.add(trust_entry(encoder, "mine"))
    content = json.loads(store.path.read_bytes())
    content["entries"][0]["fingerprints"] = fingerprints
    store.path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="fingerprint"):
        _ = store.entries


def test_a_store_that_cannot_be_read_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="list of trusted encoders"):
        _ = TrustStore(tmp_path).entries


# ------------------------------------------------------------------ anchors


class Files:
    """Encoders by path, as a reader of files would return them."""

    def __init__(self) -> None:
        self.found: dict[str, list[TextEncoder]] = {}
        self.opened: list[Path] = []

    def trust(self, store: TrustStore, name: str, encoder: TextEncoder) -> None:
        store.add(trust_entry(encoder, name, path=Path(f"/models/{name}")))
        self.found[f"/models/{name}"] = [encoder]

    def __call__(self, path: Path) -> list[TextEncoder]:
        self.opened.append(path)
        if path.as_posix() not in self.found:
            raise StorageError("a file", f"none at {path}", "Check the path.")
        return self.found[path.as_posix()]


@pytest.fixture
def files() -> Files:
    return Files()


def test_the_nearest_trusted_encoder_is_the_anchor(store, files, encoder):
    files.trust(store, "far", near(encoder, 0.01))
    files.trust(store, "close", near(encoder, 0.001, seed=2))
    anchor, notes = trust.choose_anchor(
        encoder, store.entries, files, shipped=[("mid", near(encoder, 0.005))], slot="clip_l"
    )
    assert anchor.info.model_dump() == {
        "encoder": "clip_l",
        "name": "close",
        "path": "/models/close",
        "fingerprint": fingerprint(anchor.encoder),
        "chosen": "trusted",
    }
    assert notes == ("close: nearest of 3 trusted encoders (distance 0.02)",)


def test_the_right_encoder_of_a_file_is_taken(store, files, encoder):
    trusted = near(encoder, 0.001)
    files.trust(store, "pair", trusted)
    small = random_encoder(TOY.model_copy(update={"layers": 1}))
    files.found["/models/pair"] = [small, random_encoder(seed=5), trusted]
    anchor, notes = trust.choose_anchor(encoder, store.entries, files)
    assert anchor.encoder is trusted
    assert notes == ()


def test_a_replaced_file_is_refused_with_a_note(store, files, encoder):
    files.trust(store, "mine", near(encoder, 0.001))
    files.found["/models/mine"] = [near(encoder, 0.001, seed=3)]
    anchor, notes = trust.choose_anchor(encoder, store.entries, files)
    assert anchor is None
    assert notes == ("mine: refused as anchor, /models/mine no longer holds the values that were trusted",)


def test_a_file_that_is_gone_is_a_note_and_the_next_is_used(store, files, encoder):
    files.trust(store, "gone", near(encoder, 0.001))
    files.trust(store, "here", near(encoder, 0.002, seed=3))
    del files.found["/models/gone"]
    anchor, notes = trust.choose_anchor(encoder, store.entries, files)
    assert anchor.info.name == "here"
    assert len(notes) == 1
    assert notes[0].startswith("gone: not used as anchor, /models/gone can't be read: expected a file")


def test_other_architectures_and_entries_without_a_file_are_not_opened(store, files, encoder):
    files.trust(store, "other", random_encoder(TOY.model_copy(update={"layers": 1})))
    store.add(trust_entry(near(encoder, 0.001), "hash only"))
    assert trust.choose_anchor(encoder, store.entries, files) == (None, ())
    assert files.opened == []


def test_another_training_run_is_no_anchor(store, files, encoder):
    files.trust(store, "stranger", random_encoder(seed=9))
    anchor, notes = trust.choose_anchor(encoder, store.entries, files)
    assert anchor is None
    assert notes[0].startswith("stranger: not used as anchor, its weights are unrelated")


def test_a_shipped_encoder_is_an_anchor(store, files, encoder):
    shipped = near(encoder, 0.001)
    anchor, notes = trust.choose_anchor(encoder, store.entries, files, shipped=[("pocket", shipped)])
    assert anchor.encoder is shipped
    assert (anchor.info.chosen, anchor.info.fingerprint) == ("shipped", fingerprint(shipped))
    assert notes == ()


def test_a_damaged_store_is_not_passed_over(store, files, encoder):
    store.path.parent.mkdir()
    store.path.write_bytes(b"{")
    with pytest.raises(ConfigError):
        trust.choose_anchor(encoder, store.entries, files)


# ------------------------------------------------------------------ published files


def test_known_hashes_are_well_formed_and_sizes_tell_files_apart():
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in KNOWN_FILES)
    assert len({file.bytes for file in KNOWN_FILES.values()}) == len(KNOWN_FILES) == 13


def test_only_bytes_with_a_known_hash_are_a_known_file(tmp_path, monkeypatch):
    data = b"weights" * 1000
    digest = hashlib.sha256(data).hexdigest()
    known = published.KnownFile(name="toy", sha256=digest, bytes=len(data), evidence="test")
    monkeypatch.setattr(published, "KNOWN_FILES", {digest: known})
    path = tmp_path / "file"
    path.write_bytes(data)
    assert known_file(path) == known
    path.write_bytes(data[:-1] + b"!")
    assert known_file(path) is None


def test_a_file_of_another_size_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"small")

    def refuse(*_, **__):
        raise AssertionError("the file was opened")

    monkeypatch.setattr(Path, "open", refuse)
    assert known_file(path) is None
    assert known_file(tmp_path) is None


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="nowhere"):
        known_file(tmp_path / "nowhere")


def test_an_entry_is_frozen(encoder):
    entry = trust_entry(encoder, "mine")
    assert TrustEntry.model_validate_json(entry.model_dump_json()) == entry
    with pytest.raises(ValueError, match="frozen"):
        entry.name = "other"


@pytest.mark.slow
def test_a_full_size_encoder_is_hashed_in_a_few_seconds():
    spec = EncoderSpec(width=768, layers=12, heads=12, mlp_width=3072, vocabulary=49408, positions=77)
    full = random_encoder(spec)
    started = time.process_time()
    fingerprint(full)
    assert time.process_time() - started < 5
