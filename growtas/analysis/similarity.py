"""GrowTAS Fig. 4: how similar a subnet's tokens are to those of another one, block by block.

After block l both subnets have a token for every patch (and the class token). A token pair is the
same token of the same image in both; its similarity is the cosine between the channels that both
have, the leading ones. Reported are mean and standard deviation over all token pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from growtas.analysis.figures import COLOURS, STYLES, legend_below, new_figure
from growtas.analysis.sampling import Relation
from growtas.analysis.subject import subnet_text, with_bar
from growtas.base.checks import positive_int
from growtas.base.distributed import Process
from growtas.base.precision import autocast
from growtas.space import Subnet
from growtas.supernet import Supernet
from growtas.training.data import DataBundle, ImageView, Split
from growtas.training.evaluation import evaluating

Tokens = Literal["all", "patches", "class"]


class SimilarityRow(NamedTuple):
    """A subnet against its reference after one block."""

    supernet: str
    relation: str  # of the subnet to the reference: "larger" or "smaller"
    reference: str  # subnet, JSON
    subnet: str  # JSON
    embed_dim: int  # of the subnet
    params: int  # of the subnet
    block: int  # from 1
    cosine_mean: float  # -1 to 1
    cosine_std: float  # over the token pairs, not over subnets
    token_pairs: int
    tokens: str  # which: "all", "patches" or "class"
    split: str


@torch.no_grad()
def block_outputs(model: Supernet, images: Tensor, subnet: Subnet) -> list[Tensor]:
    """The tokens after each block of a subnet: [B, tokens, embed_dim] for each of its blocks.

    The class token, where the model has one, comes first.
    """
    model.space.supernet.validate(subnet)
    streams = [model.embed(images, subnet.embed_dim)]
    for i in range(subnet.depth):
        streams.append(model.block(i, streams[-1], subnet))
    return streams[1:]


class Comparison(NamedTuple):
    """Subnets of one supernet, and another one of its subnets that they are compared to."""

    name: str  # of the supernet
    model: Supernet
    relation: Relation  # of the subnets to the reference
    reference: Subnet
    subnets: Sequence[Subnet]


def compare_tokens(
    comparison: Comparison,
    batches: Iterable[tuple[Tensor, Tensor]],
    process: Process,
    *,
    tokens: Tokens = "all",
    split: str = "search",
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> list[SimilarityRow]:
    """Cosine similarity of the subnets' tokens to those of their reference, block by block.

    Blocks that only one of the two has are left out. The model runs in evaluation mode; cosines
    are computed in float32 and summed in float64.

    Args:
        comparison: each of its subnets gives one row for each block that the reference has too.
        batches: (images [B, C, H, W], labels) of this process; read once.
        process: whose device to use; sums are over the batches of all processes.
        tokens: "all", only the "patches", or only the "class" token.
        split: label of the rows.
        dtype: of autocast, None for float32.
        progress: show a progress bar (needs tqdm).

    Raises:
        ValueError: an unknown kind of tokens, the class token of a model without one, or no images.
    """
    name, model, relation, reference, subnets = comparison
    first = _token_slice(model, tokens)
    depths = [min(subnet.depth, reference.depth) for subnet in subnets]
    # Of each subnet and block: token pairs, the sum of their cosines, the sum of the squares.
    sums = torch.zeros(len(subnets), reference.depth, 3, dtype=torch.float64, device=process.device)
    with evaluating(model):
        for images, _ in with_bar(batches, f"{name}, {relation}", progress, unit="batch"):
            images = images.to(process.device, non_blocking=True)
            with autocast(dtype, process.device):
                expected = block_outputs(model, images, reference)
                for index, subnet in enumerate(subnets):
                    outputs = block_outputs(model, images, subnet)
                    for block, pair in enumerate(zip(expected, outputs, strict=False)):
                        sums[index, block] += _cosine_sums(*(side[:, first] for side in pair))
    sums = process.sum(sums)
    if not sums[:, 0, 0].all():
        raise ValueError("there are no images to compare on")
    return [
        SimilarityRow(
            name,
            relation,
            subnet_text(reference),
            subnet_text(subnet),
            subnet.embed_dim,
            model.num_params(subnet),
            block,
            total / count,
            max(squares / count - (total / count) ** 2, 0.0) ** 0.5,
            int(count),
            tokens,
            split,
        )
        for subnet, depth, blocks in zip(subnets, depths, sums.tolist(), strict=True)
        for block, (count, total, squares) in enumerate(blocks[:depth], start=1)
    ]


def _token_slice(model: Supernet, tokens: str) -> slice:
    has_class_token = model.config["class_token"]
    if tokens not in get_args(Tokens):
        raise ValueError(f"tokens must be one of {', '.join(get_args(Tokens))}, got {tokens!r}")
    if tokens == "class" and not has_class_token:
        raise ValueError("this model has no class token; tokens must be all or patches")
    if tokens == "class":
        return slice(0, 1)
    return slice(int(has_class_token) if tokens == "patches" else 0, None)


def _cosine_sums(ours: Tensor, theirs: Tensor) -> Tensor:
    """[number, sum, sum of squares] of the cosines of all pairs of tokens."""
    width = min(ours.shape[-1], theirs.shape[-1])
    cosines = F.cosine_similarity(ours[..., :width].float(), theirs[..., :width].float(), dim=-1)
    cosines = cosines.double()
    count = torch.tensor(cosines.numel(), dtype=torch.float64, device=cosines.device)
    return torch.stack((count, cosines.sum(), cosines.square().sum()))


def spread_batches(
    data: DataBundle, split: Split, max_images: int | None, process: Process
) -> torch.utils.data.DataLoader[Any]:
    """This process's share of at most `max_images` of a split, spread evenly over it.

    Raises:
        ValueError: `max_images` below 1.
    """
    if max_images is not None:
        positive_int("images", max_images)
    view: ImageView = data.search if split == "search" else data.test
    total = len(view)
    wanted = min(max_images or total, total)
    picked = [i * total // wanted for i in range(wanted)][process.rank :: process.world_size]
    return torch.utils.data.DataLoader(
        torch.utils.data.Subset(view, picked),
        batch_size=data.config.eval_batch_size,
        num_workers=data.config.workers,
    )


def pooled(rows: Iterable[SimilarityRow]) -> dict[int, tuple[float, float]]:
    """Mean and standard deviation over the token pairs of all `rows`, by block."""
    result = {}
    for block, group in groupby(sorted(rows, key=lambda row: row.block), lambda row: row.block):
        members = list(group)
        count = sum(row.token_pairs for row in members)
        mean = sum(row.token_pairs * row.cosine_mean for row in members) / count
        square = sum(row.token_pairs * (row.cosine_std**2 + row.cosine_mean**2) for row in members)
        result[block] = (mean, max(square / count - mean**2, 0.0) ** 0.5)
    return result


def plot(rows: Sequence[SimilarityRow]) -> Any:
    """A matplotlib figure: similarity against block, one panel for each supernet, with all larger
    subnets against the reference that they contain and all smaller ones against the reference that
    contains them, each with a band of one standard deviation, and thin lines for each embedding
    dim."""
    names = list(dict.fromkeys(row.supernet for row in rows))
    first = rows[0]
    subnets = {(row.relation, row.subnet) for row in rows if row.supernet == names[0]}
    counts = Counter(relation for relation, _ in subnets)
    numbers = " and ".join(f"{n} {relation}" for relation, n in sorted(counts.items()))
    pairs = max(row.token_pairs for row in rows)
    figure = new_figure(
        len(names),
        f"{numbers} subnets than the reference\n{pairs:,} token pairs ({first.tokens} tokens) of "
        f"{first.split} images for each\nbands: one standard deviation over pairs and subnets",
        width=5.0,
    )
    widths = sorted({row.embed_dim for row in rows})
    looks = {"larger": (COLOURS[1], "o"), "smaller": (COLOURS[3], "s")}
    for axes, name in zip(figure.axes, names, strict=True):
        for relation, (colour, marker) in looks.items():
            mine = [row for row in rows if (row.supernet, row.relation) == (name, relation)]
            if not mine:
                continue
            blocks, means, stds = _lines(mine)
            label = f"{relation} than the reference"
            axes.plot(blocks, means, color=colour, marker=marker, lw=2.5, label=label)
            high = np.minimum(means + stds, 1.0)
            axes.fill_between(blocks, means - stds, high, color=colour, alpha=0.15)
            for embed_dim in sorted({row.embed_dim for row in mine}):
                blocks, means, _ = _lines([row for row in mine if row.embed_dim == embed_dim])
                style = STYLES[widths.index(embed_dim) % len(STYLES)]
                label = f"{relation}, embedding {embed_dim}"
                axes.plot(blocks, means, color=colour, ls=style, lw=1, label=label)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("block")
        axes.set_xticks(sorted({row.block for row in rows}))
    figure.axes[0].set_ylabel("cosine similarity of tokens")
    legend_below(figure, columns=2)
    return figure


def _lines(rows: Sequence[SimilarityRow]) -> tuple[list[int], np.ndarray, np.ndarray]:
    by_block = pooled(rows)
    means, stds = np.transpose(list(by_block.values()))
    return list(by_block), means, stds
