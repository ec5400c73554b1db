"""What the weights that a stage adds start from, in the models and in the optimizer."""

from dataclasses import replace

import pytest
import torch
from training.training_setup import RATE, SPACE, digits, interrupted, supernet, train_config

from growtas.base.config import ConfigError
from growtas.schedule import Phase, build_strategy
from growtas.space.subnet import Subnet
from growtas.supernet import Supernet
from growtas.training import Trainer
from growtas.training.growth import initialise_new_weights

SMALL = SPACE.restrict(embed_dim=16, depth=1, num_heads=1, mlp_ratio=1.0)
STAGES = [
    {"start": 0, "restrict": {"embed_dim": [16], "depth": [1], "num_heads": [1]}},
    {"start": 1},
]


def region(model, old=SMALL):
    """For every parameter, a mask of what the whole space reads and `old` does not."""
    inner, outer = model.extents(old.largest()), model.extents(SPACE.largest())
    masks = {}
    for name, parameter in model.named_parameters():
        masks[name] = torch.zeros(parameter.shape, dtype=torch.bool)
        masks[name][tuple(map(slice, outer[name]))] = True
        if name in inner:
            masks[name][tuple(map(slice, inner[name]))] = False
    return masks


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def initialise(models, init, seed=3):
    extents = models[0].extents
    initialise_new_weights(models, extents(SMALL.largest()), extents(SPACE.largest()), init, seed)


@pytest.mark.parametrize("qkv_bias", ["blocks", "autoformer"])
def test_reinit_gives_the_region_the_values_of_a_new_supernet(qkv_bias):
    model, other = supernet(qkv_bias=qkv_bias), supernet(1, qkv_bias=qkv_bias)
    before, state = copies(model), torch.get_rng_state()
    initialise([model, other], "reinit")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    fresh = copies(Supernet.from_config(model.config, SPACE))
    second = copies(other)
    for name, mask in region(model).items():
        now = model.get_parameter(name)
        assert torch.equal(now[mask], fresh[name][mask]), name
        assert torch.equal(now[~mask], before[name][~mask]), name
        assert torch.equal(now[mask], second[name][mask]), name
    block = model.blocks[1]  # all of it is new
    assert (block.norm1.weight == 1).all()
    assert (block.attn.qkv.bias == 0).all()
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.patch_embed.bias[16:].abs().min() > 0
    initialise([model], "reinit", seed=4)
    assert not torch.equal(model.pos_embed[..., 16:], fresh["pos_embed"][..., 16:])


def test_zero_adds_depth_heads_and_mlp_width_without_a_change_of_the_function():
    model = supernet()
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    small = Subnet(16, (1,), (1.0,))
    grown = [
        Subnet(16, (2,), (2.0,)),
        Subnet(16, (1, 1), (1.0, 1.0)),
        Subnet(16, (2, 2), (2.0, 2.0)),
    ]

    def differences():
        with torch.no_grad():
            expected = model(images, small)
            return [(model(images, subnet) - expected).abs().max().item() for subnet in grown]

    assert min(differences()) > 1e-2
    initialise([model], "zero")
    assert max(differences()) < 1e-5


def test_zero_reaches_every_new_weight_with_a_gradient():
    """No new unit is dead: within three steps of plain SGD all new weights had a gradient."""
    model = supernet()
    initialise([model], "zero")
    reached = {name: torch.zeros_like(mask) for name, mask in region(model).items()}
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(images, SPACE.largest())
        torch.nn.functional.cross_entropy(logits, torch.arange(64) % 10).backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            reached[name] |= parameter.grad != 0
    for name, mask in region(model).items():
        if "rel_pos" not in name:  # a 2 x 2 grid has no use for some rows of these tables
            assert reached[name][mask].all(), name


def trainer(path, optim=RATE, growth=None, **settings):
    strategy = build_strategy({"name": "growtas", "stages": STAGES, **(growth or {})}, SPACE)
    return Trainer(
        supernet(), strategy, digits(batch_size=512), train_config(**settings), path, optim=optim
    )


def watch_transition(run):
    """Copies of the models' weights before and after `_begin_phase` of stage 2."""
    seen = {}
    begin = run._begin_phase

    def spy(index):
        if index == 1:
            seen["before"] = [copies(m) for m in (run.model, run.final_model)]
        begin(index)
        if index == 1:
            seen["after"] = [copies(m) for m in (run.model, run.final_model)]

    run._begin_phase = spy
    run.fit()
    return seen


@pytest.mark.parametrize("growth_init", ["none", "reinit", "zero"])
def test_the_trainer_grows_the_trained_and_the_averaged_model_once(tmp_path, growth_init):
    run = trainer(tmp_path, growth={"growth_init": growth_init}, ema_decay=0.9)
    seen = watch_transition(run)
    (live, average), (new_live, new_average) = seen["before"], seen["after"]
    for name, mask in region(run.model, run.phases[0].space).items():
        assert torch.equal(new_live[name][~mask], live[name][~mask])
        assert torch.equal(new_average[name][~mask], average[name][~mask])
        if growth_init == "none":
            assert torch.equal(new_live[name], live[name])
            assert torch.equal(new_average[name], average[name])
        else:
            assert torch.equal(new_average[name][mask], new_live[name][mask])
    changed = not torch.equal(new_live["pos_embed"], live["pos_embed"])
    assert changed == (growth_init != "none")


