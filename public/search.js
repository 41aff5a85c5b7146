// Looks for words in the log of this node: a field over the messages, and what was found, newest first.
// Knows the API and how to go to a message; nothing of rooms or lines.

import { arrange, byId, make, setText } from './dom.js';

const PAGE = 30;
const PAUSE_MS = 250;
// Of a long text so much is shown around what was found.
const AROUND_CHARS = 90;

const when = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });

export class Search {
  /** `hooks`: `api(path)` fetches, `jump(message)` goes there, `open()` is told when the field opens. */
  constructor(hooks) {
    this.hooks = hooks;
    this.panel = byId('search');
    this.field = byId('search-text');
    this.list = byId('search-list');
    this.said = byId('search-said');
    this.more = byId('search-more');
    this.asked = 0;
    byId('open-search').addEventListener('click', () => this.panel.hidden ? this.show() : this.hide());
    byId('search-close').addEventListener('click', () => this.hide());
    byId('search-form').addEventListener('submit', event => { event.preventDefault(); this.find(); });
    this.field.addEventListener('input', () => {
      clearTimeout(this.soon);
      this.soon = setTimeout(() => this.find(), PAUSE_MS);
    });
    this.more.addEventListener('click', () => this.load());
  }

  show() {
    this.hooks.open();
    this.panel.hidden = false;
    byId('open-search').setAttribute('aria-expanded', 'true');
    this.field.focus();
    this.field.select();
  }

  /** Answers whether it was open. */
  hide() {
    if (this.panel.hidden) return false;
    this.panel.hidden = true;
    byId('open-search').setAttribute('aria-expanded', 'false');
    byId('open-search').focus();
    return true;
  }

  find() {
    clearTimeout(this.soon);
    const words = this.field.value.trim();
    if (words === this.words) return;
    this.words = words;
    this.before = undefined;
    this.items = [];
    arrange(this.list, []);
    this.more.hidden = true;
    // What is still on its way is an answer to something else.
    this.asked++;
    if (words === '') return setText(this.said, '');
    setText(this.said, 'Searching…');
    this.load();
  }

  async load() {
    const { words, before } = this;
    const asked = ++this.asked;
    this.more.disabled = true;
    try {
      const place = before ? `&before=${encodeURIComponent(before)}` : '';
      const page = await this.hooks.api(`messages?grep=${encodeURIComponent(words)}&limit=${PAGE}${place}`);
      if (asked !== this.asked) return;
      this.before = page.before;
      this.items.push(...page.messages.reverse().map(raw => this.item(raw)));
      arrange(this.list, this.items);
      const count = this.items.length;
      setText(this.said, count === 0 ? 'Nothing found in the log of this node.'
        : `${count}${page.before ? ' newest' : ''} ${count === 1 ? 'message' : 'messages'} found`);
    } catch {
      if (asked === this.asked) setText(this.said, 'The log could not be searched; try again.');
    }
    this.more.hidden = !this.before;
    this.more.disabled = false;
  }

  item(raw) {
    const time = new Date(raw.time);
    const button = make('button', { type: 'button' },
      make('span', { class: 'found-head' },
        make('span', { class: 'who' }, String(raw.name || 'somebody')),
        make('span', { class: 'badge' }, `#${raw.room}`),
        make('time', { datetime: raw.time }, when.format(time))),
      make('span', { class: 'found-text', dir: 'auto' }, ...this.excerpt(String(raw.text ?? ''))));
    button.addEventListener('click', () => {
      this.hide();
      this.hooks.jump(raw).catch(() => { this.show(); setText(this.said, 'This message could not be loaded.'); });
    });
    return make('li', {}, button);
  }

  /** What was found, marked, and some of what stands around it. */
  excerpt(text) {
    const at = text.toLowerCase().indexOf(this.words.toLowerCase());
    if (at < 0) return [text.slice(0, 2 * AROUND_CHARS)];
    const end = at + this.words.length;
    const from = Math.max(0, at - AROUND_CHARS), to = Math.min(text.length, end + AROUND_CHARS);
    return [(from > 0 ? '…' : '') + text.slice(from, at), make('mark', {}, text.slice(at, end)),
      text.slice(end, to) + (to < text.length ? '…' : '')];
  }
}
