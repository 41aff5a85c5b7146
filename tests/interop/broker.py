"""Stock clients of a broker: prints what comes, a JSON object a line, and publishes what stdin says.

broker.py redis URL | broker.py streams URL | broker.py amqp URL EXCHANGE TYPE QUEUE

stdin: {"texts": [...], "to": channel, stream or routing key, "ids"?: [...], "headers"?: {...}}; answered with {"done": N}. A text may
be {"hex": ...}. A broker that goes away is tried again until all is published; the same ids are used then.
"""

import json
import sys
import threading
import time

OUT = threading.Lock()


def say(**fields):
    with OUT:
        print(json.dumps(fields, default=repr), flush=True)


def body(text):
    return bytes.fromhex(text["hex"]) if isinstance(text, dict) else text.encode()


def redis_main(url):
    import redis

    def listen():
        while True:
            try:
                pubsub = redis.Redis.from_url(url).pubsub()
                pubsub.subscribe("chat_messages")
                pubsub.psubscribe("chat.*")
                for message in pubsub.listen():
                    if message["type"] == "psubscribe":
                        say(listening=True)
                    elif message["type"] in ("message", "pmessage"):
                        say(text=message["data"].decode(errors="replace"), to=message["channel"].decode())
            except redis.RedisError:
                time.sleep(0.01)

    threading.Thread(target=listen, daemon=True).start()
    client = redis.Redis.from_url(url)
    for line in sys.stdin:
        order = json.loads(line)
        for text in order["texts"]:
            client.publish(order["to"], body(text))
        say(done=len(order["texts"]))


def streams_main(url):
    import redis

    def listen():
        last = {"chat_stream": "0", "chat_stream.nodejs": "0"}
        client = redis.Redis.from_url(url)
        say(listening=True)
        while True:
            try:
                for stream, entries in client.xread(last, count=100, block=200):
                    for entry, fields in entries:
                        last[stream.decode()] = entry
                        fields = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
                        say(text=fields.pop("message", ""), to=stream.decode(), id=fields.pop("id", None), headers=fields)
            except redis.RedisError:
                time.sleep(0.01)

    threading.Thread(target=listen, daemon=True).start()
    client = redis.Redis.from_url(url)
    for line in sys.stdin:
        order = json.loads(line)
        for number, text in enumerate(order["texts"]):
            named = {"id": order["ids"][number]} if "ids" in order else {}
            client.xadd(order["to"], {order.get("field", "message"): body(text), **named, **order.get("headers", {})})
        say(done=len(order["texts"]))


def amqp_main(url, exchange, kind, queue):
    import pika

    keys = {"fanout": [""], "topic": ["chat.#"], "direct": ["chat", "chat.nodejs"]}[kind]

    def declare(channel):
        channel.exchange_declare(exchange, kind, durable=True)
        channel.queue_declare(queue, durable=True)
        for key in keys:
            channel.queue_bind(queue, exchange, key)

    def listen():
        while True:
            try:
                channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
                declare(channel)
                say(listening=True)
                for method, properties, data in channel.consume(queue):
                    headers = {str(name): value for name, value in (properties.headers or {}).items()}
                    say(text=data.decode(errors="replace"), to=method.routing_key, id=properties.message_id,
                        headers=headers, mode=properties.delivery_mode, kind=properties.content_type,
                        app=properties.app_id, at=properties.timestamp)
                    channel.basic_ack(method.delivery_tag)
            except (pika.exceptions.AMQPError, OSError):
                time.sleep(0.05)

    threading.Thread(target=listen, daemon=True).start()

    channel = None
    for line in sys.stdin:
        order = json.loads(line)
        for number, text in enumerate(order["texts"]):
            named = {"message_id": order["ids"][number]} if "ids" in order else {}
            properties = pika.BasicProperties(delivery_mode=2, headers=order.get("headers"), **named)
            while True:
                try:
                    if channel is None:
                        channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
                        declare(channel)
                        channel.confirm_delivery()
                    channel.basic_publish(exchange, order["to"], body(text), properties)
                    break
                except (pika.exceptions.AMQPError, OSError):
                    channel = None
                    time.sleep(0.05)
        say(done=len(order["texts"]))


{"redis": redis_main, "streams": streams_main, "amqp": amqp_main}[sys.argv[1]](*sys.argv[2:])
