// What stands around the log: the list of rooms, who is here, and the banner on the state of the line.

import { arrange, byId, make, setAttribute, setText } from './dom.js';
import { shortNode } from './view.js';

const STATES = {
  up: ['up', 'Heard, and hears us'],
  one_way: ['one way', 'Heard, but does not hear us, or the other way round'],
  suspect: ['suspect', 'Not heard for some seconds'],
  down: ['down', 'Said goodbye, or is not heard any more'],
  incompatible: ['incompatible', 'Kept apart by its mesh name or version'],
};
const STATE_ORDER = Object.keys(STATES);

const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`;

export class Rooms {
  constructor(store) {
    this.store = store;
    this.list = byId('room-list');
    this.items = new Map();
  }

  render(current) {
    const rooms = this.store.sortedRooms();
    arrange(this.list, rooms.map(room => this.item(room, room === current)));
    const elsewhere = rooms.some(room => room !== current && (room.unread > 0 || room.stirred));
    byId('elsewhere').hidden = !elsewhere;
    setAttribute(byId('open-rooms'), 'aria-label', elsewhere ? 'Rooms, some with unread messages' : 'Rooms');
  }

  item(room, current) {
    let item = this.items.get(room.name);
    if (!item) {
      const link = make('a', { href: '#' + room.name },
        make('span', { class: 'hash', 'aria-hidden': 'true' }, '#'), make('span', { class: 'label' }, room.name));
      const badge = make('span', { class: 'unread' }, make('span', { 'aria-hidden': 'true' }), make('span', { class: 'sr' }));
      link.append(badge);
      this.items.set(room.name, item = { element: make('li', {}, link), link, badge });
    }
    const { element, link, badge } = item;
    setAttribute(link, 'aria-current', current ? 'page' : null);
    const unread = room.unread > 0 || room.stirred;
    setAttribute(link, 'data-unread', unread ? room.unread || 'some' : null);
    badge.hidden = !unread;
    setText(badge.firstChild, room.unread > 999 ? '999+' : room.unread > 0 ? String(room.unread) : '');
    setText(badge.lastChild, !unread ? '' : room.unread > 0 ? `, ${room.unread} unread` : ', unread messages');
    return element;
  }
}

export class People {
  constructor(store) {
    this.store = store;
    this.list = byId('people-list');
    this.items = new Map();
  }

  render(live) {
    const { node, peers } = this.store;
    const rank = peer => STATE_ORDER.indexOf(peer.state) + 1 || 99;
    const sorted = [...peers].sort((a, b) => rank(a) - rank(b) || String(a.name).localeCompare(String(b.name)));
    const self = node && { ...node, state: live ? 'up' : 'down', self: true };
    const shown = self ? [self, ...sorted] : sorted;
    const seen = new Map();
    arrange(this.list, shown.map((peer, at) => {
      // Two runs of one node are two peers.
      const times = seen.get(peer.node) ?? 0;
      seen.set(peer.node, times + 1);
      return this.item(`${peer.self ? 'self' : peer.node ?? at} ${times}`, peer, live);
    }));
    for (const [key, { element }] of this.items) if (!element.isConnected) this.items.delete(key);
    this.list.classList.toggle('stale', !live);
    const up = peers.filter(peer => peer.state === 'up').length + (self ? 1 : 0);
    setText(byId('count'), String(up));
    setText(byId('count-said'), `Who is here: ${plural(up, 'node')}`);
    const alone = byId('alone');
    alone.hidden = !self || peers.length > 0;
    setText(alone, 'No other node yet. Start hubless on another machine of this network: it will show up here.');
  }

  item(key, peer, live) {
    let item = this.items.get(key);
    if (!item) {
      const shape = make('span', { class: 'shape', 'aria-hidden': 'true' });
      const name = make('span', { class: 'label' }), state = make('span', { class: 'quiet' });
      this.items.set(key, item = { element: make('li', {}, shape, make('div', {}, name, state)), name, state });
    }
    const [word, meaning] = peer.self && !live ? ['not reached', 'The page has no connection to this node']
      : STATES[peer.state] ?? [String(peer.state), ''];
    const rtt = typeof peer.rtt_ms === 'number' && peer.state === 'up' ? ` · ${rttText(peer.rtt_ms)}` : '';
    setAttribute(item.element, 'data-state', peer.state);
    setAttribute(item.element, 'data-node', peer.node);
    const more = [meaning, `node ${shortNode(peer.node ?? '')}`, peer.address && `at ${peer.address}`,
      peer.found_by && `found by ${peer.found_by}`, peer.dropped > 0 && `${peer.dropped} dropped`];
    setAttribute(item.element, 'title', more.filter(Boolean).join('\n'));
    setText(item.name, peer.name || shortNode(peer.node ?? 'unnamed'));
    setText(item.state, (peer.self ? `this node · ${word}` : word) + rtt);
    return item.element;
  }
}

const BRIDGE_STATES = {
  active: ['up', 'carries messages', 'What goes out and comes in goes through this node'],
  standing: ['one_way', 'stands by', 'Another node carries messages, or none yet'],
  connecting: ['down', 'not reached', 'It is tried again and again'],
};

/** The brokers that this node joins the mesh to. */
export class Bridges {
  constructor() {
    this.section = byId('bridges');
    this.list = byId('bridge-list');
  }

  render(bridges) {
    this.section.hidden = bridges.length === 0;
    this.list.replaceChildren(...bridges.map(({ name, state, trouble, behind_s: behind }) => {
      const [shape, word, meaning] = BRIDGE_STATES[state] ?? ['down', String(state), ''];
      return make('li', { 'data-state': shape, title: trouble ?? meaning }, make('span', { class: 'shape', 'aria-hidden': 'true' }),
        make('div', {}, make('span', { class: 'label' }, name), make('span', { class: 'quiet' }, trouble ? `${word}: ${trouble}` : behind ? `${word}, now from ${ago(behind)} ago` : word)));
    }));
  }
}

const ago = seconds => seconds < 120 ? `${seconds} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;

