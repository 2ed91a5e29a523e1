"""Reading a ptychography scan from a CXI file (HDF5; https://www.cxidb.org/cxi.html).

COSMIC's own files and those of other beamlines put the same things in different places; every
reader below knows the places in use and names them all when it finds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from reconstruction.arrays import Bool, Complex, Real
from reconstruction.beam_mask import recognize

PLANCK = 6.62607015e-34  # J s
LIGHT_SPEED = 299792458.0  # m/s
ELECTRON_VOLT = 1.602176634e-19  # J

DATA = "entry_1/data_1"
SOURCE = "entry_1/instrument_1/source_1"
DETECTOR = "entry_1/instrument_1/detector_1"
GEOMETRY = "entry_1/sample_1/geometry_1"

# CXI's mask is zero for a good pixel; this one bit says "signal above background", which is good too.
SIGNAL_BIT = np.uint32(0x1000)


class ScanError(Exception):
    """The file cannot be reconstructed: missing, not HDF5, not CXI, or its contents contradict themselves."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One scan, in SI units; arrays are indexed (row, column) as the detector is.

    :param frames: float32, (n, rows, columns), counts, not negative.
    :param good: (rows, columns), True where the detector can be trusted.
    :param translations: float64, (n, 3), metres, of the sample, in CXI's laboratory frame.
    :param basis: float64, (3, 2), metres: the step from a pixel to the next row, and to the next column.
    :param dark: (rows, columns), mean of the dark frames, or None.
    :param illumination: (rows, columns), first guess of the probe at the sample, or None.
    :param illumination_mask: (rows, columns), where on the detector the bare beam can be, or None.
    :param intensities: (n,), beam intensity of each frame, or None.
    :param defocus: metres from the focus to the sample, or None.
    :param near_field: as the file says, or None when it does not.
    :param notes: how ambiguous things in the file were read; `warnings`: what a person should look at.
    """

    path: Path
    frames: Real
    good: Bool
    translations: Real
    basis: Real
    distance: float
    wavelength: float
    dark: Real | None = None
    illumination: Complex | None = None
    illumination_mask: Bool | None = None
    intensities: Real | None = None
    defocus: float | None = None
    near_field: bool | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def energy_ev(self) -> float:
        return PLANCK * LIGHT_SPEED / self.wavelength / ELECTRON_VOLT

    @property
    def detector_pitch(self) -> Real:
        """Pixel size in metres, (rows, columns)."""
        pitch: Real = np.linalg.norm(self.basis, axis=0)
        return pitch

    @property
    def detector_shape(self) -> tuple[int, int]:
        return self.frames.shape[1], self.frames.shape[2]


def read_scan(path: Path) -> Scan:
    """Read and check a scan.

    :raises ScanError: with the HDF5 path of whatever is missing or wrong.
    """
    if not path.exists():
        raise ScanError(f"{path}: there is no such file.")
    if not path.is_file():
        raise ScanError(f"{path}: not a regular file.")
    if not os.access(path, os.R_OK):
        raise ScanError(f"{path}: may not be read by this user; check its permissions.")
    if not h5py.is_hdf5(path):
        raise ScanError(f"{path}: not an HDF5 file, so not CXI (or its transfer was cut off); copy it again.")
    try:
        with h5py.File(path, "r", locking=False) as file:  # some file systems have no locks
            return _Reader(path, file).read()
    except (OSError, RuntimeError) as error:  # h5py's errors for a truncated or damaged file
        raise ScanError(f"{path}: damaged HDF5 file ({error}); copy it again.") from error


class _Reader:
    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.file = file
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def read(self) -> Scan:
        if "entry_1" not in self.file:
            self._fail("entry_1", "missing; this is HDF5 but not CXI")
        frames, good = self._frames()
        shape = (frames.shape[1], frames.shape[2])
        basis = self._basis()
        return Scan(
            path=self.path,
            frames=frames,
            good=good,
            translations=self._translations(len(frames)),
            basis=basis,
            distance=self._distance(basis),
            wavelength=self._wavelength(),
            dark=self._dark(shape),
            illumination=self._illumination(shape),
            illumination_mask=self._illumination_mask(frames),
            intensities=self._intensities(len(frames)),
            defocus=self._scalar(f"{SOURCE}/illumination_distance"),
            near_field=self._near_field(),
            notes=tuple(self.notes),
            warnings=tuple(self.warnings),
        )

    def _fail(self, where: str, what: str) -> None:
        raise ScanError(f"{self.path}: {where}: {what}.")

    def _required(self, places: Sequence[str], what: str) -> tuple[str, h5py.Dataset]:
        found = self._find(places)
        if found is None:
            raise ScanError(f"{self.path}: {what} missing; looked for {', '.join(places)}.")
        return found

    def _find(self, places: Sequence[str]) -> tuple[str, h5py.Dataset] | None:
        for place in places:
            item = self.file.get(place)  # None for a broken link, too
            if isinstance(item, h5py.Dataset):
                if item.dtype.kind not in "biufc":
                    self._fail(place, f"holds {item.dtype}, not numbers")
                return place, item
        return None

    def _optional(self, places: Sequence[str]) -> tuple[str, Real] | None:
        found = self._find(places)
        return None if found is None else (found[0], np.asarray(found[1][()]))

    def _scalar(self, *places: str) -> float | None:
        found = self._optional(places)
        if found is None:
            return None
        place, value = found
        if value.size != 1 or value.dtype.kind == "c":
            self._fail(place, f"holds an array of shape {value.shape}, not one real number")
        number = float(value.reshape(-1)[0])
        if not np.isfinite(number):
            self._fail(place, f"is {number}")
        return number

    def _frames(self) -> tuple[Real, Bool]:
        place, raw = self._required((f"{DATA}/data", f"{DETECTOR}/data"), "the frames are")
        if raw.ndim != 3 or raw.dtype.kind == "c":
            self._fail(
                place, f"has shape {raw.shape} and type {raw.dtype}; frames are (n, rows, columns), real"
            )
        if len(raw) < 2 or min(raw.shape[1:]) < 8:
            self._fail(place, f"has shape {raw.shape}, which is too little to reconstruct")
        frames: Real = raw.astype(np.float32)[()]  # converted as it is read: no second copy of a large stack
        good = self._good(frames.shape[1:])
        holes = ~np.isfinite(frames).all(axis=0)
        if (holes & good).any():
            self.warnings.append(f"{int((holes & good).sum())} pixels are not numbers in some frame; masked.")
            good &= ~holes
        frames[:, ~good] = 0.0
        np.maximum(frames, 0.0, out=frames)
        if not good.any() or not frames.any():
            self._fail(place, "has no counts in any good pixel; was the shutter open")
        return frames, good

    def _good(self, shape: tuple[int, ...]) -> Bool:
        found = self._optional((f"{DETECTOR}/mask",))
        if found is None:
            return np.ones(shape, dtype=np.bool_)
        place, mask = found
        bits = mask.astype(np.uint32)
        bad = (bits != 0) & (bits != SIGNAL_BIT)
        if bad.ndim == 3:  # one mask for each frame: a pixel must be good in all
            bad = bad.any(axis=0)
        if bad.shape != shape:
            self._fail(place, f"has shape {mask.shape}, the frames {shape}")
        good: Bool = ~bad
        return good

    def _translations(self, n_frames: int) -> Real:
        places = (f"{DATA}/translation", f"{GEOMETRY}/translation", f"{DETECTOR}/translation")
        place, dataset = self._required(places, "the translations are")
        value = np.asarray(dataset[()])
        if value.ndim != 2 or value.shape[1] not in (2, 3):
            self._fail(place, f"has shape {value.shape}, not (n, 3)")
        if len(value) != n_frames:
            self._fail(place, f"has {len(value)} translations for {n_frames} frames; did the scan end early")
        if not np.isfinite(value).all():
            self._fail(place, "holds values that are not numbers")
        if float(np.ptp(value[:, :2], axis=0).max()) > 1e-2:
            self._fail(place, "spans more than a centimetre; CXI wants metres")
        translations = np.zeros((n_frames, 3))
        translations[:, : value.shape[1]] = value
        return translations

    def _basis(self) -> Real:
        found = self._optional((f"{DETECTOR}/basis_vectors",))
        if found is not None:
            place, basis = found
            if basis.ndim == 3:  # one for each frame; the detector does not move within a scan
                basis = basis[0]
            basis = basis.T if basis.shape == (2, 3) else basis
            if (
                basis.shape != (3, 2)
                or not np.linalg.norm(basis, axis=0).all()
                or not np.isfinite(basis).all()
            ):
                self._fail(place, f"is not two vectors of three numbers: {basis.tolist()}")
            return basis.astype(np.float64)
        x = self._scalar(f"{DETECTOR}/x_pixel_size", f"{DETECTOR}/y_pixel_size")
        y = self._scalar(f"{DETECTOR}/y_pixel_size", f"{DETECTOR}/x_pixel_size")
        if x is None or y is None:
            raise ScanError(
                f"{self.path}: the detector's pixel size is missing; looked for {DETECTOR}/basis_vectors, "
                f"{DETECTOR}/x_pixel_size, {DETECTOR}/y_pixel_size."
            )
        if min(x, y) <= 0:
            self._fail(f"{DETECTOR}/x_pixel_size", f"{x} by {y} is not a size")
        return np.array([[0.0, -x], [-y, 0.0], [0.0, 0.0]])

    def _distance(self, basis: Real) -> float:
        distance = self._scalar(f"{DETECTOR}/distance")
        if distance is None:
            corner = self._optional((f"{DETECTOR}/corner_position",))
            if corner is None or corner[1].size != 3:
                raise ScanError(
                    f"{self.path}: the distance to the detector is missing; looked for {DETECTOR}/distance, "
                    f"{DETECTOR}/corner_position."
                )
            normal = np.cross(basis[:, 0], basis[:, 1])
            distance = float(corner[1].reshape(3) @ (normal / np.linalg.norm(normal)))
        if distance == 0:
            self._fail(f"{DETECTOR}/distance", "is zero")
        return abs(distance)

    def _wavelength(self) -> float:
        wavelength = self._scalar(f"{SOURCE}/wavelength")
        energy = self._scalar(f"{SOURCE}/energy")
        if wavelength is None and energy is None:
            raise ScanError(
                f"{self.path}: the photon energy is missing; looked for {SOURCE}/energy, {SOURCE}/wavelength."
            )
        place = f"{SOURCE}/energy" if energy is not None else f"{SOURCE}/wavelength"
        joules = energy if energy is not None else PLANCK * LIGHT_SPEED / max(wavelength or 0.0, 1e-300)
        if not 1.0 < joules / ELECTRON_VOLT < 1e6:
            self._fail(place, f"gives a photon energy of {joules:.3g} J; CXI wants joules and metres")
        return PLANCK * LIGHT_SPEED / joules

    def _dark(self, shape: tuple[int, int]) -> Real | None:
        found = self._optional((f"{DETECTOR}/data_dark", f"{DATA}/data_dark"))
        if found is None:
            return None
        place, dark = found
        dark = np.nanmean(dark.reshape(-1, *dark.shape[-2:]), axis=0).astype(np.float32)
        return np.maximum(np.nan_to_num(self._fitting(place, dark, shape)), 0.0)

    def _illumination(self, shape: tuple[int, int]) -> Complex | None:
        found = self._optional(
            (
                f"{SOURCE}/illumination",
                f"{SOURCE}/probe",
                f"{DETECTOR}/probe",
                f"{DETECTOR}/data_illumination",
            )
        )
        if found is None:
            return None
        place, probe = found
        probe = probe.reshape(-1, *probe.shape[-2:])[0] if probe.ndim >= 2 else probe
        return self._fitting(place, probe, shape).astype(np.complex64)

    def _illumination_mask(self, frames: Real) -> Bool | None:
        found = self._optional((f"{SOURCE}/probe_mask", f"{DETECTOR}/probe_mask"))
        if found is None:
            return None
        place, value = found
        read = recognize(self._fitting(place, value, frames.shape[1:]) != 0, frames.mean(axis=0))
        self.notes.append(f"{place} is {read.order}.")
        if read.inverted:
            self.warnings.append(f"{place} is zero in the beam and not outside it; used the other way round.")
        if not read.fits:
            self.warnings.append(
                f"{place} does not lie where the frames have light, in whatever order it is read; "
                "it was used as it is. Check the file's preprocessing, or reconstruct without the mask."
            )
        return read.mask

    def _fitting(self, place: str, value: Real, shape: tuple[int, ...]) -> Real:
        if value.shape != shape:
            self._fail(place, f"has shape {value.shape}, the frames {shape}")
        return value

    def _intensities(self, n_frames: int) -> Real | None:
        found = self._optional(
            (f"{DATA}/intensities", f"{GEOMETRY}/intensities", f"{SOURCE}/illumination_intensities")
        )
        if found is None:
            return None
        place, value = found
        if value.shape != (n_frames,) or not (value > 0).all():
            self.warnings.append(f"{place} is not one positive number for each frame; not used.")
            return None
        return value.astype(np.float32)

    def _near_field(self) -> bool | None:
        flag = self._scalar(f"{DETECTOR}/near_field")
        return None if flag is None else bool(flag)
