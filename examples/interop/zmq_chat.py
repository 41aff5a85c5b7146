"""Chat with a mesh over stock ZeroMQ (pip install pyzmq): python zmq_chat.py tcp://localhost:5555 tcp://localhost:5556 "hello"

Needs a node with these ports: hubless run --plain-pub 127.0.0.1:5555 --plain-in 127.0.0.1:5556
"""

import sys

import zmq

context = zmq.Context()
hears, says = context.socket(zmq.SUB), context.socket(zmq.PUB)
hears.connect(sys.argv[1])
hears.subscribe("chat")
monitor = says.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
says.connect(sys.argv[2])
monitor.recv_multipart()  # PUB drops what is said before somebody listens
says.get(zmq.EVENTS)
hears.poll(300)
says.send_string(f"chat {sys.argv[3]}")  # room nodejs is the topic chat.nodejs
while True:
    topic, text = hears.recv_string().split(" ", 1)
    print(f"{topic}: {text}", flush=True)
