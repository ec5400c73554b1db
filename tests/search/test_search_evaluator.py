from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from growtas import SearchSpace, Subnet, Supernet
from growtas.search import Evaluator, SearchConfig, model_cost, search

MEAN, STD = (0.3, 0.5, 0.7), (0.2, 0.25, 0.3)


class ChannelMeans(nn.Module):
    """Logits are channel means; remembers the batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor, subnet: Subnet | None) -> torch.Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(images)
        return images.mean((2, 3)) * self.scale


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 4, 5), generator=g, dtype=torch.uint8)


def classes(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(seed))


def normalized(images: torch.Tensor) -> torch.Tensor:
    """As torchvision's ToTensor and Normalize do."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return images.float().div(255).sub(mean).div(std)


class Loader:
    """Batches of a dataset, counting how often it is read."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch: int = 7) -> None:
        self.dataset = labels
        self.images, self.labels, self.batch, self.reads = images, labels, batch, 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.reads += 1
        yield from zip(self.images.split(self.batch), self.labels.split(self.batch), strict=True)


SUBNET = Subnet(32, (2,), (2.0,))


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_the_score_is_that_of_all_images_whatever_the_batches(batch_size: int) -> None:
    images, labels = normalized(pixels(20)), classes(20)
    score = Evaluator(ChannelMeans(), images, labels, batch_size=batch_size).score(SUBNET)
    logits = images.mean((2, 3))
    assert score.count == 20
    assert score.accuracy == int((logits.argmax(1) == labels).sum()) / 20
    assert score.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_each_image_is_seen_once_in_evaluation_mode_and_the_modes_come_back() -> None:
    model = ChannelMeans()
    model.add_module("frozen", nn.Dropout())
    model.train()
    model.frozen.eval()
    images = normalized(pixels(20))
    Evaluator(model, images, classes(20), batch_size=8).score(SUBNET)
    assert torch.equal(torch.cat(model.seen), images)
    assert model.training
    assert not model.frozen.training


def test_what_a_model_caches_while_it_is_scored_can_be_trained_with() -> None:
    class Caching(ChannelMeans):
        cached = None

        def forward(self, images: torch.Tensor, subnet: Subnet | None) -> torch.Tensor:
            if self.cached is None:
                self.cached = torch.arange(1.0, 4.0) + 0
            return images.mean((2, 3)) * self.scale * self.cached

    model = Caching()
    Evaluator(model, normalized(pixels(5)), classes(5)).score(SUBNET)
    model(normalized(pixels(5)), SUBNET).sum().backward()
    assert model.scale.grad is not None


def test_uint8_images_are_normalised_as_torchvision_does() -> None:
    model = ChannelMeans()
    evaluator = Evaluator(model, pixels(9), classes(9), mean=MEAN, std=STD)
    evaluator.score(SUBNET)
    assert torch.equal(torch.cat(model.seen), normalized(pixels(9)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("on_device", [True, False])
def test_on_a_gpu_images_stay_there_or_pinned_and_give_the_same_input(
    monkeypatch: pytest.MonkeyPatch, on_device: bool
) -> None:
    if not on_device:
        monkeypatch.setattr("growtas.search.evaluator._DEVICE_SHARE", 0.0)
    model = ChannelMeans().cuda()
    images, labels = pixels(300), classes(300)
    evaluator = Evaluator(model, images, labels, mean=MEAN, std=STD, batch_size=128)
    assert evaluator._images.is_cuda == on_device
    score = evaluator.score(SUBNET)
    assert torch.equal(torch.cat(model.seen).cpu(), normalized(images))
    on_cpu = Evaluator(ChannelMeans(), images, labels, mean=MEAN, std=STD).score(SUBNET)
    assert score.accuracy == pytest.approx(on_cpu.accuracy, abs=0.01)
    assert score.loss == pytest.approx(on_cpu.loss, rel=1e-5)


def test_a_loader_is_read_once_and_kept_as_uint8_where_exact() -> None:
    loader, model = Loader(normalized(pixels(40)), classes(40)), ChannelMeans()
    evaluator = Evaluator.from_loader(model, loader, mean=MEAN, std=STD, batch_size=16)
    assert evaluator._images.dtype == torch.uint8
    first = evaluator.score(SUBNET)
    assert evaluator.score(SUBNET) == first
    assert loader.reads == 1
    assert torch.equal(torch.cat(model.seen[:3]), loader.images)
    plain = Evaluator.from_loader(ChannelMeans(), loader, batch_size=16)
    assert plain._images.dtype == torch.float32
    assert plain.score(SUBNET) == first


def test_every_level_survives_uint8() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    loader = Loader(normalized(images), torch.tensor([0]))
    model = ChannelMeans()
    evaluator = Evaluator.from_loader(model, loader, mean=MEAN, std=STD)
    assert evaluator._images.dtype == torch.uint8
    evaluator.score(SUBNET)
    assert torch.equal(model.seen[0], loader.images)


def test_images_that_uint8_cannot_hold_stay_as_they_are() -> None:
    images = normalized(pixels(20))
    images[17] += 1e-3  # in the third batch, after two that were exact
    model = ChannelMeans()
    evaluator = Evaluator.from_loader(model, Loader(images, classes(20)), mean=MEAN, std=STD)
    evaluator.score(SUBNET)
    assert torch.equal(torch.cat(model.seen), images)


def test_fewer_images_are_spread_over_the_loader() -> None:
    images, labels = normalized(pixels(40)), torch.arange(40) // 10
    images[:, 0, 0, 0] = torch.arange(40.0)
    evaluator = Evaluator.from_loader(ChannelMeans(), Loader(images, labels), max_images=8)
    assert evaluator.count == 8
    assert evaluator._labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(evaluator._images[:, 0, 0, 0].tolist())) == 8
    everything = Evaluator.from_loader(ChannelMeans(), Loader(images, labels), max_images=99)
    assert everything.count == 40


def test_logits_that_are_not_finite_count_as_wrong() -> None:
    images = torch.zeros(4, 3, 2, 2)
    images[:, 0] = 1.0
    images[2:] = float("nan")
    score = Evaluator(ChannelMeans(), images, torch.zeros(4, dtype=torch.int64)).score(SUBNET)
    assert score.accuracy == 0.5
    assert score.loss != score.loss


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (torch.zeros(4, 3, 2), torch.zeros(4).long(), ValueError, r"\[4, 3, 2\] and \[4\]"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(3).long(), ValueError, r"2, 2\] and \[3\]"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4), TypeError, "integer dtype, got torch.float32"),
        (torch.zeros(4, 3, 2, 2).int(), torch.zeros(4).long(), TypeError, "got torch.int32"),
        (torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, -1, 0]), ValueError, "not be negative"),
        (torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 7, 0]), ValueError, "3 classes.* label 7"),
        (torch.zeros(0, 3, 2, 2), torch.zeros(0).long(), ValueError, "no images"),
        (torch.zeros(4, 3, 2, 2).byte(), torch.zeros(4).long(), ValueError, "need mean and std"),
        ([0], torch.zeros(4).long(), TypeError, "must be tensors, got list"),
    ],
)
def test_bad_data_is_refused(images, labels, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Evaluator(ChannelMeans(), images, labels).score(SUBNET)


def test_bad_options_and_loaders_are_refused() -> None:
    images, labels = torch.zeros(4, 3, 2, 2), torch.zeros(4).long()
    with pytest.raises(ValueError, match="amp must be auto, bf16, fp16 or off, got 'int8'"):
        Evaluator(ChannelMeans(), images, labels, amp="int8")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Evaluator(ChannelMeans(), images, labels, batch_size=0)
    with pytest.raises(TypeError, match=r"must yield \(images, labels\), got dict"):
        Evaluator.from_loader(ChannelMeans(), [{"x": images}])
    with pytest.raises(ValueError, match="yielded no images"):
        Evaluator.from_loader(ChannelMeans(), [])
    with pytest.raises(ValueError, match="dataset has a length"):
        Evaluator.from_loader(ChannelMeans(), [(images, labels)], max_images=2)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    space = SearchSpace.preset("digits").restrict(depth=(4, 5))
    model = Supernet(space, image_size=8, patch_size=2, num_classes=10, in_chans=1)
    for parameter in model.parameters():  # an untrained head says the same of every image
        parameter.data.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(60, 1, 8, 8, generator=g), torch.randint(0, 10, (60,), generator=g)


def test_a_subnet_scores_as_its_extracted_model(supernet: Supernet, images_and_labels) -> None:
    images, labels = images_and_labels
    evaluator = Evaluator(supernet, images, labels, batch_size=25)
    rng = random.Random(0)
    for _ in range(4):
        subnet = supernet.space.sample(rng)
        with torch.inference_mode():
            logits = supernet.extract(subnet).eval()(images)
        score = evaluator.score(subnet)
        assert score.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        assert score.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)


def test_bf16_autocast_is_used_when_asked_for(supernet: Supernet, images_and_labels) -> None:
    subnet = supernet.space.largest()
    full = Evaluator(supernet, *images_and_labels, amp="auto").score(subnet)
    half = Evaluator(supernet, *images_and_labels, amp="bf16").score(subnet)
    assert full == Evaluator(supernet, *images_and_labels).score(subnet)
    assert half.loss != full.loss
    assert half.loss == pytest.approx(full.loss, rel=0.05)


def test_the_fingerprint_changes_with_weights_and_labels(
    supernet: Supernet, images_and_labels
) -> None:
    images, labels = images_and_labels
    print_ = Evaluator(supernet, images, labels).fingerprint()
    assert Evaluator(supernet, images, labels, batch_size=3).fingerprint() == print_
    assert Evaluator(supernet, images, labels.flip(0)).fingerprint() != print_
    assert Evaluator(supernet, images[1:], labels[1:]).fingerprint() != print_
    weight = next(supernet.parameters()).data.view(-1)
    weight[0], weight[1] = weight[1].clone(), weight[0].clone()
    assert Evaluator(supernet, images, labels).fingerprint() != print_
    weight[0], weight[1] = weight[1].clone(), weight[0].clone()


def test_a_supernet_is_searched_without_touching_its_weights(
    supernet: Supernet, images_and_labels
) -> None:
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    evaluator = Evaluator(supernet, *images_and_labels)
    config = SearchConfig(population=5, generations=2, limits=({"max_params": "150K"},))
    result = search(supernet.space, evaluator, config, model_cost(supernet), progress=False)
    best = result["<=150K"]
    assert len(result.candidates) == 10
    assert best.params == sum(p.numel() for p in supernet.extract(best.subnet).parameters())
    assert best.score == evaluator.score(best.subnet)
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())
