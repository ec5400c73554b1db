"""Which settings a resumed run must repeat."""

from __future__ import annotations

from dataclasses import fields

from growtas.training import DataConfig, TrainConfig
from growtas.training.identity import lasting


def test_fields_that_change_no_result_are_left_out():
    settings = {
        "train": {"epochs": 3, "device": "cpu", "progress": True},
        "data": {"batch_size": 8, "root": "here"},
        "space": "digits",
    }
    assert lasting(settings) == {
        "train": {"epochs": 3},
        "data": {"batch_size": 8},
        "space": "digits",
    }
    assert settings["train"]["device"] == "cpu"


def test_every_name_left_out_is_a_field():
    left_out = {"train": 0, "data": 0}
    for section, config in (("train", TrainConfig), ("data", DataConfig)):
        names = {field.name: None for field in fields(config)}
        left_out[section] = len(names) - len(lasting({section: names})[section])
    assert left_out == {"train": 7, "data": 5}
