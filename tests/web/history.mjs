// Drives the page in a real browser through its history, against two running nodes of one mesh: scrolling far back, search,
// what is new, where a message is kept, a disk that is full, and a page that moves from one node to the other.
// `node history.mjs URL_A URL_B`

import assert from 'node:assert/strict';
import { createServer, connect } from 'node:net';
import { join } from 'node:path';
import {
  DESKTOP, PHONE, browser, check, count, eventually, flood, live, onceOn, post, run, say, shots, stateOf, urlA, urlB, visit,
} from './browser.mjs';

const FAR = 5000;
const far = `far-${run}`;
const farTexts = Array.from({ length: FAR }, (_, at) => `far ${at}`);

/** The texts in the document, top to bottom. */
const texts = page => page.evaluate(() => [...document.querySelectorAll('#log .text')].map(element => element.textContent));

/** The numbers in the document, which must follow each other without a hole. */
async function numbers(page) {
  const found = (await texts(page)).map(text => Number(text.split(' ')[1]));
  found.forEach((number, at) => assert.equal(number, found[0] + at, `${number} stands after ${found[at - 1]}`));
  return found;
}

const place = page => page.evaluate(() => document.getElementById('scroller').scrollTop);

const signOf = (page, text) => page.evaluate(text => {
  const line = [...document.querySelectorAll('#log .text')].find(element => element.textContent === text)?.closest('.msg');
  const sign = line?.querySelector('.sign');
  return sign && { word: sign.querySelector('.word').innerText, title: sign.title };
}, text);

await check('an own message says in words where it is kept', async () => {
  const page = await visit(urlA, { name: `kim-${run}` });
  await say(page, `kept ${run}`);
  await eventually('the other node has it', async () => {
    const sign = await signOf(page, `kept ${run}`);
    return sign?.word === 'on 1 other node' || sign;
  });
  assert.match((await signOf(page, `kept ${run}`)).title, /on the disk of 1 other node/);
  await page.reload();
  await live(page);
  await eventually('it says so after a reload, too', () => signOf(page, `kept ${run}`).then(sign => sign?.word === 'on 1 other node' || sign));
  await page.context().close();
});

await check('scrolling back goes to the beginning and forth to the newest, with a bounded document', async () => {
  await flood(urlA, far, farTexts);
  const page = await visit(urlA, { room: far });
  await onceOn([page], [farTexts.at(-1)]);
  await page.hover('#scroller');
  const most = async () => assert.ok(await page.locator('.msg').count() <= 1000, 'at most 1000 messages in the document');
  let reached = FAR;
  await eventually('the first message is reached', async () => {
    const before = await numbers(page);
    await page.mouse.wheel(0, -4000);
    await most();
    reached = Math.min(reached, before[0]);
    return reached === 0 && await place(page) === 0 || reached;
  }, 60_000);
  await eventually('the top says that there is no more', () => page.locator('.edge').first().innerText().then(text => /Nothing older/.test(text) || text));
  // What is said meanwhile does not move the reader, and is counted.
  const top = await texts(page);
  await post(urlB, { room: far, text: `far ${FAR}` });
  await eventually('it is counted', () => page.locator('#jump').innerText().then(text => /1 new message/.test(text) || text));
  assert.deepEqual(await texts(page), top);
  await eventually('the newest message is reached again, and the page follows', async () => {
    await page.mouse.wheel(0, 4000);
    await most();
    const found = await numbers(page);
    return found.at(-1) === FAR && await page.locator('#jump').isHidden() || found.at(-1);
  }, 60_000);
  await post(urlA, { room: far, text: `far ${FAR + 1}` });
  await onceOn([page], [`far ${FAR + 1}`]);
  await numbers(page);
  await page.context().close();
});

