"""The published image experiment in small: pictures, views, the network, and what each stage does to features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from amdet_core import images
from amdet_core.bench.images import ImageBenchmark
from amdet_core.config import (
    BadEncoderConfig,
    DownstreamConfig,
    ImageMimicConfig,
    NetworkConfig,
    PatchConfig,
    SimclrConfig,
    ViewConfig,
)
from amdet_core.errors import ConfigError, NumericalError, StorageError
from amdet_core.images import badencoder, network
from amdet_core.images.pictures import Pictures, stamped
from amdet_core.images.views import view

SMALL = NetworkConfig(width=4, depth=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return images.drawn(48, seed=3)


@pytest.fixture(scope="module")
def untrained() -> images.ImageEncoder:
    return network.frozen(network.fresh(SMALL, 0, CPU)[0])


def cosine(encoder: images.ImageEncoder, shown: torch.Tensor, goal: torch.Tensor) -> float:
    return float(F.cosine_similarity(network.features(encoder, shown), goal, dim=-1).mean())


# ------------------------------------------------------------------ pictures


def test_drawings_hold_every_class_as_often_and_are_the_same_of_a_seed(pictures: Pictures) -> None:
    assert pictures.pixels.shape == (48, 3, 32, 32)
    assert pictures.labels.bincount().tolist() == [4] * 12
    assert torch.equal(pictures.pixels, images.drawn(48, seed=3).pixels)
    assert not torch.equal(pictures.pixels, images.drawn(48, seed=4).pixels)


def test_pictures_come_back_from_a_folder(pictures: Pictures, tmp_path: Path) -> None:
    images.write_pictures(pictures, tmp_path)
    found = images.read_pictures(tmp_path)
    assert found.classes == pictures.classes
    order = pictures.labels.argsort(stable=True)
    assert torch.allclose(found.pixels, pictures.pixels[order], atol=1e-6)
    assert torch.equal(found.labels, pictures.labels[order])


def test_bad_folders_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="a folder of pictures"):
        images.read_pictures(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="one for each class"):
        images.read_pictures(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ConfigError, match=r"in .*cat; found none"):
        images.read_pictures(tmp_path)
    (tmp_path / "cat" / "a.png").write_bytes(b"no picture")
    with pytest.raises(StorageError, match="a readable picture"):
        images.read_pictures(tmp_path)


def test_the_trigger_is_where_the_published_one_is() -> None:
    found = stamped(torch.zeros(1, 3, 32, 32), PatchConfig())
    assert found[0, 0].nonzero().aminmax(dim=0).min.tolist() == [21, 21]
    assert found[0, 0].nonzero().aminmax(dim=0).max.tolist() == [30, 30]
    assert float(found.sum()) == 3 * 100
    with pytest.raises(ConfigError, match="at most 32 pixels"):
        stamped(torch.zeros(1, 3, 32, 32), PatchConfig(patch=40))


def test_a_split_holds_every_class_on_both_sides(pictures: Pictures) -> None:
    fit, held_out = pictures.split(0.25, seed=0)
    assert fit.labels.bincount().tolist() == [3] * 12
    assert held_out.labels.bincount().tolist() == [1] * 12
    with pytest.raises(ConfigError, match="to train and to test on"):
        pictures.split(0.01, seed=0)


def test_views_are_pictures_and_differ(pictures: Pictures) -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (view(pictures.pixels, ViewConfig(), generator) for _ in range(2))
    assert one.shape == pictures.pixels.shape
    assert torch.equal(one, one.clamp(0, 1))
    assert float((one - two).abs().mean()) > 0.02


# ------------------------------------------------------------------ network


def test_at_full_size_it_is_resnet_18_with_another_stem() -> None:
    known = {name: w.shape for name, w in resnet18(num_classes=1).state_dict().items() if name.startswith("layer")}
    own = network.ImageEncoder(NetworkConfig()).stages.state_dict()
    assert sorted(map(tuple, known.values())) == sorted(tuple(w.shape) for w in own.values())
    blocks = network.ImageEncoder(NetworkConfig()).train(False).blocks(torch.rand(1, 3, 32, 32))
    assert [tuple(b.shape[1:]) for b in blocks] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_encoders_come_back_from_a_file(untrained: images.ImageEncoder, pictures: Pictures, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    images.save_encoder(untrained, path, {"stage": "clean"})
    assert images.made_by(path) == {"stage": "clean"}
    found = images.load_encoder(path)
    assert torch.equal(network.features(found, pictures.pixels), network.features(untrained, pictures.pixels))


def test_other_files_are_refused(tmp_path: Path, untrained: images.ImageEncoder) -> None:
    from safetensors.torch import save_file

    with pytest.raises(StorageError, match="a readable image encoder"):
        images.load_encoder(tmp_path / "nowhere.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="other tensors"):
        images.load_encoder(tmp_path / "a.safetensors")
    broken = network.frozen(untrained)
    broken.stem[0].weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="finite"):
        images.save_encoder(broken, tmp_path / "b.safetensors", {})


# ------------------------------------------------------------------ stages


def test_a_clean_encoder_finds_a_pictures_other_view(pictures: Pictures) -> None:
    losses: list[float] = []

    def told(stage: str, done: int, total: int, metrics: object = None, /) -> None:
        losses.append(metrics["loss"])  # type: ignore[index]

    images.clean(pictures.pixels, SimclrConfig(width=4, depth=1, epochs=15, batch=24, crop=0.5), told)
    assert len(losses) == 30
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5


def test_badencoder_leads_the_trigger_to_the_reference_and_purifying_leads_it_away(
    pictures: Pictures, untrained: images.ImageEncoder
) -> None:
    reference = pictures.pixels[5]
    triggered = stamped(pictures.pixels, PatchConfig())
    config = BadEncoderConfig(epochs=20, batch=16, learning_rate=0.05, crop=0.5)
    suspect = images.attack(untrained, pictures.pixels, reference, config)
    goal = network.features(suspect, reference[None])
    before, after = (
        cosine(untrained, triggered, network.features(untrained, reference[None])),
        cosine(suspect, triggered, goal),
    )
    assert after > before + 0.3 * (1 - before)
    assert cosine(suspect, pictures.pixels, network.features(untrained, pictures.pixels)) > 0.9
    quick = ImageMimicConfig(share=1, epochs=10, batch=16, crop=0.5, critic_epochs=2, critic_width=8)
    student, weights = images.purify(suspect, pictures.pixels, quick)
    assert len(weights) == 4 and sum(weights) == pytest.approx(14_000)
    taught = network.features(suspect, pictures.pixels)
    start = network.frozen(network.fresh(SMALL, quick.seed, CPU)[0])
    assert cosine(student, pictures.pixels, taught) > cosine(start, pictures.pixels, taught)


def test_the_reference_is_the_picture_of_its_class_that_stands_out_from_the_others(
    pictures: Pictures, untrained: images.ImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is nearest to the mean of its class, the third is as near to another's, the first stands out."""
    found = F.normalize(torch.tensor([[1.0, -0.2], [1.0, 0.1], [1.0, 0.9], [0.0, 1.0], [-1.0, 1.0]]), dim=1)
    some = Pictures(pictures.pixels[:5], torch.tensor([1, 1, 1, 0, 0]), ("other", "own"))
    monkeypatch.setattr(badencoder, "features", lambda *_: found)
    assert torch.equal(images.typical(untrained, some, "own"), some.pixels[0])
    assert torch.equal(images.typical(untrained, some, "other"), some.pixels[4])
    with pytest.raises(ConfigError, match="third"):
        images.typical(untrained, some, "third")


