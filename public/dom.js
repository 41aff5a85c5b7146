// Makes and arranges elements. Text enters the document here and only as text nodes.

export const byId = id => document.getElementById(id);

/** An element with attributes; falsy ones are left out. Children are elements or text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value || value === 0) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

/** Makes `wanted` the children of `parent`, touching only those that come, go or move: focus and selection stay. */
export function arrange(parent, wanted) {
  const keep = new Set(wanted);
  for (const child of [...parent.children]) if (!keep.has(child)) child.remove();
  let at = parent.firstElementChild;
  for (const child of wanted) {
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
}

/** Sets the text if it changed, so that quiet updates stay quiet for screen readers, too. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Makes a function that does `work` soon: at once when it is rarely asked, once a frame in a burst. */
export function soon(work) {
  const REST_MS = 30;
  let due = false, doneAt = -REST_MS;
  const go = () => {
    due = false;
    work();
    doneAt = performance.now();
  };
  return () => {
    if (due) return;
    due = true;
    if (performance.now() - doneAt > REST_MS) queueMicrotask(go);
    // A hidden page has no frames, but a title.
    else if (document.hidden) setTimeout(go, 200);
    else requestAnimationFrame(go);
  };
}
