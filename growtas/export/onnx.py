"""Stand-alone models as ONNX files."""

from __future__ import annotations

import os

import torch

from growtas.base.optional import require
from growtas.supernet.vit.standalone import VisionTransformer


def to_onnx(module: VisionTransformer, path: str | os.PathLike[str], *, opset: int = 18) -> None:
    """Write a stand-alone model as one ONNX file with a free batch size.

    Input ``images`` ``[B, in_chans, height, width]`` float32, output ``logits``
    ``[B, num_classes]``. Needs ``pip install 'growtas[export]'``.

    Args:
        module: from :meth:`growtas.Supernet.extract`; exported in evaluation mode.
        path: file to write.
        opset: ONNX operator set.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "export")
    config = module.config
    images = torch.zeros(2, config["in_chans"], *config["image_size"])
    training = module.training
    try:
        torch.onnx.export(
            module.eval(),
            (images.to(next(module.parameters()).device),),
            os.fspath(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finally:
        module.train(training)