function rttText(ms) {
  return ms < 0.1 ? '< 0.1 ms' : ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

const REASONS = {
  stopped: 'The node was stopped.',
  slow: 'This page read too slowly and was cut off; it catches up.',
  silent: 'The node does not answer.',
  unreachable: 'The node is not reached.',
  lost: 'The connection was lost.',
};

/** Shows the state of the line; a connection that comes at once is not worth a word. */
export class Banner {
  constructor(hurry) {
    this.element = byId('banner');
    byId('banner-now').addEventListener('click', hurry);
  }

  show(state) {
    clearInterval(this.tick);
    clearTimeout(this.patience);
    const { phase, reason, until, again } = state;
    this.element.dataset.phase = phase;
    if (phase === 'live') {
      this.element.hidden = true;
      return;
    }
    const why = REASONS[reason] ?? '';
    const what = phase === 'connecting' ? (again || reason ? 'Reconnecting…' : 'Connecting…') : 'Reconnecting';
    setText(byId('banner-text'), `${why} ${what}`.trim());
    byId('banner-now').hidden = phase !== 'waiting';
    const count = () => {
      const seconds = Math.ceil((until - Date.now()) / 1000);
      setText(byId('banner-count'), phase === 'waiting' && seconds > 0 ? `in ${seconds} s` : '');
    };
    count();
    if (phase === 'waiting') this.tick = setInterval(count, 250);
    if (again || reason) this.element.hidden = false;
    else this.patience = setTimeout(() => { this.element.hidden = false; }, 400);
  }
}

const DISK = {
  full: 'The disk of this node is full. Nothing is published until there is room; what others say is shown and passed on, but not kept here.',
  failing: 'The disk of this node fails. Nothing is published until it works; what others say is shown and passed on, but not kept here.',
};
// What was fetched is shown for a moment when it is complete.
const DONE_MS = 3000;

/** Shows how the node's history is: what it fetches from others, and a disk that takes nothing. */
export class Status {
  constructor() {
    this.bar = byId('catch-up');
    this.fill = byId('catch-up-fill');
  }

  catchUp(missing, done) {
    clearTimeout(this.ending);
    const all = missing + done;
    this.bar.hidden = false;
    this.fill.max = Math.max(1, all);
    this.fill.value = done;
    setText(byId('catch-up-text'), missing > 0
      ? `Catching up: ${done.toLocaleString()} of ${all.toLocaleString()} messages`
      : `Caught up: ${done.toLocaleString()} messages came from other nodes`);
    if (missing === 0) this.ending = setTimeout(() => { this.bar.hidden = true; }, DONE_MS);
  }

  history(state) {
    const words = DISK[state];
    byId('disk').hidden = !words;
    setText(byId('disk-text'), words ?? '');
  }
}
