// The page: ties store, line to the node and panels together, and turns what a person does into frames.

import { byId, setAttribute, setText, soon } from './dom.js';
import { Banner, Bridges, People, Rooms, Status } from './panels.js';
import { Search } from './search.js';
import { Link } from './socket.js';
import { Store, TEXT_BYTES_MAX, bytesOf, roomFault, shelf, tidyName } from './store.js';
import { Log, sizeText } from './view.js';

const PAGE = 100;
// Where a trimmed part is looked for again, page by page from the newest.
const LONG_PAGE = 500;
const NOTICE_MS = 10_000;

const kept = shelf('localStorage');
const store = new Store();
const rooms = new Rooms(store);
const people = new People(store);
const bridges = new Bridges();
const banner = new Banner(() => link.hurry());
const status = new Status();
const log = new Log(store, {
  older: room => load(room),
  newer: room => loadNewer(room),
  newest: room => { store.attach(room); load(room); },
  retry: line => deliver(store.retry(line)),
  discard: line => { store.discard(line); release(); render(); },
  scrolled: () => { look(); render(); },
  nodeName: node => node === store.node?.node ? store.node.name : store.peers.find(peer => peer.node === node)?.name ?? '',
  live: () => link.live,
});
const text = byId('text');
const search = new Search({ api, jump, open: () => closeDrawers() });

let current = store.room(roomInUrl());
let name = kept.get('name') ?? guestName();

const link = new Link({ prepare, onframe, onstate, owed: () => store.unsent().length > 0 });

// The node.

