"""docs/a-step.md names the files on the way of a step, each once."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_is_there_and_named_once():
    text = (ROOT / "docs/a-step.md").read_text()
    named = re.findall(r"`((?:growtas|csrc)/[\w/.]+)`", text)
    assert len(named) == len(set(named)) > 10
    for path in named:
        assert (ROOT / path).exists(), path
        assert (ROOT / path).is_dir() == path.endswith("/"), path
