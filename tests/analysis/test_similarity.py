"""Similarity of tokens, against a slow loop over every image and every token."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from analysis.models import build_model

from growtas import Subnet, Supernet
from growtas.analysis.similarity import (
    Comparison,
    block_outputs,
    compare_tokens,
    plot,
    pooled,
    spread_batches,
)
from growtas.analysis.subject import subnet_text
from growtas.base.distributed import Process

PROCESS = Process(0, 1, torch.device("cpu"))
REFERENCE = Subnet(16, (1, 2), (2, 1))
SUBNETS = [Subnet(24, (2, 2, 1), (2, 2, 1)), Subnet(8, (1,), (1,)), Subnet(16, (1, 1), (1, 1))]


@pytest.fixture(params=[True, False], ids=["class token", "patches only"])
def model(request) -> Supernet:
    return build_model(class_token=request.param)


def batches(images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of unequal size, so that a mean of means would be wrong."""
    return [(part, torch.zeros(len(part))) for part in images.split([17, 23])]


def slow_cosines(model, images, subnet, block, first=0, last=None) -> list[float]:
    ours = block_outputs(model, images, REFERENCE)[block].tolist()
    theirs = block_outputs(model, images, subnet)[block].tolist()
    cosines = []
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a[first:last], b[first:last], strict=True):
            width = min(len(x), len(y))
            dot = sum(x[c] * y[c] for c in range(width))
            norms = math.hypot(*x[:width]) * math.hypot(*y[:width])
            cosines.append(dot / norms)
    return cosines


class TestBlockOutputs:
    def test_the_rest_of_the_model_makes_logits_of_the_last_one(self, model, images):
        for subnet in [REFERENCE, *SUBNETS]:
            outputs = block_outputs(model, images, subnet)
            assert len(outputs) == subnet.depth
            tokens = 4 + model.config["class_token"]
            assert all(o.shape == (40, tokens, subnet.embed_dim) for o in outputs)
            last = model.norm(outputs[-1])
            logits = model.head(last[:, model.config["class_token"] :].mean(1))
            torch.testing.assert_close(logits, model(images, subnet))

    def test_images_and_subnets_of_another_size_are_refused(self, model, images):
        with pytest.raises(ValueError, match="images must be"):
            block_outputs(model, images[..., :4], REFERENCE)
        with pytest.raises(ValueError, match="embed_dim"):
            block_outputs(model, images, Subnet(1000, (1,), (1,)))


class TestSimilarity:
    def test_equals_a_slow_loop(self, model, images):
        rows = compare_tokens(
            Comparison("net", model, "larger", REFERENCE, SUBNETS), batches(images), PROCESS
        )
        found = {(row.subnet, row.block): row for row in rows}
        assert len(found) == len(rows) == 2 + 1 + 2  # blocks that both subnets have
        for subnet in SUBNETS:
            for block in range(min(subnet.depth, REFERENCE.depth)):
                row = found[subnet_text(subnet), block + 1]
                cosines = slow_cosines(model, images, subnet, block)
                assert row.token_pairs == len(cosines) == 40 * (4 + model.config["class_token"])
                assert row.cosine_mean == pytest.approx(statistics.fmean(cosines), abs=1e-5)
                assert row.cosine_std == pytest.approx(statistics.pstdev(cosines), abs=1e-4)
                assert row.params == model.num_params(subnet)

    def test_a_subnet_is_like_itself(self, model, images):
        rows = compare_tokens(
            Comparison("net", model, "larger", REFERENCE, [REFERENCE]), batches(images), PROCESS
        )
        for row in rows:
            assert row.cosine_mean == pytest.approx(1, abs=1e-6)
            assert row.cosine_std == pytest.approx(0, abs=1e-3)

    def test_kinds_of_tokens(self, model, images):
        comparison = Comparison("net", model, "smaller", REFERENCE, SUBNETS[:1])
        arguments = (comparison, batches(images), PROCESS)
        if not model.config["class_token"]:
            with pytest.raises(ValueError, match="no class token"):
                compare_tokens(*arguments, tokens="class")
            return
        for tokens, first, last in (("class", 0, 1), ("patches", 1, None)):
            row = compare_tokens(*arguments, tokens=tokens)[0]
            cosines = slow_cosines(model, images, SUBNETS[0], 0, first, last)
            assert row.token_pairs == len(cosines)
            assert row.cosine_mean == pytest.approx(statistics.fmean(cosines), abs=1e-5)

    def test_the_mode_of_the_model_is_given_back(self, model, images):
        model.train()
        compare_tokens(
            Comparison("net", model, "larger", REFERENCE, SUBNETS[:1]), batches(images), PROCESS
        )
        assert model.training

    def test_what_cannot_be_done(self, model, images):
        with pytest.raises(ValueError, match="no images"):
            compare_tokens(Comparison("net", model, "larger", REFERENCE, SUBNETS), [], PROCESS)
        with pytest.raises(ValueError, match="all, patches, class, got 'some'"):
            compare_tokens(
                Comparison("net", model, "larger", REFERENCE, SUBNETS), [], PROCESS, tokens="some"
            )


def test_pooled_is_over_all_token_pairs(model, images):
    rows = compare_tokens(
        Comparison("net", model, "larger", REFERENCE, SUBNETS), batches(images), PROCESS
    )
    for block, (mean, std) in pooled(rows).items():
        cosines = [
            cosine
            for subnet in SUBNETS
            if subnet.depth >= block
            for cosine in slow_cosines(model, images, subnet, block - 1)
        ]
        assert mean == pytest.approx(statistics.fmean(cosines), abs=1e-5)
        assert std == pytest.approx(statistics.pstdev(cosines), abs=1e-4)


def test_plot_shows_the_pooled_means(model, images):
    pytest.importorskip("matplotlib")
    rows = compare_tokens(
        Comparison("net", model, "larger", REFERENCE, SUBNETS), batches(images), PROCESS
    )
    figure = plot(rows)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    expected = [mean for mean, _ in pooled(rows).values()]
    assert list(lines["larger than the reference"].get_ydata()) == pytest.approx(expected)
    assert {label for label in lines if "embedding" in label} == {
        "larger, embedding 8",
        "larger, embedding 16",
        "larger, embedding 24",
    }
    assert "3 larger subnets" in figure.get_suptitle()
    assert "search images" in figure.get_suptitle()


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("sklearn")
    pytest.importorskip("timm")
    from growtas.training.config import DataConfig
    from growtas.training.data import build_data

    return build_data(DataConfig(workers=0, eval_batch_size=7))


class TestSpreadBatches:
    def labels(self, data, split, count, process=PROCESS):
        return [int(y) for _, labels in spread_batches(data, split, count, process) for y in labels]

    def test_evenly_over_the_split(self, data):
        everything = [label for _, label in data.search]
        assert self.labels(data, "search", None) == everything
        assert self.labels(data, "search", 10**6) == everything
        total = len(everything)
        assert self.labels(data, "search", 10) == [everything[i * total // 10] for i in range(10)]
        assert self.labels(data, "test", None) == [label for _, label in data.test]

    def test_processes_share_them(self, data):
        parts = [
            self.labels(data, "search", 9, Process(rank, 2, torch.device("cpu")))
            for rank in range(2)
        ]
        assert [len(part) for part in parts] == [5, 4]
        assert sorted(parts[0] + parts[1]) == sorted(self.labels(data, "search", 9))

    def test_at_least_one(self, data):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            spread_batches(data, "search", 0, PROCESS)
