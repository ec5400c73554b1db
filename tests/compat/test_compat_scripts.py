"""Loops written the way AutoFormer's and PreNAS's scripts are, on the drop-in classes."""

from __future__ import annotations

import copy
import random
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from compat.compat_setup import SIZES, batch, build, draw

import growtas
from benchmarks.baselines.naive import NaiveSupernet
from growtas.compat import autoformer, prenas

CLASSES = [autoformer.Vision_TransformerSuper, prenas.Vision_TransformerSuper]
ARGS = Namespace(
    opt="adamw", opt_eps=1e-8, opt_betas=None, lr=1e-3, weight_decay=0.05, momentum=0.9
)


def optimizer_of(model):
    from timm.optim import create_optimizer

    return create_optimizer(ARGS, model)


@pytest.fixture
def one_process(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train_one_epoch(model, optimizer, epoch, *, steps=4, amp=False, scaler=None):
    """AutoFormer's loop: a subnet per step from the global generator, seeded with the epoch."""
    model.train()
    random.seed(epoch)
    module = getattr(model, "module", model)
    losses = []
    for step in range(steps):
        images, labels = batch(next(module.parameters()).dtype, seed=100 * epoch + step)
        module.set_sample_config(config=draw())
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate(model, config):
    model.eval()
    module = getattr(model, "module", model)
    module.set_sample_config(config=config)
    numel = module.get_sampled_params_numel(config)
    images, labels = batch(next(module.parameters()).dtype, seed=-1)
    return F.cross_entropy(model(images), labels).item(), numel


def decays(name: str, parameter: torch.Tensor) -> bool:
    """AutoFormer's grouping as timm 0.3.2 does it: by dimension, ``.bias`` and whole name."""
    exempt = name in ("pos_embed", "cls_token") or name.endswith(".bias")
    return parameter.dim() > 1 and not exempt


@pytest.mark.parametrize("cls", CLASSES)
def test_weight_decay_groups(cls):
    model = build(cls)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    no_decay, decay = optimizer_of(model).param_groups
    assert (no_decay["weight_decay"], decay["weight_decay"]) == (0.0, 0.05)
    for group, wanted in ((no_decay, False), (decay, True)):
        got = [names[id(parameter)] for parameter in group["params"]]
        assert got == [n for n, p in model.named_parameters() if decays(n, p) is wanted]
    decayed = {names[id(parameter)] for parameter in decay["params"]}
    assert "blocks.0.attn.rel_pos_embed_k.embeddings_table_v" in decayed
    assert not decayed & {"pos_embed", "cls_token", "blocks.0.attn.qkv.bias"}


def permuted_bias(state, *, to_blocks: bool):
    """PreNAS stores the qkv bias interleaved, the slow implementation as three blocks."""
    heads = SIZES["num_heads"]
    shape = (64 * heads, 3) if to_blocks else (3, 64 * heads)
    return {
        name: value.view(shape).T.reshape(-1) if name.endswith("qkv.bias") else value
        for name, value in state.items()
    }


def drop_path_of_timm(rate, _module, _inputs, branch):
    """As AutoFormer's version of timm drops whole samples of a branch."""
    if rate == 0.0:
        return branch
    kept = 1 - rate + torch.rand((len(branch), 1, 1), dtype=branch.dtype)
    return branch / (1 - rate) * kept.floor()


class Slow:
    """The slow implementation in the model's dtype, with the same weights and its own AdamW, whose
    groups are in AutoFormer's order."""

    def __init__(self, model, drop_path=0.0):
        self.dtype = model.head.weight.dtype
        self.interleaved = isinstance(model, prenas.Vision_TransformerSuper)
        self.model = NaiveSupernet(
            embed_dim=SIZES["embed_dim"], depth=SIZES["depth"], num_heads=SIZES["num_heads"],
            mlp_ratio=SIZES["mlp_ratio"], image_size=32, patch_size=8, num_classes=10,
            qkv_bias="blocks" if self.interleaved else "autoformer",
        ).to(self.dtype)  # fmt: skip
        rates = torch.linspace(0, drop_path, SIZES["depth"]).tolist()
        for rate, block in zip(rates, self.model.blocks, strict=True):
            for branch in (block.attn, block.fc2):
                branch.register_forward_hook(partial(drop_path_of_timm, rate))
        state = model.state_dict()
        self.model.load_state_dict(
            permuted_bias(state, to_blocks=True) if self.interleaved else state
        )
        parameters = dict(self.model.named_parameters())
        named = [(name, parameters[name]) for name in state]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
                {"params": [p for n, p in named if decays(n, p)], "weight_decay": 0.05},
            ],
            lr=1e-3,
        )

    def train_one_epoch(self, epoch, *, steps=4):
        random.seed(epoch)
        losses = []
        for step in range(steps):
            images, labels = batch(self.dtype, seed=100 * epoch + step)
            self.model.set_sample_config(growtas.Subnet.from_dict(draw()))
            loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def state_dict(self):
        state = self.model.state_dict()
        return permuted_bias(state, to_blocks=False) if self.interleaved else state


