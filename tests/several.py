"""Several subnets in one call of an operator: what must hold on every backend.

Subnet s has an equal share of the batch and sizes of its own. Activations are NaN beyond them and
parameters where no subnet reads, and gradient buffers keep what they held there.
"""

from __future__ import annotations

import oracles
import torch
from oracles import assert_within_budget, bits_equal

from growtas import kernels
from growtas.kernels.extents import LinearExtents

NAN = float("nan")
# Rows and columns of the weight that each subnet has, at most 20 x 12.
LINEAR_SIZES = {
    "one": [(13, 9)],
    "two": [(20, 4), (7, 12)],
    "three": [(13, 9), (20, 12), (5, 3)],
    "absent": [(13, 0), (9, 7), (20, 0)],
}


def column(values, device, at):
    """Extents as the operators get them: a column of a table of several blocks."""
    table = torch.full((len(values), 2, 5), -1, dtype=torch.int32, device=device)
    table[:, 1, at] = torch.tensor(values, dtype=torch.int32)
    return table[:, 1, at]


def random(*shape, seed, dtype, device):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(device=device, dtype=dtype)


def widened(x, width):
    wide = x.new_full((*x.shape[:-1], width), NAN)
    wide[..., : x.shape[-1]] = x
    return wide


def check(run, oracle, shares, parameters, boxes, widths, dtype, exact):
    """Outputs and gradients of one call for all subnets.

    Args:
        run: the operator, of subnets' numbers, wide activations, parameters and an accumulator.
        oracle: the formula: of a subnet's number, narrow activations by name and parameters.
        shares: of every subnet, narrow activations by name; the cotangent's is "cotangent".
        parameters: by name, NaN where no subnet reads.
        boxes: by name, bool where some subnet reads.
        widths: of the launched activations, by name; last dimensions are [parts, width].
        exact: one call or one for each subnet, parameter gradients have the same bits.
    """
    device = next(iter(parameters.values())).device
    count = len(shares)

    def wide(name, subnets):
        if shares[0][name] is None:
            return None
        return torch.cat([widened(shares[s][name], widths[name]).flatten(2) for s in subnets])

    names = [name for name in shares[0] if name != "cotangent"]

    def step(calls):
        leaves = {name: torch.nn.Parameter(p.clone()) for name, p in parameters.items()}
        accumulator = kernels.GradientAccumulator(leaves.values())
        held = {}
        for seed, (name, parameter) in enumerate(leaves.items()):
            held[name] = random(*parameter.shape, seed=seed, dtype=parameter.dtype, device=device)
            parameter.grad.copy_(held[name])
        found = []
        for subnets in calls:
            given = {name: wide(name, subnets) for name in names}
            given = {k: None if v is None else v.requires_grad_() for k, v in given.items()}
            y = run(subnets, given, leaves, accumulator)
            y.backward(wide("cotangent", subnets))
            found.append({"output": y.detach()})
            found[-1] |= {k: v.grad for k, v in given.items() if v is not None}
        joined = {name: torch.cat([f[name] for f in found]) for name in found[0]}
        return joined, {name: p.grad for name, p in leaves.items()}, held

    every = [tuple(range(count))]
    found, gradients, held = step(every)
    again, gradients_again, _ = step(every)
    single, gradients_single, _ = step([(s,) for s in range(count)])

    golden, plain, cut, cut_again, cut_single = {}, {}, {}, {}, {}
    sums = [{}, {}]
    for s, share in enumerate(shares):
        for to, results, total in ((torch.float64, golden, sums[0]), (dtype, plain, sums[1])):
            finite = {name: torch.nan_to_num(p) for name, p in parameters.items()}
            wanted = oracles.outputs_and_gradients(
                lambda s=s, **given: oracle(s, **given),
                {name: share[name] for name in names} | finite, share["cotangent"], to,
            )  # fmt: skip
            for name, value in wanted.items():
                if name in parameters:
                    total[name] = total.get(name, 0) + value
                else:
                    results[s, name] = value
        for name, value in found.items():
            like = golden[s, name]
            for whole, into in ((value, cut), (again[name], cut_again), (single[name], cut_single)):
                mine = whole.tensor_split(count)[s]
                mine = mine.unflatten(-1, (-1, widths[name]))[..., : like.shape[-1]]
                into[s, name] = mine.reshape(like.shape)
    for (s, name), value in cut.items():
        assert bits_equal(value, cut_again[s, name]), name
        assert bits_equal(value, cut_single[s, name]), name
        if value.numel():
            three = ({name: results[s, name]} for results in (cut, golden, plain))
            assert_within_budget(*three, dtype, epsilons=4)
    for name, gradient in gradients.items():
        inside = boxes[name]
        assert bits_equal(gradient, gradients_again[name]), name
        assert bits_equal(gradient[~inside], held[name][~inside]), name
        if exact:
            assert bits_equal(gradient, gradients_single[name]), name
        golden_, plain_ = ({name: total[name] + held[name].to(total[name])} for total in sums)
        assert_within_budget(
            {name: torch.where(inside, gradient, 0.0)},
            {name: torch.where(inside, golden_[name], 0.0)},
            {name: torch.where(inside, plain_[name], 0.0)}, dtype, epsilons=8,
        )  # fmt: skip


