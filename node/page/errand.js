// One errand: start a service by its meaning, hand it the input, and tell what came back.

import * as controller from "./controller.js";
import { problemOf } from "./troubles.js";
import { detections, pathOf } from "./words.js";

const PATIENCE_S = 120;
const MOST_LEASES = 32;
const MOST_SHOWN = 20_000;
/** Characters of an answer that is nothing but text. */

/** Tokens of this visit: a controller renews them instead of granting new ones (`leases` of a start). */
const leases = [];

export class Errand {
  #link;
  #happen;
  #given_up = new AbortController();

  /** `happen` is told what goes on, until `cancel`. */
  constructor(link, happen) {
    this.#link = link;
    this.#happen = (event) => this.#given_up.signal.aborted || happen(event);
  }

  cancel() {
    this.#given_up.abort();
  }

  async run({ meaning, input }) {
    this.#happen({ type: "attempt" });
    try {
      const answer = await this.#started(meaning);
      this.#happen({ type: "ready", answer });
      const began = performance.now();
      const reply = await controller.invoke(answer, pathOf(answer, meaning), input.file, this.#given_up.signal);
      const call_ms = performance.now() - began;
      const [result, archive] = await Promise.all([shown(reply, meaning), archiveSize(answer)]);
      this.#happen({ type: "answered", result: { ...result, call_ms, archive } });
      await this.#refresh(answer);
    } catch (error) {
      if (error.lost) this.#link.lost();
      this.#happen({ type: "failed", problem: problemOf(error), now: Date.now() });
    }
  }

  /** A start is asked again as often as the connection breaks; one key makes that one request. */
  async #started({ category, inputs, outputs }) {
    const { signal } = this.#given_up;
    const body = {
      category,
      inputs,
      outputs,
      wait_s: PATIENCE_S,
      request_key: randomKey(),
      leases: leases.slice(-MOST_LEASES),
    };
    for (;;) {
      try {
        const answer = await controller.start(body, (step) => this.#happen({ type: "progress", step }), signal);
        if (!leases.includes(answer.lease.token)) leases.push(answer.lease.token);
        return answer;
      } catch (error) {
        if (!error.lost) throw error;
        this.#link.lost();
        await this.#link.back(signal);
      }
    }
  }

  /** Being used prolonged its life: until when is asked for once more. */
  async #refresh(answer) {
    const view = await controller.instance(answer.instance).catch(() => null);
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

/** Bytes of the service's archive; 0 if nobody says: it is only for the comparison. */
const archiveSize = ({ service }) =>
  controller
    .service(service.digest)
    .then(({ size }) => size)
    .catch(() => 0);

/** `crypto.randomUUID` is for secure origins only; this is there on all. */
const randomKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
