"""Makes a synthetic COSMIC scan in the layout of ACME, the beamline's preprocessor, with the truth beside it.

The numbers are those of the beamline: 1000 eV, a 240 um zone plate with 60 nm outer zones and a
central stop, the sample 50 um behind the focus, a CCD of 30 um pixels binned by three 121 mm behind
the sample. The object is computed on a grid twice as fine as any reconstruction's, so that light
leaves the detector as it does in the experiment; frames get Poisson noise, a small background and the
CCD's readout noise, and are cut at zero, as ACME does when it has subtracted the dark frames.

The object has no symmetry: gold balls, which shift the phase, among flakes that only absorb. So it is like
none of its mirror images, rotations and complex conjugates (`dev.demo.orientation` tells them apart).
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import h5py
import numpy as np

from reconstruction.arrays import Complex, Real
from reconstruction.files import hdf5_image, write_whole
from reconstruction.geometry import far_field, inverse_far_field, propagate
from reconstruction.scan import DATA, DETECTOR, ELECTRON_VOLT, GEOMETRY, LIGHT_SPEED, PLANCK, SOURCE

# Gold at 1000 eV, refractive index 1 - delta + i beta: close to Henke, Gullikson and Davis (1993).
GOLD_DELTA, GOLD_BETA = 1.85e-3, 7.6e-4
FLAKE_BETA = 1.3e-3  # of an element at its absorption edge, where delta passes through zero
FINE = 2  # object samples for each sample of a reconstruction
# ACME's constants.
EV_TO_JOULE = 1.60218e-19
GUESS_FROM = 0.1  # of the planned frames: what the first illumination is made from
BRIGHT = 0.01  # of the mean frame's peak: where the illumination is
EMPTY_GROUPS = ("tomography", "entry_1/image_1/process_1")


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
    astigmatism: float = 2.5e-6  # the guess in the file knows nothing of it
    photons: float = 2e6  # for each frame, before the sample
    background: float = 0.4  # mean counts in a pixel
    readout: float = 0.1  # counts, standard deviation

    @property
    def wavelength(self) -> float:
        return PLANCK * LIGHT_SPEED / (self.energy_ev * ELECTRON_VOLT)

    @property
    def pixel(self) -> float:
        """Of a far-field reconstruction."""
        return self.wavelength * self.distance / (self.frame * self.detector_pitch)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What differs between files of ACME.

    :param translations_of: "probe", as ACME writes them, or "sample", as CXI defines them.
    :param guess_defocus: meters, of the illumination in the file; ACME propagates with the conjugate of
        `reconstruction.geometry.propagate`'s kernel, so that its distances have the other sign.
    :param energy_index: of a stack; `region` likewise.
    :param offline: as ACME's offline program: a mask of type bool, and both beam arrays in more places.
    :param energy: "joule"; "zero": what ACME stores when the energy in eV is a whole number.
    :param metadata_energy: unit of the energy in the root dataset `metadata`; it differs by ACME's version.
    :param corner_position: write it; ACME does when the control system's metadata has it.
    :param frames_written: the scan was aborted after so many; None: all.
    :param compression: of the frames.
    """

    translations_of: Literal["probe", "sample"] = "probe"
    guess_defocus: float = 47e-6
    energy_index: int = 0
    region: int = 0
    offline: bool = False
    energy: Literal["joule", "zero"] = "joule"
    metadata_energy: Literal["eV", "J"] = "eV"
    corner_position: bool = False
    frames_written: int | None = None
    compression: Literal["lzf"] | None = None


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
    layout: Layout | None = None,
) -> SyntheticScan:
    """Simulate a scan and write it to `path`, and the truth to `<path without .cxi>_truth.h5`.

    :param n_frames: rounded down to a square number of scan points.
    :param step: mean distance between scan points, meters.
    :raises ValueError: when the numbers make no scan.
    """
    optics, layout = optics or Optics(), layout or Layout()
    side = int(np.sqrt(n_frames))
    if side < 3:
        raise ValueError(f"{n_frames} frames make no scan; ask for nine or more.")
    rng = np.random.default_rng(seed)
    positions = _positions(rng, side, step)
    fine = optics.pixel / FINE
    obj = _object(rng, np.ptp(positions, axis=0), optics)
    probe = _probe(optics, FINE * optics.frame, fine)
    frames = _frames(rng, obj, probe, (positions - positions.min(axis=0)) / fine, optics)
    origin = positions.min(axis=0) - FINE * optics.frame // 2 * fine

    def fill_truth(file: h5py.File) -> None:
        _truth(file, obj=obj, probe=probe, origin=origin, positions=positions, optics=optics)

    def fill_scan(file: h5py.File) -> None:
        _AcmeFile(file, layout, optics, path.name.removesuffix(".cxi")).write(frames, positions, step)

    truth_path = path.with_name(path.name.removesuffix(".cxi") + "_truth.h5")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(truth_path, hdf5_image(fill_truth))
    write_whole(path, hdf5_image(fill_scan))
    return SyntheticScan(
        cxi=path, truth=truth_path, n_frames=len(frames[: layout.frames_written]), size=path.stat().st_size
    )