async function api(path) {
  const response = await fetch('api/v1/' + path, { cache: 'no-store' });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

const newest = (room, limit) => `messages?room=${encodeURIComponent(room.name)}&limit=${limit}`;

/** Before the first `hello`: the newest page, whose cursor says where to go on. Later the cursor is at hand. */
async function prepare() {
  if (store.cursor === null) {
    const room = current;
    const [node, list, page] = await Promise.all([api('node'), api('rooms'), api(newest(room, PAGE))]);
    learnNode(node);
    store.learnRooms(list);
    store.takePage(room, page);
    store.cursor = page.after;
    lookBack(room);
    room.fault = false;
    log.hush();
    if (room === current) look();
    render();
  }
  return { name, after: store.cursor };
}

/** Finds where in a room begins what came since the last visit. */
async function lookBack(room) {
  if (!store.left || store.left.mesh !== store.node?.mesh || room.lookedBack) return;
  room.lookedBack = true;
  try {
    const { messages } = await api(`${newest(room, 20)}&after=${encodeURIComponent(store.left.cursor)}`);
    const first = messages.find(raw => !store.own.has(raw.id));
    if (!first || room.firstNewId || room.sinceVisit) return;
    store.sinceVisit(room, first);
    render();
  } catch { /* the line is not drawn, then */ }
}

/** Loads the newest page of a room, or the one before what is there. */
async function load(room) {
  if (room.loading) return;
  room.loading = true;
  room.fault = false;
  log.refresh();
  try {
    const wasLoaded = room.loaded;
    let added = 0;
    do {
      const { before } = room;
      const path = wasLoaded ? newest(room, before === undefined ? LONG_PAGE : PAGE) : newest(room, PAGE);
      const place = !wasLoaded || !before ? '' : before.until ? `&until=${iso(before.until)}` : `&before=${encodeURIComponent(before)}`;
      const page = await api(path + place);
      // The newest page of a room that was left meanwhile would join what does not belong together.
      if (!wasLoaded && room.detached) break;
      added = store.takePage(room, page);
      if (!wasLoaded) lookBack(room);
    } while (wasLoaded && added === 0 && room.before !== null);
  } catch {
    room.fault = true;
  }
  room.loading = false;
  if (room !== current) return;
  look();
  render();
  log.grown();
}

const iso = time => new Date(time).toISOString();

/** Loads what follows where the lines of a room end before the newest. */
async function loadNewer(room) {
  if (room.loadingNewer || !room.detached) return;
  room.loadingNewer = true;
  room.newerFault = false;
  const end = room.lines.at(-1), { next } = room;
  try {
    const place = next.place ? encodeURIComponent(next.place) : '';
    const since = next.since ? `&since=${iso(next.since)}` : '';
    const page = await api(`${newest(room, PAGE)}&next=${place}${since}`);
    // What is live goes on from the newest page, if it begins before the end of this one.
    const live = page.next ? null : await api(newest(room, LONG_PAGE));
    if (room.next !== next) return;
    store.takeNewer(room, page);
    if (live) store.takePage(room, { messages: live.messages, before: room.before });
  } catch {
    room.newerFault = true;
  } finally {
    room.loadingNewer = false;
  }
  if (room !== current) return;
  if (!room.detached) store.pendAgain(room);
  log.grownBelow(end);
  look();
  render();
}

/** Goes to a message that was found, wherever it is. */
async function jump(raw) {
  const room = store.room(raw.room);
  enter(room);
  if (!room.byId.has(raw.id)) {
    const time = Date.parse(raw.time);
    // A millisecond may hold more than a page: what is before it, then all of it from its beginning.
    const page = await api(`${newest(room, PAGE)}&until=${iso(time - 1)}`);
    store.detach(room, time, page);
    log.show(room);
    do await loadNewer(room);
    while (room.detached && !room.byId.has(raw.id) && !room.newerFault && !room.loadingNewer);
  }
  const line = room.byId.get(raw.id);
  if (line && room === current) log.reveal(line);
}

function learnNode(node) {
  if (!node) return;
  if (store.node && store.node.mesh !== node.mesh) return location.reload();
  store.node = node;
  showHistory(node.history);
}

/** What the disk refused is sent again when there is room. */
function showHistory(state) {
  if (state) status.history(state);
  if (state !== 'working') return;
  for (const line of store.refusedByDisk()) deliver(store.retry(line));
}

const frames = {
  welcome({ type, rooms: list, peers, bridges, cursor, ...node }) {
    learnNode(node);
    store.learnRooms(list);
    store.peers = peers ?? store.peers;
    store.bridges = bridges ?? [];
    store.cursor = cursor ?? store.cursor;
    for (const entry of store.unsent()) deliver(entry);
    if (!current.loaded || current.fault) load(current);
  },
  message(frame) {
    const raw = frame.message ?? frame;
    arrived(raw, store.take(raw));
    store.cursor = frame.cursor ?? raw.cursor ?? store.cursor;
  },
  accepted({ client_id, id, state }) {
    store.accepted(client_id, id, state);
    release();
  },
  stored({ id, by, state }) {
    store.stored(id, Number(by) || 0, state);
  },
  catch_up({ missing, done }) {
    status.catchUp(missing, done);
  },
  history({ state }) {
    showHistory(state);
  },
  peers({ peers }) {
    store.peers = peers ?? [];
  },
  bridges({ bridges }) {
    store.bridges = bridges ?? [];
  },
  gap({ missing, reason }) {
    // What this page was too slow for is not covered by its cursor: it comes again.
    if (reason === 'slow') link.restart('slow');
    else store.addGap(missing, reason);
  },
  error({ code = '', message = '', client_id }) {
    if (client_id && store.refused(client_id, code, message)) return release();
    if (/cursor/.test(code)) {
      store.forget();
      return link.restart('lost');
    }
    notice(message || code || 'The node reported an error.');
  },
};

function onframe(frame) {
  frames[frame.type]?.(frame);
  render();
}

function onstate(state) {
  banner.show(state);
  document.body.dataset.line = state.phase;
  // Pending lines look different while there is nobody to take them.
  log.refresh();
  render();
}

function arrived(raw, line) {
  if (!line || line.own) return;
  const room = store.room(raw.room);
  if (room === current && reading()) store.markRead(room);
  else store.unseen(room, line);
}

function release() {
  for (const { raw, line } of store.released()) arrived(raw, line);
}

function deliver(entry) {
  if (entry && link.live) {
    link.send({ type: 'send', client_id: entry.line.client, room: entry.room.name, text: entry.line.text });
  }
  render();
}

// Reading.

const reading = () => !document.hidden && document.hasFocus() && log.atBottom;

/** Whoever looks at the end of a room has read it. */
function look() {
  if (reading()) store.markRead(current);
}

function render() {
  log.refresh();
  renderPanels();
}

const renderPanels = soon(() => {
  store.trim(log.atBottom ? null : current, log.lower);
  rooms.render(current);
  people.render(link.live);
  bridges.render(store.bridges);
  const { node } = store;
  setText(byId('mesh'), node ? `mesh ${node.mesh} · ${node.name}` : '');
  setText(byId('version'), node?.version ? `v${node.version}` : '');
  byId('open').hidden = !node?.open;
  const unread = [...store.rooms.values()].reduce((sum, room) => sum + room.unread, 0);
  const title = `${unread > 0 ? `(${unread}) ` : ''}${current.name} · hubless`;
  if (document.title !== title) document.title = title;
});

function roomInUrl() {
  let wanted = location.hash.slice(1);
  try { wanted = decodeURIComponent(wanted); } catch { /* as it is */ }
  return roomFault(wanted) === null ? wanted : 'lobby';
}

function enter(room) {
  closeDrawers();
  if (room !== current) {
    current.draft = text.value;
    store.leave(current);
    current = room;
    text.value = room.draft;
    fit();
    notice('');
  }
  if (!location.hash) history.replaceState(null, '', '#' + room.name);
  else if (location.hash !== '#' + room.name) location.hash = room.name;
  setText(byId('room-title'), room.name);
  setText(byId('text-label'), `Message in ${room.name}`);
  text.placeholder = `Message in ${room.name}`;
  log.show(room);
  // Before the first page the line to the node loads it.
  if (!room.loaded && store.cursor !== null) load(room);
  look();
  render();
}

function neighbour(step) {
  const all = store.sortedRooms();
  enter(all[(all.indexOf(current) + step + all.length) % all.length]);
  text.focus({ preventScroll: true });
}

// Writing.

let noticeTimer;

function notice(message, lasting = false) {
  clearTimeout(noticeTimer);
  const element = byId('notice');
  setText(element, message);
  element.hidden = message === '';
  if (message !== '' && !lasting) noticeTimer = setTimeout(() => notice(''), NOTICE_MS);
}

/** The box grows with what is typed. */
function fit() {
  text.style.height = 'auto';
  text.style.height = `${text.scrollHeight + 2}px`;
}

function tooLong() {
  // A character is at most three bytes in UTF-8: short texts need no counting.
  const bytes = text.value.length * 3 > TEXT_BYTES_MAX ? bytesOf(text.value.trim()) : 0;
  if (bytes <= TEXT_BYTES_MAX) return false;
  notice(`Too long: ${sizeText(bytes)}. A message has at most 256 KiB; please shorten it.`, true);
  return true;
}

byId('composer').addEventListener('submit', event => {
  event.preventDefault();
  const said = text.value.trim();
  if (said === '' || tooLong()) return;
  if (!byId('name-form').hidden) saveName();
  notice('');
  // What is said stands at the end of the room.
  if (current.detached) { store.attach(current); load(current); }
  const line = store.compose(current, said, name);
  deliver(store.outbox.get(line.client));
  text.value = '';
  fit();
  Object.assign(current, { firstNew: null, firstNewId: null });
  log.toBottom();
  text.focus({ preventScroll: true });
});

text.addEventListener('keydown', event => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId('composer').requestSubmit();
});

