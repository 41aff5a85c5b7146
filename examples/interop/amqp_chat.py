"""Chat with a mesh over RabbitMQ (pip install pika): python amqp_chat.py amqp://localhost "hello big world"

Needs a node with the same broker: hubless run --amqp amqp://localhost
"""

import sys
import uuid

import pika

channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
channel.exchange_declare("chat", "fanout", durable=True)
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, "chat")
# With a message id it is one message in the mesh, however often it is delivered.
properties = pika.BasicProperties(delivery_mode=2, message_id=str(uuid.uuid4()))
channel.basic_publish("chat", "chat", sys.argv[2], properties)  # room nodejs is the key chat.nodejs
for method, properties, body in channel.consume(queue, auto_ack=True):
    print(f"{method.routing_key}: {body.decode()}", flush=True)
