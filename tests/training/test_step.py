"""The trainer's step from one graph (here: its functions without one) and without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from training.training_setup import (
    RATE,
    SPACE,
    Sandwich,
    digits,
    growtas_plus,
    interrupted,
    supernet,
    train_config,
)

from growtas.schedule import Pass, StepPlan, Uniform
from growtas.training import AugmentConfig, Trainer
from growtas.training.metrics import read_metrics
from growtas.training.step import not_graphed

MIXED = replace(AugmentConfig.digits(), mixup=0.8, cutmix=1.0, mixup_prob=1.0)
SMOOTH = replace(RATE, eps=1e-3, clip_grad=0.5)  # Adam is then smooth: rounding stays rounding


def train(path, graph, strategy=None, optim=SMOOTH, augment=None, model=None, **settings):
    run = Trainer(
        supernet() if model is None else model,
        growtas_plus() if strategy is None else strategy,
        digits(augment=augment),
        train_config(graph=graph, **settings),
        path,
        optim=optim,
    )
    run.fit()
    return run


@pytest.mark.parametrize(
    ("inactive", "settings"),
    [
        ("dense", {"ema_decay": 0.9, "augment": MIXED}),
        ("skip", {}),
        ("masked", {"ema_decay": 0.9, "augment": AugmentConfig.digits()}),
    ],
)
def test_a_run_with_growth_and_freezing_is_the_ordinary_one(tmp_path, inactive, settings):
    optim = replace(SMOOTH, inactive=inactive)
    runs = [train(tmp_path / graph, graph, optim=optim, **settings) for graph in ("on", "off")]
    for ours, theirs in zip(*(run.final_model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)
    states = [run.optimizer.state_dict()["state"] for run in runs]
    for key, state in states[1].items():
        assert states[0][key].get("shells") == state.get("shells")
    rows = [read_metrics(tmp_path / graph / "metrics.jsonl") for graph in ("on", "off")]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
        assert ours["train_accuracy"] == pytest.approx(theirs["train_accuracy"], abs=2e-3)


def test_a_resumed_run_is_the_uninterrupted_run(tmp_path):
    """Bit for bit: what lies on the device comes back before a checkpoint is written."""

    def build(path):
        return Trainer(
            supernet(), growtas_plus(), digits(), train_config(graph="on", ema_decay=0.9), path,
            optim=SMOOTH,
        )  # fmt: skip

    whole = build(tmp_path / "whole")
    whole.fit()
    interrupted(build(tmp_path / "parts"), 2)
    second = build(tmp_path / "parts")
    second.fit(resume=True)
    for ours, theirs in zip(
        second.final_model.parameters(), whole.final_model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


class Alternating(Uniform):
    """Every second step is one that no graph holds."""

    def plan(self, context):
        plan = super().plan(context)
        if context.step % 2:
            plan = StepPlan((*plan.passes, Pass(SPACE.smallest(), scale=0.5)))
        return plan


def test_steps_with_and_without_a_graph_take_turns(tmp_path):
    runs = [train(tmp_path / graph, graph, Alternating()) for graph in ("on", "off")]
    for ours, theirs in zip(*(run.final_model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


def test_reasons_are_told_once(tmp_path):
    train(tmp_path / "on", "on", Sandwich())
    rows = read_metrics(tmp_path / "on/metrics.jsonl")
    notes = [row["note"] for row in rows if row.get("note")]
    assert notes == ["not in one CUDA graph: a plan of 3 passes; a graph holds one"]
    train(tmp_path / "cpu", "on", Uniform())
    rows = read_metrics(tmp_path / "cpu/metrics.jsonl")
    assert "the model is on cpu; a CUDA graph needs a CUDA device" in rows[0]["note"]
    assert not rows[1].get("note")
    train(tmp_path / "auto", "auto", Uniform())
    assert not any(row.get("note") for row in read_metrics(tmp_path / "auto/metrics.jsonl"))


def test_what_a_graph_does_not_hold():
    subnet = SPACE.smallest()
    assert not_graphed(StepPlan((Pass(subnet),), lr_scale=0.5)) is None
    for plan, reason in (
        (StepPlan((Pass(subnet, scale=0.5),)), r"scale=0.5"),
        (StepPlan((Pass(subnet, regularise=False),)), "regularise=False"),
        (StepPlan((Pass(subnet, split="search", loss="eval"),)), "on split 'search'"),
        (StepPlan((Pass(subnet, tag="a"), Pass(subnet, loss="kd:a"))), "2 passes"),
    ):
        assert reason in not_graphed(plan)


def test_on_with_settings_that_rule_it_out(tmp_path):
    for settings, reason in (
        ({"accumulate": 2}, "train.graph is 'on', but train.accumulate is 2"),
        ({"compile": True}, "but train.compile is on"),
    ):
        with pytest.raises(ValueError, match=reason):
            train(tmp_path, "on", **settings)
