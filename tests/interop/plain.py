"""A stock ZeroMQ client: `sub ADDR TOPIC`, or `pub bind|connect ADDR`.

`sub` prints every frame it gets as a line, and a line `lost` for each connection that ends. `pub` sends each line of stdin:
as one frame, or as two if there is a tab in it. With `--beat` the socket sends heartbeats.
"""

import sys

import zmq

args = [arg for arg in sys.argv[1:] if arg != "--beat"]
context = zmq.Context()
socket = context.socket(zmq.SUB if args[0] == "sub" else zmq.PUB)
socket.linger = 2000
if "--beat" in sys.argv:
    socket.heartbeat_ivl, socket.heartbeat_timeout = 100, 1000

if args[0] == "sub":
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    socket.subscribe(args[2])
    socket.connect(f"tcp://{args[1]}")
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(monitor, zmq.POLLIN)
    print("ready", flush=True)
    while True:
        ready = dict(poller.poll())
        if socket in ready:
            print("|".join(frame.decode() for frame in socket.recv_multipart()), flush=True)
        if monitor in ready:
            monitor.recv_multipart()
            print("lost", flush=True)
else:
    (socket.bind if args[1] == "bind" else socket.connect)(f"tcp://{args[2]}")
    print("ready", flush=True)
    for line in sys.stdin:
        socket.send_multipart([frame.encode() for frame in line.rstrip("\n").split("\t")])
