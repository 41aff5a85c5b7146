// What the page knows: rooms, their messages in order of time and each once, and what was sent but not yet accepted.
// Promises that a line is neither lost nor doubled over reconnects and reloads. Never touches document or network.

export const TEXT_BYTES_MAX = 256 * 1024;
export const NAME_CHARS_MAX = 64;
const NAME_BYTES_MAX = 128;
// Messages kept of a room in which nobody scrolls back; what is older can be loaded again.
const KEPT = 1000;
// Messages kept of a room in any case: who scrolls on lets go of the other end.
const HELD_MAX = 3000;
const GAPS_MAX = 50;
const OWN_IDS_MAX = 300;
const SAVE_MS = 500;
// Clocks of browser and node may differ by so much before a line stands twice for the moment until it is accepted.
const SKEW_MS = 60_000;

const encoder = new TextEncoder();
export const bytesOf = text => encoder.encode(text).length;

/** Says what is wrong with a room name, in words for a person; none if nothing is. */
export function roomFault(name) {
  if (name === '') return 'Type a name for the room.';
  if (name.length > 64) return 'A room name has at most 64 characters.';
  if (/[^a-z0-9._-]/.test(name)) return 'Only a–z, 0–9, “-”, “_” and “.” may be in a room name.';
  if (/^\.|\.$|\.\./.test(name)) return 'A room name neither begins nor ends with “.” and has no “..” in it.';
  return null;
}

/** A display name within the limits: one line, trimmed; empty if nothing is left. */
export function tidyName(name) {
  let chars = [...name.replace(/\p{Cc}+/gu, ' ').trim()].slice(0, NAME_CHARS_MAX);
  while (bytesOf(chars.join('')) > NAME_BYTES_MAX) chars = chars.slice(0, -1);
  return chars.join('').trim();
}

/** A 128-bit random id. Unlike `crypto.randomUUID` this works on plain HTTP, too. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, '0')).join('');
}

/** Browser storage that is allowed to fail: it may be full or forbidden. */
export function shelf(storage) {
  return {
    get(key, otherwise = null) {
      try { return JSON.parse(window[storage].getItem('hubless.' + key)) ?? otherwise; } catch { return otherwise; }
    },
    set(key, value) {
      try { window[storage].setItem('hubless.' + key, JSON.stringify(value)); } catch { /* it lives on in memory */ }
    },
  };
}

// Names of which it is remembered who signed for them first.
const SIGNERS_MAX = 500;

const kept = shelf('localStorage');

let lines = 0;

/**
 * A line of a room. One not `placed` yet stands at the end: it is pending. One whose place is `guessed` is accepted, and
 * the node's own time for it is still to come.
 */
class Line {
  constructor(fields) {
    Object.assign(this, {
      id: null, client: null, text: '', type: null, bytes: 0, name: '', node: '', time: 0, hlc: '', via: 'mesh', storedBy: 0,
      state: '', late: false, verified: false, own: false, placed: false, guessed: false, status: null, fault: '', code: '', open: false,
    }, fields);
    this.turn = lines++;
    this.revision = 0;
  }
}

/** A node's time as its messages carry it, at the end of a millisecond of our own. */
const hlcOf = time => ((BigInt(Math.floor(time)) << 16n) | 0xffffn).toString(16).padStart(16, '0');

/** A message object, or a frame with its fields: there `type` says what the frame is. */
function fromWire(raw) {
  const text = typeof raw.text === 'string' ? raw.text : null;
  const data = typeof raw.data === 'string' ? raw.data : '';
  return {
    id: raw.id, key: raw.key ?? null, text: text ?? '', type: text === null ? String(raw.content_type ?? raw.type ?? 'data') : null,
    bytes: Math.floor(data.length * 3 / 4) - (data.endsWith('==') ? 2 : data.endsWith('=') ? 1 : 0),
    name: String(raw.name ?? ''), node: String(raw.node ?? ''), time: Date.parse(raw.time) || 0, hlc: String(raw.hlc ?? ''), via: raw.via ?? 'mesh',
    storedBy: raw.stored_by ?? 0, state: String(raw.state ?? ''), late: raw.late === true,
    verified: raw.verified === true, placed: true, guessed: false,
  };
}

/** A node's id in letters that sort as its bytes do: in base32 the digits stand behind the letters. */
const sortable = node => node.replace(/[2-7]/g, digit => '{|}~\x7f\x80'[digit - 2]);

