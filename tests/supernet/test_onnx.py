"""ONNX files give the stand-alone model's logits in another runtime, for any batch size."""

from __future__ import annotations

import pytest
import torch

from growtas.export.onnx import to_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def test_reference_evaluator_agrees(tmp_path, model, subnets):
    from onnx.reference import ReferenceEvaluator

    alone = model.eval().extract(subnets[0])
    alone.reset_classifier(4)
    to_onnx(alone, tmp_path / "model.onnx")
    runtime = ReferenceEvaluator(onnx.load(tmp_path / "model.onnx"))
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 16)
        (logits,) = runtime.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), alone(images), rtol=1e-4, atol=1e-4)
