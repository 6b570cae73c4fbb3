/** Requests to the API. */

/** The server refused. status 0: it did not answer. current: what it holds instead. */
export class Problem extends Error {
  constructor(status, { detail, current } = {}) {
    super(detail ?? `The server answered with an error (${status}).`);
    Object.assign(this, { status, current });
  }

  /** Whether the same request may succeed later. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The JSON of the answer. Throws a Problem. */
export async function send(method, url, body, { csrfToken, keepalive = false, headers = {} }) {
  const all = { "Content-Type": "application/json", "X-CSRF-Token": csrfToken, ...headers };
  let response;
  try {
    response = await fetch(url, { method, keepalive, headers: all, body: JSON.stringify(body) });
  } catch {
    throw new Problem(0, { detail: "There is no connection to the server." });
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem(response.status, answer);
  return answer;
}
