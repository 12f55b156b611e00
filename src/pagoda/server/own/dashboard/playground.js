// A chat that streams. The whole conversation goes along with every message, so later turns find the earlier cached.

import { events, json, request } from "./api.js";
import { Conversation } from "./conversation.js";
import { byId, element, setText } from "./dom.js";
import { count, seconds } from "./words.js";

const NAMES = { user: "You", assistant: "Model" };
const SETTINGS = ["model", "temperature", "tokens", "system"];

export class Playground {
  #conversation = new Conversation();
  #abort = null;
  #isLeaving = false;
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
    // What a page that goes away breaks off has not failed.
    addEventListener("pagehide", () => {
      this.#save();
      this.#isLeaving = true;
    });
    addEventListener("pageshow", () => {
      this.#isLeaving = false;
    });
    this.#restore();
  }

  /** Ask which models there are; the one that was chosen stays. */
  async loadModels() {
    const { data } = await json("v1/models");
    const list = byId("chat-model");
    const chosen = list.value || this.#conversation.settings.model;
    list.replaceChildren(...data.map((model) => element("option", { text: model.id })));
    if (data.some(({ id }) => id === chosen)) list.value = chosen;
  }

  #restore() {
    const { turns, settings } = this.#conversation;
    for (const name of SETTINGS) if (settings[name]) byId(`chat-${name}`).value = settings[name];
    for (const turn of turns) this.#mark(this.#add(turn), turn);
    this.#list.scrollTop = this.#list.scrollHeight;
  }

  #save() {
    this.#conversation.save(Object.fromEntries(SETTINGS.map((name) => [name, byId(`chat-${name}`).value])));
  }

  #clear() {
    this.#abort?.abort();
    this.#conversation.clear();
    this.#list.replaceChildren();
    this.#say("");
    this.#message.focus();
  }

  async #send() {
    const content = this.#message.value.trim();
    if (this.#abort !== null || !content) return;
    const { turns } = this.#conversation;
    const [asked, answer] = [{ role: "user", content }, { role: "assistant", content: "", note: "stopped", cut: "" }];
    this.#message.value = "";
    turns.push(asked);
    this.#add(asked);
    const body = this.#body();
    turns.push(answer);
    const shown = this.#add(answer);
    this.#setBusy(new AbortController());
    this.#say("Answering");
    try {
      await this.#stream(body, answer, shown);
      this.#say("Answered");
    } catch (error) {
      this.#failed(error, answer, asked);
    } finally {
      this.#setBusy(null);
      this.#change(() => this.#mark(shown, answer));
      if (!this.#isLeaving) this.#save();
    }
  }

  async #stream(body, answer, shown) {
    const times = { sent: performance.now(), first: null, last: null };
    const { signal } = this.#abort;
    let usage = null;
    let reason = null;
    for await (const event of events(await request("v1/chat/completions", { body, signal }))) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      reason = event.choices[0]?.finish_reason ?? reason;
      const piece = event.choices[0]?.delta.content ?? "";
      if (!piece) continue;
      times.last = performance.now();
      times.first ??= times.last;
      answer.content += piece;
      this.#change(() => shown.text.append(piece));
    }
    answer.note = usage === null ? "" : costs(usage, times);
    if (reason === "length") answer.cut = cutBy(usage?.completion_tokens, body.max_tokens);
  }

  #body() {
    const system = byId("chat-system").value.trim();
    return {
      model: byId("chat-model").value,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.#conversation.messages],
      temperature: Number(byId("chat-temperature").value),
      max_tokens: Number(byId("chat-tokens").value),
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  /** What was stopped is still what was said. */
  #failed(error, answer, asked) {
    if (error.name === "AbortError") {
      this.#say("Stopped");
      return;
    }
    answer.note = "failed";
    this.#say(error.message);
    // A message that nobody answered is to be sent again, and not twice.
    const { turns } = this.#conversation;
    if (!answer.content && turns.at(-1) === answer) turns.splice(turns.indexOf(asked));
    this.#message.value ||= asked.content;
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

  #add({ role, content }) {
    const text = element("p", { class: "said", text: content });
    const cut = element("p", { class: "cut", hidden: "" });
    const cost = element("p", { class: "note" });
    const name = NAMES[role];
    this.#list.append(element("li", { class: name.toLowerCase() }, element("h3", { text: name }), text, cut, cost));
    this.#list.scrollTop = this.#list.scrollHeight;
    return { text, cut, cost };
  }

  #mark({ cut, cost }, turn) {
    cut.hidden = !turn.cut;
    setText(cut, turn.cut ?? "");
    setText(cost, turn.note ?? "");
  }

  /** Whoever reads the end of the conversation goes on reading the end. */
  #change(action) {
    const isAtEnd = this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < 40;
    action();
    if (isAtEnd) this.#list.scrollTop = this.#list.scrollHeight;
  }
}

function cutBy(generated, most) {
  if (generated < most) return `… cut off after ${count(generated)} tokens: the context is full`;
  return `… cut off after ${count(most)} tokens, the most that the settings allow`;
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
