"""The tests in `stack` need a Docker engine and minutes: they run with `make compose-test` only."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("COMPOSE_TEST") else ["stack"]
