"""Stages that begin when the loss of the one before has stopped falling."""

from __future__ import annotations

import pytest

from growtas.schedule import GrowTAS, Plateau, PlusPhase, Stage, build_strategy
from growtas.space import SearchSpace

TINY = SearchSpace.preset("autoformer-tiny")
RULE = Plateau(min_delta=0.01, patience=3, min_epochs=5)
PLUS = PlusPhase(epochs=2, lr=1e-4, min_lr=1e-5, freeze={"embed_dim": [192]})


def two_stages(latest: float = 15, rule: Plateau = RULE, **options) -> GrowTAS:
    return GrowTAS([Stage(0, {"embed_dim": [192]}), Stage(latest)], transition=rule, **options)


def run(strategy: GrowTAS, losses: list[float], epochs: int = 20, first: int = 0) -> list[str]:
    """What a trainer does: the name of the phase of every epoch from `first` on."""
    phases = strategy.phases(TINY, epochs)
    names = []
    for epoch, loss in enumerate(losses[first:], start=first):
        begin, end = strategy.phase(phases, epoch), strategy.phase(phases, epoch + 0.99)
        assert begin == end  # decided between epochs
        names.append(begin.name)
        strategy.end_epoch(phases, epoch + 1, loss)
    return names


def curve(falling: int, floor: float, length: int = 20) -> list[float]:
    """Halves the way to `floor` for `falling` epochs, then stays."""
    losses = [floor + 2.0**-epoch for epoch in range(falling)]
    return losses + losses[-1:] * (length - falling)


def begins(names: list[str], stage: int = 2) -> int:
    return next(i for i, name in enumerate(names) if name.startswith(f"stage {stage}"))


def test_a_stage_begins_once_the_loss_has_stopped_falling():
    strategy = two_stages()
    # 1.0625 at epoch 4 is the last progress of more than 1 %; epochs 5, 6 and 7 bring less.
    losses = [2.0, 1.5, 1.25, 1.125, 1.0625, 1.06, 1.055, 1.053, *[1.0] * 12]
    names = run(strategy, losses)
    assert begins(names) == 8
    assert strategy.notes() == [
        "stage 2 begins at epoch 8: loss 1.062 had not improved by 1 % for 3 epochs"
    ]
    assert strategy.notes() == []


def test_slow_progress_adds_up():
    """0.5 % per epoch is 1 % every third epoch: the stage goes on to its latest start."""
    strategy = two_stages()
    assert begins(run(strategy, [2 * 0.995**epoch for epoch in range(20)])) == 15
    assert strategy.notes() == ["stage 2 begins at epoch 15: its latest start"]


def test_the_shortest_stage():
    flat = [1.0] * 20
    assert begins(run(two_stages(rule=Plateau(0.01, 3, 1)), flat)) == 4  # the first is progress
    assert begins(run(two_stages(rule=Plateau(0.01, 3, 9)), flat)) == 9


def test_a_rise_is_no_progress_and_the_best_loss_counts():
    losses = [1.0, 3.0, 2.0, 1.5, 1.2, 1.1, *[1.0] * 14]
    assert begins(run(two_stages(), losses)) == 5


def test_any_number_of_stages():
    embed = {"embed_dim": [192]}
    stages = [
        Stage(0, {**embed, "depth": [12]}),
        Stage(8, {**embed, "depth": [12, 13]}),
        Stage(12, embed),
        Stage(18),
    ]
    strategy = GrowTAS(stages, PLUS, transition=Plateau(0.01, 2, 1))
    # Stage 1 stops falling, stage 2 falls until its latest end, stage 3 stops at once.
    losses = curve(3, 1.0, 5) + [5 * 0.9**i for i in range(7)] + [1.0] * 10
    names = run(strategy, losses)
    assert [begins(names, stage) for stage in (2, 3, 4)] == [5, 12, 15]
    assert names[20:] == ["plus", "plus"]  # at its own start, whatever the losses
    assert [note.split(":")[0] for note in strategy.notes()] == [
        "stage 2 begins at epoch 5",
        "stage 3 begins at epoch 12",
        "stage 4 begins at epoch 15",
    ]


@pytest.mark.parametrize("stop", range(1, 20))
def test_a_resumed_run_decides_the_same(stop):
    losses = [2.0, 1.5, 1.25, 1.125, 1.0625, 1.06, 1.055, 1.053, *[1.0] * 12]
    whole, first, second = two_stages(), two_stages(), two_stages()
    expected = run(whole, losses)
    names = run(first, losses[:stop])
    second.load_state_dict(first.state_dict())
    assert names + run(second, losses, first=stop) == expected
    assert second.state_dict() == whole.state_dict()


def test_another_rule_is_not_continued():
    state = two_stages().state_dict()
    with pytest.raises(ValueError, match=r"stages ended by the rule \{'min_delta': 0\.01"):
        two_stages(rule=Plateau(0.02, 3, 5)).load_state_dict(state)
    fixed = GrowTAS([Stage(0, {"embed_dim": [192]}), Stage(15)])
    with pytest.raises(ValueError, match="ended by the loss, now by the calendar"):
        fixed.load_state_dict(state)
    with pytest.raises(ValueError, match="ended by the calendar, now by the loss"):
        two_stages().load_state_dict(fixed.state_dict())


def test_without_a_rule_losses_change_nothing():
    strategy = GrowTAS([Stage(0, {"embed_dim": [192]}), Stage(15)])
    assert begins(run(strategy, [1.0] * 20)) == 15
    assert (strategy.notes(), strategy.state_dict()) == ([], {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latest": 4.5}, r"starts at epoch 4\.5; an adaptive transition needs whole epochs"),
        ({"latest": 4}, "never ends a stage before 5 epochs .*starts at epoch 4 at the latest"),
        ({"latest": 15, "rule": Plateau(0.01, 20, 1)}, "never ends a stage before 21 epochs"),
    ],
)
def test_rules_that_cannot_apply_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        two_stages(**changes).phases(TINY, 20)


def test_impossible_rules_are_refused():
    with pytest.raises(ValueError, match="at least two stages, got one"):
        GrowTAS([Stage(0)], transition=RULE)
    for values, message in (
        ({"min_delta": 1.0}, r"min_delta must be in \[0, 1\), got 1"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"min_epochs": 0}, "min_epochs must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Plateau(**values)


def test_from_a_recipe():
    def built(transition) -> GrowTAS:
        return build_strategy({"name": "growtas", "transition": transition}, TINY)

    assert built("plateau").state_dict()["transition"]["rule"] == {
        "min_delta": 0.01,
        "patience": 5,
        "min_epochs": 10,
    }
    assert built({"patience": 3}).state_dict()["transition"]["rule"]["patience"] == 3
    assert built("epoch").state_dict() == {}
    with pytest.raises(ValueError, match="transition: expected one of 'epoch', 'plateau'"):
        built("loss")
    with pytest.raises(ValueError, match=r"unknown field transition\.patient"):
        built({"patient": 3})
