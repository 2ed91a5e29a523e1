"""Array types that the modules share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.floating[Any]]
Complex = NDArray[np.complexfloating[Any, Any]]
Bool = NDArray[np.bool_]
Int = NDArray[np.integer[Any]]
Array: TypeAlias = Any  # of the library that computes (`reconstruction.backend`), on its device