def assert_same_weights(model, slow):
    # 4 steps move a weight by up to 4e-3
    for name, want in slow.state_dict().items():
        torch.testing.assert_close(
            model.state_dict()[name], want, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture
def exact_gelu(monkeypatch):
    """The slow implementation runs GELU in float32, as the original does; here in float64."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)


@pytest.mark.parametrize("cls", CLASSES)
def test_training_reaches_the_weights_of_the_slow_implementation(cls, exact_gelu):
    model = build(cls).double()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    slow, optimizer = Slow(model), optimizer_of(model)
    for epoch in range(2):
        losses = train_one_epoch(model, optimizer, epoch)
        assert losses == pytest.approx(slow.train_one_epoch(epoch), rel=1e-9)
    assert_same_weights(model, slow)
    assert all((value != start[name]).any() for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_training_with_drop_path_repeats_the_losses_of_the_slow_implementation(dtype, exact_gelu):
    model = build(drop_path_rate=0.1).to(dtype)
    slow, optimizer = Slow(model, drop_path=0.1), optimizer_of(model)
    plain = Slow(model)
    torch.manual_seed(3)
    losses = train_one_epoch(model, optimizer, 0)
    torch.manual_seed(3)
    wanted = slow.train_one_epoch(0)
    # AdamW divides by the gradient's size, so four steps grow float32's rounding to about 1e-6.
    assert losses == pytest.approx(wanted, rel=3e-6 if dtype is torch.float32 else 1e-9)
    assert losses != pytest.approx(plain.train_one_epoch(0), rel=1e-3)


def test_training_continues_from_the_originals_optimizer_state(exact_gelu):
    slow = Slow(build().double())
    slow.train_one_epoch(0)
    checkpoint = {"model": slow.state_dict(), "optimizer": slow.optimizer.state_dict()}
    model = build(seed=9).double()
    optimizer = optimizer_of(model)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))
    losses = train_one_epoch(model, optimizer, 1)
    assert losses == pytest.approx(slow.train_one_epoch(1), rel=1e-9)
    assert_same_weights(model, slow)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_distributed_training_resumes_from_its_checkpoint(cls, amp, tmp_path, one_process):
    def start():
        model = build(cls, drop_path_rate=0.1)
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        return (
            wrapped,
            wrapped.module,
            optimizer_of(model),
            torch.amp.GradScaler("cpu", enabled=amp),
        )

    model, without_ddp, optimizer, scaler = start()
    train_one_epoch(model, optimizer, 0, amp=amp, scaler=scaler)
    evaluate(model, draw())
    file = tmp_path / "checkpoint.pth"
    torch.save(
        {
            "model": without_ddp.state_dict(), "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(), "epoch": 0, "args": ARGS,
        },
        file,
    )  # fmt: skip
    torch.manual_seed(5)
    losses = train_one_epoch(model, optimizer, 1, amp=amp, scaler=scaler)
    assert all(np.isfinite(losses))

    again, without_ddp, optimizer, scaler = start()
    with torch.serialization.safe_globals([Namespace]):
        checkpoint = torch.load(file)
    without_ddp.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scaler.load_state_dict(checkpoint["scaler"])
    torch.manual_seed(5)
    assert train_one_epoch(again, optimizer, 1, amp=amp, scaler=scaler) == losses
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, without_ddp.state_dict()[name]), name


def test_distributed_training_is_plain_training(one_process):
    plain = build()
    wrapped = torch.nn.parallel.DistributedDataParallel(build(), find_unused_parameters=True)
    losses = train_one_epoch(plain, optimizer_of(plain), 0)
    assert train_one_epoch(wrapped, optimizer_of(wrapped.module), 0) == losses
    for name, value in plain.state_dict().items():
        assert torch.equal(value, wrapped.module.state_dict()[name]), name


@pytest.mark.parametrize("cls", CLASSES)
def test_the_supernet_of_growtas_takes_its_checkpoint(cls, tmp_path):
    model = build(cls)
    train_one_epoch(model, optimizer_of(model), 0, steps=2)
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": model.state_dict(), "epoch": 0, "args": ARGS}, file)
    reading = "autoformer" if cls is autoformer.Vision_TransformerSuper else "blocks"
    supernet = growtas.load_autoformer(file, qkv_bias=reading).eval()
    config, (images, _) = draw(), batch()
    model.eval().set_sample_config(config)
    torch.testing.assert_close(
        supernet(images, growtas.Subnet.from_dict(config)), model(images), rtol=1e-5, atol=1e-6
    )


def test_evolution_counts_filters_and_evaluates_candidates():
    model = build()
    random.seed(0)
    configs = [draw() for _ in range(20)]
    limit = sorted(model.get_sampled_params_numel(config) for config in configs)[10]
    legal = [c for c in configs if model.get_sampled_params_numel(c) <= limit]
    assert 0 < len(legal) < len(configs)
    for config in legal[:3]:
        loss, numel = evaluate(model, config)
        supernet = growtas.load_autoformer(model.state_dict())
        alone = supernet.extract(growtas.Subnet.from_dict(config)).eval()
        assert numel == sum(parameter.numel() for parameter in alone.parameters())
        images, labels = batch(seed=-1)
        assert loss == pytest.approx(F.cross_entropy(alone(images), labels).item(), rel=1e-5)
    # evaluation leaves a model that can be trained at once
    model.train()
    images, labels = batch()
    F.cross_entropy(model(images), labels).backward()
    assert model.cls_token.grad is not None


@pytest.mark.parametrize("cls", CLASSES)
def test_ema_built_after_a_config_follows_the_model(cls):
    from timm.utils import ModelEma

    model = build(cls)
    optimizer = optimizer_of(model)
    train_one_epoch(model, optimizer, 0, steps=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ema = ModelEma(model, decay=0.75)
    train_one_epoch(model, optimizer, 1, steps=2)
    ema.update(model)
    for name, value in ema.ema.state_dict().items():
        want = 0.75 * before[name] + 0.25 * model.state_dict()[name]
        torch.testing.assert_close(value, want, msg=lambda m, n=name: f"{n}: {m}")
    config = draw()
    assert evaluate(ema.ema, config)[0] != evaluate(model, config)[0]


def test_prenas_candidates_with_several_subnets_per_step():
    # PreNAS's sandwich: one backward per candidate, then one step; candidates carry a score
    model = build(prenas.Vision_TransformerSuper, choices={"depth": [2, 3, 4]})
    assert model.choices == {"depth": [2, 3, 4]}
    random.seed(0)
    candidates = [{**draw(), "num_params": 5.99, "score": 1.0} for _ in range(3)]
    images, labels = batch()
    singles = []
    for config in candidates:
        model.zero_grad()
        model.set_sample_config(config)
        (F.cross_entropy(model(images), labels) / 3).backward()
        singles.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    for config in candidates:
        model.set_sample_config(config)
        (F.cross_entropy(model(images), labels) / 3).backward()
    for name, parameter in model.named_parameters():
        parts = [grads[name] for grads in singles if name in grads]
        assert (parameter.grad is None) == (not parts)
        if parts:
            torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("option", ["switch_ln", "scale_attn", "scale_mlp", "scale_embed"])
def test_prenas_options_that_nothing_published_uses_are_refused_by_name(option):
    with pytest.raises(NotImplementedError, match=f"{option}=True .*use {option}=False"):
        build(prenas.Vision_TransformerSuper, **{option: True})
