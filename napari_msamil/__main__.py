"""`python -m napari_msamil` is the command `msamil`."""

from napari_msamil.cli import main

main()
