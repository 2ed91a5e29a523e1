"""Runs the stand-in: `python -m standin --root DIR`.

Prints one line with the base URL when it answers. The rest is in DIR/standin.json.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from standin.server import Server, StartError
from standin.settings import SCHEDULERS, Settings


def parse(arguments: list[str] | None = None) -> Settings:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(prog="python -m standin", description=__doc__)
    parser.add_argument(
        "--root", type=Path, required=True, help="folder that holds all of its files and state"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (0: any free one)")
    parser.add_argument("--public-url", help="base URL as clients see it (http://HOST:PORT)")
    parser.add_argument("--control", action="store_true", help="serve /control: faults, accounting, switches")
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="auto", help="(%(default)s)")
    parser.add_argument("--slots", type=int, default=4, help="jobs at once, built-in runner (%(default)s)")
    parser.add_argument("--bandwidth", type=float, help="bytes per second of all transfers together")
    parser.add_argument("--active-transfers", type=int, default=3, help="transfers at once (%(default)s)")
    parser.add_argument("--pending-limit", type=int, default=100, help="unfinished transfers (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        return Settings(**vars(options))
    except ValueError as error:
        parser.error(str(error))


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = Server(settings)
    await server.start()
    try:
        print(server.base_url, flush=True)
        await ended.wait()
    finally:
        await server.stop()


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = parse()
    try:
        asyncio.run(serve(settings))
    except StartError as error:
        sys.exit(f"standin: {error}")


if __name__ == "__main__":
    main()
