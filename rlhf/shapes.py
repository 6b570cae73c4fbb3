"""The shapes of tensors, asserted where numbers are made: torch broadcasts what does not fit, and says nothing."""

from torch import Tensor


def check_shapes(axes: str, **tensors: Tensor) -> None:
    """Asserts that all have one shape, with as many axes as are named ("B R"); any number where "..." is named."""
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    first = next(iter(shapes.values()))
    fits = set(shapes.values()) == {first} and (axes == "..." or len(first) == len(axes.split()))
    assert fits, f"must be [{axes}]: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
