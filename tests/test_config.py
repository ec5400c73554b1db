"""Strict loading: right values arrive in the right type, wrong ones are refused with help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from growtas.base.config import (
    ConfigError,
    apply_override,
    build,
    convert,
    differences,
    dump_yaml,
    load_yaml,
    split_override,
    to_plain,
)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, got {self.rate}")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    mode: Literal["a", "b"] = "a"
    limit: int | float | str | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[Inner, ...] = ()
    switch: bool | Inner = False
    free: dict[str, Any] = field(default_factory=dict)


class TestYaml:
    def test_plain_values(self):
        text = "a: 1e-3\nb: -5E+4\nc: off\nd: true\ne: 6M\nf: [1, 2.5]\ng: null\n"
        values = {"a": 1e-3, "b": -5e4, "c": "off", "d": True, "e": "6M", "f": [1, 2.5], "g": None}
        assert load_yaml(text) == values

    def test_merge_keys_still_work(self):
        assert load_yaml("base: &b {x: 1}\nmore:\n  <<: *b\n  y: 2")["more"] == {"x": 1, "y": 2}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: 1\nb: 2\na: 3", "file, line 3: 'a' is written twice"),
            ("a: [1", "file, line 1"),
            ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ],
    )
    def test_refused(self, text, message):
        with pytest.raises(ConfigError, match=message):
            load_yaml(text, source="file")

    def test_dump_is_read_back(self):
        values = {"a": "off", "b": 1e-5, "c": (1, 2), "d": [{"x": "1e-3"}], "e": None, "f": "null"}
        assert load_yaml(dump_yaml(values)) == to_plain(values)


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("optim.lr=1e-3", (("optim", "lr"), 1e-3)),
            ("a=b=c", (("a",), "b=c")),
            ("a.b=", (("a", "b"), None)),
            ("a.b[0].c=1", (("a", "b", 0, "c"), 1)),
            ("a[1][12]=1", (("a", 1, 12), 1)),
            ("a=[{x: 6M}]", (("a",), [{"x": "6M"}])),
        ],
    )
    def test_split(self, text, expected):
        assert split_override(text) == expected

    @pytest.mark.parametrize(
        "text", ["epochs", "=3", "a..b=3", ".a=1", "a[x]=1", "a[-1]=1", "[0]=1", "a[0]b=1", "a[]=1"]
    )
    def test_split_refuses(self, text):
        with pytest.raises(ConfigError, match=r"section\.field=value"):
            split_override(text)

    def test_apply(self):
        values = {"a": {"b": 1, "l": [{"x": 1}, {"x": 2}]}, "empty": None}
        apply_override(values, ("a", "b"), 5)
        apply_override(values, ("a", "l", 1, "x"), 7)
        apply_override(values, ("a", "l", "0"), {"x": 0})  # written a.l.0
        apply_override(values, ("empty", "y"), 3)
        apply_override(values, ("new", "z"), 4)
        assert values == {
            "a": {"b": 5, "l": [{"x": 0}, {"x": 7}]}, "empty": {"y": 3}, "new": {"z": 4}
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            (("a", "b", "c"), "a.b is the value 1"),
            (
                ("a", "l", 1, "x"),
                r"set a\.l\[1\]\.x: a\.l is a list; its positions are \[0\] to \[0\]",
            ),
            (("a", "l", "x"), r"a\.l is a list; its positions are"),
            (("a", "none", 0), r"a\.none is an empty list"),
            (("a", "new", 0, "x"), r"a\.new is not a list .* all of it: a\.new='\[\.\.\.\]'"),
            (("a", 0), "a is not a list"),
        ],
    )
    def test_apply_refuses(self, path, message):
        with pytest.raises(ConfigError, match=message):
            apply_override({"a": {"b": 1, "l": [{}], "none": []}}, path, 0)


class TestBuild:
    def test_nested(self):
        built = build(
            Outer,
            {
                "name": "n", "inner": {"rate": 1, "sizes": [1, 2]}, "mode": "b", "limit": "6M",
                "pair": [0, 2], "many": [{"rate": 0.5}, None], "switch": {"sizes": []},
                "free": {"x": {"y": [1]}},
            },
        )  # fmt: skip
        assert built == Outer(
            "n", Inner(1.0, (1, 2)), "b", "6M", (0.0, 2.0), (Inner(0.5), Inner()), Inner(sizes=()),
            {"x": {"y": [1]}},
        )  # fmt: skip
        assert isinstance(built.inner.rate, float)
        assert isinstance(built.pair[1], float)
        assert build(Outer, to_plain(built)) == built

    def test_empty_section_means_defaults(self):
        assert build(Outer, {"name": "n", "inner": None}) == Outer("n")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"inner": {"rat": 1}}, r"unknown field inner\.rat \(did you mean 'rate'\?\)"),
            ({"inner": {"zzzz": 1}}, r"unknown field inner\.zzzz; known fields: rate, sizes"),
            ({"inner": 3}, r"inner: expected fields \(name: value\), got 3 \(integer\)"),
            ({"inner": {"rate": "x"}}, r"inner\.rate: expected a number, got 'x' \(text\)"),
            ({"inner": {"rate": True}}, r"inner\.rate: expected a number"),
            ({"inner": {"rate": -1}}, "^inner: rate must not be negative, got -1"),
            ({"inner": {"sizes": 3}}, r"inner\.sizes: expected a list, each item an integer"),
            ({"inner": {"sizes": [1, 2.5]}}, r"inner\.sizes\[1\]: expected an integer, got 2.5"),
            ({"many": [{"rate": None}]}, r"many\[0\]\.rate: .* got nothing \(null\)"),
            ({"mode": "c"}, "mode: expected one of 'a', 'b', got 'c'"),
            ({"pair": [1]}, "pair: expected a list of 2"),
            ({"switch": {"rat": 1}}, r"switch\.rat \(did you mean"),
            ({"switch": "x"}, "switch: expected true or false or a mapping with rate, sizes"),
            ({"name": 3}, "name: expected a text, got 3"),
            ({"free": []}, "free: expected a mapping"),
        ],
    )
    def test_refused(self, values, message):
        with pytest.raises(ConfigError, match=message):
            build(Outer, {"name": "n", **values})

    def test_missing(self):
        with pytest.raises(ConfigError, match=r"x\.name is missing \(a text\)"):
            build(Outer, {}, where="x")

    @pytest.mark.parametrize(
        ("value", "annotation", "expected"),
        [
            (3, int | float, 3),
            (3.0, int, 3),
            (5e5, int, 500000),
            (None, float | None, None),
            ([1], Sequence[float], (1.0,)),
            ({"a": 1}, Mapping[str, float], {"a": 1.0}),
            ([1, "a"], list[Any], [1, "a"]),
        ],
    )
    def test_convert(self, value, annotation, expected):
        got = convert(value, annotation, where="x")
        assert (got, type(got)) == (expected, type(expected))

    def test_not_a_dataclass(self):
        with pytest.raises(TypeError, match="not a dataclass"):
            build(int, {})


def test_differences():
    left = {"a": {"x": 1, "y": [1]}, "b": 2, "l": [{"x": 1}, {"x": 2}], "gone": None}
    right = {"a": {"x": 1, "y": [2]}, "b": 2, "l": [{"x": 1}, {"x": 3}], "new": 0}
    expected = [
        "a.y: [1] -> [2]",
        "l[1].x: 2 -> 3",
        "gone: None -> (not set)",
        "new: (not set) -> 0",
    ]
    assert differences(left, right) == expected
    assert differences(left, left) == []
