"""amqtt in a process of its own: ``python -m device_sim.broker_amqtt HOST PORT``; ends when its standard input does."""

from __future__ import annotations

import asyncio
import logging
import sys

__all__ = ["main"]


async def _serve(host: str, port: int) -> None:
    from amqtt.broker import Broker

    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}", "max_connections": 0}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    # Whoever started us holds the other end: when they are gone, however they went, this read returns.
    await asyncio.to_thread(sys.stdin.buffer.read)
    await broker.shutdown()


def main() -> None:
    """Serve until standard input ends."""
    logging.disable(logging.CRITICAL)  # amqtt logs every packet and every client that hangs up.
    host, port = sys.argv[1:3]
    asyncio.run(_serve(host, int(port)))


if __name__ == "__main__":
    main()
