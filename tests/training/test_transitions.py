"""What the schedule decides, carried out by the trainer: transitions by the loss, sequences."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import tiny_recipe
import torch
from training.training_setup import (
    FREEZE,
    RATE,
    SPACE,
    digits,
    interrupted,
    supernet,
    train_config,
)

from growtas.run.folder import Run
from growtas.schedule import GrowTAS, Plateau, PlusPhase, Stratify, Uniform
from growtas.space import Subnet
from growtas.space.cost import model_cost
from growtas.training import Trainer
from growtas.training.metrics import read_metrics

# Progress of 90 % never comes: stage 2 begins after one epoch without, at epoch 2.
IMPATIENT = Plateau(min_delta=0.9, patience=1, min_epochs=1)
STEPS = 5  # of an epoch


def adaptive(rule=IMPATIENT, latest=3, **options) -> GrowTAS:
    plus = PlusPhase(epochs=1, lr=2e-3, min_lr=1e-3, freeze=FREEZE)
    return GrowTAS([(0, FREEZE), (latest, {})], plus, transition=rule, **options)


def trainer(path, strategy, epochs=4, **settings) -> Trainer:
    settings = {"eval_every": 9, "epochs": epochs, **settings}
    run = Trainer(supernet(), strategy, digits(), train_config(**settings), path, optim=RATE)
    assert run.steps_per_epoch == STEPS
    return run


def figures(path, *names) -> list[tuple]:
    rows = read_metrics(path / "metrics.jsonl")
    return [tuple(row.get(name) for name in names) for row in rows]


def drawn_by(run: Trainer) -> list[Subnet]:
    """The subnets that `run` trains, as it goes."""
    drawn, plan = [], run.strategy.plan

    def spy(context):
        made = plan(context)
        drawn.append(made.passes[0].subnet)
        return made

    run.strategy.plan = spy
    return drawn


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, the subnets it trained, and what it said."""
    said: list[str] = []
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(folder, adaptive(sequence="growtas"))
    run.say = said.append
    drawn = drawn_by(run)
    run.fit()
    return run, folder, drawn, said


def test_a_stage_begins_by_the_loss(whole):
    _, folder, drawn, said = whole
    small, large = "stage 1/2", "stage 2/2"
    rows = figures(folder, "phase", "note", "train_loss")
    assert [row[0] for row in rows] == [small, small, large, large, "plus"]
    note = f"stage 2 begins at epoch 2: loss {rows[0][2]:.4g} had not improved by 90 % for an epoch"
    assert said == [note]
    assert [row[1] for row in rows] == [None, note, None, None, None]
    assert {s.embed_dim for s in drawn[: 2 * STEPS]} == {16}
    assert {s.embed_dim for s in drawn[2 * STEPS : 4 * STEPS]} == {16, 24}
    assert {s.embed_dim for s in drawn[4 * STEPS :]} == {24}


def test_the_learning_rate_does_not_depend_on_when_a_stage_begins(whole, tmp_path):
    _, folder, _, _ = whole
    fixed = trainer(tmp_path, adaptive(rule=None))  # stage 2 at epoch 3
    rates = []
    for epoch in range(5):
        step = STEPS * epoch + STEPS - 1
        phase = fixed.strategy.phase(fixed.phases, step / STEPS)
        fixed._apply_phase(fixed.phases.index(phase))
        fixed._rate.set(step)
        rates.append((fixed.optimizer.param_groups[0]["lr"],))
    assert figures(folder, "lr") == rates


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_makes_the_same_transitions(whole, tmp_path, stop):
    interrupted(trainer(tmp_path, adaptive(sequence="growtas")), stop)
    torch.manual_seed(99)
    second = trainer(tmp_path, adaptive(sequence="growtas"))
    second.model.load_state_dict(supernet(seed=5).state_dict())
    second.fit(resume=True)
    names = ("epoch", "phase", "note", "lr", "train_loss")
    assert figures(tmp_path, *names) == figures(whole[1], *names)
    for ours, theirs in zip(second.model.parameters(), whole[0].model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_is_not_continued_with_another_schedule(tmp_path):
    interrupted(trainer(tmp_path, adaptive()), 1)
    with pytest.raises(ValueError, match="stages ended by the rule"):
        trainer(tmp_path, adaptive(replace(IMPATIENT, patience=2))).fit(resume=True)
    with pytest.raises(ValueError, match="drew with {}, this one draws with"):  # noqa: RUF043
        trainer(tmp_path, adaptive(sequence="growtas")).fit(resume=True)


def test_the_trainer_follows_autoformers_sequence(tmp_path):
    """Bit for bit what Python's global generator gives, whatever the seed of the run."""
    run = trainer(tmp_path, Uniform(sequence="autoformer"), epochs=3, seed=7)
    drawn = drawn_by(run)
    run.fit()
    expected = []
    for epoch in range(3):
        random.seed(epoch)
        for _ in range(STEPS):
            depth = random.choice([1, 2])
            ratios = [random.choice([1.0, 2.0]) for _ in range(depth)]
            heads = [random.choice([1, 2]) for _ in range(depth)]
            expected.append(Subnet(random.choice([16, 24]), heads, ratios))
    assert drawn == expected


def test_the_trainer_stratifies(tmp_path):
    cost = model_cost(supernet())
    low, high = (cost(s).params for s in (SPACE.smallest(), SPACE.largest()))
    window = Stratify(max=(low + high) // 2, bins=60)
    run = trainer(tmp_path, Uniform(stratify=window, cost=cost), epochs=3)
    drawn = drawn_by(run)
    run.fit()
    sizes = {cost(s).params for s in drawn}
    assert max(sizes) <= (low + high) // 2
    assert len(sizes) > 4
    assert "of 60 bins" in figures(tmp_path, "note")[0][0]


def test_all_of_it_comes_from_a_recipe(tmp_path):
    said: list[str] = []
    strategy = (
        "strategy={name: growtas, stages: [{start: 0, restrict: {embed_dim: [8]}}, {start: 2}],"
        " transition: {min_delta: 0.9, patience: 1, min_epochs: 1}, stratify: {bins: 90}}"
    )
    settings = ("train.epochs=3", "train.eval_every=9", "optim.schedule=autoformer")
    Run.start(tiny_recipe.load(tmp_path, strategy, *settings), say=said.append).train()
    assert said.pop(0).startswith("data: ")
    assert "stage 1/2: " in said[0]
    assert "of 90 bins from" in said[0]
    assert "stage 2/2: " in said[1]
    assert said[2].startswith("stage 2 begins at epoch 2: loss 2.")
    first, second, third = figures(tmp_path, "note", "lr", "phase")
    assert first == ("; ".join(said[:2]), second[1], "stage 1/2")
    assert (second[0], third[2]) == (said[2], "stage 2/2")
    assert third[1] < second[1] == 5e-3  # no warm-up: two epochs at the first rate
    empty = tiny_recipe.load(tmp_path, "strategy={name: uniform, stratify: {min: 9M}}")
    with pytest.raises(ValueError, match=r"strategy: uniform: .*at least 9M parameters; reachable"):
        Run(empty, tmp_path).train()
    assert figures(tmp_path, "epoch") == [(1,), (2,), (3,)]  # refused before anything is removed
