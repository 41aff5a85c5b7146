// Chat with a mesh over RabbitMQ (npm install amqplib): node amqp_chat.mjs amqp://localhost "hello big world"
// Needs a node with the same broker: hubless run --amqp amqp://localhost
import { randomUUID } from 'node:crypto';
import { connect } from 'amqplib';

const [url, text] = process.argv.slice(2);
const channel = await (await connect(url)).createChannel();
await channel.assertExchange('chat', 'fanout');
const { queue } = await channel.assertQueue('', { exclusive: true });
await channel.bindQueue(queue, 'chat', '');
await channel.consume(queue, ({ fields, content }) => console.log(`${fields.routingKey}: ${content}`), { noAck: true });
// With a message id it is one message in the mesh, however often it is delivered. Room nodejs is the key chat.nodejs.
channel.publish('chat', 'chat', Buffer.from(text), { persistent: true, messageId: randomUUID() });
