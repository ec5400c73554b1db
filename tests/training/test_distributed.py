"""Two Gloo processes under torchrun: the same weights on both, and those of one process."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from training import distributed_run

from growtas.base import distributed
from growtas.schedule import Uniform
from growtas.training import TrainConfig, Trainer
from growtas.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch was built without Gloo"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    script = Path(distributed_run.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONFAULTHANDLER"] = "1"
    for attempt in range(2):
        target = folder / f"attempt{attempt}"
        target.mkdir()
        done = subprocess.run(
            [*command, str(script), str(target)],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        # Once in some thirty launches a process was killed by SIGABRT, for a reason not found yet;
        # that is reported and tried again, anything else is a failure at once.
        if done.returncode == 0 or "SIGABRT" not in done.stderr:
            break
        warnings.warn(f"torchrun aborted: {done.stderr[-4000:]}", stacklevel=1)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = target
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", list(distributed_run.CASES))
def test_ranks_agree_and_equal_one_process_with_the_whole_batch(ranks, case, tmp_path):
    _, (first, second) = ranks
    for name, weight in first[case]["weights"].items():
        assert torch.equal(weight, second[case]["weights"][name]), name
    assert first[case]["losses"] == second[case]["losses"]
    alone = distributed_run.train(case, tmp_path)
    moved = 0.0
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first[case]["weights"][name], weight, rtol=1e-5, atol=1e-6)
        start = distributed_run.supernet().state_dict()[name]
        moved = max(moved, float((weight - start).abs().max()))
    assert moved > 1e-2
    assert first[case]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    ours, theirs = first[case]["metrics"], alone["metrics"]
    assert ours["phase"] == theirs["phase"]
    for name in ("train_loss", "train_accuracy", "largest_accuracy", "largest_loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_one_diverging_rank_stops_both(ranks):
    folder, found = ranks
    for rank in found:
        assert "the loss of step 7" in rank["nan"]["message"]
        assert "checkpoint.pt" in rank["nan"]["message"]
    state = load_checkpoint(folder / "nan" / "checkpoint.pt")
    assert state["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_an_unreadable_image_counts_once_however_many_ranks_met_it(ranks):
    assert [rank["unreadable"]["images"] for rank in ranks[1]] == [[0, 1, 5]] * 2


def test_a_signal_to_one_rank_stops_both_at_the_same_step(ranks):
    _, found = ranks
    for rank in found:
        assert (rank["stop"]["step"], rank["stop"]["code"]) == (7, 143)
        assert rank["stop"]["metrics"] == rank["plus"]["metrics"]
        for name, weight in rank["plus"]["weights"].items():
            assert torch.equal(rank["stop"]["weights"][name], weight), name


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_loop_of_ones_own_needs_unused_parameters_to_be_found(group):
    """What docs/training.md says of DistributedDataParallel: blocks beyond a subnet's depth get no
    gradient, and it waits for them."""
    images = torch.randn(2, 1, 8, 8)

    def two_steps(**options) -> None:
        model = torch.nn.parallel.DistributedDataParallel(distributed_run.supernet(), **options)
        for _ in range(2):
            model(images, model.module.space.smallest()).sum().backward()

    with pytest.raises(RuntimeError, match=r"find_unused_parameters=True"):
        two_steps()
    two_steps(find_unused_parameters=True)


def test_a_wrapped_model_is_refused_by_name(group, tmp_path):
    wrapped = torch.nn.parallel.DistributedDataParallel(distributed_run.supernet())
    with pytest.raises(TypeError, match=r"model is a DistributedDataParallel; allowed: a Supernet"):
        Trainer(wrapped, Uniform(), distributed_run.digits(), TrainConfig(), tmp_path)


def test_a_single_process_needs_no_group():
    process = distributed.start("cpu")
    assert (process.rank, process.world_size, process.is_main) == (0, 1, True)
    assert process.sum(torch.ones(2)).tolist() == [1, 1]
    if not torch.cuda.is_available():
        assert distributed.start("auto").device.type == "cpu"
        with pytest.raises(ValueError, match="'cuda', but torch sees no GPU"):
            distributed.start("cuda")
