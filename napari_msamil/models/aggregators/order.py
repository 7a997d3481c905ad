"""How a bag's rows are numbered, and how their places become numbers for a net."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from napari_msamil.models.bag import Bag, BagError


def row_order(bag: Bag, how: Literal["xy", "yx", "quadtree_post"]) -> Tensor:
    """Rows of the bag in the order in which a method numbers them.

    The keys are unique for the patches of one slide, so the result does not depend on the order of the rows.

    Args:
        bag: Rows in any order.
        how: `xy`: by x, then y, then scale, finest first; `yx`: by y first; `quadtree_post`: along the tree of
            patches, every patch right after all its children, children by x, then y.

    Returns:
        (N,) int64 row numbers, on the device of the coordinates.
    """
    (x, y), scale = bag.coords.cpu().unbind(1), bag.scale.cpu()  # sorted there, every device numbers rows alike
    if how == "quadtree_post":
        return _lexsort(_tree_path(bag)).to(bag.coords.device)
    return _lexsort([x, y, scale] if how == "xy" else [y, x, scale]).to(bag.coords.device)


def _lexsort(keys: list[Tensor]) -> Tensor:
    """Row numbers sorted by the first key, ties by the next, and so on."""
    order = keys[-1].argsort(stable=True)
    for key in reversed(keys[:-1]):
        order = order[key[order].argsort(stable=True)]
    return order


def grid_index(bag: Bag) -> Tensor:
    """(column, row) of each patch in the grid of its own scale: (N, 2) int64 on the CPU."""
    return (bag.coords.cpu() / _footprint(bag)[bag.scale.cpu()]).round().to(torch.int64)


def _footprint(bag: Bag) -> Tensor:
    if bag.footprint is None:
        raise BagError("This bag has no footprint, which the grid coordinates and the quadtree order need.")
    if int(bag.scale.max()) >= len(bag.footprint):
        raise BagError(f"The bag has scale {int(bag.scale.max())}, its footprint lists {len(bag.footprint)} scales.")
    return bag.footprint.cpu().to(torch.float64)


def _tree_path(bag: Bag) -> list[Tensor]:
    """Column and row at the coarsest scale, then at each finer one; beyond a patch's own scale comes the last place."""
    footprint = _footprint(bag)
    index, scale = grid_index(bag), bag.scale.cpu()
    ratios = [round(float(b / a)) for a, b in itertools.pairwise(footprint[:, 0])]
    path: list[Tensor] = []
    for level in reversed(range(len(footprint))):
        factor = torch.ones_like(scale)  # cells of a row's own scale along one side of this level's cell
        for step in range(level):
            factor = factor * torch.where(scale <= step, ratios[step], 1)
        cell = index.div(factor[:, None], rounding_mode="floor")
        last = torch.iinfo(torch.int64).max
        path += [torch.where(scale <= level, cell[:, axis], last) for axis in (0, 1)]
    return path


def place_code(
    bag: Bag,
    *,
    units: Literal["slide", "bbox", "grid", "raw"],
    scale_code: Literal["ordinal", "onehot"],
    scales: int,
) -> Tensor:
    """What the coordinate encoding reads: x, y and the scale of each patch.

    Args:
        bag: Rows in any order.
        units: x and y as a fraction of the slide's size, as a fraction of the box around the bag's top-left corners, in
            columns and rows of the finest grid, or in level-0 px.
        scale_code: The scale's number, or one column per scale.
        scales: Number of scales.

    Returns:
        (N, 3) or (N, 2 + scales) in the features' dtype.

    References:
        MsaMIL-Net, arXiv 2503.08581, Eq. 2.
    """
    if int(bag.scale.min()) < 0 or int(bag.scale.max()) >= scales:
        raise BagError(
            f"The bag has scales {int(bag.scale.min())} to {int(bag.scale.max())}, this model knows 0 to {scales - 1}."
        )
    xy = bag.coords.cpu().to(torch.float64)  # on the CPU, which is the only device that always knows float64
    if units == "slide":
        xy = xy / torch.tensor(bag.slide_size, dtype=torch.float64)
    elif units == "bbox":
        low = xy.amin(0)
        xy = (xy - low) / (xy.amax(0) - low).clamp(min=1)
    elif units == "grid":
        xy = xy / _footprint(bag)[0]
    scale = bag.scale.cpu()
    code = functional.one_hot(scale, scales) if scale_code == "onehot" else scale[:, None]
    return torch.cat((xy, code.to(torch.float64)), dim=1).to(bag.features)