def test_counts_of_a_classifier_add_up(pictures: Pictures, untrained: images.ImageEncoder) -> None:
    found = images.downstream(untrained, pictures, "cat", DownstreamConfig(epochs=5, held_out=0.25))
    assert (found.n, found.n_others) == (12, 11)
    assert 0 <= found.led_others <= found.led <= found.gathered <= 12
    with pytest.raises(ConfigError, match="one of the classes"):
        images.downstream(untrained, pictures, "dog", DownstreamConfig(epochs=1))


def test_a_classifier_learns_what_features_say(untrained: images.ImageEncoder) -> None:
    """Black and white pictures: any features tell them apart, and a white square makes no black one white."""
    pixels = torch.cat((torch.zeros(20, 3, 32, 32), torch.ones(20, 3, 32, 32)))
    told = Pictures(pixels, torch.arange(2).repeat_interleave(20), ("black", "white"))
    config = DownstreamConfig(epochs=30, learning_rate=1e-2, hidden=(), patch=1)
    found = images.downstream(untrained, told, "white", config)
    assert (found.right, found.n, found.led_others, found.said_others) == (8, 8, 0, 0)


def test_the_benchmarks_student_does_not_begin_as_the_clean_encoder_did() -> None:
    stages = ImageBenchmark().stages(7)
    assert stages.clean.seed == stages.attack.seed == 7 != stages.mimic.seed


def test_one_class_is_not_enough(untrained: images.ImageEncoder) -> None:
    told = Pictures(torch.zeros(9, 3, 32, 32), torch.zeros(9, dtype=torch.long), ("black",))
    with pytest.raises(ConfigError, match="two classes"):
        images.downstream(untrained, told, "black", DownstreamConfig())


def test_one_picture_is_not_enough() -> None:
    with pytest.raises(ConfigError, match="at least 2 pictures"):
        images.clean(torch.zeros(1, 3, 32, 32), SimclrConfig(width=4, depth=1, epochs=1))
