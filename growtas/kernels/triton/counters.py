"""Counters in device memory by which the programs of one launch find out which of them is last."""

from __future__ import annotations

import torch
from torch import Tensor

# Counters set aside for graphs at a time: a large model's backward takes hundreds.
RESERVE = 1 << 16

_of_streams: dict[tuple[torch.device, int], Tensor] = {}
_reserves: dict[torch.device, list[Tensor]] = {}  # kept for good: graphs hold their addresses


def counters(device: torch.device, count: int) -> Tensor:
    """int32 ``[count]`` zeros, for a kernel that leaves zeros behind (`last_to_arrive` does).

    Launches on one stream follow each other, so they share theirs and nothing is filled again. Two
    graphs may be replayed at the same time, whatever stream they were captured on: while a graph is
    captured, every call gets counters that no other ever will.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        reserve = _reserves.get(device)
        if not reserve or len(reserve[-1]) < count:
            return torch.zeros(count, dtype=torch.int32, device=device)  # filled by the graph
        mine, reserve[-1] = reserve[-1][:count], reserve[-1][count:]
        return mine
    reserve = _reserves.setdefault(device, [])
    if not reserve or len(reserve[-1]) < RESERVE // 2:
        reserve.append(torch.zeros(RESERVE, dtype=torch.int32, device=device))
    stream = (device, torch.cuda.current_stream(device).cuda_stream)
    found = _of_streams.get(stream)
    if found is None or len(found) < count:
        size = max(1024, 1 << (count - 1).bit_length())
        found = _of_streams[stream] = torch.zeros(size, dtype=torch.int32, device=device)
    return found[:count]
