"""Floods mDNS from the address given: announcements of ever new nodes, until stdin closes. Prints how many packets."""

import itertools
import os
import select
import socket
import struct
import sys

GROUP, PORT = "224.0.0.251", 5353


def name(text):
    labels = text.rstrip(".").split(".")
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def record(owner, kind, data):
    # Cache flush stands for records of one owner only, so not for PTR.
    return name(owner) + struct.pack("!HHIH", kind, 1 if kind == 12 else 0x8001, 4500, len(data)) + data


def announcement(number):
    service, instance, host = "_hubless._tcp.local", f"{number:016x}._hubless._tcp.local", f"{number:016x}.local"
    text = b"".join(bytes([len(word)]) + word for word in (b"v=1", b"m=default", b"r=" + b"a" * 52 + b".%016x" % number))
    answers = [
        record(service, 12, name(instance)),
        record(instance, 33, struct.pack("!HHH", 0, 0, 4711) + name(host)),
        record(instance, 16, text),
        record(host, 1, socket.inet_aton(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")),
    ]
    return struct.pack("!HHHHHH", 0, 0x8400, 0, len(answers), 0, 0) + b"".join(answers)


out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
out.bind((sys.argv[1], PORT))
out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
sent = 0
for number in itertools.count(int.from_bytes(os.urandom(4), "big")):
    out.sendto(announcement(number), (GROUP, PORT))
    sent += 1
    # Room for others on a machine of few cores; it is far more than the one who listens can read.
    if sent % 64 == 0 and select.select([sys.stdin], [], [], 0.002)[0]:
        break
print(sent)
