"""One subnet trained alone, and what derives from it."""

from __future__ import annotations

import json

import pytest
import tiny_recipe
import torch
from analysis.models import build_model

from growtas import Subnet
from growtas.analysis import derived_subnets, extended, score_derived, train_alone
from growtas.analysis.extend_vs_crop import OneSubnet, plot
from growtas.schedule import Phase
from growtas.supernet import load_supernet
from growtas.training.data import build_data

MIDDLE = Subnet(16, (2, 1), (1, 2))


class TestExtended:
    def test_weights_that_the_subnet_reads_stay_and_the_rest_is_replaced(self, images):
        trained, rest = build_model(0), build_model(1).state_dict()
        before = {name: value.clone() for name, value in trained.state_dict().items()}
        logits = trained(images, MIDDLE)
        extended(trained, MIDDLE, rest)
        assert torch.equal(trained(images, MIDDLE), logits)
        boxes = trained.extents(MIDDLE)
        for name, value in trained.state_dict().items():
            inside = torch.zeros(value.shape, dtype=torch.bool)
            if name in boxes:
                inside[tuple(slice(extent) for extent in boxes[name])] = True
            assert torch.equal(value[inside], before[name][inside]), name
            assert torch.equal(value[~inside], rest[name][~inside]), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("timm")
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("alone")
    recipe = tiny_recipe.load(folder, "optim.weight_decay=0.5")
    data = build_data(recipe.data, recipe.augment)
    subnet = Subnet(8, (2,), (1,))
    return recipe, data, subnet, train_alone(recipe, data, subnet, folder), folder


class TestTrainAlone:
    def test_only_the_subnet_is_trained(self, trained):
        """The rest is bit for bit the initial weights: not even decayed."""
        recipe, _, subnet, model, _ = trained
        torch.manual_seed(recipe.train.seed)
        initial = recipe.build_model(in_chans=1, image_size=8, num_classes=10).state_dict()
        boxes = model.extents(subnet)
        moved = 0
        for name, value in model.state_dict().items():
            outside = torch.ones(value.shape, dtype=torch.bool)
            if name in boxes:
                box = tuple(slice(extent) for extent in boxes[name])
                outside[box] = False
                moved += not torch.equal(value[box], initial[name][box])
            assert torch.equal(value[outside], initial[name][outside]), name
        assert moved > len(boxes) / 2
        assert not model.training

    def test_it_is_what_the_trainer_trained(self, trained):
        _, data, subnet, model, folder = trained
        images = torch.stack([image for image, _ in data.search])[:20]
        theirs = load_supernet(folder / "supernet.safetensors")
        assert torch.equal(model(images, subnet), theirs(images, subnet))

    def test_a_finished_training_is_taken_over_but_no_other(self, trained):
        recipe, data, subnet, model, folder = trained
        checkpoint = (folder / "checkpoint.pt").stat().st_mtime_ns
        again = train_alone(recipe, data, subnet, folder)
        assert (folder / "checkpoint.pt").stat().st_mtime_ns == checkpoint
        for name, value in again.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
        with pytest.raises(ValueError, match="other settings"):
            train_alone(recipe, data, Subnet(8, (1,), (1,)), folder)


class TestOneSubnet:
    def test_plans(self):
        space = build_model().space
        strategy = OneSubnet(MIDDLE)
        phases = strategy.phases(space, 7)
        assert phases == [Phase(0.0, space, f"only {MIDDLE}")]
        plan = strategy.plan(None)  # whatever the step
        assert [(step.subnet, step.loss) for step in plan.passes] == [(MIDDLE, "ce")]

    def test_a_subnet_of_another_space(self):
        with pytest.raises(ValueError, match="is not in space"):
            OneSubnet(Subnet(12, (1,), (1,))).phases(build_model().space, 1)


class TestScores:
    @pytest.fixture
    def rows(self, subject):
        space = subject.space
        return [
            row
            for panel, trained, relation in (
                ("extend", space.smallest(), "larger"),
                ("crop", space.largest(), "smaller"),
            )
            for row in score_derived(
                subject, panel, trained, derived_subnets(space, trained, relation, count=6)
            )
        ]

    def test_rows_are_what_the_evaluator_says(self, subject, rows):
        assert [row.role for row in rows] == (["trained"] + ["derived"] * 6) * 2
        assert [row.panel for row in rows] == ["extend"] * 7 + ["crop"] * 7
        for row in rows:
            subnet = Subnet.from_dict(json.loads(row.subnet))
            score = subject.evaluator.score(subnet)
            assert (row.accuracy_percent, row.loss_nats) == (100 * score.accuracy, score.loss)
            assert row.params == subject.model.num_params(subnet)

    def test_plot(self, rows, tmp_path):
        pytest.importorskip("matplotlib")
        figure = plot(rows)
        for axes, panel in zip(figure.axes, ("extend", "crop"), strict=True):
            trained, *derived = (row for row in rows if row.panel == panel)
            points, dashed, star = axes.lines
            assert list(points.get_xdata()) == [row.params for row in derived]
            assert list(points.get_ydata()) == [row.accuracy_percent for row in derived]
            assert set(dashed.get_ydata()) == {trained.accuracy_percent}
            assert list(star.get_xdata()) == [trained.params]
            assert axes.get_xlabel() == "parameters"
        assert "40 search images" in figure.get_suptitle()
