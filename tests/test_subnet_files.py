"""Files of subnets as AutoFormer and PreNAS publish them, and plain ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from growtas import load_subnets, num_params
from growtas.space import SearchSpace, Subnet, SupernetSize
from growtas.supernet.vit.subnet_files import read_subnet

PRENAS = json.loads((Path(__file__).parent / "golden" / "prenas_candidates.json").read_text())
SIZES = ("tiny", "small", "base")

# The published subnet files (microsoft/Cream, AutoFormer/experiments/subnet): RETRAIN lies beside
# the supernet and its space.
RETRAIN = {
    "AutoFormer-T": (
        "tiny",
        {
            "MLP_RATIO": [3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5],
            "NUM_HEADS": [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3],
            "DEPTH": 13,
            "EMBED_DIM": 192,
        },
    ),
    "AutoFormer-S": (
        "small",
        {
            "MLP_RATIO": [3.0, 3.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0],
            "NUM_HEADS": [6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7],
            "DEPTH": 13,
            "EMBED_DIM": 384,
        },
    ),
    "AutoFormer-B": (
        "base",
        {
            "MLP_RATIO": [3.5, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.5],
            "NUM_HEADS": [9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10],
            "DEPTH": 14,
            "EMBED_DIM": 576,
        },
    ),
}
SMALL = {"embed_dim": 32, "num_heads": [2, 2], "mlp_ratio": [2.0, 4]}


def autoformer_file(folder: Path, name: str) -> Path:
    """A subnet file in the form, the order and the spelling of the published ones."""
    size, retrain = RETRAIN[name]
    space = SearchSpace.preset(f"autoformer-{size}")
    axes = ("mlp_ratio", "num_heads", "depth", "embed_dim")
    # two of the tiny files' ratios are written 3.5 and 4
    choices = {a.upper(): [int(v) if v == 4 else v for v in getattr(space, a)] for a in axes}
    supernet = {a.upper(): space.supernet.to_dict()[a] for a in axes}
    content = {"SUPERNET": supernet, "SEARCH_SPACE": choices, "RETRAIN": retrain}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=False))
    return path


def prenas_file(folder: Path, size: str, **changes: object) -> Path:
    """A candidates file in PreNAS's form."""
    content = {}
    for label, values in PRENAS[size].items():
        depth = len(values["num_heads"])
        entry = {"layer_num": depth, **values, "embed_dim": [values["embed_dim"]] * depth}
        content[label] = [{**entry, "score": 1010076.75, **changes}]
    path = folder / f"{size}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", RETRAIN)
def test_autoformer_subnet_files(tmp_path, name):
    path = autoformer_file(tmp_path, name)
    size, retrain = RETRAIN[name]
    subnets = load_subnets(path)
    assert subnets == {
        name: Subnet(retrain["EMBED_DIM"], retrain["NUM_HEADS"], retrain["MLP_RATIO"])
    }
    assert subnets[name].depth == retrain["DEPTH"]
    space = SearchSpace.from_yaml(path)
    assert space == SearchSpace.preset(f"autoformer-{size}")
    assert (subnets[name] in space) == (size != "tiny")  # tiny's ratio 3.0 is not in its space


def test_autoformer_supernet_file_of_base_has_no_8_heads(tmp_path):
    path = tmp_path / "supernet-B.yaml"
    path.write_text(
        "SUPERNET:\n  MLP_RATIO: 4.0\n  NUM_HEADS: 10\n  EMBED_DIM: 640\n  DEPTH: 16\n"
        "SEARCH_SPACE:\n  MLP_RATIO:\n    - 3.0\n    - 3.5\n    - 4.0\n"
        "  NUM_HEADS:\n    - 9\n    - 10\n  DEPTH:\n    - 14\n    - 15\n    - 16\n"
        "  EMBED_DIM:\n    - 528\n    - 576\n    - 624\n"
    )
    space = SearchSpace.from_yaml(path)
    assert space == SearchSpace.preset("autoformer-base").restrict(num_heads=(9, 10))
    assert space.supernet == SupernetSize(640, 10, 4.0, 16)
    with pytest.raises(ValueError, match=r"supernet-B.yaml .* no RETRAIN section"):
        load_subnets(path)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("error")
def test_prenas_candidates_and_their_parameter_counts(tmp_path, size):
    subnets = load_subnets(prenas_file(tmp_path, size))
    assert list(subnets) == list(PRENAS[size])
    for name, values in PRENAS[size].items():
        assert subnets[name] == Subnet(
            values["embed_dim"], values["num_heads"], values["mlp_ratio"]
        )


