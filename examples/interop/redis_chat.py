"""Chat with a mesh over Redis (pip install redis): python redis_chat.py redis://localhost "hello big world"

Needs a node with the same server: hubless run --redis redis://localhost
"""

import sys

import redis

client = redis.Redis.from_url(sys.argv[1], decode_responses=True)
pubsub = client.pubsub()
pubsub.subscribe("chat_messages")  # the lobby; room nodejs is the channel chat.nodejs
pubsub.psubscribe("chat.*")
for message in pubsub.listen():
    if message["type"] == "psubscribe":
        client.publish("chat_messages", sys.argv[2])
    elif message["type"] in ("message", "pmessage"):
        print(f"{message['channel']}: {message['data']}", flush=True)
