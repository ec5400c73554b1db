"""Many subnets at once: the scores of one by one, and nothing computed twice."""

from __future__ import annotations

import random

import pytest
import torch

from growtas import SearchSpace, Subnet, Supernet, kernels
from growtas.search import Evaluator, Score
from growtas.search.operators import crossover, mutate
from growtas.search.population import turns
from growtas.search.scoring import PART_SECONDS, Scoring
from growtas.supernet.vit.layers import Block

SPACE = SearchSpace.preset("digits").restrict(depth=(4, 5))


@pytest.fixture(params=["reference", "native"])
def backend(request):
    try:
        with kernels.use_backend(request.param):
            yield request.param
    except kernels.BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def supernet() -> Supernet:
    torch.manual_seed(0)
    model = Supernet(SPACE, 8, 2, 10, in_chans=1, drop_path=0.3)
    for parameter in model.parameters():  # an untrained head says the same of every image
        parameter.data.normal_(0, 0.3)
    return model


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(11, 1, 8, 8, generator=g), torch.randint(0, 10, (11,), generator=g)


def population(count: int, seed: int = 0) -> list[Subnet]:
    """As an evolution breeds them, with one of them twice."""
    rng = random.Random(seed)
    parents = [SPACE.sample(rng) for _ in range(3)]
    found = [mutate(rng.choice(parents), SPACE, rng) for _ in range(count // 2)]
    found += [crossover(*rng.sample(parents, 2), rng) for _ in range(count - len(found) - 1)]
    return [*found, found[0]]


def beginnings(subnet: Subnet) -> list[tuple]:
    """What each block's output depends on."""
    sizes = list(zip(subnet.num_heads, subnet.hidden_dims, strict=True))
    return [(subnet.embed_dim, *sizes[: i + 1]) for i in range(subnet.depth)]


@pytest.mark.parametrize("seed", range(20))
def test_every_beginning_is_computed_once_from_what_was_kept(seed: int) -> None:
    subnets = population(30, seed)
    computed: list[tuple] = []
    kept: dict[int, tuple] = {}  # by the number of blocks, what the stream came from
    for turn in turns(subnets):
        subnet = subnets[turn.which]
        path = [(subnet.embed_dim,), *beginnings(subnet)]
        if turn.shared >= 0:
            assert kept[turn.shared] == path[turn.shared]
        new = range(turn.shared + 1, len(path))
        computed += [path[depth] for depth in new]
        kept = {d: kept[d] if d <= turn.shared else path[d] for d in turn.keep}
    assert sorted(turn.which for turn in turns(subnets)) == list(range(30))
    assert len(computed) == len(set(computed))
    assert not kept
    assert turns([]) == []


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_scores_have_the_bits_of_one_by_one(backend, amp, supernet, data, monkeypatch) -> None:
    """Also with a last batch that is smaller; and each block runs as often as it has to."""
    supernet.train()
    evaluator = Evaluator(supernet, *data, batch_size=4, amp=amp)
    subnets = population(16)
    calls = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    many = evaluator.score_many(subnets)
    assert supernet.training
    assert len(calls) == 3 * len({beginning for s in subnets for beginning in beginnings(s)})
    assert len(calls) < 0.9 * 3 * sum(s.depth for s in subnets)
    assert many == [evaluator.score(subnet) for subnet in subnets]
    assert len({score.loss for score in many}) > 8


def test_several_in_one_launch(backend, supernet, data, monkeypatch) -> None:
    """The path of a GPU, run eagerly: replays that are not full, images that are not a batch."""
    evaluator = Evaluator(supernet, *data, batch_size=12, groups=3)
    subnets = population(8)
    want = [evaluator.score(subnet) for subnet in subnets]
    monkeypatch.setattr(Supernet, "reads_extents_on_device", lambda model: True)
    for some in (subnets, subnets[:2], subnets):
        for score, expected in zip(evaluator.score_many(some), want, strict=False):
            assert score.accuracy == expected.accuracy
            assert score.loss == pytest.approx(expected.loss, rel=1e-5)
    assert "cpu" in evaluator._graph.forward.reason


def test_one_subnet_and_a_model_of_another_kind(supernet, data) -> None:
    evaluator = Evaluator(supernet, *data)
    assert evaluator.score_many([SPACE.largest()]) == [evaluator.score(SPACE.largest())]
    assert evaluator.score_many([]) == []

    class Sizes(torch.nn.Module):
        def forward(self, images: torch.Tensor, subnet: Subnet) -> torch.Tensor:
            return images.flatten(1)[:, :10] * subnet.depth

    evaluator = Evaluator(Sizes(), *data)
    subnets = population(4)
    assert evaluator.score_many(subnets) == [evaluator.score(subnet) for subnet in subnets]


def test_what_does_not_fit_is_refused(supernet, data) -> None:
    evaluator = Evaluator(supernet, *data)
    with pytest.raises(ValueError, match="depth"):
        evaluator.score_many([SPACE.largest(), Subnet(32, (2,) * 30, (2.0,) * 30)])
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        Evaluator(supernet, *data, groups=0)
    evaluator = Evaluator(supernet, data[0], data[1] + 1)
    with pytest.raises(ValueError, match="10 classes, but there is a label 10"):
        evaluator.score_many([SPACE.largest(), SPACE.smallest()])


class Slow:
    """Takes a time for each subnet; remembers how many it was asked for at once."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.parts = clock, seconds, []

    def score(self, subnet: Subnet) -> Score:
        raise AssertionError("asked for one")

    def score_many(self, subnets: list[Subnet]) -> list[Score]:
        self.parts.append(len(subnets))
        self.clock[0] += self.seconds * len(subnets)
        return [Score(subnet.depth / 100, 0.0, 1) for subnet in subnets]


@pytest.mark.parametrize(
    ("seconds", "first", "second"),
    [
        (PART_SECONDS / 10, [1, 10, 10, 9], [10, 10, 10]),
        (PART_SECONDS * 3, [1] * 30, [1] * 30),
        (0.0, [1, 29], [30]),
    ],
)
def test_parts_take_about_as_long_as_may_be_lost(seconds, first, second, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("growtas.search.scoring.time.monotonic", lambda: clock[0])
    scorer, subnets = Slow(clock, seconds), population(30)
    scoring = Scoring(scorer)
    for parts in (first, second):
        scorer.parts.clear()
        assert [score.accuracy * 100 for score in scoring(subnets)] == [s.depth for s in subnets]
        assert scorer.parts == parts
