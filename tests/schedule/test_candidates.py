"""Training chosen subnets, with PreNAS's draws and files."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict

import pytest

from growtas.cost import num_params
from growtas.schedule import Candidates, StepContext, Uniform, build_strategy
from growtas.space import SearchSpace, Subnet

TINY = SearchSpace.preset("autoformer-tiny")


def subnet(embed: int, depth: int, heads: int = 3) -> Subnet:
    return Subnet(embed, (heads,) * depth, (4,) * depth)


# By embedding dim and depth: two groups of one candidate, one of two, one of one.
SUBNETS = [
    subnet(192, 12),
    subnet(216, 12),
    subnet(240, 12),
    subnet(240, 12, heads=4),
    subnet(240, 14),
]
SIZES = ("6.0", "7.0", "8.0", "8.0", "10.0")  # their bins in PreNAS's file


@pytest.fixture
def file(tmp_path):
    """PreNAS's form: lists by size, with what its search found out about each."""
    path = tmp_path / "tiny.json"
    by_size: dict[str, list[dict]] = {}
    for size, s in zip(SIZES, SUBNETS, strict=True):
        by_size.setdefault(size, []).append(
            {
                "layer_num": s.depth,
                "mlp_ratio": list(s.mlp_ratio),
                "num_heads": list(s.num_heads),
                "embed_dim": [s.embed_dim] * s.depth,
                "num_params": num_params(TINY, s) / 1e6,
                "score": 1010076.75,
            }
        )
    path.write_text(json.dumps(by_size))
    return path


def original_epoch(epoch: int, steps: int, by_dim: bool, by_depth: bool) -> list[Subnet]:
    """Indices of candidates as that code draws them, from Python's global generator."""
    grouping = None
    if by_dim or by_depth:
        found = defaultdict(list)
        for index, candidate in enumerate(SUBNETS):
            key = ((candidate.embed_dim,) if by_dim else ()) + (
                (candidate.depth,) if by_depth else ()
            )
            found[key].append(index)
        grouping = list(found.values())
    state = random.getstate()
    random.seed(epoch)
    drawn = [
        random.choice(random.choice(grouping)) if grouping else random.choice(range(len(SUBNETS)))
        for _ in range(steps)
    ]
    random.setstate(state)
    return [SUBNETS[index] for index in drawn]


def drawn(strategy, steps: range, per_epoch: int) -> list[Subnet]:
    (phase,) = strategy.phases(TINY, 10)
    contexts = [
        StepContext(random.Random(step), step, step / per_epoch, phase, step % per_epoch)
        for step in steps
    ]
    return [strategy.plan(context).passes[0].subnet for context in contexts]


@pytest.mark.parametrize("group_by", [[], ["embed_dim"], ["depth"], ["embed_dim", "depth"]])
def test_draws_are_the_originals(file, group_by):
    config = {"name": "candidates", "file": str(file), "group_by": group_by, "sequence": "prenas"}
    strategy = build_strategy(config, TINY)
    by = ("embed_dim" in group_by, "depth" in group_by)
    expected = [s for epoch in range(6) for s in original_epoch(epoch, 9, *by)]
    assert drawn(strategy, range(54), 9) == expected
    assert drawn(build_strategy(config, TINY), range(22, 54), 9) == expected[22:]  # resumed


def test_groups_are_equally_likely():
    counts = Counter(drawn(Candidates(SUBNETS, group_by=["embed_dim"]), range(6000), 100))
    shares = [counts[s] / 6000 for s in SUBNETS]
    assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 9, 1 / 9, 1 / 9], abs=0.025)
    counts = Counter(drawn(Candidates(SUBNETS), range(6000), 100))
    assert [counts[s] / 6000 for s in SUBNETS] == pytest.approx([1 / 5] * 5, abs=0.025)


@pytest.mark.filterwarnings("error")
def test_files(file, tmp_path):
    """All candidates in the file's order, one that is listed twice also twice."""

    def candidates(**config):
        return build_strategy({"name": "candidates", **config}, TINY).subnets

    assert candidates(file=str(file)) == tuple(SUBNETS)
    plain = tmp_path / "plain.json"
    values = [s.to_dict() for s in (*reversed(SUBNETS), SUBNETS[0], SUBNETS[0])]
    expected = (*reversed(SUBNETS), SUBNETS[0], SUBNETS[0])
    plain.write_text(json.dumps(values))
    assert candidates(file=str(plain)) == expected
    assert candidates(subnets=values) == expected
    entries = [entry for entries in json.loads(file.read_text()).values() for entry in entries]
    assert candidates(subnets=entries) == tuple(SUBNETS)
    plain.write_text('[{"embed_dim": 192}]')
    with pytest.raises(ValueError, match=r"plain\.json, subnet '1': .*'num_heads' is missing"):
        candidates(file=str(plain))


def test_another_list_is_not_continued():
    state = Candidates(SUBNETS, sequence="prenas").state_dict()
    Candidates(SUBNETS, sequence="prenas").load_state_dict(state)
    for other in (Candidates(SUBNETS), Candidates(SUBNETS[1:], sequence="prenas")):
        with pytest.raises(ValueError, match="were others before"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="strategy drew with"):
        Uniform().load_state_dict(state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "need either subnets or a file"),
        ({"subnets": [SUBNETS[0].to_dict()], "file": "x"}, "need either subnets or a file"),
        ({"file": "no/such.json"}, r"cannot read candidates: .*no/such\.json"),
        ({"subnets": [3]}, "subnets, subnet '1': "),
        ({"subnets": [SUBNETS[0].to_dict()], "group_by": ["heads"]}, r"group_by\[0\]: expected"),
        ({"subnets": [SUBNETS[0].to_dict()], "sequence": "growtas"}, "sequence: expected"),
    ],
)
def test_wrong_candidates_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_strategy({"name": "candidates", **config}, TINY)


def test_a_candidate_outside_the_space_is_refused():
    strategy = Candidates([SUBNETS[0], Subnet(192, (3,) * 12, (3.0,) * 12)])
    with pytest.raises(ValueError, match=r"mlp_ratio\[0\] = 3.0 is not in space"):
        strategy.phases(TINY, 10)