await check('older messages leave the reader where he is', async () => {
  const page = await visit(urlA, { room: far });
  await onceOn([page], [`far ${FAR + 1}`]);
  await page.hover('#scroller');
  const offset = text => page.evaluate(text => {
    const element = [...document.querySelectorAll('#log .text')].find(element => element.textContent === text);
    return element ? Math.round(element.getBoundingClientRect().top) : null;
  }, text);
  // Near the upper edge a page is loaded; what is in sight stays where it is. It may come before the next step of this
  // test: what stands there before is read in the same step.
  const { first, seen, before } = await page.evaluate(() => {
    const scroller = document.getElementById('scroller');
    scroller.scrollTop = 300;
    const lines = document.querySelectorAll('#log .text');
    return {
      first: Number(lines[0].textContent.split(' ')[1]),
      seen: lines[12].textContent,
      before: Math.round(lines[12].getBoundingClientRect().top),
    };
  });
  await eventually('a page is loaded', () => numbers(page).then(found => found[0] < first || found[0]));
  assert.ok(Math.abs(await offset(seen) - before) <= 2, `${seen} stays at ${before}, not at ${await offset(seen)}`);
  await page.context().close();
});

await check('search finds what is far back and goes there; the newest is one step away', async () => {
  const page = await visit(urlB, { room: 'lobby' });
  await page.keyboard.press('Control+k');
  await eventually('the field has the focus', () => page.evaluate(() => document.activeElement.id).then(id => id === 'search-text' || id));
  await page.keyboard.type('FAR 77');
  await eventually('it is found', () => page.locator('#search-list li').count().then(found => found >= 11 || found));
  const first = page.locator('#search-list li').first();
  assert.match(await first.innerText(), new RegExp(`#${far}`));
  assert.match(await first.locator('time').getAttribute('datetime'), /^\d{4}-/);
  assert.equal(await first.locator('mark').innerText(), 'far 77');
  await page.screenshot({ path: join(shots, 'search.png') });
  await page.locator('#search-list button', { hasText: new RegExp(`#${far}.*far 77$`, 's') }).click();
  await eventually('the room is open', () => page.locator('#room-title').innerText().then(text => text === far || text));
  const inSight = text => page.evaluate(text => {
    const element = [...document.querySelectorAll('#log .text')].find(element => element.textContent === text);
    const box = element?.getBoundingClientRect(), pane = document.getElementById('scroller').getBoundingClientRect();
    return !!box && box.top >= pane.top && box.bottom <= pane.bottom;
  }, text);
  await eventually('the message is in sight', () => inSight('far 77'));
  const around = await numbers(page);
  assert.ok(around.includes(60) && around.includes(90), 'so is what was said around it');
  await post(urlA, { room: far, text: `far ${FAR + 2}` });
  await eventually('what is new is counted', () => page.locator('#jump').innerText().then(text => /1 new message/.test(text) || text));
  await page.click('#jump');
  await onceOn([page], [`far ${FAR + 2}`]);
  await numbers(page);
  // A message that was never said is not found, and Escape closes the field.
  await page.click('#open-search');
  await page.fill('#search-text', `never said ${run}`);
  await eventually('nothing is found', () => page.locator('#search-said').innerText().then(text => /Nothing found/.test(text) || text));
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('#search').isVisible(), false);
  // Who writes while he reads far back stands at the end again.
  await page.click('#open-search');
  await page.fill('#search-text', 'far 1234');
  await page.locator('#search-list button', { hasText: new RegExp(`#${far}.*far 1234$`, 's') }).click();
  await eventually('the message is in sight', () => inSight('far 1234'));
  await say(page, `far ${FAR + 3}`);
  await onceOn([page], [`far ${FAR + 3}`]);
  await eventually('it is accepted', () => stateOf(page, `far ${FAR + 3}`).then(state => state === 'accepted' || state));
  await numbers(page);
  await page.context().close();
});

await check('a line stands before what came since the last visit', async () => {
  const room = `left-${run}`;
  await post(urlA, { room, text: 'seen 0' });
  const page = await visit(urlA, { room, name: `lea-${run}` });
  await onceOn([page], ['seen 0']);
  await say(page, 'seen 1');
  await eventually('it is accepted', () => stateOf(page, 'seen 1').then(state => state === 'accepted' || state));
  const context = page.context();
  await page.close();
  for (const at of [2, 3, 4]) await post(at % 2 ? urlA : urlB, { room, text: `seen ${at}` });
  await eventually('this node has them', () => fetch(new URL(`/api/v1/messages?room=${room}`, urlA)).then(answer => answer.json())
    .then(({ messages }) => messages.length === 5 || messages.length));
  const back = await context.newPage();
  await back.goto(`${urlA}#${room}`);
  await live(back);
  await onceOn([back], ['seen 4']);
  await eventually('the line is there', () => back.locator('#log .new').count().then(found => found === 1));
  assert.match(await back.locator('#log .new').innerText(), /New since you left/);
  const next = await back.evaluate(() => {
    let element = document.querySelector('#log .new').nextElementSibling;
    while (!element.matches('.msg')) element = element.nextElementSibling;
    return element.querySelector('.text').textContent;
  });
  assert.equal(next, 'seen 2');
  await back.screenshot({ path: join(shots, 'since-you-left.png') });
  await context.close();
});

