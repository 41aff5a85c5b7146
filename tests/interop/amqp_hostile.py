"""Publishes what no honest client would: amqp_hostile.py URL EXCHANGE KIND, where KIND is one of the cases below."""

import struct
import sys

import pika

BAD = b"\xff\xfe"


def nested(depth):
    """An AMQP field array in an array in an array …"""
    value = struct.pack(">cI", b"A", 0)
    for _ in range(depth):
        value = struct.pack(">cI", b"A", len(value)) + value
    return value


class Raw(dict):
    """A table of headers that is already encoded."""


def encode_table(pieces, table):
    if isinstance(table, Raw):
        body = table["raw"]
        pieces.append(struct.pack(">I", len(body)) + body)
        return 4 + len(body)
    return ENCODE_TABLE(pieces, table)


ENCODE_TABLE = pika.data.encode_table
pika.data.encode_table = encode_table
pika.spec.data.encode_table = encode_table

CASES = {
    "message-id": dict(properties=pika.BasicProperties(message_id=BAD)),
    "content-type": dict(properties=pika.BasicProperties(content_type=BAD)),
    "app-id": dict(properties=pika.BasicProperties(app_id=BAD)),
    "routing-key": dict(routing_key=BAD),
    "header-name": dict(properties=pika.BasicProperties(headers=Raw(raw=b"\x02" + BAD + b"I\0\0\0\x07"))),
    "header-depth": dict(properties=pika.BasicProperties(headers=Raw(raw=b"\x01x" + nested(20_000)))),
}

url, exchange, kind = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.basic_publish(**{"exchange": exchange, "routing_key": "chat", "body": kind.encode(), **CASES[kind]})
connection.close()
