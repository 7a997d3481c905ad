"""Where the pixel size of a slide comes from: explicit, else the file's metadata, else it is missing. Never a guess."""

from __future__ import annotations

import math

from napari_msamil.errors import SlideError

MPP_LIMITS = (0.05, 20.0)
"""µm per pixel that a scanner can mean; a 72-dpi tag, for one, gives 352.8."""

Mpp = tuple[float, float]

_SAME = 0.01  # relative difference below which a given pixel size repeats the file's


def resolve_mpp(
    name: str, explicit: float | Mpp | None, found: tuple[float | None, float | None] | None
) -> tuple[Mpp | None, str, tuple[str, ...]]:
    """Decide on the pixel size of a slide.

    Args:
        name: the slide's file name, for messages.
        explicit: µm per pixel given by the user, one number or (x, y); accepted outside `MPP_LIMITS` with a warning.
        found: (x, y) µm per pixel from the file's metadata, unchecked.

    Returns:
        (x, y) µm per level-0 pixel or None, its source ("explicit", "metadata" or "missing"), and warnings.

    Raises:
        SlideError: the explicit value is no positive number.
    """
    if explicit is not None:
        mpp, source, warnings = _explicit_mpp(name, explicit)
        return mpp, source, warnings + _overruled(name, mpp, found)
    if found is None or found == (None, None):
        return None, "missing", ()
    x, y = found
    if x is None or y is None:
        return None, "missing", (f"{name} states a pixel size for one axis only ({x}, {y}); it counts as missing.",)
    if not (_plausible(x) and _plausible(y)):
        low, high = MPP_LIMITS
        size = f"{x:g}" if x == y else f"{x:g} x {y:g}"
        warning = f"{name} states {size} µm per pixel, outside {low:g} to {high:g}; it counts as missing."
        return None, "missing", (warning,)
    return (float(x), float(y)), "metadata", ()


def _overruled(name: str, mpp: Mpp, found: tuple[float | None, float | None] | None) -> tuple[str, ...]:
    """A warning where the file states a plausible pixel size and another one was given."""
    if found is None or not all(value is not None and _plausible(value) for value in found):
        return ()
    if all(abs(given / stated - 1) < _SAME for given, stated in zip(mpp, found, strict=True) if stated):
        return ()
    stated_size = " x ".join(f"{value:.4g}" for value in dict.fromkeys(found))
    given_size = " x ".join(f"{value:.4g}" for value in dict.fromkeys(mpp))
    return (f"{name} states {stated_size} µm per pixel; the {given_size} given by hand is used instead",)


def _explicit_mpp(name: str, explicit: float | Mpp) -> tuple[Mpp, str, tuple[str, ...]]:
    pair = explicit if isinstance(explicit, tuple | list) else (explicit, explicit)
    try:
        x, y = (float(value) for value in pair)
    except (TypeError, ValueError) as error:
        raise SlideError(f"mpp {explicit!r} given for {name} is no pixel size; give one number or (x, y).") from error
    if not all(math.isfinite(value) and value > 0 for value in (x, y)):
        raise SlideError(f"mpp {explicit!r} given for {name} is no pixel size; give µm per pixel, such as 0.5.")
    if _plausible(x) and _plausible(y):
        return (x, y), "explicit", ()
    low, high = MPP_LIMITS
    warning = f"mpp {explicit!r} given for {name} is outside {low:g} to {high:g} µm per pixel; it is used as given."
    return (x, y), "explicit", (warning,)


def _plausible(value: float) -> bool:
    low, high = MPP_LIMITS
    return math.isfinite(value) and low <= value <= high
