// A chat that streams. The whole conversation goes along with every message, so later turns find the earlier cached.

import { events, json, request } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { count, seconds } from "./words.js";

export class Playground {
  #messages = [];
  #abort = null;
  #list = byId("conversation");
  #message = byId("chat-message");
  #onKeyNeeded;

  constructor(onKeyNeeded) {
    this.#onKeyNeeded = onKeyNeeded;
    byId("playground").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#message.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      byId("playground").requestSubmit();
    });
    byId("chat-stop").addEventListener("click", () => this.#abort?.abort());
    byId("chat-clear").addEventListener("click", () => this.#clear());
  }

  /** Ask which models there are. */
  async loadModels() {
    const { data } = await json("v1/models");
    byId("chat-model").replaceChildren(...data.map((model) => element("option", { text: model.id })));
  }

  #clear() {
    this.#abort?.abort();
    this.#messages = [];
    this.#list.replaceChildren();
    this.#say("");
    this.#message.focus();
  }

  async #send() {
    const content = this.#message.value.trim();
    if (this.#abort !== null || !content) return;
    this.#message.value = "";
    this.#messages.push({ role: "user", content });
    this.#add("You", content);
    const answer = this.#add("Model", "");
    this.#setBusy(new AbortController());
    this.#say("Answering");
    try {
      await this.#stream(answer);
      this.#say("Answered");
    } catch (error) {
      this.#failed(error, answer, content);
    } finally {
      this.#setBusy(null);
    }
  }

  async #stream(answer) {
    const sent = performance.now();
    const message = { role: "assistant", content: "" };
    const { signal } = this.#abort;
    const times = { sent, first: null, last: null };
    const messages = this.#messages;
    let usage = null;
    try {
      const response = await request("v1/chat/completions", { body: this.#body(), signal });
      for await (const event of events(response)) {
        if (event.error) throw new Error(event.error.message);
        usage = event.usage ?? usage;
        const piece = event.choices[0]?.delta.content ?? "";
        if (!piece) continue;
        times.last = performance.now();
        times.first ??= times.last;
        message.content += piece;
        this.#change(() => answer.text.append(piece));
      }
    } finally {
      // What was stopped is still what was said.
      if (message.content) messages.push(message);
    }
    if (usage !== null) this.#change(() => setText(answer.cost, costs(usage, times)));
  }

  #body() {
    const system = byId("chat-system").value.trim();
    return {
      model: byId("chat-model").value,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.#messages],
      temperature: Number(byId("chat-temperature").value),
      max_tokens: Number(byId("chat-tokens").value),
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  #failed(error, answer, content) {
    if (error.name === "AbortError") {
      setText(answer.cost, "stopped");
      this.#say("Stopped");
      return;
    }
    setText(answer.cost, "failed");
    this.#say(error.message);
    // A message that nobody answered is to be sent again, and not twice.
    if (this.#messages.at(-1)?.role === "user") this.#messages.pop();
    this.#message.value ||= content;
    this.#onKeyNeeded(error);
  }

  #setBusy(abort) {
    this.#abort = abort;
    byId("chat-send").disabled = abort !== null;
    byId("chat-stop").disabled = abort === null;
  }

  #say(text) {
    setText(byId("chat-status"), text);
  }

  #add(who, content) {
    const text = element("p", { class: "said", text: content });
    const cost = element("p", { class: "note" });
    this.#list.append(element("li", { class: who.toLowerCase() }, element("h3", { text: who }), text, cost));
    this.#list.scrollTop = this.#list.scrollHeight;
    return { text, cost };
  }

  /** Whoever reads the end of the conversation goes on reading the end. */
  #change(action) {
    const isAtEnd = this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < 40;
    action();
    if (isAtEnd) this.#list.scrollTop = this.#list.scrollHeight;
  }
}

function costs(usage, times) {
  const cached = usage.prompt_tokens_details.cached_tokens;
  const parts = [`${count(cached)} cached + ${count(usage.prompt_tokens - cached)} computed`];
  if (times.first !== null) parts.push(`first after ${seconds((times.first - times.sent) / 1000)}`);
  const generated = usage.completion_tokens;
  const rate = (1000 * (generated - 1)) / (times.last - times.first);
  parts.push(`${count(generated)} tokens${Number.isFinite(rate) ? ` at ${count(rate)}/s` : ""}`);
  return parts.join(" · ");
}
