"""New values for the weights that a growing space adds, at the transition between two phases.

GrowTAS (arXiv 2512.12296, section 1) speaks of large subnets that add randomly initialized weights
to those of a trained small one; its authors' code does nothing at a transition. docs/optimizer.md
says how far apart the two are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from growtas.schedule.plan import GROWTH_INITS
from growtas.supernet.family import Family
from growtas.training.boxes import Box, boxes_outside


@torch.no_grad()
def initialise_new_weights(
    models: Sequence[Family],
    old: Mapping[str, Box],
    new: Mapping[str, Box],
    init: str,
    seed: int,
) -> None:
    """Give the weights in `new` that are not in `old` the values of a freshly built model.

    The values depend on the seed and the model's configuration, not on the device, and no random
    generator is moved.

    Args:
        models: of one configuration (the trained and the averaged one); all get the same values.
        old, new: what could be read before, and from now on: boxes as from `Supernet.boxes`. `old`
            holds the parameters outside of blocks.
        init: "reinit": every weight as a new model starts with it, parameter by parameter.
            "zero": the same, but zero where a weight matrix reads a unit that is new (a channel,
            a head, a hidden neuron, anything within a new block). Deeper, wider-headed and
            wider-MLP subnets then compute what they computed without the addition; a wider
            embedding still changes the statistics of the layer norms. Zeros on one side only:
            with zeros on both no gradient would ever reach a new head or neuron.
            "none": nothing changes.
        seed: of the random values.

    Raises:
        ValueError: an unknown `init`.
    """
    if init not in GROWTH_INITS:
        raise ValueError(f"init is {init!r}; allowed: {', '.join(GROWTH_INITS)}")
    if init == "none":
        return
    model = models[0]
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = dict(model.from_config(model.config, model.space).named_parameters())
    targets = [dict(model.named_parameters()) for model in models]
    for name, outer in new.items():
        value = fresh[name]
        known = model.geometry.known_inputs(name, old)
        if init == "zero" and known is not None:
            value[..., known:] = 0
        for box in boxes_outside([outer], [old[name]] if name in old else []):
            for parameters in targets:
                parameters[name][box] = value[box].to(parameters[name])
