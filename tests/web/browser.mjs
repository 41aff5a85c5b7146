// What scripts that drive the page in a real browser share: people who visit, texts that come to stand once, checks that end
// the script with exit code 1 at the first thing that is not as promised. CHROMIUM names the browser, SHOTS the folder for
// screenshots; the command line names two running nodes of one mesh.

import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import WebSocket from 'ws';

export const [urlA, urlB] = process.argv.slice(2);
if (!urlB) {
  console.error('usage: node SCRIPT URL_A URL_B');
  process.exit(2);
}
export const shots = process.env.SHOTS ?? mkdtempSync(join(tmpdir(), 'hubless-shots-'));
mkdirSync(shots, { recursive: true });

const WAIT_MS = 15_000;
export const DESKTOP = { viewport: { width: 1280, height: 800 } };
export const PHONE = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
export const run = Math.random().toString(36).slice(2, 8);

export const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
export const faults = [];

/** A page of a new person, connected and in `room`. */
export async function visit(url, { name, room = 'lobby', ...options } = {}) {
  const context = await browser.newContext({ ...DESKTOP, ...options });
  context.setDefaultTimeout(WAIT_MS);
  const page = await context.newPage();
  page.on('pageerror', error => faults.push(`script error: ${error.message}`));
  page.on('dialog', dialog => { faults.push('a dialog opened'); dialog.dismiss(); });
  page.on('console', message => {
    // The browser itself reports connections that fail; cutting them is part of the test.
    const expected = /WebSocket connection|ERR_INTERNET_DISCONNECTED|ERR_CONNECTION_REFUSED/.test(message.text());
    if (message.type() === 'error' && !expected) faults.push(`console: ${message.text()}`);
  });
  await page.goto(`${url.replace(/\/$/, '')}/#${room}`);
  await live(page);
  if (name) await rename(page, name);
  return page;
}

export const live = page => page.waitForSelector('body[data-line=live]', { state: 'attached' });

export async function rename(page, name) {
  if (await page.locator('#name-form').isHidden()) await page.click('#name-chip');
  await page.fill('#name', name);
  await page.press('#name', 'Enter');
}

export async function say(page, text) {
  await page.fill('#text', text);
  await page.press('#text', 'Enter');
}

/** How often a text stands in the log. */
export const count = (page, text) => page.evaluate(text =>
  [...document.querySelectorAll('#log .text')].filter(element => element.textContent === text).length, text);

export const stateOf = (page, text) => page.evaluate(text =>
  [...document.querySelectorAll('#log .text')].find(element => element.textContent === text)?.closest('.msg').dataset.state, text);

export async function eventually(what, condition, wait_ms = WAIT_MS) {
  const deadline = Date.now() + wait_ms;
  let last;
  do {
    last = await condition();
    if (last === true) return;
    await new Promise(resolve => setTimeout(resolve, 20));
  } while (Date.now() < deadline);
  assert.fail(`${what} (within ${wait_ms} ms; last seen: ${JSON.stringify(last)})`);
}

/** Each text comes to stand once on each page, and never twice meanwhile. */
export async function onceOn(pages, texts) {
  for (const page of pages) {
    for (const text of texts) {
      await eventually(`"${text}" stands once`, async () => {
        const found = await count(page, text);
        assert.ok(found <= 1, `"${text}" stands ${found} times`);
        return found === 1;
      });
    }
  }
}

/** Posts a message as any program would; answers its id. */
export async function post(url, said) {
  const answer = await fetch(new URL('/api/v1/messages', url), {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(said),
  });
  assert.equal(answer.status, 201, await answer.clone().text());
  return (await answer.json()).id;
}

/** Says many texts in a room, in order, without waiting for each. */
export async function flood(url, room, texts) {
  const socket = new WebSocket(url.replace(/^http/, 'ws'), 'hubless.v1');
  await new Promise((resolve, reject) => {
    let left = texts.length;
    socket.on('error', reject);
    socket.on('open', () => {
      socket.send(JSON.stringify({ type: 'hello', name: `log-${run}` }));
      texts.forEach((text, at) => socket.send(JSON.stringify({ type: 'send', room, text, client_id: `${room} ${at} ${run}` })));
    });
    socket.on('message', data => {
      const frame = JSON.parse(data);
      if (frame.type === 'error') reject(new Error(frame.message));
      if (frame.type === 'accepted' && --left === 0) resolve();
    });
  });
  socket.close();
}

export async function check(what, test) {
  const began = Date.now();
  try {
    await test();
    assert.deepEqual(faults, []);
  } catch (error) {
    console.error(`FAILED: ${what}\n${error.stack ?? error}\n${faults.join('\n')}`);
    const pages = browser.contexts().flatMap(context => context.pages());
    for (const [at, page] of pages.entries()) await page.screenshot({ path: join(shots, `failed-${at}.png`) }).catch(() => {});
    console.error(`screenshots: ${shots}`);
    await browser.close();
    process.exit(1);
  }
  console.error(`ok: ${what} (${Date.now() - began} ms)`);
}
