"""Makes a synthetic COSMIC scan: gold balls under a defocused zone plate, with the truth beside it.

The numbers are those of the beamline: 1000 eV, a 240 um zone plate with 60 nm outer zones and a
central stop, the sample 50 um behind the focus, a CCD of 30 um pixels binned by three 121 mm behind
the sample. The object is computed on a grid twice as fine as any reconstruction's, so that light
leaves the detector as it does in the experiment; frames get Poisson noise and a small background.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import h5py
import numpy as np

from reconstruction.arrays import Bool, Complex, Real
from reconstruction.files import hdf5_image, write_whole
from reconstruction.geometry import far_field, propagate
from reconstruction.scan import ELECTRON_VOLT, LIGHT_SPEED, PLANCK

# Gold at 1000 eV, refractive index 1 - delta + i beta: close to Henke, Gullikson and Davis (1993).
GOLD_DELTA, GOLD_BETA = 1.85e-3, 7.6e-4
FINE = 2  # object samples for each sample of a reconstruction
ENTRY, SOURCE, DETECTOR = "entry_1", "entry_1/instrument_1/source_1", "entry_1/instrument_1/detector_1"
GEOMETRY = "entry_1/sample_1/geometry_1"


@dataclass(frozen=True, kw_only=True)
class Optics:
    """The instrument, in SI units."""

    energy_ev: float = 1000.0
    distance: float = 0.121
    detector_pitch: float = 90e-6
    frame: int = 96
    outer_zone: float = 60e-9
    stop_fraction: float = 0.35  # of the zone plate's radius, hidden by the central stop
    defocus: float = 50e-6
    astigmatism: float = 2.5e-6  # the true lens; the guess in the file knows nothing of it
    photons: float = 2e6  # for each frame, before the sample
    background: float = 0.4  # mean counts in a pixel

    @property
    def wavelength(self) -> float:
        return PLANCK * LIGHT_SPEED / (self.energy_ev * ELECTRON_VOLT)

    @property
    def pixel(self) -> float:
        """Of a far-field reconstruction."""
        return self.wavelength * self.distance / (self.frame * self.detector_pitch)


@dataclass(frozen=True, kw_only=True)
class SyntheticScan:
    """Where a scan and its truth are."""

    cxi: Path
    truth: Path
    n_frames: int
    size: int  # bytes of the CXI file


def scan_path(date: datetime.date, number: int, *, region: int = 0, energy_index: int = 0) -> str:
    """Path of a scan relative to the beamline's collection, as the beamline names it.

    >>> scan_path(datetime.date(2023, 2, 16), 33)
    '2023/02/230216/NS_230216033_ccdframes_0_0.cxi'
    """
    if not 0 <= number <= 999:
        raise ValueError(f"The scan number {number} is not in 0 to 999.")
    name = f"NS_{date:%y%m%d}{number:03d}_ccdframes_{energy_index}_{region}.cxi"
    return str(PurePosixPath(f"{date:%Y}", f"{date:%m}", f"{date:%y%m%d}", name))


def make_scan(
    path: Path,
    *,
    n_frames: int = 169,
    seed: int = 0,
    step: float = 110e-9,
    optics: Optics | None = None,
) -> SyntheticScan:
    """Simulate a scan and write it to `path`, and the truth to `<path without .cxi>_truth.h5`.

    :param n_frames: rounded down to a square number of scan points.
    :param step: mean distance between scan points, metres.
    :raises ValueError: when the numbers make no scan.
    """
    optics = optics or Optics()
    side = int(np.sqrt(n_frames))
    if side < 3:
        raise ValueError(f"{n_frames} frames make no scan; ask for nine or more.")
    rng = np.random.default_rng(seed)
    positions = _positions(rng, side, step)
    fine = optics.pixel / FINE
    obj = _object(rng, np.ptp(positions, axis=0), optics)
    probe = _probe(optics, FINE * optics.frame, fine, defocus=optics.defocus, astigmatism=optics.astigmatism)
    frames = _frames(rng, obj, probe, (positions - positions.min(axis=0)) / fine, optics)
    origin = positions.min(axis=0) - FINE * optics.frame // 2 * fine
    title = f"Synthetic scan of gold balls ({path.name}, seed {seed})"

    def fill_truth(file: h5py.File) -> None:
        _truth(file, obj=obj, probe=probe, origin=origin, positions=positions, optics=optics)

    def fill_scan(file: h5py.File) -> None:
        _cxi(file, frames=frames, positions=positions, optics=optics, title=title)

    truth_path = path.with_name(path.name.removesuffix(".cxi") + "_truth.h5")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(truth_path, hdf5_image(fill_truth))
    write_whole(path, hdf5_image(fill_scan))
    return SyntheticScan(cxi=path, truth=truth_path, n_frames=len(frames), size=path.stat().st_size)


def _positions(rng: np.random.Generator, side: int, step: float) -> Real:
    """Raster of the illumination over the object, metres, (n, 2), jittered against the raster's artefacts."""
    grid = (np.arange(side) - (side - 1) / 2) * step
    raster = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    jittered: Real = raster + rng.uniform(-0.2, 0.2, raster.shape) * step
    return jittered


