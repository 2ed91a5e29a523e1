"""The file in which CDTools keeps a reconstruction (`FancyPtycho.save_to_h5`, cdtools-py 0.3.2).

CDTools goes on from it (`FancyPtycho.from_results_h5`), and the beamline's scan browser shows it. Needs no
CDTools: a reconstruction of another program becomes a model with one intensity and no offset for each frame.

The same file is a product of ptychodus (1.7, its HDF5 layout): the two share only the probe's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from reconstruction.geometry import positions
from reconstruction.scan import Scan
from reconstruction.solver import Solution


def fill_file(file: h5py.File, scan: Scan, solution: Solution) -> None:
    """Write CDTools' own results, or another program's as CDTools'; and what ptychodus needs besides."""
    _fill(file, solution.model or _far_field_results(scan, solution))
    moved = positions(scan, solution.pixel)
    file["object"] = file["obj"]
    height, width = (float(length) for length in solution.pixel)
    # ptychodus counts from an array's middle, (n - 1) / 2; positions are those of the probe's pixel n // 2.
    frame, size = np.array(solution.probe.shape[-2:]), np.array(solution.obj.shape)
    middle = (solution.corner + frame // 2 - (frame - 1) / 2 + (size - 1) / 2) * solution.pixel
    file["object"].attrs.update(pixel_width_m=width, pixel_height_m=height)
    file["object"].attrs.update(center_x_m=middle[1], center_y_m=middle[0])
    file["probe_position_indexes"] = np.arange(len(moved))
    file["probe_position_x_m"], file["probe_position_y_m"] = moved[:, 1] * width, moved[:, 0] * height
    file.attrs.update(
        name=scan.path.name.removesuffix(".cxi"),
        photon_energy_eV=scan.energy_ev,
        detector_object_distance_m=scan.distance,
        far_field=solution.model is None or not solution.model["state_dict"]["near_field"],
    )


def _far_field_results(scan: Scan, solution: Solution) -> dict[str, Any]:
    """A far-field solution as `FancyPtycho.save_results` would give it.

    Arrays are indexed along the detector's axes; the columns of `obj_basis` and `probe_basis` are the steps
    (x, y, z) from a pixel to the next row and to the next column, meters.
    """
    directions = scan.basis / np.linalg.norm(scan.basis, axis=0)
    # Of the probe over the object, as the solver took them: whatever the scan's file calls them.
    translations = positions(scan, solution.pixel) * solution.pixel @ directions.T
    background = np.zeros(scan.detector_shape) if solution.background is None else solution.background
    n_frames, probe_shape = len(scan.frames), solution.probe.shape[-2:]
    peak = float(np.abs(solution.probe[0]).max())
    geometry = {
        "wavelength": np.float32(scan.wavelength),
        "obj_basis": np.float32(directions * solution.pixel),
        "probe_basis": np.float32(directions * solution.pixel),
        "original_translations": np.float32(translations),
        "oversampling": np.int64(1),
        "weights": np.ones(n_frames, np.float32),
    }
    state = {
        **geometry,
        "det_basis": np.float32(scan.basis),
        "det_distance": np.float32(scan.distance),
        "surface_normal": np.array([0, 0, 1], np.float32),
        "min_translation": np.float32(solution.corner + np.array(probe_shape) // 2),
        "translation_offsets": np.zeros((n_frames, 2), np.float32),
        "translation_scale": np.float32(1),
        "mask": scan.good,
        "background": np.float32(np.sqrt(background)),  # the model squares it
        "probe": solution.probe / np.float32(peak),
        "probe_norm": np.float32(peak),
        "probe_support": np.ones(probe_shape, np.bool_),
        "obj": solution.obj,
        "fourier_probe": np.False_,
        "exponentiate_obj": np.False_,
        "phase_only": np.False_,
        "near_field": np.False_,
        "simulate_probe_translation": np.False_,
        "simulate_finite_pixels": np.False_,
    }
    return {
        **geometry,
        "translations": geometry["original_translations"],
        "probe": solution.probe,
        "obj": solution.obj,
        "background": np.float32(background),
        "state_dict": state,
        "loss_history": np.array([]),  # CDTools' loss, which no other program knows
        "epoch": 0,
        "training_history": "",
        "loss_function": "amplitude_mse",
        "model_class": "FancyPtycho",
    }


def _fill(group: h5py.Group, results: Mapping[str, Any]) -> None:
    """Write the results of a model; the object, which is large, once."""
    for name, value in sorted(results.items(), key=lambda item: isinstance(item[1], Mapping)):
        if isinstance(value, Mapping):
            _fill(group.create_group(name), value)
        elif name == "obj" and name in group.file:
            group[name] = group.file[name]
        else:
            group[name] = value
