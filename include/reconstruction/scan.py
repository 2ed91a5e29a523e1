"""Reading a ptychography scan from a CXI file (HDF5; https://www.cxidb.org/cxi.html).

COSMIC's own files and those of other beamlines put the same things in different places; every
reader below knows the places in use and names them all when it finds nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from reconstruction import units
from reconstruction.arrays import Bool, Complex, Int, Real
from reconstruction.beam_mask import recognize
from reconstruction.errors import ScanError
from reconstruction.frames import MIN_FRAMES, Stack, read_stack
from reconstruction.instrument import read_instrument
from reconstruction.places import DATA, DETECTOR, GEOMETRY, SOURCE
from reconstruction.stored import Stored
from reconstruction.units import ELECTRON_VOLT, LIGHT_SPEED, PLANCK

__all__ = [  # for those who read scans
    "DATA",
    "DETECTOR",
    "ELECTRON_VOLT",
    "GEOMETRY",
    "LIGHT_SPEED",
    "PLANCK",
    "SOURCE",
    "Scan",
    "ScanError",
    "read_scan",
]

# CXI's mask is zero for a good pixel; this one bit says "signal above background", which is good too.
SIGNAL_BIT = np.uint32(0x1000)
DARKS_SUBTRACTED = 0.7  # of the dark level: frames that are below it have it taken off already
MIN_SPAN = 3.0  # pixels of the object
MAX_SPAN = 2e-4  # m: more is another unit, when neighboring positions do not overlap either


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One scan, in SI units; arrays are indexed (row, column) as the detector is.

    :param frames: float32, (n, rows, columns), counts, not negative.
    :param good: (rows, columns), True where the detector can be trusted.
    :param translations: float64, (n, 3), meters, of the sample, in CXI's laboratory frame.
    :param basis: float64, (3, 2), meters: the step from a pixel to the next row, and to the next column.
    :param dark: (rows, columns), mean of the dark frames, or None.
    :param illumination: (rows, columns), first guess of the probe at the sample, or None.
    :param illumination_mask: (rows, columns), where on the detector the bare beam can be, or None.
    :param intensities: (n,), beam intensity of each frame, or None.
    :param defocus: meters from the focus to the sample, or None.
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
        """Pixel size in meters, (rows, columns)."""
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
            return _Reader(Stored(path, file)).read()
    except (OSError, RuntimeError) as error:  # h5py's errors for a truncated or damaged file
        raise ScanError(f"{path}: damaged HDF5 file ({error}); copy it again.") from error


class _Reader:
    def __init__(self, stored: Stored) -> None:
        self.stored = stored

    def read(self) -> Scan:
        stored = self.stored
        if "entry_1" not in stored.file:
            stored.fail("entry_1", "missing; this is HDF5 but not CXI")
        instrument = read_instrument(stored)
        stack, translations = self._frames_and_translations()
        return Scan(
            path=stored.path,
            frames=stack.frames,
            good=stack.good,
            translations=self._in_metres(translations, instrument.field_of_view, stack.good.shape),
            basis=instrument.basis,
            distance=instrument.distance,
            wavelength=instrument.wavelength,
            dark=self._dark(stack),
            illumination=self._illumination(stack.good.shape),
            illumination_mask=self._illumination_mask(stack.frames),
            intensities=self._intensities(stack.kept),
            defocus=stored.scalar(f"{SOURCE}/illumination_distance"),
            near_field=self._near_field(),
            notes=tuple(stored.notes),
            warnings=tuple(stored.warnings),
        )

    def _frames_and_translations(self) -> tuple[Stack, Real]:
        """As many as there are of both: a scan that was ended early can have more of one."""
        place, raw = self._raw_frames()
        positions_at, positions = self._raw_translations()
        count = min(len(raw), len(positions))
        if count < MIN_FRAMES:
            self.stored.fail(
                place,
                f"has {len(raw)} frames and {len(positions)} positions: too few to determine an object and a "
                f"probe, at least {MIN_FRAMES} are needed. Was the scan aborted",
            )
        if len(raw) != len(positions):
            self.stored.warnings.append(
                f"The file has {len(raw)} frames and {len(positions)} positions, as after a scan that was "
                f"ended early; the first {count} of both were used."
            )
        planned = self.stored.metadata.get("translations")
        if len(raw) == len(positions) and isinstance(planned, list) and len(planned) > count:
            self.stored.warnings.append(
                f"The file has {count} of the {len(planned)} points that were planned: the scan ended early, "
                "or frames were lost. The picture is only a part of what was asked for."
            )
        if not np.isfinite(positions[:count]).all():
            self.stored.fail(positions_at, "holds values that are not numbers")
        try:
            stack = read_stack(raw, count, self._bad(raw.shape[1:]))
        except ScanError as error:
            raise ScanError(f"{self.stored.path}: {place}: {error}.") from error
        self.stored.warnings += stack.warnings
        translations = np.zeros((len(stack.kept), 3))
        translations[:, : positions.shape[1]] = positions[stack.kept]
        return stack, translations

    def _raw_frames(self) -> tuple[str, h5py.Dataset]:
        places = (f"{DATA}/data", f"{DETECTOR}/data")
        found = self.stored.find(places)
        if found is None and self.stored.metadata:
            raise ScanError(
                f"{self.stored.path}: holds no frames, only what is written before the first one: the scan "
                f"was aborted at its start. There is nothing to reconstruct (looked for {', '.join(places)})."
            )
        place, raw = found or self.stored.required(places, "the frames are")
        if raw.ndim != 3 or raw.dtype.kind == "c":
            self.stored.fail(
                place, f"has shape {raw.shape} and type {raw.dtype}; frames are (n, rows, columns), real"
            )
        if not len(raw):
            self.stored.fail(place, "holds no frames: the scan was aborted before the first one")
        if min(raw.shape[1:]) < 8:
            self.stored.fail(place, f"has shape {raw.shape}, which is too little to reconstruct")
        return place, raw

    def _raw_translations(self) -> tuple[str, Real]:
        places = (f"{DATA}/translation", f"{GEOMETRY}/translation", f"{DETECTOR}/translation")
        place, dataset = self.stored.required(places, "the translations are")
        value = np.asarray(dataset[()])
        if value.ndim != 2 or value.shape[1] not in (2, 3):
            self.stored.fail(place, f"has shape {value.shape}, not (n, 3)")
        return place, value.astype(np.float64)

    def _bad(self, shape: tuple[int, ...]) -> Bool:
        found = self.stored.find((f"{DETECTOR}/mask",))
        if found is None:
            return np.zeros(shape, dtype=np.bool_)
        place, mask = found
        if mask.shape[-2:] != shape or mask.ndim not in (2, 3):
            self.stored.fail(place, f"has shape {mask.shape}, the frames {shape}")
        bad = np.zeros(shape, dtype=np.bool_)
        for layer in [mask[()]] if mask.ndim == 2 else mask:  # one for each frame: good in all
            bits = layer.astype(np.uint32)
            bad |= (bits != 0) & (bits != SIGNAL_BIT)
        return bad

    def _in_metres(self, translations: Real, field_of_view: Real, shape: tuple[int, ...]) -> Real:
        """Translations in meters, of a plausible size for the pixels of the object."""
        place = f"{GEOMETRY}/translation"
        plane = translations[:, :2]
        span = float(np.ptp(plane, axis=0).max())
        if span == 0.0:
            self.stored.fail(
                place, "the positions are all equal: one place was illuminated, which is no scan"
            )
        step = units.neighbor_distance(plane)
        apart = f"neighboring positions are {step:.3g} apart, and a frame sees {field_of_view.max():.3g} m"
        if span > MAX_SPAN and step > field_of_view.max():
            read = units.of_translations(step, float(field_of_view.max()))
            if read is None:
                self.stored.fail(place, f"{apart}: they overlap in no unit. CXI wants meters")
            self.stored.warnings.append(
                f"{place} is in {read.unit} by its size ({apart}); CXI wants meters. Converted."
            )
            translations, span = translations * read.factor, span * read.factor
        pixel = float(field_of_view.min()) / max(shape)
        if span < MIN_SPAN * pixel:
            self.stored.fail(
                place,
                f"the positions span {span:.3g} m, less than {MIN_SPAN:g} of the object's pixels of "
                f"{pixel:.3g} m: one place was illuminated, or they are in another unit than meters",
            )
        return translations

    def _dark(self, stack: Stack) -> Real | None:
        shape = stack.good.shape
        found = self.stored.find((f"{DETECTOR}/data_dark", f"{DATA}/data_dark"))
        if found is None:
            return None
        place, layers = found
        if layers.shape[-2:] != shape:
            self.stored.fail(place, f"has shape {layers.shape}, the frames {shape}")
        total, numbers = np.zeros(shape), np.zeros(shape)
        for index in np.ndindex(layers.shape[:-2]):  # one at a time: there can be as many as frames
            layer = layers[index]
            total += np.nan_to_num(layer)
            numbers += ~np.isnan(layer)
        dark = np.maximum(total / np.maximum(numbers, 1), 0.0).astype(np.float32)
        level = stack.good & (dark > 0)
        if not level.any():
            return None
        below = float((stack.frames.mean(axis=0)[level] < DARKS_SUBTRACTED * dark[level]).mean())
        if below > 0.1:
            self.stored.warnings.append(
                f"{place} was not used: {below:.0%} of the pixels are darker than it in the mean frame, so "
                "the dark frames were subtracted already."
            )
            return None
        return dark

    def _illumination(self, shape: tuple[int, int]) -> Complex | None:
        found = self.stored.optional(
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
        if not np.isfinite(probe).all() or not probe.any():
            self.stored.warnings.append(
                f"{place} was not used: it is zero, or holds values that are not numbers."
            )
            return None
        return self._fitting(place, probe, shape).astype(np.complex64)

    def _illumination_mask(self, frames: Real) -> Bool | None:
        found = self.stored.optional((f"{SOURCE}/probe_mask", f"{DETECTOR}/probe_mask"))
        if found is None:
            return None
        place, value = found
        read = recognize(self._fitting(place, value, frames.shape[1:]) != 0, frames.mean(axis=0))
        if not read.fits:
            self.stored.warnings.append(
                f"{place} was not used: it does not lie where the frames have light, in whatever order it is "
                "read. Is it that of another scan?"
            )
            return None
        self.stored.notes.append(f"{place} is {read.order}.")
        if read.inverted:
            self.stored.warnings.append(
                f"{place} is zero in the beam and not outside it; used the other way round."
            )
        return read.mask

    def _fitting(self, place: str, value: Real, shape: tuple[int, ...]) -> Real:
        if value.shape != shape:
            self.stored.fail(place, f"has shape {value.shape}, the frames {shape}")
        return value

    def _intensities(self, kept: Int) -> Real | None:
        found = self.stored.optional(
            (f"{DATA}/intensities", f"{GEOMETRY}/intensities", f"{SOURCE}/illumination_intensities")
        )
        if found is None:
            return None
        place, value = found
        if value.ndim != 1 or len(value) <= kept[-1] or not (value[kept] > 0).all():
            self.stored.warnings.append(f"{place} is not one positive number for each frame; not used.")
            return None
        return value[kept].astype(np.float32)

    def _near_field(self) -> bool | None:
        flag = self.stored.scalar(f"{DETECTOR}/near_field")
        return None if flag is None else bool(flag)
