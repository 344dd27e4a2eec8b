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

/** How far the controller's clock is ahead of the phone's, in ms: leases end by the controller's. */
let clock_ahead_ms = 0;
export const controllerNow = () => (Date.now() + clock_ahead_ms) / 1000;

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (options.signal?.aborted && options.signal.reason?.name === "AbortError") throw error; // the person left
    throw new Trouble(UNREACHABLE, { lost: true });
  }
  const told = Date.parse(response.headers.get("Date") ?? "");
  if (told) clock_ahead_ms = told - Date.now();
  if (response.ok || response.headers.has(RELAYED)) return response;
  throw new Trouble(await problemIn(response));
}

async function problemIn(response) {
  const problem = await response.json().catch(() => ({ title: `The store answered ${response.status}` }));
  const after = Number(response.headers.get("Retry-After"));
  return after ? { retry_after: after, ...problem } : problem;
}

async function json(path, options) {
  const response = await request(path, { signal: AbortSignal.timeout(QUICK_MS), ...options });
  return response.json();
}

export const health = () => json("/v1/healthz");
export const instance = (id) => json(`/v1/instances/${id}`);
export const service = (digest) => json(`/v1/services/${digest}`);

/** One page of the published services; `next` is the path of the following one, or null. */
export async function services(path = "/v1/services") {
  const response = await request(path, { signal: AbortSignal.timeout(QUICK_MS) });
  return { services: await response.json(), next: nextOf(response.headers.get("Link")) };
}

/** The target of rel="next" (RFC 8288), if it is on this controller. */
export function nextOf(link) {
  const target = /<([^>]*)>\s*;[^,]*\brel="?next"?/.exec(link ?? "")?.[1];
  if (!target) return null;
  const url = new URL(target, location.href);
  return url.origin === location.origin ? url.pathname + url.search : null;
}

/** The answer of a start by meaning. `on_progress` is called with each step; `signal` gives up waiting. */
export async function start(body, on_progress, signal) {
  const response = await request("/v1/instances", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
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
export async function invoke(answer, path, body, signal) {
  const response = await request(`/v1/instances/${answer.instance}/invoke?path=${encodeURIComponent(path)}`, {
    method: "POST",
    headers: {
      ...holding(answer),
      "Content-Type": body.type || "application/octet-stream",
      Accept: "application/json, */*;q=0.5",
    },
    body,
    signal,
  });
  const type = response.headers.get("Content-Type") ?? "";
  try {
    if (!response.ok) throw new Trouble(refusalOf(response.status, type, await response.text()));
    return { type, blob: await response.blob() };
  } catch (error) {
    if (error instanceof Trouble || signal?.aborted) throw error;
    throw new Trouble(UNREACHABLE, { lost: true });
  }
}

export const stop = (answer) =>
  json(`/v1/instances/${answer.instance}/stop`, { method: "POST", headers: holding(answer) });

export const extend = (answer, seconds) =>
  json(`/v1/instances/${answer.instance}/alive`, {
    method: "POST",
    headers: { ...holding(answer), "Content-Type": "application/json" },
    body: JSON.stringify({ alive_time: seconds }),
  });

const holding = (answer) => ({ Authorization: `Bearer ${answer.lease.token}` });