def _object(rng: np.random.Generator, span: Real, optics: Optics) -> Complex:
    """Transmission of what the beam can reach, complex64, on the fine grid."""
    fine, margin = optics.pixel / FINE, optics.frame * optics.pixel
    shape = np.ceil((span + margin) / fine).astype(int) + 4
    thickness = _gold_balls(rng, (int(shape[0]), int(shape[1])), fine, margin)
    wave_number = 2 * np.pi / optics.wavelength
    obj: Complex = np.exp(wave_number * thickness * (-1j * GOLD_DELTA - GOLD_BETA)).astype(np.complex64)
    return obj


def _gold_balls(rng: np.random.Generator, shape: tuple[int, int], pixel: float, margin: float) -> Real:
    """Projected thickness of balls of 80 to 240 nm, metres; they may touch, few overlap."""
    thickness = np.zeros(shape)
    rows, columns = (np.arange(n) * pixel for n in shape)
    area = shape[0] * shape[1] * pixel**2
    for _ in range(int(area / (0.32e-6) ** 2)):
        radius = rng.uniform(40e-9, 120e-9)
        row, column = (rng.uniform(0.15 * margin, n * pixel - 0.15 * margin) for n in shape)
        squared = radius**2 - (rows[:, None] - row) ** 2 - (columns[None, :] - column) ** 2
        thickness += 2 * np.sqrt(np.maximum(squared, 0.0))
    return np.minimum(thickness, 300e-9)


def _probe(optics: Optics, n: int, pixel: float, *, defocus: float, astigmatism: float) -> Complex:
    """The zone plate's beam at the sample, complex64, (n, n); its intensity sums to `optics.photons`."""
    frequency = np.fft.fftshift(np.fft.fftfreq(n, pixel))
    radius = np.hypot(frequency[:, None], frequency[None, :]) * optics.wavelength  # sine of the angle
    aperture = optics.wavelength / (2 * optics.outer_zone)
    edge = optics.wavelength * (frequency[1] - frequency[0])  # soft over one sample, so that it does not ring
    lit = np.clip((aperture - radius) / edge + 0.5, 0, 1)
    lit *= np.clip((radius - optics.stop_fraction * aperture) / edge + 0.5, 0, 1)
    angle = (frequency[:, None] ** 2 - frequency[None, :] ** 2) * optics.wavelength**2
    pupil = lit * np.exp(-1j * np.pi * astigmatism / optics.wavelength * angle)
    focus = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(pupil))).astype(np.complex128)
    probe = propagate(focus, pixel=np.array([pixel, pixel]), wavelength=optics.wavelength, distance=defocus)
    scaled: Complex = (probe * np.sqrt(optics.photons / (np.abs(probe) ** 2).sum())).astype(np.complex64)
    return scaled


def _shifted(wave: Complex, shift: Real) -> Complex:
    rows, columns = (np.fft.fftfreq(n) for n in wave.shape)
    ramp = np.exp(-2j * np.pi * (shift[0] * rows[:, None] + shift[1] * columns[None, :]))
    out: Complex = np.fft.ifft2(np.fft.fft2(wave) * ramp)
    return out


