"""The loop end to end on a tiny supernet: freezing, resuming, stopping, files."""

import csv
import json
import math
import signal
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
    logits,
    supernet,
    train_config,
)

from growtas.base import stopping
from growtas.schedule import Pass, StepPlan, Uniform
from growtas.supernet import load_supernet
from growtas.training import AugmentConfig, NonFiniteLossError, Trainer
from growtas.training.checkpoint import load_checkpoint
from growtas.training.metrics import FIELDS, read_metrics

MIXED = replace(AugmentConfig.digits(), mixup=0.8, cutmix=1.0, mixup_prob=1.0, reprob=0.25)


def trainer(path, model=None, strategy=None, data=None, optim=RATE, **settings):
    return Trainer(
        model if model is not None else supernet(),
        strategy if strategy is not None else Uniform(),
        data if data is not None else digits(),
        train_config(**settings),
        path,
        optim=optim,
    )


def snapshot(run):
    """Everything the next step depends on."""
    models = [run.model] if run.ema is None else [run.model, run.ema.module]
    tensors = [p.detach().clone() for model in models for p in model.parameters()]
    for parameter in run.model.parameters():
        state = run.optimizer.state[parameter]
        tensors += [state[key].clone() for key in sorted(state) if key != "shells"]
    return tensors


@pytest.mark.parametrize(
    ("inactive", "ema", "stop"), [("dense", 0.9, 1), ("masked", 0.0, 2), ("dense", 0.9, 3)]
)
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, inactive, ema, stop):
    def build(path):
        return trainer(
            path,
            supernet(drop_path=0.2),
            growtas_plus(epochs=2),
            digits(augment=MIXED),
            replace(RATE, inactive=inactive),
            ema_decay=ema,
        )

    whole = build(tmp_path / "whole")
    whole.fit()

    interrupted(build(tmp_path / "parts"), stop)

    torch.manual_seed(99)  # a new process starts with other random state and other weights
    second = build(tmp_path / "parts")
    second.model.load_state_dict(supernet(seed=5).state_dict())
    second.fit(resume=True)
    assert second.step == whole.step
    for ours, theirs in zip(snapshot(second), snapshot(whole), strict=True):
        assert torch.equal(ours, theirs)
    timing = {"seconds", "images_per_second"}
    rows = [
        [{k: v for k, v in row.items() if k not in timing} for row in read_metrics(path)]
        for path in (tmp_path / "whole/metrics.jsonl", tmp_path / "parts/metrics.jsonl")
    ]
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[0]] == [1, 2, 3, 4]
    assert [row["phase"] for row in rows[0]] == ["stage 1/2", "stage 2/2", "plus", "plus"]


def test_files_of_a_run(tmp_path):
    data = digits()
    run = trainer(tmp_path, data=data, tensorboard=True, ema_decay=0.5)
    result = run.fit()
    assert (result.epochs, result.steps) == (2, 2 * len(data.train_loader()))
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert list(rows[0]) == list(FIELDS)
    assert len(rows) == len(lines) == 2
    assert rows[1]["largest_accuracy"] == str(lines[1]["largest_accuracy"])
    assert result.metrics == lines[1]
    assert any((tmp_path / "tensorboard").iterdir())
    assert not list(tmp_path.glob("*.partial"))
    saved = load_supernet(result.weights)
    for ours, theirs in zip(logits(saved, SPACE), logits(run.ema.module, SPACE), strict=True):
        assert torch.equal(ours, theirs)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert {"model", "ema", "optimizer", "scaler", "strategy", "epoch", "step"} <= set(state)
    # The finished run has nothing left to do.
    again = trainer(tmp_path, data=data, tensorboard=True, ema_decay=0.5).fit(resume=True)
    assert again.metrics == {}
    assert again.steps == result.steps


def test_accuracy_of_the_log_is_that_of_the_search_split(tmp_path):
    data = digits()
    run = trainer(tmp_path, data=data)
    row = run.fit().metrics
    images, labels = map(
        torch.stack, zip(*((x, torch.tensor(y)) for x, y in data.search), strict=True)
    )
    run.model.eval()
    with torch.no_grad():
        for name, subnet in (("smallest", SPACE.smallest()), ("largest", SPACE.largest())):
            out = run.model(images, subnet)
            right = (out.argmax(1) == labels).double().mean().item()
            assert row[f"{name}_accuracy"] == pytest.approx(right)
            loss = torch.nn.functional.cross_entropy(out, labels).item()
            assert row[f"{name}_loss"] == pytest.approx(loss, rel=1e-4)