def _positions(rng: np.random.Generator, side: int, step: float) -> Real:
    """Raster of the illumination over the object, meters, (n, 2), jittered against the raster's artefacts."""
    grid = (np.arange(side) - (side - 1) / 2) * step
    raster = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    jittered: Real = raster + rng.uniform(-0.2, 0.2, raster.shape) * step
    return jittered


def _object(rng: np.random.Generator, span: Real, optics: Optics) -> Complex:
    """Transmission of what the beam can reach, complex64, on the fine grid."""
    fine, margin = optics.pixel / FINE, optics.frame * optics.pixel
    shape = np.ceil((span + margin) / fine).astype(int) + 4
    size = (int(shape[0]), int(shape[1]))
    balls, flakes = _gold_balls(rng, size, fine, margin), _flakes(rng, size, fine, margin)
    wave_number = 2 * np.pi / optics.wavelength
    obj: Complex = np.exp(wave_number * (balls * (-1j * GOLD_DELTA - GOLD_BETA) - flakes * FLAKE_BETA))
    return obj.astype(np.complex64)


def _gold_balls(rng: np.random.Generator, shape: tuple[int, int], pixel: float, margin: float) -> Real:
    """Projected thickness of balls of 80 to 240 nm, meters; they may touch, few overlap."""
    thickness = np.zeros(shape)
    rows, columns = (np.arange(n) * pixel for n in shape)
    area = shape[0] * shape[1] * pixel**2
    for _ in range(int(area / (0.32e-6) ** 2)):
        radius = rng.uniform(40e-9, 120e-9)
        row, column = (rng.uniform(0.15 * margin, n * pixel - 0.15 * margin) for n in shape)
        squared = radius**2 - (rows[:, None] - row) ** 2 - (columns[None, :] - column) ** 2
        thickness += 2 * np.sqrt(np.maximum(squared, 0.0))
    return np.minimum(thickness, 300e-9)


def _flakes(rng: np.random.Generator, shape: tuple[int, int], pixel: float, margin: float) -> Real:
    """Projected thickness of triangular flakes, meters; all have their right angle at one corner."""
    thickness = np.zeros(shape)
    rows, columns = (np.arange(n) * pixel for n in shape)
    for _ in range(int(shape[0] * shape[1] * pixel**2 / (0.65e-6) ** 2)):
        height, width = rng.uniform(250e-9, 450e-9), rng.uniform(80e-9, 160e-9)
        row, column = (rng.uniform(0.15 * margin, n * pixel - 0.15 * margin) for n in shape)
        down, right = (rows - row)[:, None] / height, (columns - column)[None, :] / width
        thickness[(down > 0) & (right > 0) & (down + right < 1)] += rng.uniform(150e-9, 300e-9)
    return np.minimum(thickness, 400e-9)


def _probe(optics: Optics, n: int, pixel: float) -> Complex:
    """The zone plate's beam at the sample, complex64, (n, n); its intensity sums to `optics.photons`."""
    frequency = np.fft.fftshift(np.fft.fftfreq(n, pixel))
    radius = np.hypot(frequency[:, None], frequency[None, :]) * optics.wavelength  # sine of the angle
    aperture = optics.wavelength / (2 * optics.outer_zone)
    edge = optics.wavelength * (frequency[1] - frequency[0])  # soft over one sample, so that it does not ring
    lit = np.clip((aperture - radius) / edge + 0.5, 0, 1)
    lit *= np.clip((radius - optics.stop_fraction * aperture) / edge + 0.5, 0, 1)
    angle = (frequency[:, None] ** 2 - frequency[None, :] ** 2) * optics.wavelength**2
    pupil = lit * np.exp(-1j * np.pi * optics.astigmatism / optics.wavelength * angle)
    focus = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(pupil))).astype(np.complex128)
    probe = propagate(
        focus, pixel=np.array([pixel, pixel]), wavelength=optics.wavelength, distance=optics.defocus
    )
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
        counts = rng.poisson(np.abs(wave[inner, inner]) ** 2 + background)
        frames[index] = np.maximum(counts + rng.normal(scale=optics.readout, size=counts.shape), 0.0)
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
    file["origin"] = origin  # meters, centre of the object's pixel (0, 0), in the frame of the positions
    file["positions"] = positions
    file["pixel_size"] = np.full(2, optics.pixel / FINE)
    file["energy_ev"] = optics.energy_ev
    file["defocus"] = optics.defocus
    for name in ("origin", "positions", "pixel_size", "defocus"):
        file[name].attrs["units"] = "m"


