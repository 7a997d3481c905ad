"""All benchmarks in one run: a table on the screen and the same in `bench.json`. `--quick` takes a few seconds each."""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

COLUMNS = ("name", "value", "unit", "baseline", "ratio", "target", "met")


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text; a row has name, value, unit and, where it compares, baseline, ratio, target and met."""
    cells = [list(COLUMNS)] + [[_text(row.get(column)) for column in COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run every benchmark and print what it measured."""
    import bench_classify
    import bench_read
    import bench_train
    import bench_view

    quick = "--quick" in sys.argv
    rows = [row for bench in (bench_view, bench_read, bench_classify, bench_train) for row in bench.run(quick=quick)]
    print(table(rows))
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "machine": platform.processor(),
        "python": platform.python_version(),
    }
    Path("bench.json").write_text(json.dumps({**facts, "quick": quick, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