text.addEventListener('input', () => {
  fit();
  if (!tooLong() && byId('notice').textContent.startsWith('Too long')) notice('');
});

// The name.

function guestName() {
  const moods = ['calm', 'bright', 'kind', 'brave', 'quick', 'quiet', 'merry', 'clever', 'sunny', 'gentle'];
  const animals = ['otter', 'heron', 'fox', 'wren', 'badger', 'lynx', 'robin', 'hare', 'seal', 'finch', 'moth', 'newt'];
  const pick = list => list[Math.floor(Math.random() * list.length)];
  return `${pick(moods)} ${pick(animals)}`;
}

function showName(open) {
  byId('name-form').hidden = !open;
  setText(byId('name-chip'), `as ${name}`);
  byId('name-chip').title = 'Change your name';
  setAttribute(byId('name-chip'), 'aria-label', `You write as ${name}. Change your name`);
  setAttribute(byId('name-chip'), 'aria-expanded', String(open));
  if (open) byId('name').value = name;
}

function saveName() {
  const wanted = tidyName(byId('name').value);
  const changed = wanted !== '' && wanted !== name;
  if (wanted !== '') name = wanted;
  kept.set('name', name);
  showName(false);
  if (changed && link.live) link.send({ type: 'name', name });
}

byId('name-form').addEventListener('submit', event => {
  event.preventDefault();
  saveName();
  text.focus();
});
byId('name').addEventListener('keydown', event => {
  if (event.key !== 'Escape') return;
  event.stopPropagation();
  showName(false);
  text.focus();
});
byId('name-chip').addEventListener('click', () => {
  const open = byId('name-form').hidden;
  showName(open);
  if (open) byId('name').select();
});

