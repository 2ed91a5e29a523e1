"""Makes the connections and the `beamline.yaml` that point Airflow at the stand-in for Globus and NERSC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

INCLUDE = Path(__file__).resolve().parents[1]


def standin_seed(facility: dict[str, Any]) -> dict[str, Any]:
    """Connections and pools, as `deployment.database` takes them.

    :param facility: the stand-in's description of itself (its `standin.json`).
    """
    globus, nersc = facility["globus"], facility["nersc"]
    return {
        "connections": {
            "globus_default": {
                "conn_type": "globus",
                "login": globus["client_id"],
                "password": globus["client_secret"],
                "extra": {
                    "auth_base_url": globus["auth_url"],
                    "transfer_base_url": globus["transfer_url"],
                    "collections": " ".join(c["id"] for c in facility["collections"].values()),
                },
            },
            "superfacility_default": {
                "conn_type": "superfacility",
                "host": nersc["api_url"],
                "extra": {
                    "token_url": nersc["token_url"],
                    "client_id_file": nersc["client_id_path"],
                    "key_file": nersc["key_path"],
                },
            },
        },
        "pools": pools(),
    }


def pools() -> dict[str, Any]:
    """The bundle's pools."""
    values: dict[str, Any] = json.loads((INCLUDE / "pools.json").read_text())
    return values


def bundle_beamline() -> dict[str, Any]:
    """The bundle's own `beamline.yaml`."""
    values: dict[str, Any] = yaml.safe_load((INCLUDE / "beamline.yaml").read_text())
    return values


def standin_beamline(facility: dict[str, Any], path: Path, job_script_folder: Path) -> Path:
    """Write to `path` the bundle's `beamline.yaml` with the stand-in's paths in place of NERSC's."""
    site = bundle_beamline()
    destination = site["collections"]["destination"]
    destination["path"] = "/"
    destination["file_system_path"] = facility["collections"]["nersc7012"]["root"]
    software = Path(facility["nersc_root"]) / "software"
    for engine, settings in site["engines"].items():
        settings["script"] = str(software / f"{engine}_reconstruction.sh")
    site["stack"]["script"] = str(software / "stack.sh")
    site["job_script_folder"] = str(job_script_folder)
    path.write_text(yaml.safe_dump(site, sort_keys=False))
    return path
