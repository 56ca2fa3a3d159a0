"""MQTT as the rest of the house sees it: settings in, events out, one transport that a loop drives.

``events`` holds what a transport reports and the ``Transport`` interface, ``settings`` how a broker is reached,
``transport`` the adapter over paho-mqtt, ``link`` one connection of it, ``stream`` the socket that paho is given,
``meter`` what it has counted, ``sizes`` what a packet will have, and
``failures`` the sentences that people read when a connection does not come about. Importing this package loads
neither paho nor ssl nor hashlib; they come with the first ``connect()``.
"""

from edge_sdk.mqtt.events import (
    Connected,
    Delivery,
    Disconnected,
    DisconnectReason,
    Listener,
    Protocol,
    Published,
    Subscribed,
    Transport,
    TransportEvent,
)
from edge_sdk.mqtt.meter import Meter
from edge_sdk.mqtt.settings import BrokerSettings, TlsSettings, Will
from edge_sdk.mqtt.transport import PahoTransport

__all__ = [
    "BrokerSettings",
    "Connected",
    "Delivery",
    "DisconnectReason",
    "Disconnected",
    "Listener",
    "Meter",
    "PahoTransport",
    "Protocol",
    "Published",
    "Subscribed",
    "TlsSettings",
    "Transport",
    "TransportEvent",
    "Will",
]
