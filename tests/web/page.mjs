// Drives the page in a real browser against two running nodes of one mesh: `node page.mjs URL_A URL_B`.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import {
  DESKTOP, PHONE, browser, check, count, eventually, live, onceOn, post, rename, run, say, shots, stateOf, urlA, urlB, visit,
} from './browser.mjs';

let pageA, pageB;

await check('the page loads and connects on both nodes', async () => {
  pageA = await visit(urlA, { name: `ada-${run}` });
  pageB = await visit(urlB, { name: `bob-${run}` });
  assert.equal(await pageA.locator('#banner').isVisible(), false);
});

await check('who is here: this node first, the other one up', async () => {
  for (const page of [pageA, pageB]) {
    await eventually('the other node is up', () => page.locator('#people-list li[data-state=up]').count().then(found => found >= 2 || found));
    assert.match(await page.locator('#people-list li').first().innerText(), /this node/);
    assert.match(await page.locator('#people-list li').nth(1).innerText(), /\bup\b/);
  }
});

await check('an own text is shown at once as pending, then accepted, and stands once on both pages', async () => {
  const text = `first ${run}`;
  await pageA.evaluate(() => {
    window.seen = [];
    const look = () => {
      const last = [...document.querySelectorAll('#log .msg.own')].at(-1);
      if (last && window.seen.at(-1) !== last.dataset.state) window.seen.push(last.dataset.state);
    };
    new MutationObserver(look).observe(document.getElementById('log'), { subtree: true, childList: true, attributes: true });
  });
  await say(pageA, text);
  await eventually('it is accepted', () => stateOf(pageA, text).then(state => state === 'accepted' || state));
  const seen = await pageA.evaluate(() => window.seen);
  assert.deepEqual(seen.slice(-2), ['pending', 'accepted']);
  await onceOn([pageA, pageB], [text]);
  assert.equal(await stateOf(pageB, text), 'heard');
});

await check('texts reach the other page quickly', async () => {
  const texts = Array.from({ length: 20 }, (_, at) => `quick ${at} ${run}`);
  await pageA.evaluate(() => {
    window.sentAt = [];
    addEventListener('keydown', event => { if (event.key === 'Enter') window.sentAt.push(performance.timeOrigin + performance.now()); }, true);
  });
  await pageB.evaluate(run => {
    window.shownAt = {};
    new MutationObserver(() => {
      const at = performance.timeOrigin + performance.now();
      for (const element of [...document.querySelectorAll('#log .text')].slice(-4)) {
        if (element.textContent.startsWith('quick') && element.textContent.endsWith(run)) window.shownAt[element.textContent] ??= at;
      }
    }).observe(document.getElementById('log'), { subtree: true, childList: true });
  }, run);
  for (const text of texts) {
    await say(pageA, text);
    await eventually(`"${text}" arrives`, () => count(pageB, text).then(found => found === 1));
  }
  const sentAt = await pageA.evaluate(() => window.sentAt);
  const shownAt = await pageB.evaluate(() => window.shownAt);
  const took = texts.map((text, at) => shownAt[text] - sentAt[at]).sort((a, b) => a - b);
  assert.ok(took.every(Number.isFinite), 'every text was timed');
  const round = value => Math.round(value * 10) / 10;
  console.log(JSON.stringify({ what: 'page_latency', count: took.length, p50_ms: round(took[10]), max_ms: round(took.at(-1)) }));
  await onceOn([pageA, pageB], texts);
});

await check('markup is shown as text and does nothing', async () => {
  const texts = [`<img src=x onerror="document.title='hit ${run}'">`, `<script>window.hit=1</script>${run}`];
  for (const text of texts) await say(pageA, text);
  await onceOn([pageA, pageB], texts);
  await rename(pageA, '<b>ada</b>');
  await say(pageA, `bold name ${run}`);
  await onceOn([pageA, pageB], [`bold name ${run}`]);
  for (const page of [pageA, pageB]) {
    assert.equal(await page.locator('#log img, #log script, #log b').count(), 0);
    assert.doesNotMatch(await page.title(), /hit/);
    assert.equal(await page.evaluate(() => window.hit), undefined);
  }
});