def check_linear(sizes, *, device="cpu", dtype=torch.float32, exact, stacked=False, flat=False,
                 fused=True, images=2, launched=(20, 12)):  # fmt: skip
    """`sizes`: rows and columns of each subnet, at most `launched`. A subnet without columns has no
    layer; one without rows has no outputs, and `fused` must then be False."""
    parts = 2 if stacked else 1
    given = {"dtype": dtype, "device": device}
    out_max, in_max = launched[0] + 4, launched[1] + 3
    used = torch.zeros(parts, out_max, in_max, dtype=torch.bool, device=device)
    used_bias = torch.zeros(parts, out_max, dtype=torch.bool, device=device)
    for out, in_ in sizes:
        used[:, :out, :in_] = True
        if in_ and flat:
            used_bias.view(-1)[: parts * out] = True
        elif in_:
            used_bias[:, :out] = True
    weight = random(parts, out_max, in_max, seed=1, **given) * 0.3
    bias = random(parts, out_max, seed=2, **given)
    shape = (parts, 4, out_max // 4) if stacked else (out_max,)
    bias_shape = (parts * out_max,) if flat else shape
    parameters = {
        "weight": torch.where(used, weight, NAN).view(*shape, in_max),
        "bias": torch.where(used_bias, bias, NAN).view(bias_shape),
    }
    boxes = {"weight": used.view(*shape, in_max), "bias": used_bias.view(bias_shape)}
    scale = torch.rand(len(sizes) * images, generator=torch.Generator().manual_seed(3)).to(device)
    extents = [column([size[i] for size in sizes], device, 2 + i) for i in (0, 1)]
    shares = [
        {
            "x": random(images, 5, in_, seed=10 + s, **given),
            "residual": random(images, 5, parts, out, seed=20 + s, **given) if fused else None,
            "cotangent": random(images, 5, parts, out, seed=30 + s, **given),
        }
        for s, (out, in_) in enumerate(sizes)
    ]  # fmt: skip
    options = {"input_activation": "gelu"} if fused else {}

    def scaled(subnets):
        if not fused:
            return {}
        return {"sample_scale": torch.cat([scale.tensor_split(len(sizes))[s] for s in subnets])}

    def run(subnets, activations, leaves, accumulator):
        of_subnets = [e[list(subnets)] if len(subnets) == 1 else e for e in extents]
        return kernels.linear(
            activations["x"], leaves["weight"], leaves["bias"], residual=activations["residual"],
            out_features=launched[0], gradients=accumulator, **options, **scaled(subnets),
            extents=LinearExtents(*of_subnets),
        )  # fmt: skip

    def oracle(subnet, x, weight, bias, residual=None):
        out, in_ = sizes[subnet]
        if not in_:  # a gradient of zeros for what has no share
            nothing = 0 * (weight.sum() + bias.sum() + x.sum())
            return nothing + residual if fused else nothing.expand(images, 5, parts, out)
        y = oracles.linear(
            x, weight if stacked else weight.view(out_max, in_max), bias, out_features=out,
            residual=None if residual is None else residual.flatten(2), **options,
            **scaled([subnet]),
        )  # fmt: skip
        return y.unflatten(-1, (parts, out))

    widths = dict.fromkeys(("output", "residual", "cotangent"), launched[0])
    check(run, oracle, shares, parameters, boxes, widths | {"x": launched[1]}, dtype, exact)


def check_layer_norm(widths, *, device="cpu", dtype=torch.float32, exact, images=2, largest=40,
                     absent=()):  # fmt: skip
    """`absent`: subnets whose output nothing reads, with cotangents of 0."""
    given = {"dtype": dtype, "device": device}
    used = torch.arange(largest + 4, device=device) < max(widths)
    parameters = {
        name: torch.where(used, random(largest + 4, seed=1 + centre, **given) + centre, NAN)
        for name, centre in (("weight", 1), ("bias", 0))
    }
    shares = []
    for s, width in enumerate(widths):
        cotangent = random(images, 5, width, seed=30 + s, **given)
        shares.append({
            "x": random(images, 5, width, seed=10 + s, **given) * 2 + s,
            "cotangent": cotangent * 0 if s in absent else cotangent,
        })  # fmt: skip
    extents = column(widths, device, 0)
    present = column([int(s not in absent) for s in range(len(widths))], device, 3)

    def run(subnets, activations, leaves, accumulator):
        alone = list(subnets) if len(subnets) == 1 else slice(None)
        y, stream = kernels.pre_norm(
            activations["x"], leaves["weight"], leaves["bias"], gradients=accumulator,
            extents=extents[alone], present=present[alone],
        )  # fmt: skip
        return y + stream

    def oracle(subnet, x, weight, bias):
        return x + oracles.layer_norm(x, weight, bias)

    check(
        run, oracle, shares, parameters, dict.fromkeys(parameters, used),
        dict.fromkeys(("x", "output", "cotangent"), largest), dtype, exact,
    )  # fmt: skip
