"""Write the demo's instructions: prompts.jsonl (all of them) and one file per split, beside this script.

Run it from anywhere: `python examples/demo/make_prompts.py [FOLDER]`. It draws no random numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from xwincli import jsonl
from xwincli.lab.instructions import SHARES, prompts


def main(folder: Path) -> None:
    rows = list(prompts())
    jsonl.write(str(folder / "prompts.jsonl"), rows)
    for name in SHARES:
        mine = [row for row in rows if row.extra["split"] == name]
        jsonl.write(str(folder / f"{name}.jsonl"), mine)
        print(f"{name}: {len(mine)} prompts", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
