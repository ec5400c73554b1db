"""Which versions Triton's interpreter works with."""

from __future__ import annotations

from packaging.version import Version

# Before, the interpreter takes int() of arrays with one element, which numpy 2.4 refuses.
WITH_NUMPY_2_4 = "3.7"


def problem(triton: str, numpy: str) -> str | None:
    """Why these versions do not interpret kernels; None if they do."""
    if Version(triton) >= Version(WITH_NUMPY_2_4) or Version(numpy) < Version("2.4"):
        return None
    return (
        f"the interpreter of Triton {triton} does not work with numpy {numpy}: the tests need "
        f"numpy < 2.4 or Triton >= {WITH_NUMPY_2_4}"
    )
