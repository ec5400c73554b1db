"""`python -m benchmarks.compare BEFORE.csv AFTER.csv`: the same cases of two commits, side by side.

For rows that cannot take turns in one process. Measure both commits several times in turn, into a
file each: of every case the fastest run's 20 % quantile counts, since whatever else a machine does
only adds time. The exit status is 1 if a case takes more than `--allowed` times as long as before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command, rows

Case = tuple[str, str, str, str, int, str]


def fastest(found: Sequence[rows.Row]) -> dict[Case, float]:
    """Seconds of each case."""
    best: dict[Case, float] = {}
    for row in found:
        if row.metric == "wall_time":
            case = (row.task, row.variant, row.space, row.subnet, row.batch, row.dtype)
            best[case] = min(row.q20, best.get(case, row.q20))
    return best


def ratios(before: Sequence[rows.Row], after: Sequence[rows.Row]) -> dict[Case, float]:
    """After over before, for the cases of both, the worst first."""
    old, new = fastest(before), fastest(after)
    found = {case: new[case] / old[case] for case in old if case in new}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("compare", __doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--allowed", type=float, default=1.03, help="after / before")
    args = parser.parse_args(arguments)
    before, after = rows.read(args.before), rows.read(args.after)
    old, found = fastest(before), ratios(before, after)
    if not found:
        parser.error("the files have no case in common")
    for case, ratio in found.items():
        what = " ".join(str(part) for part in case if part)
        print(f"{ratio:.3f}  {1e6 * old[case]:10.1f} us  {what}")
    slower = sum(ratio > args.allowed for ratio in found.values())
    print(f"{slower} of {len(found)} cases take more than {args.allowed:g} times as long")
    return int(slower > 0)


if __name__ == "__main__":
    sys.exit(main())