def test_new_values_depend_on_the_seed_of_the_run(tmp_path):
    growth = {"growth_init": "reinit"}
    runs = [
        watch_transition(trainer(tmp_path / str(i), growth=growth, seed=seed))
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (seen["after"][0]["pos_embed"][..., 16:] for seen in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("inactive", ["dense", "masked", "skip"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_with_growth_resumes_exactly(tmp_path, inactive, stop):
    def build(path):
        return trainer(
            path,
            replace(RATE, inactive=inactive),
            {"growth_init": "reinit", "reset_moments": True},
            epochs=3,
            ema_decay=0.9,
        )

    whole = build(tmp_path / "whole")
    whole.fit()
    interrupted(build(tmp_path / "parts"), stop)
    second = build(tmp_path / "parts")
    second.fit(resume=True)
    for ours, theirs in ((second.model, whole.model), (second.ema.module, whole.ema.module)):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p, q)


def test_before_its_stage_a_region_decays_only_within_a_sampled_parameter(tmp_path):
    """`dense` as AutoFormer's loop has it: new rows and columns of a sampled matrix shrink by the
    product of all 1 - lr * weight_decay, new biases stay, and so does a block nobody sampled."""
    shrunk = {}
    for inactive in ("dense", "masked", "skip"):
        optim = replace(RATE, inactive=inactive, weight_decay=2.0)
        run = trainer(tmp_path / inactive, optim)
        rates = []
        step = run._train_step

        def spy(images, labels, step=step, rates=rates):
            result = step(images, labels)
            rates.append(result[2])
            return result

        run._train_step = spy
        (before, _), steps = watch_transition(run)["before"], run.steps_per_epoch
        start = copies(supernet())
        for name, value in before.items():
            if name.startswith("blocks.1"):
                assert torch.equal(value, start[name]), name
        assert torch.equal(before["pos_embed"][..., 16:], start["pos_embed"][..., 16:])
        name = "blocks.0.mlp.fc1.weight"
        shrunk[inactive] = before[name][:, 16:] / start[name][:, 16:]
        expected = 1.0
        for rate in rates[:steps]:
            expected *= 1 - rate * 2.0 if inactive != "masked" else 1.0
        assert shrunk[inactive].min().item() == pytest.approx(expected, rel=1e-5)
        assert shrunk[inactive].max().item() == pytest.approx(expected, rel=1e-5)
    assert shrunk["dense"].max() < 0.996


@pytest.mark.parametrize("inactive", ["dense", "skip"])
def test_reset_moments_takes_the_kick_out_of_the_first_steps(tmp_path, inactive):
    """A first step of Adam moves a weight by lr. Without a reset the step count of the whole matrix
    stands in the bias correction, so a new weight's first step is (1 - b1) / sqrt(1 - b2) larger
    (times the correction that is left)."""
    moved = {}
    betas, first = (0.9, 0.99), {}
    for reset in (False, True):
        optim = replace(RATE, inactive=inactive, weight_decay=0.0, betas=betas, warmup_epochs=0)
        run = trainer(tmp_path / str(reset), optim, {"reset_moments": reset}, epochs=2)
        update = run.train_step.update

        def spy(plan, run=run, update=update, reset=reset):
            column = run.model.blocks[0].mlp.fc1.weight
            before = column.detach().clone()
            update(plan)
            largest = plan.passes[0].subnet.embed_dim == 24
            if run.phase is run.phases[1] and largest and reset not in moved:
                lr = run.optimizer.param_groups[0]["lr"]
                hidden = plan.passes[0].subnet.hidden_dims[0]
                moved[reset] = ((column - before)[:hidden, 16:].abs() / lr).median().item()
                first[reset] = run.step + 1

        run.train_step.update = spy
        run.fit()
    assert first[True] == first[False]
    assert moved[True] == pytest.approx(1.0, rel=1e-3)
    n = first[False]
    kick = (1 - betas[0]) / (1 - betas[0] ** n) * ((1 - betas[1] ** n) / (1 - betas[1])) ** 0.5
    assert moved[False] == pytest.approx(kick, rel=1e-3)


def test_recipe_lines():
    config = {"name": "growtas", "stages": STAGES, "growth_init": "zero", "reset_moments": True}
    phases = build_strategy(config, SPACE).phases(SPACE, 4)
    assert [(p.growth_init, p.reset_moments) for p in phases] == [("none", False), ("zero", True)]
    with pytest.raises(ConfigError, match=r"growth_init.*'zeros'|zeros.*growth_init"):
        build_strategy({**config, "growth_init": "zeros"}, SPACE)
    for wrong in (
        lambda: Phase(0.0, SPACE, "first", growth_init="zeros"),
        lambda: initialise([supernet()], "zeros"),
    ):
        with pytest.raises(ValueError, match="init is 'zeros'; allowed: none, reinit, zero"):
            wrong()
