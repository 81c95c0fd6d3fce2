"""The speed model's fit. Data, written by `python -m qwenfleet.cluster.speed.calibration`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from qwenfleet.cluster.hardware.accelerators import Vendor
from qwenfleet.cluster.speed.cost import Parameter

VALUES: Final[Mapping[Parameter, float]] = MappingProxyType(
    {
        Parameter.LAYER_NVIDIA: 4.0681359e-05,
        Parameter.LAYER_AMD: 0.00021749051,
        Parameter.TENSOR_PARALLEL: 3.2256929e-05,
        Parameter.DATA_PARALLEL: 0.00022032116,
        Parameter.MEMORY_HOPPER: 1.2764771,
        Parameter.MEMORY_BLACKWELL: 1.7980131,
        Parameter.MEMORY_AMD: 1.1487402,
        Parameter.COMPUTE: 9.2982055,
    }
)
"""Times in seconds per layer and step; the others are factors on the rates of data sheets."""

SPREADS: Final[Mapping[Vendor, float]] = MappingProxyType(
    {
        Vendor.NVIDIA: 1.3618187,
        Vendor.AMD: 2.4969183,
    }
)
"""A range is a prediction divided by, and multiplied by, this factor: it contains the share
`calibration.COVERAGE` of the measurements of setups that the fit does not know."""
