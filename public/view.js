// The log of the open room: renders its lines, keeps the reader's place, and says when more is wanted.
// At most RENDERED_MAX lines are in the document; the window slides over the lines that the room holds.

import { arrange, byId, make, setText, soon } from './dom.js';

const RENDERED_MAX = 1000;
const SLIDE = 300;
// Nearer than this to an edge, more is rendered or loaded.
const EDGE_PX = 400;
const BOTTOM_PX = 48;
const GROUP_MS = 5 * 60_000;
const LONG_CHARS = 3000;
const LONG_LINES = 30;
// Screen readers are not told of history: changes this soon after a switch are quiet.
const QUIET_MS = 700;

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'medium' });
const dayName = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
const dayYear = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long', year: 'numeric' });

export function sizeText(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${Math.round(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

export const shortNode = node => node.length > 8 ? node.slice(0, 8) + '…' : node;

function dayText(time) {
  const day = new Date(time), today = new Date();
  const yesterday = new Date(today.getFullYear(), today.getMonth(), today.getDate() - 1);
  if (day.toDateString() === today.toDateString()) return 'Today';
  if (day.toDateString() === yesterday.toDateString()) return 'Yesterday';
  return (day.getFullYear() === today.getFullYear() ? dayName : dayYear).format(day);
}

function gapText({ missing, reason }) {
  const one = missing === 1;
  const count = one ? '1 message is' : `${missing.toLocaleString()} messages are`;
  const why = {
    late: one ? 'it may still come' : 'they may still come',
    expired: one ? 'it has expired' : 'they have expired',
    lost: one ? 'nobody has it any more' : 'nobody has them any more',
    slow: 'this page read too slowly',
  }[reason] ?? reason;
  return `${count} missing here: ${why}`;
}

/** Two letters and a hue that stay the same for an author. */
function avatarOf({ name, node }) {
  let hash = 7;
  for (const char of name + '\n' + node) hash = (hash * 31 + char.codePointAt(0)) >>> 0;
  const words = name.split(/[\s._-]+/).filter(Boolean);
  const letters = words.length > 1 ? [...words[0]][0] + [...words[1]][0] : [...(words[0] ?? '?')].slice(0, 2).join('');
  const avatar = make('span', { class: 'avatar', 'aria-hidden': 'true' }, letters.toUpperCase());
  avatar.style.setProperty('--hue', hash % 360);
  return avatar;
}

// A line that was jumped to is lit for so long.
const FLASH_MS = 2500;

/** How safe a line of our own is, in a word and in words. */
function safety(line, waits) {
  if (waits) return ['waiting', 'Waiting for the connection: it is sent when that is back'];
  if (line.status === 'pending') return ['sending…', 'On its way to this node'];
  const count = line.storedBy;
  if (count > 0) {
    const nodes = count === 1 ? '1 other node' : `${count} other nodes`;
    return [`on ${nodes}`, `Kept by the node that sent it and on the disk of ${nodes}`];
  }
  if (line.state === 'sent') return ['sent', 'Sent to the mesh; no disk is known to have it yet'];
  if (line.state === 'logged') return ['on this node', 'In the log of this node; no other node is known to have it on disk yet'];
  return ['on this node', 'On the disk of this node; no other node is known to have it on disk yet'];
}

export class Log {
  /** `hooks`: `older(room)`, `newer(room)`, `newest(room)`, `retry(line)`, `discard(line)`, `scrolled()`, `nodeName(node)`, `live()`. */
  constructor(store, hooks) {
    Object.assign(this, { store, hooks });
    this.refresh = soon(() => this.render());
    this.scroller = byId('scroller');
    this.list = byId('log');
    this.jump = byId('jump');
    this.nodes = new WeakMap();
    this.days = new Map();
    this.top = make('div', { class: 'edge' });
    this.newLine = make('div', { class: 'new', role: 'separator' }, make('span'));
    this.bottom = make('div', { class: 'edge end' });
    this.room = null;
    // The last line rendered, when it is not the newest.
    this.end = null;
    // Whether the reader follows the newest line.
    this.stuck = true;
    this.scroller.addEventListener('scroll', () => this.scrolled(), { passive: true });
    this.jump.addEventListener('click', () => { this.toBottom(); byId('text').focus({ preventScroll: true }); });
    new ResizeObserver(() => this.stuck && this.pin()).observe(this.scroller);
  }

  show(room) {
    this.room = room;
    this.end = null;
    this.stuck = !room.detached;
    this.hush();
    this.render();
  }

  /** Shows a line in the middle and lights it for a moment. */
  reveal(line) {
    const { lines } = this.room;
    const at = lines.indexOf(line);
    if (at < 0) return;
    this.stuck = false;
    const end = Math.min(lines.length, at + Math.floor(RENDERED_MAX / 2));
    this.end = end >= lines.length ? null : lines[end - 1];
    this.hush();
    this.render();
    const element = this.nodes.get(line)?.element;
    if (!element) return;
    element.scrollIntoView({ block: 'center' });
    element.classList.add('found');
    setTimeout(() => element.classList.remove('found'), FLASH_MS);
  }

  /** Whether the reader is in the lower half of what is loaded. */
  get lower() {
    const lines = this.room?.lines ?? [];
    const end = this.end ? lines.lastIndexOf(this.end) + 1 : lines.length;
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const shown = Math.max(0, end - RENDERED_MAX);
    const part = scrollHeight > clientHeight ? scrollTop / (scrollHeight - clientHeight) : 1;
    return shown + part * (end - shown) > lines.length / 2;
  }

  hush() {
    this.list.setAttribute('aria-live', 'off');
    clearTimeout(this.loud);
    this.loud = setTimeout(() => this.list.setAttribute('aria-live', 'polite'), QUIET_MS);
  }

  render() {
    const { room, scroller } = this;
    if (!room) return;
    const lines = room.lines;
    let end = this.end ? lines.lastIndexOf(this.end) + 1 : lines.length;
    if (end === 0) { end = lines.length; this.end = null; }
    const start = Math.max(0, end - RENDERED_MAX);
    this.start = start;
    this.lastOwn = lines.findLast(line => line.own && line.status !== 'failed');
    const anchor = this.stuck ? null : this.anchor();
    arrange(this.list, this.items(lines, start, end));
    this.list.setAttribute('aria-busy', String(room.loading));
    if (this.stuck) this.pin();
    else if (anchor?.node.isConnected) scroller.scrollTop += anchor.node.offsetTop - anchor.top;
    this.showJump();
    this.fill();
  }

  /** The nodes of the window, top to bottom. */
  items(lines, start, end) {
    const { room } = this;
    const items = [this.edge(lines)];
    const gaps = [...this.store.gaps];
    const from = lines[start]?.time ?? 0;
    const days = new Map();
    let before = null;
    for (let at = start; at < end; at++) {
      const line = lines[at];
      let broken = before === null;
      while (gaps.length && line.placed && gaps[0].time < line.time) {
        const gap = gaps.shift();
        if (gap.time >= from && before) { items.push(this.gap(gap)); broken = true; }
      }
      const day = new Date(line.time).toDateString();
      if (!days.has(day) && (!before || new Date(before.time).toDateString() !== day)) {
        const node = this.days.get(day) ?? make('div', { class: 'day' }, make('span'));
        setText(node.firstChild, dayText(line.time));
        days.set(day, node);
        items.push(node);
        broken = true;
      }
      if (line === room.firstNew) {
        setText(this.newLine.firstChild, room.sinceVisit ? 'New since you left' : 'New messages');
        items.push(this.newLine);
        broken = true;
      }
      const first = broken || before.name !== line.name || before.node !== line.node || before.via !== line.via
        || line.time - before.time > GROUP_MS;
      items.push(this.node(line, first));
      before = line;
    }
    this.days = days;
    if (end === lines.length && !room.detached) items.push(...gaps.map(gap => this.gap(gap)));
    if (end === lines.length && room.detached) {
      setText(this.bottom, room.newerFault ? 'Newer messages could not be loaded.' : 'Loading newer messages…');
      items.push(this.bottom);
    }
    return items;
  }

  edge(lines) {
    const { room } = this;
    const state = room.fault ? 'fault' : room.loading || !room.loaded ? 'loading' : room.before !== null ? 'more'
      : lines.length ? 'begin' : 'empty';
    if (this.top.dataset.state !== state) {
      this.top.dataset.state = state;
      const text = {
        fault: 'Messages could not be loaded. ', loading: 'Loading messages…', more: '',
        begin: 'Nothing older is held by this node.', empty: 'Nothing said here yet. Say hello!',
      }[state];
      this.top.replaceChildren(text);
      if (state === 'fault') {
        const again = make('button', { type: 'button' }, 'Try again');
        again.addEventListener('click', () => this.hooks.older(this.room));
        this.top.append(again);
      }
    }
    return this.top;
  }

  gap(gap) {
    let node = this.nodes.get(gap);
    if (!node) this.nodes.set(gap, node = make('div', { class: 'gap' }, make('span')));
    setText(node.firstChild, gapText(gap));
    return node;
  }

  node(line, first) {
    const waits = line.status === 'pending' && !this.hooks.live();
    const last = line.own && line === this.lastOwn;
    const look = `${line.revision} ${first} ${waits} ${last}`;
    let node = this.nodes.get(line);
    if (node?.look === look) return node.element;
    if (!node) this.nodes.set(line, node = { element: make('article') });
    node.look = look;
    this.fillLine(node.element, line, first, waits, last);
    return node.element;
  }

  fillLine(element, line, first, waits, last) {
    const found = element.classList.contains('found') ? ' found' : '';
    element.className = `msg${first ? ' first' : ''}${line.own ? ' own' : ''}${found}`;
    if (line.id) element.dataset.id = line.id;
    element.dataset.state = line.status ?? 'heard';

    const date = new Date(line.time);
    const time = make('time', { datetime: date.toISOString(), title: exact.format(date) }, clock.format(date));
    const name = line.name || 'somebody';
    const host = this.hooks.nodeName(line.node);
    // A node signs what is said on it; who was at a stock client or a bridge, nobody has signed.
    const signed = line.verified || line.own ? 'signed by' : 'not verified, came in at';
    const from = line.node ? `${signed} node ${shortNode(line.node)}${host ? ` (${host})` : ''}` : '';
    const meta = make('header', {}, make('span', { class: first ? 'who' : 'who sr', title: from }, name));
    if (first && line.own) meta.append(make('span', { class: 'badge you' }, 'you'));
    if (first && line.via !== 'mesh') meta.append(make('span', { class: 'badge', title: `Came over ${line.via}: who said it is not verified` }, line.via));
    // A name is anybody's to take; a key is not.
    if (first && line.verified) {
      const signer = this.store.signerOf(name, line.node);
      if (signer !== line.node && !line.own) {
        const title = `Signed by node ${shortNode(line.node)}. Who was called ${name} here before wrote at node ${shortNode(signer)}.`;
        meta.append(make('span', { class: 'badge key', title }, `other key ${shortNode(line.node)}`));
      }
    }
    meta.append(time);
    if (line.late) meta.append(make('span', { class: 'badge late', title: 'Arrived later than its place here' }, 'late'));

    const body = make('div', { class: 'body' }, ...this.content(line));
    if (line.own && line.status !== 'failed') body.append(this.sign(line, waits, last));
    element.replaceChildren(...(first ? [avatarOf(line)] : []), meta, body);
    if (line.status === 'failed') element.append(this.faultOf(line));
  }

  content(line) {
    if (line.type !== null) return [make('p', { class: 'text data' }, `[${line.type}, ${sizeText(line.bytes)}]`)];
    const cut = line.open ? line.text.length : cutAt(line.text);
    const text = make('p', { class: 'text', dir: 'auto' }, line.text.slice(0, cut));
    if (cut === line.text.length) return [text];
    const more = make('button', { type: 'button', class: 'more' }, `Show all (${sizeText(line.text.length)})`);
    more.addEventListener('click', () => { line.open = true; line.revision++; this.stuck = false; this.render(); });
    return [make('div', {}, text, '… ', more)];
  }

  /** A small picture of how safe the line is; the newest line says it in a word, the others when pointed at. */
  sign(line, waits, last) {
    const [word, words] = safety(line, waits);
    const kind = line.status === 'pending' ? 'pending' : line.storedBy > 0 ? 'stored' : 'accepted';
    return make('span', { class: `sign ${kind}${last ? ' last' : ''}`, title: words },
      make('span', { class: 'mark', 'aria-hidden': 'true' }), make('span', { class: 'word' }, word), make('span', { class: 'sr' }, `. ${words}`));
  }

  faultOf(line) {
    const retry = make('button', { type: 'button', class: 'retry' }, 'Send again');
    const discard = make('button', { type: 'button', class: 'discard' }, 'Discard');
    retry.addEventListener('click', () => this.hooks.retry(line));
    discard.addEventListener('click', () => this.hooks.discard(line));
    return make('p', { class: 'error', role: 'alert' }, `Not sent: ${line.fault} `, retry, discard);
  }

  // Place.

  get atBottom() {
    return this.stuck && this.end === null && !this.room?.detached;
  }

  toBottom() {
    this.end = null;
    this.stuck = true;
    if (this.room.detached) this.hooks.newest(this.room);
    this.render();
    this.hooks.scrolled();
  }

  pin() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** The first line in sight, to be held where it is. */
  anchor() {
    const nodes = this.list.children;
    let low = 0, high = nodes.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (nodes[middle].offsetTop + nodes[middle].offsetHeight <= this.scroller.scrollTop) low = middle + 1; else high = middle;
    }
    // Only lines keep their place among each other.
    let node = nodes[low];
    while (node && node.tagName !== 'ARTICLE') node = node.nextElementSibling;
    return node && { node, top: node.offsetTop };
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const below = scrollHeight - scrollTop - clientHeight;
    const stuck = this.end === null && !this.room.detached && below < BOTTOM_PX;
    const changed = stuck !== this.stuck;
    this.stuck = stuck;
    if (changed) { this.showJump(); this.hooks.scrolled(); }
    if (this.end && below < EDGE_PX) {
      const lines = this.room.lines;
      const at = lines.lastIndexOf(this.end) + SLIDE;
      this.end = at >= lines.length - 1 ? null : lines[at];
      this.hush();
      this.render();
    } else if (this.end === null && this.room.detached && below < EDGE_PX) {
      this.hooks.newer(this.room);
    } else {
      this.fill();
    }
  }

  /** Slides the window up, or asks for an older page, where the reader nears the upper edge. */
  fill() {
    const { room } = this;
    if (this.scroller.scrollTop > EDGE_PX || !this.scroller.clientHeight) return;
    if (this.start > 0 && !this.stuck) {
      this.end = room.lines[Math.max(0, this.start - SLIDE) + RENDERED_MAX - 1];
      this.hush();
      this.render();
    } else if (this.start === 0 && room.loaded && room.before !== null && !room.loading && !room.fault) {
      this.hush();
      this.hooks.older(room);
    }
  }

  /** Lets the window end where it ended after newer lines came below it. */
  grownBelow(end) {
    this.end = this.room.lines.at(-1) === end ? null : end;
    this.hush();
    this.render();
    this.scrolled();
  }

  /** Lets the window begin at the oldest line after older ones came. */
  grown() {
    const { lines } = this.room;
    if (!this.stuck && this.start === 0 && lines.length > RENDERED_MAX) {
      const anchor = this.anchor()?.node;
      const at = lines.findIndex(line => this.nodes.get(line)?.element === anchor);
      if (at >= 0) this.end = lines[Math.min(lines.length - 1, Math.max(0, at - SLIDE) + RENDERED_MAX - 1)];
    }
    this.hush();
    this.refresh();
  }

  showJump() {
    const { room } = this;
    this.jump.hidden = this.atBottom;
    const count = room?.unread ?? 0;
    setText(this.jump.lastChild, count === 0 ? 'Newest' : count === 1 ? '1 new message' : `${count} new messages`);
  }
}

/** Where a long text is cut until the reader wants all of it. */
function cutAt(text) {
  let at = -1;
  for (let line = 0; line < LONG_LINES; line++) {
    at = text.indexOf('\n', at + 1);
    if (at < 0) break;
  }
  const end = Math.min(at < 0 ? text.length : at, LONG_CHARS);
  return text.length - end < 500 && at < 0 ? text.length : end;
}
