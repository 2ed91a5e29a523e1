"""Tells which way round a reconstruction is: rotated, mirrored, conjugated, or as the sample was.

Ptychography with wrong signs converges as well as with the right ones, on another picture: positions with the
wrong sign give the object rotated by 180 degrees and conjugated, at the same error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from dev.demo.compare import IMAGE, complex_correlation, largest_box
from reconstruction.arrays import Complex, Real
from reconstruction.frc import align, mean_gradient, ramp

SHIFT = 4  # pixels: how far an alignment may wrap the edges around


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """What was done to the sample's true image to get the reconstruction.

    :param quarter_turns: 0 to 3, counterclockwise, as `numpy.rot90` counts.
    :param mirrored: left and right were exchanged, before the turns.
    :param correlation: 0 to 1, as in `dev.demo.compare.Comparison`, in this orientation.
    """

    quarter_turns: int
    mirrored: bool
    conjugated: bool
    correlation: float

    @property
    def upright(self) -> bool:
        """Nothing was done to it."""
        return not (self.quarter_turns or self.mirrored or self.conjugated)

    def describe(self) -> str:
        """For a person: `upright`, or `mirrored, rotated by 90 degrees, conjugated`."""
        words = ["mirrored"] if self.mirrored else []
        words += [f"rotated by {90 * self.quarter_turns} degrees"] if self.quarter_turns else []
        words += ["conjugated"] if self.conjugated else []
        return ", ".join(words) or "upright"


def find_orientation(reconstruction: Path, truth: Path) -> Orientation:
    """Compare the object in a result with the truth that `make_scan` wrote, wherever it lies in it.

    :raises ValueError: when the pixels of the two do not fit each other.
    """
    with h5py.File(reconstruction, "r") as file:
        obj, scanned = file[f"{IMAGE}/data"][()], file[f"{IMAGE}/mask"][()] == 0
        pixel = file[f"{IMAGE}/pixel_size"][()]
    with h5py.File(truth, "r") as file:
        true_obj, true_pixel = file["object"][()], file["pixel_size"][()]
    cell = np.round(pixel / true_pixel).astype(int)
    if np.abs(pixel / true_pixel - cell).max() > 0.01 or (cell < 1).any():
        raise ValueError(f"The pixels, {pixel} m, are no multiple of the truth's {true_pixel} m.")
    rows, columns = np.array(true_obj.shape) // cell
    fine = true_obj[: rows * cell[0], : columns * cell[1]]
    coarse = fine.reshape(rows, cell[0], columns, cell[1]).mean(axis=(1, 3))
    return best_orientation(obj[largest_box(scanned)], coarse)


def best_orientation(image: Complex, truth: Complex) -> Orientation:
    """The best of the eight orientations, conjugated or not, of a part of the sample.

    A complex factor, a linear phase ramp and a shift, which ptychography leaves open, do not count.

    :param image: complex, (rows, columns), the well scanned part; not larger than the truth.
    :param truth: complex, (rows, columns), of the same pixel size.
    """
    return max(all_orientations(image, truth), key=lambda tried: tried.correlation)


def all_orientations(image: Complex, truth: Complex) -> list[Orientation]:
    """The correlation in each of the sixteen; see `best_orientation`."""
    found = []
    for turns in range(4):
        for mirrored in (False, True):
            back = np.rot90(image, -turns)
            back = back[:, ::-1] if mirrored else back
            for conjugated in (False, True):
                correlation = _correlation(back.conj() if conjugated else back, truth)
                found.append(
                    Orientation(
                        quarter_turns=turns,
                        mirrored=mirrored,
                        conjugated=conjugated,
                        correlation=correlation,
                    )
                )
    return found


def _correlation(image: Complex, truth: Complex) -> float:
    flat = image * ramp(image.shape, -mean_gradient(image))
    row, column = _place(flat, truth * ramp(truth.shape, -mean_gradient(truth)))
    view = truth[row : row + image.shape[0], column : column + image.shape[1]]
    aligned, _ = align(image, view)
    inside = np.s_[SHIFT:-SHIFT, SHIFT:-SHIFT]
    return complex_correlation(aligned[inside], view[inside])


def _place(image: Complex, truth: Complex) -> tuple[int, int]:
    """Where in the truth the image lies: the peak of the normalized cross-correlation."""
    size = np.array(truth.shape)
    if (size < image.shape).any():
        raise ValueError(f"An image of {image.shape} pixels is not a part of a sample of {truth.shape}.")

    def correlated(values: Complex | Real, kernel: Complex | Real) -> Complex:
        spectrum = np.fft.fft2(values) * np.fft.fft2(kernel, s=truth.shape).conj()
        product: Complex = np.fft.ifft2(spectrum)
        return product[: size[0] - image.shape[0] + 1, : size[1] - image.shape[1] + 1]

    ones = np.ones(image.shape)
    mean = correlated(truth, ones) / ones.size
    variance = correlated(np.abs(truth) ** 2, ones).real / ones.size - np.abs(mean) ** 2
    score = np.abs(correlated(truth, image - image.mean())) / np.sqrt(np.maximum(variance, 1e-9))
    row, column = np.unravel_index(int(score.argmax()), score.shape)
    return int(row), int(column)
