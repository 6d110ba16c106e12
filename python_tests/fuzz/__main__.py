"""Runs the fuzzers for long, each kind of file in a process of its own: `cd python_tests && python -m fuzz --seconds 600`.

Prints a table of what was tried, refused, right and wrong, and every wrong case with its seed and number, which
`--only KIND --seed S --case N` repeats. Exit status 1 where a case was wrong or ended the process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from .runner import fuzz
from .targets import TARGETS


def child(kind: str, seed: int, cases: int, seconds: float) -> None:
    """Runs one seed of a kind and prints its counts as JSON."""
    counts = fuzz(TARGETS[kind], seed, cases, time.monotonic() + seconds)
    print(json.dumps([counts.tried, counts.refused, counts.right, counts.wrong, counts.reports]))


def main() -> int:
    """Runs seed after seed of every kind until the time is over."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--cases", type=int, default=400, help="of a kind and seed, in one process")
    parser.add_argument("--only", choices=list(TARGETS), help="one kind of file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.only, args.seed, args.cases, args.seconds)
        return 0
    kinds = [args.only] if args.only else list(TARGETS)
    totals = {kind: [0, 0, 0, 0] for kind in kinds}
    end, seed, reports = time.monotonic() + args.seconds, args.seed, list[str]()
    while time.monotonic() < end:
        for kind in kinds:
            left = end - time.monotonic()
            if left <= 0:
                break
            command = [
                sys.executable,
                "-m",
                "fuzz",
                "--child",
                "--only",
                kind,
                "--seed",
                str(seed),
                "--cases",
                str(args.cases),
            ]
            ran = subprocess.run(
                [*command, "--seconds", str(left)], capture_output=True, text=True, check=False
            )
            if ran.returncode:
                totals[kind][3] += 1
                reports.append(
                    f"{kind} seed {seed}: the process ended with {ran.returncode}: {ran.stderr[-800:]}"
                )
                continue
            *counts, found = json.loads(ran.stdout.splitlines()[-1])
            totals[kind] = [a + b for a, b in zip(totals[kind], counts)]
            reports += found
        seed += 1
    print("| file | tried | refused | right | wrong |\n| --- | --: | --: | --: | --: |")
    for kind, counts in totals.items():
        print(f"| {kind} | {' | '.join(f'{count:,}' for count in counts)} |")
    print(f"| all | {' | '.join(f'{sum(column):,}' for column in zip(*totals.values()))} |")
    print("\n".join(reports[:40]), file=sys.stderr)
    return 1 if reports or any(counts[3] for counts in totals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
