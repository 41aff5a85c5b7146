// Chat with a mesh over Redis (npm install ioredis): node redis_chat.mjs redis://localhost "hello big world"
// Needs a node with the same server: hubless run --redis redis://localhost
import Redis from 'ioredis';

const [url, text] = process.argv.slice(2);
const says = new Redis(url), hears = new Redis(url);
hears.on('message', (channel, text) => console.log(`${channel}: ${text}`));
hears.on('pmessage', (pattern, channel, text) => console.log(`${channel}: ${text}`));
await hears.subscribe('chat_messages'); // the lobby; room nodejs is the channel chat.nodejs
await hears.psubscribe('chat.*');
await says.publish('chat_messages', text);
