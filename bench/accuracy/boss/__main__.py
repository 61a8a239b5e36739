"""Training rows of a BOSS data set as calibration text: each prompt with its right answer, a JSON line each.

python -m qdeploy.bench.accuracy.boss sst5 --data-dir DATA -o sst5.jsonl
qdeploy quantize MODEL --calibration sst5.jsonl -o OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from qdeploy.bench.accuracy.boss.families import FAMILIES, Family, family_of
from qdeploy.bench.accuracy.boss.rows import read_rows
from qdeploy.bench.accuracy.sources.files import Row
from qdeploy.files import write_text


def calibration_text(family: Family, rows: list[Row]) -> str:
    """JSON lines with a `text` each, as `qdeploy quantize --calibration` reads them."""
    return "".join(
        json.dumps({"text": f"{family.prompt(row)} {_answer(family, row)}"}, ensure_ascii=False) + "\n"
        for row in rows
    )


def _answer(family: Family, row: Row) -> str:
    return family.labels[row["Label"]] if family.labels else str(row["answers"][0])


def main(arguments: list[str] | None = None) -> None:
    """Write the file."""
    sets = [name for family in FAMILIES for name in family.sets]
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=sets, metavar="SET", help=", ".join(sets))
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the files of data sets")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write (.jsonl)")
    given = parser.parse_args(arguments)
    family = family_of(given.set)
    assert family is not None
    try:
        rows = read_rows(family, given.set, "train", given.data_dir)
    except FileNotFoundError as error:
        parser.error(f"{given.set} has no training rows there: {error}")
    write_text(given.output, calibration_text(family, rows))
    print(f"{given.output}: {len(rows)} texts", file=sys.stderr)


if __name__ == "__main__":
    main()
