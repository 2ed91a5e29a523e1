"""The detector's pixels, its distance, and the wavelength, in meters whatever unit the file has them in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reconstruction import units
from reconstruction.arrays import Real
from reconstruction.errors import ScanError
from reconstruction.places import DETECTOR, SOURCE
from reconstruction.stored import Stored
from reconstruction.units import ELECTRON_VOLT, LIGHT_SPEED, PLANCK


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """In meters; `basis` as in `reconstruction.scan.Scan`."""

    basis: Real
    distance: float
    wavelength: float

    @property
    def field_of_view(self) -> Real:
        """What a far-field reconstruction sees of the object in one frame, meters, (rows, columns)."""
        seen: Real = self.wavelength * self.distance / np.linalg.norm(self.basis, axis=0)
        return seen


def read_instrument(stored: Stored) -> Instrument:
    """Read the geometry.

    :raises ScanError: naming what is missing, or has no plausible size in any unit.
    """
    basis = _basis(stored)
    return Instrument(basis=basis, distance=_distance(stored, basis), wavelength=_wavelength(stored))


def _basis(stored: Stored) -> Real:
    place = f"{DETECTOR}/basis_vectors"
    found = stored.optional((place,))
    if found is None:
        place, basis = f"{DETECTOR}/x_pixel_size", _basis_from_sizes(stored)
    else:
        basis = found[1]
        if basis.ndim == 3:  # one for each frame; the detector does not move within a scan
            basis = basis[0]
        basis = basis.T if basis.shape == (2, 3) else basis
        if basis.shape != (3, 2) or not np.linalg.norm(basis, axis=0).all() or not np.isfinite(basis).all():
            stored.fail(place, f"is not two vectors of three numbers: {basis.tolist()}")
    basis = basis.astype(np.float64)
    pitch = float(np.linalg.norm(basis, axis=0).max())
    return basis * _factor(stored, place, pitch, units.PIXELS, "a pixel")


def _basis_from_sizes(stored: Stored) -> Real:
    x = stored.scalar(f"{DETECTOR}/x_pixel_size", f"{DETECTOR}/y_pixel_size")
    y = stored.scalar(f"{DETECTOR}/y_pixel_size", f"{DETECTOR}/x_pixel_size")
    if x is None or y is None:
        raise ScanError(
            f"{stored.path}: the detector's pixel size is missing; looked for {DETECTOR}/basis_vectors, "
            f"{DETECTOR}/x_pixel_size, {DETECTOR}/y_pixel_size."
        )
    if min(x, y) <= 0:
        stored.fail(f"{DETECTOR}/x_pixel_size", f"{x} by {y} is not a size")
    return np.array([[0.0, -x], [-y, 0.0], [0.0, 0.0]])


def _distance(stored: Stored, basis: Real) -> float:
    place = f"{DETECTOR}/distance"
    distance = stored.scalar(place)
    if distance is None:
        place = f"{DETECTOR}/corner_position"
        corner = stored.optional((place,))
        if corner is None or corner[1].size != 3:
            raise ScanError(
                f"{stored.path}: the distance to the detector is missing; looked for {DETECTOR}/distance, "
                f"{DETECTOR}/corner_position."
            )
        normal = np.cross(basis[:, 0], basis[:, 1])
        distance = float(corner[1].reshape(3) @ (normal / np.linalg.norm(normal)))
    if distance == 0:
        stored.fail(place, "is zero")
    return abs(distance) * _factor(stored, place, abs(distance), units.DISTANCES, "the detector's distance")


def _factor(stored: Stored, place: str, value: float, plausible: tuple[float, float], what: str) -> float:
    read = units.of_length(value, plausible)
    if read is None:
        low, high = plausible
        stored.fail(place, f"{value:g} is not {what} in any unit: CXI wants meters, {low:g} to {high:g}")
    if read.unit != "m":
        stored.warnings.append(
            f"{place} is in {read.unit} by its size, {value:g}; CXI wants meters. Converted."
        )
    return read.factor


def _wavelength(stored: Stored) -> float:
    place = f"{SOURCE}/energy"
    energy = stored.scalar(place)
    wavelength = stored.scalar(f"{SOURCE}/wavelength")
    if not energy and wavelength is None:  # missing, or zero
        return _from_metadata(stored, energy)
    if energy is None:
        place, energy = f"{SOURCE}/wavelength", PLANCK * LIGHT_SPEED / max(wavelength or 0.0, 1e-300)
    read = units.of_energy(energy)
    if read is None or (read.unit != "J" and place.endswith("wavelength")):
        stored.fail(place, f"gives a photon energy of {energy:.3g} J; CXI wants joules and meters")
    if read.unit != "J":
        stored.warnings.append(
            f"{place} is in {read.unit} by its size, {energy:g}; CXI wants joules. Converted."
        )
    return PLANCK * LIGHT_SPEED / (energy * read.factor)


def _from_metadata(stored: Stored, energy: float | None) -> float:
    """COSMIC's preprocessor stores an energy that is a whole number of eV as 0."""
    known = stored.metadata.get("energy")
    number = float(known) if isinstance(known, (int, float)) and not isinstance(known, bool) else 0.0
    read = units.of_energy(number)
    if read is None:
        raise ScanError(
            f"{stored.path}: the photon energy is {'missing' if energy is None else 'zero'}; looked for "
            f"{SOURCE}/energy, {SOURCE}/wavelength, and energy in the root data set metadata."
        )
    joules = number * read.factor
    stored.notes.append(
        f"{SOURCE}/energy is {'missing' if energy is None else 'zero'}; took {joules / ELECTRON_VOLT:.6g} eV "
        "from the root data set metadata."
    )
    return PLANCK * LIGHT_SPEED / joules
