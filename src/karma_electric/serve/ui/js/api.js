// Talks to the server: JSON, server-sent events, the key, and every failure in words.

const KEY = "karma-key";

// What went wrong, for people. `status` is 0 where no answer came; `wait_s` is what a busy server asks for.
export class Failure extends Error {
  constructor(message, { status = 0, wait_s = null } = {}) {
    super(message);
    this.status = status;
    this.wait_s = wait_s;
  }
}

export function setKey(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // storage is switched off: the key holds until the page is left
  }
  held = key;
}

let held = (() => {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
})();

async function ask(path, options = {}) {
  const headers = { ...(options.headers ?? {}) };
  if (held) headers.Authorization = `Bearer ${held}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. Is karma serve still running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

// The server's own words where it has any.
async function failure(response) {
  let said = "";
  try {
    const body = JSON.parse(await response.text());
    const detail = body.error?.message ?? body.error ?? body.detail ?? "";
    said = Array.isArray(detail) ? detail.map((d) => `${(d.loc ?? []).join(".")}: ${d.msg}`).join("; ") : String(detail);
  } catch {
    // not JSON: the status has to do
  }
  const status = response.status;
  const wait = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const wait_s = Number.isFinite(wait) ? wait : null;
  const words = {
    401: held ? "The server does not accept this key." : "The server asks for a key.",
    404: said || "The server does not know this address.",
    413: said || "The message is longer than the server takes.",
    429: `The server is busy${wait_s === null ? "" : `; it asks to wait ${wait_s} s`}.`,
    503: said || "The server is not ready yet.",
  };
  const message = words[status] ?? (said || `The server answered with status ${status} and no explanation.`);
  return new Failure(status >= 500 && status !== 503 ? `The server failed (status ${status}). ${said}`.trim() : message, { status, wait_s });
}

export const getJson = async (path) => (await ask(path)).json();

export const getText = async (path) => (await ask(path)).text();

export async function postJson(path, body) {
  const response = await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  return response.json();
}

// Yields the value of every event of a streamed answer. Ends by itself only at [DONE]; anything else is a Failure.
export async function* stream(path, body, signal) {
  const response = await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The answer broke off: the connection to the server was lost.");
    }
    rest += part.done ? decoder.decode() : decoder.decode(part.value, { stream: true });
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      let value;
      try {
        value = JSON.parse(data);
      } catch {
        throw new Failure("The server sent something that is no event of an answer.");
      }
      if (value.error) throw new Failure(String(value.error.message ?? value.error), { status: 500 });
      yield value;
    }
    if (part.done) throw new Failure("The answer broke off before its end.");
  }
}