await check('lines, spaces and foreign scripts survive; a text that is too long is refused with a word', async () => {
  await pageA.focus('#text');
  await pageA.keyboard.type('one');
  await pageA.keyboard.press('Shift+Enter');
  await pageA.keyboard.type(`  two ${run}`);
  await pageA.keyboard.press('Enter');
  await say(pageA, `שלום 你好 🎉 ${run}`);
  await onceOn([pageA, pageB], [`one\n  two ${run}`, `שלום 你好 🎉 ${run}`]);
  const before = await pageA.locator('.msg').count();
  await say(pageA, 'ä'.repeat(128 * 1024 + 1));
  await eventually('the notice shows', () => pageA.locator('#notice').innerText().then(text => /Too long/.test(text) || text));
  assert.equal(await pageA.locator('.msg').count(), before);
  await pageA.fill('#text', '');
  assert.equal(await pageA.locator('#notice').isVisible(), false);
  const long = 'x'.repeat(256 * 1024 - 12) + run;
  await say(pageA, long);
  await eventually('a text at the limit arrives', () => pageB.evaluate(() =>
    [...document.querySelectorAll('#log .more')].some(button => /262 kB/.test(button.textContent))));
});

await check('a room is made, carries its own messages, and shows what is unread', async () => {
  const room = `room-${run}`;
  await pageA.fill('#room-name', 'No Such!');
  await pageA.press('#room-name', 'Enter');
  assert.match(await pageA.locator('#room-error').innerText(), /Only/);
  await pageA.fill('#room-name', room);
  await pageA.press('#room-name', 'Enter');
  await eventually('the room is open', () => pageA.locator('#room-title').innerText().then(text => text === room || text));
  assert.ok(pageA.url().endsWith(`#${room}`));
  await say(pageA, `in the room ${run}`);
  await say(pageA, `again in the room ${run}`);
  const link = pageB.locator(`#room-list a[href="#${room}"]`);
  await eventually('the other page counts two unread', () => link.getAttribute('data-unread').then(unread => unread === '2' || unread));
  assert.match(await pageB.title(), /^\(2\) /);
  assert.equal(await count(pageB, `in the room ${run}`), 0);
  await link.click();
  await onceOn([pageA, pageB], [`in the room ${run}`, `again in the room ${run}`]);
  assert.equal(await count(pageB, `first ${run}`), 0);
  assert.equal(await pageB.locator('#log .new').count(), 1);
  assert.equal(await link.getAttribute('data-unread'), null);
  assert.doesNotMatch(await pageB.title(), /^\(/);
  for (const page of [pageA, pageB]) await page.click('#room-list a[href="#lobby"]');
});

await check('a new name goes with the next message', async () => {
  await rename(pageA, `eve-${run}`);
  await say(pageA, `renamed ${run}`);
  await onceOn([pageB], [`renamed ${run}`]);
  const who = await pageB.evaluate(text =>
    [...document.querySelectorAll('#log .text')].find(element => element.textContent === text).closest('.msg').querySelector('.who').textContent, `renamed ${run}`);
  assert.equal(who, `eve-${run}`);
});

await check('a reload keeps history, name and room, with nothing doubled', async () => {
  const lines = page => page.evaluate(() => [...document.querySelectorAll('#log .msg')].map(line => line.dataset.id));
  await pageB.reload();
  await live(pageB);
  await onceOn([pageB], [`first ${run}`, `quick 7 ${run}`, `renamed ${run}`]);
  const ids = await lines(pageB);
  assert.equal(new Set(ids).size, ids.length, 'no id twice');
  assert.match(await pageB.locator('#name-chip').innerText(), new RegExp(`bob-${run}`));
  await say(pageB, `after reload ${run}`);
  await onceOn([pageA, pageB], [`after reload ${run}`]);
});

await check('a cut connection shows the banner; afterwards nothing is lost or doubled', async () => {
  const cdp = await pageA.context().newCDPSession(pageA);
  await cdp.send('Network.enable');
  const network = offline => cdp.send('Network.emulateNetworkConditions', { offline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  await network(true);
  await eventually('the banner shows', () => pageA.locator('#banner').isVisible());
  const mine = [0, 1, 2].map(at => `mine while cut ${at} ${run}`), theirs = [0, 1, 2].map(at => `theirs while cut ${at} ${run}`);
  for (const text of mine) await say(pageA, text);
  for (const text of theirs) await say(pageB, text);
  await onceOn([pageB], theirs);
  assert.equal(await stateOf(pageA, mine[0]), 'pending');
  await network(false);
  await live(pageA);
  await onceOn([pageA, pageB], [...mine, ...theirs]);
  for (const text of mine) await eventually('it is accepted', () => stateOf(pageA, text).then(state => state === 'accepted' || state));
  // What comes next arrives after everything before it: nothing doubled is still under way.
  await say(pageB, `settled ${run}`);
  await onceOn([pageA, pageB], [`settled ${run}`, ...mine, ...theirs, `first ${run}`]);
  assert.equal(await pageA.locator('#banner').isVisible(), false);
});

await check('unsent texts survive a reload', async () => {
  const cdp = await pageA.context().newCDPSession(pageA);
  await cdp.send('Network.enable');
  const network = offline => cdp.send('Network.emulateNetworkConditions', { offline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  await network(true);
  await eventually('the banner shows', () => pageA.locator('#banner').isVisible());
  await say(pageA, `kept over a reload ${run}`);
  await network(false);
  await pageA.reload();
  await live(pageA);
  await onceOn([pageA, pageB], [`kept over a reload ${run}`]);
});

await check('roles and landmarks are there', async () => {
  for (const [role, name] of [['main'], ['navigation', 'Rooms'], ['complementary', 'Who is here'], ['log'], ['textbox', 'Message in lobby'],
    ['button', 'Send'], ['heading', 'lobby'], ['link', 'lobby'], ['button', 'Join room']]) {
    assert.ok(await pageA.getByRole(role, name ? { name } : {}).count() > 0, `role ${role} ${name ?? ''}`);
  }
  await eventually('the log is polite', () => pageA.locator('#log').getAttribute('aria-live').then(live => live === 'polite' || live));
  assert.equal(await pageA.locator('#room-list a[aria-current=page]').innerText().then(text => text.replace(/\s|#/g, '')), 'lobby');
});

await check('all of it works by keyboard', async () => {
  const page = await visit(urlA, {});
  const keys = page.keyboard;
  const focused = () => page.evaluate(() => document.activeElement.id);
  const tabTo = async id => {
    for (let step = 0; step < 40 && await focused() !== id; step++) await keys.press('Tab');
    assert.equal(await focused(), id, `Tab reaches #${id}`);
  };
  assert.equal(await focused(), 'text', 'the message box has the focus');
  await tabTo('room-name');
  await keys.type(`keys-${run}`);
  await keys.press('Enter');
  await eventually('the room is open', () => page.locator('#room-title').innerText().then(text => text === `keys-${run}` || text));
  assert.equal(await focused(), 'text');
  await keys.type(`by keyboard ${run}`);
  await keys.press('Enter');
  await onceOn([page], [`by keyboard ${run}`]);
  await keys.press('Alt+ArrowUp');
  await eventually('another room is open', () => page.locator('#room-title').innerText().then(text => text !== `keys-${run}`));
  await keys.press('Alt+ArrowDown');
  await onceOn([page], [`by keyboard ${run}`]);
  await tabTo('name-chip');
  await keys.press('Enter');
  await eventually('the name is asked', () => focused().then(id => id === 'name' || id));
  await keys.type(`kay-${run}`);
  await keys.press('Enter');
  assert.match(await page.locator('#name-chip').innerText(), new RegExp(`kay-${run}`));
  await page.context().close();
});

await check('a name under another key is marked, and not the first one nor what nobody signed', async () => {
  const room = `keys-${run}`, name = `eve-${run}`;
  const page = await visit(urlA, { room });
  for (const [url, text] of [[urlA, 'first key'], [urlB, 'other key'], [urlA, 'first again']]) {
    await post(url, { room, text: `${text} ${run}`, name });
    await onceOn([page], [`${text} ${run}`]);
  }
  const marked = () => page.evaluate(() => [...document.querySelectorAll('#log .msg')]
    .filter(element => element.querySelector('.badge.key')).map(element => element.querySelector('.text').textContent));
  assert.deepEqual(await marked(), [`other key ${run}`]);
  // It is remembered who had the name first.
  await page.reload();
  await onceOn([page], [`first again ${run}`]);
  assert.deepEqual(await marked(), [`other key ${run}`]);
  await page.locator('.badge.key').scrollIntoViewIfNeeded();
  await page.screenshot({ path: join(shots, 'key.png') });
  await page.context().close();
});

await check('on a phone the drawers open and the message box is in reach', async () => {
  const page = await visit(urlB, { ...PHONE, name: `pia-${run}` });
  const inside = async selector => {
    const box = await page.locator(selector).first().boundingBox();
    return box !== null && box.x >= 0 && box.y >= 0 && box.x + box.width <= 390 && box.y + box.height <= 844;
  };
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 390, 'nothing sticks out sideways');
  assert.ok(await inside('#text') && await inside('.send'), 'message box and button are in sight');
  for (const [button, drawer, item] of [['#open-rooms', '#rooms', '#room-list a'], ['#open-people', '#people', '#people-list li']]) {
    assert.equal(await page.locator(drawer).isVisible(), false);
    await page.tap(button);
    await eventually(`${drawer} slides in`, () => inside(item));
    await page.keyboard.press('Escape');
    await eventually(`${drawer} slides out`, () => page.locator(drawer).isHidden());
  }
  await page.tap('#open-rooms');
  await page.tap(`#room-list a[href="#room-${run}"]`);
  await onceOn([page], [`in the room ${run}`]);
  await page.fill('#text', `from a phone ${run}`);
  await page.tap('.send');
  await onceOn([page], [`from a phone ${run}`]);
  await page.context().close();
});

await check('scrolling back loads older pages and keeps the place', async () => {
  const room = `long-${run}`;
  const posts = Array.from({ length: 240 }, (_, at) => `old ${at} ${run}`);
  for (const text of posts) {
    await post(urlA, { room, text, name: `log-${run}`, client_id: text });
  }
  const page = await visit(urlA, { room });
  await onceOn([page], [posts.at(-1)]);
  assert.ok(await page.locator('.msg').count() < 200, 'first only the newest page');
  await page.hover('#scroller');
  // At the very top a wheel that still turns moves nothing any more.
  await eventually('the oldest is there', async () => {
    await page.mouse.wheel(0, -900);
    return await count(page, posts[0]) === 1 && await page.evaluate(() => document.getElementById('scroller').scrollTop === 0);
  });
  const texts = await page.evaluate(() => [...document.querySelectorAll('#log .text')].map(element => element.textContent));
  assert.deepEqual(texts, posts);
  assert.equal(await page.locator('#jump').isVisible(), true);
  await page.keyboard.press('Escape');
  await eventually('Escape goes to the newest', () => page.locator('#jump').isHidden());
  await page.context().close();
});

await check('screenshots', async () => {
  for (const [device, options] of [['desktop', DESKTOP], ['phone', PHONE]]) {
    for (const colorScheme of ['light', 'dark']) {
      const page = await visit(urlA, { ...options, colorScheme, name: `ada-${run}` });
      await onceOn([page], [`settled ${run}`]);
      await page.screenshot({ path: join(shots, `${device}-${colorScheme}.png`) });
      await page.context().close();
    }
  }
});

console.error(`all checks passed; screenshots: ${shots}`);
await browser.close();
