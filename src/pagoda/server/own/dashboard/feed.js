// The feed of what changes, for as long as the page is open. EventSource cannot send a key, so it is read with fetch.

import { events, KeyNeeded, request } from "./api.js";

// Longer than a step of the engine, between which the server answers.
const MOST_SILENT_MS = 30_000;
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 8000;

/**
 * Calls `onEvent` for each event and `onState` as the connection comes and goes: "live", "lost" or "refused". After
 * "refused" nothing happens until `retry`.
 */
export class Feed {
  #onEvent;
  #onState;
  #delay = FIRST_DELAY_MS;
  #wake = () => {};

  constructor({ onEvent, onState }) {
    this.#onEvent = onEvent;
    this.#onState = onState;
  }

  async run() {
    for (;;) {
      let refused = false;
      try {
        await this.#read();
        this.#onState("lost", "the server ended it");
      } catch (error) {
        refused = error instanceof KeyNeeded;
        this.#onState(refused ? "refused" : "lost", error.message);
      }
      await this.#wait(refused ? null : this.#delay);
      this.#delay = Math.min(2 * this.#delay, LONGEST_DELAY_MS);
    }
  }

  /** Try again now. */
  retry() {
    this.#wake();
  }

  #wait(milliseconds) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      if (milliseconds !== null) setTimeout(resolve, milliseconds);
    });
  }

  async #read() {
    const abort = new AbortController();
    // A connection that breaks without a word is only noticed by its silence.
    let silence;
    const expectMore = () => {
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort(new Error("nothing was heard")), MOST_SILENT_MS);
    };
    try {
      expectMore();
      for await (const event of events(await request("v1/kv/events", { signal: abort.signal }))) {
        expectMore();
        this.#delay = FIRST_DELAY_MS;
        this.#onState("live", "");
        this.#onEvent(event);
      }
    } finally {
      clearTimeout(silence);
      abort.abort();
    }
  }
}
