// The line to the node: one WebSocket at a time, made anew with back-off whenever it breaks or falls silent.
// Reports its state and hands frames on; knows nothing of rooms or of the document.

const SUBPROTOCOL = 'hubless.v1';
const BACK_OFF_MS = [300, 1000, 2000, 4000, 8000, 10_000];
const WELCOME_WAIT_MS = 8000;
// A ping after this silence, sooner while an answer is owed; the line is dead if nothing comes within PONG_WAIT_MS.
const SILENCE_MS = 15_000;
const OWED_MS = 3000;
const PONG_WAIT_MS = 4000;

/**
 * `prepare` makes ready for a connection (it may fetch) and answers the `hello` frame; `onframe` gets each frame;
 * `onstate` is told `{ phase: 'connecting' | 'live' | 'waiting', reason, until }`; `owed` says whether an answer is due.
 */
export class Link {
  constructor({ prepare, onframe, onstate, owed }) {
    Object.assign(this, { prepare, onframe, onstate, owed });
    this.url = `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/`;
    this.tries = 0;
    this.state = { phase: 'connecting', reason: null };
    setInterval(() => this.watch(), 1000);
    addEventListener('online', () => this.hurry());
    // The network went, but the node may be on this very machine: ask it.
    addEventListener('offline', () => this.probe());
    document.addEventListener('visibilitychange', () => { if (!document.hidden) this.hurry(); });
  }

  get live() {
    return this.state.phase === 'live';
  }

  open() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.down(socket, 'silent'), WELCOME_WAIT_MS);
    // The socket is opened while the first page is still fetched.
    const prepared = this.prepare();
    const socket = this.socket = new WebSocket(this.url, SUBPROTOCOL);
    this.pingAt = 0;
    this.enter('connecting', this.state.reason);
    prepared.catch(() => this.down(socket, 'unreachable'));
    socket.onopen = () => prepared.then(hello => this.socket === socket && this.send({ type: 'hello', ...hello }), () => {});
    socket.onmessage = ({ data }) => this.hear(socket, data);
    socket.onclose = ({ code }) => this.down(socket, { 1001: 'stopped', 1013: 'slow' }[code] ?? 'lost');
  }

  hear(socket, data) {
    if (this.socket !== socket) return;
    this.heardAt = Date.now();
    this.pingAt = 0;
    let frame;
    try { frame = JSON.parse(data); } catch { return; }
    if (frame.type === 'welcome') {
      clearTimeout(this.timer);
      this.tries = 0;
      this.enter('live', null);
    }
    this.onframe(frame);
  }

  /** Answers whether the frame was handed to the browser; that it arrived only an answer tells. */
  send(frame) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(frame));
    return true;
  }

  /** Drops the line and makes it anew at once. */
  restart(reason) {
    this.tries = 0;
    this.down(this.socket, reason);
  }

  down(socket, reason) {
    if (this.socket !== socket) return;
    this.socket = null;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    clearTimeout(this.timer);
    const most = BACK_OFF_MS[Math.min(this.tries++, BACK_OFF_MS.length - 1)];
    const wait = most * (0.7 + 0.3 * Math.random());
    this.timer = setTimeout(() => this.open(), wait);
    // A stopped node stays the reason while it is away.
    const why = this.state.reason === 'stopped' && reason === 'lost' ? 'stopped' : reason;
    this.enter('waiting', why, Date.now() + wait);
  }

  hurry() {
    if (this.state.phase === 'waiting') this.open();
    else this.probe();
  }

  probe() {
    if (!this.live || this.pingAt) return;
    this.pingAt = Date.now();
    this.send({ type: 'ping' });
  }

  watch() {
    if (!this.live) return;
    const silent = Date.now() - this.heardAt;
    if (this.pingAt) {
      if (Date.now() - this.pingAt > PONG_WAIT_MS) this.down(this.socket, 'silent');
    } else if (silent > SILENCE_MS || (silent > OWED_MS && this.owed())) {
      this.probe();
    }
  }

  enter(phase, reason, until = 0) {
    this.state = { phase, reason, until, again: this.state.again || phase === 'live' };
    this.onstate(this.state);
  }
}
