"""``python -m napari_msamil.training STAGE ...`` is ``msamil train STAGE ...``, for torchrun and for who prefers it."""

import sys

from napari_msamil.cli import main

if __name__ == "__main__":
    sys.argv = ["msamil", "train", *sys.argv[1:]]
    main()