class _AcmeFile:
    """Writes what ACME writes, and nothing else."""

    def __init__(self, file: h5py.File, layout: Layout, optics: Optics, identifier: str) -> None:
        self.file = file
        self.layout = layout
        self.optics = optics
        self.identifier = identifier

    def write(self, frames: Real, positions: Real, step: float) -> None:
        written = frames[: self.layout.frames_written]
        translations = self._translations(positions)
        for group in (DATA, GEOMETRY, SOURCE, DETECTOR, *EMPTY_GROUPS):
            self.file.create_group(group)
        self.file["cxi_version"] = 140
        self.file["metadata"] = json.dumps(self._metadata(translations, step))
        self._geometry()
        if len(written):
            self._frames(written, translations[: len(written)])
        of_guess = max(1, int(GUESS_FROM * len(frames)))
        if len(written) >= of_guess:
            self._beam(written[:of_guess])

    def _translations(self, positions: Real) -> Real:
        """Laboratory frame, meters, (n, 3): rows of the detector run along -y, columns along -x."""
        sign = -1.0 if self.layout.translations_of == "probe" else 1.0
        translations = np.zeros((len(positions), 3), dtype=np.float32)
        translations[:, 0], translations[:, 1] = sign * positions[:, 1], sign * positions[:, 0]
        return translations

    def _metadata(self, translations: Real, step: float) -> dict[str, Any]:
        """What the control system sends at the start of a scan, as ACME completes it."""
        optics, layout = self.optics, self.layout
        side = round(len(translations) ** 0.5)
        energy = optics.energy_ev * (1.0 if layout.metadata_energy == "eV" else EV_TO_JOULE)
        scan_name = self.identifier.partition("_ccdframes_")[0]
        held: dict[str, Any] = {
            "identifier": self.identifier,
            "header": f"/data/{scan_name}.stxm",
            "energy": int(energy) if layout.energy == "zero" else energy,
            "energyIndex": layout.energy_index,
            "scanRegion": layout.region,
            "dwell1": 100.0,
            "dwell2": 0.0,
            "double_exposure": False,
            "n_repeats": 1,
            "defocus": optics.defocus * 1e6,
            "step_size_x": step * 1e6,
            "step_size_y": step * 1e6,
            "num_pixels_x": side,
            "num_pixels_y": side,
            "pos_x": 0.0,
            "pos_y": 0.0,
            "geometry": {
                "psize": optics.detector_pitch,
                "distance": optics.distance,
                "basis_vectors": [[0, -optics.detector_pitch, 0], [-optics.detector_pitch, 0, 0]],
            },
            "detector_distance": optics.distance,
            "x_pixel_size": optics.detector_pitch,
            "y_pixel_size": optics.detector_pitch,
            "output_frame_width": optics.frame,
            "translations": translations[:, :2].tolist(),
        }
        if layout.corner_position:
            half = optics.frame // 2 * optics.detector_pitch
            held["geometry"]["corner_position"] = [half, half, optics.distance]
        return held

    def _geometry(self) -> None:
        pitch = self.optics.detector_pitch
        zero = self.layout.energy == "zero"  # the data set takes the integer's type, and then the joules
        self.file[f"{SOURCE}/energy"] = 0 if zero else self.optics.energy_ev * EV_TO_JOULE
        self.file[f"{DETECTOR}/distance"] = self.optics.distance
        self.file[f"{DETECTOR}/basis_vectors"] = np.array([[0.0, -pitch, 0.0], [-pitch, 0.0, 0.0]])
        self.file[f"{DETECTOR}/x_pixel_size"] = pitch
        self.file[f"{DETECTOR}/y_pixel_size"] = pitch
        if self.layout.corner_position:
            half = self.optics.frame // 2 * pitch
            self.file[f"{DETECTOR}/corner_position"] = np.array([half, half, self.optics.distance])

    def _frames(self, frames: Real, translations: Real) -> None:
        shape = frames.shape[1:]
        self.file.create_dataset(f"{DETECTOR}/data", data=frames, chunks=(1, *shape), maxshape=(None, *shape))
        self.file.create_dataset(f"{GEOMETRY}/translation", data=translations, maxshape=(None, 3))
        self.file[f"{DATA}/data"] = h5py.SoftLink(f"/{DETECTOR}/data")
        for group in (DATA, DETECTOR):
            self.file[f"{group}/translation"] = h5py.SoftLink(f"/{GEOMETRY}/translation")
        self.file[f"{DETECTOR}/mask"] = np.zeros(shape, dtype=np.uint32)

    def _beam(self, frames: Real) -> None:
        """First guess of the probe, and where the beam is on the detector, both from the mean frame."""
        mean = frames.mean(axis=0, dtype=np.float64)
        lit = mean > BRIGHT * mean.max()
        mask = np.fft.ifftshift(lit)  # zero frequency at [0, 0]
        focus = inverse_far_field((np.sqrt(mean) * lit).astype(np.complex128))
        pixel = np.full(2, self.optics.pixel)
        # ACME's kernel is the conjugate of ours: the same as the other distance.
        guess = propagate(
            focus, pixel=pixel, wavelength=self.optics.wavelength, distance=-self.layout.guess_defocus
        )
        self.file[f"{SOURCE}/illumination"] = guess
        self.file[f"{DETECTOR}/probe_mask"] = mask if self.layout.offline else mask.astype(np.int64)
        if self.layout.offline:
            self.file[f"{SOURCE}/probe_mask"] = mask
            for place in (f"{SOURCE}/probe", f"{DETECTOR}/probe"):
                self.file[place] = guess
            for group in (SOURCE, DETECTOR):
                self.file[f"{group}/data_illumination"] = guess
