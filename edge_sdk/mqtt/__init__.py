"""MQTT as the rest of the house sees it: settings in, events out, one transport that a loop drives.

Where paho-mqtt is used, and where our own code is, for readers of paho's documentation:

1. Each connection has a ``paho.mqtt.client.Client`` of its own (``connection.py``), driven through paho's *external
   loop*: no ``loop_start``, no thread.
2. paho sends CONNECT (user, password, will, properties), reads CONNACK, pings, and says goodbye.
3. Its socket is ours (``stream.py``), handed to paho by an object that it takes for an ``SSLContext``. So paho's bytes
   and ours leave through one buffer, and every byte is metered.
4. Once CONNACK has come, SUBSCRIBE, UNSUBSCRIBE, PUBLISH, PUBACK and their answers are read and written by
   ``packets.py``; paho is lent only what is its own (PINGRESP, DISCONNECT).
5. So paho's ``on_message``, ``publish()``, queue, resending and ``max_inflight_messages_set`` are not used: the window
   (the broker's Receive Maximum) is in ``transport.py``, and only the session sends anything again.
6. The reason is cost: paho takes many times as long for a message as these packets do.

``events`` holds what a transport reports and the ``Transport`` interface, ``settings`` how a broker is reached,
``transport`` the adapter over paho-mqtt, ``connection`` one connection of it, ``stream`` the socket that paho is given,
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
