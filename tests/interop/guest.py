"""A program on another machine: asks what it is told to on stdin, a JSON object a line, and prints what it was answered.

{"path", "method"?, "headers"?} -> {"status", "headers", "body"}; {"connect": n} -> how many of n connections stay open;
{"rush": n, "path"} -> how often each status came.
"""

import collections
import http.client
import json
import socket
import sys

host, port = sys.argv[1], int(sys.argv[2])
held = []


def ask(order):
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request(order.get("method", "GET"), order["path"], order.get("body"), order.get("headers", {}))
    answer = connection.getresponse()
    status, headers = answer.status, {name.lower(): value for name, value in answer.getheaders()}
    # Of a WebSocket the head is all.
    body = "" if status == 101 else answer.read().decode()
    if status == 101:
        held.append(connection)
    else:
        connection.close()
    return {"status": status, "headers": headers, "body": body}


def rush(order):
    """All at once over one connection, so that no round trip slows it down."""
    request = f"GET {order['path']} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    counts, left, seen = collections.Counter(), order["rush"], b""
    with socket.create_connection((host, port), timeout=20) as line:
        while left > 0:
            many = min(left, 100)
            line.sendall(request * many)
            while seen.count(b"HTTP/1.1 ") < many or not seen.endswith((b"ok\n", b"}}")):
                seen += line.recv(65536)
            counts.update(part[:3].decode() for part in seen.split(b"HTTP/1.1 ")[1:])
            left, seen = left - many, b""
    return counts


def connect(count):
    sockets = [socket.create_connection((host, port), timeout=20) for _ in range(count)]
    is_open = 0
    for one in sockets:
        # Whoever is let in is answered.
        try:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: %s\r\n\r\n" % host.encode())
            is_open += one.recv(1) == b"H"
        except OSError:
            pass
    for one in sockets:
        one.close()
    return is_open


for line in sys.stdin:
    order = json.loads(line)
    done = connect(order["connect"]) if "connect" in order else rush(order) if "rush" in order else ask(order)
    print(json.dumps(done), flush=True)
