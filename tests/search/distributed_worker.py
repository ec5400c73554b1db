"""One rank of a distributed search: ``distributed_worker.py RANK WORLD_SIZE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from growtas import SearchSpace, Supernet
from growtas.search import Evaluator, SearchConfig, model_cost, search


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        method = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=world_size)
    torch.manual_seed(0)
    space = SearchSpace.preset("digits").restrict(depth=4)
    model = Supernet(space, image_size=8, patch_size=2, num_classes=10, in_chans=1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    images, labels = torch.randn(31, 1, 8, 8), torch.randint(0, 10, (31,))
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    evaluator = Evaluator.from_loader(model, batches, batch_size=8)
    limits = ({"max_params": "120K"}, {"min_params": "120K"})
    config = SearchConfig(population=4, generations=3, limits=limits)
    # Half of it, then the rest: rank 0's state reaches every rank.
    for generations in (1, 3):
        part = SearchConfig(population=4, generations=generations, limits=limits)
        result = search(
            space, evaluator, part, model_cost(model), run_dir=folder, resume=True, progress=False
        )
    assert result.config == config
    own = len(evaluator._labels)
    (folder / f"rank{rank}.json").write_text(result.to_json())
    (folder / f"rank{rank}.count").write_text(f"{own} {evaluator.count} {evaluator.fingerprint()}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
