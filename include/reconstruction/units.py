"""Numbers that were written in other units than CXI's: recognized by their size, converted with a warning.

Metres and joules are what CXI asks for. An instrument's distance, a pixel and a photon have sizes that leave
no doubt: a detector at 121 is 121 mm away, not 121 m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reconstruction.arrays import Real

LIGHT_SPEED = 299792458.0  # m/s
PLANCK = 6.62607015e-34  # J s
ELECTRON_VOLT = 1.602176634e-19  # J
LENGTHS = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}
DISTANCES = (1e-3, 100.0)  # m, of a detector from the sample
PIXELS = (1e-6, 2e-3)  # m, of a detector
ENERGIES = (20.0, 200e3)  # eV, of a photon
SAMPLED = 400  # positions whose neighbors are looked for


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A number in CXI's unit.

    :param factor: what it was multiplied with.
    :param unit: what it must have been written in.
    """

    factor: float
    unit: str


def of_length(value: float, plausible: tuple[float, float]) -> Reading | None:
    """The coarsest unit in which a length is plausible; None when it is in none.

    >>> of_length(121.0, DISTANCES)
    Reading(factor=0.001, unit='mm')
    """
    for unit, factor in LENGTHS.items():
        if plausible[0] <= value * factor <= plausible[1]:
            return Reading(factor=factor, unit=unit)
    return None


def of_energy(value: float) -> Reading | None:
    """The unit in which a photon energy is plausible; None when it is in none.

    >>> of_energy(1000.0).unit, of_energy(1.0).unit
    ('eV', 'keV')
    """
    for unit, factor in (("J", 1.0), ("eV", ELECTRON_VOLT), ("keV", 1e3 * ELECTRON_VOLT)):
        if ENERGIES[0] <= value * factor / ELECTRON_VOLT <= ENERGIES[1]:
            return Reading(factor=factor, unit=unit)
    return None


def of_translations(step: float, field_of_view: float) -> Reading | None:
    """The coarsest unit in which the frames of neighboring positions overlap; None: in none.

    :param step: between neighbors, as written.
    :param field_of_view: meters, of a far-field reconstruction: wavelength times distance over pixel.
    """
    for unit, factor in LENGTHS.items():
        if step * factor <= field_of_view:
            return Reading(factor=factor, unit=unit)
    return None


def neighbor_distance(positions: Real) -> float:
    """Median distance of a position from the nearest other place, in the unit of `positions`, (n, k)."""
    places = np.unique(positions, axis=0)
    if len(places) < 2:
        return 0.0
    some = places[:: -(-len(places) // SAMPLED)]
    nearest = []
    for place in some:
        away = np.linalg.norm(places - place, axis=1)
        nearest.append(float(np.partition(away, 1)[1]))
    return float(np.median(nearest))
