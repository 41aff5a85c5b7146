"""A chat server of the tutorial: publishes what it is told to on stdin, a JSON object a line, to a fanout exchange.

{"text"} or {"texts"}, {"id"?: message-id of the first, counted up} -> prints how many were published. {"count": N} publishes
as many without waiting for confirms, "number 0" and so on.
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
    if "count" in order:
        many = connection.channel()
        for number in range(order["count"]):
            many.basic_publish("chat", "", f"number {number}", pika.BasicProperties(delivery_mode=2))
        many.close()
        print(order["count"], flush=True)
        continue
    texts = order.get("texts") or [order["text"]]
    for number, text in enumerate(texts):
        named = {"message_id": f"{order['id']}-{number}"} if "id" in order else {}
        body = bytes.fromhex(text["hex"]) if isinstance(text, dict) else text
        channel.basic_publish("chat", order.get("key", ""), body, pika.BasicProperties(delivery_mode=2, **named))
    print(len(texts), flush=True)