def test_a_wrong_parameter_count_is_a_warning_that_names_both(tmp_path):
    path = prenas_file(tmp_path, "tiny", num_params=5.994761)
    with pytest.warns(UserWarning, match=r"states other num_params") as seen:
        subnets = load_subnets(path)
    assert len(subnets) == 6
    (warning,) = seen
    assert warning.filename == __file__
    assert "AutoFormer on ImageNet: '6.0': 5.994761 but 5,994,760; '7.0': " in str(warning.message)
    # the same file, counted for another model: (1000 - 100) x (192 + 1) fewer
    with pytest.warns(UserWarning, match=r"num_classes=100: '6.0': 5.994761 but 5,821,060"):
        load_subnets(path, num_classes=100)


@pytest.mark.filterwarnings("error")
def test_counts_of_another_model(tmp_path):
    path = tmp_path / "one.json"
    stated = {**SMALL, "num_params": 43_338}
    path.write_text(json.dumps(stated))
    model = {"image_size": 32, "patch_size": 8, "num_classes": 10}
    # 1969 E + 1000, blocks of 256 h E + 192 h + 6 E + (2 E + 1) f + 7680
    with pytest.raises(UserWarning, match=r"'one': 43338 but 125,768"):
        load_subnets(path)
    with pytest.raises(ValueError, match="image_size 30 x 30 is not a multiple"):
        load_subnets(path, **model | {"image_size": 30})
    # by hand: patches 193 E, positions and token 18 E, head 10 (E + 1), norm 2 E; two blocks
    embed, inner, tables = 32, 128, 4 * 30 * 64
    blocks = sum(
        4 * embed + (embed + 1) * 3 * inner + (inner + 1) * embed
        + (embed + 1) * hidden + (hidden + 1) * embed + tables
        for hidden in (64, 128)
    )  # fmt: skip
    count = (193 + 18 + 10 + 2) * embed + 10 + blocks
    path.write_text(json.dumps({**SMALL, "num_params": count}))
    assert load_subnets(path, **model) == {"one": Subnet(32, (2, 2), (2.0, 4.0))}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (SMALL, ["file"]),
        ([SMALL, SMALL], ["1", "2"]),
        ({"a": SMALL, "b": SMALL}, ["a", "b"]),
        ({"6.0": [SMALL, SMALL], "7.0": [SMALL]}, ["6.0-1", "6.0-2", "7.0"]),
    ],
)
def test_plain_files_by_content(tmp_path, content, names):
    # the suffix says nothing; tabs are JSON, but not YAML
    for name, text in (
        ("file.json", json.dumps(content, indent="\t")),
        ("file.yaml", yaml.safe_dump(content, sort_keys=False)),
        ("file.txt", json.dumps(content)),
    ):
        path = tmp_path / name
        path.write_text(text)
        assert load_subnets(path) == dict.fromkeys(names, Subnet(32, (2, 2), (2.0, 4.0)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no subnet: it holds None"),
        ("[]", "lists no subnet"),
        ("3", "lists no subnet: it holds 3"),
        ("{", "file.json, line 1"),
        ('{"a": 1, "a": 2}', "file.json: 'a' is written twice"),
        ('{"a": 1}', "file.json, subnet 'a': subnet must map names to values, got 1"),
        ('{"RETRAIN": {"EMBED_DIM": 8}}', "subnet 'file': subnet field 'num_heads' is missing"),
        (json.dumps([{**SMALL, "heads": 3}]), "subnet '1': unknown subnet field 'heads'"),
        (json.dumps({"x": [{**SMALL, "embed_dim": [32, 48]}]}), "'x': embed_dim is .32, 48."),
        (json.dumps({"a": [SMALL, SMALL], "a-2": SMALL}), "two subnets with the name 'a-2'"),
        (json.dumps({**SMALL, "num_params": "6M"}), "num_params must be a number, got '6M'"),
        ("!!python/object/apply:os.getcwd []", "file.json, line 1"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_subnets(path)
    assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_candidate_files_in_one(tmp_path):
    """Several of PreNAS's in one file, by name and with notes: the golden file itself."""
    subnets = load_subnets(Path(__file__).parent / "golden" / "prenas_candidates.json")
    assert len(subnets) == 13
    for size in SIZES:
        alone = load_subnets(prenas_file(tmp_path, size))
        assert {
            f"{size}/{name}": subnet for name, subnet in alone.items()
        }.items() <= subnets.items()


def test_a_candidate_as_the_text_of_a_subnet():
    candidate = {**PRENAS["tiny"]["6.0"], "score": 1.5}
    subnet = read_subnet(json.dumps(candidate), SearchSpace.preset("autoformer-tiny"))
    assert subnet == Subnet(192, candidate["num_heads"], candidate["mlp_ratio"])


# AutoFormer's evolution


def evolution(**changes: object) -> dict[str, object]:
    """What its code saves after a generation, for three subnets that it evaluated."""
    cands = [
        (1, 3.5, 3, 192),
        (2, 3.5, 4, 3, 4, 216),
        (2, 4, 4, 4, 4, 240),
        (2, 3.5, 3.5, 3, 3, 192),  # outside its limits
    ]
    params = [num_params(*as_growtas(cand)) / 10.0**6 for cand in cands]
    accuracies = (60.0, 70.5, 65.25)
    vis = {
        cand: {"params": count, "acc": acc, "test_acc": acc - 1, "visited": True}
        for cand, count, acc in zip(cands, params, accuracies, strict=False)
    }
    ranked = [cands[1], cands[2], cands[0]]
    return {
        "top_accuracies": [[70.5, 65.25, 60.0]],
        "memory": [cands[:3]],
        "candidates": [cands[0]],
        "vis_dict": {**vis, cands[3]: {"params": params[3]}},
        "keep_top_k": {2: ranked[:2], 50: ranked},
        "epoch": 1,
        **changes,
    }


def as_growtas(cand: tuple) -> tuple[SearchSpace, Subnet]:
    depth = cand[0]
    subnet = Subnet(cand[-1], cand[depth + 1 : -1], cand[1 : depth + 1])
    space = SearchSpace((192, 216, 240), (1, 2), (3, 4), (3.5, 4.0))
    return space, subnet


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("error")
def test_results_of_autoformers_evolution(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "checkpoint-1.pth.tar"
    torch.save(evolution(), path, _use_new_zipfile_serialization=zipped)
    best = {"1": Subnet(216, (3, 4), (3.5, 4)), "2": Subnet(240, (4, 4), (4, 4))}
    assert load_subnets(path) == {**best, "3": Subnet(192, (3,), (3.5,))}
    space = SearchSpace.preset("autoformer-tiny")
    assert read_subnet(f"{path}:1", space) == best["1"]
    with pytest.raises(ValueError, match="has several; use "):
        read_subnet(str(path), space)
    with pytest.warns(UserWarning, match="num_classes=10: '1': "):
        load_subnets(path, num_classes=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_top_k": {}}, "lists no subnet"),
        ({"keep_top_k": 3}, "keep_top_k must map names to values, got 3"),
        ({"keep_top_k": {50: 3}}, r"keep_top_k\[50\] must be a list, got 3"),
        ({"keep_top_k": {50: [(3, 4.0, 3, 192)]}}, r"subnet '1' is \(3, 4.0, 3, 192\); expected"),
        ({"keep_top_k": {50: ["x"]}}, "subnet '1' is 'x'; expected a depth"),
        ({"keep_top_k": {50: [(1, 4.0, 0, 192)]}}, r"num_heads\[0\] must be at least 1, got 0"),
        ({"vis_dict": 3}, "vis_dict must map names to values, got 3"),
    ],
)
def test_wrong_results_of_an_evolution(tmp_path, changes, message):
    torch = pytest.importorskip("torch")
    path = tmp_path / "checkpoint-1.pth.tar"
    torch.save(evolution(**changes), path)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        load_subnets(path)
    assert str(path) in str(caught.value)


def test_files_of_torch_that_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "checkpoint-1.pth.tar"
    torch.save(evolution(epoch=path), path)
    with pytest.raises(ValueError, match=r"checkpoint-1.pth.tar': it holds a pathlib\S+; allowed"):
        load_subnets(path)
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match=r"no results of AutoFormer's evolution.*load_autoformer"):
        load_subnets(path)
    torch.save(evolution(), path)
    content = bytearray(path.read_bytes())
    content[content.index(b"visited")] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: its record \S+ does not match"):
        load_subnets(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"checkpoint-1.pth.tar is not text"):
        load_subnets(path)


def test_prenas_space_files_are_refused_with_a_hint(tmp_path):
    """Their choices depend on the embedding dim, which is not a space of ours."""
    path = tmp_path / "base.yaml"
    path.write_text(
        "SEARCH_SPACE:\n  DEPTH: {528: [14]}\n  EMBED_DIM: [528]\n"
        "  MLP_RATIO: {528: [[3.0]]}\n  NUM_HEADS: {528: [[9]]}\n"
    )
    with pytest.raises(ValueError, match=r"DEPTH has choices per embedding dim.*load_subnets"):
        SearchSpace.from_yaml(path)


def test_needs_no_torch():
    code = "import sys, growtas; growtas.load_subnets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
