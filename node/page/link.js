// Whether the controller answers: looked at now and then, and more often while it does not.

const CALM_MS = 15_000;
const FIRST_MS = 1_000;
const LONGEST_MS = 8_000;

export class Link {
  #controller;
  #happen;
  #timer = 0;
  #wait_ms = FIRST_MS;
  #up = true;
  #looking = null;
  #waiting = [];
  #on_back = [];

  constructor(controller, happen) {
    this.#controller = controller;
    this.#happen = happen;
  }

  /** `call` is made each time that the controller answers after it did not, and the first time. */
  when_back(call) {
    this.#on_back.push(call);
  }

  /** Ask the controller now; whoever calls meanwhile shares the answer. */
  look() {
    clearTimeout(this.#timer);
    this.#looking ??= this.#look().finally(() => (this.#looking = null));
    return this.#looking;
  }

  async #look() {
    try {
      const { agents } = await this.#controller.health();
      this.#up = true;
      this.#wait_ms = FIRST_MS;
      this.#timer = setTimeout(() => this.look(), CALM_MS);
      this.#happen({ type: "link-back", agents });
      for (const call of [...this.#on_back, ...this.#waiting.splice(0)]) call();
    } catch {
      this.lost();
    }
  }

  /** A call found nobody there. */
  lost() {
    clearTimeout(this.#timer);
    this.#up = false;
    this.#timer = setTimeout(() => this.look(), this.#wait_ms);
    this.#happen({ type: "link-lost", retry_at: Date.now() + this.#wait_ms });
    this.#wait_ms = Math.min(2 * this.#wait_ms, LONGEST_MS);
  }

  /** Resolves when the controller answers again, at once if it does; never after `signal`. */
  async back(signal) {
    if (this.#up) return;
    await new Promise((resolve, reject) => {
      this.#waiting.push(resolve);
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  }
}
