"""A durable subscriber in plain Python: `durable.py HOST:PORT NAME FILE`.

Speaks `hubless.v1` over a WebSocket (RFC 6455) of its own. Each text is written to FILE before a cursor that covers it is
acknowledged, so whoever kills this at any moment finds each acknowledged text in FILE.
"""

import base64
import json
import os
import socket
import struct
import sys


class WebSocket:
    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.stream = socket.create_connection((host, int(port)), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall(
            (
                f"GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: hubless.v1\r\n\r\n"
            ).encode()
        )
        self.bytes = self.stream.makefile("rb")
        status = self.bytes.readline()
        if b" 101 " not in status:
            raise ConnectionError(status)
        while self.bytes.readline() not in (b"\r\n", b""):
            pass

    def read(self, length):
        data = self.bytes.read(length)
        if len(data) < length:
            raise ConnectionError("the node closed the connection")
        return data

    def receive(self):
        """The next JSON frame; pings are answered on the way."""
        text = b""
        while True:
            first, second = self.read(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.read(8))
            data = self.read(length)
            opcode = first & 0x0F
            if opcode == 8:
                raise ConnectionError(f"closed: {data!r}")
            if opcode == 9:
                self.frame(10, data)
            elif opcode in (0, 1):
                text += data
                if first & 0x80:
                    return json.loads(text)

    def send(self, value):
        self.frame(1, json.dumps(value).encode())

    def frame(self, opcode, data):
        mask = os.urandom(4)
        if len(data) < 126:
            head = struct.pack(">BB", 0x80 | opcode, 0x80 | len(data))
        elif len(data) < 1 << 16:
            head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, len(data))
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, len(data))
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
        self.stream.sendall(head + mask + masked)


def main():
    address, name, path = sys.argv[1:]
    node = WebSocket(address)
    node.send({"type": "hello", "name": name, "durable": name})
    with open(path, "a") as taken:
        while True:
            frame = node.receive()
            kind = frame["type"]
            if kind == "message":
                taken.write(frame["text"] + "\n")
                if frame.get("cursor"):
                    taken.flush()
                    node.send({"type": "ack", "cursor": frame["cursor"]})
            elif kind in ("error", "gap"):
                raise SystemExit(f"{kind}: {frame}")


main()
