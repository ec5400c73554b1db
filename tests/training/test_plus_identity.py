"""GrowTAS+ leaves the subnets of A_1 as they are, bit for bit, while it trains the rest."""

import contextlib
from dataclasses import replace

import pytest
import torch
from training.training_setup import (
    FREEZE,
    RATE,
    SPACE,
    digits,
    growtas_plus,
    logits,
    supernet,
    train_config,
)

from growtas.kernels import use_backend
from growtas.training import AugmentConfig, Trainer

SMALL = SPACE.restrict(**FREEZE)
MIXED = replace(AugmentConfig.digits(), mixup=0.8, cutmix=1.0, mixup_prob=1.0, reprob=0.25)
OPTIM = replace(RATE, clip_grad=1.0, weight_decay=0.3)


@pytest.fixture(scope="module")
def data():
    return digits(augment=MIXED, batch_size=512)


class Before:
    """Logits at the start of the plus phase, after the averaged weights became the trained ones."""

    def __init__(self, run, amp):
        self.run, self.amp = run, amp
        apply_phase = run._apply_phase

        def spy(index):
            apply_phase(index)
            if run.phases[index].name == "plus":
                self.small, self.large = self.measure(SMALL), self.measure(SPACE - SMALL)

        run._apply_phase = spy

    def measure(self, space):
        """Of the trained and of the averaged model, in fp32 and as training computes them."""
        found = []
        mixed = torch.autocast("cpu", torch.bfloat16)
        for model in dict.fromkeys((self.run.model, self.run.final_model)):
            for context in [contextlib.nullcontext(), *([mixed] if self.amp != "off" else [])]:
                with context:
                    found += logits(model, space)
            model.train()
        return found


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("inactive", ["dense", "masked", "skip"])
def test_logits_of_a1_keep_their_bits(tmp_path, data, inactive, amp, ema, backend):
    optim = replace(OPTIM, inactive=inactive)
    with use_backend(backend):
        config = train_config(amp=amp, ema_decay=ema, eval_every=9)
        model = supernet(drop_path=0.2)
        run = Trainer(model, growtas_plus(), data, config, tmp_path, optim=optim)
        before = Before(run, amp)
        run.fit()
        small, large = before.measure(SMALL), before.measure(SPACE - SMALL)
    assert (run.phase.name, run.epoch) == ("plus", 3)
    assert len(small) == 10 * (1 + (amp != "off")) * (1 + (ema > 0))
    assert all(torch.equal(old, new) for old, new in zip(before.small, small, strict=True))
    for old, new in zip(before.large, large, strict=True):
        assert not torch.allclose(old, new, atol=1e-3)


def test_logits_of_a1_would_change_without_the_freeze(tmp_path, data):
    """The test above can fail: the same phase without its freeze does change A_1."""

    class Thawed(type(growtas_plus())):
        def phases(self, space, epochs):
            return [replace(phase, freeze=None) for phase in super().phases(space, epochs)]

    plain = growtas_plus()
    strategy = Thawed(plain.stages, plain.plus)
    run = Trainer(supernet(), strategy, data, train_config(), tmp_path, optim=OPTIM)
    before = Before(run, "off")
    run.fit()
    after = before.measure(SMALL)
    assert not any(torch.equal(old, new) for old, new in zip(before.small, after, strict=True))
