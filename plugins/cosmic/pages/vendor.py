"""Serves the parts of others that pages use, from the folder `vendor`: no page asks any other server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

FOLDER = Path(__file__).with_name("vendor")
FILES = {
    "uplot-1.6.32.js": ("uplot/uPlot.iife.min.js", "text/javascript"),
    "uplot-1.6.32.css": ("uplot/uPlot.min.css", "text/css"),
}
"""By the name in the address, which has the version: browsers keep it for good."""

router = APIRouter()


@router.get("/vendor/{name}")
def vendored(name: str) -> Response:
    """One file."""
    if name not in FILES:
        raise HTTPException(404, "There is no such file.")
    path, kind = FILES[name]
    headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response((FOLDER / path).read_bytes(), media_type=kind, headers=headers)