/** By the node's time, then by id: node, epoch, and seq as a number. */
function order(a, b) {
  if (!a.placed || !b.placed) return a.placed - b.placed ? (a.placed ? -1 : 1) : a.turn - b.turn;
  if (a.hlc !== b.hlc) return a.hlc < b.hlc ? -1 : 1;
  const [nodeA, epochA, seqA = ''] = a.id.split('.');
  const [nodeB, epochB, seqB = ''] = b.id.split('.');
  if (nodeA !== nodeB) return sortable(nodeA) < sortable(nodeB) ? -1 : 1;
  if (epochA !== epochB) return epochA < epochB ? -1 : 1;
  return seqA.length - seqB.length || (seqA < seqB ? -1 : +(seqA > seqB));
}

class Room {
  constructor(name, read) {
    this.name = name;
    this.lines = [];
    this.byId = new Map();
    this.byKey = new Map();
    // Where older pages begin: a place, `null` at the beginning of what the node holds, `undefined` if to be found
    // anew from the newest page on.
    this.before = undefined;
    // Where newer pages begin, `{ since }` or `{ place }`, while the lines here end before the newest; else `null`.
    this.next = null;
    // Pages loaded: the oldest line of each and the place before it.
    this.marks = [];
    this.loaded = false;
    this.loading = false;
    this.fault = false;
    this.unread = 0;
    // Something came while the page was closed; how many is known once the room is loaded.
    this.stirred = false;
    this.read = read;
    this.last = 0;
    this.firstNew = null;
    // The oldest message that came since the last visit, when it is not loaded yet.
    this.firstNewId = null;
    // The line of what is new is about the last visit, not about this one.
    this.sinceVisit = false;
    this.draft = '';
  }

  /** Whether newer messages than the lines here are there, but not loaded. */
  get detached() {
    return this.next !== null;
  }

  /** Puts a line into its place, unless that is beyond what is loaded; answers whether it is shown. */
  insert(line) {
    if (line.placed && !line.guessed) this.last = Math.max(this.last, line.time);
    const newest = this.lines.at(-1);
    if (this.detached && !this.extending && (!line.placed || !newest || order(newest, line) < 0)) return false;
    let low = 0, high = this.lines.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (order(this.lines[middle], line) < 0) low = middle + 1; else high = middle;
    }
    this.lines.splice(low, 0, line);
    if (line.id) this.byId.set(line.id, line);
    if (line.key) this.byKey.set(line.key, line);
    if (line.id && (this.firstNewId === line.id || this.firstNew?.id === line.id)) {
      this.firstNew = line;
      this.firstNewId = null;
    }
    return true;
  }

  remove(line) {
    const at = this.lines.indexOf(line);
    if (at >= 0) this.lines.splice(at, 1);
    if (line.id && this.byId.get(line.id) === line) this.byId.delete(line.id);
    if (line.key && this.byKey.get(line.key) === line) this.byKey.delete(line.key);
    if (this.firstNew === line) this.firstNew = null;
  }

  change(line, fields) {
    const moved = 'time' in fields || 'id' in fields || 'placed' in fields;
    if (moved) {
      const first = this.firstNew === line;
      this.remove(line);
      Object.assign(line, fields);
      this.insert(line);
      if (first) this.firstNew = line;
    } else {
      Object.assign(line, fields);
    }
    line.revision++;
  }

  /** Lets go of the newest lines: somebody reads far above them. */
  trimEnd(max) {
    if (this.lines.length <= max) return;
    const gone = this.lines.splice(max);
    for (const line of gone) this.unlist(line);
    this.next = { since: this.lines.at(-1).time };
  }

  unlist(line) {
    if (line.id && this.byId.get(line.id) === line) this.byId.delete(line.id);
    if (line.key && this.byKey.get(line.key) === line) this.byKey.delete(line.key);
  }

  /** Forgets what is loaded. */
  clear() {
    this.lines = [];
    this.byId.clear();
    this.byKey.clear();
    Object.assign(this, { before: undefined, next: null, marks: [], loaded: false });
  }

  trim(max) {
    const over = this.lines.length - max;
    if (over <= 0) return;
    for (const line of this.lines.splice(0, over)) {
      if (line.id) this.byId.delete(line.id);
      if (line.key) this.byKey.delete(line.key);
      if (line === this.firstNew) this.firstNew = this.lines[0];
    }
    if (this.loaded) {
      this.marks = this.marks.filter(mark => order(mark.oldest, this.lines[0]) >= 0);
      this.before = this.marks.at(-1)?.before;
      // Behind a jump the newest page leads nowhere near.
      if (this.before === undefined && this.detached) this.before = { until: this.lines[0].time };
    }
  }
}