def _frames(rng: np.random.Generator, obj: Complex, probe: Complex, corners: Real, optics: Optics) -> Real:
    n = len(probe)
    inner = slice(n // 2 - optics.frame // 2, n // 2 - optics.frame // 2 + optics.frame)
    background = _background(optics)
    frames = np.empty((len(corners), optics.frame, optics.frame), dtype=np.float32)
    for index, corner in enumerate(corners):
        whole = np.floor(corner).astype(int)
        view = obj[whole[0] : whole[0] + n, whole[1] : whole[1] + n]
        wave = far_field(_shifted(probe, corner - whole) * view)
        frames[index] = rng.poisson(np.abs(wave[inner, inner]) ** 2 + background)
    return frames


def _background(optics: Optics) -> Real:
    """Stray light: flat, and a broad glow around the beam; counts in a pixel."""
    n = optics.frame
    offset = np.hypot(*np.meshgrid(np.arange(n) - n // 2, np.arange(n) - n // 2, indexing="ij"))
    glow = np.exp(-((offset / (0.3 * n)) ** 2))
    profile: Real = 0.5 + 0.5 * glow / glow.mean()
    return optics.background * profile


def _truth(
    file: h5py.File, *, obj: Complex, probe: Complex, origin: Real, positions: Real, optics: Optics
) -> None:
    file.attrs["description"] = "True object and probe of a synthetic scan; indexed along the detector's axes"
    file["object"] = obj
    file["probe"] = probe
    file["origin"] = origin  # metres, centre of the object's pixel (0, 0), in the frame of the positions
    file["positions"] = positions
    file["pixel_size"] = np.full(2, optics.pixel / FINE)
    file["energy_ev"] = optics.energy_ev
    file["defocus"] = optics.defocus
    for name in ("origin", "positions", "pixel_size", "defocus"):
        file[name].attrs["units"] = "m"


def _cxi(file: h5py.File, *, frames: Real, positions: Real, optics: Optics, title: str) -> None:
    """The layout that the beamline's preprocessor writes."""
    pitch = optics.detector_pitch
    file["cxi_version"] = 140
    file["number_of_entries"] = 1
    file[f"{ENTRY}/title"] = title
    file[f"{ENTRY}/sample_1/name"] = "gold balls of 80 to 240 nm"
    file[f"{SOURCE}/energy"] = optics.energy_ev * ELECTRON_VOLT
    guess = _probe(optics, optics.frame, optics.pixel, defocus=0.94 * optics.defocus, astigmatism=0.0)
    file[f"{SOURCE}/illumination"] = guess
    file[f"{SOURCE}/probe_mask"] = _beam_mask(optics).astype(np.uint8)
    file[f"{DETECTOR}/distance"] = optics.distance
    file[f"{DETECTOR}/x_pixel_size"] = pitch
    file[f"{DETECTOR}/y_pixel_size"] = pitch
    file[f"{DETECTOR}/basis_vectors"] = np.array([[0.0, -pitch, 0.0], [-pitch, 0.0, 0.0]])
    half = optics.frame // 2 * pitch
    file[f"{DETECTOR}/corner_position"] = np.array([half, half, optics.distance])
    chunks = (1, optics.frame, optics.frame)
    file.create_dataset(f"{DETECTOR}/data", data=frames, chunks=chunks, compression="lzf")
    translations = np.zeros((len(positions), 3))
    translations[:, 1], translations[:, 0] = (
        positions[:, 0],
        positions[:, 1],
    )  # rows run along -y, columns along -x
    file[f"{GEOMETRY}/translation"] = translations
    file[f"{ENTRY}/data_1/data"] = h5py.SoftLink(f"/{DETECTOR}/data")
    for group in (f"{ENTRY}/data_1", DETECTOR):
        file[f"{group}/translation"] = h5py.SoftLink(f"/{GEOMETRY}/translation")
    facts = {"energy": optics.energy_ev, "geometry": {"psize": pitch, "distance": optics.distance}}
    file["metadata"] = json.dumps(facts)


def _beam_mask(optics: Optics) -> Bool:
    """Where the bare beam can reach on the detector: the zone plate's cone and a little more."""
    offset = (np.arange(optics.frame) - optics.frame // 2) * optics.detector_pitch
    radius = np.hypot(offset[:, None], offset[None, :]) / optics.distance
    mask: Bool = radius < 1.15 * optics.wavelength / (2 * optics.outer_zone)
    return mask
