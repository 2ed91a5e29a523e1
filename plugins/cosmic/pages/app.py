"""The app of all pages."""

from __future__ import annotations

from fastapi import FastAPI

from cosmic.pages import pictures, result

app = FastAPI(title="COSMIC", docs_url=None, redoc_url=None, openapi_url=None)
app.include_router(result.router)
app.include_router(pictures.router)