def test_the_test_split_is_never_read(tmp_path):
    data = digits()
    read = []
    source = data._source
    original = source.__class__.__getitem__
    held_back = set(data.test.indices)

    class Watched(source.__class__):
        def __getitem__(self, index):
            read.append(index)
            return original(self, index)

    source.__class__ = Watched
    trainer(tmp_path, data=data).fit()
    assert len(read) > 1000
    assert held_back.isdisjoint(read)


def test_training_learns(tmp_path):
    run = trainer(tmp_path, data=digits(batch_size=64), epochs=8, eval_every=8)
    result = run.fit()
    assert result.metrics["largest_accuracy"] > 0.7
    assert result.metrics["smallest_accuracy"] > 0.5


@pytest.mark.parametrize("settings", [{"amp": "bf16"}, {"amp": "fp16"}, {"accumulate": 3}])
def test_variants_train_to_about_the_same_loss(tmp_path, settings):
    plain, other = trainer(tmp_path / "plain"), trainer(tmp_path / "other", **settings)
    expected = plain.fit().metrics["train_loss"]
    assert other.fit().metrics["train_loss"] == pytest.approx(expected, rel=0.03)
    pairs = zip(plain.model.parameters(), other.model.parameters(), strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)  # it did something else


def test_several_passes_per_step(tmp_path):
    result = trainer(tmp_path, strategy=Sandwich()).fit()
    # ce + (ce + kd) + 0.5 kd, about 2.3 nats each
    assert result.metrics["train_loss"] > 5


def test_losses_reach_the_strategy(tmp_path):
    seen = []

    class Observer(Uniform):
        def observe(self, plan, losses):
            seen.append((len(plan.passes), list(losses)))

    run = trainer(tmp_path, strategy=Observer(), epochs=1, optim=replace(RATE, warmup_epochs=0))
    run.fit()
    assert len(seen) == run.step
    assert all(count == len(losses) == 1 and losses[0] > 0 for count, losses in seen)


def test_strategy_draws_do_not_depend_on_the_model_or_the_images(tmp_path):
    def subnets(path, weights, **settings):
        drawn = []

        class Spy(Uniform):
            def plan(self, context):
                plan = super().plan(context)
                drawn.append(plan.passes[0].subnet)
                return plan

        trainer(path, supernet(weights), Spy(), **settings).fit()
        return drawn

    first = subnets(tmp_path / "a", 0)
    assert first == subnets(tmp_path / "b", 1, data=digits(augment=MIXED))
    assert first != subnets(tmp_path / "c", 0, seed=1)
    assert len(set(first)) > 3


class Exploding(Uniform):
    """Ruins the weights at one step."""

    def __init__(self, run_model, step):
        super().__init__()
        self.model = run_model
        self.bad = step

    def plan(self, context):
        if context.step == self.bad:
            with torch.no_grad():
                self.model.head.bias[0] = math.nan
        return super().plan(context)


@pytest.mark.parametrize("step", [0, 6])
def test_non_finite_loss_stops_with_the_last_good_checkpoint(tmp_path, step):
    model = supernet()
    run = trainer(tmp_path, model, Exploding(model, step), epochs=3)
    assert run.steps_per_epoch == 4 + 1
    with pytest.raises(NonFiniteLossError, match=rf"loss of step {step} .*is not finite") as error:
        run.fit()
    path = tmp_path / "checkpoint.pt"
    if step == 0:
        assert not path.exists()
        assert "no checkpoint yet" in str(error.value)
    else:
        assert str(path) in str(error.value)
        state = load_checkpoint(path)
        assert state["epoch"] == 1
        assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert not (tmp_path / "supernet.safetensors").exists()


def test_ruined_weights_are_not_saved(tmp_path):
    run = trainer(tmp_path, epochs=1, optim=replace(RATE, warmup_epochs=0))
    update = run.train_step.update

    def ruin_last(plan):
        update(plan)
        if run.step == run.steps_per_epoch - 1:
            with torch.no_grad():
                run.model.norm.weight[0] = math.inf

    run.train_step.update = ruin_last
    with pytest.raises(NonFiniteLossError, match="weights are not finite after epoch 1"):
        run.fit()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_gradient_clipping_bounds_the_norm(tmp_path):
    """With an eps far above the moments a first step moves by the length of its gradient."""
    optim = replace(RATE, eps=1e3, lr=1e3, min_lr=0.0, weight_decay=0.0, warmup_epochs=0)

    def moved(path, clip):
        built = trainer(path, epochs=1, optim=replace(optim, clip_grad=clip))
        before = [p.detach().clone() for p in built.model.parameters()]
        built._begin_phase(0)
        built._train_step(*next(iter(built.loader)))
        steps = [p.detach() - q for p, q in zip(built.model.parameters(), before, strict=True)]
        return torch.linalg.vector_norm(torch.stack([d.double().norm() for d in steps]))

    assert moved(tmp_path / "free", None) > 0.02
    assert moved(tmp_path / "clipped", 0.01) == pytest.approx(0.01, rel=0.02)


