"""The supernet computes what AutoFormer's own model computed (values stored in tests/golden).

The stored files hold no tensors: weights, images and probes are rebuilt by the rule that ``seed``
stands for, one NumPy generator per tensor, keyed by its name in AutoFormer's checkpoint. They enter
through `growtas.load_autoformer` and every gradient is compared under AutoFormer's key.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import growtas
from growtas.compat.autoformer_layout import to_autoformer

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = {
    name: json.loads((FOLDER / f"autoformer_{name}_2026.json").read_text())
    for name in ("micro", "tiny", "small", "base")
}
RTOL = 2e-4  # of the issue; the values are float32 sums in another order


def tensor(key: str, shape: list[int], seed: int) -> torch.Tensor:
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(0.05)
    return torch.from_numpy(values + 1 if "norm" in key and key.endswith("weight") else values)


class Original:
    """A stored file, the supernet that `load_autoformer` makes of its tensors, and the probe that
    each gradient is multiplied with, by AutoFormer's key."""

    def __init__(self, name: str) -> None:
        self.name, self.golden = name, GOLDEN[name]
        keys, seed = self.golden["keys"], self.golden["seed"]
        state = {key: tensor(key, shape, seed) for key, shape in keys.items()}
        self.probes = {key: tensor(key, shape, seed + 1) for key, shape in keys.items()}
        self.model = growtas.load_autoformer({"model": state})


@pytest.fixture(scope="module")
def original(request):
    return Original(request.param)


def batch(golden: dict) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng([golden["seed"], 11])
    shape = (golden["batch"], 3, golden["img_size"], golden["img_size"])
    images = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    return images, torch.from_numpy(rng.integers(0, golden["num_classes"], golden["batch"]))


@contextlib.contextmanager
def backend_or_skip(backend: str):
    try:
        with growtas.kernels.use_backend(backend):
            yield
    except growtas.kernels.BackendUnavailable as error:
        pytest.skip(str(error))


# the slow backend computes one case of the large supernets
CASES = [
    pytest.param(name, index, backend, id=f"{name}-{index}-{backend}")
    for name, golden in GOLDEN.items()
    for index in range(len(golden["cases"]))
    for backend in ("reference", "native")
    if backend == "native" or index == 0 or name in ("micro", "tiny")
]


@pytest.mark.parametrize(
    ("original", "index", "backend"), CASES, indirect=["original"], scope="module"
)
def test_logits_loss_and_every_gradient(original, index, backend):
    golden, model = original.golden, original.model
    case = golden["cases"][index]
    images, labels = batch(golden)
    model.zero_grad()
    with backend_or_skip(backend):
        logits = model(images, growtas.Subnet.from_dict(case["subnet"]))
        loss = F.cross_entropy(logits, labels)
        loss.backward()

    want = torch.tensor(case["logits"])
    scale = logits.detach().abs().max().item()
    torch.testing.assert_close(logits[:, : want.shape[1]], want, rtol=RTOL, atol=RTOL * scale / 10)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    assert logits.double().sum().item() == pytest.approx(case["logits_sum"], rel=RTOL)
    assert logits.double().square().sum().item() == pytest.approx(case["logits_sqsum"], rel=RTOL)

    gradients = to_autoformer(
        {
            key: torch.zeros_like(value) if value.grad is None else value.grad
            for key, value in model.named_parameters()
        },
        patch_size=golden["patch_size"],
        in_chans=3,
    )
    assert gradients.keys() == golden["keys"].keys()
    wrong = []
    for key, gradient in gradients.items():
        norm, dot = case["grad_norm"][key], case["grad_dot"][key]
        # a product with random numbers may cancel: its scale is norm x 0.05
        slack = RTOL * max(abs(dot), 0.05 * norm)
        # in float32, as stored: on a CPU its own rounding reaches 1e-4 in the largest tensors
        got_norm = gradient.norm().item()
        got_dot = gradient.flatten().double().dot(original.probes[key].flatten().double()).item()
        if not (abs(got_norm - norm) <= RTOL * norm and abs(got_dot - dot) <= slack):
            wrong.append(
                f"{key}: norm {got_norm:.7g} not {norm:.7g}, dot {got_dot:.7g} not {dot:.7g}"
            )
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("original", GOLDEN, indirect=True, scope="module")
def test_extracted_subnets_have_the_logits_and_exactly_the_parameters(original):
    golden, model = original.golden, original.model
    images, _ = batch(golden)
    for index, case in enumerate(golden["cases"]):
        subnet = growtas.Subnet.from_dict(case["subnet"])
        assert model.num_params(subnet) == case["num_params"]
        if index and original.name in ("small", "base"):  # one of them is enough to run
            continue
        alone = model.extract(subnet)
        assert sum(value.numel() for value in alone.parameters()) == case["num_params"]
        with torch.inference_mode():
            logits = alone(images)
        want = torch.tensor(case["logits"])
        scale = logits.abs().max().item()
        torch.testing.assert_close(
            logits[:, : want.shape[1]], want, rtol=RTOL, atol=RTOL * scale / 10
        )


@pytest.mark.parametrize(
    ("original", "parameters"),
    [("tiny", 11_669_224), ("small", 34_790_440), ("base", 80_160_360)],
    indirect=["original"],
    scope="module",
)
def test_sizes_in_the_tensors_are_the_presets(original, parameters):
    model = original.model
    preset = growtas.SearchSpace.preset(f"autoformer-{original.name}")
    assert model.space.shares_supernet(preset)
    with torch.device("meta"):
        assert model.config == growtas.Supernet(preset, qkv_bias="autoformer").config
    assert sum(value.numel() for value in model.parameters()) == parameters
