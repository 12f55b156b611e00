// Asks for the API key where the server wants one.

import { storedKey, storeKey } from "./api.js";
import { byId, setText } from "./dom.js";

export class KeyDialog {
  #dialog = byId("key-dialog");

  /** `onKey` is called when there is a new key. */
  constructor(onKey) {
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      storeKey(byId("key-input").value.trim());
      byId("key-input").value = "";
      this.#dialog.close();
      onKey();
    });
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
    byId("key-button").addEventListener("click", () => this.#open());
  }

  /** The server has refused what there is. */
  ask() {
    byId("key-button").hidden = false;
    if (storedKey()) setText(byId("key-reason"), "The server refused this key.");
    this.#open();
  }

  #open() {
    if (!this.#dialog.open) this.#dialog.showModal();
  }
}
