"""Speed on a CPU: `prepare` swaps a network's products for the fastest ones of a precision. It can be left out."""

from dialogpt.model.precision.choice import CPU_PRECISIONS
from dialogpt.model.precision.prepare import prepare

__all__ = ["CPU_PRECISIONS", "prepare"]
