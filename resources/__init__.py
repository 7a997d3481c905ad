"""Files that travel with the program: the demo model and where it comes from."""

from pathlib import Path


def demo_model_path() -> Path:
    """The bundled demo model; see SOURCES.md beside it for its data, licence and figures."""
    return Path(__file__).with_name("demo.safetensors")