def test_weight_decay_groups(tmp_path):
    run = trainer(tmp_path)
    decay = {id(p): g["weight_decay"] for g in run.optimizer.param_groups for p in g["params"]}
    named = {name: decay[id(p)] for name, p in run.model.named_parameters()}
    decayed = {name for name, value in named.items() if value == RATE.weight_decay}
    of_a_block = (
        "attn.qkv.weight",
        "attn.rel_pos",
        "attn.proj.weight",
        "mlp.fc1.weight",
        "mlp.fc2.weight",
    )
    # As timm 0.3.2 grouped AutoFormer's: position tables too; qkv's 3-D bias counts as a bias.
    assert decayed == {
        "patch_embed.weight",
        "head.weight",
        *(f"blocks.{i}.{name}" for i in range(2) for name in of_a_block),
    }
    free = {name for name, value in named.items() if value == 0.0}
    assert free == set(named) - decayed
    assert {"pos_embed", "cls_token", "blocks.0.attn.qkv.bias", "norm.weight"} < free
    assert run.model.blocks[0].attn.qkv.bias.dim() == 3


def test_what_does_not_fit_is_named(tmp_path):
    trainer(tmp_path, epochs=1, optim=replace(RATE, warmup_epochs=0)).fit()
    with pytest.raises(FileExistsError, match=r"checkpoint\.pt exists: resume"):
        trainer(tmp_path, epochs=1, optim=replace(RATE, warmup_epochs=0)).fit()
    other = trainer(tmp_path, epochs=1, optim=replace(RATE, warmup_epochs=0, lr=1e-3))
    with pytest.raises(ValueError, match=r"other settings.*optim\.lr: 0\.005 -> 0\.001"):
        other.fit(resume=True)
    with pytest.raises(ValueError, match=r"image_size \[8, 8\], the data \[16, 16\]"):
        trainer(tmp_path, data=digits(image_size=16))
    with pytest.raises(ValueError, match=r"batch_size is 63; allowed: even"):
        trainer(tmp_path, data=digits(batch_size=63, augment=MIXED))

    class Odd(Uniform):
        def plan(self, context):
            return StepPlan((Pass(context.phase.space.smallest(), loss="eval"),))

    with pytest.raises(ValueError, match="nothing would be trained"):
        trainer(tmp_path / "odd", strategy=Odd()).fit()


def test_a_checkpoint_holds_plain_values_only(tmp_path):
    class Stateful(Uniform):
        def state_dict(self):
            return {"pool": {SPACE.smallest()}}

    with pytest.raises(TypeError, match=r"checkpoint\['strategy'\]\['pool'\] is a set"):
        trainer(tmp_path, strategy=Stateful()).fit()
    (tmp_path / "other.pt").write_bytes(b"")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a growtas checkpoint"):
        load_checkpoint(tmp_path / "other.pt")


def test_progress_bar_shows_the_run(tmp_path, capfd):
    trainer(tmp_path, strategy=growtas_plus(), progress=True).fit()
    shown = capfd.readouterr().err
    for text in ("epoch 3/3, plus", "stage 1/2", "loss ", "accuracy ", "images/s"):
        assert text in shown
    trainer(tmp_path / "quiet", progress=False).fit()
    assert capfd.readouterr() == ("", "")


class Telling(Uniform):
    """Has something to tell when a run begins, or goes on."""

    told = False

    def notes(self):
        told, self.told = self.told, True
        return [] if told else ["2 bins are empty"]


def test_a_note_is_in_the_figures_of_an_interrupted_epoch_once(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "is_handled", lambda: True)
        patch.setattr(stopping, "wanted", lambda: signal.SIGTERM)
        with pytest.raises(stopping.Stopped, match="stopped after step 1 of"):
            trainer(tmp_path, strategy=Telling(), epochs=1).fit()
    trainer(tmp_path, strategy=Telling(), epochs=1).fit(resume=True)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["note"] == "2 bins are empty"
