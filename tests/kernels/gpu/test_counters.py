"""The counters that launches share, with a stand-in for torch.cuda."""

from __future__ import annotations

import pytest
import torch

from growtas.kernels.triton import counters as triton_counters
from growtas.kernels.triton.counters import counters

CUDA = torch.device("cuda", 0)


class Cuda:
    """What `counters` asks of torch.cuda."""

    def __init__(self):
        self.cuda_stream, self.capturing = 7, False

    def current_stream(self, device):
        return self

    def is_current_stream_capturing(self):
        return self.capturing


@pytest.fixture
def cuda(monkeypatch):
    zeros, cuda = torch.zeros, Cuda()
    monkeypatch.setattr(torch, "zeros", lambda count, dtype, device: zeros(count, dtype=dtype))
    for name in ("current_stream", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(triton_counters, "_of_streams", {})
    monkeypatch.setattr(triton_counters, "_reserves", {})
    monkeypatch.setattr(triton_counters, "RESERVE", 100)
    return cuda


def place(tensor):
    start = tensor.data_ptr() // 4
    return range(start, start + len(tensor))


def test_launches_on_a_stream_share_theirs(cuda):
    first, other = counters(CUDA, 5), counters(CUDA, 9)
    assert place(first).start == place(other).start
    assert len(other) == 9
    cuda.cuda_stream = 8
    assert place(counters(CUDA, 5)).start != place(first).start
    assert len(counters(CUDA, 5000)) == 5000
    assert torch.all(counters(CUDA, 5000) == 0)


def test_captured_launches_share_with_nobody(cuda):
    """Not with each other, nor with another graph, nor with what runs on the stream later."""
    given = [counters(CUDA, 30)]
    for _ in range(3):
        cuda.capturing = True
        given += [counters(CUDA, 30) for _ in range(4)]
        cuda.capturing = False
        counters(CUDA, 30)
    taken = [at for tensor in given for at in place(tensor)]
    assert len(set(taken)) == len(taken) == 13 * 30
    assert all(torch.all(tensor == 0) for tensor in given)


def test_without_a_call_before_the_capture(cuda):
    cuda.capturing = True
    first, second = counters(CUDA, 3), counters(CUDA, 3)
    assert not set(place(first)) & set(place(second))


def test_on_a_cpu_nothing_is_kept(device):
    first = counters(torch.device("cpu"), 4)
    assert first.dtype == torch.int32
    assert first.tolist() == [0] * 4
