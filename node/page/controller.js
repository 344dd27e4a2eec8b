// The controller that served this page, as far as the page needs it. Failures are thrown as `Trouble`.

import { eventsOf } from "./events.js";
import { refusalOf } from "./words.js";

const QUICK_MS = 8_000;
const RELAYED = "Cornerstore-Relayed";

/** `problem`: as RFC 9457 has it. `lost`: nobody answered, so that it is worth waiting for the controller. */
export class Trouble extends Error {
  constructor(problem, { lost = false } = {}) {
    super(problem.detail || problem.type);
    this.problem = problem;
    this.lost = lost;
  }
}

const UNREACHABLE = { type: "controller-unreachable" };

/** The one that served this page. */
export class Controller {
  #ahead_ms = 0;

  /** Unix seconds by the controller's clock: leases end by that, and a phone's may be wrong. */
  now() {
    return (Date.now() + this.#ahead_ms) / 1000;
  }

  health() {
    return this.#json("/v1/healthz");
  }

  instance(id) {
    return this.#json(`/v1/instances/${id}`);
  }

  service(digest) {
    return this.#json(`/v1/services/${digest}`);
  }

  /** One page of the published services; `next` is the path of the following one, or null. */
  async services(path = "/v1/services") {
    const response = await this.#request(path, quickly());
    return { services: await response.json(), next: nextOf(response.headers.get("Link")) };
  }

  /** The answer of a start by meaning. `on_progress` is called with each step; `signal` gives up waiting. */
  async start(body, on_progress, signal) {
    const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
    const response = await this.#request("/v1/instances", {
      method: "POST",
      headers,
      body: JSON.stringify(body),
      signal,
    });
    let last = null;
    try {
      for await (const { name, data } of eventsOf(response)) {
        const value = JSON.parse(data);
        if (name === "progress") on_progress(value);
        else last = { name, value };
      }
    } catch (error) {
      if (signal.aborted) throw error; // else the stream broke off: what was not told is asked again
    }
    if (last?.name === "result") return last.value;
    throw last ? new Trouble(last.value) : new Trouble(UNREACHABLE, { lost: true });
  }

  /** The service's answer to `body`, through the controller: the service itself is another origin to a browser. */
  async invoke(answer, path, body, signal) {
    const type = body.type || "application/octet-stream";
    const headers = { ...holding(answer), "Content-Type": type, Accept: "application/json, */*;q=0.5" };
    const url = `/v1/instances/${answer.instance}/invoke?path=${encodeURIComponent(path)}`;
    const response = await this.#request(url, { method: "POST", headers, body, signal });
    return replyOf(response, signal);
  }

  /** The instance afterwards. */
  stop(answer) {
    return this.#json(`/v1/instances/${answer.instance}/stop`, { method: "POST", headers: holding(answer) });
  }

  extend(answer, seconds) {
    const headers = { ...holding(answer), "Content-Type": "application/json" };
    const body = JSON.stringify({ alive_time: seconds });
    return this.#json(`/v1/instances/${answer.instance}/alive`, { method: "POST", headers, body });
  }

  async #json(path, options = {}) {
    const response = await this.#request(path, { ...quickly(), ...options });
    return response.json();
  }

  async #request(path, options) {
    let response;
    try {
      response = await fetch(path, { cache: "no-store", ...options });
    } catch (error) {
      if (options.signal.reason?.name === "AbortError") throw error; // the person left
      throw new Trouble(UNREACHABLE, { lost: true });
    }
    const told = Date.parse(response.headers.get("Date") ?? "");
    if (told) this.#ahead_ms = told - Date.now();
    if (response.ok || response.headers.has(RELAYED)) return response;
    throw new Trouble(await problemIn(response));
  }
}

const quickly = () => ({ signal: AbortSignal.timeout(QUICK_MS) });

const holding = (answer) => ({ Authorization: `Bearer ${answer.lease.token}` });

async function problemIn(response) {
  const problem = await response.json().catch(() => ({ title: `The store answered ${response.status}` }));
  const after = Number(response.headers.get("Retry-After"));
  return after ? { retry_after: after, ...problem } : problem;
}

async function replyOf(response, signal) {
  const type = response.headers.get("Content-Type") ?? "";
  let blob;
  try {
    blob = await response.blob();
  } catch (error) {
    throw signal.aborted ? error : new Trouble(UNREACHABLE, { lost: true });
  }
  if (response.ok) return { type, blob };
  throw new Trouble(refusalOf(response.status, type, await blob.text()));
}

/** The target of rel="next" (RFC 8288), if it is on this controller. */
export function nextOf(link) {
  const target = /<([^>]*)>\s*;[^,]*\brel="?next"?/.exec(link ?? "")?.[1];
  if (!target) return null;
  const url = new URL(target, location.href);
  return url.origin === location.origin ? url.pathname + url.search : null;
}
