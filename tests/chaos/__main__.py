"""Broken on purpose: `make chaos`, or

    python tests/chaos                              kills, damage and an hour of soak, one after another: hours
    python tests/chaos kills dppo -j 2              one of them, for what has a word in its name
    python tests/chaos damage --seed 0 --reader npz --only 17

Prints tables, writes NAME.json into --folder, and ends with 1 if something was lost, crashed, hung or grew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from chaos import warm  # noqa: E402

FORMS = ("kills", "damage", "soak")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tests/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", nargs="?", choices=FORMS, help="default: all")
    parser.add_argument("words", nargs="*", help="only kinds, readers or algorithms with one of these in their names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to work in (default: a temporary one)")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="so many at a time")
    parser.add_argument("--tries", type=int, metavar="N", help="kills: of each kind; damage: variants of each reader")
    parser.add_argument("--changes", type=int, metavar="N", help="kills: tries of each kind before a change of a file")
    parser.add_argument("--minutes", type=float, default=60.0, help="soak: of each algorithm")
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="soak: between two samples")
    parser.add_argument("--reader", help="damage: one reader")
    parser.add_argument(
        "--only", action="append", help="kills: KIND:moment:N, or KIND:at:CHANGE; damage: a variant's number"
    )
    options = parser.parse_args()
    warm.prepare()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="burnish-chaos-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"in {folder}", flush=True)
    status = 0
    for form in [options.form] if options.form else FORMS:
        print(f"== {form}", flush=True)
        status |= run(form, folder, options)
    return status


def run(form: str, folder: Path, options: argparse.Namespace) -> int:
    """One form -> its status."""
    if form == "kills":
        from chaos import kills

        warm.import_everything()
        words = [*(options.only or ()), *options.words]
        return kills.run(folder, words, options.seed, options.tries, options.changes, options.j)
    if form == "damage":
        from chaos import damage

        warm.import_everything()
        words = [options.reader] if options.reader else options.words
        only = [int(number) for number in options.only or ()]
        return damage.run(folder, words, options.seed, 500 if options.tries is None else options.tries, only, options.j)
    from chaos import soak

    return soak.run(folder, options.words, options.minutes, options.every)


if __name__ == "__main__":
    sys.exit(main())