await check('what was not sent is sent by the next page of this browser', async () => {
  const page = await visit(urlA, { name: `una-${run}` });
  const cdp = await page.context().newCDPSession(page);
  await cdp.send('Network.enable');
  await cdp.send('Network.emulateNetworkConditions', { offline: true, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  await eventually('the banner shows', () => page.locator('#banner').isVisible());
  await say(page, `unsent ${run}`);
  const context = page.context();
  await page.close();
  const [one, two] = [await context.newPage(), await context.newPage()];
  for (const page of [one, two]) {
    await page.goto(urlB);
    await live(page);
  }
  // Storage belongs to an address: the other node's page knows nothing of it.
  assert.equal(await count(one, `unsent ${run}`), 0);
  for (const page of [one, two]) {
    await page.goto(urlA);
    await live(page);
  }
  await onceOn([one, two], [`unsent ${run}`]);
  await eventually('it is accepted', () => stateOf(one, `unsent ${run}`).then(state => state === 'accepted' || state));
  const answer = await fetch(new URL(`/api/v1/messages?room=lobby&grep=unsent%20${run}`, urlA)).then(answer => answer.json());
  assert.equal(answer.messages.length, 1);
  await context.close();
});

/** A page, and what gives it frames as the node does. */
async function spokenTo() {
  const context = await browser.newContext(DESKTOP);
  const page = await context.newPage();
  let toPage;
  await page.routeWebSocket(/.*/, socket => {
    const node = socket.connectToServer();
    node.onMessage(data => socket.send(data));
    toPage = frame => socket.send(JSON.stringify(frame));
  });
  await page.goto(urlA);
  await live(page);
  return { context, page, toPage };
}

await check('what two nodes say at one moment stands in the order of the log', async () => {
  const { context, page, toPage } = await spokenTo();
  const time = new Date();
  const hlc = (BigInt(time.getTime()) << 16n).toString(16).padStart(16, '0');
  // In base32 `w` is 22 and `5` is 29, though `5` sorts first.
  const say = (node, seq) => toPage({
    type: 'message', id: `${node.repeat(52)}.00000000000000aa.${seq}`, node: node.repeat(52), room: 'lobby', name: 'ina',
    time: time.toISOString(), hlc, via: 'mesh', state: 'sent', stored_by: 0, verified: false, text: `moment ${node} ${seq}`,
  });
  [['5', 9], ['w', 10], ['7', 1], ['w', 9], ['a', 1]].forEach(([node, seq]) => say(node, seq));
  await eventually('all are there', () => texts(page).then(found => found.filter(text => /^moment/.test(text)).length === 5));
  const found = (await texts(page)).filter(text => /^moment/.test(text));
  assert.deepEqual(found, ['moment a 1', 'moment w 9', 'moment w 10', 'moment 5 9', 'moment 7 1']);
  await context.close();
});

await check('catching up and a disk that takes nothing are shown', async () => {
  const { context, page, toPage } = await spokenTo();
  assert.equal(await page.locator('#disk').isVisible(), false);
  toPage({ type: 'catch_up', missing: 37_700, done: 12_300 });
  await eventually('progress shows', () => page.locator('#catch-up').isVisible());
  assert.match(await page.locator('#catch-up-text').innerText(), /12,300 of 50,000/);
  assert.equal(await page.locator('#catch-up-fill').evaluate(bar => Math.round(100 * bar.value / bar.max)), 25);
  toPage({ type: 'history', state: 'full' });
  await eventually('the bar shows', () => page.locator('#disk').isVisible());
  assert.match(await page.locator('#disk-text').innerText(), /full/);
  await page.screenshot({ path: join(shots, 'disk-full.png') });
  toPage({ type: 'catch_up', missing: 0, done: 50_000 });
  toPage({ type: 'history', state: 'working' });
  await eventually('both are gone', async () => !await page.locator('#disk').isVisible() && !await page.locator('#catch-up').isVisible());
  await context.close();
});

/** One address for two nodes: all goes to the first, then, once switched, to the other; what is open is cut. */
async function proxy() {
  let [to, away] = [urlA, urlB];
  const open = new Set();
  const server = createServer(socket => {
    const { hostname, port } = new URL(to);
    const node = connect(Number(port), hostname);
    for (const [from, into] of [[socket, node], [node, socket]]) {
      open.add(from);
      from.on('error', () => {}).on('close', () => { open.delete(from); into.destroy(); });
      from.pipe(into);
    }
  });
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}/`,
    switch() {
      [to, away] = [away, to];
      for (const socket of open) socket.destroy();
    },
    close() {
      server.close();
      for (const socket of open) socket.destroy();
    },
  };
}

await check('a page that moves between nodes in the middle of traffic misses nothing and doubles nothing', async () => {
  const room = `moves-${run}`;
  const front = await proxy();
  const page = await visit(front.url, { room, name: `mia-${run}` });
  const nodes = new Set();
  const nodeOf = () => page.locator('#people-list li[data-state]').first().getAttribute('data-node');
  nodes.add(await nodeOf());
  const [theirs, mine] = [[], []];
  const SAID = 600, MOVES = [100, 200, 300, 400, 500];
  for (let at = 0; at < SAID; at++) {
    if (MOVES.includes(at)) front.switch();
    if (at % 20 === 10) {
      mine.push(`mine ${at}`);
      await say(page, `mine ${at}`);
    } else {
      theirs.push(`theirs ${at}`);
      await post(at % 2 ? urlA : urlB, { room, text: `theirs ${at}`, client_id: `${room} ${at}` });
    }
    // Let the page settle on a node now and then, so that it is moved while it listens, not only while it looks for one.
    if (at % 100 === 99) {
      await live(page);
      nodes.add(await nodeOf());
    }
  }
  assert.equal(nodes.size, 2, 'the page was on both nodes');
  const wanted = [...theirs, ...mine].sort();
  await eventually('all of it stands once', async () => {
    const found = (await texts(page)).sort();
    assert.equal(new Set(found).size, found.length, 'nothing stands twice');
    return found.length === wanted.length || `${found.length} of ${wanted.length}`;
  }, 30_000);
  assert.deepEqual((await texts(page)).sort(), wanted);
  for (const text of mine) await eventually('it is accepted', () => stateOf(page, text).then(state => state === 'accepted' || state));
  assert.equal(await page.locator('#log .gap').count(), 0, 'no word of anything missing');
  for (const url of [urlA, urlB]) {
    const { messages } = await fetch(new URL(`/api/v1/messages?room=${room}&limit=1000`, url)).then(answer => answer.json());
    assert.deepEqual(messages.map(message => message.text).sort(), wanted, 'each node has each once');
    // The page shows them in the order of the log.
    const ids = await page.evaluate(() => [...document.querySelectorAll('#log .msg')].map(line => line.dataset.id));
    assert.deepEqual(ids, messages.map(message => message.id));
  }
  await page.context().close();
  front.close();
});

await check('screenshots', async () => {
  for (const [device, options] of [['desktop', DESKTOP], ['phone', PHONE]]) {
    for (const colorScheme of ['light', 'dark']) {
      const page = await visit(urlA, { ...options, colorScheme, room: `left-${run}`, name: `lea-${run}` });
      await say(page, `a look at it, ${device} in ${colorScheme}`);
      await eventually('the other node has it', () => signOf(page, `a look at it, ${device} in ${colorScheme}`).then(sign => /other/.test(sign?.title) || sign));
      await page.screenshot({ path: join(shots, `room-${device}-${colorScheme}.png`) });
      await page.click('#open-search');
      await page.fill('#search-text', 'seen');
      await eventually('it is found', () => page.locator('#search-list li').count().then(found => found >= 5 || found));
      await page.screenshot({ path: join(shots, `search-${device}-${colorScheme}.png`) });
      await page.context().close();
    }
  }
});

console.error(`all checks passed; screenshots: ${shots}`);
await browser.close();
