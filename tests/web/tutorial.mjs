// Clients of the well-known tutorial on two running nodes of one mesh: `node tutorial.mjs URL_A URL_B`.
// First the `ws` package as the tutorial's readers use it, then the tutorial's own page in a real browser.
// Exits 1 at the first thing that is not as promised. CHROMIUM names the browser.

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';
import WebSocket from 'ws';

const [urlA, urlB] = process.argv.slice(2);
if (!urlB) {
  console.error('usage: node tutorial.mjs URL_A URL_B');
  process.exit(2);
}
const WAIT_MS = 15_000;
const run = Math.random().toString(36).slice(2, 8);
const socketOf = url => url.replace(/^http/, 'ws');

async function eventually(what, condition) {
  const deadline = Date.now() + WAIT_MS;
  let last;
  do {
    last = await condition();
    if (last === true) return;
    await new Promise(resolve => setTimeout(resolve, 20));
  } while (Date.now() < deadline);
  assert.fail(`${what} (within ${WAIT_MS} ms; last seen: ${JSON.stringify(last)})`);
}

/** A client that asks for no subprotocol, with all that it hears. */
async function client(url) {
  const socket = new WebSocket(socketOf(url));
  const heard = [];
  socket.on('message', (data, isBinary) => heard.push(isBinary ? data : data.toString()));
  await new Promise((resolve, reject) => { socket.on('open', resolve); socket.on('error', reject); });
  assert.equal(socket.protocol, '');
  return { heard, say: text => socket.send(text), end: () => socket.close() };
}

async function check(what, test) {
  const began = Date.now();
  try {
    await test();
  } catch (error) {
    console.error(`FAILED: ${what}\n${error.stack ?? error}`);
    process.exit(1);
  }
  console.error(`ok: ${what} (${Date.now() - began} ms)`);
}

await check('ws clients on two nodes hear everybody, themselves included, once', async () => {
  const a = await client(urlA), a2 = await client(urlA), b = await client(urlB);
  const fromA = [`hello ${run}`, `several words, not only the first ${run}`, ` spaces  kept ${run} `, `two\nlines ${run}`];
  const fromB = [`grüß dich ${run}`, `שלום 你好 🎉 ${run}`, `{"type":"hello"} ${run}`, `<b>${run}</b>`];
  fromA.forEach(a.say);
  fromB.forEach(b.say);
  for (const { heard } of [a, a2, b]) {
    await eventually('all of it is heard', () => heard.length >= 8 || heard);
  }
  // What is said last comes after anything that would come twice.
  a.say(`last of a ${run}`);
  b.say(`last of b ${run}`);
  for (const { heard } of [a, a2, b]) {
    await eventually('the last words are heard', () => heard.length >= 10 || heard);
    const of = texts => heard.filter(text => texts.includes(text));
    assert.deepEqual(of([...fromA, `last of a ${run}`]), [...fromA, `last of a ${run}`]);
    assert.deepEqual(of([...fromB, `last of b ${run}`]), [...fromB, `last of b ${run}`]);
    assert.equal(heard.length, 10);
  }
  [a, a2, b].forEach(client => client.end());
});

await check("the tutorial's page chats with the page of the other node", async () => {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  try {
    const page = await (await browser.newContext()).newPage();
    page.setDefaultTimeout(WAIT_MS);
    await page.goto(urlB);
    await page.waitForSelector('body[data-line=live]', { state: 'attached' });

    // The tutorial's server gives out its page itself, so the page is of the node's own origin; it takes the place of an
    // answer that brings no script of ours.
    const tutorial = await (await browser.newContext()).newPage();
    tutorial.setDefaultTimeout(WAIT_MS);
    await tutorial.goto(new URL('/healthz', urlA).href);
    await tutorial.evaluate(url => {
      document.body.innerHTML = '<input type="text" id="box" placeholder="text"><div id="shown"></div>';
      const box = document.getElementById('box'), socket = new WebSocket(url);
      socket.onopen = () => { document.body.dataset.open = 'yes'; };
      box.addEventListener('keydown', event => {
        if (event.key !== 'Enter') return;
        socket.send(box.value);
        box.value = '';
      });
      socket.onmessage = event => {
        const line = document.createElement('p');
        line.textContent = event.data;
        document.getElementById('shown').prepend(line);
      };
    }, socketOf(urlA));
    await tutorial.waitForSelector('body[data-open=yes]', { state: 'attached' });

    const shownThere = () => tutorial.locator('#shown p').allTextContents();
    const shownHere = () => page.locator('#log .text').allTextContents().then(texts => texts.filter(text => text.includes(run)));
    const before = await shownHere();
    const typed = `typed in the tutorial's page ${run}`, answered = `answered <i>from</i> 你好 ${run}`;
    await tutorial.fill('#box', typed);
    await tutorial.press('#box', 'Enter');
    await eventually('it stands on the page of the other node', () => shownHere().then(texts => texts.at(-1) === typed || texts));
    await page.fill('#text', answered);
    await page.press('#text', 'Enter');
    await eventually('the answer comes back', () => shownThere().then(texts => texts[0] === answered || texts));
    assert.deepEqual(await shownThere(), [answered, typed]);
    assert.deepEqual(await shownHere(), [...before, typed, answered]);
  } finally {
    await browser.close();
  }
});

console.error('all checks passed');
