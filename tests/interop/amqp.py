"""A chat server of the tutorial: publishes what it is told to on stdin, a JSON object a line, to a fanout exchange.

{"text"} or {"texts"}, {"id"?: message-id of the first, counted up}, {"confirm"?: true} -> prints how many were published.
"""

import json
import sys

import pika

connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
channel = connection.channel()
channel.exchange_declare("chat", "fanout", durable=True)
channel.confirm_delivery()
for line in sys.stdin:
    order = json.loads(line)
    texts = order.get("texts") or [order["text"]]
    for number, text in enumerate(texts):
        named = {"message_id": f"{order['id']}-{number}"} if "id" in order else {}
        body = bytes.fromhex(text["hex"]) if isinstance(text, dict) else text
        channel.basic_publish("chat", order.get("key", ""), body, pika.BasicProperties(delivery_mode=2, **named))
    print(len(texts), flush=True)
