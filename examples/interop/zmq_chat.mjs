// Chat with a mesh over stock ZeroMQ (npm install zeromq): node zmq_chat.mjs tcp://localhost:5555 tcp://localhost:5556 "hello"
// Needs a node with these ports: hubless run --plain-pub 127.0.0.1:5555 --plain-in 127.0.0.1:5556
import { Publisher, Subscriber } from 'zeromq';

const [from, to, text] = process.argv.slice(2);
const hears = new Subscriber(), says = new Publisher();
hears.connect(from);
hears.subscribe('chat');
const ready = new Promise(resolve => says.events.on('handshake', resolve));
says.connect(to);
await ready;
setTimeout(() => says.send(`chat ${text}`), 300); // PUB drops what is said before somebody listens; room nodejs is chat.nodejs
for await (const [frame] of hears) {
  const [, topic, text] = /^(\S+) (.*)$/s.exec(frame.toString());
  console.log(`${topic}: ${text}`);
}