// Rooms.

byId('room-form').addEventListener('submit', event => {
  event.preventDefault();
  const field = byId('room-name');
  const wanted = field.value.trim().replace(/^#/, '');
  const fault = roomFault(wanted);
  showRoomFault(fault);
  if (fault !== null) return field.focus();
  field.value = '';
  enter(store.room(wanted));
  text.focus();
});
byId('room-name').addEventListener('input', () => {
  const wanted = byId('room-name').value.trim().replace(/^#/, '');
  // A name that is still being typed may end with a dot.
  showRoomFault(wanted === '' ? null : roomFault(wanted.replace(/\.$/, '') || '.'));
});

function showRoomFault(fault) {
  setText(byId('room-error'), fault ?? '');
  byId('room-error').hidden = fault === null;
  setAttribute(byId('room-name'), 'aria-invalid', fault !== null ? 'true' : null);
}

byId('room-list').addEventListener('click', event => {
  const link = event.target.closest('a');
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  enter(store.room(link.hash.slice(1)));
  if (!matchMedia('(pointer: coarse)').matches) text.focus({ preventScroll: true });
});
addEventListener('hashchange', () => {
  if (roomInUrl() !== current.name) enter(store.room(roomInUrl()));
});

// Drawers: on narrow screens the panels slide over the chat.

const drawers = [[byId('rooms'), byId('open-rooms')], [byId('people'), byId('open-people')]];

function openDrawer(drawer, button) {
  closeDrawers();
  drawer.classList.add('shown');
  button.setAttribute('aria-expanded', 'true');
  byId('chat').inert = true;
  byId('veil').hidden = false;
  drawer.querySelector('a[aria-current], [data-close]').focus();
}

function closeDrawers() {
  let closed = false;
  byId('chat').inert = false;
  byId('veil').hidden = true;
  for (const [drawer, button] of drawers) {
    if (!drawer.classList.contains('shown')) continue;
    drawer.classList.remove('shown');
    button.setAttribute('aria-expanded', 'false');
    button.focus();
    closed = true;
  }
  return closed;
}

for (const [drawer, button] of drawers) {
  button.addEventListener('click', () => openDrawer(drawer, button));
  drawer.querySelector('[data-close]').addEventListener('click', closeDrawers);
}
byId('veil').addEventListener('click', closeDrawers);
// Wide again: what was a drawer is a panel.
matchMedia('(min-width: 1000px)').addEventListener('change', closeDrawers);
matchMedia('(min-width: 700px)').addEventListener('change', closeDrawers);

// Keys.

addEventListener('keydown', event => {
  if (event.altKey && !event.ctrlKey && !event.metaKey && (event.key === 'ArrowUp' || event.key === 'ArrowDown')) {
    event.preventDefault();
    neighbour(event.key === 'ArrowUp' ? -1 : 1);
  } else if ((event.ctrlKey || event.metaKey) && event.key === 'k') {
    event.preventDefault();
    search.show();
  } else if (event.key === 'Escape') {
    if (closeDrawers() || search.hide()) return;
    log.toBottom();
    text.focus({ preventScroll: true });
  } else if (event.key.length === 1 && event.key !== ' ' && !event.ctrlKey && !event.metaKey && !event.altKey
    && [document.body, byId('scroller')].includes(document.activeElement)) {
    text.focus({ preventScroll: true });
  }
});
byId('skip').addEventListener('click', event => {
  event.preventDefault();
  text.focus();
});

// Light and dark.

const themes = [null, 'light', 'dark'];
let theme = themeNow();

function themeNow() {
  try { return localStorage.getItem('hubless.theme'); } catch { return null; }
}

function showTheme() {
  setText(byId('theme'), `Theme: ${theme ?? 'auto'}`);
}

byId('theme').addEventListener('click', () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  try {
    if (theme === null) localStorage.removeItem('hubless.theme');
    else localStorage.setItem('hubless.theme', theme);
  } catch { /* it cannot be kept, then */ }
  dispatchEvent(new Event('hubless-theme'));
  showTheme();
});

// Start.

addEventListener('focus', () => { look(); render(); });
document.addEventListener('visibilitychange', () => { look(); render(); });
addEventListener('pagehide', () => store.saveReads());
showTheme();
showName(kept.get('name') === null);
enter(current);
link.open();
if (!matchMedia('(pointer: coarse)').matches) text.focus({ preventScroll: true });
