/** What this browser remembers. A full or forbidden storage remembers nothing, and does no harm. */

const PREFIX = "ranking:";

export function get(name) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name));
  } catch {
    return null;
  }
}

export function set(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // the server's copy must do
  }
}

export function remove(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // there was none
  }
}
