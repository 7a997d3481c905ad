"""One end-to-end step of training: seconds and peak memory, by network and number of patches.

A step draws patches of a real slide, reads them, and updates extractor and aggregator with the two-pass gradient. Each
row is a process of its own, so that its peak memory is that of this step alone (imports included).

    python tests/benchmarks/bench_train.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SLIDE = Path(os.environ.get("MSAMIL_TEST_DATA", ROOT / "../shared/data")) / "slides" / "tubularadenoma-flat_HE.tif"
MOST_GB = 8.0
GROWTH = 1.2


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Seconds and peak memory of steps of the demo network, and of the full ones unless it must be quick."""
    few, many = _step("demo", 200), _step("demo", 2000)
    growth = many["peak_gb"] / few["peak_gb"]
    rows = [
        _row("demo network, 200 patches of 224 px", few),
        _row("demo network, 2000 patches of 224 px", many)
        | {"baseline": "peak memory at 200", "ratio": growth, "target": f"<= {GROWTH}", "met": growth <= GROWTH},
    ]
    for preset in () if quick else ("default", "literal"):
        facts = _step(preset, 200)
        target = {"target": f"< {MOST_GB:g} GB", "met": facts["peak_gb"] < MOST_GB}
        rows.append(_row(f"{preset} network, 200 patches of 512 px", facts) | target)
    return rows


def _row(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"{name}: {facts['seconds']:.0f} s, loss {facts['loss']:.3f}",
        "value": facts["peak_gb"],
        "unit": "GB",
    }


def _step(preset: str, patches: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--preset", preset, "--patches", str(patches)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert facts["patches"] == patches, facts
    return facts


def _measure(preset: str, patches: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from napari_msamil.inference.engine import choose_device, tune_allocator
    from napari_msamil.models.model import build_model
    from napari_msamil.training.cohort import CohortSlide
    from napari_msamil.training.config import read_config
    from napari_msamil.training.draws import PatchDraws, PatchStream
    from napari_msamil.training.end_to_end import backward
    from napari_msamil.training.slides import SlideStore
    from napari_msamil.training.two_pass import freeze_batch_norm

    tune_allocator()
    # overlapping patches, for there are not 2000 others on this slide
    config = read_config(preset, [f"end_to_end.patches={patches}", "model.overlap=0.75"])
    card = config.card(("a", "b"))
    native = choose_device("cpu", cpu_precision="bf16").precision == "bf16"
    bf16 = native and config.end_to_end.precision == "auto"
    with tempfile.TemporaryDirectory() as folder:
        store = SlideStore([CohortSlide(SLIDE, "a", "p", mpp=0.5)], card, Path(folder))
        store.prepare([0])
        draws = PatchDraws(store, config, np.zeros(1, np.int64), [0], [])
        drawn = PatchStream(draws, passes=2, workers=0).draw(0, 0)
        model = build_model(card, seed=0).train()
        freeze_batch_norm(model.extractor)
        trained = [*model.extractor.parameters(), *model.aggregator.parameters()]
        optimiser = torch.optim.AdamW(trained)
        began = time.perf_counter()
        loss = backward(model, drawn, bf16=bf16)
        optimiser.step()
        seconds = time.perf_counter() - began
    assert all(torch.isfinite(p.grad).all() for p in trained if p.grad is not None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"peak_gb": peak, "seconds": seconds, "loss": loss, "patches": len(drawn.table), "bf16": bf16}


def main() -> None:
    """Print the table, or, as a child, measure one step and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    parser.add_argument("--patches", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.preset:
        print("\n" + json.dumps(_measure(arguments.preset, arguments.patches)))
    else:
        sys.path.insert(0, str(Path(__file__).parent))
        from run import table

        print(table(run(quick=arguments.quick)))


if __name__ == "__main__":
    main()
