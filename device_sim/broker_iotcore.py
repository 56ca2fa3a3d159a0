"""rumqttd, from the wheel ``iotcore``: ``python -m device_sim.broker_iotcore SETTINGS``; ends with its standard input.

A panic in rumqttd 0.20 ends one of its tasks only, and may leave a lock poisoned that every later connection needs: a
client that is reset between its CONNECT and the answer, and comes again under its name, makes the broker refuse
everybody from then on. A broker that is gone is better than one that is mute, so the first panic ends the process.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import BinaryIO, Final

__all__ = ["PANIC_EXIT_CODE", "main"]

PANIC_EXIT_CODE: Final = 101
"""What Rust's own programs end with."""


def main() -> None:
    """Serve by the rumqttd settings in the file that is the only argument, until standard input ends."""
    from iotcore.iotcore import IotCoreBroker

    logging.disable(logging.CRITICAL)  # rumqttd logs every packet as an error.
    threading.Thread(target=_end_with_our_owner, daemon=True).start()
    said = os.dup(sys.stderr.fileno())
    reader, writer = os.pipe()
    os.dup2(writer, sys.stderr.fileno())
    threading.Thread(target=_end_at_a_panic, args=(os.fdopen(reader, "rb"), said), daemon=True).start()
    IotCoreBroker(config_path=sys.argv[1]).run_forever()


def _end_with_our_owner() -> None:
    # Whoever started us holds the other end: when they are gone, however they went, this read returns.
    sys.stdin.buffer.read()
    os._exit(0)


def _end_at_a_panic(lines: BinaryIO, said: int) -> None:
    """Hand on what is written to standard error; a panic tells its place in one line and its reason in the next."""
    for line in lines:
        os.write(said, line)
        if b"panicked at" in line:
            os.write(said, next(lines, b""))
            os._exit(PANIC_EXIT_CODE)


if __name__ == "__main__":
    main()
