"""Classification of a whole slide on a CPU: ours against the same network run as it is usually written.

All classify every patch of one slide that touches tissue, at three scales, with the `default` network and the same
random weights, each in a process of its own, imports included, one after the other. Ours runs twice: in the precision
of a model whose card allows bf16 (where the CPU has that), and in fp32. The usual form: one Dataset over OpenSlide, a
DataLoader with two workers and batches of 16, contiguous tensors, `nn.TransformerEncoder`, the allocator as it comes.

    python tests/benchmarks/bench_classify.py [SLIDE] [--mpp X] [--quick]
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
TARGET = 5.0
ANY = 1e-9  # share of tissue from which a patch counts


def run(*, quick: bool = False, slide: Path = SLIDE, mpp: float = 0.5) -> list[dict[str, Any]]:
    """Seconds of all forms, their ratios, seconds per stage and peak memory of ours; `quick` takes one corner only."""
    with tempfile.TemporaryDirectory() as folder:
        models = {name: Path(folder) / f"{name}.safetensors" for name in ("bf16", "fp32")}
        for precision, model in models.items():
            _write_model(model, precision)
        fast, full = (_in_own_process("ours", slide, mpp, model, quick) for model in models.values())
        usual = _in_own_process("usual", slide, mpp, models["fp32"], quick)
    rows: list[dict[str, Any]] = []
    for ours in (fast, full):
        assert ours["patches"] == usual["patches"], "all forms must see the same patches"
        pairs = zip(ours["probabilities"], usual["probabilities"], strict=True)
        difference = max(abs(a - b) for a, b in pairs)
        assert difference < 1e-3, f"all forms must be the same network, but probabilities differ by {difference:.2g}"
        ratio = usual["seconds"] / ours["seconds"]
        target = {"target": f">= {TARGET:g}x", "met": ratio >= TARGET} if ours is fast else {}
        rows += [
            {
                "name": f"classify {ours['patches']} patches, {ours['precision']}",
                "value": ours["seconds"],
                "unit": "s",
                "baseline": f"DataLoader form {usual['seconds']:.1f} s",
                "ratio": ratio,
                **target,
            },
            {"name": "peak memory", "value": ours["peak_mb"], "unit": "MB", "baseline": f"{usual['peak_mb']:.0f} MB"},
        ]
    return rows + [{"name": f"stage {stage}", "value": s, "unit": "s"} for stage, s in fast["stages"].items()]


def _write_model(path: Path, precision: str) -> None:
    from napari_msamil.models.card import OnEmpty, Thresholds, preset_card
    from napari_msamil.models.model import build_model, save_model

    card = preset_card(
        "default",
        classes=["a", "b"],
        thresholds=Thresholds(lesion_fraction=1.0, tissue_fraction=ANY),
        on_empty=OnEmpty(policy="tissue"),
        cpu_precision=precision,  # `run` refuses bf16's figures unless the probabilities are those of fp32
    )
    save_model(build_model(card, seed=0), path)


def _in_own_process(form: str, slide: Path, mpp: float, model: Path, quick: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--form", form, str(slide), "--mpp", str(mpp), "--model", str(model)]
    done = subprocess.run(command + ["--quick"] * quick, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _ours(slide: Path, mpp: float, model: Path, quick: bool) -> dict[str, Any]:
    started = time.perf_counter()
    from napari_msamil.inference.classify import Request, classify_steps

    steps = classify_steps(Request(slide, model, mpp, "cpu", _corner(quick)))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            prediction = end.value
            break
    return {
        "seconds": time.perf_counter() - started,
        "patches": len(prediction.table),
        "probabilities": prediction.probabilities.tolist(),
        "precision": prediction.precision,
        "stages": dict(prediction.seconds),
    }


def _usual(slide: Path, mpp: float, model: Path, quick: bool) -> dict[str, Any]:
    started = time.perf_counter()
    import numpy as np
    import openslide
    import torch
    from torch.utils.data import DataLoader

    from napari_msamil.inference.candidates import candidate_table, choose_patches, region_mask
    from napari_msamil.models.bag import Bag
    from napari_msamil.models.model import load_model
    from napari_msamil.patches.tissue import tissue_mask
    from napari_msamil.slide.slide import open_slide

    net = load_model(model).to(memory_format=torch.contiguous_format).eval()
    extractor = _usual_extractor(net)
    with open_slide(slide, mpp) as opened, torch.no_grad():
        side = net.card.thumbnail_px
        thumbnail = opened.read(0, 0, opened.width, opened.height, size=(side, side))
        with openslide.OpenSlide(slide) as handle:
            shrunk = handle.get_thumbnail((side, side)).convert("RGB").resize((side, side))
        lesion = (torch.sigmoid(net.segmenter(_to_input(np.asarray(shrunk))[None]))[0].squeeze() > 0.5).numpy()
        size, mask = (opened.width, opened.height), tissue_mask(thumbnail)
        region = region_mask(_corner(quick), size)
        table = candidate_table(size, opened.mpp, net.card, tissue=mask, lesion=lesion, region=region)
        table = table.take(choose_patches(table, net.card).rows)
        loader = DataLoader(_Patches(slide, table), batch_size=16, num_workers=2)
        features = torch.cat([extractor(batch) for batch in loader])
        bag = Bag(
            features, torch.from_numpy(table.coords), torch.from_numpy(table.scale.astype("i8")), table.slide_size
        )
        logits = net.aggregator(bag).logits
    return {
        "seconds": time.perf_counter() - started,
        "patches": len(table),
        "probabilities": torch.softmax(logits, -1).tolist(),
    }


def _usual_extractor(net: Any) -> Any:
    """The same extractor, with the same weights, out of PyTorch's own parts."""
    import torch
    from torch import nn

    ours = net.extractor
    dim = ours.project_out.in_features
    layer = nn.TransformerEncoderLayer(dim, 8, 2048, 0.1, "gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, len(ours.layers), norm=ours.norm, enable_nested_tensor=False)
    for theirs, mine in zip(encoder.layers, ours.layers, strict=True):
        pairs = {"norm1": mine.norm1, "norm2": mine.norm2, "linear1": mine.ff1, "linear2": mine.ff2}
        pairs["self_attn.out_proj"] = mine.out
        state = {f"{name}.{kind}": getattr(part, kind) for name, part in pairs.items() for kind in ("weight", "bias")}
        state |= {"self_attn.in_proj_weight": mine.qkv.weight, "self_attn.in_proj_bias": mine.qkv.bias}
        theirs.load_state_dict(state)
    encoder.eval()

    def extract(patches: Any) -> Any:
        tokens = ours.encoder.forward_features(patches).flatten(2).transpose(1, 2) + ours.position
        tokens = torch.cat((ours.class_token.expand(len(tokens), 1, -1), tokens), 1)
        return ours.project_out(encoder(tokens)[:, 0])

    return extract


class _Patches:
    """One patch per item, as most pipelines read them: OpenSlide's best level, then Pillow."""

    def __init__(self, slide: Path, table: Any) -> None:
        self.slide, self.table, self.handle = slide, table, None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Any:
        import numpy as np
        import openslide

        if self.handle is None:
            self.handle = openslide.OpenSlide(self.slide)
        index = int(self.table.scale[row])
        side, (width, _) = self.table.scales[index].patch_px, self.table.footprint(index)
        level = self.handle.get_best_level_for_downsample(width / side * 1.001)
        size = round(width / self.handle.level_downsamples[level])
        picture = self.handle.read_region(tuple(self.table.coords[row].tolist()), level, (size, size)).convert("RGB")
        return _to_input(np.asarray(picture.resize((side, side))))


def _to_input(pixels: Any) -> Any:
    import torch

    from napari_msamil.models.card import IMAGENET_MEAN, IMAGENET_STD

    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous() / 255
    return (tensor - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


def _corner(quick: bool) -> Any:
    import numpy as np

    from napari_msamil.inference.geojson import Polygon

    square = np.array([[6000.0, 6000.0], [8000.0, 6000.0], [8000.0, 8000.0], [6000.0, 8000.0]])
    return (Polygon(square),) if quick else None


def main() -> None:
    """Print the table, or, as a child, run one form and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path, nargs="?", default=SLIDE)
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--form", choices=["ours", "usual"], help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.form:
        figures = (_ours if given.form == "ours" else _usual)(given.slide, given.mpp, given.model, given.quick)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**figures, "peak_mb": peak}))
        return
    from run import table

    print(table(run(quick=given.quick, slide=given.slide, mpp=given.mpp)))


if __name__ == "__main__":
    main()
