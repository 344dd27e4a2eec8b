// One errand: start a service by its meaning, hand it the input, and tell what came back.

import { problemOf } from "./troubles.js";
import { detections, pathOf } from "./words.js";

const PATIENCE_S = 120;
const MOST_LEASES = 32;
const MOST_SHOWN = 20_000;
/** Characters of an answer that is nothing but text. */

export class Errand {
  #controller;
  #link;
  #leases;
  #happen;
  #given_up = new AbortController();

  /**
   * `happen` is told what goes on, until `cancel`. `leases`: the tokens of this visit, to which a new one is added; a
   * controller renews them instead of granting others.
   */
  constructor({ controller, link, leases, happen }) {
    this.#controller = controller;
    this.#link = link;
    this.#leases = leases;
    this.#happen = (event) => this.#given_up.signal.aborted || happen(event);
  }

  cancel() {
    this.#given_up.abort();
  }

  async run({ meaning, input, variant }) {
    this.#happen({ type: "attempt" });
    try {
      const answer = await this.#started(meaning, variant);
      this.#happen({ type: "ready", answer });
      const began = performance.now();
      const reply = await this.#controller.invoke(answer, pathOf(answer, meaning), input.file, this.#given_up.signal);
      const call_ms = performance.now() - began;
      const [result, archive] = await Promise.all([shown(reply, meaning), this.#archiveSize(answer)]);
      this.#happen({ type: "answered", result: { ...result, call_ms, archive, variant } });
      await this.#refresh(answer);
    } catch (error) {
      if (error.lost) this.#link.lost();
      this.#happen({ type: "failed", problem: problemOf(error), now: Date.now() });
    }
  }

  /** A start is asked again as often as the connection breaks; one key makes that one request. */
  async #started({ category, inputs, outputs }, variant) {
    const { signal } = this.#given_up;
    const body = {
      category,
      inputs,
      outputs,
      variant: variant || null,
      wait_s: PATIENCE_S,
      request_key: randomKey(),
      leases: this.#leases.slice(-MOST_LEASES),
    };
    for (;;) {
      try {
        const answer = await this.#controller.start(body, (step) => this.#happen({ type: "progress", step }), signal);
        if (!this.#leases.includes(answer.lease.token)) this.#leases.push(answer.lease.token);
        return answer;
      } catch (error) {
        if (!error.lost) throw error;
        this.#link.lost();
        await this.#link.back(signal);
      }
    }
  }

  /** Bytes; 0 if nobody says: it is only for the comparison. */
  async #archiveSize({ service }) {
    const view = await this.#controller.service(service.digest).catch(() => null);
    return view?.size ?? 0;
  }

  /** Being used prolonged its life: until when is asked for once more. */
  async #refresh(answer) {
    const view = await this.#controller.instance(answer.instance).catch(() => null);
    if (view) this.#happen({ type: "lease", lease: { expires_at: view.expires_at } });
  }
}

/** What the screens can show of a reply: things found, a number, a picture, a text, or a file to save. */
async function shown({ type, blob }, meaning) {
  if (type.startsWith("image/")) return { image_url: URL.createObjectURL(blob) };
  if (!/^(text|application\/json)/.test(type)) return { file_url: URL.createObjectURL(blob) };
  const text = await blob.text();
  if (type.startsWith("application/json")) {
    const found = detections(parsed(text));
    if (found) return { found };
  }
  if (meaning.outputs.includes("integer") && /^\s*-?\d{1,15}\s*$/.test(text)) return { number: Number(text) };
  return { text: text.slice(0, MOST_SHOWN) };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** `crypto.randomUUID` is for secure origins only; this is there on all. */
const randomKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
