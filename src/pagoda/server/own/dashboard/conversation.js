// The conversation of the playground. It is kept until the tab is closed, so that a reload loses nothing of it.

const STORED = "pagoda-conversation";
const ROLES = new Set(["user", "assistant"]);

export class Conversation {
  /** Each has a `role` and a `content`; answers have a `note` of what they cost, and `cut` if they were. */
  turns = [];
  settings = {};

  constructor() {
    try {
      const { turns, settings } = JSON.parse(sessionStorage.getItem(STORED));
      if (turns.every(({ role, content }) => ROLES.has(role) && typeof content === "string")) {
        Object.assign(this, { turns, settings: settings ?? {} });
      }
    } catch {
      // There is none, or none that can be read.
    }
  }

  /** As the server wants it: an answer without a word is none. */
  get messages() {
    return this.turns.filter(({ content }) => content).map(({ role, content }) => ({ role, content }));
  }

  clear() {
    this.turns = [];
    sessionStorage.removeItem(STORED);
  }

  save(settings) {
    this.settings = settings;
    if (!this.turns.length) return;
    try {
      sessionStorage.setItem(STORED, JSON.stringify({ turns: this.turns, settings }));
    } catch {
      // A conversation too long to be kept can still go on.
    }
  }
}