export class Store {
  constructor() {
    this.node = null;
    this.peers = [];
    this.bridges = [];
    this.rooms = new Map();
    this.gaps = [];
    this.cursor = null;
    // What was seen by the end of the last visit, in which mesh.
    this.left = kept.get('left');
    this.outbox = new Map();
    // Messages that may be the echo of a pending line; `accepted` will tell.
    this.aside = [];
    // The node that first signed what somebody of a name said, the names used longest ago first.
    this.signers = new Map(kept.get('signers', []));
    this.reads = kept.get('read', {});
    this.firstVisit = Object.keys(this.reads).length === 0;
    this.ownIds = kept.get('own', []);
    this.own = new Set(this.ownIds);
    this.room('lobby');
    const unsent = Object.values(kept.get('unsent', {})).sort((a, b) => a.time - b.time);
    for (const { room, ...fields } of unsent) this.pend(new Line({ ...fields, own: true }), this.room(room));
  }

  room(name) {
    let room = this.rooms.get(name);
    if (!room) this.rooms.set(name, room = new Room(name, this.reads[name] ?? (this.firstVisit ? null : 0)));
    return room;
  }

  /** The node that first signed for this name here; from now on this one, if there was none. */
  signerOf(name, node) {
    const first = this.signers.get(name) ?? node;
    const known = this.signers.delete(name);
    this.signers.set(name, first);
    if (!known) {
      if (this.signers.size > SIGNERS_MAX) this.signers.delete(this.signers.keys().next().value);
      kept.set('signers', [...this.signers]);
    }
    return first;
  }

  /** The lobby, then the others by name. */
  sortedRooms() {
    return [...this.rooms.values()].sort((a, b) =>
      (b.name === 'lobby') - (a.name === 'lobby') || (a.name < b.name ? -1 : 1));
  }

  /** Takes the list of rooms of the API or of `welcome`. */
  learnRooms(list) {
    for (const item of list ?? []) {
      const name = typeof item === 'string' ? item : item.room;
      if (roomFault(name) !== null) continue;
      const room = this.room(name);
      const last = Date.parse(item.last) || 0;
      if (room.loaded || !last) continue;
      if (room.read === null) this.setRead(room, last);
      else if (last > room.read && room.unread === 0) room.stirred = true;
    }
  }

  /** Takes a page of history; answers how many lines are new. The newest page joins the room to what comes live. */
  takePage(room, { messages, before }) {
    let added = 0;
    const fresh = [];
    if (!room.loaded) this.pendAgain(room);
    for (const raw of messages) {
      const line = this.take(raw, true);
      if (!line) continue;
      added++;
      if (room.read !== null && !room.loaded && !line.own && line.time > room.read) fresh.push(line);
    }
    room.unread += fresh.length;
    if (fresh.length && !room.sinceVisit) room.firstNew = fresh[0];
    room.stirred = false;
    room.before = before ?? null;
    const oldest = messages.length ? room.byId.get(messages[0].id) : null;
    if (oldest) room.marks.push({ oldest, before: room.before });
    room.loaded = true;
    return added;
  }

  /** Takes a page that goes on where the lines of a room end; answers how many lines are new. */
  takeNewer(room, { messages, next }) {
    let added = 0;
    room.extending = true;
    for (const raw of messages) added += this.take(raw, true) ? 1 : 0;
    room.extending = false;
    room.next = next ? { place: next } : null;
    return added;
  }

  /** Begins a room anew with the page up to a time; what follows is to be loaded. */
  detach(room, time, page) {
    room.clear();
    Object.assign(room, { loaded: true, next: { since: time } });
    room.extending = true;
    this.takePage(room, page);
    room.extending = false;
  }

  /** Lets go of what is loaded of a room that is not joined to what comes live. */
  attach(room) {
    room.clear();
  }

  /** Lines that are still to be sent stand at the end again. */
  pendAgain(room) {
    for (const { line, room: of } of this.outbox.values()) {
      if (of === room && !room.lines.includes(line)) room.insert(line);
    }
  }

