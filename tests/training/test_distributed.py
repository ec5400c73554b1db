"""Two Gloo processes under torchrun: the same weights on both, and those of one process."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from training import distributed_run

from growtas.training import distributed
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


def test_a_single_process_needs_no_group():
    process = distributed.start("cpu")
    assert (process.rank, process.world_size, process.is_main) == (0, 1, True)
    assert process.sum(torch.ones(2)).tolist() == [1, 1]
    if not torch.cuda.is_available():
        assert distributed.start("auto").device.type == "cpu"
        with pytest.raises(ValueError, match="'cuda', but torch sees no GPU"):
            distributed.start("cuda")