  /** What came since the last visit begins here. */
  sinceVisit(room, raw) {
    room.sinceVisit = true;
    const line = room.byId.get(raw.id);
    if (line) room.firstNew = line;
    else Object.assign(room, { firstNew: null, firstNewId: raw.id });
  }

  /** Takes a message as the node sent it; answers the line if one was added. */
  take(raw, history = false) {
    if (typeof raw?.id !== 'string' || roomFault(String(raw.room)) !== null) return null;
    const room = this.room(raw.room);
    const seen = room.byId.get(raw.id);
    if (seen) {
      if (seen.guessed) this.settle(room, seen, raw);
      else this.rise(room, seen, raw.stored_by ?? 0, raw.state);
      return null;
    }
    if (raw.key && room.byKey.has(raw.key)) return null;
    // History has echoes, too, after a reload; what was said long before is none.
    if (this.unsent().some(entry => entry.room === room && entry.line.text === raw.text
      && (!history || Date.parse(raw.time) > entry.line.time - SKEW_MS))) {
      this.aside.push({ raw, history });
      return null;
    }
    const line = new Line({ ...fromWire(raw), own: this.own.has(raw.id) });
    if (line.own) line.status = 'accepted';
    // Above the oldest line there may be more that is not loaded: a line put there would hide a hole.
    if (!history && room.loaded && room.before !== null && room.lines[0]?.placed && order(line, room.lines[0]) < 0) return null;
    const shown = room.insert(line);
    if (line.late && !history) this.fillGap(1);
    // What is not shown in a room whose end is not loaded is new all the same, unless it comes with a page.
    return shown || !history ? line : null;
  }

  /** The node's word on a line of our own. */
  settle(room, line, raw) {
    if (raw.key && room.byKey.has(raw.key) && room.byKey.get(raw.key) !== line) return room.remove(line);
    const { late, ...fields } = fromWire(raw);
    // Word of who stores it may have been quicker.
    room.change(line, { ...fields, storedBy: Math.max(line.storedBy, fields.storedBy), status: 'accepted' });
  }

  // Own lines.

  compose(room, text, name) {
    const line = new Line({ client: randomId(), text, name, own: true, time: Date.now(), status: 'pending' });
    this.pend(line, room);
    this.saveUnsent(line.client);
    return line;
  }

  pend(line, room) {
    line.node = this.node?.node ?? '';
    room.insert(line);
    this.outbox.set(line.client, { line, room });
  }

  /** What is to be sent, in order: again and again under the same client id, until it is accepted. */
  unsent() {
    return [...this.outbox.values()].filter(({ line }) => line.status === 'pending');
  }

  accepted(client, id, state = '') {
    const entry = this.outbox.get(client);
    if (!entry) return;
    const { line, room } = entry;
    this.outbox.delete(client);
    this.saveUnsent(client);
    this.rememberOwn(id);
    const shown = room.byId.get(id);
    const at = this.aside.findIndex(({ raw }) => raw.id === id);
    if (shown) {
      room.remove(line);
      room.change(shown, { own: true, status: 'accepted', state: shown.state === 'replicated' ? shown.state : state });
    } else if (at >= 0) {
      this.settle(room, line, this.aside.splice(at, 1)[0].raw);
    } else {
      const time = Math.max(room.last, Date.now());
      room.change(line, { id, time, hlc: hlcOf(time), placed: true, guessed: true, status: 'accepted', state });
    }
  }

  refused(client, code, message) {
    const entry = this.outbox.get(client);
    if (!entry) return false;
    entry.room.change(entry.line, { status: 'failed', fault: message || code, code });
    this.saveUnsent(client);
    return true;
  }

  retry(line) {
    const entry = this.outbox.get(line.client);
    if (!entry) return;
    if (line.code === 'client_id_reused') {
      this.outbox.delete(line.client);
      this.saveUnsent(line.client);
      line.client = randomId();
      this.outbox.set(line.client, entry);
    }
    entry.room.change(line, { status: 'pending', fault: '', code: '' });
    this.saveUnsent(line.client);
    return entry;
  }

  /** Those that only the disk refused. */
  refusedByDisk() {
    return [...this.outbox.values()].map(({ line }) => line).filter(line => /^disk_/.test(line.code));
  }

  discard(line) {
    const entry = this.outbox.get(line.client);
    if (!entry) return;
    this.outbox.delete(line.client);
    entry.room.remove(line);
    this.saveUnsent(line.client);
  }

  /** Takes what was set aside and turned out not to be an echo; answers what of it came live. */
  released() {
    const waiting = this.aside;
    this.aside = [];
    return waiting.map(({ raw, history }) => ({ raw, history, line: this.take(raw, history) })).filter(({ line, history }) => line && !history);
  }

  /** The node's word that so many other nodes have a message on disk. */
  stored(id, count, state) {
    for (const room of this.rooms.values()) {
      const line = room.byId.get(id);
      if (line) return this.rise(room, line, count, state);
    }
  }

  rise(room, line, storedBy, state = line.state) {
    const known = Math.max(line.storedBy, storedBy);
    if (known !== line.storedBy || (state !== line.state && line.state !== 'replicated')) {
      room.change(line, { storedBy: known, state: known > 0 ? 'replicated' : state });
    }
  }

  /** Keeps what is to be sent, for this page or whichever comes after it; it is one message however often it is sent. */
  saveUnsent(client) {
    // Another page of this browser may have some of its own.
    const unsent = kept.get('unsent', {});
    const entry = this.outbox.get(client);
    if (entry) {
      const { line, room } = entry;
      const { text, name, time, status, fault, code } = line;
      unsent[client] = { client, room: room.name, text, name, time, status, fault, code };
    } else {
      delete unsent[client];
    }
    kept.set('unsent', unsent);
  }

  rememberOwn(id) {
    if (this.own.has(id)) return;
    this.own.add(id);
    this.ownIds.push(id);
    if (this.ownIds.length > OWN_IDS_MAX) this.own.delete(this.ownIds.shift());
    kept.set('own', this.ownIds);
  }

  // Reading.

  /** Counts a line that came live and that nobody is looking at. */
  unseen(room, line) {
    room.unread++;
    room.firstNew ??= line;
  }

  markRead(room) {
    room.unread = 0;
    room.stirred = false;
    if (room.last > (room.read ?? 0)) this.setRead(room, room.last);
  }

  setRead(room, time) {
    room.read = this.reads[room.name] = time;
    this.saving ??= setTimeout(() => this.saveReads(), SAVE_MS);
  }

  saveReads() {
    this.saving = clearTimeout(this.saving);
    // Another page of this browser may have read on.
    for (const [room, time] of Object.entries(kept.get('read', {}))) this.reads[room] = Math.max(time, this.reads[room] ?? 0);
    kept.set('read', this.reads);
    this.saveLeft();
  }

  /** Keeps what this page has seen, for its next visit. */
  saveLeft() {
    if (this.cursor !== null && this.node) kept.set('left', { mesh: this.node.mesh, cursor: this.cursor });
  }

  /** Nobody scrolls in this room now. */
  leave(room) {
    Object.assign(room, { firstNew: null, firstNewId: null, sinceVisit: false });
    if (room.detached) room.clear();
    else room.trim(KEPT);
  }

  /** Keeps rooms bounded; in `held` somebody scrolls, who reads in the `lower` half of its lines or in the upper. */
  trim(held, lower) {
    for (const room of this.rooms.values()) {
      if (room !== held) room.trim(KEPT);
      else if (lower) room.trim(HELD_MAX);
      else room.trimEnd(HELD_MAX);
    }
  }

  /** The node does not know the cursor any more: history begins anew, own lines stay. */
  forget() {
    this.cursor = null;
    for (const room of this.rooms.values()) {
      for (const line of room.lines.filter(line => line.placed)) room.remove(line);
      Object.assign(room, { before: undefined, next: null, marks: [], loaded: false, loading: false });
    }
  }

  // Gaps count messages of all rooms: nobody can tell which.

  addGap(missing, reason) {
    if (!(missing > 0)) return;
    // What is given up now was announced as late before.
    if (reason !== 'late') this.fillGap(missing);
    const time = Math.max(Date.now(), ...[...this.rooms.values()].map(room => room.last));
    const newest = this.gaps.at(-1);
    if (newest?.reason === reason && ![...this.rooms.values()].some(room => room.last > newest.time)) newest.missing += missing;
    else this.gaps.push({ missing, reason, time });
    if (this.gaps.length > GAPS_MAX) this.gaps.shift();
  }

  fillGap(count) {
    for (const gap of this.gaps.filter(gap => gap.reason === 'late')) {
      const filled = Math.min(gap.missing, count);
      gap.missing -= filled;
      count -= filled;
    }
    this.gaps = this.gaps.filter(gap => gap.missing > 0);
  }
}
